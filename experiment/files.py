"""Reads JSON, and writes files completely or not at all, and never through a link."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from experiment.errors import UserError


def parse_json(content: bytes | str, kind: Any = Any) -> Any:
    """The decoded JSON. Raises `ValueError` if it is none, or not of the type `kind`."""
    try:
        return msgspec.convert(json.loads(content), kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from None


def read_json(path: str | Path, kind: Any = Any) -> Any:
    """The decoded JSON in a file. `UserError` if it cannot be read or is not of the type `kind`."""
    try:
        return parse_json(Path(path).read_bytes(), kind)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged or was edited: {error}") from None


def write(contents: Mapping[Path, bytes | memoryview], suffix: str = ".tmp", previous: Path | None = None) -> None:
    """Writes files. A reader finds either the old or the new content, complete, even after a crash.

    All contents are on the disk before the first path is replaced. If a file cannot be written (`OSError`), the old
    ones stay, and no temporary file is left.

    Args:
        suffix: added to each path for its temporary file. An existing file of that name is removed.
        previous: where the old file is moved to, if there is one; for a single path only.
    """
    beside = {path: path.with_name(path.name + suffix) for path in contents}
    try:
        for path, content in contents.items():
            beside[path].unlink(missing_ok=True)
            with open(beside[path], "xb") as file:  # x: follows no link
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
        with suppress(OSError):  # Windows cannot open a folder, and some file systems cannot flush one
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # of the new names, so that they survive a power failure
            finally:
                os.close(descriptor)
