"""Folders of images, `root`/<part>/<class>/*: what they hold, and an index that makes large ones quick to open again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import zipfile
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from experiment import distributed, errors, files
from experiment.errors import UserError
from image_files.datasets import Complaints, FileImages, Sample, Samples, stream


def test_part(name: str, root: Path) -> str:
    """The folder of the test images. ImageNet's own `test` has no classes."""
    valid = valid_part(root)
    return valid or "val" if name == "imagenet" else "test" if (root / "test").is_dir() else valid or "test"


def valid_part(root: Path) -> str | None:
    """The folder of the validation images; None if there is none."""
    return next((part for part in ("val", "valid", "validation") if (root / part).is_dir()), None)


def hidden(name: str) -> bool:
    """Whether a file or folder is one that programs leave behind, such as `.ipynb_checkpoints`, and on a Mac `._x.jpg`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def read(
    name: str, root: Path, part: str, image_size: int, workers: int, skip_bad_images: bool
) -> tuple[tuple[str, ...], Samples, LeftOut, list[str]]:
    """As `walk`; also what is wrong with images that are left out because they cannot be decoded."""
    if name == "imagenet":
        classes, samples, left_out, complaints = _indexed(root, part, image_size, workers, skip_bad_images)
        classes = _names(root, classes)
    else:
        classes, found, left_out = walk(root, part)
        samples = Samples.of(found)
        complaints = _complaints(samples, image_size, workers) if skip_bad_images else {}
    sound = np.setdiff1d(np.arange(len(samples)), np.array([*complaints], dtype=int))
    if len(lost := np.setdiff1d(np.arange(len(classes)), samples.part(sound).labels.numpy())):
        first = min(number for number in complaints if samples[number][1] == lost[0])
        raise UserError(f"no image of the class {classes[lost[0]]} can be decoded: {complaints[first]}")
    return classes, samples.part(sound), left_out, [*complaints.values()]


def _complaints(samples: Samples, image_size: int, workers: int) -> dict[int, str]:
    """{number of a sample: what is wrong with it} of those that cannot be decoded."""
    complaints = chain.from_iterable(stream(Complaints(FileImages(samples, image_size)), workers))
    return {number: " ".join(complaint.split()) for number, complaint in enumerate(complaints) if complaint}


def _names(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of ImageNet's classes, "n01440764 tench, Tinca tinca", by the `meta.bin` that torchvision makes of the devkit, where it is."""
    try:
        known, _ = torch.load(io.BytesIO((root / "meta.bin").read_bytes()), weights_only=True)
        return tuple(f"{name} {', '.join(known[name])}" if name in known else name for name in classes)
    except FileNotFoundError:
        return classes
    except Exception as error:  # what torch.load raises, and what else may be in such a file, is of many kinds
        raise UserError(f"cannot use {root / 'meta.bin'}: {error or type(error).__name__}; remove it to name classes by folders") from None


INDEX_VERSION = 2
SETTLED = 2 * 10**9  # nanoseconds after which another change of a folder gives it another time on every file system


class _Index(NamedTuple):
    """What a part of a folder holds."""

    times: dict[str, int]  # of the last change of each of its folders, {path: nanoseconds}; empty if they cannot be relied on
    classes: tuple[str, ...]
    samples: Samples
    left_out: LeftOut
    complaints: dict[int, str] | None  # as of `_complaints`; None if they are not known


