"""What a run shows on a terminal: a bar for every epoch, and log lines that do not break it. Files never see a control character."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from experiment import cli, distributed, errors

Item = TypeVar("Item")


class Lines(logging.Formatter):
    """Log lines that can be printed, whatever names of files go into them."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(errors.printable, super().format(record).split("\n")))


class Console(logging.Handler):
    """Log lines on standard output, above the bar if there is one, for as long as somebody reads them."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stdout is None:  # was closed from the beginning
            return
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # the reader went away (`| head`), or the disk is full: the log's file has it all
            cli.discard_output()


class Clock:
    """How long the rest of a run will take, by what it has taken so far.

    Args:
        epochs: of the whole run.
        steps: of an epoch.
        done: steps that were behind the run when this process took it up.
    """

    def __init__(self, epochs: int, steps: int, done: int = 0) -> None:
        self._total, self._steps, self._done = epochs * steps, steps, done
        self._started = time.monotonic()

    def left(self, epoch: int, step: int) -> str:
        """hours:minutes:seconds, with `step` steps of `epoch` done."""
        now = epoch * self._steps + step
        pace = (time.monotonic() - self._started) / max(1, now - self._done)
        return tqdm.format_interval(pace * max(0, self._total - now))


def bar(batches: Iterable[Item], epoch: int, first: int, steps: int, meters: Any, clock: Clock) -> Iterator[Item]:
    """The batches, with a bar on standard error if that is a terminal: loss, accuracy, seconds per step, time left for the whole run.

    Args:
        batches: those of `epoch` from step `first` on, of `steps` in all.
        meters: `utils.Meters` of the epoch; read once a second, because reading waits for the device.
    """
    with tqdm(
        total=steps,
        initial=first,
        desc=f"epoch {epoch}",
        disable=None if distributed.rank() == 0 and sys.stderr is not None else True,
        leave=False,
        dynamic_ncols=True,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
    ) as shown:
        if shown.disable:
            yield from batches
            return
        started = told = time.monotonic()
        for step, batch in enumerate(batches, first + 1):
            yield batch
            shown.update()
            if (now := time.monotonic()) - told >= 1 or step == first + 1:
                told = now
                pace = (now - started) / (step - first)
                told_of = meters.brief() if meters.loss.count else ""
                shown.set_postfix_str(f"{told_of}, {pace:.2f} s/step, {clock.left(epoch, step)} left")
