"""Datasets by name: those of torchvision, scikit-learn's digits, folders of images.

`load` gives all of a dataset, `load_test` the test images for a trained network.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import replace
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
from image_files import ImageData, Levels, MemoryImages, Options, interleave, mean_std


def load(options: Options) -> ImageData:
    """The dataset `options.dataset`, in the folder `options.data`.

    `cifar10`, `cifar100`, `mnist` and `fashion_mnist` are downloaded if not there. `digits` come with scikit-learn.
    `folder` holds your own images, train/<class>/* and test/<class>/*, or else val/<class>/*. `imagenet` holds any
    number of images, train/<class>/* and val/<class>/*, which are never all in memory. `val` may also be `valid` or
    `validation`.

    Raises:
        UserError: the name is unknown, the dataset does not have this size, or images are missing or cannot be read.
    """
    name = options.dataset
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if name in FOLDERS:
        from image_files import folders

        return folders.load(options)
    if options.image_size != 32:
        raise UserError(
            f"{name} has images of 32 pixels, not {options.image_size}: only --dataset folder has other sizes"
        )
    if options.valid_folder or options.skip_bad_images or options.centre_crop != 1 or options.crop != "pad":
        raise UserError(
            f"--valid_folder, --skip_bad_images, --centre_crop and --crop resized need images in files, "
            f"--dataset folder or imagenet, not {name}"
        )
    return OF_32_PIXELS[name](options)


def load_test(
    options: Options, classes: tuple[str, ...] | None = None, statistics: tuple[Levels, Levels] | None = None
) -> ImageData:
    """The test images for a trained network; a folder then needs no training images if `statistics` are known.

    Args:
        options: see `load`; `image_size`, `channels` and `centre_crop` are those of the network's training.
        classes: the network's; None: those of the images.
        statistics: mean and deviation of the network's training images; None: those of the dataset.

    Raises:
        UserError: see `load`; or the classes or their order differ from the network's.
    """
    if options.dataset in FOLDERS:
        from image_files import folders

        images = folders.load_test(options, statistics)
    else:
        images = load(options)
    if classes not in (None, images.classes):
        differing = sorted({*images.classes} ^ {*(classes or ())})
        which = f"only one of both has {errors.first(differing)}" if differing else "their order differs"
        raise UserError(f"the classes of the images are not those of the network: {which}")
    mean, std = statistics or (images.mean, images.std)
    return replace(images, mean=mean, std=std)


def source(images: str | Path | None) -> dict[str, str]:
    """The arguments that mean these images: the name of a dataset, or a folder of your own; none for None."""
    if images is None:
        return {}
    if str(images) in DATASETS:
        return {"dataset": str(images)}
    if not Path(images).is_dir():
        raise UserError(f"{images} is neither a folder nor one of {', '.join(DATASETS)}")
    return {"dataset": "folder", "data": str(images)}


def _torchvision(
    kind: Any, options: Options, flip: bool = True, statistics: tuple[Levels, Levels] | None = None
) -> ImageData:
    """A dataset of torchvision, by its class. `statistics` of its training images in RGB are measured if None."""
    name, root = options.dataset, Path(options.data)
    try:
        with distributed.one_at_a_time(root / f".{name}.lock"):  # downloads only what is missing or damaged
            train, test = (kind(options.data, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError, ValueError, AssertionError, http.client.HTTPException) as error:
        if issubclass(kind, datasets.MNIST):
            where = f"put the four files of {kind.mirrors[0]} into {root / kind.__name__ / 'raw'}, unpacked,"
        else:
            where = f"put {kind.url} there by hand,"
        raise UserError(
            f"{name} is not in the folder {root}, or damaged, and could not be downloaded ({error}): {where} "
            "name the folder that holds it with --data, or choose --dataset digits or --dataset folder"
        ) from None
    to_learn, to_test = (
        MemoryImages(_pixels(torch.as_tensor(part.data), options.channels), torch.as_tensor(part.targets))
        for part in (train, test)
    )
    mean, std = statistics if statistics and options.channels == 3 else mean_std([to_learn.images])
    return ImageData(name, to_learn, to_test, tuple(train.classes), mean, std, 32, flip)


def _pixels(images: Tensor, channels: int) -> Tensor:
    """uint8 (N, channels, 32, 32), from grey (N, 28, 28), which gets a black border, or from RGB (N, 32, 32, 3)."""
    if images.dim() == 3:
        return F.pad(images, [2] * 4)[:, None].repeat(1, channels, 1, 1)
    if channels == 3:
        return images.permute(0, 3, 1, 2).contiguous()
    column = Image.fromarray(images.flatten(0, 1).numpy())  # converted at once, and as images of a folder are
    return torch.from_numpy(np.array(column.convert("L"))).view(-1, 1, *images.shape[1:3])


def _digits(options: Options) -> ImageData:
    """Scikit-learn's handwritten digits, 8x8, enlarged to 32x32: 1,437 for training and 360 for the test, stratified by
    class.
    """
    from sklearn.datasets import load_digits  # imported here because it takes a second

    bunch = load_digits()
    order = interleave(bunch.target)  # scikit-learn sorts by writer: the test set would have other writers
    images = torch.from_numpy(bunch.images[order]).float().mul(255 / 16)[:, None]  # 16 is white
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
    images, labels = images.repeat(1, options.channels, 1, 1), torch.from_numpy(bunch.target[order]).long()
    train, test = MemoryImages(images[:1437], labels[:1437]), MemoryImages(images[1437:], labels[1437:])
    mean, std = mean_std([train.images])
    # A mirrored digit is not a digit, so no flip.
    return ImageData("digits", train, test, tuple(map(str, bunch.target_names)), mean, std, 32, flip=False)


# The statistics are those of the original, and for CIFAR-100 ours.
_CIFAR10 = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)
_CIFAR100 = (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)

OF_32_PIXELS: dict[str, Callable[[Options], ImageData]] = {
    "cifar10": partial(_torchvision, datasets.CIFAR10, statistics=_CIFAR10),
    "cifar100": partial(_torchvision, datasets.CIFAR100, statistics=_CIFAR100),
    "mnist": partial(_torchvision, datasets.MNIST, flip=False),
    "fashion_mnist": partial(_torchvision, datasets.FashionMNIST),
    "digits": _digits,
}
FOLDERS = ("folder", "imagenet")  # of image files of any size
DATASETS = (*OF_32_PIXELS, *FOLDERS)
