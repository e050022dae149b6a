"""Watching a run: what an epoch took, TensorBoard, and the progress bar.

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

from experiment import distributed, progress
from experiment.errors import UserError
from experiment.run import Run

MEASURED = ("seconds", "seconds_per_step", "memory_mb")  # what differs between two runs of one seed


class Monitor:
    """TensorBoard's events in the run's folder, from the first epoch on, and the progress bar; of several processes, the first one's.

    Args:
        run: the run, restored if it goes on.
        epochs: of the whole run.
        steps: of an epoch.
    """

    def __init__(self, run: Run, epochs: int, steps: int) -> None:
        self._run = run
        self._steps = steps
        self._clock = progress.Clock(epochs, steps, run.progress.epoch * steps + run.progress.step)
        self._seconds_per_step = 0.0
        self._drawn: Any = None
        self._draws = True
        self._writer: SummaryWriter | None = None
        if distributed.rank() == 0:
            with self._or_without():  # what an interrupted epoch left behind, TensorBoard drops
                self._writer = SummaryWriter(str(run.folder), purge_step=run.progress.epoch + 1)
            run.closing.callback(self._close)

    def batches(self, batches: Iterable[Any], meters: Any) -> Iterator[Any]:
        """The batches of the epoch that is running, from the run's step on, with a bar on a terminal, and measured."""
        device = self._run.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        epoch, first = self._run.progress.epoch, self._run.progress.step
        started, count = time.perf_counter(), 0
        for count, batch in enumerate(progress.bar(batches, epoch, first, self._steps, meters, self._clock), 1):  # noqa: B007
            yield batch
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # it may be behind
        self._seconds_per_step = (time.perf_counter() - started) / max(1, count)

    def measured(self) -> dict[str, float]:
        """What the last epoch's training took: `seconds_per_step`, and `memory_mb`, the peak, of the GPU or else of the process."""
        measured = {"seconds_per_step": self._seconds_per_step}
        if self._run.device.type == "cuda":
            measured["memory_mb"] = torch.cuda.max_memory_allocated(self._run.device) / 1e6
        elif sys.platform != "win32":
            import resource

            unit = 1 if sys.platform == "darwin" else 1024  # bytes
            measured["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        return measured

    def record(self, metrics: dict[str, Any], architecture: Any = None, draw: Callable[[Any, str], dict[str, bytes]] | None = None) -> None:
        """Gives the epoch that is running to TensorBoard: its numbers, and pictures of the architecture whenever that is a new one.

        `draw(architecture, caption)` gives the pictures, {name: PNG}.

        A failure of TensorBoard, such as a full disk, ends the recording; one of a picture, the pictures; neither ends the run.
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
        """Ends the recording where TensorBoard fails: what it raises is of many kinds, and no reason to lose a run."""
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
                writer.add_scalar(f"alphas {edge}/{operation}", weight, epoch)

    def _pictures(self, architecture: Any, draw: Callable[[Any, str], dict[str, bytes]], epoch: int) -> dict[str, bytes]:
        try:
            return draw(architecture, f"{self._run.folder.name}, epoch {epoch}")
        except UserError:  # nothing is installed that draws; the end of the search says so
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
    """TensorBoard's name for a number; what stands before the slash is the group of charts."""
    part, _, rest = key.partition("_")
    if part in ("train", "valid", "test"):
        return f"{rest}/{part}"  # all losses in one group
    return f"{part}/{rest}" if part in ("entropy", "skips") and rest else key
