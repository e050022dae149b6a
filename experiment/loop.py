"""The epochs of a run: one loop over batches, with meters, log, checkpoints, time and memory.

All stages train by it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from experiment import console, distributed, errors
from experiment.errors import UserError
from experiment.run import Run
from experiment.tensorboard import Board, Draw

EVALUATION = 1 / 3  # time to evaluate a batch, in steps: a forward pass without a backward pass
FEW = 5  # steps, after the first, from which the time of the run is estimated
MEASURED = ("seconds", "seconds_per_step", "memory_mb")  # keys that differ between two runs with the same seed

Step = Callable[..., tuple[Tensor, ...]]  # the first is the loss


def length(args: Any, batches: int) -> tuple[int, int, int | None]:
    """(epochs, steps of an epoch, batches to stop an epoch after or None), where an epoch has this many batches."""
    return (1, 2, 2) if args.fast_dev_run else (args.epochs, batches, None)


class Loop:
    """The rest of the epochs of a run.

    loop = Loop(run, len(train_batches), len(valid_batches))  # after run.restore
    for epoch in loop.epochs():
        loop.train(model, train_batches, meters.metered(step), meters, lr)
        measured = utils.evaluate(model, loop.limited(valid_batches), criterion, loop.reporter("valid"))
        loop.complete({"train_loss": ..., "valid_loss": ...})
    """

    def __init__(self, run: Run, steps: int, evaluated: int) -> None:
        self.run = run
        self._whole = run.args.epochs, steps, evaluated
        self._epochs, self._steps, self._limit = length(run.args, steps)
        self._evaluated = min(evaluated, self._limit or evaluated)
        self._clock = console.Clock(self._work(self._epochs, 0))
        self._taken = 0  # steps of this process
        self._seconds_per_step = 0.0
        self._board = Board(run) if distributed.rank() == 0 else None

    def epochs(self) -> Iterator[int]:
        """The numbers of the epochs that are not complete."""
        while self.run.progress.epoch < self._epochs:
            yield self.run.progress.epoch
        if self.run.args.fast_dev_run:
            self.run.log("the whole run: %s", self._expected())

    def limited(self, batches: Iterable[Any], done: int = 0) -> Iterator[Any]:
        """Yields `batches`, of which `done` were taken before; with `--fast_dev_run` only the first ones."""
        return islice(batches, None if self._limit is None else max(0, self._limit - done))

    def train(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Any, ...]],
        step: Step,
        meters: Any,
        lr: float,
        flags: str = "--learning_rate or --grad_clip",
    ) -> None:
        """Trains for one epoch, or for the rest of it, and saves a checkpoint.

        Args:
            batches: the step's arguments, from the run's current step on.
            meters: what `step` has measured, for the log.
            lr, flags: the learning rate, and what lowers it or the gradient, for messages.

        Raises:
            UserError: the loss or the gradient is not finite. The last checkpoint is from before.
        """
        run, clock = self.run, self._clock
        epoch, first = run.progress.epoch, run.progress.step
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        finite = FiniteCheck(epoch, lr, flags)
        run.before_saving = finite.check
        model.train()
        timed, started = console.Clock(self._steps), time.monotonic()  # of this epoch

        def told() -> str:
            return f"{timed.pace or clock.pace:.2f} s/step, {errors.duration(clock.left)} left" if clock.pace else ""

        rest = self.limited(batches, first)
        shown = console.bar(rest, epoch, first, self._steps, lambda: f"{meters.brief()}, {told()}")
        for number, batch in enumerate(shown, first):
            loss, norm, *_ = step(*batch)
            finite.note(loss, norm, number)
            self._taken += 1
            if self._taken in (1, 1 + FEW):
                self._synchronize()
            timed.tick(number + 1)
            clock.tick(self._work(epoch, number + 1))
            if self._taken == 1 + FEW:
                run.log("pace: %s", self._expected())
            if number % run.args.report_freq == 0:
                finite.check()
                run.log("train %03d %s%s", number, meters, f" | {told()}" if clock.pace else "")
            run.complete_step()
        finite.check()
        self._synchronize()
        self._seconds_per_step = timed.pace or clock.pace or time.monotonic() - started
        run.save()

    def reporter(self, label: str, batches: int | None = None) -> Callable[[int, object], None]:
        """What an evaluation calls after every batch: it logs lines, and stops the run after a signal."""
        count = self._evaluated if batches is None else min(batches, self._limit or batches)
        return self.run.reporter(label, self.run.args.report_freq, count)

    def complete(self, metrics: dict[str, Any], architecture: Any = None, draw: Draw | None = None) -> None:
        """Records the epoch's metrics, with time and memory, and saves a checkpoint. `draw`: see `Board.record`."""
        metrics = {**metrics, "seconds_per_step": self._seconds_per_step, **self._memory()}
        if self._board is not None:
            self._board.record(metrics, architecture, draw)
        self.run.complete_epoch(metrics)

    def _work(self, epochs: int, steps: int) -> float:
        """The work of so many epochs and steps, in steps."""
        return epochs * (self._steps + self._evaluated * EVALUATION) + steps

    def _expected(self) -> str:
        """The time of the whole run, and its memory."""
        epochs, steps, evaluated = self._whole
        pace = self._clock.pace or self._seconds_per_step
        whole = errors.duration(pace * epochs * (steps + evaluated * EVALUATION))
        memory = "".join(f"; peak memory {megabytes:,.0f} MB" for megabytes in self._memory().values())
        return f"{pace:.2f} s/step, about {whole} for all {epochs} epochs{memory}"

    def _memory(self) -> dict[str, float]:
        """`memory_mb`, the peak memory of the GPU or else of the process. Empty on Windows."""
        if self.run.device.type == "cuda":
            return {"memory_mb": torch.cuda.max_memory_allocated(self.run.device) / 1e6}
        if sys.platform == "win32":
            return {}
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes
        return {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}

    def _synchronize(self) -> None:
        if self.run.device.type == "cuda":
            torch.cuda.synchronize(self.run.device)  # kernels run asynchronously


class FiniteCheck:
    """Ends a run that diverges, while its last checkpoint is a good one.

    The steps of an epoch are noted on their device; only `check` waits for it.
    """

    def __init__(self, epoch: int, lr: float, flags: str) -> None:
        self._epoch, self._lr, self._flags = epoch, lr, flags
        # Loss, gradient's norm and number of the latest step, or of the first that was not finite.
        self._noted: Tensor | None = None

    def note(self, loss: Tensor, gradient_norm: Tensor, step: int) -> None:
        """Takes note of a step's loss and of its gradient's norm."""
        number = torch.full_like(loss, step, dtype=torch.float64)
        now = torch.stack([loss.detach().double(), gradient_norm.double(), number])
        self._noted = now if self._noted is None else torch.where(self._noted.sum().isfinite(), now, self._noted)

    def check(self) -> None:
        """Raises `UserError` if the loss or the gradient's norm of a step was infinite or not a number."""
        if self._noted is None or self._noted.sum().isfinite():
            return
        loss, norm, step = self._noted.tolist()
        raise UserError(
            f"the loss is {loss:g} and its gradient's norm {norm:g} at epoch {self._epoch}, step {step:.0f}, "
            f"learning rate {self._lr:g}: stopped, with the last checkpoint from before. "
            f"What usually helps: a lower {self._flags}, a larger --batch_size"
        )
