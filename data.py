"""Image data: datasets by name, augmentation, and the search split.

    data = load("cifar10", "data")
    train = train_batches(data, batch_size=96, cutout_length=16, seed=0, workers=2, device="cuda")
    for epoch in range(600):
        train.set_epoch(epoch)
        for x, y in train:
            ...

Decoding is deterministic. A whole batch is augmented at once, on its device, with different random numbers for each image. These depend
only on the seed, the epoch and the step. Therefore the number of workers does not change results, and a run can be resumed in the middle of
an epoch without a stored random state.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import math
import multiprocessing
import os
import sys
import threading
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from experiment import distributed, errors, files
from experiment.errors import UserError

DATASETS = ("cifar10", "cifar100", "mnist", "fashion_mnist", "digits", "folder", "imagenet")
FOLDERS = ("folder", "imagenet")  # of image files of any size

# A folder whose decoded images need at most this much memory is decoded once. A larger one is decoded by workers in every epoch.
IN_MEMORY_BYTES = 2**30

Levels = tuple[float, ...]  # one value per channel, as a fraction of white
Sample = tuple[str, int]  # a file and its label


@dataclass(frozen=True)
class ImageData:
    """A dataset.

    Items of `train` and `test` are (uint8 image (C, H, W), int label); `__getitems__(indices)` gives a batch, (uint8 (B, C, H, W),
    int64 (B,)). C is 3 (RGB) or 1 (grey). `mean` and `std` are those of the training pixels, per channel, as fractions
    of white. `flip` is True if a mirrored image still shows its class. `centre_crop` is the share of
    the shorter side of an image file that is kept.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: Levels
    std: Levels
    image_size: int
    flip: bool
    centre_crop: float = 1.0
    notes: tuple[str, ...] = ()  # lines for the log of a run

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return len(self.mean)


