"""Monitoring of a run: time and memory, TensorBoard, and the progress bar.

tensorboard --logdir RUN_DIR
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from experiment import distributed, errors, progress
from experiment.errors import UserError
from experiment.run import Run

EVALUATION = 1 / 3  # time to evaluate a batch, in steps: a forward pass without a backward pass
FEW = 5  # steps, after the first, from which the time of the run is estimated
MEASURED = ("seconds", "seconds_per_step", "memory_mb")  # keys that differ between two runs with the same seed


class Monitor:
    """Writes TensorBoard's events into the run's folder, and shows the progress bar. With several processes, only the first one does.

    Args:
        run: the run; if it is resumed, after `restore`.
        epochs: epochs of the whole run.
        steps: steps of an epoch.
        evaluated: batches that are evaluated after each epoch.
    """

    def __init__(self, run: Run, epochs: int, steps: int, evaluated: int) -> None:
        self._run = run
        self._length = epochs, steps, evaluated
        done = run.progress.epoch * steps + run.progress.step
        self._clock = progress.Clock(epochs, steps, done, evaluated * EVALUATION)
        self._taken = 0  # steps of this process
        self._seconds_per_step = 0.0
        self._drawn: Any = None
        self._draws = True
        self._writer: SummaryWriter | None = None
        if distributed.rank() == 0:
            with self._or_without():  # TensorBoard drops what an interrupted epoch has written
                self._writer = SummaryWriter(str(run.folder), purge_step=run.progress.epoch + 1)
            run.closing.callback(self._close)

    def batches(self, batches: Iterable[Any], meters: Any) -> Iterator[Any]:
        """Yields `batches`, the rest of the current epoch, with a progress bar on a terminal, and measures time and memory."""
        device = self._run.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        epoch, first = self._run.progress.epoch, self._run.progress.step
        started, count = time.perf_counter(), 0
        self._clock.begin_epoch(first)
        for count, batch in enumerate(progress.bar(batches, epoch, first, self._length[1], meters, self._clock), 1):
            yield batch
            self._taken += 1
            if self._taken in (1, 1 + FEW):
                self._synchronize()
            if self._taken == 1:
                self._clock.forget(epoch, first + count)
            elif self._taken == 1 + FEW:
                self._run.log("pace: %s", self.expected(*self._length))
        self._synchronize()
        self._seconds_per_step = self._clock.pace(first + count) or time.perf_counter() - started

    def _synchronize(self) -> None:
        if self._run.device.type == "cuda":
            torch.cuda.synchronize(self._run.device)  # kernels run asynchronously

    def pace(self) -> str:
        """Text for the log: seconds per step and the time left. To be called after a step, before the run counts it.

        Empty in the first step of this process, which may wait for a compiler.
        """
        told = self._clock.told(self._run.progress.epoch, self._run.progress.step + 1) if self._taken else ""
        return f" | {told}" if told else ""

    def expected(self, epochs: int, steps: int, evaluated: int) -> str:
        """Text for the log: the expected time of a run of this length, by the latest steps, and the peak memory so far."""
        pace = self._clock.pace(self._run.progress.step) or self._seconds_per_step
        whole = errors.duration(pace * epochs * (steps + evaluated * EVALUATION))
        memory = "".join(f"; peak memory {megabytes:,.0f} MB" for megabytes in self._memory().values())
        return f"{pace:.2f} s/step, about {whole} for all {epochs} epochs{memory}"

    def measured(self) -> dict[str, float]:
        """`seconds_per_step` of the last epoch's training, and `memory_mb`, the peak memory of the GPU or else of the process.

        Without this process's first step, unless the epoch has no other.
        """
        return {"seconds_per_step": self._seconds_per_step} | self._memory()

    def _memory(self) -> dict[str, float]:
        measured = {}
        if self._run.device.type == "cuda":
            measured["memory_mb"] = torch.cuda.max_memory_allocated(self._run.device) / 1e6
        elif sys.platform != "win32":
            import resource

            unit = 1 if sys.platform == "darwin" else 1024  # bytes
            measured["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        return measured

    def record(self, metrics: dict[str, Any], architecture: Any = None, draw: Callable[[Any, str], dict[str, bytes]] | None = None) -> None:
        """Writes the current epoch to TensorBoard: its numbers, and pictures of the architecture if it has changed.

        `draw(architecture, caption)` returns the pictures, {name: PNG}. If TensorBoard fails, for example on a full disk, the recording
        ends. If drawing fails, there are no more pictures. The run continues in both cases.
        """
        if self._writer is None:
            return
        epoch = self._run.progress.epoch + 1
        with self._or_without():
            self._record(self._writer, metrics, epoch)
            if draw is not None and architecture != self._drawn and self._draws:
                self._drawn = architecture
                self._show(self._writer, self._pictures(architecture, draw, epoch), epoch)
            self._writer.flush()

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        """Ends the recording if TensorBoard fails. It may raise almost anything, and this must not end a run."""
        try:
            yield
        except Exception as error:
            self._writer = None
            self._run.log("cannot write for TensorBoard (%s): going on without", getattr(error, "strerror", None) or repr(error))

    def _close(self) -> None:
        with self._or_without():
            if self._writer is not None:
                self._writer.close()

    def _record(self, writer: SummaryWriter, metrics: dict[str, Any], epoch: int) -> None:
        for key, value in metrics.items():
            if isinstance(value, int | float):
                writer.add_scalar(_tag(key), value, epoch)
        for edge, weights in metrics.get("alphas", {}).items():
            for operation, weight in weights.items():
                # TensorBoard sorts groups by name: these many groups come after all others.
                writer.add_scalar(f"softmaxed alphas {edge}/{operation}", weight, epoch)

        for edge, weight in metrics.get("betas", {}).items():
            writer.add_scalar(f"betas/{edge}", weight, epoch)

    def _pictures(self, architecture: Any, draw: Callable[[Any, str], dict[str, bytes]], epoch: int) -> dict[str, bytes]:
        try:
            return draw(architecture, f"{self._run.folder.name}, epoch {epoch}")
        except UserError:  # no program for drawing is installed; the search reports this at its end
            pass
        except Exception as error:
            self._run.log("cannot draw the architecture (%r): going on without pictures", error)
        self._draws = False
        return {}

    def _show(self, writer: SummaryWriter, pictures: dict[str, bytes], epoch: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, picture in pictures.items():
            width, height = struct.unpack(">II", picture[16:24])
            image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=picture)
            summary = Summary(value=[Summary.Value(tag=f"architecture/{name}", image=image)])
            writer.file_writer.add_summary(summary, epoch)  # type: ignore[attr-defined]  # None to mypy, its value at first


def _tag(key: str) -> str:
    """The tag of a number in TensorBoard. The part before the slash is the group of charts."""
    part, _, rest = key.partition("_")
    if part in ("train", "valid", "test"):
        return f"{rest}/{part}"  # all losses in one group
    return f"{part}/{rest}" if part in ("entropy", "skips") and rest else key
