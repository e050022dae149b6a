"""What a row of metrics.jsonl may hold, wherever it is read: in a run's folder or in a checkpoint. docs/metrics.md names every key."""

from __future__ import annotations

import math
from typing import Any

from experiment.errors import shown

LONGEST_NAME = 200  # characters of an edge or an operation


def check(row: Any, epoch: int, first: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns `row` if it is the metrics of epoch `epoch`, such that a picture or a page can be made of it.

    Losses and the eigenvalue may also be infinite or NaN, as a run that diverges has them; every other number is finite.

    Args:
        row: decoded JSON, or from a checkpoint.
        epoch: that it must be of.
        first: the first row of the run: all rows name the same edges and operations.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(row, dict) or type(row.get("epoch")) is not int:
        raise ValueError("no object with an epoch")
    if row["epoch"] != epoch:
        raise ValueError(f"of epoch {shown(row['epoch'])}, where that of epoch {epoch} should be")
    for key, value in row.items():
        if not isinstance(key, str):
            raise ValueError(f"the key {shown(key)} is no text")
        if key not in ("alphas", "genotype", "architecture") and not _is_number(value, key.endswith("_loss") or key == "eigenvalue"):
            raise ValueError(f"{shown(key)} is {shown(value)}, which is no number")
    alphas = _check_alphas(row.get("alphas", {}))
    if first is not None and alphas != {edge: set(weights) for edge, weights in first.get("alphas", {}).items()}:
        raise ValueError("its alphas name other edges or operations than those of epoch 0")
    return row


def _is_number(value: Any, diverged: bool) -> bool:
    if type(value) not in (int, float):
        return False
    return abs(value) <= 1e100 or (diverged and (math.isnan(value) or value == math.inf))  # pictures have no room for more


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
