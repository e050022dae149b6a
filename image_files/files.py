"""Datasets of image files that are decoded when they are needed, by several processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from experiment import distributed
from experiment.errors import UserError
from image_files.datasets import MemoryImages, Options
from image_files.decoding import BadImage, decode, on_white, read_image, to_tensor, upright

# Seconds that a run waits for its next batch, which is hundreds of photographs at most, before it ends with an error.
PATIENCE = 600


class FileImages(Dataset):
    """Images in files, decoded when they are needed. An index is a number, or (number, seed). With a seed, the image is
    cropped and distorted at random by torchvision's RandomResizedCrop, RandomHorizontalFlip and `options.color_jitter`.

    Args:
        paths: (N,), bytes: Python's strings, a million of them, would be copied into every worker.
        labels: (N,), int64. An array, because tensors are sent to workers through shared memory.
    """

    def __init__(self, paths: np.ndarray, labels: np.ndarray, options: Options) -> None:
        self.paths, self._labels, self.options = paths, labels, options
        distortions: list[torch.nn.Module] = [v2.RandomResizedCrop(options.image_size), v2.RandomHorizontalFlip()]
        if any(jitter := [float(share) for share in options.color_jitter.split(",")]):
            distortions.append(v2.ColorJitter(*jitter))
        self._distort = v2.Compose(distortions)

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self._labels)

    @property
    def bytes(self) -> int:
        """The memory that the decoded images need."""
        return len(self) * self.options.channels * self.options.image_size**2

    def part(self, indices: np.ndarray) -> FileImages:
        return FileImages(self.paths[indices], self._labels[indices], self.options)

    def joined(self, more: FileImages) -> FileImages:
        both = np.concatenate([self.paths, more.paths]), np.concatenate([self._labels, more._labels])
        return FileImages(*both, self.options)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = item if isinstance(item, tuple) else (item, None)
        path, options = os.fsdecode(self.paths[index]), self.options
        if seed is None:
            image = decode(path, options.image_size, options.channels, options.centre_crop)
        else:
            image = read_image(path, partial(self._distorted, seed))
        return image, int(self._labels[index])

    def __getitems__(self, items: Iterable[Any]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self[item] for item in items), strict=True)
        return torch.stack(images), torch.tensor(labels)

    def batches(
        self, items: Sequence[Any], workers: int, pin_memory: bool
    ) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
        decoded = loader(self, items, workers, persistent_workers=workers > 0, pin_memory=pin_memory)
        return lambda: plain_errors(decoded)

    def _distorted(self, seed: int, image: Image.Image) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.default_generator.manual_seed(seed)
            return to_tensor(self._distort(on_white(upright(image))), self.options.channels)


def decode_all(files: FileImages) -> MemoryImages:
    options = files.options
    images = torch.empty(len(files), options.channels, options.image_size, options.image_size, dtype=torch.uint8)
    start = 0
    for batch, _ in in_order(files, options.workers):
        images[start : start + len(batch)] = batch
        start += len(batch)
    return MemoryImages(images, files.labels)


# ---- Worker processes


def _unchanged(batch: Any) -> Any:
    return batch


def in_order(dataset: Any, workers: int, collate: Callable[[Any], Any] = _unchanged) -> Iterator[Any]:
    """Batches of all of `dataset`, in order."""
    batches = np.array_split(np.arange(len(dataset)), math.ceil(len(dataset) / 256))
    yield from plain_errors(loader(dataset, batches, workers, collate))


def loader(
    dataset: Any, batches: Sequence[Any], workers: int, collate: Callable[[Any], Any] = _unchanged, **options: Any
) -> DataLoader:
    """PyTorch's loader of these batches of items. Its workers end when the run is killed.

    Args:
        collate: makes a batch of what the dataset returns; not needed for images, whose `__getitems__` returns a batch.
        options: more arguments of `DataLoader`.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),  # with torch's generator, a resumed run would differ from an uninterrupted one
        multiprocessing_context=_start_method(workers),
        worker_init_fn=_begin,
        timeout=PATIENCE if workers else 0,
        **options,
    )


def _start_method(workers: int) -> str | None:
    """The start method for a loader's workers.

    With CUDA or several processes, a fork may deadlock, so it is forkserver.
    """
    connected = torch.cuda.is_initialized() or distributed.world_size() > 1
    return "forkserver" if workers and connected and sys.platform != "win32" else None


def _begin(worker: int) -> None:
    """Makes a worker send its batches through a pipe, and end when its run is killed.

    PyTorch sends tensors through shared memory. In a container this is often 64 MB, and a batch that finds no room
    there never arrives. PyTorch lets workers watch the process that started them. That is the forkserver, which in turn
    waits for its workers.
    """
    ForkingPickler.register(Tensor, lambda tensor: (torch.from_numpy, (tensor.numpy(),)))
    parent = multiprocessing.parent_process()

    def wait() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def plain_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields the batches of a loader. Removes the worker's traceback from the message of a `UserError`."""
    try:
        yield from batches
    except UserError as error:
        error.__traceback__ = None  # it would keep the loader alive, with idle workers that take seconds to end
        hint = "; --skip_bad_images leaves out such images" if isinstance(error, BadImage) else ""
        raise UserError(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1] + hint) from None
