"""Images in memory and in files, and the processes that decode the latter."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from experiment import distributed
from experiment.errors import UserError
from image_files.decoding import UNDECODABLE, BadImage, decode, on_white, read_image, to_tensor, upright

Sample = tuple[str, int]  # a file and its label

# Seconds that a run waits for its next batch, which is hundreds of photographs at most, before it ends with an error.
PATIENCE = 600


# ---- Datasets


class MemoryImages(Dataset):
    """Decoded images: uint8 (N, C, H, W) and int64 labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        indices = torch.as_tensor(indices).to(self.images.device, non_blocking=True)  # once for both
        return self.images[indices], self.labels[indices]

    def to(self, device: torch.device) -> MemoryImages:
        """A copy on `device`."""
        return MemoryImages(self.images.to(device), self.labels.to(device))

    def part(self, indices: np.ndarray) -> MemoryImages:
        """A copy of the images with these indices."""
        return MemoryImages(*self.__getitems__(torch.from_numpy(indices)))


class Samples(Sequence[Sample]):
    """Files and their labels, such that a million of them take little memory. They reach workers without shared memory.

    Args:
        root: what all names are within; empty for none.
        names: their bytes, separated by NUL, (bytes,), uint8.
        ends: where each name ends in `names`, (N,), int64.
        labels: (N,), int64.
        order: which of these N samples there are, and in which order; None for all.
    """

    def __init__(self, root: str, names: np.ndarray, ends: np.ndarray, labels: np.ndarray, order: np.ndarray | None = None) -> None:
        self.root, self.names, self.ends, self._labels = root, names, ends, labels
        self._order = np.arange(len(ends)) if order is None else order

    @classmethod
    def of(cls, samples: Sequence[Sample], root: str = "") -> Samples:
        """These, with paths within `root`."""
        names = [os.fsencode(os.path.relpath(path, root) if root else path) for path, _ in samples]
        ends = np.cumsum([len(name) + 1 for name in names], dtype=np.int64) - 1
        text = np.frombuffer(b"\0".join(names), dtype=np.uint8)
        return cls(root, text, ends, np.array([label for _, label in samples], dtype=np.int64))

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self._labels[self._order])

    def part(self, indices: np.ndarray) -> Samples:
        """These of the samples."""
        return Samples(self.root, self.names, self.ends, self._labels, self._order[indices])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # of slices there are none
        number = int(self._order[index])
        start = int(self.ends[number - 1]) + 1 if number else 0
        name = os.fsdecode(self.names[start : self.ends[number]].tobytes())
        return os.path.join(self.root, name), int(self._labels[number])


class FileImages(Dataset):
    """Images in files, decoded when asked for: `pixels` of each."""

    def __init__(self, samples: Sequence[Sample], image_size: int, channels: int = 3, centre_crop: float = 1.0) -> None:
        self.samples = samples if isinstance(samples, Samples) else Samples.of(samples)
        self.image_size = image_size
        self.channels = channels
        self.centre_crop = centre_crop

    @property
    def labels(self) -> Tensor:
        return self.samples.labels

    @property
    def bytes(self) -> int:
        """That the decoded images take."""
        return len(self) * self.channels * self.image_size**2

    def part(self, indices: np.ndarray) -> FileImages:
        """The images with these indices."""
        return FileImages(self.samples.part(indices), self.image_size, self.channels, self.centre_crop)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return decode(path, self.image_size, self.channels, self.centre_crop), label

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self[int(index)] for index in indices), strict=True)
        return torch.stack(images), torch.tensor(labels)


class Share(NamedTuple):
    """What a process decodes of a batch, and the random numbers that go with it."""

    indices: np.ndarray
    state: tuple[int, ...]  # that the random numbers of the whole batch are a function of
    whole: int  # images of the batch
    share: slice  # of the batch's images


