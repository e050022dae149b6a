"""Checks rows of metrics.jsonl, from a run's folder or from a checkpoint. docs/metrics.md lists every key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from experiment.errors import printable, shorten, shown

LONGEST_NAME = 200  # characters of an edge or an operation


def check(row: Any, epoch: int, first: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns `row` if it is valid as the metrics of `epoch`, so that it can be drawn and reported.

    Losses and the eigenvalue may also be infinite or NaN, as in a run that diverges. All other numbers must be finite.

    Args:
        row: decoded JSON, or from a checkpoint.
        epoch: the epoch that the row must be of.
        first: the first row of the run. All rows must have the same edges and operations.

    Raises:
        ValueError: `row` is not valid. The message says why.
    """
    if not isinstance(row, dict) or type(row.get("epoch")) is not int:
        raise ValueError("it is not an object with an epoch")
    if row["epoch"] != epoch:
        raise ValueError(f"it is of epoch {shown(row['epoch'])}, where epoch {epoch} is expected")
    for key, value in row.items():
        if not isinstance(key, str):
            raise ValueError(f"the key {shown(key)} is not a string")
        if key not in ("alphas", "betas", "genotype", "architecture", "class_acc", "confusion") and not _is_number(
            value, key.endswith("_loss") or key == "eigenvalue"
        ):
            raise ValueError(f"{shown(key)} is {shown(value)}, which is not a number")
    _check_classes(row.get("class_acc", {}), row.get("confusion", {}))
    alphas = _check_alphas(row.get("alphas", {}))
    if first is not None and alphas != {edge: set(weights) for edge, weights in first.get("alphas", {}).items()}:
        raise ValueError("its alphas name other edges or operations than those of epoch 0")
    betas = row.get("betas", {})
    if not isinstance(betas, dict) or (betas and betas.keys() != alphas.keys()):
        raise ValueError("its betas are not those of the edges that the alphas name")
    if not all(type(weight) in (int, float) and 0 <= weight <= 1 for weight in betas.values()):
        raise ValueError("a beta is not a number between 0 and 1")
    if first is not None and betas.keys() != first.get("betas", {}).keys():
        raise ValueError("its betas are of other edges than those of epoch 0")
    return row


def _is_number(value: Any, diverged: bool) -> bool:
    if type(value) not in (int, float):
        return False
    return abs(value) <= 1e100 or (diverged and (math.isnan(value) or value == math.inf))  # more cannot be drawn


def of_classes(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, Any]:
    """`class_acc`, in percent, and `confusion`, {class: {predicted class: images}}, for a row. Classes without images are left out.

    Args:
        confusion: the number of images of class i that were classified as class j.
        classes: the names of the classes.
    """
    rows = {
        name: {classes[index]: count for index, count in enumerate(counts) if count}
        for name, counts in zip(classes, confusion, strict=True)
        if any(counts)
    }
    return {"class_acc": {name: 100 * row.get(name, 0) / sum(row.values()) for name, row in rows.items()}, "confusion": rows}


MOST_LINES = 20


def class_lines(row: dict[str, Any]) -> list[str]:
    """Lines for the log: one per class, the least accurate first, at most `MOST_LINES`. Empty if the row has no `class_acc`."""
    lines = []
    for name, accuracy in sorted(row.get("class_acc", {}).items(), key=lambda item: item[1]):
        counts = row["confusion"][name]
        wrong = sorted(((count, other) for other, count in counts.items() if other != name), key=lambda pair: -pair[0])
        taken = ", ".join(f"{_short(other)} ({count})" for count, other in wrong[:3]) + ", ..." * (len(wrong) > 3)
        right = f"class {_short(name)}: {counts.get(name, 0)} of {sum(counts.values())} right, {accuracy:.2f}%"
        lines.append(right + f"; taken for {taken}" * bool(wrong))
    more = len(lines) - MOST_LINES
    return lines[:MOST_LINES] + ([f"{more} more classes: see class_acc and confusion in metrics.jsonl"] if more > 0 else [])


def _short(name: str) -> str:
    """The name of a class, which may hold any characters but NUL and the slash, for a log line."""
    return shorten(printable(name), 60)


def _check_classes(accuracies: Any, confusion: Any) -> None:
    if not isinstance(accuracies, dict) or not isinstance(confusion, dict) or accuracies.keys() != confusion.keys():
        raise ValueError("its class_acc and confusion are not of the same classes")
    for name, row in confusion.items():
        counts = [*row.values()] if isinstance(row, dict) else []
        if not counts or not all(type(count) is int and 0 < count < 2**53 for count in counts):
            raise ValueError(f"its confusion of {shown(name)} is not {{class: images}}")
        if type(accuracies[name]) not in (int, float) or not 0 <= accuracies[name] <= 100:
            raise ValueError(f"its accuracy of {shown(name)} is not a percentage")


def _check_alphas(edges: Any) -> dict[str, set[str]]:
    """{edge: its operations}."""
    if not isinstance(edges, dict) or not all(isinstance(weights, dict) and weights.keys() - {"none"} for weights in edges.values()):
        raise ValueError("its alphas are not {edge: {operation: weight}}")
    for edge, weights in edges.items():
        for name in (edge, *weights):
            if not isinstance(name, str) or len(name) > LONGEST_NAME:
                raise ValueError(f"its alphas name {shown(name)}")
        for weight in weights.values():
            if type(weight) not in (int, float):
                raise ValueError("an alpha is not a number")
            if not 0 <= weight <= 1:
                raise ValueError("an alpha is not between 0 and 1")
    return {edge: set(weights) for edge, weights in edges.items()}
