"""A run read back from its folder, epoch by epoch, and what can be asked of it. docs/metrics.md names every key."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drawing
import files
import genotypes
import metrics
import untrusted
from cli import UserError, warn
from genotypes import Genotype

Alphas = dict[str, dict[str, float]]  # {edge: {operation: softmaxed alpha}}


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
    def architecture(self) -> Genotype | dict[str, Any] | None:
        """The one in the folder: for a search, the last, or the one that early stopping went back to."""
        for name in ("genotype.json", "architecture.json"):
            if (self.folder / name).exists():
                return read_architecture(self.folder / name)
        return None

    @property
    def architecture_caption(self) -> str:
        """Run, epoch and seed of that architecture: of the last epoch that found it."""
        architecture = self.architecture
        found = [row for row in self.epochs if recorded_architecture(row) == architecture]
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
        lines = untrusted.read(folder / "metrics.jsonl").splitlines(keepends=True)
        config = untrusted.read_json(folder / "config.json")
    except OSError as error:
        raise UserError(f"{path} is not the folder of a run: cannot read {error.filename} ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} holds no JSON ({error}): it is not one of a run") from None
    arguments = config.get("arguments") if isinstance(config, dict) else None
    if not isinstance(arguments, dict) or not all(isinstance(value, str | int | float | None) for value in arguments.values()):
        raise UserError(f"{folder / 'config.json'} is not one of a run: it lacks the arguments")
    if not isinstance(config.get("command", []), list):
        raise UserError(f"{folder / 'config.json'} is not one of a run: its command is no list")
    epochs: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        try:
            epochs.append(metrics.check(untrusted.parse_json(line), number, epochs[0] if epochs else None))
        except ValueError as error:
            if line.endswith(b"\n"):
                raise UserError(f"{folder / 'metrics.jsonl'}, line {number + 1}, is not the metrics of an epoch ({error})") from None
            warn(f"{folder / 'metrics.jsonl'} ends in an incomplete line, which is left out")
    if not epochs:
        raise UserError(f"{folder / 'metrics.jsonl'} holds no complete epoch yet: let the run go on")
    return History(folder, config, epochs)


def read_architecture(path: str | Path) -> Genotype | dict[str, Any]:
    """The genotype, or the architecture of a space of `nas/`, in a JSON file.

    Raises:
        UserError: it is neither.
    """
    try:
        content = untrusted.read_json(path)
    except (OSError, ValueError):  # genotypes.read knows what to say
        return genotypes.read(str(path))
    return content if isinstance(content, dict) and content and not genotypes.is_meant(content) else genotypes.read(str(path))


def recorded_architecture(row: dict[str, Any]) -> Genotype | dict[str, Any] | None:
    """The architecture that was found by the end of an epoch, whose metrics `metrics.check` has taken; None in those of `train.py`."""
    return genotypes.from_json(row["genotype"]) if "genotype" in row else row.get("architecture")


# ---- Questions to alphas and architectures


def cell_of(edge: str) -> str:
    """`normal` or `reduce`, the cell that an edge belongs to by its name; or an empty string, where there are no two kinds of cells."""
    kind = edge.partition("_")[0]
    return kind if kind in ("normal", "reduce") else ""


def entropies(alphas: Alphas) -> dict[str, float]:
    """{cell: entropy of an edge's softmaxed alphas in nats, the mean over its edges}: ln(candidates) when undecided, 0 when settled."""
    by_cell: dict[str, list[float]] = {}
    for edge, weights in alphas.items():
        by_cell.setdefault(cell_of(edge), []).append(-math.fsum(weight * math.log(weight) for weight in weights.values() if weight > 0))
    return {cell: math.fsum(values) / len(values) for cell, values in by_cell.items()}


def skips(architecture: Genotype | dict[str, Any]) -> dict[str, int]:
    """{cell: skip connections among its edges}; of a macro network, the layers' additional inputs."""
    if isinstance(architecture, Genotype):
        edges_by_cell = {"normal": architecture.normal, "reduce": architecture.reduce}
        return {cell: _count_skips(operation for operation, _ in edges) for cell, edges in edges_by_cell.items()}
    if cells := drawing.micro_cells(architecture):
        return {cell_of(name.replace("reduction", "reduce")): _count_skips(op for op, _ in edges) for name, (edges, _) in cells.items()}
    if layers := drawing.macro_layers(architecture):
        return {"": sum(len(inputs) for _, inputs in layers)}
    return {"": _count_skips(architecture.values())}


def _count_skips(operations: Iterable[Any]) -> int:
    return sum(operation == "skip_connect" for operation in operations)


def distance(one: Genotype | dict[str, Any], other: Genotype | dict[str, Any]) -> int | None:
    """How many edges of `one`, with their operations, `other` lacks, 0 to 16 for the cells of DARTS; or how many choices differ.

    None where they are not of one space.
    """
    if isinstance(one, Genotype) and isinstance(other, Genotype):
        missing = 0
        for ours, theirs in ((one.normal, other.normal), (one.reduce, other.reduce)):
            if len(ours) != len(theirs):
                return None
            left = [(index // 2, *edge) for index, edge in enumerate(theirs)]
            for edge in ((index // 2, *edge) for index, edge in enumerate(ours)):
                if edge in left:
                    left.remove(edge)
                else:
                    missing += 1
        return missing
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return sum(one[key] != other[key] for key in one)
    return None


def operation_names(space: str) -> tuple[str, ...]:
    """What the numbers stand for that the candidates of an edge are called by in some spaces; empty where they have names."""
    return {"enas_micro": drawing.MICRO_OPERATIONS, "enas_macro": drawing.MACRO_BRANCHES}.get(space, ())


def named_alphas(run: History, row: dict[str, Any]) -> Alphas:
    """The alphas of an epoch, with the operations' names wherever the run's space has some; empty where the strategy has no alphas."""
    names = dict(enumerate(operation_names(str(run.arguments.get("space")))))
    return {
        edge: {names.get(int(label), label) if label.isdecimal() else label: weight for label, weight in weights.items()}
        for edge, weights in row.get("alphas", {}).items()
    }
