"""TensorBoard's events in a run's folder: tensorboard --logdir RUN_DIR"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from experiment.run import Run

Draw = Callable[[Any, str], dict[str, bytes]]  # (architecture, caption) -> {name: PNG}


class Board:
    """Writes TensorBoard's events. If that fails, for example on a full disk, the run goes on without."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._drawn: Any = None
        self._draws = True
        self._writer: SummaryWriter | None = None
        with self._or_without():  # TensorBoard drops what an interrupted epoch has written
            self._writer = SummaryWriter(str(run.folder), purge_step=run.progress.epoch + 1)
        run.closing.callback(self._close)

    def record(self, metrics: dict[str, Any], architecture: Any = None, draw: Draw | None = None) -> None:
        """Writes the numbers of the current epoch, and pictures of the architecture if it has changed.

        If drawing fails, there are no more pictures.
        """
        if self._writer is None:
            return
        epoch = self._run.progress.epoch + 1
        with self._or_without():
            for tag, value in _scalars(metrics).items():
                self._writer.add_scalar(tag, value, epoch)
            if draw is not None and architecture != self._drawn and self._draws:
                self._drawn = architecture
                for name, picture in self._pictures(architecture, draw, epoch).items():
                    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
                    self._writer.add_image(f"architecture/{name}", pixels, epoch, dataformats="HWC")
            self._writer.flush()

    def _pictures(self, architecture: Any, draw: Draw, epoch: int) -> dict[str, bytes]:
        try:
            return draw(architecture, f"{self._run.folder.name}, epoch {epoch}")
        except Exception as error:
            self._run.log("cannot draw the architecture (%r): going on without pictures", error)
            self._draws = False
            return {}

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of almost any type; none may end a run
            self._writer = None
            reason = getattr(error, "strerror", None) or repr(error)
            self._run.log("cannot write for TensorBoard (%s): going on without", reason)

    def _close(self) -> None:
        with self._or_without():
            if self._writer is not None:
                self._writer.close()


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """{tag: number}. The part of a tag before the slash is the group of charts."""
    scalars = {_tag(key): value for key, value in metrics.items() if isinstance(value, int | float)}
    # TensorBoard sorts groups by name: these many groups come after all others.
    for edge, weights in metrics.get("alphas", {}).items():
        scalars |= {f"softmaxed alphas {edge}/{operation}": weight for operation, weight in weights.items()}
    return scalars | {f"betas/{edge}": weight for edge, weight in metrics.get("betas", {}).items()}


def _tag(key: str) -> str:
    part, _, rest = key.partition("_")
    if part in ("train", "valid", "test"):
        return f"{rest}/{part}"  # all losses in one group
    return f"{part}/{rest}" if part in ("entropy", "skips", "true") and rest else key
