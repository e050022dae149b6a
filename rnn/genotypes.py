"""Recurrent cells: `Genotype`, the candidate activations of the search, and the published cells (DARTS, section 3.2).

Node 0 combines the word and the previous state. Each node 1, 2, ... has one edge: entry i of the list belongs to node i
+ 1, and is an activation and the earlier node that it is applied to. The output of the cell, the next state, is the
mean of the nodes in `concat`. This file does not import torch. The name of every `Genotype` in it is a value of
`--arch`. `rnn/cells.py` reads and writes genotypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Genotype(NamedTuple):
    """A recurrent cell: (activation, input node) of the nodes 1, 2, ..., and the nodes whose mean is the output."""

    recurrent: Sequence[tuple[str, int]]
    concat: Sequence[int]


# The candidates of every edge in the search, in the order of the alphas' columns.
PRIMITIVES = ["none", "tanh", "relu", "sigmoid", "identity"]
# All activations that a genotype may contain.
ACTIVATIONS = PRIMITIVES[1:]

STEPS = 8  # nodes after node 0; their mean is the output of the cell in the search

# Pham et al. 2018 (1802.03268).
ENAS = Genotype(
    recurrent=[
        ("tanh", 0),
        ("tanh", 1),
        ("relu", 1),
        ("tanh", 3),
        ("tanh", 3),
        ("relu", 3),
        ("relu", 4),
        ("relu", 7),
        ("relu", 8),
        ("relu", 8),
        ("relu", 8),
    ],
    concat=[2, 5, 6, 9, 10, 11],
)

# Liu et al. 2019 (1806.09055), first order.
DARTS_V1 = Genotype(
    recurrent=[
        ("relu", 0),
        ("relu", 1),
        ("tanh", 2),
        ("relu", 3),
        ("relu", 4),
        ("identity", 1),
        ("relu", 5),
        ("relu", 1),
    ],
    concat=[1, 2, 3, 4, 5, 6, 7, 8],
)

# The same, second order: the cell of the paper's test perplexity of 55.7 on Penn Treebank (Figure 6).
DARTS_V2 = Genotype(
    recurrent=[
        ("sigmoid", 0),
        ("relu", 1),
        ("relu", 1),
        ("identity", 1),
        ("tanh", 2),
        ("sigmoid", 5),
        ("tanh", 3),
        ("relu", 5),
    ],
    concat=[1, 2, 3, 4, 5, 6, 7, 8],
)

DARTS = DARTS_V2
