"""Which weights of a training are its result, on which images they are measured, and the files about them.

Without held-out images, every epoch is measured on the test images, and the last one is the result. With them, the best
epoch is chosen on them, its weights are in best.pt, and the test images are measured once, at the end.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import nn

import data
import utils
from architectures import Architecture, trained
from experiment import cli, distributed, metrics
from experiment.errors import UserError
from experiment.loop import Loop, length
from experiment.weights import load_weights
from image_files import interleave


def hold_out(images: data.ImageData, portion: float) -> tuple[data.ImageData, data.ImageData]:
    """(`images` without a portion of its training images, the same with this portion as its test images). For 0, both
    `images`.

    The portion is stratified by class, whatever the seed. With a `valid_folder`, its images are held out instead.

    Raises:
        UserError: the portion is less than one image, or no image is left.
    """
    if images.valid:
        order, count = np.arange(len(images.train))[::-1], images.valid
    elif portion:
        order, count = interleave(images.train.labels.cpu().numpy()), round(portion * len(images.train))
    else:
        return images, images
    if not 0 < count < len(order):
        raise UserError(
            f"--valid_portion {portion} of {len(order)} training images holds out {count}: hold out at least one "
            f"image, and leave one"
        )
    held_out, rest = np.sort(order[:count]), np.sort(order[count:])
    note = f"{count} of {len(order)} training images are held out, to choose the best epoch on"
    notes = (*images.notes, note, *data.one_sided(images, held_out, rest))
    left = replace(images, train=images.train.part(rest), valid=0, notes=notes)
    return left, replace(left, test=images.train.part(held_out))


class Selection:
    """Chooses the result of the training with these arguments, and writes the files about it."""

    def __init__(
        self,
        args: argparse.Namespace,
        images: data.ImageData,
        architecture: Architecture,
        test_batches: data.Batches,
        loop: Loop,
    ) -> None:
        self.args, self.images, self.architecture, self.test_batches = args, images, architecture, test_batches
        self.loop, self.run = loop, loop.run
        self.held_out = args.valid_folder or args.valid_portion > 0
        self.part = "valid" if self.held_out else "test"
        self.epochs, *_ = length(args, len(test_batches))

    def of_epoch(self, model: nn.Module, measured: utils.Meters) -> dict[str, Any]:
        """The epoch's entries in metrics.jsonl; writes weights.pt, best.pt and network.json."""
        run, accuracy = self.run, measured.top1.avg
        last = run.progress.epoch == self.epochs - 1
        run.log("valid_acc %f (%s)", accuracy, "held-out images" if self.held_out else "test set")
        if self.images.num_classes > 5:
            run.log("valid_top5 %f", measured.top5.avg)
        row = self._entries(self.part, measured)
        run.write_weights(model)
        best = all(accuracy > before[f"{self.part}_acc"] for before in run.progress.metrics)
        if best and (self.held_out or self.args.keep == "best"):
            run.write_weights(model, "best.pt")
        if last and self.held_out:
            measured = self._measure_best(model)
            row |= self._entries("test", measured)
        if last:
            row |= metrics.of_classes(measured.confusion.tolist(), self.images.classes)
        if last or best or not self.held_out:
            self._describe(measured, last)
        return row

    def _entries(self, part: str, measured: utils.Meters) -> dict[str, float]:
        found = {f"{part}_loss": measured.loss.avg, f"{part}_acc": measured.top1.avg}
        return found | {f"{part}_top5": measured.top5.avg} if self.images.num_classes > 5 else found

    def _measure_best(self, model: nn.Module) -> utils.Meters:
        """Measures the best epoch's weights on the test images; `model` keeps its own weights."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        self._load_best(model)
        batches, report = self.loop.limited(self.test_batches), self.loop.reporter("test", len(self.test_batches))
        measured = utils.evaluate(model, batches, F.cross_entropy, report)
        model.load_state_dict(own)
        return measured

    def _load_best(self, model: nn.Module) -> None:
        if distributed.rank() == 0:
            load_weights(model, str(self.run.folder / "best.pt"))
        distributed.take_over(model)

    def _describe(self, measured: utils.Meters, last: bool) -> None:
        """Writes network.json, which test.py and predict.py read."""
        kind = "validation" if self.args.valid_folder else "held-out training"
        if last or not self.held_out:
            kind = "test"
        epoch = self.run.progress.epoch + 1
        measured_on = f"{measured.top1.count} {kind} images, after epoch {epoch} of {self.epochs}"
        weights = "best.pt" if self.held_out else "weights.pt"
        description = trained.describe(
            self.args, self.images, self.architecture, weights, measured.top1.avg, measured_on
        )
        self.run.write_json(trained.FILE, description)

    def finish(self, model: nn.Module) -> float:
        """Logs what the training has led to, for every class as well. Returns the test accuracy; `model` gets its
        weights."""
        run, rows = self.run, self.run.progress.metrics
        accuracy = rows[-1]["test_acc"]
        best = max(rows, key=lambda row: row[f"{self.part}_acc"])
        if self.args.fast_dev_run:
            tried = "test accuracy %.2f%% after two batches: --fast_dev_run only tries whether everything runs"
            run.log(tried, accuracy)
        elif self.held_out:
            chosen = "best accuracy on the held-out images %.2f%%, in epoch %d: its weights are in best.pt"
            run.log(chosen, best["valid_acc"], best["epoch"])
            run.log("test accuracy %.2f%% of these weights, measured once: the result", accuracy)
        else:
            run.log("final test accuracy %.2f%% after %d epochs: the result", accuracy, len(rows))
            kept = f" in epoch {best['epoch']}, whose weights are in best.pt" if self.args.keep == "best" else ""
            run.log("best test accuracy %.2f%%%s: picked on the test set, so not a result", best["test_acc"], kept)
        run.log_each(*metrics.class_lines(rows[-1]))
        code = ["--space", self.args.space] if cli.runs_code(self.args.space) else []  # to be named again
        run.propose({"test the weights again": shlex.join(["python", "test.py", str(run.folder), *code])})
        if self.held_out:
            self._load_best(model)
        return accuracy
