"""Image files: the same pixels for training, evaluation and prediction; decoded when needed, by several processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from experiment import distributed
from experiment.errors import UserError
from image_files import Batch, MemoryImages, Options

# Seconds that a run waits for its next batch, which is hundreds of photographs at most, before it ends with an error.
PATIENCE = 600

UNDECODABLE = "cannot decode the image "

# {orientation in the EXIF data: the operation that turns the image upright}. `ImageOps.exif_transpose` also rewrites
# all EXIF data, and fails if some of it is damaged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(UserError):
    """The content of the file cannot be decoded. Trying again does not help."""


def pixels(image: Image.Image, size: int, channels: int = 3, centre_crop: float = 1.0) -> Tensor:
    """The centre square of an opened image, resized, as uint8 (channels, size, size).

    With `centre_crop` below 1, the square keeps this share of the shorter side, as after torchvision's Resize and
    CenterCrop. Raises the errors of `_upright`.
    """
    image = _upright(image)
    if centre_crop == 1:
        square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    else:
        square = v2.functional.center_crop(v2.functional.resize(image, [round(size / centre_crop)]), [size, size])
    return _to_tensor(_on_white(square), channels)


def decode(path: str, size: int, channels: int = 3, centre_crop: float = 1.0) -> Tensor:
    """`pixels` of the image in a file; raises the errors of `read_image`."""
    return read_image(path, lambda image: pixels(image, size, channels, centre_crop))


def read_image(path: str, use: Callable[[Image.Image], Tensor]) -> Tensor:
    """The result of `use(image)` for the image in a file.

    Raises:
        BadImage: it cannot be decoded.
        UserError: the file cannot be read.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return use(image)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        # An error number means an error of the system (the file is missing, too many are open), which may not occur the
        # next time.
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read the image {path}: {error.strerror}") from None
        raise BadImage(f"{UNDECODABLE}{path}: {error}") from None


def _upright(image: Image.Image) -> Image.Image:
    """The image turned upright by its EXIF data, in RGB, or RGBA where it is transparent.

    Raises:
        ValueError: it has more than 8 bits per channel. Damaged images raise almost anything.
    """
    if image.mode[0] in "IF":
        raise ValueError("it has more than 8 bits per channel; convert it to 8")  # Pillow would clip it to white
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    converted = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return converted if turn is None else converted.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _to_tensor(image: Image.Image, channels: int) -> Tensor:
    """uint8 (channels, H, W) of an image in RGB."""
    return v2.functional.pil_to_tensor(image.convert("L") if channels == 1 else image).contiguous()


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

    def __getitems__(self, items: Iterable[Any]) -> Batch:
        images, labels = zip(*(self[item] for item in items), strict=True)
        return torch.stack(images), torch.tensor(labels)

    def batches(self, items: Sequence[Any], workers: int, pin_memory: bool) -> Callable[[], Iterator[Batch]]:
        decoded = loader(self, items, workers, persistent_workers=workers > 0, pin_memory=pin_memory)
        return lambda: _plain_errors(decoded)

    def in_memory(self) -> MemoryImages:
        return MemoryImages(torch.cat([images for images, _ in in_order(self, self.options.workers)]), self.labels)

    def _distorted(self, seed: int, image: Image.Image) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.default_generator.manual_seed(seed)
            return _to_tensor(self._distort(_on_white(_upright(image))), self.options.channels)


# ---- Worker processes


def _unchanged(batch: Any) -> Any:
    return batch


def in_order(dataset: Any, workers: int, collate: Callable[[Any], Any] = _unchanged) -> Iterator[Any]:
    """Batches of all of `dataset`, in order."""
    batches = np.array_split(np.arange(len(dataset)), math.ceil(len(dataset) / 256))
    return _plain_errors(loader(dataset, batches, workers, collate))


def loader(
    dataset: Any, batches: Sequence[Any], workers: int, collate: Callable[[Any], Any] = _unchanged, **options: Any
) -> DataLoader:
    """PyTorch's loader of these batches of items. `collate` makes a batch of items; images' `__getitems__` does so."""
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
    """With CUDA or several processes, a fork may deadlock, so it is forkserver."""
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


def _plain_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields the batches of a loader. Removes the worker's traceback from the message of a `UserError`."""
    try:
        yield from batches
    except UserError as error:
        error.__traceback__ = None  # it would keep the loader alive, with idle workers that take seconds to end
        hint = "; --skip_bad_images leaves out such images" if isinstance(error, BadImage) else ""
        raise UserError(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1] + hint) from None
