"""A tabular benchmark: the true accuracies of all architectures of a space, which others have trained.

    table = Benchmark("nasbench201.csv", "cifar10")
    table.accuracies["|skip_connect~0|+|..."]["cifar100"]

docs/nasbench201.md shows how to make such a file. A search reports what it says, and is not influenced by it. This file
does not import torch.
"""

from __future__ import annotations

import bisect
import csv
import math
from collections.abc import Sequence
from typing import Any

from architectures import Architecture, load_space
from experiment.errors import UserError, shown


class Benchmark:
    """The table in a CSV file: a column `architecture`, and one of percent for each data set.

    Args:
        path: the file.
        dataset: the column that ranks architectures; the first one if there is none of this name.

    Attributes:
        accuracies: {text of an architecture: {data set: percent}}; texts as `Architecture.text`.
        datasets: the columns of percent.
        dataset: the column that ranks.

    Raises:
        UserError: the file cannot be read, lacks a column, or holds something else than percent.
    """

    def __init__(self, path: str, dataset: str) -> None:
        self.path = path
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(
                f"the benchmark {path} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        self.datasets = [column for column in (rows[0] if rows else ()) if column != "architecture"]
        if not self.datasets or "architecture" not in rows[0]:
            raise UserError(f"the benchmark {path} needs a column `architecture` and one of percent for each data set")
        self.accuracies: dict[str, dict[str, float]] = {}
        for row in rows:
            text = row["architecture"]
            if text.startswith(("{", "Genotype(")):  # which have many spellings
                text = load_space("darts" if text.startswith("G") else "").read(text).text
            try:
                numbers = {name: float(row[name]) for name in self.datasets}
            except (TypeError, ValueError):
                numbers = {"": math.nan}
            if not all(map(math.isfinite, numbers.values())):
                raise UserError(f"the benchmark {path}: a column of {shown(row)} is not a number")
            if text in self.accuracies:
                raise UserError(f"the benchmark {path} has several rows for {text}: keep one, such as their mean")
            self.accuracies[text] = numbers
        self.dataset = dataset if dataset in self.datasets else self.datasets[0]
        self._ascending = sorted(row[self.dataset] for row in self.accuracies.values())

    def __len__(self) -> int:
        return len(self.accuracies)

    @property
    def optimum(self) -> float:
        return self._ascending[-1]

    def of(self, architecture: Architecture) -> dict[str, float]:
        """{data set: percent}. Raises `UserError` if the table lacks the architecture."""
        if architecture.text not in self.accuracies:
            known = next(iter(self.accuracies))
            raise UserError(f"the benchmark {self.path} has no {architecture.text}; it has, for example, {known}")
        return self.accuracies[architecture.text]

    def rank(self, accuracy: float) -> int:
        """1 for the best."""
        return len(self) - bisect.bisect_right(self._ascending, accuracy) + 1

    def record(self, architecture: Architecture, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The entries of an epoch's metrics about the architecture that the search would return.

        Args:
            before: the metrics of the epochs before.
        """
        every = self.of(architecture)
        accuracy = every[self.dataset]
        best = max([accuracy, *(row["true_best"] for row in before if "true_best" in row)])
        numbers = {"true_acc": accuracy, "true_rank": self.rank(accuracy), "true_best": best}
        return numbers | {"true_optimum": self.optimum, "true": every}

    def line(self, architecture: Architecture) -> str:
        """What the log says about an architecture."""
        every = self.of(architecture)
        accuracy = every[self.dataset]
        others = "".join(f", {value:.2f}% on {name}" for name, value in every.items() if name != self.dataset)
        place = f"rank {self.rank(accuracy):,} of {len(self):,}, optimum {self.optimum:.2f}%"
        return f"{architecture.text}, {accuracy:.2f}% on {self.dataset} ({place}){others}"
