"""How a cell is read from the weights of a supernet, where DARTS' own rule (`model_search.derive_cell`) is not wanted as it is."""

from __future__ import annotations

from collections.abc import Sequence

from genotypes import PRIMITIVES
from model_search import derive_cell

Edges = list[tuple[str, int]]


def limit_skips(weights: list[list[float]], steps: int, most: int) -> list[list[float]]:
    """The weights of a cell that has at most `most` skip connections by DARTS' rule (P-DARTS, section 3.3.2).

    While there are more, the weakest of them is given up, and the cell is derived anew. Arguments and result as of `derive_cell`.
    """
    weights = [list(row) for row in weights]
    skip = PRIMITIVES.index("skip_connect") if "skip_connect" in PRIMITIVES else None
    while skip is not None:
        chosen = [_row(index, source) for index, (name, source) in enumerate(derive_cell(weights, steps)) if name == "skip_connect"]
        weakest = min(chosen, key=lambda row: weights[row][skip], default=0)
        if len(chosen) <= most or weights[weakest][skip] < 0:  # of a space that has nothing else
            break
        weights[weakest][skip] = -1.0
    return weights


def above_threshold(edges: Edges, concat: Sequence[int], weights: list[list[float]], threshold: float) -> tuple[Edges, Sequence[int]]:
    """The edges, and the nodes that are concatenated, where operations below the threshold become `none` (FairDARTS, section 4.4).

    A node that nothing leads to is not concatenated. A cell of which nothing would be left stays as it is.

    Args:
        edges, concat: of a cell by DARTS' rule.
        weights: that it was derived from.
        threshold: of an operation's weight.
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
    """The row of the alphas of an edge, which is the `index`-th of a derived cell and comes from `source`."""
    step = index // 2
    return sum(2 + earlier for earlier in range(step)) + source
