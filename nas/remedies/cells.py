"""Variants of the rule that derives a cell from the weights of a supernet (`model_search.derive_cell`)."""

from __future__ import annotations

from collections.abc import Sequence

from genotypes import PRIMITIVES
from model_search import derive_cell

Edges = list[tuple[str, int]]


def limit_skips(weights: list[list[float]], steps: int, most: int) -> list[list[float]]:
    """Changed weights, from which `derive_cell` derives at most `most` skip connections (P-DARTS, section 3.3.2).

    While there are more, the weakest one is excluded, and the cell is derived again. `weights` and `steps` as for `derive_cell`.
    """
    weights = [list(row) for row in weights]
    skip = PRIMITIVES.index("skip_connect") if "skip_connect" in PRIMITIVES else None
    while skip is not None:
        chosen = [_row(index, source) for index, (name, source) in enumerate(derive_cell(weights, steps)) if name == "skip_connect"]
        weakest = min(chosen, key=lambda row: weights[row][skip], default=0)
        if len(chosen) <= most or weights[weakest][skip] < 0:  # there are no other operations
            break
        weights[weakest][skip] = -1.0
    return weights


def above_threshold(edges: Edges, concat: Sequence[int], weights: list[list[float]], threshold: float) -> tuple[Edges, Sequence[int]]:
    """(edges, concat) in which operations with a weight below the threshold are replaced by `none` (FairDARTS, section 4.4).

    A node without edges is not concatenated. If nothing would remain of the cell, it does not change.

    Args:
        edges, concat: a cell derived by DARTS' rule.
        weights: the weights that it was derived from.
        threshold: smallest weight of an operation that is kept.
    """
    kept: Edges = []
    reached = {0, 1}
    for index, (name, source) in enumerate(edges):
        strong = source in reached and weights[_row(index, source)][PRIMITIVES.index(name)] >= threshold
        kept.append((name if strong else "none", source))
        if strong:
            reached.add(index // 2 + 2)
    outputs = [node for node in concat if node in reached]
    return (kept, outputs) if outputs else (edges, concat)


def _row(index: int, source: int) -> int:
    """The row in the alphas of edge `index` of a derived cell, which comes from node `source`."""
    step = index // 2
    return sum(2 + earlier for earlier in range(step)) + source
