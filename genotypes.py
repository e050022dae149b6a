"""Cells: `Genotype`, the candidate operations of the search, and the cells of the paper.

A cell has two inputs (nodes 0 and 1: the outputs of the two previous cells) and intermediate nodes 2, 3, ... Node i is
the sum of two edges, entries 2(i - 2) and 2(i - 2) + 1 of the list. An edge is an operation and the earlier node that
it is applied to. The outputs of the nodes in `*_concat` are concatenated along the channels (DARTS, section 2.1). In a
cell whose nodes may have more edges, each entry also names its node: (operation, node, source), sorted by node.

The name of every `Genotype` in this file is a value of `--arch`, also if you add one. `architectures/cells.py` reads
and writes genotypes; `architectures/published.py` has the cells of other papers. This file does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Edges = Sequence[tuple[str, int] | tuple[str, int, int]]


class Genotype(NamedTuple):
    """A normal and a reduction cell: lists of (operation, input node), and the nodes that are concatenated."""

    normal: Edges
    normal_concat: Sequence[int]
    reduce: Edges
    reduce_concat: Sequence[int]


def triples(edges: Edges) -> list[tuple[str, int, int]]:
    """(operation, node, source) of each edge of a cell."""
    return [edge if len(edge) == 3 else (edge[0], index // 2 + 2, edge[1]) for index, edge in enumerate(edges)]


CELLS = ("normal", "reduce")

# The candidates of every edge in the search, in the order of the alphas' columns (DARTS, section 3.1). Each is a key of
# `operations.OPS`.
PRIMITIVES = [
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
]


def reductions(layers: int) -> tuple[int, int]:
    """The first and the second reduction cell of so many cells, counted from 0. Fewer than 3 cells are all reduction
    cells."""
    return layers // 3, 2 * layers // 3


def edge_key(cell: str, node: int, source: int) -> str:
    """The name of the edge from node `source` to node `node` of a cell, by which alphas and choices are recorded."""
    return f"{cell}_n{node}_p{source}"


# A line for each node.
# fmt: off

# Zoph et al. 2018 (1707.07012), the cell NASNet-A.
NASNet = Genotype(
    normal=[("sep_conv_5x5", 1), ("sep_conv_3x3", 0),
            ("sep_conv_5x5", 0), ("sep_conv_3x3", 0),
            ("avg_pool_3x3", 1), ("skip_connect", 0),
            ("avg_pool_3x3", 0), ("avg_pool_3x3", 0),
            ("sep_conv_3x3", 1), ("skip_connect", 1)],
    normal_concat=[2, 3, 4, 5, 6],
    reduce=[("sep_conv_5x5", 1), ("sep_conv_7x7", 0),
            ("max_pool_3x3", 1), ("sep_conv_7x7", 0),
            ("avg_pool_3x3", 1), ("sep_conv_5x5", 0),
            ("skip_connect", 3), ("avg_pool_3x3", 2),
            ("sep_conv_3x3", 2), ("max_pool_3x3", 1)],
    reduce_concat=[4, 5, 6],
)

# Real et al. 2019 (1802.01548), the cell AmoebaNet-A.
AmoebaNet = Genotype(
    normal=[("avg_pool_3x3", 0), ("max_pool_3x3", 1),
            ("sep_conv_3x3", 0), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 0), ("avg_pool_3x3", 3),
            ("sep_conv_3x3", 1), ("skip_connect", 1),
            ("skip_connect", 0), ("avg_pool_3x3", 1)],
    normal_concat=[4, 5, 6],
    reduce=[("avg_pool_3x3", 0), ("sep_conv_3x3", 1),
            ("max_pool_3x3", 0), ("sep_conv_7x7", 2),
            ("sep_conv_7x7", 0), ("avg_pool_3x3", 1),
            ("max_pool_3x3", 0), ("max_pool_3x3", 1),
            ("conv_7x1_1x7", 0), ("sep_conv_3x3", 5)],
    reduce_concat=[3, 4, 6],
)

# Liu et al. 2019 (1806.09055), first order.
DARTS_V1 = Genotype(
    normal=[("sep_conv_3x3", 1), ("sep_conv_3x3", 0),
            ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 0), ("skip_connect", 2)],
    normal_concat=[2, 3, 4, 5],
    reduce=[("max_pool_3x3", 0), ("max_pool_3x3", 1),
            ("skip_connect", 2), ("max_pool_3x3", 0),
            ("max_pool_3x3", 0), ("skip_connect", 2),
            ("skip_connect", 2), ("avg_pool_3x3", 0)],
    reduce_concat=[2, 3, 4, 5],
)

# The same, second order: the cell of the paper's 2.76% test error (Figures 4 and 5).
DARTS_V2 = Genotype(
    normal=[("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("skip_connect", 0),
            ("skip_connect", 0), ("dil_conv_3x3", 2)],
    normal_concat=[2, 3, 4, 5],
    reduce=[("max_pool_3x3", 0), ("max_pool_3x3", 1),
            ("skip_connect", 2), ("max_pool_3x3", 1),
            ("max_pool_3x3", 0), ("skip_connect", 2),
            ("skip_connect", 2), ("max_pool_3x3", 1)],
    reduce_concat=[2, 3, 4, 5],
)

DARTS = DARTS_V2
