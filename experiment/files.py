"""Files of folders that may be untrusted.

Reading ends, whatever stands in a file's place, and runs nothing. Nothing is written through a link, and a file is written whole or not at
all.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows lacks it


def check_folder(folder: str | Path) -> None:
    """Raises `OSError`, which names the first that it finds, if `folder` holds anything but files and folders, or cannot be read.

    A link could lead reading and writing elsewhere, and a pipe or a device would keep its reader waiting.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise OSError(errno.EINVAL, f"{entry.name} is {kind}; remove it, or put a copy of the file in its place", entry.path)


def open_to_append(path: str, flags: int) -> int:
    """For `open(..., opener=open_to_append)`: fails where the path is a link."""
    return os.open(path, flags | _NO_LINK, 0o666)


def write(contents: Mapping[Path, bytes | memoryview], suffix: str = ".tmp", previous: Path | None = None) -> None:
    """Writes files of one folder: a reader, also after a crash, finds the old content or the new one, complete.

    Args:
        contents: what to write to which path. All of it is on the disk before the first path is replaced.
        suffix: of the temporary file beside each path. What has that name is removed first, so it must be no one else's.
        previous: where the old file goes, if there is one; for a single path.

    Raises:
        OSError: a file cannot be written. The old ones stay, and no temporary file is left.
    """
    beside = {path: path.with_name(path.name + suffix) for path in contents}
    try:
        for path, content in contents.items():
            beside[path].unlink(missing_ok=True)
            with open(beside[path], "xb") as file:  # x: follows no link, not even one made since the line above
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in beside.items():
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
    except OSError:
        for temporary in beside.values():
            with suppress(OSError):
                temporary.unlink()
        raise
    for folder in {path.parent for path in contents}:
        _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    """Makes the new names in it outlast a power failure, where the system can: its files are on the disk already."""
    with suppress(OSError):  # Windows cannot open a folder, and some file systems cannot flush one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---- Reading


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, opened for reading. Pipes and devices are not opened: reading them may never end, and opening a device may change it.

    Raises:
        OSError: it cannot be read, or is not a file.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # that it is a folder, `open` says
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", os.fspath(path))
    # O_NONBLOCK: should a pipe take the file's place in between, it is not waited for. Windows has neither.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def read(path: str | os.PathLike[str]) -> bytes:
    """The file's content. Raises `OSError` as `open_file`."""
    with open_file(path) as file:
        return file.read()


def read_json(path: str | os.PathLike[str]) -> Any:
    """What the JSON in the file decodes to. Raises `OSError` as `open_file` and `ValueError` as `parse_json`."""
    return parse_json(read(path))


def parse_json(content: bytes | str) -> Any:
    """What this JSON decodes to.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or an object in it has a key twice, of which one would be lost without a word.
    """
    try:
        return json.loads(content, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    decoded = dict(pairs)
    if len(decoded) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it has the key {key[:100]!r} twice")
    return decoded
