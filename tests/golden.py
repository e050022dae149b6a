"""The published implementation's numbers (tests/golden/), and how its networks and batches were filled."""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden"


def load(name: str):
    return json.loads((FOLDER / name).read_text())


def fill(model: torch.nn.Module, original: Callable[[str], str] = str) -> None:
    """Fills parameters and buffers by their names; `original`: what the original calls them, where that differs."""
    for key, tensor in model.state_dict().items():
        if is_ours(key):
            continue
        key = original(key)
        r, shape = np.random.RandomState(zlib.crc32(key.encode())), tuple(tensor.shape)
        if key.endswith("running_var"):
            values = 1 + 0.5 * r.rand(*shape)
        elif key.endswith("running_mean"):
            values = 0.1 * r.randn(*shape)
        elif len(shape) <= 1:
            values = (1 if key.endswith("weight") else 0) + 0.1 * r.randn(*shape)
        else:
            values = r.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        tensor.copy_(torch.as_tensor(values))


def fill_by_shape(model: torch.nn.Module) -> None:
    """Fills parameters and buffers by their shapes alone, so that names need not agree."""
    for name, tensor in model.state_dict().items():
        if is_ours(name):
            continue
        values = torch.as_tensor(np.cos(0.7 * np.arange(tensor.numel()) + tensor.dim()).reshape(tensor.shape))
        if tensor.dim() <= 1:
            values = (1 if name.endswith(("weight", "running_var")) else 0) + 0.1 * values
        else:
            values = values * np.sqrt(2 / np.prod(tensor.shape[1:]))
        tensor.copy_(values)


def fill_alphas(model: torch.nn.Module, seed: int, scale: float = 0.5) -> None:
    r = np.random.RandomState(seed)
    with torch.no_grad():
        for alphas in model.arch_parameters():
            alphas.copy_(torch.as_tensor(scale * r.randn(*alphas.shape)))


def batch(seed: int, size: int, classes: int = 10, image_size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    r = np.random.RandomState(seed)
    return torch.as_tensor(r.randn(size, 3, image_size, image_size)), torch.as_tensor(r.randint(0, classes, size))


def keys_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """{name: shape} of all that the original's state_dict() holds."""
    return {key: list(value.shape) for key, value in model.state_dict().items() if not is_ours(key)}


def is_ours(key: str) -> bool:
    """Whether the original's state_dict() lacks it, or its batches were not counted in the numbers."""
    return "alphas" in key or "betas" in key or key.endswith("num_batches_tracked")


def close(actual, expected, relative):
    """Equal to `relative` times the size of the whole tensor; single entries may be as small as rounding."""
    actual = torch.as_tensor(actual, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm().clamp_min(1e-30)
    assert error <= relative, f"relative error {error:.2e}, allowed {relative:.0e}"


def sha256(shapes: dict[str, list[int]]) -> str:
    return hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()


def check_names(model: torch.nn.Module, case: dict) -> None:
    shapes = keys_shapes(model)
    assert (len(shapes), sha256(shapes)) == (case["keys"], case["keys_shapes_sha256"])