def load(
    name: str,
    root: str,
    image_size: int = 32,
    workers: int = 2,
    skip_bad_images: bool = False,
    channels: int = 3,
    centre_crop: float = 1.0,
    random_crops: bool = False,
) -> ImageData:
    """The dataset `name`, in the folder `root`.

    Args:
        name: `cifar10`, `cifar100`, `mnist` or `fashion_mnist`, downloaded into `root` if not there; `digits`, 1,797 handwritten digits
            that come with scikit-learn; `folder`, your own images, `root`/train/<class>/* and `root`/test/<class>/*, or else
            `root`/val/<class>/*; or `imagenet`, any number of images, `root`/train/<class>/* and `root`/val/<class>/*, which are never
            read into memory. The notes of the result say which files were left out.
        root: the folder of the data; not used for `digits`.
        image_size: height and width in pixels; 32 except for `folder` and `imagenet`.
        workers: processes that decode image files.
        skip_bad_images: leave out image files that cannot be decoded, with a note. To find them, every image is decoded once more.
        channels: 3 for RGB (grey images get three equal channels), or 1 for grey.
        centre_crop: the share of the shorter side of an image file that is kept.
        random_crops: True if the training images are to be cropped at random (see `train_batches`). They then stay in their files.

    Raises:
        UserError: the name is unknown, the dataset does not have this size, or images are missing or cannot be read.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if name in FOLDERS:
        return _folder(name, Path(root), image_size, workers, skip_bad_images, channels, centre_crop, random_crops)
    if image_size != 32:
        raise UserError(f"{name} has images of 32 pixels, not {image_size}: only --dataset folder has other sizes")
    if skip_bad_images:
        raise UserError(f"--skip_bad_images needs --dataset folder: {name} is checked as a whole")
    if centre_crop != 1 or random_crops:
        raise UserError(f"--centre_crop and --crop resized need images in files, --dataset folder or imagenet, not {name}")
    if name == "digits":
        return _digits(channels)
    return _torchvision(name, root, channels)


def load_test(
    name: str,
    root: str,
    classes: tuple[str, ...],
    image_size: int,
    mean: Levels,
    std: Levels,
    workers: int = 2,
    skip_bad_images: bool = False,
    centre_crop: float = 1.0,
) -> ImageData:
    """The test images of a dataset, for a trained network. Training images are not loaded, and a `folder` needs none.

    Args:
        classes, image_size, mean, std, centre_crop: those of the network's training.
        name, root, workers, skip_bad_images: as for `load`.

    Raises:
        UserError: see `load`; or the classes or their order differ from the network's.
    """
    part = _test_part(name, Path(root))
    if name in FOLDERS:
        found, samples, left_out, bad = _read_folder(name, Path(root), part, image_size, workers, skip_bad_images)
        notes = left_out.notes() + _skipped(bad, len(samples))
    else:
        images = load(name, root, image_size, workers, skip_bad_images, len(mean))
        found, notes = images.classes, images.notes
    if found != classes:
        which = f"only one of both has {_first(sorted({*found} ^ {*classes}))}" if {*found} ^ {*classes} else "their order differs"
        raise UserError(f"the classes of {Path(root) / part if name in FOLDERS else name} are not those of the network: {which}")
    if name in FOLDERS:
        in_files = FileImages(samples, image_size, len(mean), centre_crop)
        in_files = in_files.part(_interleave(in_files.labels.numpy()))
        test: Images = _decode_all(in_files, workers) if name == "folder" and in_files.bytes <= IN_MEMORY_BYTES else in_files
    else:
        test = images.test
    none = MemoryImages(torch.empty(0, len(mean), image_size, image_size, dtype=torch.uint8), torch.empty(0, dtype=torch.long))
    return ImageData(name, none, test, classes, mean, std, image_size, flip=False, centre_crop=centre_crop, notes=notes)


ON_DEVICE = ("auto", "yes", "no")


def source(images: str | Path | None) -> dict[str, str]:
    """The arguments that mean these images: the name of a dataset, or a folder of your own; none for None.

    Raises:
        UserError: it is neither.
    """
    if images is None:
        return {}
    if str(images) in DATASETS:
        return {"dataset": str(images)}
    if not Path(images).is_dir():
        raise UserError(f"{images} is neither a folder nor one of {', '.join(DATASETS)}")
    return {"dataset": "folder", "data": str(images)}


def prepare(args: argparse.Namespace, device: torch.device, centre_crop: float = 1.0, random_crops: bool = False) -> ImageData:
    """Loads the images of a run, with these arguments of `load`, then calls `distributed.join`."""
    how = (args.image_size, args.workers, args.skip_bad_images, args.channels, centre_crop, random_crops)
    images = load(args.dataset, args.data, *how)
    images = on_device(images, device, args.data_on_device)
    distributed.join(device)  # not earlier: loading may take longer than the processes wait for each other
    return images


def on_device(data: ImageData, device: torch.device, choice: str = "auto") -> ImageData:
    """`data` with its decoded images on `device`, so that batches are assembled and augmented there without waiting for the CPU.

    Args:
        choice: `yes`, `no`, or `auto`: if the images need at most half of the free memory there.

    Raises:
        UserError: `choice` is `yes`, but the images do not fit on the device, or are not decoded in memory.
    """
    if choice == "no" or device.type == "cpu":
        return data
    train, test = data.train, data.test
    needed = (len(train) + len(test)) * data.channels * data.image_size**2
    free, _ = torch.cuda.mem_get_info(device)
    if isinstance(train, MemoryImages) and isinstance(test, MemoryImages) and needed <= free // 2:
        return replace(data, train=train.to(device), test=test.to(device))
    if choice == "yes":
        raise UserError(f"--data_on_device yes: the images take {needed / 2**20:.0f} MiB, too much: leave it out")
    return replace(data, notes=(*data.notes, "the images are too large to be kept in the GPU's memory"))


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
    """Files and their labels, such that a million of them take little memory, and that processes which decode them share it.

    Args:
        root: what all names are within; empty for none.
        names: their bytes, separated by NUL, (bytes,), uint8.
        ends: where each name ends in `names`, (N,), int64.
        labels: (N,), int64.
        order: which of these N samples there are, and in which order; None for all.
    """

    def __init__(self, root: str, names: Tensor, ends: Tensor, labels: Tensor, order: Tensor | None = None) -> None:
        self.root, self.names, self.ends, self._labels = root, names, ends, labels
        self._order = torch.arange(len(ends)) if order is None else order

    @classmethod
    def of(cls, samples: Sequence[Sample], root: str = "") -> Samples:
        """These, with paths within `root`."""
        names = [os.fsencode(os.path.relpath(path, root) if root else path) for path, _ in samples]
        ends = torch.tensor([len(name) + 1 for name in names], dtype=torch.int64).cumsum(0) - 1
        text = torch.from_numpy(np.frombuffer(b"\0".join(names), dtype=np.uint8).copy())
        return cls(root, text, ends, torch.tensor([label for _, label in samples], dtype=torch.int64))

    @property
    def labels(self) -> Tensor:
        return self._labels[self._order]

    def part(self, indices: np.ndarray) -> Samples:
        """These of the samples."""
        return Samples(self.root, self.names, self.ends, self._labels, self._order[torch.from_numpy(indices)])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # of slices there are none
        number = int(self._order[index])
        start = int(self.ends[number - 1]) + 1 if number else 0
        name = os.fsdecode(self.names[start : int(self.ends[number])].numpy().tobytes())
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
                images.append(_read(self.files.samples[int(index)][0], self._distorted))
        return torch.stack(images), self.files.samples.part(batch.indices).labels

    def _distorted(self, image: Image.Image) -> Tensor:
        return _tensor(self.transform(_on_white(_upright(image))), self.files.channels)


Images = MemoryImages | FileImages


class BadImage(UserError):
    """The content of the file cannot be decoded. Trying again does not help."""


class _Complaints(Dataset):
    """For every image of `files` the reason why it cannot be decoded, `path: reason`; empty if it can be decoded."""

    def __init__(self, files: FileImages) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        try:
            self.files[index]
        except BadImage as error:
            return str(error).removeprefix(_UNDECODABLE)
        return ""


_UNDECODABLE = "cannot decode the image "


# {orientation in the EXIF data: the operation that turns the image upright}. `ImageOps.exif_transpose` also rewrites all EXIF data, and
# fails if some of it is damaged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def pixels(image: Image.Image, size: int, channels: int = 3, centre_crop: float = 1.0) -> Tensor:
    """The centre square of an opened image, resized, as uint8 (channels, size, size).

    The image is turned upright by its EXIF data, and put on white where it is transparent. Training without random crops, evaluation and
    prediction all use this function.

    Args:
        centre_crop: the share of the shorter side that the square keeps. Below 1, the image is resized and cropped as by torchvision's
            Resize and CenterCrop.

    Raises:
        ValueError: it is greyscale with more than 8 bits, or one pixel wide or high. Damaged images raise almost anything in Pillow.
    """
    upright = _upright(image)
    if centre_crop == 1:
        square = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    else:
        if max(upright.size) > 100 * min(upright.size):  # resized, its longer side might fill the memory
            raise ValueError(f"it has {image.width} x {image.height} pixels, of which a centre crop shows too little")
        square = v2.functional.center_crop(v2.functional.resize(upright, [round(size / centre_crop)]), [size, size])
    return _tensor(_on_white(square), channels)


def _upright(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where it is transparent; errors as of `pixels`."""
    if image.mode[0] in "IF":
        raise ValueError("it has more than 8 bits per channel; convert it to 8")  # Pillow would clip it to white
    if min(image.size) < 2:
        raise ValueError(f"it has {image.width} x {image.height} pixels, which show nothing")
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    converted = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return converted if turn is None else converted.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _tensor(image: Image.Image, channels: int) -> Tensor:
    """uint8 (channels, H, W) of an image in RGB."""
    pixels = np.array(image.convert("L") if channels == 1 else image)
    return torch.from_numpy(pixels).view(image.height, image.width, channels).permute(2, 0, 1).contiguous()


