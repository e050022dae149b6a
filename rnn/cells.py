"""The recurrent cell of DARTS as an `Architecture`. This file does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from architectures import Cell, Edge, is_index
from architectures.cells import Genotyped, edge_of
from experiment.errors import UserError, shown
from genotypes import edge_key
from rnn import genotypes
from rnn.genotypes import ACTIVATIONS, Genotype


def names() -> dict[str, Genotype]:
    """{name: published cell}: every genotype in `rnn/genotypes.py`."""
    return {name: value for name, value in vars(genotypes).items() if isinstance(value, Genotype)}


class RecurrentCell(Genotyped):
    """A recurrent cell; `genotype` is the `Genotype`."""

    FIELDS = Genotype._fields
    genotype: Genotype

    @classmethod
    def names(cls) -> Mapping[str, Genotype]:
        return names()

    @classmethod
    def of(cls, content: Any) -> Self:
        """The cell in `{"recurrent": [["tanh", 0], ...], "concat": [1, ...]}`, or of a `Genotype`.

        Raises:
            UserError: these are other cells, or the cell cannot be built.
        """
        return cls(content if isinstance(content, Genotype) else check(**cls.fields(content)))

    @property
    def cells(self) -> dict[str, Cell]:
        """Every node but the first has one edge. Inputs and output have the names of the paper's Figure 6."""
        nodes = [str(node) for node in range(len(self.genotype.recurrent) + 1)]
        kinds = dict.fromkeys(("x_{t}", "h_{t-1}"), "input") | dict.fromkeys(nodes, "node") | {"h_{t}": "output"}
        edges = [
            Edge(edge_key("recurrent", node, source), nodes[source], nodes[node], activation)
            for node, (activation, source) in enumerate(self.genotype.recurrent, 1)
        ]
        return {
            "recurrent": Cell(
                kinds, edges, [nodes[node] for node in self.genotype.concat], (("x_{t}", "0"), ("h_{t-1}", "0"))
            )
        }

    @classmethod
    def ends(cls, key: str) -> tuple[str, str] | None:
        edge = edge_of(key)
        return edge and (str(edge[2]), str(edge[1]))

    def skips(self) -> dict[str, int]:
        return {}


def check(recurrent: Any, concat: Any) -> Genotype:
    """A `Genotype` of these fields, if the cell can be built.

    Raises:
        UserError: it cannot.
    """
    if not isinstance(recurrent, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in recurrent
    ):
        raise UserError("the recurrent cell of a Genotype must be a list of pairs (activation, input node)")
    if not recurrent:
        raise UserError("the recurrent cell has no edges")
    for node, (activation, source) in enumerate(recurrent, 1):
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise UserError(
                f"unknown activation {shown(activation)} in the recurrent cell: known are {', '.join(ACTIVATIONS)}"
            )
        if not is_index(source, node):
            raise UserError(
                f"node {node} of the recurrent cell takes node {shown(source)}; it can only take nodes 0 to {node - 1}"
            )
    listed = isinstance(concat, list | tuple | range) and all(is_index(node, len(recurrent) + 1) for node in concat)
    if not listed or not 0 < len(concat) == len(set(concat)):
        raise UserError(f"concat must list nodes from 0 to {len(recurrent)}, each at most once, not {shown(concat)}")
    return Genotype([(activation, source) for activation, source in recurrent], list(concat))
