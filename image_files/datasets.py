"""`ImageData`, a dataset, and `Options`, the arguments that select it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Levels = tuple[float, ...]  # one value per channel, as a fraction of white


@dataclass(frozen=True)
class Options:
    """Which images there are, and how they are decoded, augmented and put into batches: the values of the flags of
    these names.
    """

    dataset: str = "cifar10"
    data: str = "../data"
    image_size: int = 32
    channels: int = 3
    centre_crop: float = 1.0
    crop: str = "pad"
    color_jitter: str = "0,0,0,0"
    cutout: bool = False
    cutout_length: int = 16
    skip_bad_images: bool = False
    valid_folder: bool = False
    data_on_device: str = "auto"
    workers: int = 2
    batch_size: int = 64
    train_portion: float = 0.5
    seed: int = 0

    @classmethod
    def of(cls, args: argparse.Namespace) -> Options:
        """Returns the options of a command line; flags that the command lacks have the values above."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)})


class Images(Protocol):
    """Images and their labels, in memory or in files."""

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def __getitem__(self, item: int, /) -> tuple[Tensor, int]: ...

    def __getitems__(self, items: Any, /) -> tuple[Tensor, Tensor]: ...

    def part(self, indices: np.ndarray) -> Self:
        """The images with these indices."""
        ...

    def batches(
        self, items: Sequence[Any], workers: int, pin_memory: bool
    ) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
        """Returns a function that yields a batch for each of `items`.

        `items` may change between its calls. `workers` decode.
        """
        ...


class MemoryImages(Dataset):
    """Decoded images: uint8 (N, C, H, W) and int64 labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices).to(self.images.device, non_blocking=True)  # once for both
        return self.images[chosen], self.labels[chosen]

    def batches(
        self, items: Sequence[Any], workers: int, pin_memory: bool
    ) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
        return lambda: map(self.__getitems__, items)

    def to(self, device: torch.device) -> MemoryImages:
        return MemoryImages(self.images.to(device), self.labels.to(device))

    def part(self, indices: np.ndarray) -> MemoryImages:
        return MemoryImages(*self.__getitems__(indices))


@dataclass(frozen=True)
class ImageData:
    """A dataset.

    Items of `train` and `test` are (uint8 image (C, H, W), int label); `__getitems__(indices)` gives a batch, (uint8
    (B, C, H, W), int64 (B,)). C is 3 (RGB) or 1 (grey). `mean` and `std` are those of the training pixels.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: Levels
    std: Levels
    image_size: int
    flip: bool  # whether a mirrored image still shows its class
    centre_crop: float = 1.0  # the share of the shorter side of an image file that is kept
    valid: int = 0  # how many of the training images, the last ones, are those of a folder's own val/
    notes: tuple[str, ...] = ()  # lines for the log of a run

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def record(self) -> dict[str, Any]:
        """The entries of a run's `config.json` about the images."""
        return {"classes": self.classes, "mean": self.mean, "std": self.std}


def interleave(labels: np.ndarray) -> np.ndarray:
    """A random order of `labels` in which every section contains the classes in proportion, so that both parts of a
    split have all of them.

    The order does not depend on the run's seed, like the order of CIFAR-10: runs with different seeds search on the
    same halves and can be compared. `RandomState`, because NumPy guarantees that its numbers never change.
    """
    random = np.random.RandomState(0)
    place = np.empty(len(labels))
    members_of_each = np.split(np.argsort(labels, kind="stable"), np.unique(np.sort(labels), return_index=True)[1][1:])
    for members in map(random.permutation, members_of_each):
        place[members] = (np.arange(len(members)) + random.rand(len(members))) / len(members)
    return np.argsort(place)


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
