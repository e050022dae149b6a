"""What a run shows on a terminal: a progress bar for every epoch, and log lines above it. Files contain no control characters."""

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
        if sys.stdout is None:  # it was closed before the start
            return
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # the reader went away (`| head`), or the disk is full; log.txt has all lines
            cli.discard_output()


class Clock:
    """Estimates the time of a step and of the rest of a run from the time so far.

    Args:
        epochs: epochs of the whole run.
        steps: steps of an epoch.
        done: steps that were done before this process started.
        evaluation: the time of an epoch's evaluation, in steps.
    """

    def __init__(self, epochs: int, steps: int, done: int = 0, evaluation: float = 0.0) -> None:
        self._steps, self._evaluation = steps, evaluation
        self._total = self._work(epochs, 0)
        self._pace = 0.0
        epoch, step = divmod(done, steps)
        self._run_mark = time.monotonic(), self._work(epoch, step)
        self._epoch_mark = time.monotonic(), step

    def begin_epoch(self, step: int) -> None:
        """To be called before the steps of an epoch, of which `step` are done already."""
        self._epoch_mark = time.monotonic(), step

    def forget(self, epoch: int, step: int) -> None:
        """Ignores the time so far, with `step` steps of `epoch` done. The first step is slower than others, and may wait for a compiler."""
        self._run_mark = time.monotonic(), self._work(epoch, step)
        self.begin_epoch(step)

    def pace(self, step: int) -> float:
        """Seconds per step, with `step` steps of the epoch done; 0 if no step was measured yet."""
        begun, first = self._epoch_mark
        if step > first:
            self._pace = (time.monotonic() - begun) / (step - first)
        return self._pace

    def left(self, epoch: int, step: int) -> float:
        """Seconds left for the whole run, with `step` steps of `epoch` done."""
        begun, first = self._run_mark
        now = self._work(epoch, step)
        speed = (time.monotonic() - begun) / (now - first) if now > first else self.pace(step)
        return speed * max(0.0, self._total - now)

    def told(self, epoch: int, step: int, unit: str = "step") -> str:
        """`0.52 s/step, 12 min left` with `step` steps of `epoch` done; empty if no step was measured yet."""
        pace = self.pace(step)
        return f"{pace:.2f} s/{unit}, {errors.duration(self.left(epoch, step))} left" if pace else ""

    def _work(self, epoch: int, step: int) -> float:
        """The work until then, in steps."""
        return epoch * (self._steps + self._evaluation) + step


def reporter(label: str, every: int, batches: int, log: Callable[[str], Any]) -> Callable[[int, object], None]:
    """Returns a function that an evaluation of `batches` batches calls after each, with its number and the meters.

    For every `every`-th batch, it logs a line: `label`, number, meters, seconds per batch, and the time left. The times are without the
    first batch, which is slower than the others: it may start processes or wait for a compiler.
    """
    clock = Clock(epochs=1, steps=batches)

    def report(step: int, meters: object) -> None:
        done = step + 1
        if done == 1:
            clock.forget(0, 1)
        if step % every == 0:
            told = clock.told(0, done, "batch")
            log(f"{label} {step:03d} {meters}" + (f" | {told} to evaluate" if told else ""))

    return report


def bar(batches: Iterable[Item], epoch: int, first: int, steps: int, meters: Any, clock: Clock) -> Iterator[Item]:
    """Yields the batches, with a progress bar on standard error if that is a terminal: loss, accuracy, seconds per step, time left.

    Args:
        batches: the batches of `epoch` from step `first` on; the epoch has `steps` of them.
        meters: `utils.Meters` of the epoch. They are read once a second, because reading waits for the device.
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
        told = time.monotonic()
        for step, batch in enumerate(batches, first + 1):
            yield batch
            shown.update()
            if (now := time.monotonic()) - told >= 1 or step == first + 1:
                told = now
                texts = (meters.brief() if meters.loss.count else "", clock.told(epoch, step))
                shown.set_postfix_str(", ".join(filter(None, texts)))