def decode(path: str, size: int, channels: int = 3, centre_crop: float = 1.0) -> Tensor:
    """`pixels` of the image in a file.

    Raises:
        BadImage: it cannot be decoded.
        UserError: the file cannot be read.
    """
    return _read(path, lambda image: pixels(image, size, channels, centre_crop))


def _read(path: str, use: Callable[[Image.Image], Tensor]) -> Tensor:
    """What `use` makes of the opened image in a file.

    Raises:
        BadImage: it cannot be decoded.
        UserError: the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about metadata, once per image. Only the warning about decompression bombs, which may fill the memory, matters.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with files.open_file(path) as file, Image.open(file) as image:
                return use(image)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its message does not name the file
        raise BadImage(f"{_UNDECODABLE}{path}: it is not an image that Pillow reads") from None
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        # An error number means an error of the system (the file is missing, too many are open), which may not occur the next time.
        kind = UserError if isinstance(error, OSError) and error.errno is not None else BadImage
        raise kind(f"{_UNDECODABLE}{path}: {error}") from None


# Mean and deviation of CIFAR's training images, for CIFAR-10 as in the original. For other datasets, they are measured.
_CIFAR_STATISTICS: dict[str, tuple[Levels, Levels]] = {
    "cifar10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "cifar100": ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
}


def _torchvision(name: str, root: str, channels: int) -> ImageData:
    sets = torchvision.datasets
    kind = {"cifar10": sets.CIFAR10, "cifar100": sets.CIFAR100, "mnist": sets.MNIST, "fashion_mnist": sets.FashionMNIST}[name]
    try:
        with distributed.one_at_a_time(Path(root) / f".{name}.lock"):
            train, test = (kind(root, train=part, download=True) for part in (True, False))  # downloads only what is missing or damaged
    except (OSError, RuntimeError, ValueError, AssertionError, http.client.HTTPException) as error:
        if issubclass(kind, sets.MNIST):
            where = f"put the four files of {kind.mirrors[0]} into {Path(root) / kind.__name__ / 'raw'}, unpacked,"
        else:
            where = f"put {kind.url} there by hand,"
        raise UserError(
            f"{name} is not in the folder {root}, or damaged, and could not be downloaded ({error}): {where} "
            "name the folder that holds it with --data, or choose --dataset digits or --dataset folder"
        ) from None

    def images(part) -> MemoryImages:
        return MemoryImages(_pixels(torch.as_tensor(part.data), channels), torch.as_tensor(part.targets))

    to_learn = images(train)
    mean, std = _CIFAR_STATISTICS[name] if name in _CIFAR_STATISTICS and channels == 3 else _mean_std(_count_levels(to_learn.images))
    return ImageData(name, to_learn, images(test), tuple(train.classes), mean, std, 32, flip=name != "mnist")


def _pixels(images: Tensor, channels: int) -> Tensor:
    """uint8 (N, channels, 32, 32), from grey (N, 28, 28), which gets a black border, or from RGB (N, 32, 32, 3)."""
    if images.dim() == 3:
        return F.pad(images, [2] * 4)[:, None].repeat(1, channels, 1, 1)
    if channels == 3:
        return images.permute(0, 3, 1, 2).contiguous()
    column = Image.fromarray(images.flatten(0, 1).numpy())  # all images in one column: a single conversion, the same as for a folder
    return torch.from_numpy(np.array(column.convert("L"))).view(-1, 1, *images.shape[1:3])


def _digits(channels: int) -> ImageData:
    """Scikit-learn's handwritten digits, 8x8, enlarged to 32x32: 1,437 for training and 360 for the test, stratified by class."""
    from sklearn.datasets import load_digits  # imported here because it takes a second

    bunch = load_digits()
    order = _interleave(bunch.target)  # scikit-learn sorts by writer: the test set would have other writers
    images = torch.from_numpy(bunch.images[order]).float().mul(255 / 16)[:, None]  # 16 is white
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    images, labels = images.repeat(1, channels, 1, 1), torch.from_numpy(bunch.target[order]).long()
    train, test = MemoryImages(images[:1437], labels[:1437]), MemoryImages(images[1437:], labels[1437:])
    mean, std = _mean_std(_count_levels(train.images))
    # A mirrored digit is not a digit, so no flip.
    return ImageData("digits", train, test, tuple(map(str, bunch.target_names)), mean, std, 32, flip=False)


# Of ImageNet's training images, in every code that trains on them, the original's included.
_IMAGENET_STATISTICS: tuple[Levels, Levels] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _test_part(name: str, root: Path) -> str:
    """The folder of the test images. ImageNet's own `test` has no classes."""
    return "val" if name == "imagenet" or ((root / "val").is_dir() and not (root / "test").is_dir()) else "test"


