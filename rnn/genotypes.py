"""Recurrent cells (DARTS, section 3.2): `Genotype`, the search's candidate activations, published cells, and the space.

Node 0 combines the word and the previous state. Each node 1, 2, ... has one edge: entry i of the list belongs to node i
+ 1, and is an activation and the earlier node that it is applied to. The output of the cell, the next state, is the
mean of the nodes in `concat`. The name of every `Genotype` in this file is a value of `--arch`. It does not import
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import msgspec

from architectures import Cell, Edge
from architectures.cells import Genotyped, edge_of
from experiment.errors import UserError, shown
from genotypes import edge_key


class Genotype(NamedTuple):
    """A recurrent cell: (activation, input node) of the nodes 1, 2, ..., and the nodes whose mean is the output."""

    recurrent: Sequence[tuple[str, int]]
    concat: Sequence[int]


# The candidates of every edge in the search, in the order of the alphas' columns. A genotype contains no `none`.
PRIMITIVES = ["none", "tanh", "relu", "sigmoid", "identity"]
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
    [("relu", 0), ("relu", 1), ("tanh", 2), ("relu", 3), ("relu", 4), ("identity", 1), ("relu", 5), ("relu", 1)],
    concat=[1, 2, 3, 4, 5, 6, 7, 8],
)

# The same, second order: the cell of the paper's test perplexity of 55.7 on Penn Treebank (Figure 6).
DARTS_V2 = Genotype(
    [("sigmoid", 0), ("relu", 1), ("relu", 1), ("identity", 1), ("tanh", 2), ("sigmoid", 5), ("tanh", 3), ("relu", 5)],
    concat=[1, 2, 3, 4, 5, 6, 7, 8],
)

DARTS = DARTS_V2


class RecurrentCell(Genotyped):
    """A recurrent cell; `genotype` is the `Genotype`."""

    FIELDS = Genotype._fields
    genotype: Genotype

    @classmethod
    def names(cls) -> Mapping[str, Genotype]:
        return {name: value for name, value in globals().items() if isinstance(value, Genotype)}

    @classmethod
    def of(cls, content: Any) -> Self:
        """The cell in `{"recurrent": [["tanh", 0], ...], "concat": [1, ...]}`, or of a `Genotype`.

        Raises `UserError` if these are other cells, or the cell cannot be built.
        """
        return cls(content if isinstance(content, Genotype) else check(**cls.fields(content)))

    @property
    def cells(self) -> dict[str, Cell]:
        """Inputs and output have the names of the paper's Figure 6."""
        nodes = [str(node) for node in range(len(self.genotype.recurrent) + 1)]
        kinds = dict.fromkeys(("x_{t}", "h_{t-1}"), "input") | dict.fromkeys(nodes, "node") | {"h_{t}": "output"}
        edges = [
            Edge(edge_key("recurrent", node, source), nodes[source], nodes[node], activation)
            for node, (activation, source) in enumerate(self.genotype.recurrent, 1)
        ]
        concat = [nodes[node] for node in self.genotype.concat]
        return {"recurrent": Cell(kinds, edges, concat, fixed=(("x_{t}", "0"), ("h_{t-1}", "0")))}

    @classmethod
    def ends(cls, key: str) -> tuple[str, str] | None:
        edge = edge_of(key)
        return edge and (str(edge[2]), str(edge[1]))

    def skips(self) -> dict[str, int]:
        return {}


def check(recurrent: Any, concat: Any) -> Genotype:
    """A `Genotype` of these fields. Raises `UserError` if the cell cannot be built."""
    try:
        pairs, outputs = msgspec.convert(recurrent, list[tuple[str, int]]), msgspec.convert(list(concat), list[int])
    except (msgspec.ValidationError, TypeError) as error:
        raise UserError(
            f"a recurrent cell must be a list of pairs (activation, input node), and a list of nodes: {error}"
        ) from None
    for node, (activation, source) in enumerate(pairs, 1):
        if activation not in PRIMITIVES[1:]:
            raise UserError(
                f"unknown activation {shown(activation)} in the recurrent cell: known are {', '.join(PRIMITIVES[1:])}"
            )
        if not 0 <= source < node:
            raise UserError(
                f"node {node} of the recurrent cell takes node {source}; it can only take nodes 0 to {node - 1}"
            )
    if not outputs or sorted(outputs) != [node for node in range(len(pairs) + 1) if node in outputs]:
        raise UserError(
            f"the concat of a cell must list nodes from 0 to {len(pairs)}, each at most once, not {shown(outputs)}"
        )
    return Genotype(pairs, outputs)
