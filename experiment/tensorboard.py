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


class Board:
    """Writes TensorBoard's events. If that fails, for example on a full disk, the run goes on without.

    Args:
        run: the run; if it is resumed, after `restore`.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._drawn: Any = None
        self._draws = True
        self._writer: SummaryWriter | None = None
        with self._or_without():  # TensorBoard drops what an interrupted epoch has written
            self._writer = SummaryWriter(str(run.folder), purge_step=run.progress.epoch + 1)
        run.closing.callback(self._close)

    def record(
        self,
        metrics: dict[str, Any],
        architecture: Any = None,
        draw: Callable[[Any, str], dict[str, bytes]] | None = None,
    ) -> None:
        """Writes the numbers of the current epoch, and pictures of the architecture if it has changed.

        `draw(architecture, caption)` returns the pictures, {name: PNG}. If drawing fails, there are no more pictures.
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
        try:
            yield
        except Exception as error:  # of almost any type; none may end a run
            self._writer = None
            self._run.log(
                "cannot write for TensorBoard (%s): going on without", getattr(error, "strerror", None) or repr(error)
            )

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

    def _pictures(
        self, architecture: Any, draw: Callable[[Any, str], dict[str, bytes]], epoch: int
    ) -> dict[str, bytes]:
        try:
            return draw(architecture, f"{self._run.folder.name}, epoch {epoch}")
        except Exception as error:
            self._run.log("cannot draw the architecture (%r): going on without pictures", error)
        self._draws = False
        return {}

    def _show(self, writer: SummaryWriter, pictures: dict[str, bytes], epoch: int) -> None:
        for name, picture in pictures.items():
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            writer.add_image(f"architecture/{name}", pixels, epoch, dataformats="HWC")


def _tag(key: str) -> str:
    """The tag of a number in TensorBoard. The part before the slash is the group of charts."""
    part, _, rest = key.partition("_")
    if part in ("train", "valid", "test"):
        return f"{rest}/{part}"  # all losses in one group
    return f"{part}/{rest}" if part in ("entropy", "skips", "true") and rest else key
