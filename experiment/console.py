"""A run's output on a terminal: log lines, a progress bar below them, and estimates of the time that is left."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from experiment import cli, distributed, errors

Item = TypeVar("Item")


class Lines(logging.Formatter):
    """Formats log lines so that they are printable, whatever file names they contain."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(errors.printable, super().format(record).split("\n")))


class Console(logging.Handler):
    """Prints log lines on standard output, above the progress bar. Stops printing if the reader goes away."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # the reader went away (`| head`), or the disk is full; log.txt has all lines
            cli.discard_output()


class Clock:
    """Estimates the time of a step, and of the rest of the work, from the time so far.

    The first step is left out, because it may wait for a compiler.

    Args:
        total: the whole work, in steps.
    """

    def __init__(self, total: float) -> None:
        self._total = total
        self._first: tuple[float, float] | None = None  # (time, work) when the first step was done
        self._last: tuple[float, float] | None = None  # the same, now

    def tick(self, work: float) -> None:
        """To be called after every step, with the work that is done."""
        self._last = time.monotonic(), work
        self._first = self._first or self._last

    @property
    def pace(self) -> float:
        """Seconds per step; 0 if no step was measured yet."""
        if self._first is None or self._last is None or self._last[1] <= self._first[1]:
            return 0.0
        return (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])

    @property
    def left(self) -> float:
        """Seconds for the rest of the work."""
        return self.pace * max(0.0, self._total - self._last[1]) if self._last is not None else 0.0


def reporter(label: str, every: int, batches: int, log: Callable[[str], Any]) -> Callable[[int, object], None]:
    """A function that an evaluation of `batches` batches calls after each, with its number and the meters.

    For every `every`-th batch, it logs a line: `label`, number, meters, seconds per batch, and the time left.
    """
    clock = Clock(batches)

    def report(step: int, meters: object) -> None:
        clock.tick(step + 1)
        if step % every == 0:
            left = f" | {clock.pace:.2f} s/batch, {errors.duration(clock.left)} left to evaluate" if clock.pace else ""
            log(f"{label} {step:03d} {meters}{left}")

    return report


def bar(batches: Iterable[Item], epoch: int, first: int, steps: int, told: Callable[[], str]) -> Iterator[Item]:
    """Yields the batches of `epoch` from step `first` on, of `steps` in all, with a progress bar on standard error if
    that is a terminal.

    Once a second, the bar shows what `told` returns, because that may wait for the device.
    """
    form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
    with tqdm(
        total=steps,
        initial=first,
        desc=f"epoch {epoch}",
        disable=distributed.rank() > 0 or None,
        leave=False,
        dynamic_ncols=True,
        bar_format=form,
    ) as shown:
        last = 0.0
        for batch in batches:
            yield batch
            shown.update()
            if not shown.disable and time.monotonic() - last >= 1:
                last = time.monotonic()
                shown.set_postfix_str(told())
