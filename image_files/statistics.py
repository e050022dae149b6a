"""Mean and standard deviation of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from experiment import errors, files
from experiment.errors import UserError
from image_files.datasets import FileImages, in_order

Levels = tuple[float, ...]  # one value per channel, as a fraction of white


class Measured(msgspec.Struct):
    """Mean and deviation of so many files of so many bytes in all."""

    decoding: str
    files: int
    bytes: int
    mean: tuple[Annotated[float, msgspec.Meta(ge=0, le=1)], ...] = ()
    std: tuple[Annotated[float, msgspec.Meta(gt=0, le=1)], ...] = ()


def measure(images: FileImages, cache: Path) -> tuple[Levels, Levels]:
    """Mean and deviation of images that do not fit into memory, from the file `cache`, or measured and written there."""
    channels = images.options.channels
    try:
        ours = Measured("upright, on white", len(images), sum(os.stat(path).st_size for path in images.paths))
    except OSError as error:
        raise UserError(f"cannot read the image {os.fsdecode(error.filename)}: {error.strerror}") from None
    try:
        known = msgspec.json.decode(cache.read_bytes(), type=Measured)
        if known == msgspec.structs.replace(ours, mean=known.mean, std=known.std) and len(known.mean) == len(known.std) == channels:
            return known.mean, known.std
    except (OSError, msgspec.MsgspecError):
        pass  # no valid file: measure
    errors.tell(f"measuring mean and deviation of {len(images)} images, once")
    none = torch.zeros(channels, 256, dtype=torch.long)
    ours.mean, ours.std = mean_std(sum((count_levels(batch) for batch, _ in in_order(images, images.options.workers)), none))
    files.keep(cache, msgspec.json.encode(ours), "they will be measured again")
    return ours.mean, ours.std


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
