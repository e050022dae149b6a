"""Messages for users: errors that they can correct, warnings, and untrusted text in a printable form."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any


def printable(text: str) -> str:
    """Text that is safe to print on a terminal: control and other non-printable characters are escaped as in Python."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


class UserError(ValueError):
    """An error that the user can correct: what is wrong and what to do, in one printable line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


def tell(message: str) -> None:
    """Prints one line on standard error. With several processes, only the first one prints."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(message), file=sys.stderr)


def warn(message: str) -> None:
    """Prints a warning on standard error."""
    tell(f"warning: {message}")


def duration(seconds: float) -> str:
    """A duration as text, rounded: `41 s`, `12 min`, `3 h 20 min`, `2 days 4 h`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    days, hours = divmod(hours, 24)
    if not days:
        return f"{hours} h {minutes} min"
    return f"{days} day{'s' * (days > 1)} {hours} h"


def first(items: Sequence[str]) -> str:
    """The first three of `items` for a message."""
    return "; ".join(items[:3]) + ("; ..." if len(items) > 3 else "")


def shown(value: Any, limit: int = 120) -> str:
    """An untrusted value for a message: its shortened `repr`, or its type if `repr` fails."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; deeply nested lists
        text = f"a {type(value).__name__}"
    return shorten(text, limit)


def shorten(text: str, limit: int = 120) -> str:
    """Untrusted text for a message, shortened to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
