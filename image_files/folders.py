"""Folders of images, `root`/<part>/<class>/*."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.imagenet import load_meta_file

from experiment import errors
from experiment.errors import UserError
from image_files.datasets import ImageData, Images, Levels, Options, count_levels, interleave, mean_std
from image_files.decoding import UNDECODABLE, BadImage
from image_files.files import FileImages, decode_all, in_order

# A folder whose decoded images need at most this much memory is decoded once. A larger one is decoded by workers in
# every epoch.
IN_MEMORY_BYTES = 2**30

# Of ImageNet's training images, in every code that trains on them, the original's included.
IMAGENET_STATISTICS: tuple[Levels, Levels] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

LeftOut = list[
    tuple[str, str]
]  # (kind, path) of what is not used in a folder of images; of a bad image, `path: what is wrong with it`
HIDDEN, OTHERS, BAD = "hidden files and folders", f"files of other kinds than {', '.join(IMG_EXTENSIONS)}", "bad images"


class Part(NamedTuple):
    """A part of a folder: its sorted classes, and its images in the order of `interleave`."""

    classes: tuple[str, ...]
    images: FileImages
    left_out: LeftOut


def load(options: Options) -> ImageData:
    """The images of `--dataset folder` and `imagenet`; raises the same errors as `sources.load`."""
    root, own = Path(options.data), options.dataset == "folder"
    test_part, valid_part = test_part_of(options.dataset, root), valid_part_of(root)
    if options.valid_folder and not (own and valid_part and (root / "test").is_dir()):
        raise UserError(
            "--valid_folder needs --dataset folder with val/ beside train/ and test/: leave it out, or make this folder"
        )
    parts = {part: read(part, options) for part in ("train", test_part)}
    if options.valid_folder and valid_part:
        parts[valid_part] = read(valid_part, options)
    classes = parts["train"].classes
    for name, part in parts.items():
        if different := {*classes} ^ {*part.classes}:
            only = ", ".join(sorted(different))
            raise UserError(
                f"{root / 'train'} and {root / name} must hold the same classes; in only one of them: {only}"
            )
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} holds only one class, {classes[0]}: at least two are needed")
    left_out = [what for part in parts.values() for what in part.left_out]
    lines = [*notes(left_out, sum(len(part.images) for part in parts.values()))]
    train, test, valid = parts["train"].images, parts[test_part].images, 0
    if options.valid_folder and valid_part:
        valid = len(parts[valid_part].images)
        train = train.joined(parts[valid_part].images)
        lines.append(f"the {valid} images in {root / valid_part} are the validation images")
    elif own and valid_part == test_part:
        lines.append(f"there is no folder {root / 'test'}: the images in {root / test_part} are the test set")
    elif own and valid_part:
        lines.append(
            f"the test set is {root / 'test'}; without --valid_folder, the images in {root / valid_part} are not used"
        )
    if own and options.crop == "pad" and train.bytes + test.bytes <= IN_MEMORY_BYTES:
        decoded = decode_all(train)
        statistics = mean_std(count_levels(decoded.images))
        both: tuple[Images, Images] = decoded, decode_all(test)
    elif not own and options.channels == 3:
        both, statistics = (train, test), IMAGENET_STATISTICS
    else:
        errors.tell(f"measuring mean and deviation of {len(train)} images")
        both, none = (train, test), torch.zeros(options.channels, 256, dtype=torch.long)
        statistics = mean_std(sum((count_levels(batch) for batch, _ in in_order(train, options.workers)), none))
    size, crop = options.image_size, options.centre_crop
    return ImageData(options.dataset, *both, classes, *statistics, size, True, crop, valid, tuple(lines))


def load_test(options: Options, statistics: tuple[Levels, Levels] | None) -> ImageData:
    """The test images, as for `sources.load_test`. With known statistics, no training images are needed."""
    if options.dataset == "imagenet" and options.channels == 3:
        statistics = statistics or IMAGENET_STATISTICS
    if statistics is None:
        return load(options)
    classes, files, left_out = read(test_part_of(options.dataset, Path(options.data)), options)
    test = decode_all(files) if options.dataset == "folder" and files.bytes <= IN_MEMORY_BYTES else files
    none, lines = files.part(np.arange(0)), tuple(notes(left_out, len(files)))
    size, crop = options.image_size, options.centre_crop
    return ImageData(options.dataset, none, test, classes, *statistics, size, False, crop, notes=lines)


def test_part_of(name: str, root: Path) -> str:
    """The folder of the test images. ImageNet's own `test` has no classes."""
    valid = valid_part_of(root)
    return valid or "val" if name == "imagenet" else "test" if (root / "test").is_dir() else valid or "test"


def valid_part_of(root: Path) -> str | None:
    """The folder of the validation images; None if there is none."""
    return next((part for part in ("val", "valid", "validation") if (root / part).is_dir()), None)


