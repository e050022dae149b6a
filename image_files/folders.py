"""Folders of images, `root`/<part>/<class>/*."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.imagenet import load_meta_file

from experiment import errors
from experiment.errors import UserError
from image_files import ImageData, Images, Levels, Options, interleave, mean_std
from image_files.files import UNDECODABLE, BadImage, FileImages, in_order

# A folder whose decoded images need at most this much memory is decoded once. A larger one is decoded by workers in
# every epoch.
IN_MEMORY_BYTES = 2**30

# Of ImageNet's training images, in every code that trains on them, the original's included.
IMAGENET_STATISTICS: tuple[Levels, Levels] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# (kind, path) of what is not used in a folder of images; of a bad image, `path: what is wrong with it`.
LeftOut = list[tuple[str, str]]
HIDDEN, OTHERS, BAD = "hidden files and folders", f"files of other kinds than {', '.join(IMG_EXTENSIONS)}", "bad images"


def load(options: Options) -> ImageData:
    """The images of `--dataset folder` and `imagenet`; raises the errors of `sources.load`."""
    root, own, left_out = Path(options.data), options.dataset == "folder", LeftOut()
    train_part, test_part, valid_part = root / "train", test_folder(options), valid_folder(root)
    if options.valid_folder and not (own and valid_part and (root / "test").is_dir()):
        raise UserError(
            "--valid_folder needs --dataset folder with val/ beside train/ and test/: leave it out, or make this folder"
        )
    wanted = [train_part, test_part, *([valid_part] if options.valid_folder and valid_part else [])]
    parts = {part: read(part, options, left_out) for part in wanted}
    classes, train = parts[train_part]
    for part, (others, _) in parts.items():
        if different := ", ".join(sorted({*classes} ^ {*others})):
            raise UserError(f"{train_part} and {part} must hold the same classes; in only one of them: {different}")
    if len(classes) < 2:
        raise UserError(f"{train_part} holds only one class, {classes[0]}: at least two are needed")
    test, valid, lines = parts[test_part][1], 0, list[str]()
    if options.valid_folder and valid_part:
        valid = len(parts[valid_part][1])
        lines = [f"the {valid} images in {valid_part} are the validation images"]
        train = train.joined(parts[valid_part][1])
    elif own and valid_part == test_part:
        lines = [f"there is no folder {root / 'test'}: the images in {test_part} are the test set"]
    elif own and valid_part:
        lines = [f"the test set is {test_part}; without --valid_folder, the images in {valid_part} are not used"]
    both: tuple[Images, Images] = train, test
    if own and options.crop == "pad" and train.bytes + test.bytes <= IN_MEMORY_BYTES:
        both = decoded, _ = train.in_memory(), test.in_memory()
        statistics = mean_std([decoded.images])
    elif not own and options.channels == 3:
        statistics = IMAGENET_STATISTICS
    else:
        errors.tell(f"measuring mean and deviation of {len(train)} images")
        statistics = mean_std(batch for batch, _ in in_order(train, options.workers))
    notes = *told(left_out, len(train) + len(test)), *lines
    size, crop = options.image_size, options.centre_crop
    return ImageData(options.dataset, *both, classes, *statistics, size, True, crop, valid, notes)


def load_test(options: Options, statistics: tuple[Levels, Levels] | None) -> ImageData:
    """The test images, as for `sources.load_test`. With known statistics, no training images are needed."""
    if options.dataset == "imagenet" and options.channels == 3:
        statistics = statistics or IMAGENET_STATISTICS
    if statistics is None:
        return load(options)
    left_out = LeftOut()
    classes, files = read(test_folder(options), options, left_out)
    test = files.in_memory() if options.dataset == "folder" and files.bytes <= IN_MEMORY_BYTES else files
    none, notes = files.part(np.arange(0)), tuple(told(left_out, len(files)))
    size, crop = options.image_size, options.centre_crop
    return ImageData(options.dataset, none, test, classes, *statistics, size, False, crop, notes=notes)


def test_folder(options: Options) -> Path:
    """The folder of the test images. ImageNet's own `test` has no classes."""
    root = Path(options.data)
    valid = valid_folder(root)
    if options.dataset == "imagenet":
        return valid or root / "val"
    return valid if valid and not (root / "test").is_dir() else root / "test"


