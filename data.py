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
import http.client
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import datasets

from experiment import distributed, errors
from experiment.errors import UserError
from image_files import folders
from image_files.datasets import (
    CroppedImages,
    FileImages,
    Images,
    MemoryImages,
    Samples,
    Share,
    decode_all,
    interleave,
    loader,
    plain_errors,
)
from image_files.statistics import Levels, count_levels, mean_std, measure

# A folder whose decoded images need at most this much memory is decoded once. A larger one is decoded by workers in every epoch.
IN_MEMORY_BYTES = 2**30


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
    valid: int = 0  # how many of the training images, the last ones, are those of a folder's own val/
    notes: tuple[str, ...] = ()  # lines for the log of a run

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def record(self) -> dict[str, Any]:
        """What a run's `config.json` says of the images."""
        return {"classes": self.classes, "mean": self.mean, "std": self.std}


def load(
    name: str,
    root: str,
    image_size: int = 32,
    workers: int = 2,
    skip_bad_images: bool = False,
    channels: int = 3,
    centre_crop: float = 1.0,
    random_crops: bool = False,
    valid_folder: bool = False,
) -> ImageData:
    """The dataset `name`, in the folder `root`.

    Args:
        name: `cifar10`, `cifar100`, `mnist` or `fashion_mnist`, downloaded into `root` if not there; `digits`, 1,797 handwritten digits
            that come with scikit-learn; `folder`, your own images, `root`/train/<class>/* and `root`/test/<class>/*, or else
            `root`/val/<class>/*; or `imagenet`, any number of images, `root`/train/<class>/* and `root`/val/<class>/*, which are never
            read into memory. `val` may also be `valid` or `validation`. The notes of the result say which files were left out.
        root: the folder of the data; not used for `digits`.
        image_size: height and width in pixels; 32 except for `folder` and `imagenet`.
        workers: processes that decode image files.
        skip_bad_images: leave out image files that cannot be decoded, with a note. To find them, every image is decoded once more.
        channels: 3 for RGB (grey images get three equal channels), or 1 for grey.
        centre_crop: the share of the shorter side of an image file that is kept.
        random_crops: True if the training images are to be cropped at random (see `train_batches`). They then stay in their files.
        valid_folder: True if the images in `root`/val, beside `root`/test, are the validation side of `search_split` and `hold_out`.

    Raises:
        UserError: the name is unknown, the dataset does not have this size, or images are missing or cannot be read.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if valid_folder and not (name == "folder" and (Path(root) / "test").is_dir() and folders.valid_part(Path(root))):
        raise UserError("--valid_folder needs --dataset folder with val/ beside train/ and test/: leave it out, or make this folder")
    if name in FOLDERS:
        return _folder(name, Path(root), image_size, workers, skip_bad_images, channels, centre_crop, random_crops, valid_folder)
    if image_size != 32:
        raise UserError(f"{name} has images of 32 pixels, not {image_size}: only --dataset folder has other sizes")
    if skip_bad_images:
        raise UserError(f"--skip_bad_images needs --dataset folder: {name} is checked as a whole")
    if centre_crop != 1 or random_crops:
        raise UserError(f"--centre_crop and --crop resized need images in files, --dataset folder or imagenet, not {name}")
    return OF_32_PIXELS[name](name, root, channels)


def load_test(
    name: str,
    root: str,
    classes: tuple[str, ...] | None,
    image_size: int,
    mean: Levels,
    std: Levels,
    workers: int = 2,
    skip_bad_images: bool = False,
    centre_crop: float = 1.0,
) -> ImageData:
    """The test images of a dataset, for a trained network. Training images are not loaded, and a `folder` needs none.

    Args:
        classes, image_size, mean, std, centre_crop: those of the network's training; `classes` None: those of the test images.
        name, root, workers, skip_bad_images: as for `load`.

    Raises:
        UserError: see `load`; or the classes or their order differ from the network's.
    """
    part = folders.test_part(name, Path(root))
    if name in FOLDERS:
        found, samples, left_out, bad = folders.read(name, Path(root), part, image_size, workers, skip_bad_images)
        notes = left_out.notes() + folders.skipped(bad, len(samples))
    else:
        images = load(name, root, image_size, workers, skip_bad_images, len(mean))
        found, notes = images.classes, images.notes
    if classes is None:
        classes = found
    if found != classes:
        which = f"only one of both has {errors.first(sorted({*found} ^ {*classes}))}" if {*found} ^ {*classes} else "their order differs"
        raise UserError(f"the classes of {Path(root) / part if name in FOLDERS else name} are not those of the network: {which}")
    if name in FOLDERS:
        in_files = FileImages(samples, image_size, len(mean), centre_crop)
        in_files = in_files.part(interleave(in_files.labels.numpy()))
        test: Images = decode_all(in_files, workers) if name == "folder" and in_files.bytes <= IN_MEMORY_BYTES else in_files
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
    images = load(args.dataset, args.data, *how, args.valid_folder)
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


def _torchvision(
    kind: Any, name: str, root: str, channels: int, flip: bool = True, statistics: tuple[Levels, Levels] | None = None
) -> ImageData:
    """A dataset of torchvision.

    Args:
        kind: its class, whose objects have `data`, `targets` and `classes`.
        flip: whether a mirrored image still shows its class.
        statistics: mean and deviation of its training images in RGB; None: they are measured.
    """
    try:
        with distributed.one_at_a_time(Path(root) / f".{name}.lock"):
            train, test = (kind(root, train=part, download=True) for part in (True, False))  # downloads only what is missing or damaged
    except (OSError, RuntimeError, ValueError, AssertionError, http.client.HTTPException) as error:
        if issubclass(kind, datasets.MNIST):
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
    mean, std = statistics if statistics and channels == 3 else mean_std(count_levels(to_learn.images))
    return ImageData(name, to_learn, images(test), tuple(train.classes), mean, std, 32, flip=flip)


def _pixels(images: Tensor, channels: int) -> Tensor:
    """uint8 (N, channels, 32, 32), from grey (N, 28, 28), which gets a black border, or from RGB (N, 32, 32, 3)."""
    if images.dim() == 3:
        return F.pad(images, [2] * 4)[:, None].repeat(1, channels, 1, 1)
    if channels == 3:
        return images.permute(0, 3, 1, 2).contiguous()
    column = Image.fromarray(images.flatten(0, 1).numpy())  # all images in one column: a single conversion, the same as for a folder
    return torch.from_numpy(np.array(column.convert("L"))).view(-1, 1, *images.shape[1:3])


def _digits(name: str, root: str, channels: int) -> ImageData:
    """Scikit-learn's handwritten digits, 8x8, enlarged to 32x32: 1,437 for training and 360 for the test, stratified by class."""
    from sklearn.datasets import load_digits  # imported here because it takes a second

    bunch = load_digits()
    order = interleave(bunch.target)  # scikit-learn sorts by writer: the test set would have other writers
    images = torch.from_numpy(bunch.images[order]).float().mul(255 / 16)[:, None]  # 16 is white
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    images, labels = images.repeat(1, channels, 1, 1), torch.from_numpy(bunch.target[order]).long()
    train, test = MemoryImages(images[:1437], labels[:1437]), MemoryImages(images[1437:], labels[1437:])
    mean, std = mean_std(count_levels(train.images))
    # A mirrored digit is not a digit, so no flip.
    return ImageData(name, train, test, tuple(map(str, bunch.target_names)), mean, std, 32, flip=False)


