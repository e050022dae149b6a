"""Reading and writing files in folders that may be untrusted.

Reading never blocks and never runs code, whatever has been put in a file's place. Writing never follows a link, and a file is written
completely or not changed.
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

from experiment import errors

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows lacks it


def check_folder(folder: str | Path) -> None:
    """Raises `OSError` if `folder` cannot be read, or contains something other than files and folders. The message names the first one.

    Links could redirect reading and writing to other places, and reading a pipe or a device may never end.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise OSError(errno.EINVAL, f"{entry.name} is {kind}; remove it, or put a copy of the file in its place", entry.path)


def open_to_append(path: str, flags: int) -> int:
    """For `open(..., opener=open_to_append)`: fails if the path is a link."""
    return os.open(path, flags | _NO_LINK, 0o666)


def write(contents: Mapping[Path, bytes | memoryview], suffix: str = ".tmp", previous: Path | None = None) -> None:
    """Writes files. A reader finds either the old or the new content, complete, even after a crash.

    Args:
        contents: {path: content}. All contents are on the disk before the first path is replaced.
        suffix: added to each path for its temporary file. An existing file of that name is removed.
        previous: where the old file is moved to, if there is one; for a single path only.

    Raises:
        OSError: a file cannot be written. The old ones stay, and no temporary file is left.
    """
    beside = {path: path.with_name(path.name + suffix) for path in contents}
    try:
        for path, content in contents.items():
            beside[path].unlink(missing_ok=True)
            with open(beside[path], "xb") as file:  # x: does not follow a link, even one created after the line above
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


def keep(cache: Path, content: bytes | memoryview, otherwise: str) -> None:
    """Writes a file that only saves work. If it cannot be written, prints what follows from that, `otherwise`."""
    try:
        write({cache: content}, f".{os.getpid()}.tmp")  # other processes may write it too
    except OSError:
        errors.tell(f"cannot write {cache}: {otherwise}")


def _flush_folder(folder: Path) -> None:
    """Flushes the new names in the folder to disk, if the system can, so that they survive a power failure."""
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
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # for a folder, `open` raises its own error
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", os.fspath(path))
    # O_NONBLOCK: does not wait if a pipe has replaced the file since. Windows has neither.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def read(path: str | os.PathLike[str]) -> bytes:
    """The content of the file. Raises `OSError` like `open_file`."""
    with open_file(path) as file:
        return file.read()


def read_json(path: str | os.PathLike[str]) -> Any:
    """The decoded JSON in the file. Raises `OSError` like `open_file` and `ValueError` like `parse_json`."""
    return parse_json(read(path))


def parse_json(content: bytes | str) -> Any:
    """The decoded JSON.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or an object in it has a key twice (the decoder would silently drop one).
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