def _folder(
    name: str,
    root: Path,
    image_size: int,
    workers: int,
    skip_bad_images: bool,
    channels: int,
    centre_crop: float,
    random_crops: bool,
) -> ImageData:
    test_part = _test_part(name, root)
    (classes, samples, left_out, bad), (test_classes, test_samples, test_left_out, test_bad) = (
        _read_folder(name, root, part, image_size, workers, skip_bad_images) for part in ("train", test_part)
    )
    if different := set(classes) ^ set(test_classes):
        raise UserError(
            f"{root / 'train'} and {root / test_part} must hold the same classes; in only one of them: {', '.join(sorted(different))}"
        )
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} holds only one class, {classes[0]}: at least two are needed")
    notes = (left_out + test_left_out).notes()
    if test_part == "val" and name == "folder":
        notes += (f"there is no folder {root / 'test'}: the images in {root / 'val'} are the test set",)
    elif name == "folder" and (root / "val").is_dir():
        notes += (f"the test set is {root / 'test'}; the images in {root / 'val'} are not used",)
    notes += _skipped(bad + test_bad, len(samples) + len(test_samples))
    # Files are sorted by class. The search split takes the first part of the list, and accuracies that are logged during an epoch are those
    # of the first part, so the classes are interleaved.
    train, test = (FileImages(part, image_size, channels, centre_crop) for part in (samples, test_samples))
    train, test = (part.part(_interleave(part.labels.numpy())) for part in (train, test))

    def images(train: Images, test: Images, mean: Levels, std: Levels) -> ImageData:
        return ImageData(name, train, test, classes, mean, std, image_size, flip=True, centre_crop=centre_crop, notes=notes)

    if name == "folder" and not random_crops and train.bytes + test.bytes <= IN_MEMORY_BYTES:
        decoded = _decode_all(train, workers)
        return images(decoded, _decode_all(test, workers), *_mean_std(_count_levels(decoded.images)))
    if name == "imagenet" and channels == 3:
        return images(train, test, *_IMAGENET_STATISTICS)
    of_crop = "" if centre_crop == 1 else f"-{centre_crop}"
    return images(train, test, *_measure(train, root / f"statistics-{image_size}{of_crop}.json", workers))


def _read_folder(
    name: str, root: Path, part: str, image_size: int, workers: int, skip_bad_images: bool
) -> tuple[tuple[str, ...], Samples, _LeftOut, list[str]]:
    """As `_walk`; also what is wrong with images that are left out because they cannot be decoded."""
    if name == "imagenet":
        classes, samples, left_out, complaints = _indexed(root, part, image_size, workers, skip_bad_images)
        classes = _names(root, classes)
    else:
        classes, found, left_out = _walk(root, part)
        samples = Samples.of(found)
        complaints = _complaints(samples, image_size, workers) if skip_bad_images else {}
    sound = np.setdiff1d(np.arange(len(samples)), np.array([*complaints], dtype=int))
    if len(lost := np.setdiff1d(np.arange(len(classes)), samples.part(sound).labels.numpy())):
        first = min(number for number in complaints if samples[number][1] == lost[0])
        raise UserError(f"no image of the class {classes[lost[0]]} can be decoded: {complaints[first]}")
    return classes, samples.part(sound), left_out, [*complaints.values()]


def _complaints(samples: Samples, image_size: int, workers: int) -> dict[int, str]:
    """{number of a sample: what is wrong with it} of those that cannot be decoded."""
    complaints = chain.from_iterable(_stream(_Complaints(FileImages(samples, image_size)), workers))
    return {number: " ".join(complaint.split()) for number, complaint in enumerate(complaints) if complaint}


def _names(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of ImageNet's classes, "n01440764 tench, Tinca tinca", by the `meta.bin` that torchvision makes of the devkit, where it is."""
    try:
        known, _ = torch.load(io.BytesIO(files.read(root / "meta.bin")), weights_only=True)
        return tuple(f"{name} {', '.join(known[name])}" if name in known else name for name in classes)
    except FileNotFoundError:
        return classes
    except Exception as error:  # what torch.load raises, and what else may be in such a file, is of many kinds
        raise UserError(f"cannot use {root / 'meta.bin'}: {error or type(error).__name__}; remove it to name classes by folders") from None


INDEX_VERSION = 1
SETTLED = 2 * 10**9  # nanoseconds after which another change of a folder gives it another time on every file system


class _Index(NamedTuple):
    """What a part of a folder holds."""

    times: dict[str, int]  # of the last change of each of its folders, {path: nanoseconds}; empty if they cannot be relied on
    classes: tuple[str, ...]
    samples: Samples
    left_out: _LeftOut
    complaints: dict[int, str] | None  # as of `_complaints`; None if they are not known


def _indexed(
    root: Path, part: str, image_size: int, workers: int, skip_bad_images: bool
) -> tuple[tuple[str, ...], Samples, _LeftOut, dict[int, str]]:
    """What `_walk` finds in `root`/`part`, and `_complaints` of it with `skip_bad_images`.

    Both are kept in a file of `root`. They are read from there where no folder has changed since: a file that is added, removed or renamed
    changes the time of its folder.
    """
    cache = root / f"index-{part}.npz"
    # Of several processes one looks through the folder, and the others find what it has found.
    with distributed.one_at_a_time(root / ".index.lock") if (root / part).is_dir() else contextlib.nullcontext():
        index = known = _read_index(cache, root, part)
        if index is None:
            errors.tell(f"looking through the folder {root / part}")
            started, times = time.time_ns(), dict[str, int]()
            classes, found, left_out = _walk(root, part, times)
            if max(times.values()) > started - SETTLED:  # of what changes now, the time may not tell
                times = {}
            index = _Index(times, classes, Samples.of(found, str(root)), left_out, None)
            del found  # the same in several times the memory
        if skip_bad_images and index.complaints is None:
            errors.tell(f"decoding {len(index.samples)} images, to find those that cannot be")
            index = index._replace(complaints=_complaints(index.samples, image_size, workers))
        if index is not known and index.times:
            _keep(cache, _packed(index), "the folder will be looked through again")
    return *index[1:4], (index.complaints or {}) if skip_bad_images else {}


def _packed(index: _Index) -> memoryview:
    header = {
        "version": INDEX_VERSION,
        "times": index.times,
        "classes": index.classes,
        "left_out": index.left_out,
        "complaints": None if index.complaints is None else [*index.complaints.items()],
    }
    content, text = io.BytesIO(), np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    samples = index.samples
    np.savez(content, header=text, names=samples.names.numpy(), ends=samples.ends.numpy(), labels=samples.labels.numpy())
    return content.getbuffer()


def _read_index(cache: Path, root: Path, part: str) -> _Index | None:
    """What `_indexed` keeps; None where there is no such file, it is not one of ours, or a folder has changed since."""
    try:
        with np.load(io.BytesIO(files.read(cache)), allow_pickle=False) as content:
            header = files.parse_json(content["header"].tobytes())
            names, ends, labels = (torch.from_numpy(content[name]) for name in ("names", "ends", "labels"))
        times, classes, complaints = header["times"], tuple(header["classes"]), header["complaints"]
        if header["version"] != INDEX_VERSION or not times or part not in times:
            return None
        if any(os.stat(root / folder).st_mtime_ns != then for folder, then in times.items()):
            return None
        sizes = torch.diff(ends, prepend=torch.tensor([-1])) - 1
        sound = (
            (names.dtype, ends.dtype, labels.dtype) == (torch.uint8, torch.int64, torch.int64)
            and len(ends) == len(labels) > 0
            and int(sizes.min()) > 0
            and int(ends[-1]) == len(names)
            and (int(labels.min()), int(labels.max())) == (0, len(classes) - 1)
            and all(isinstance(name, str) for name in classes)
        )
        if not sound:
            return None
        left_out = _LeftOut(*([str(path) for path in paths] for paths in header["left_out"]))
        found = None if complaints is None else {int(number): str(complaint) for number, complaint in complaints}
        if found is not None and not all(0 <= number < len(labels) for number in found):
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, EOFError, zipfile.BadZipFile):
        return None
    return _Index(times, classes, Samples(str(root), names, ends, labels), left_out, found)