def _indexed(
    root: Path, part: str, image_size: int, workers: int, skip_bad_images: bool
) -> tuple[tuple[str, ...], Samples, LeftOut, dict[int, str]]:
    """What `walk` finds in `root`/`part`, and `_complaints` of it with `skip_bad_images`.

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
            classes, found, left_out = walk(root, part, times)
            if max(times.values()) > started - SETTLED:  # of what changes now, the time may not tell
                times = {}
            index = _Index(times, classes, Samples.of(found, str(root)), left_out, None)
            del found  # the same in several times the memory
        if skip_bad_images and index.complaints is None:
            errors.tell(f"decoding {len(index.samples)} images, to find those that cannot be")
            index = index._replace(complaints=_complaints(index.samples, image_size, workers))
        if index is not known and index.times:
            files.keep(cache, _packed(index), "the folder will be looked through again")
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
    np.savez(content, header=text, names=samples.names, ends=samples.ends, labels=samples.labels.numpy())
    return content.getbuffer()


def _read_index(cache: Path, root: Path, part: str) -> _Index | None:
    """What `_indexed` keeps; None where there is no such file, it is not one of ours, or a folder has changed since."""
    try:
        with np.load(io.BytesIO(cache.read_bytes()), allow_pickle=False) as content:
            header = files.parse_json(content["header"].tobytes())
            names, ends, labels = (content[name] for name in ("names", "ends", "labels"))
        times, classes, complaints = header["times"], tuple(header["classes"]), header["complaints"]
        if header["version"] != INDEX_VERSION or not times or part not in times:
            return None
        if any(os.stat(root / folder).st_mtime_ns != then for folder, then in times.items()):
            return None
        sizes = np.diff(ends, prepend=-1) - 1
        sound = (
            (names.dtype, ends.dtype, labels.dtype) == (np.uint8, np.int64, np.int64)
            and len(ends) == len(labels) > 0
            and int(sizes.min()) > 0
            and int(ends[-1]) == len(names)
            and (int(labels.min()), int(labels.max())) == (0, len(classes) - 1)
            and all(isinstance(name, str) for name in classes)
        )
        if not sound:
            return None
        left_out = LeftOut(*([str(path) for path in paths] for paths in header["left_out"]))
        found = None if complaints is None else {int(number): str(complaint) for number, complaint in complaints}
        if found is not None and not all(0 <= number < len(labels) for number in found):
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, EOFError, zipfile.BadZipFile):
        return None
    return _Index(times, classes, Samples(str(root), names, ends, labels), left_out, found)


def skipped(bad: list[str], sound: int) -> tuple[str, ...]:
    """A note for the log about images that cannot be decoded."""
    return (f"skipped {len(bad)} of {sound + len(bad)} images, which cannot be decoded: {errors.first(bad)}",) if bad else ()


class LeftOut(NamedTuple):
    """Paths in a folder of images that are not used, by kind."""

    links: list[str]  # to folders
    devices: list[str]
    hidden: list[str]  # files and folders
    others: list[str]  # files that are not images

    def __add__(self, more: LeftOut) -> LeftOut:  # type: ignore[override]  # only with its own type
        return LeftOut(*(ours + theirs for ours, theirs in zip(self, more, strict=True)))

    def notes(self) -> tuple[str, ...]:
        """Notes for the log about these paths."""
        notes = []
        if self.links:
            notes.append(
                f"left out links to folders that are visited already, or that hold the link ({len(self.links)}): {errors.first(self.links)}"
            )
        if self.devices:
            notes.append(f"left out pipes, sockets and devices ({len(self.devices)}): {errors.first(self.devices)}")
        if self.hidden:
            notes.append(f"left out hidden files and folders ({len(self.hidden)}): {errors.first(self.hidden)}")
        if self.others:
            kinds = Counter(os.path.splitext(path)[1].lower() or "without a suffix" for path in self.others)
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) + (", ..." if len(kinds) > 5 else "")
            notes.append(f"left out files of other kinds than {', '.join(IMG_EXTENSIONS)} ({counts}): {errors.first(self.others)}")
        return tuple(notes)


def walk(root: Path, part: str, times: dict[str, int] | None = None) -> tuple[tuple[str, ...], list[Sample], LeftOut]:
    """The classes in `root`/`part`, sorted; the images with their labels, sorted by class, folder and name; and what is left out.

    `times` receives the time of the last change of every folder that is read, {path within `root`: nanoseconds}.

    Links are followed, but no folder is visited twice, and no folder that contains `part`: links may form cycles, or lead from one class to
    another.
    """
    layout = f"needed are {root}/train/<class>/ and {root}/test/<class>/, or val in the place of test, with images in every class"
    if not (root / part).is_dir():
        missing = root / part if root.is_dir() else root
        raise UserError(f"there is no folder {missing}; {missing.parent} holds {_content(missing.parent)}: {layout}")
    try:
        times = {} if times is None else times
        times[part] = os.stat(root / part).st_mtime_ns
        top = (root / part).resolve()
        visited = {_identity(folder) for folder in (top, *top.parents)}
        folders = sorted((entry for entry in os.scandir(root / part) if entry.is_dir()), key=lambda entry: entry.name)
        entries = [entry for entry in folders if not hidden(entry.name)]
        classes = tuple(entry.name for entry in entries)
        samples: list[Sample] = []
        left_out = LeftOut([], [], [entry.path for entry in folders if hidden(entry.name)], [])
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
                if hidden(entry.name):
                    left_out.hidden.append(entry.path)
                elif entry.is_dir():
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
        if part == valid_part(root):
            layout += "; ImageNet's validation images come without: docs/imagenet.md has the lines that sort them into classes"
        raise UserError(f"cannot use the folder {root / part}: it holds {_content(root / part)}, and no folders of classes ({layout})")
    if empty := sorted(set(range(len(classes))) - {label for _, label in samples}):
        reasons = "".join(f"; {note}" for note in left_out.notes())
        names = ", ".join(classes[label] for label in empty)
        raise UserError(f"cannot use the folder {root / part}: it has no image of {names}{reasons} ({layout})")
    return classes, sorted(samples, key=lambda sample: (sample[1], *os.path.split(sample[0]))), left_out


def _content(folder: Path) -> str:
    """What a folder holds, for a message: folders first."""
    try:
        entries = sorted((not entry.is_dir(), entry.name) for entry in os.scandir(folder))
    except OSError as error:
        return f"what cannot be read ({error.strerror})"
    names = [name if is_file else f"{name}/" for is_file, name in entries]
    return ", ".join(names[:8] + ["..."] * (len(names) > 8)) or "nothing"


def _identity(folder: str | Path) -> tuple[int, int]:
    """The identity of a folder, equal for all paths to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino
