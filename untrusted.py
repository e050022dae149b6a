"""Reading files that may come from elsewhere: whatever stands in their place, reading ends, and runs nothing."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from typing import Any, BinaryIO


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
