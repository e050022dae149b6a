"""The published implementation's numbers (tests/golden/), and how its networks and batches were filled."""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from architectures.cells import names

FOLDER = Path(__file__).parent / "golden"


def load(name: str):
    return json.loads((FOLDER / name).read_text())


def cell(arch: str):
    """The genotype that its authors call so."""
    return names()[arch.upper().replace("FAIRDARTS", "FAIR_DARTS").replace("_IMAGE", "_IMAGENET")]


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


def batch_of(case: dict, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    seed = case["alpha_seed"] if "alpha_seed" in case else case["arch_seed"]
    return batch(seed + number, case["batch"], case["num_classes"], case.get("size", 32))


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


def check_norms(tensors: dict[str, torch.Tensor], expected: dict[str, float], tolerance: float) -> None:
    assert tensors.keys() == expected.keys()
    for name, norm in expected.items():
        close(tensors[name].norm(), norm, tolerance)


def check_steps(case, network, architect, expected, lr, unrolled=False, tolerance=1e-8, warmup=0, clip=5, draw=None):
    """Steps of both levels, one an epoch. `draw`, if given, sets the draws of the last evaluation."""

    def number(row, *names):  # not all authors' numbers have the same names
        return next((row[name] for name in names if name in row), None)

    weights = network.weight_parameters()
    optimizer = torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=3e-4)
    for step, row in enumerate(expected["steps"]):
        train, valid = batch_of(case, 10 + step), batch_of(case, 100 + step)
        architect.begin_epoch(row.get("epoch", 0))
        if row.get("epoch", 0) >= warmup:
            architect.step(*train, *valid, lr, optimizer, unrolled)
        gradients = number(row, "arch_grad", "alpha_grad")
        for alpha, gradient in zip(network.arch_parameters(), gradients or (), strict=gradients is not None):
            close(alpha.grad, gradient, tolerance)
        if "noise_seed" in row:
            close(network.relaxation.radius, row["epsilon"], 1e-12)
            close(torch.stack(network.mixing_weights()), row["perturbed"], 1e-8)
        optimizer.zero_grad()
        logits = network(train[0])
        loss = F.cross_entropy(logits, train[1]) if "arch_zero_one" not in row else network.criterion(logits, train[1])
        loss.backward(inputs=weights)
        norm = torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        close(loss, number(row, "loss", "train_loss"), tolerance)
        close(norm, number(row, "grad_norm", "clip_norm"), tolerance)
    for alpha, values in zip(network.arch_parameters(), number(expected, "final_arch", "final_alphas"), strict=True):
        close(alpha, values, tolerance)
    if "final_norms" in expected:
        state = network.state_dict()
        check_norms({name: state[name] for name in keys_shapes(network)}, expected["final_norms"], tolerance)
    architect.settle([])
    if draw is not None:
        draw()
    with torch.no_grad():
        close(network.eval()(batch_of(case, 999)[0]), expected["final_eval_logits"], tolerance)


def check_discrete(case: dict, network: torch.nn.Module, original: Callable[[str], str] = str) -> None:
    """A network of a published cell, with its auxiliary head."""
    fill(network, original)
    x, y = batch(case["seed"], case["batch"])
    with torch.no_grad():
        logits, auxiliary = network.eval()(x)
    assert auxiliary is None
    close(logits[:2], case["eval_logits"], 1e-8)
    logits, auxiliary = network.train()(x)
    main_loss = F.cross_entropy(logits, y)
    loss = main_loss + 0.4 * F.cross_entropy(auxiliary, y)
    loss.backward()
    close(main_loss, case["main_loss"], 1e-8)
    close(loss, case["train_loss"], 1e-8)
    gradients = {original(name): parameter.grad for name, parameter in network.named_parameters()}
    check_norms(gradients, case["grad_norms"], 1e-8)


def draw(case, monkeypatch, more: int = 0) -> None:
    """Sets what DrNAS draws next: the samples themselves, or the seed of PyTorch's. Their gradient is PyTorch's."""
    if "manual_seed" in case:
        torch.manual_seed(case["manual_seed"] + more)
        return
    r = np.random.RandomState(case["draw_seed"] + more)

    def sample(concentrations):
        drawn = torch.as_tensor(r.exponential(size=concentrations.shape))
        return drawn / drawn.sum(-1, keepdim=True)

    monkeypatch.setattr(torch, "_sample_dirichlet", sample)