def valid_folder(root: Path) -> Path | None:
    """The folder of the validation images; None if there is none."""
    return next((root / part for part in ("val", "valid", "validation") if (root / part).is_dir()), None)


def read(folder: Path, options: Options, left_out: LeftOut) -> tuple[tuple[str, ...], FileImages]:
    """The sorted classes of `folder`, and its images in the order of `interleave`. What is not used is added to
    `left_out`: with `options.skip_bad_images`, also images that cannot be decoded.

    Raises:
        UserError: the folder is not as needed or cannot be read.
    """
    unused = LeftOut()
    classes, samples = walk(folder, unused)
    labels = np.array([label for _, label in samples])
    images = FileImages(np.array([os.fsencode(path) for path, _ in samples]), labels, options)
    if options.skip_bad_images and len(images):
        bad = dict(chain.from_iterable(in_order(range(len(images)), options.workers, partial(_complaints, images))))
        unused += [(BAD, reason) for reason in bad.values()]
        images = images.part(np.setdiff1d(np.arange(len(images)), [*bad]))
    present = images.labels.unique()
    if lacking := ", ".join(name for label, name in enumerate(classes) if label not in present):
        reasons = "".join(f"; {note}" for note in told(unused, len(images)))
        raise UserError(f"cannot use the folder {folder}: it has no image of {lacking}{reasons} ({_needed(folder)})")
    left_out += unused
    if options.dataset == "imagenet":
        classes = _names(folder.parent, classes)
    # Files are sorted by class. The search split takes the first part of the list, and accuracies that are logged
    # during an epoch are those of the first part, so the classes are interleaved.
    return classes, images.part(interleave(images.labels.numpy()))


def _complaints(images: FileImages, numbers: list[int]) -> list[tuple[int, str]]:
    """(number, what is wrong with it) of those images that cannot be decoded."""
    found = []
    for number in numbers:
        try:
            images[number]
        except BadImage as error:
            found.append((number, str(error).removeprefix(UNDECODABLE)))
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


def told(left_out: LeftOut, sound: int = 0) -> Iterator[str]:
    """Lines for the log about what is left out beside `sound` images."""
    for kind in (HIDDEN, OTHERS, BAD):
        if paths := [path for of_kind, path in left_out if of_kind == kind]:
            skipped = f"skipped {len(paths)} of {sound + len(paths)} images, which cannot be decoded"
            what = skipped if kind == BAD else f"left out {kind} ({len(paths)})"
            yield f"{what}: {errors.first(paths)}"


def walk(folder: Path, left_out: LeftOut) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """The classes in a folder, sorted, and its images with their labels, sorted as by torchvision's ImageFolder.

    What is not used is added to `left_out`.
    """
    root, layout = folder.parent, _needed(folder)
    if not folder.is_dir():
        parent = root if root.is_dir() else root.parent
        there = ", ".join(sorted(os.listdir(parent))[:8]) if parent.is_dir() else ""
        raise UserError(f"there is no folder {folder}; {parent} holds {there or 'nothing'}: {layout}")
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        classes = tuple(name for name in names if not _hidden(name))
        left_out += [(HIDDEN, str(folder / name)) for name in names if _hidden(name)]
        found = [images_in(folder / name, left_out) for name in classes]
    except OSError as error:
        raise UserError(
            f"cannot use the folder {folder}: cannot read {error.filename}: {error.strerror} ({layout})"
        ) from None
    if not classes:
        if folder == valid_folder(root):
            layout += "; ImageNet's validation images come without: docs/imagenet.md sorts them into classes"
        raise UserError(f"cannot use the folder {folder}: it holds no folders of classes ({layout})")
    return classes, [(path, label) for label, paths in enumerate(found) for path in paths]


def _needed(folder: Path) -> str:
    root = folder.parent
    return f"needed are {root}/train/<class>/ and {root}/test/<class>/ (or val), with images in every class"


def images_in(folder: str | Path, left_out: LeftOut) -> list[str]:
    """The images in `folder` and below, sorted by folder and name. As in torchvision, links are followed.

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
    """Whether programs leave such a file or folder behind: `.ipynb_checkpoints`, and on a Mac `._x.jpg`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"
