"""What a cell is: `Genotype`, the candidates of the search, the published cells.

A cell has two inputs (nodes 0 and 1: the outputs of the two previous cells) and intermediate nodes 2, 3, ... Node i is the sum of two
edges, entries 2(i - 2) and 2(i - 2) + 1 of the list. An edge is an operation and the earlier node that it is applied to. The outputs of the
nodes in `*_concat` are concatenated along the channels (DARTS, section 2.1). This file does not import torch. `nas/architecture.py` reads
and writes genotypes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple


class Genotype(NamedTuple):
    """A normal and a reduction cell: lists of (operation, input node), and the nodes that are concatenated."""

    normal: Sequence[tuple[str, int]]
    normal_concat: Sequence[int]
    reduce: Sequence[tuple[str, int]]
    reduce_concat: Sequence[int]


# The candidates of every edge in the search, in the order of the alphas' columns (DARTS, section 3.1). Each is a key of `operations.OPS`.
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

CELLS = ("normal", "reduce")


def reductions(layers: int) -> tuple[int, int]:
    """The first and the second reduction cell of so many cells, counted from 0. Fewer than 3 cells are all reduction cells."""
    return layers // 3, 2 * layers // 3


def edge_key(cell: str, node: int, source: int) -> str:
    """The name of the edge from node `source` to node `node` of a cell, by which alphas and choices are recorded."""
    return f"{cell}_n{node}_p{source}"


def edge_of(key: str) -> tuple[str, int, int] | None:
    """(cell, node, source): the inverse of `edge_key`; None if `key` is not such a name."""
    match = re.fullmatch(r"(normal|reduce|recurrent)_n(\d{1,3})_p(\d{1,3})", key, re.ASCII)
    return (match[1], int(match[2]), int(match[3])) if match else None


def to_nni(genotype: Genotype) -> dict[str, str | int]:
    """The dictionary of NNI's DARTS tutorial: `<cell>/op_<node>_<edge>` and `<cell>/input_<node>_<edge>`, nodes from 2, edges 0 and 1.

    Raises:
        ValueError: not all nodes are concatenated. This dictionary cannot express that.
    """
    found: dict[str, str | int] = {}
    for cell, edges, concat in zip(CELLS, genotype[::2], genotype[1::2], strict=True):
        if sorted(concat) != list(range(2, len(edges) // 2 + 2)):
            raise ValueError(f"NNI's dictionary needs cells that concatenate all their nodes: the {cell} cell concatenates {list(concat)}")
        for index, (operation, source) in enumerate(edges):
            edge = f"{index // 2 + 2}_{index % 2}"
            found |= {f"{cell}/op_{edge}": operation, f"{cell}/input_{edge}": source}
    return found


# Zoph et al. 2018 (1707.07012), the cell NASNet-A.
NASNet = Genotype(
    normal=[
        ("sep_conv_5x5", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_5x5", 0),
        ("sep_conv_3x3", 0),
        ("avg_pool_3x3", 1),
        ("skip_connect", 0),
        ("avg_pool_3x3", 0),
        ("avg_pool_3x3", 0),
        ("sep_conv_3x3", 1),
        ("skip_connect", 1),
    ],
    normal_concat=[2, 3, 4, 5, 6],
    reduce=[
        ("sep_conv_5x5", 1),
        ("sep_conv_7x7", 0),
        ("max_pool_3x3", 1),
        ("sep_conv_7x7", 0),
        ("avg_pool_3x3", 1),
        ("sep_conv_5x5", 0),
        ("skip_connect", 3),
        ("avg_pool_3x3", 2),
        ("sep_conv_3x3", 2),
        ("max_pool_3x3", 1),
    ],
    reduce_concat=[4, 5, 6],
)

# Real et al. 2019 (1802.01548), the cell AmoebaNet-A.
AmoebaNet = Genotype(
    normal=[
        ("avg_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0),
        ("avg_pool_3x3", 3),
        ("sep_conv_3x3", 1),
        ("skip_connect", 1),
        ("skip_connect", 0),
        ("avg_pool_3x3", 1),
    ],
    normal_concat=[4, 5, 6],
    reduce=[
        ("avg_pool_3x3", 0),
        ("sep_conv_3x3", 1),
        ("max_pool_3x3", 0),
        ("sep_conv_7x7", 2),
        ("sep_conv_7x7", 0),
        ("avg_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("conv_7x1_1x7", 0),
        ("sep_conv_3x3", 5),
    ],
    reduce_concat=[3, 4, 6],
)

# Liu et al. 2019 (1806.09055), first order.
DARTS_V1 = Genotype(
    normal=[
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("skip_connect", 2),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("avg_pool_3x3", 0),
    ],
    reduce_concat=[2, 3, 4, 5],
)

# The same, second order: the cell of the paper's 2.76% test error (Figures 4 and 5).
DARTS_V2 = Genotype(
    normal=[
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    ],
    reduce_concat=[2, 3, 4, 5],
)

DARTS = DARTS_V2

# The two cells of NNI's DARTS tutorial: from its plain evaluator, and from the paper's recipe (97.12% after 600 epochs, by its authors).
NNI_BASIC = Genotype(
    normal=[
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 2),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("max_pool_3x3", 0),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("dil_conv_5x5", 2),
        ("sep_conv_3x3", 0),
        ("dil_conv_5x5", 2),
        ("sep_conv_5x5", 1),
        ("sep_conv_5x5", 4),
        ("dil_conv_5x5", 2),
    ],
    reduce_concat=[2, 3, 4, 5],
)

NNI_FULL = Genotype(
    normal=[
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 0),
        ("max_pool_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("max_pool_3x3", 0),
        ("sep_conv_5x5", 1),
        ("dil_conv_5x5", 2),
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 0),
        ("sep_conv_3x3", 2),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
    ],
    reduce_concat=[2, 3, 4, 5],
)

# Xu et al. 2020 (1907.05737), searched on CIFAR-10: 2.57% test error there.
PC_DARTS_CIFAR = Genotype(
    normal=[
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("sep_conv_3x3", 0),
        ("dil_conv_3x3", 1),
        ("sep_conv_5x5", 0),
        ("sep_conv_3x3", 1),
        ("avg_pool_3x3", 0),
        ("dil_conv_3x3", 1),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("sep_conv_5x5", 1),
        ("max_pool_3x3", 0),
        ("sep_conv_5x5", 1),
        ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 2),
    ],
    reduce_concat=[2, 3, 4, 5],
)

# The same, searched on ImageNet: 24.2% top-1 error there.
PC_DARTS_IMAGENET = Genotype(
    normal=[
        ("skip_connect", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 0),
        ("skip_connect", 1),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 1),
        ("dil_conv_5x5", 4),
    ],
    normal_concat=[2, 3, 4, 5],
    reduce=[
        ("sep_conv_3x3", 0),
        ("skip_connect", 1),
        ("dil_conv_5x5", 2),
        ("max_pool_3x3", 1),
        ("sep_conv_3x3", 2),
        ("sep_conv_3x3", 1),
        ("sep_conv_5x5", 0),
        ("sep_conv_3x3", 3),
    ],
    reduce_concat=[2, 3, 4, 5],
)


def _sparse(normal: str, reduce: str) -> Genotype:
    """A genotype whose nodes may have fewer than two edges, each `operation:source>node`; missing edges become `none`.

    Edges from a node without inputs are dropped. Nodes without edges are not concatenated.
    """
    fields: list[Any] = []
    for text in (normal, reduce):
        listed = [re.split("[:>]", edge) for edge in text.split()]
        nodes = {int(node) for _, _, node in listed}
        cell: list[tuple[str, int]] = []
        for node in range(2, 6):
            edges = [(name, int(source)) for name, source, head in listed if int(head) == node and int(source) in nodes | {0, 1}]
            cell += edges + [("none", 0), ("none", 1)][len(edges) :]
        fields += [cell, sorted(nodes)]
    return Genotype(*fields)


# Chu et al. 2020 (1911.12126), the cells of seven searches on CIFAR-10: 2.54 +- 0.05% test error there on average.
FAIR_DARTS_A = _sparse(
    "sep_conv_3x3:0>2 sep_conv_5x5:1>2 max_pool_3x3:0>4 sep_conv_3x3:0>5",
    "max_pool_3x3:0>2 avg_pool_3x3:1>2 avg_pool_3x3:0>3 dil_conv_5x5:1>3 avg_pool_3x3:0>4 "
    "sep_conv_5x5:1>4 skip_connect:0>5 skip_connect:1>5",
)
FAIR_DARTS_B = _sparse(
    "sep_conv_3x3:0>2 sep_conv_3x3:1>2 sep_conv_3x3:1>3 dil_conv_3x3:0>4 sep_conv_5x5:1>4 dil_conv_5x5:1>5",
    "skip_connect:0>2 dil_conv_3x3:1>2 skip_connect:0>3 dil_conv_3x3:1>3 max_pool_3x3:0>4 "
    "sep_conv_3x3:1>4 skip_connect:2>5 max_pool_3x3:0>5",
)
FAIR_DARTS_C = _sparse(
    "max_pool_3x3:0>2 sep_conv_5x5:1>2 dil_conv_3x3:0>4 dil_conv_5x5:2>4 skip_connect:3>5 sep_conv_3x3:0>5",
    "dil_conv_3x3:1>2 dil_conv_5x5:0>2 dil_conv_3x3:0>3 sep_conv_3x3:1>3 sep_conv_5x5:0>4 "
    "sep_conv_5x5:3>4 sep_conv_5x5:0>5 skip_connect:1>5",
)
FAIR_DARTS_D = _sparse(
    "sep_conv_3x3:0>2 sep_conv_5x5:1>2 dil_conv_3x3:1>3 max_pool_3x3:0>3 dil_conv_3x3:0>4 "
    "dil_conv_3x3:1>4 sep_conv_3x3:0>5 dil_conv_5x5:1>5",
    "max_pool_3x3:0>2 sep_conv_5x5:1>2 avg_pool_3x3:0>3 dil_conv_5x5:2>3 dil_conv_3x3:3>4 "
    "avg_pool_3x3:0>4 avg_pool_3x3:0>5 skip_connect:3>5",
)
FAIR_DARTS_E = _sparse(
    "sep_conv_3x3:0>2 sep_conv_3x3:1>2 dil_conv_3x3:1>4 dil_conv_3x3:2>4 dil_conv_3x3:0>5 dil_conv_5x5:1>5",
    "max_pool_3x3:1>2 max_pool_3x3:0>2 max_pool_3x3:1>3 max_pool_3x3:0>3 sep_conv_5x5:1>4 "
    "max_pool_3x3:0>4 avg_pool_3x3:0>5 dil_conv_5x5:1>5",
)
FAIR_DARTS_F = _sparse(
    "max_pool_3x3:0>2 sep_conv_3x3:1>2 dil_conv_3x3:1>3 sep_conv_5x5:1>4 sep_conv_3x3:0>5 sep_conv_3x3:1>5",
    "max_pool_3x3:0>2 max_pool_3x3:1>2 max_pool_3x3:0>3 dil_conv_3x3:1>3 dil_conv_3x3:2>4 "
    "max_pool_3x3:0>4 max_pool_3x3:0>5 sep_conv_3x3:1>5",
)
FAIR_DARTS_G = _sparse(
    "sep_conv_3x3:0>2 sep_conv_3x3:1>2 skip_connect:3>4 sep_conv_5x5:1>4 dil_conv_3x3:0>5 sep_conv_3x3:1>5",
    "avg_pool_3x3:1>2 skip_connect:0>2 skip_connect:2>3 max_pool_3x3:1>3 sep_conv_5x5:3>4 "
    "max_pool_3x3:0>4 dil_conv_3x3:1>5 dil_conv_3x3:4>5",
)

KNOWN = {
    "NASNet": NASNet,
    "AmoebaNet": AmoebaNet,
    "DARTS_V1": DARTS_V1,
    "DARTS_V2": DARTS_V2,
    "DARTS": DARTS,
    "NNI_BASIC": NNI_BASIC,
    "NNI_FULL": NNI_FULL,
    "PC_DARTS_CIFAR": PC_DARTS_CIFAR,
    "PC_DARTS_IMAGENET": PC_DARTS_IMAGENET,
    "FAIR_DARTS_A": FAIR_DARTS_A,
    "FAIR_DARTS_B": FAIR_DARTS_B,
    "FAIR_DARTS_C": FAIR_DARTS_C,
    "FAIR_DARTS_D": FAIR_DARTS_D,
    "FAIR_DARTS_E": FAIR_DARTS_E,
    "FAIR_DARTS_F": FAIR_DARTS_F,
    "FAIR_DARTS_G": FAIR_DARTS_G,
}

# All operations that a genotype may contain: the candidates, and others that the published cells use.
OPERATIONS = list(
    dict.fromkeys([*PRIMITIVES, *(operation for cells in KNOWN.values() for operation, _ in [*cells.normal, *cells.reduce])]),
)