def _skipped(bad: list[str], sound: int) -> tuple[str, ...]:
    """A note for the log about images that cannot be decoded."""
    return (f"skipped {len(bad)} of {sound + len(bad)} images, which cannot be decoded: {_first(bad)}",) if bad else ()


class _LeftOut(NamedTuple):
    """Paths in a folder of images that are not used, by kind."""

    links: list[str]  # to folders
    devices: list[str]
    others: list[str]  # files that are not images

    def __add__(self, more: _LeftOut) -> _LeftOut:  # type: ignore[override]  # only with its own type
        return _LeftOut(*(ours + theirs for ours, theirs in zip(self, more, strict=True)))

    def notes(self) -> tuple[str, ...]:
        """Notes for the log about these paths."""
        notes = []
        if self.links:
            notes.append(
                f"left out links to folders that are visited already, or that hold the link ({len(self.links)}): {_first(self.links)}"
            )
        if self.devices:
            notes.append(f"left out pipes, sockets and devices ({len(self.devices)}): {_first(self.devices)}")
        if self.others:
            kinds = Counter(os.path.splitext(path)[1].lower() or "without a suffix" for path in self.others)
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) + (", ..." if len(kinds) > 5 else "")
            notes.append(f"left out files of other kinds than {', '.join(IMG_EXTENSIONS)} ({counts}): {_first(self.others)}")
        return tuple(notes)


def _first(items: Sequence[str]) -> str:
    return "; ".join(items[:3]) + ("; ..." if len(items) > 3 else "")


def _walk(root: Path, part: str, times: dict[str, int] | None = None) -> tuple[tuple[str, ...], list[Sample], _LeftOut]:
    """The classes in `root`/`part`, sorted; the images with their labels, sorted by class, folder and name; and what is left out.

    `times` receives the time of the last change of every folder that is read, {path within `root`: nanoseconds}.

    Links are followed, but no folder is visited twice, and no folder that contains `part`: links may form cycles, or lead from one class to
    another.
    """
    layout = (
        f"--dataset folder needs {root}/train/<class>/ and {root}/test/<class>/, or val in the place of test, with images in every class"
    )
    if not (root / part).is_dir():
        raise UserError(f"there is no folder {root / part}: {layout}")
    try:
        times = {} if times is None else times
        times[part] = os.stat(root / part).st_mtime_ns
        top = (root / part).resolve()
        visited = {_identity(folder) for folder in (top, *top.parents)}
        entries = sorted((entry for entry in os.scandir(root / part) if entry.is_dir()), key=lambda entry: entry.name)
        classes = tuple(entry.name for entry in entries)
        samples: list[Sample] = []
        left_out = _LeftOut([], [], [])
        # Folders to visit. Links come last, so that a folder inside a class belongs to this class, even if another class links to it.
        own = [(label, entry.path) for label, entry in enumerate(entries) if not entry.is_symlink()]
        linked = [(label, entry.path) for label, entry in enumerate(entries) if entry.is_symlink()]
        while own or linked:
            label, folder = own.pop() if own else linked.pop(0)
            if (identity := _identity(folder)) in visited:
                left_out.links.append(folder)
                continue
            visited.add(identity)
            times[os.path.relpath(folder, root)] = os.stat(folder).st_mtime_ns  # before it is read
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if entry.is_dir():
                    (linked if entry.is_symlink() else own).append((label, entry.path))
                elif not entry.is_file() and os.path.exists(entry.path):
                    left_out.devices.append(entry.path)
                elif entry.name.lower().endswith(IMG_EXTENSIONS):  # also a broken link: decoding reports it
                    samples.append((entry.path, label))
                else:
                    left_out.others.append(entry.path)
    except OSError as error:
        raise UserError(f"cannot use the folder {root / part}: cannot read {error.filename}: {error.strerror} ({layout})") from None
    if not classes:
        raise UserError(f"cannot use the folder {root / part}: it holds no folders ({layout})")
    if empty := sorted(set(range(len(classes))) - {label for _, label in samples}):
        reasons = "".join(f"; {note}" for note in left_out.notes())
        names = ", ".join(classes[label] for label in empty)
        raise UserError(f"cannot use the folder {root / part}: it has no image of {names}{reasons} ({layout})")
    return classes, sorted(samples, key=lambda sample: (sample[1], *os.path.split(sample[0]))), left_out


