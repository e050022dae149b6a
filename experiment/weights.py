"""Weights read from a file that may be untrusted."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from experiment import files
from experiment.errors import UserError, shorten


def load_weights(model: nn.Module, path: str, hint: str = "check --arch, --init_channels, --layers and the dataset") -> None:
    """Loads a `state_dict()` saved by `write_weights`, or by the original authors, into `model`.

    Args:
        hint: what to check, for a user whose weights are of another network.

    Raises:
        UserError: the file cannot be read or holds no weights, or those of another network.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: name its weights.pt")
    try:
        with files.open_file(path) as file:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from None
    except Exception as error:  # what torch.load raises for a damaged file or a pickle that would run code is of many kinds
        raise UserError(f"{path} does not hold saved weights that can be loaded safely ({type(error).__name__})") from None
    if isinstance(weights, dict) and {"progress", "parts"} <= weights.keys():
        raise UserError(f"{path} is a checkpoint, which --resume goes on from: the weights are in weights.pt beside it")
    if not isinstance(weights, dict) or not all(isinstance(key, str) and _is_plain(value) for key, value in weights.items()):
        raise UserError(f"{path} does not hold a state_dict: a dictionary of names and dense tensors")
    own = model.state_dict()
    # Weights from before PyTorch 0.4.1 lack BatchNorm's counters, which nothing here reads.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights if key not in own]
    differing = [
        f"{key} is {_shape(weights[key])} in the file, {_shape(own[key])} here"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    differing += [
        f"{key} is of {weights[key].dtype} in the file, of {own[key].dtype} here"
        for key in own
        if key in weights and weights[key].is_floating_point() != own[key].is_floating_point()
    ]
    if missing or unexpected or differing:
        if not missing and not differing and all(key.startswith("auxiliary_head.") for key in unexpected):
            hint = "add --auxiliary"
        elif not unexpected and not differing and all(key.startswith("auxiliary_head.") for key in missing):
            hint = "leave out --auxiliary"
        first = [f"missing in the file: {key}" for key in missing[:3]]
        first += [f"only in the file: {shorten(key)}" for key in unexpected[:3]]
        first += differing[:3]
        raise UserError(f"{path} holds the weights of another network ({hint}); the first that differ: {'; '.join(first)}")
    model.load_state_dict(own | weights)


def _is_plain(value: Any) -> bool:
    """Whether this is a tensor of numbers that can be copied: neither sparse, nor quantized, nor without content."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized and not value.is_meta


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
