"""Mean and standard deviation of images that do not fit into memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import torch

from experiment import errors, files
from experiment.errors import UserError
from image_files.datasets import Levels, count_levels, mean_std
from image_files.files import FileImages, in_order


class Measured(msgspec.Struct):
    """Mean and deviation of so many files of so many bytes in all."""

    decoding: str
    files: int
    bytes: int
    mean: tuple[Annotated[float, msgspec.Meta(ge=0, le=1)], ...] = ()
    std: tuple[Annotated[float, msgspec.Meta(gt=0, le=1)], ...] = ()


def measure(images: FileImages, cache: Path) -> tuple[Levels, Levels]:
    """Mean and deviation, from the file `cache`, or measured and written there."""
    channels = images.options.channels
    try:
        ours = Measured("upright, on white", len(images), sum(os.stat(path).st_size for path in images.paths))
    except OSError as error:
        raise UserError(f"cannot read the image {os.fsdecode(error.filename)}: {error.strerror}") from None
    try:
        known = msgspec.json.decode(cache.read_bytes(), type=Measured)
        if (
            known == msgspec.structs.replace(ours, mean=known.mean, std=known.std)
            and len(known.mean) == len(known.std) == channels
        ):
            return known.mean, known.std
    except (OSError, msgspec.MsgspecError):
        pass  # no valid file: measure
    errors.tell(f"measuring mean and deviation of {len(images)} images, once")
    none = torch.zeros(channels, 256, dtype=torch.long)
    ours.mean, ours.std = mean_std(
        sum((count_levels(batch) for batch, _ in in_order(images, images.options.workers)), none)
    )
    files.keep(cache, msgspec.json.encode(ours), "they will be measured again")
    return ours.mean, ours.std