def _identity(folder: str | Path) -> tuple[int, int]:
    """The identity of a folder, equal for all paths to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _interleave(labels: np.ndarray) -> np.ndarray:
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


def _stream(files: FileImages | _Complaints, workers: int) -> Iterator[Any]:
    """Batches of all of `files`, in order: (uint8 images (B, C, H, W), int64 labels (B,)), or complaints; `workers` processes decode."""
    batches: list[Any] = np.array_split(np.arange(len(files)), math.ceil(len(files) / 256))
    yield from _plain_errors(
        DataLoader(
            files,
            batch_sampler=batches,
            collate_fn=_unchanged,
            num_workers=workers,
            generator=torch.Generator(),
            multiprocessing_context=_start_method(workers),
            worker_init_fn=_end_with_parent,
        )
    )


def _end_with_parent(worker: int) -> None:
    """Makes a worker end when its run is killed.

    PyTorch lets workers watch the process that started them. That is the forkserver, which in turn waits for its workers.
    """
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


def _decode_all(files: FileImages, workers: int) -> MemoryImages:
    images = torch.empty(len(files), files.channels, files.image_size, files.image_size, dtype=torch.uint8)
    start = 0
    for batch, _ in _stream(files, workers):
        images[start : start + len(batch)] = batch  # copied immediately: every batch from a worker holds an open file
        start += len(batch)
    return MemoryImages(images, files.labels)


def _plain_errors(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of `loader`. Removes the worker's traceback from the message of a `UserError`."""
    try:
        yield from loader
    except UserError as error:
        error.__traceback__ = None  # it would keep the loader alive, with idle workers that take seconds to end
        raise UserError(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1]) from None


def _unchanged(batch: Any) -> Any:
    return batch


def _measure(images: FileImages, cache: Path, workers: int) -> tuple[Levels, Levels]:
    """Mean and deviation of images that do not fit into memory, from the file `cache`, or measured and written there."""
    try:
        key = {"decoding": "upright, on white", "files": len(images), "bytes": sum(Path(path).stat().st_size for path, _ in images.samples)}
    except OSError as error:
        raise UserError(f"cannot read the image {error.filename}: {error.strerror}") from None
    try:
        known = files.read_json(cache)
        mean, std = tuple(known["mean"]), tuple(known["std"])
        fractions = all(type(value) is float and 0 <= value <= 1 for value in mean + std)
        complete = len(mean) == len(std) == images.channels
        if {name: known[name] for name in key} == key and complete and fractions and min(std) > 0:
            return mean, std
    except (OSError, ValueError, TypeError, KeyError):
        pass  # no valid file: measure
    errors.tell(f"measuring mean and deviation of {len(images)} images, once")
    none = torch.zeros(images.channels, 256, dtype=torch.long)
    mean, std = _mean_std(sum((_count_levels(batch) for batch, _ in _stream(images, workers)), none))
    _keep(cache, json.dumps(key | {"mean": mean, "std": std}).encode(), "they will be measured again")
    return mean, std


def _keep(cache: Path, content: bytes | memoryview, otherwise: str) -> None:
    """Writes the file `cache`, whole or not at all; where it cannot be written, says what follows from that."""
    beside = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "xb") as file:  # a new file: an existing `cache` may be a link or a pipe
            file.write(content)
        os.replace(beside, cache)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        errors.tell(f"cannot write {cache}: {otherwise}")


def _count_levels(images: Tensor) -> Tensor:
    """How often each of the 256 levels occurs in each channel: (C, 256), from uint8 (N, C, H, W)."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def _mean_std(counts: Tensor) -> tuple[Levels, Levels]:
    """Exact mean and standard deviation, as fractions of white, from `_count_levels`."""
    share = counts.double() / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * level).sum(1)
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1.0  # a constant channel: avoid a division by 0
    return tuple(mean.tolist()), tuple(std.tolist())


# ---- Augmentation


class Normalise:
    """uint8 (..., C, H, W) -> float32 on the same device: fractions of white, minus the mean, divided by the deviation of the channel."""

    def __init__(self, mean: Levels, std: Levels) -> None:
        self._mean, self._std = torch.tensor([mean, std])[..., None, None]

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (value.to(images.device, non_blocking=True) for value in (self._mean, self._std))
        return (images / 255).sub_(mean).div_(std).contiguous()


class Augment:
    """The original's augmentation of CIFAR images, for a whole batch, with different random numbers for each image.

    For training: pad with black and crop at random, flip at random (if `data.flip`), normalise, cut out a square (DeVries & Taylor 2017,
    1708.04552). As in the original, the padding is 4 pixels for images of 32 pixels (an eighth of the size) and is added before
    normalisation. The centre of the square is anywhere in the image, and the square is filled with 0, the mean. Otherwise only normalises.

    Args:
        data: the dataset with the statistics and `flip`.
        cutout_length: the side of the square in pixels, rounded down to an even number, as in the original; 0 for none.
        train: whether to augment.
        crop: whether to crop and flip; images of `CroppedImages` are cropped and flipped already.
    """

    def __init__(self, data: ImageData, cutout_length: int = 0, train: bool = True, crop: bool = True) -> None:
        self.flip = data.flip
        self.crop = crop
        self.cutout_length = cutout_length
        self.train = train
        self._normalise = Normalise(data.mean, data.std)

    def __call__(self, images: Tensor, generator: torch.Generator | None, whole: int | None = None, share: slice = slice(None)) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H, W) on the same device. With a CPU generator, results do not depend on the device.

        `images` are the `share` of a batch of `whole` images (None: B). The random numbers are those of the whole batch.
        """
        if not self.train:
            return self._normalise(images)
        batch, channels, height, width = images.shape
        padding = height // 8

        def draw(high: int) -> Tensor:
            return torch.randint(high, (whole or batch,), generator=generator, device=generator.device if generator else None)[share]

        draws = [draw(2 * padding + 1), draw(2 * padding + 1), draw(2), draw(height), draw(width)]
        top, left, mirrored, y, x = torch.stack(draws).to(images.device, non_blocking=True)[..., None]  # (B, 1) each

        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        if self.crop:
            from_rows = rows + top  # (B, H), in the padded image
            from_columns = (torch.where(mirrored == 1, columns.flip(0), columns) if self.flip else columns) + left  # (B, W)
            source = from_rows[:, :, None] * (width + 2 * padding) + from_columns[:, None, :]  # (B, H, W)
            padded = F.pad(images, [padding] * 4).flatten(2)
            images = padded.gather(2, source.flatten(1)[:, None].expand(-1, channels, -1)).view(batch, channels, height, width)

        normalised = self._normalise(images)
        if self.cutout_length:
            half = self.cutout_length // 2
            cut_rows = (rows >= y - half) & (rows < y + half)  # (B, H)
            cut_columns = (columns >= x - half) & (columns < x + half)  # (B, W)
            normalised.masked_fill_((cut_rows[:, :, None] & cut_columns[:, None, :])[:, None], 0.0)
        return normalised


