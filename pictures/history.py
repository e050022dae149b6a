"""Reads the arguments and the epochs of a run from its folder. docs/metrics.md lists every key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from architectures import Architecture, load_space
from experiment import cli, files, metrics
from experiment.errors import UserError, warn


@dataclass
class History:
    """A run: `config` is the content of config.json, `epochs` the rows of metrics.jsonl, at least one.

    Operations in `alphas` have names, also in spaces whose files have numbers.
    """

    folder: Path
    config: cli.Config
    epochs: list[dict[str, Any]]

    @property
    def arguments(self) -> dict[str, Any]:
        return self.config["arguments"]

    @property
    def trains(self) -> bool:
        """True for the training of an architecture, False for a search."""
        return str(self.config.get("stage")).endswith("eval")

    @property
    def space(self) -> str:
        """The search space: `--space`, or `rnn` for recurrent cells."""
        return "rnn" if str(self.config.get("stage")).startswith("rnn-") else str(self.arguments.get("space", "darts"))

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def caption(self) -> str:
        """Name, last epoch and seed of the run."""
        return self.caption_at(self.epochs[-1])

    def caption_at(self, row: dict[str, Any]) -> str:
        """Name, epoch and seed, for the epoch of this row. Pictures count epochs from 1."""
        epochs = 1 if self.arguments.get("fast_dev_run") else self.arguments.get("epochs", "?")
        return f"{self.name}, epoch {row['epoch'] + 1} of {epochs}, seed {self.arguments.get('seed', '?')}"

    @property
    def architecture(self) -> Architecture | None:
        """The architecture in the folder: of a search, the last one, or the one that early stopping has returned."""
        return load_space(self.space).recorded(self.folder)

    @property
    def found(self) -> list[tuple[dict[str, Any], Architecture]]:
        """(metrics, architecture) of the epochs that recorded one, as those of searches do."""
        space = load_space(self.space)
        return [(row, found) for row in self.epochs if (found := space.of_epoch(row)) is not None]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(epochs, values) of the epochs in which `key` was recorded. Epochs are counted from 1."""
        rows = [row for row in self.epochs if isinstance(row.get(key), int | float)]
        return [row["epoch"] + 1 for row in rows], [row[key] for row in rows]


def is_run(path: str | Path) -> bool:
    """Whether this is the folder of a run with metrics."""
    return os.path.exists(os.path.join(path, "metrics.jsonl"))  # not pathlib, which raises for a name that is too long


def read(path: str | Path) -> History:
    """The run in this folder. An incomplete last line of the metrics is ignored, with a warning on standard error.

    Raises:
        UserError: it is not the folder of a run, no epoch is complete, or a file is not valid.
    """
    file = Path(path) / "metrics.jsonl"
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path} is not the folder of a run: cannot read {file} ({error.strerror})") from None
    run = History(Path(path), cli.read_config(path), [])
    space = load_space(run.space)
    numbered = {str(number): name for number, name in enumerate(space.NUMBERED)}
    for number, line in enumerate(lines):
        try:
            row = files.parse_json(line)
            msgspec.convert(row, metrics.Epoch)
            space.of_epoch(row)
            if "alphas" in row:
                row["alphas"] = {
                    edge: {numbered.get(name, name): weight for name, weight in weights.items()}
                    for edge, weights in row["alphas"].items()
                }
            before = run.epochs[0] if run.epochs else row
            if row["epoch"] != number or row.get("alphas", {}).keys() != before.get("alphas", {}).keys():
                raise ValueError("it does not follow the line before")
            run.epochs.append(row)
        except (ValueError, msgspec.ValidationError) as error:
            if line.endswith(b"\n"):
                raise UserError(f"{file}, line {number + 1}, is not the metrics of an epoch ({error})") from None
            warn(f"{file} ends in an incomplete line, which is ignored")
    if not run.epochs:
        raise UserError(f"{file} holds no complete epoch yet: let the run go on")
    return run


def strongest(weights: dict[str, float]) -> str:
    """The strongest operation other than `none`, as in a derived cell (DARTS, section 2.4)."""
    return max((operation for operation in weights if operation != "none"), key=lambda operation: weights[operation])
