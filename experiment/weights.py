"""Loads weights from files that may be untrusted."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiment.errors import UserError, shorten, tell

CONTAINERS = ("state_dict", "model_state_dict", "model")  # keys under which checkpoints of other codes hold the weights
COUNTERS = {"total_ops", "total_params"}  # buffers that thop adds to every module


def load_weights(
    model: nn.Module,
    path: str,
    num_classes: int | None = None,
    hint: str = "check --arch, --network, --init_channels, --layers and the dataset",
    say: Callable[[str], object] = tell,
) -> list[str]:
    """Loads a `state_dict()` into `model`: our own, one of the authors since PyTorch 0.3, or a .safetensors file.

    It may be part of a checkpoint, its names may share a prefix such as `module.`, and it may contain the counters of
    FLOP tools: then `say` gets one line.

    Args:
        num_classes: linear layers with so many outputs keep their own weights if the file's have another number.
        hint: what to check, for the message if the weights belong to another network.

    Returns:
        The names of the layers that keep their own weights.

    Raises:
        UserError: the file cannot be read, does not hold weights, or holds the weights of another network.
    """
    own = model.state_dict()
    weights, notes = _with_names_of(own, *_state_dict(_read(path), path))
    if notes:
        say(f"{path}: {'; '.join(notes)}")
    kept = _other_classifiers(model, weights, num_classes)
    weights |= {key: value for key, value in own.items() if key.rpartition(".")[0] in kept}
    # Weights from before PyTorch 0.4.1 lack BatchNorm's counters, which are not used here.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    different = [
        f"{key} is {_shape(weights[key])} in the file, {_shape(value)} here"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if missing or unexpected or different:
        if not different and all("auxiliary_head." in key for key in missing + unexpected):
            hint = "leave out --auxiliary" if missing else "add --auxiliary"
        first = [f"missing in the file: {key}" for key in missing[:3]]
        first += [f"only in the file: {shorten(key)}" for key in unexpected[:3]] + different[:3]
        raise UserError(
            f"{path} holds the weights of another network ({hint}); the first that differ: {'; '.join(first)}"
        )
    try:
        model.load_state_dict(own | weights)
    except RuntimeError as error:  # of sparse tensors, for example
        reason = shorten(" ".join(str(error).split()))
        raise UserError(f"{path} holds tensors that cannot be loaded ({reason})") from None
    return kept


def _read(path: str) -> Any:
    """The content of a file of weights, on the CPU."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: name its weights.pt")
    try:
        content = Path(path).read_bytes()
        if path.endswith(".safetensors"):
            return optional("safetensors.torch").load(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from None
    except Exception as error:  # torch.load raises many types for a damaged file, or a pickle that would run code
        if needed := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} holds more than tensors, such as a whole module: unpickling {shorten(needed[1])} may run any "
                "code, so it is not read; save the module's state_dict(): docs/faq.md"
            ) from None
        kind = type(error).__name__
        raise UserError(f"{path} does not hold saved weights that can be loaded safely ({kind})") from None


def _state_dict(content: Any, path: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights in the content of a file, and a note if they are a part of it."""
    notes = []
    if isinstance(content, dict):
        if {"progress", "parts"} <= content.keys():
            raise UserError(
                f"{path} is a checkpoint, which --resume goes on from: the weights are in weights.pt beside it"
            )
        if key := next((key for key in CONTAINERS if isinstance(content.get(key), dict)), None):
            epoch = content.get("epoch")
            notes = [f"read its {key}" + (f" of epoch {epoch}" if type(epoch) is int else "")]
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    ):
        raise UserError(f"{path} does not hold a state_dict: a dictionary of names and tensors")
    return content, notes


def _with_names_of(
    own: dict[str, Any], weights: dict[str, torch.Tensor], notes: list[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """`weights` without counters and without a prefix that all its names share; and notes about both."""
    counters = {key for key in weights if key.rpartition(".")[2] in COUNTERS and key not in own}
    if counters:
        notes = [*notes, f"left out {', '.join(sorted({key.rpartition('.')[2] for key in counters}))}"]
    weights = {key: value for key, value in weights.items() if key not in counters}
    first = next(iter(own), "")
    prefix = next((key.removesuffix(first) for key in weights if key.endswith(f".{first}")), "")
    if prefix and all(key.startswith(prefix) for key in weights):
        notes = [*notes, f"removed the prefix {shorten(prefix)}"]
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights, notes


def _other_classifiers(model: nn.Module, weights: dict[str, torch.Tensor], num_classes: int | None) -> list[str]:
    """The names of linear layers with `num_classes` outputs whose weights in the file differ only in the number of
    outputs.
    """
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and layer.out_features == num_classes
        and (saved := weights.get(f"{name}.weight")) is not None
        and saved.dim() == 2
        and saved.size(0) != num_classes
        and saved.size(1) == layer.in_features
    ]


def read_metadata(path: str) -> dict[str, str]:
    """The metadata of a .safetensors file."""
    try:
        open(path, "rb").close()
        with optional("safetensors").safe_open(path, "pt") as file:
            return file.metadata() or {}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from None
    except Exception as error:  # safetensors has its own type
        raise UserError(f"{path} is not a .safetensors file, or damaged ({shorten(str(error))})") from None


def optional(package: str) -> Any:
    """Imports a package that only some formats need. Raises `UserError` if it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = (error.name or package).partition(".")[0]
        raise UserError(f"the package {missing} is missing: pip install -r requirements-export.txt") from None


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