class CroppedImages(Dataset):
    """Images in files, each cropped and distorted at random when asked for, by torchvision's own definitions: RandomResizedCrop, a flip,
    and ColorJitter if one of its four numbers is not 0. `__getitems__` takes a `Share`.
    """

    def __init__(self, files: FileImages, flip: bool, color_jitter: Sequence[float]) -> None:
        self.files = files
        steps: list[torch.nn.Module] = [v2.RandomResizedCrop(files.image_size)]
        steps += [v2.RandomHorizontalFlip()] * flip
        steps += [v2.ColorJitter(*color_jitter)] * any(color_jitter)
        self.transform = v2.Compose(steps)

    def __getitems__(self, batch: Share) -> tuple[Tensor, Tensor]:
        seeds = np.random.SeedSequence(batch.state).generate_state(batch.whole, np.uint64)[batch.share]
        images = []
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            for index, seed in zip(batch.indices, seeds, strict=True):
                torch.default_generator.manual_seed(int(seed))
                images.append(read_image(self.files.samples[int(index)][0], self._distorted))
        return torch.stack(images), self.files.samples.part(batch.indices).labels

    def _distorted(self, image: Image.Image) -> Tensor:
        return to_tensor(self.transform(on_white(upright(image))), self.files.channels)


Images = MemoryImages | FileImages


class Complaints(Dataset):
    """For every image of `files` the reason why it cannot be decoded, `path: reason`; empty if it can be decoded."""

    def __init__(self, files: FileImages) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        try:
            self.files[index]
        except BadImage as error:
            return str(error).removeprefix(UNDECODABLE)
        return ""


def interleave(labels: np.ndarray) -> np.ndarray:
    """A random order of `labels` in which every section contains the classes in proportion, so that both parts of a split have all of them.

    The order does not depend on the run's seed, like the order of CIFAR-10: runs with different seeds search on the same halves and can be
    compared. `RandomState`, because NumPy guarantees that its numbers never change.
    """
    random = np.random.RandomState(0)
    place = np.empty(len(labels))
    members_of_each = np.split(np.argsort(labels, kind="stable"), np.unique(np.sort(labels), return_index=True)[1][1:])
    for members in map(random.permutation, members_of_each):
        place[members] = (np.arange(len(members)) + random.rand(len(members))) / len(members)
    return np.argsort(place)


def stream(files: FileImages | Complaints, workers: int) -> Iterator[Any]:
    """Batches of all of `files`, in order: (uint8 images (B, C, H, W), int64 labels (B,)), or complaints; `workers` processes decode."""
    batches: list[Any] = np.array_split(np.arange(len(files)), math.ceil(len(files) / 256))
    yield from plain_errors(loader(files, batches, workers))


def loader(dataset: Dataset, batches: Sequence[Any], workers: int, **options: Any) -> DataLoader:
    """PyTorch's loader of batches, given by the indices of their images. Its workers end when the run is killed.

    Args:
        dataset: its `__getitems__` returns a batch.
        options: as of `DataLoader`.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable
        collate_fn=_unchanged,
        num_workers=workers,
        generator=torch.Generator(),  # with torch's generator, a resumed run would differ from an uninterrupted one
        multiprocessing_context=_start_method(workers),
        worker_init_fn=_begin,
        timeout=PATIENCE if workers else 0,
        **options,
    )


def _begin(worker: int) -> None:
    """Makes a worker send its batches through a pipe, and end when its run is killed.

    PyTorch sends tensors through shared memory. In a container this is often 64 MB, and a batch that finds no room there never arrives.
    PyTorch lets workers watch the process that started them. That is the forkserver, which in turn waits for its workers.
    """
    ForkingPickler.register(Tensor, lambda tensor: (torch.from_numpy, (tensor.numpy(),)))
    parent = multiprocessing.parent_process()

    def wait() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _start_method(workers: int) -> str | None:
    """The start method for a loader's workers. With CUDA or several processes, a fork may deadlock, so it is forkserver."""
    connected = torch.cuda.is_initialized() or distributed.world_size() > 1
    return "forkserver" if workers and connected and sys.platform != "win32" else None


def decode_all(files: FileImages, workers: int) -> MemoryImages:
    images = torch.empty(len(files), files.channels, files.image_size, files.image_size, dtype=torch.uint8)
    start = 0
    for batch, _ in stream(files, workers):
        images[start : start + len(batch)] = batch
        start += len(batch)
    return MemoryImages(images, files.labels)


def plain_errors(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of `loader`. Removes the worker's traceback from the message of a `UserError`."""
    try:
        yield from loader
    except UserError as error:
        error.__traceback__ = None  # it would keep the loader alive, with idle workers that take seconds to end
        hint = "; --skip_bad_images leaves out such images" if isinstance(error, BadImage) else ""
        raise UserError(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1] + hint) from None


def _unchanged(batch: Any) -> Any:
    return batch