# ---- Batches

# Streams of random numbers. The number of the stream is part of the seed, so the streams are independent.
_TRAIN_ORDER, _TRAIN_AUGMENT, _DRAWS_ORDER, _DRAWS_AUGMENT, _VALIDATION_AUGMENT, _TRAIN_CROPS = range(6)

# Indices of the images of every batch of an epoch.
Plan = Callable[[int], Sequence[Any]]


def _sequence(seed: int, stream: int, epoch: int, step: int = 0) -> np.random.SeedSequence:
    """A seed that hashes all arguments, so that the random numbers of neighbouring seeds, epochs and steps are independent."""
    return np.random.SeedSequence([seed, stream, epoch, step])


@dataclass
class _Indexed:
    """The batches with these indices, assembled on the device of the images."""

    dataset: MemoryImages
    indices: Sequence[Any]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.dataset.__getitems__, self.indices)


class Batches:
    """The batches of one epoch: (float32 images (B, C, H, W), int64 labels (B,)) on `device`. Can be iterated any number of times.

    `plan(epoch)` gives the images and their order. The augmentation depends on (`seed`, `stream`, epoch, step). The length is that of a
    whole epoch. To resume a run, the first `start_step` batches are left out, and not decoded. With several processes, each gets and
    decodes its share of every batch; together, the shares are the batch of a single process.
    """

    def __init__(
        self,
        dataset: Images | CroppedImages,
        plan: Plan,
        steps: int,
        augment: Augment,
        *,
        seed: int,
        stream: int,
        workers: int,
        device: torch.device | str,
    ) -> None:
        self.augment = augment
        self.epoch = 0
        self.start_step = 0
        self._plan, self._steps, self._seed, self._stream = plan, steps, seed, stream
        self._device = torch.device(device)
        self._indices: list[Any] = []  # read by the loader; filled at the beginning of an epoch
        self._random_crops = isinstance(dataset, CroppedImages)
        if isinstance(dataset, MemoryImages):
            self._loader: Iterable[tuple[Tensor, Tensor]] = _Indexed(dataset, self._indices)
        else:
            self._loader = DataLoader(
                dataset,
                batch_sampler=self._indices,
                collate_fn=_unchanged,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=self._device.type == "cuda",
                multiprocessing_context=_start_method(workers),
                worker_init_fn=_end_with_parent,
                generator=torch.Generator(),  # with torch's generator, a resumed run would differ from an uninterrupted one
            )

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """The next iteration yields the batches of `epoch` (counted from 0) from `start_step` on."""
        self.epoch = epoch
        self.start_step = start_step

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, start = self.epoch, self.start_step
        whole = self._plan(epoch)[start : self._steps]
        shares = [distributed.share(len(indices)) for indices in whole]
        self._indices[:] = [indices[share] for indices, share in zip(whole, shares, strict=True)]
        if self._random_crops:
            self._indices[:] = [
                Share(indices, (self._seed, _TRAIN_CROPS, epoch, start + i), len(whole[i]), shares[i])
                for i, indices in enumerate(self._indices)
            ]
        for i, (images, labels) in enumerate(_plain_errors(self._loader)):
            state = _sequence(self._seed, self._stream, epoch, start + i).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0]))
            x = self.augment(images.to(self._device, non_blocking=True), generator, len(whole[i]), shares[i])
            yield x, labels.to(self._device, non_blocking=True)


def _in_order(indices: np.ndarray, batch_size: int) -> Plan:
    """For evaluation: no image is left out. A last batch with fewer images than processes is joined with the one before."""
    processes = distributed.world_size()
    if len(indices) < processes:
        raise UserError(f"{len(indices)} images to measure the accuracy on cannot be shared by {processes} processes: start fewer")
    batches = _split(indices, batch_size)
    if len(batches[-1]) < processes:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return lambda epoch: batches


def _shuffled(indices: np.ndarray, batch_size: int, seed: int, stream: int) -> Plan:
    return lambda epoch: _split(np.random.default_rng(_sequence(seed, stream, epoch)).permutation(indices), batch_size)


def _drawn(indices: np.ndarray, batch_size: int, steps: int, seed: int, stream: int) -> Plan:
    def plan(epoch: int) -> Sequence[np.ndarray]:
        generators = (np.random.default_rng(_sequence(seed, stream, epoch, step)) for step in range(steps))
        return [generator.choice(indices, batch_size, replace=False) for generator in generators]

    return plan


