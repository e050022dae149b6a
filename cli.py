"""What the command lines share: a user's mistake ends in one line on standard error and exit status 2, without a traceback."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Something that the user can put right. The message says what is wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose errors are one line (the usage is a `--help` away) and whose help shows the defaults."""

    def __init__(self, **kwargs) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the arguments)\n")


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a `UserError` becomes one line on standard error and exit status 2."""
    try:
        main()
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
        sys.exit(2)


def _number(kind: type, accepted: Callable[[float], bool], description: str) -> Callable[[str], float]:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {description}") from None
        if not accepted(value):  # also refuses nan: every comparison with it is false
            raise argparse.ArgumentTypeError(f"{text} is not {description}")
        return value

    return parse


positive_int = _number(int, lambda n: n >= 1, "a whole number of at least 1")
non_negative_int = _number(int, lambda n: n >= 0, "a whole number of at least 0")
cell_count = _number(int, lambda n: n >= 3, "a number of cells of at least 3 (reduction cells stand at 1/3 and 2/3 of the depth)")
device_number = _number(int, lambda n: n >= -1, "a GPU's number, or -1 for the CPU")
image_size = _number(int, lambda n: n >= 8 and n % 8 == 0, "a multiple of 8")
positive_float = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")
non_negative_float = _number(float, lambda x: 0 <= x < float("inf"), "a number of at least 0")
probability = _number(float, lambda x: 0 <= x < 1, "a number from 0 up to, but not including, 1")
proportion = _number(float, lambda x: 0 < x < 1, "a number between 0 and 1")
