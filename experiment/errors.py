"""What users are told: errors that they can put right, warnings, and text from files in a form that a terminal can show."""

from __future__ import annotations

import os
import sys
from typing import Any


def printable(text: str) -> str:
    """Text for a terminal, which obeys control characters: those, and all others that are not printed, as Python writes them."""
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)


class UserError(ValueError):
    """Something that the user can put right. The message says what is wrong and what to do; it becomes one line that can be printed."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


def tell(message: str) -> None:
    """One line on standard error; from the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(message), file=sys.stderr)


def warn(message: str) -> None:
    """`tell` of something that is not as it should be."""
    tell(f"warning: {message}")


def shown(value: Any, limit: int = 120) -> str:
    """A stranger's value in a message: its `repr`, shortened; its type, where Python cannot write it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists in lists in lists
        text = f"a {type(value).__name__}"
    return shorten(text, limit)


def shorten(text: str, limit: int = 120) -> str:
    """A stranger's text in a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
