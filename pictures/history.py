"""A run read back from its folder, epoch by epoch, and what can be asked of it. docs/metrics.md names every key."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment import cli, files, metrics
from experiment.errors import UserError, warn
from nas.architecture import NUMBERED, Alphas, Architecture


@dataclass
class History:
    """What a run's folder tells: the arguments in config.json and the epochs in metrics.jsonl, at least one."""

    folder: Path
    config: dict[str, Any]
    epochs: list[dict[str, Any]]

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the command line."""
        return self.config["arguments"]

    @property
    def trains(self) -> bool:
        """Whether it is the training of a found network; else it is a search."""
        return str(self.config.get("stage")).endswith("eval")

    @property
    def space(self) -> str:
        """What was searched, or what the trained network is of: the `--space`, or `rnn` for a recurrent cell."""
        return "rnn" if str(self.config.get("stage")).startswith("rnn-") else str(self.arguments.get("space", "darts"))

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name

    @property
    def caption(self) -> str:
        """Run, epoch and seed of the last epoch."""
        return self.caption_at(self.epochs[-1])

    def caption_at(self, row: dict[str, Any]) -> str:
        """The same of the epoch that is this row of `epochs`. Pictures count epochs from 1 on: an epoch's number is how many are done."""
        epochs = 1 if self.arguments.get("fast_dev_run") else self.arguments.get("epochs", "?")
        return f"{self.name}, epoch {row['epoch'] + 1} of {epochs}, seed {self.arguments.get('seed', '?')}"

    @property
    def architecture(self) -> Architecture | None:
        """The one in the folder: for a search, the last, or the one that early stopping went back to."""
        space = self.arguments.get("space")
        return Architecture.recorded(self.folder, space if isinstance(space, str) else None)

    @property
    def architecture_caption(self) -> str:
        """Run, epoch and seed of that architecture: of the last epoch that found it."""
        architecture = self.architecture
        found = [row for row in self.epochs if Architecture.of_epoch(row) == architecture]
        return self.caption_at(found[-1] if found else self.epochs[-1])

    def thinned(self, most: int) -> tuple[list[dict[str, Any]], int]:
        """At most `most` of the epochs, equally far apart, the last one among them; and how many epochs they are apart."""
        stride = math.ceil(len(self.epochs) / most)
        return self.epochs[(len(self.epochs) - 1) % stride :: stride], stride

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(epochs, values) of a number, where it was recorded; epochs counted from 1 on, as in all pictures."""
        rows = [row for row in self.epochs if isinstance(row.get(key), int | float)]
        return [row["epoch"] + 1 for row in rows], [row[key] for row in rows]


def is_run(path: str | Path) -> bool:
    """Whether this is the folder of a run of which at least the metrics are there."""
    return os.path.exists(os.path.join(path, "metrics.jsonl"))  # of any text: pathlib raises for a name that is too long


def read(path: str | Path) -> History:
    """The run in this folder. A last line of metrics that is cut off is left out, with a warning on standard error.

    Raises:
        UserError: it is no run's folder, or no epoch is complete, or the files are not ours.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path} is no folder: name the folder of a run")
    try:
        files.check_folder(folder)
        lines = files.read(folder / "metrics.jsonl").splitlines(keepends=True)
        config = cli.read_config(folder)
    except OSError as error:
        raise UserError(f"{path} is not the folder of a run: cannot read {error.filename} ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not one of a run: {error}") from None
    epochs: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        try:
            row = metrics.check(files.parse_json(line), number, epochs[0] if epochs else None)
            Architecture.of_epoch(row)
            epochs.append(row)
        except ValueError as error:
            if line.endswith(b"\n"):
                raise UserError(f"{folder / 'metrics.jsonl'}, line {number + 1}, is not the metrics of an epoch ({error})") from None
            warn(f"{folder / 'metrics.jsonl'} ends in an incomplete line, which is left out")
    if not epochs:
        raise UserError(f"{folder / 'metrics.jsonl'} holds no complete epoch yet: let the run go on")
    return History(folder, config, epochs)


# ---- Questions to alphas


def named_alphas(run: History, row: dict[str, Any]) -> Alphas:
    """The alphas of an epoch, with the operations' names wherever the run's space has some; empty where the strategy has no alphas."""
    names = dict(enumerate(NUMBERED.get(str(run.arguments.get("space")), ())))
    return {
        edge: {names.get(int(label), label) if label.isdecimal() else label: weight for label, weight in weights.items()}
        for edge, weights in row.get("alphas", {}).items()
    }


def with_betas(alphas: Alphas, row: dict[str, Any]) -> Alphas:
    """The alphas of an epoch, with the edge's own weight as one more, `edge`, where the epoch has such weights."""
    return {edge: weights | {"edge": row["betas"][edge]} for edge, weights in alphas.items()} if row.get("betas") else alphas
