"""A run's output on a terminal: log lines, a progress bar below them, and estimates of the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from experiment import cli, distributed, errors

Item = TypeVar("Item")


def show(text: str) -> None:
    """Prints a line on standard output, above the progress bar. Stops printing if the reader goes away."""
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except OSError:  # the reader went away (`| head`), or the disk is full; log.txt has all lines
        cli.discard_output()


class Clock:
    """Estimates the time of a step, and of the rest of the `total` work in steps, from the time so far.

    The first step is left out, because it may wait for a compiler.
    """

    def __init__(self, total: float) -> None:
        self._total = total
        self._ticks: list[tuple[float, float]] = []  # (time, work) when the first step was done, and now

    def tick(self, work: float) -> None:
        """To be called after every step, with the work that is done."""
        self._ticks[1:] = [(time.monotonic(), work)]

    @property
    def pace(self) -> float:
        """Seconds per step; 0 if no step was measured yet."""
        if len(self._ticks) < 2:
            return 0.0
        (began, before), (now, done) = self._ticks
        return (now - began) / (done - before)

    @property
    def left(self) -> float:
        """Seconds for the rest of the work."""
        return self.pace * max(0.0, self._total - self._ticks[-1][1]) if self._ticks else 0.0


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
    """Yields the batches of `epoch` from step `first` on, of `steps` in all, with a bar on standard error if that is a
    terminal. Once a second, the bar shows what `told` returns, which may wait for the device.
    """
    form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
    hidden = True if distributed.rank() > 0 else None  # None: if it is no terminal
    with tqdm(
        desc=f"epoch {epoch}",
        total=steps,
        initial=first,
        disable=hidden,
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