def read(part: str, options: Options) -> Part:
    """The content of `options.data`/`part`; `options.skip_bad_images` leaves out images that cannot be decoded.

    Raises:
        UserError: the folder is not as needed or cannot be read.
    """
    root = Path(options.data)
    classes, samples, left_out = walk(root, part)
    labels = np.array([label for _, label in samples], dtype=np.int64)
    images = FileImages(np.array([os.fsencode(path) for path, _ in samples]), labels, options)
    if options.dataset == "imagenet":
        classes = _names(root, classes)
    if options.skip_bad_images:
        bad = dict(chain.from_iterable(in_order(range(len(images)), options.workers, partial(_complaints, images))))
        left_out += [(BAD, reason) for reason in bad.values()]
        images = images.part(np.setdiff1d(np.arange(len(images)), [*bad]))
    # Files are sorted by class. The search split takes the first part of the list, and accuracies that are logged
    # during an epoch are those of the first part, so the classes are interleaved.
    return Part(classes, images.part(interleave(images.labels.numpy())), left_out)


def _complaints(images: FileImages, numbers: list[int]) -> list[tuple[int, str]]:
    """(number, what is wrong with it) of those images that cannot be decoded."""
    found = []
    for number in numbers:
        try:
            images[number]
        except BadImage as error:
            found.append((number, " ".join(str(error).removeprefix(UNDECODABLE).split())))
    return found


def _names(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of ImageNet's classes, "n01440764 tench, Tinca tinca", if the folder holds torchvision's `meta.bin`."""
    if not (root / "meta.bin").is_file():
        return classes
    try:
        known, _ = load_meta_file(str(root))
        return tuple(f"{name} {', '.join(known[name])}" if name in known else name for name in classes)
    except Exception as error:  # what torch.load raises, and what else may be in such a file, is of many kinds
        raise UserError(
            f"cannot use {root / 'meta.bin'}: {error or type(error).__name__}; remove it to name classes by folders"
        ) from None


def notes(left_out: LeftOut, sound: int = 0) -> Iterator[str]:
    """Lines for the log about what is left out beside `sound` images."""
    for kind in (HIDDEN, OTHERS, BAD):
        paths = [path for of_kind, path in left_out if of_kind == kind]
        what = f"left out {kind} ({len(paths)})"
        if kind == BAD:
            what = f"skipped {len(paths)} of {sound + len(paths)} images, which cannot be decoded"
        if paths:
            yield f"{what}: {errors.first(paths)}"


def walk(root: Path, part: str) -> tuple[tuple[str, ...], list[tuple[str, int]], LeftOut]:
    """The classes in `root`/`part`, sorted; the images with their labels, sorted as by torchvision's ImageFolder; and
    what is left out.
    """
    top = root / part
    layout = f"needed are {root}/train/<class>/ and {root}/test/<class>/ (or val), with images in every class"
    if not top.is_dir():
        parent = root if root.is_dir() else root.parent
        there = ", ".join(sorted(os.listdir(parent))[:8]) if parent.is_dir() else ""
        raise UserError(f"there is no folder {top}; {parent} holds {there or 'nothing'}: {layout}")
    samples = list[tuple[str, int]]()
    try:
        names = sorted(entry.name for entry in os.scandir(top) if entry.is_dir())
        classes = tuple(name for name in names if not _hidden(name))
        left_out = [(HIDDEN, str(top / name)) for name in names if _hidden(name)]
        for label, name in enumerate(classes):
            samples += ((path, label) for path in images_in(top / name, left_out))
    except OSError as error:
        raise UserError(
            f"cannot use the folder {top}: cannot read {error.filename}: {error.strerror} ({layout})"
        ) from None
    if not classes:
        if part == valid_part_of(root):
            layout += "; ImageNet's validation images come without: docs/imagenet.md sorts them into classes"
        raise UserError(f"cannot use the folder {top}: it holds no folders of classes ({layout})")
    if empty := sorted(set(range(len(classes))) - {label for _, label in samples}):
        reasons = "".join(f"; {note}" for note in notes(left_out))
        lacking = ", ".join(classes[label] for label in empty)
        raise UserError(f"cannot use the folder {top}: it has no image of {lacking}{reasons} ({layout})")
    return classes, samples, left_out


def images_in(folder: str | Path, left_out: LeftOut) -> list[str]:
    """The images in `folder` and below, sorted by folder and name. What is not used is added to `left_out`.

    As in torchvision, links are followed.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = list[str]()
    for path, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        left_out += [(HIDDEN, os.path.join(path, name)) for name in sorted(below + names) if _hidden(name)]
        below[:] = [name for name in sorted(below) if not _hidden(name)]
        for name in sorted(names):
            if name.lower().endswith(IMG_EXTENSIONS) and not _hidden(name):
                found.append(os.path.join(path, name))
            elif not _hidden(name):
                left_out.append((OTHERS, os.path.join(path, name)))
    return sorted(found, key=os.path.split)


def _hidden(name: str) -> bool:
    """Whether a file or folder is one that programs leave behind, such as `.ipynb_checkpoints`, and on a Mac `._x.jpg`,
    `__MACOSX`.
    """
    return name.startswith(".") or name == "__MACOSX"
