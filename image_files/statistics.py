"""Mean and standard deviation of images."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from experiment import errors, files
from experiment.errors import UserError
from image_files.datasets import FileImages, stream

Levels = tuple[float, ...]  # one value per channel, as a fraction of white


def measure(images: FileImages, cache: Path, workers: int) -> tuple[Levels, Levels]:
    """Mean and deviation of images that do not fit into memory, from the file `cache`, or measured and written there."""
    try:
        key = {"decoding": "upright, on white", "files": len(images), "bytes": sum(Path(path).stat().st_size for path, _ in images.samples)}
    except OSError as error:
        raise UserError(f"cannot read the image {error.filename}: {error.strerror}") from None
    try:
        known = files.parse_json(cache.read_bytes())
        mean, std = tuple(known["mean"]), tuple(known["std"])
        fractions = all(type(value) is float and 0 <= value <= 1 for value in mean + std)
        complete = len(mean) == len(std) == images.channels
        if {name: known[name] for name in key} == key and complete and fractions and min(std) > 0:
            return mean, std
    except (OSError, ValueError, TypeError, KeyError):
        pass  # no valid file: measure
    errors.tell(f"measuring mean and deviation of {len(images)} images, once")
    none = torch.zeros(images.channels, 256, dtype=torch.long)
    mean, std = mean_std(sum((count_levels(batch) for batch, _ in stream(images, workers)), none))
    files.keep(cache, json.dumps(key | {"mean": mean, "std": std}).encode(), "they will be measured again")
    return mean, std


def count_levels(images: Tensor) -> Tensor:
    """How often each of the 256 levels occurs in each channel: (C, 256), from uint8 (N, C, H, W)."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def mean_std(counts: Tensor) -> tuple[Levels, Levels]:
    """Exact mean and standard deviation, as fractions of white, from `count_levels`."""
    share = counts.double() / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * level).sum(1)
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1.0  # a constant channel: avoid a division by 0
    return tuple(mean.tolist()), tuple(std.tolist())
