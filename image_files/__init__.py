"""What a dataset is, and which one is meant. `sources` loads them by name, `folders` those of image files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

Levels = tuple[float, ...]  # one value per channel, as a fraction of white
Batch = tuple[Tensor, Tensor]  # uint8 images (B, C, H, W) and int64 labels (B,)


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
        """The options of a command line; flags that the command lacks have the values above."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)})


class Images(Protocol):
    """Images and their labels, in memory or in files (`files.FileImages`)."""

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def __getitems__(self, items: Any, /) -> Batch: ...

    def part(self, indices: np.ndarray) -> Self: ...

    def batches(self, items: Sequence[Any], workers: int, pin_memory: bool) -> Callable[[], Iterator[Batch]]:
        """A function that yields a batch for each of `items`, which may change between its calls."""
        ...


class MemoryImages:
    """Decoded images: uint8 (N, C, H, W) and int64 labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        chosen = torch.as_tensor(indices).to(self.images.device, non_blocking=True)  # once for both
        return self.images[chosen], self.labels[chosen]

    def part(self, indices: np.ndarray) -> MemoryImages:
        return MemoryImages(*self.__getitems__(indices))

    def batches(self, items: Sequence[Any], workers: int, pin_memory: bool) -> Callable[[], Iterator[Batch]]:
        return lambda: map(self.__getitems__, items)

    def to(self, device: torch.device) -> MemoryImages:
        return MemoryImages(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """A dataset. C is 3 (RGB) or 1 (grey). `mean` and `std` are those of the training pixels."""

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
    """A random order of `labels` in which every section contains the classes in proportion.

    It does not depend on the run's seed, like the order of CIFAR-10: runs with different seeds search on the same
    halves and can be compared. `RandomState`, because NumPy guarantees that its numbers never change.
    """
    random = np.random.RandomState(0)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + random.rand(len(members))) / len(members)
    return np.argsort(place)


def mean_std(batches: Iterable[Tensor]) -> tuple[Levels, Levels]:
    """Exact mean and standard deviation of each channel, as fractions of white, from uint8 (B, C, H, W)."""
    counts = sum(torch.stack([channel.flatten().bincount(minlength=256) for channel in x.unbind(1)]) for x in batches)
    assert isinstance(counts, Tensor)  # (C, 256): how often each level occurs
    share = counts.double() / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * level).sum(1)
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1.0  # a constant channel: avoid a division by 0
    return tuple(mean.tolist()), tuple(std.tolist())
