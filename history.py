"""A run read back from its folder, epoch by epoch, and what can be asked of it. docs/metrics.md names every key."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cli
from cli import UserError
from nas.architecture import NUMBERED, Alphas, Architecture, cell_of


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
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
        config = cli.read_config(folder)
    except OSError as error:
        raise UserError(f"{path} is not the folder of a run: cannot read {error.filename} ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not one of a run: {error}") from None
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epochs.append(_checked(json.loads(line)))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise UserError(f"{folder / 'metrics.jsonl'}, line {number}, is not the metrics of an epoch ({error})") from None
            print(f"warning: {folder / 'metrics.jsonl'} ends in an incomplete line, which is left out", file=sys.stderr)
    if not epochs:
        raise UserError(f"{folder / 'metrics.jsonl'} holds no complete epoch yet: let the run go on")
    return History(folder, config, epochs)


def _checked(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict) or type(row.get("epoch")) is not int or not 0 <= row["epoch"] < 2**31:
        raise ValueError("no object with an epoch")
    for key, value in row.items():
        if key not in ("alphas", "genotype", "architecture") and not _is_number(value):
            raise ValueError(f"{key[:100]!r} is no number")
    edges = row.get("alphas", {})
    if not isinstance(edges, dict) or not all(isinstance(edge, dict) and edge for edge in edges.values()):
        raise ValueError("its alphas are not {edge: {operation: weight}}")
    weights = [weight for edge in edges.values() for weight in edge.values()]
    if not all(map(_is_number, weights)):
        raise ValueError("an alpha is not a number")
    if any(weight < 0 or weight > 1 for weight in weights):
        raise ValueError("an alpha is not between 0 and 1")
    return row


def _is_number(value: Any) -> bool:
    """One that pictures have room for, or what a diverged run has instead: NaN, infinity."""
    return type(value) in (int, float) and not 1e100 < abs(value) < math.inf


# ---- Questions to alphas


def entropies(alphas: Alphas) -> dict[str, float]:
    """{cell: entropy of an edge's softmaxed alphas in nats, the mean over its edges}: ln(candidates) when undecided, 0 when settled."""
    by_cell: dict[str, list[float]] = {}
    for edge, weights in alphas.items():
        by_cell.setdefault(cell_of(edge), []).append(-math.fsum(weight * math.log(weight) for weight in weights.values() if weight > 0))
    return {cell: math.fsum(values) / len(values) for cell, values in by_cell.items()}


def named_alphas(run: History, row: dict[str, Any]) -> Alphas:
    """The alphas of an epoch, with the operations' names wherever the run's space has some; empty where the strategy has no alphas."""
    names = dict(enumerate(NUMBERED.get(str(run.arguments.get("space")), ())))
    return {
        edge: {names.get(int(label), label) if label.isdecimal() else label: weight for label, weight in weights.items()}
        for edge, weights in row.get("alphas", {}).items()
    }