def _split(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def _training_steps(images: int, batch_size: int) -> int:
    """The number of batches. A last, smaller batch is kept, as in the original, unless a process would get a single image.

    BatchNorm of 1x1 maps needs more than one image.
    """
    smallest = 2 * distributed.world_size()
    if batch_size < smallest and distributed.world_size() > 1:
        raise UserError(
            f"--batch_size {batch_size} is shared by {distributed.world_size()} processes, which need two images each: raise it"
        )
    return images // batch_size + (images % batch_size >= smallest)


def search_batches(
    data: ImageData,
    *,
    batch_size: int,
    train_portion: float,
    cutout_length: int,
    seed: int,
    workers: int,
    device: torch.device | str,
) -> tuple[Batches, Batches, Batches]:
    """The search split (DARTS, section 3.1): w is trained on one part of the training images, alpha on the other.

    The first floor(`train_portion` * n) training images are for w, the others for alpha. As in the original, both parts are augmented, also
    to measure the supernet's accuracy.

    Returns:
        train: all images for w in a new random order, for the weight steps.
        validation_draws: the same number of batches for the alpha steps, each sampled from all images for alpha, without replacement within
            a batch. (The original restarts its shuffled loader in every step: the same distribution, but slower.)
        validation: all images for alpha in order, to measure the accuracy.

    Raises:
        UserError: a half holds fewer images than a batch; or a batch cannot be shared by all processes.
    """
    for_w, for_alpha = search_split(data, train_portion)
    for half, images in (("weights", for_w), ("alphas", for_alpha)):
        if len(images) < batch_size:
            raise UserError(
                f"the search split, {train_portion} of the images for the weights, leaves {len(images)} of {len(data.train)} images for "
                f"the {half}, less than a batch of {batch_size}: lower --batch_size"
            )
    steps = _training_steps(len(for_w), batch_size)
    in_order = _in_order(for_alpha, batch_size)
    augment = Augment(data, cutout_length)

    def batches(plan: Plan, steps: int, stream: int) -> Batches:
        return Batches(data.train, plan, steps, augment, seed=seed, stream=stream, workers=workers, device=device)

    return (
        batches(_shuffled(for_w, batch_size, seed, _TRAIN_ORDER), steps, _TRAIN_AUGMENT),
        batches(_drawn(for_alpha, batch_size, steps, seed, _DRAWS_ORDER), steps, _DRAWS_AUGMENT),
        batches(in_order, len(in_order(0)), _VALIDATION_AUGMENT),
    )


def hold_out(data: ImageData, portion: float) -> tuple[ImageData, ImageData]:
    """(`data` without a portion of its training images, the same with this portion as its test images). For 0, `data` twice.

    The portion is stratified by class. It does not depend on the seed.

    Raises:
        UserError: the portion is less than one image, or no image is left.
    """
    if not portion:
        return data, data
    order = _interleave(data.train.labels.cpu().numpy())
    count = round(portion * len(order))
    if not 0 < count < len(order):
        raise UserError(
            f"--valid_portion {portion} of {len(order)} training images is {count}: one at least must be held out, and one left"
        )
    held_out, rest = np.sort(order[:count]), np.sort(order[count:])
    notes = (f"{count} of {len(order)} training images are held out, to choose the best epoch on", *one_sided(data, held_out, rest))
    left = replace(data, train=data.train.part(rest), notes=data.notes + notes)
    return left, replace(left, test=data.train.part(held_out))


def search_split(data: ImageData, train_portion: float) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the training images for w, and for alpha."""
    split = math.floor(train_portion * len(data.train))
    return np.arange(split), np.arange(split, len(data.train))


def one_sided(data: ImageData, *parts: np.ndarray) -> list[str]:
    """A warning for the log if some classes are not in all of these parts of the training images."""
    present = [{data.classes[label] for label in data.train.labels[torch.from_numpy(part)].unique()} for part in parts]
    lacking = sorted(set.union(*present) - set.intersection(*present))
    return [f"warning: in one part only of the split, having too few images: {_first(lacking)}"] if lacking else []


def train_batches(
    data: ImageData,
    *,
    batch_size: int,
    cutout_length: int,
    seed: int,
    workers: int,
    device: torch.device | str,
    random_crops: bool = False,
    color_jitter: Sequence[float] = (),
) -> Batches:
    """Batches to train a fixed network: all training images, augmented, in a new random order in every epoch.

    Args:
        random_crops: whether to crop by `CroppedImages`, of images that were loaded for it, and not by `Augment`.
        color_jitter: of these crops: how far brightness, contrast, saturation and hue may be off.

    Raises:
        UserError: fewer training images than a batch; or a batch cannot be shared by all processes.
    """
    count = len(data.train)
    if count < batch_size:
        raise UserError(f"there are only {count} training images, less than a batch of {batch_size}: lower --batch_size")
    train: Images | CroppedImages = data.train
    if random_crops:
        assert isinstance(data.train, FileImages)
        train = CroppedImages(data.train, data.flip, color_jitter)
    return Batches(
        train,
        _shuffled(np.arange(count), batch_size, seed, _TRAIN_ORDER),
        _training_steps(count, batch_size),
        Augment(data, cutout_length, crop=not random_crops),
        seed=seed,
        stream=_TRAIN_AUGMENT,
        workers=workers,
        device=device,
    )


def test_batches(data: ImageData, *, batch_size: int, workers: int, device: torch.device | str) -> Batches:
    """All test images in order, without augmentation."""
    plan = _in_order(np.arange(len(data.test)), batch_size)
    augment = Augment(data, train=False)
    return Batches(data.test, plan, len(plan(0)), augment, seed=0, stream=0, workers=workers, device=device)