# {name: function of the name, the folder and the number of channels}. The statistics are those of the original, and for CIFAR-100 ours.
OF_32_PIXELS: dict[str, Callable[[str, str, int], ImageData]] = {
    "cifar10": partial(
        _torchvision,
        datasets.CIFAR10,
        statistics=((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    ),
    "cifar100": partial(
        _torchvision,
        datasets.CIFAR100,
        statistics=((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
    ),
    "mnist": partial(_torchvision, datasets.MNIST, flip=False),
    "fashion_mnist": partial(_torchvision, datasets.FashionMNIST),
    "digits": _digits,
}
FOLDERS = ("folder", "imagenet")  # of image files of any size
DATASETS = (*OF_32_PIXELS, *FOLDERS)

# Of ImageNet's training images, in every code that trains on them, the original's included.
IMAGENET_STATISTICS: tuple[Levels, Levels] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _folder(
    name: str,
    root: Path,
    image_size: int,
    workers: int,
    skip_bad_images: bool,
    channels: int,
    centre_crop: float,
    random_crops: bool,
    valid_folder: bool,
) -> ImageData:
    test_part, valid_part = folders.test_part(name, root), folders.valid_part(root)
    parts = ["train", test_part, *([valid_part] if valid_folder and valid_part else [])]
    classes: tuple[str, ...] = ()
    found, left, bad = [], folders.LeftOut([], [], [], []), list[str]()
    for part in parts:
        of_part, samples, left_out, complaints = folders.read(name, root, part, image_size, workers, skip_bad_images)
        classes = classes or of_part
        if different := set(classes) ^ set(of_part):
            only = ", ".join(sorted(different))
            raise UserError(f"{root / 'train'} and {root / part} must hold the same classes; in only one of them: {only}")
        # Files are sorted by class. The search split takes the first part of the list, and accuracies that are logged during an epoch are
        # those of the first part, so the classes are interleaved.
        found.append(samples.part(interleave(samples.labels.numpy())))
        left += left_out
        bad += complaints
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} holds only one class, {classes[0]}: at least two are needed")
    notes = left.notes() + folders.skipped(bad, sum(map(len, found)))
    if valid_part and valid_folder:
        notes += (f"the {len(found[2])} images in {root / valid_part} are the validation images",)
    elif name == "folder" and valid_part == test_part:
        notes += (f"there is no folder {root / 'test'}: the images in {root / test_part} are the test set",)
    elif name == "folder" and valid_part:
        notes += (f"the test set is {root / 'test'}; without --valid_folder, the images in {root / valid_part} are not used",)
    valid = sum(map(len, found[2:]))
    train, test = (
        FileImages(part, image_size, channels, centre_crop)
        for part in (Samples.of([*found[0], *found[2]]) if valid else found[0], found[1])
    )

    def images(train: Images, test: Images, mean: Levels, std: Levels) -> ImageData:
        return ImageData(name, train, test, classes, mean, std, image_size, True, centre_crop, valid, notes)

    if name == "folder" and not random_crops and train.bytes + test.bytes <= IN_MEMORY_BYTES:
        decoded = decode_all(train, workers)
        return images(decoded, decode_all(test, workers), *mean_std(count_levels(decoded.images)))
    if name == "imagenet" and channels == 3:
        return images(train, test, *IMAGENET_STATISTICS)
    of_crop = "" if centre_crop == 1 else f"-{centre_crop}"
    return images(train, test, *measure(train, root / f"statistics-{image_size}{of_crop}.json", workers))


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
            on_gpu = self._device.type == "cuda"
            self._loader = loader(dataset, self._indices, workers, persistent_workers=workers > 0, pin_memory=on_gpu)

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
        for i, (images, labels) in enumerate(plain_errors(self._loader)):
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

    The portion is stratified by class. It does not depend on the seed. With a `valid_folder`, its images are held out instead.

    Raises:
        UserError: the portion is less than one image, or no image is left.
    """
    if not portion and not data.valid:
        return data, data
    order, count = interleave(data.train.labels.cpu().numpy()), round(portion * len(data.train))
    if data.valid:
        order, count = np.arange(len(data.train))[::-1], data.valid
    if not 0 < count < len(order):
        raise UserError(
            f"--valid_portion {portion} of {len(order)} training images is {count}: one at least must be held out, and one left"
        )
    held_out, rest = np.sort(order[:count]), np.sort(order[count:])
    notes = (f"{count} of {len(order)} training images are held out, to choose the best epoch on", *one_sided(data, held_out, rest))
    left = replace(data, train=data.train.part(rest), valid=0, notes=data.notes + notes)
    return left, replace(left, test=data.train.part(held_out))


def search_split(data: ImageData, train_portion: float) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the training images for w, and for alpha, which are those of a `valid_folder` if there is one."""
    split = len(data.train) - data.valid if data.valid else math.floor(train_portion * len(data.train))
    return np.arange(split), np.arange(split, len(data.train))


def one_sided(data: ImageData, *parts: np.ndarray) -> list[str]:
    """A warning for the log if some classes are not in all of these parts of the training images."""
    present = [{data.classes[label] for label in data.train.labels[torch.from_numpy(part)].unique()} for part in parts]
    lacking = sorted(set.union(*present) - set.intersection(*present))
    advice = "add images of them, or choose another portion"
    return [f"warning: all images of these classes are on one side of the split: {errors.first(lacking)}: {advice}"] if lacking else []


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
