"""The network of `model_search.py` with remedies (docs/remedies.md), and the rules that change the genotype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from architectures.cells import of_nodes
from genotypes import CELLS, PRIMITIVES, Edges, Genotype, triples
from model_search import MixedOp, Network, derive_cell
from nas.edges import Drawn, Edge, OneOperation
from nas.relaxation import Relaxation, ZeroOneLoss, edge_weights


class Supernet(Network):
    """`model_search.Network` with remedies; without any, it computes the same.

    Args:
        C, num_classes, layers, criterion, others: as for `Network`.
        relaxation: maps the alphas to weights. If it samples, an edge runs one operation, the same in all normal or all
            reduction cells. If it has a threshold, the genotype leaves out operations with a smaller weight.
        partial_channels: K; 1/K of the channels go through the operations. If K > 1, edges have weights (edge
            normalisation): `betas_normal` and `betas_reduce`, (edges,), softmaxed over the edges into a node.
        zero_one_weight: weight of the loss that pulls sigmoids to 0 or 1.
        max_skips: most skip connections in the normal cell of the genotype; None for any number.
        gate_rule: which operations the threshold sifts, see `above_threshold`.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: nn.Module,
        relaxation: Relaxation | None = None,
        partial_channels: int = 1,
        zero_one_weight: float = 0.0,
        max_skips: int | None = None,
        gate_rule: str = "node",
        **others: Any,
    ) -> None:
        relaxation = relaxation or Relaxation()
        mixed_op: Callable[[int, int], nn.Module] = OneOperation if relaxation.samples else MixedOp
        if partial_channels > 1 or relaxation.auxiliary_skip:
            mixed_op = partial(Edge, parts=partial_channels, auxiliary_skip=relaxation.auxiliary_skip > 0)
        super().__init__(C, num_classes, layers, criterion, mixed_op=mixed_op, **others)
        self.relaxation = relaxation
        self.alphas_normal, self.alphas_reduce = (
            relaxation.prepare(alphas, PRIMITIVES) for alphas in (self.alphas_normal, self.alphas_reduce)
        )
        self._max_skips, self._gate_rule = max_skips, gate_rule
        if zero_one_weight:
            self.criterion = ZeroOneLoss(criterion, zero_one_weight, [self.alphas_normal, self.alphas_reduce])
        weighed, edges = partial_channels > 1 and relaxation.weighs_edges, len(self.alphas_normal)
        self._partial_channels = partial_channels
        self.betas_normal, self.betas_reduce = (
            nn.Parameter(1e-3 * torch.randn(edges)) if weighed else None for _ in CELLS
        )

    def arch_parameters(self) -> list[nn.Parameter]:
        """Alphas, then betas."""
        betas = [betas for betas in (self.betas_normal, self.betas_reduce) if betas is not None]
        return [self.alphas_normal, self.alphas_reduce, *betas]

    def relaxed(self) -> list[Tensor]:
        """The weights that `relaxation` gives the alphas; (edges, len(PRIMITIVES)) each."""
        return self.relaxation([self.alphas_normal, self.alphas_reduce])

    def edge_weights(self) -> list[Tensor | None]:
        """The weights of the edges of normal and reduction cells, (edges,); None if they have none."""
        into = [2 + step for step in range(self._steps)]
        return [
            None if betas is None else edge_weights(betas, into) for betas in (self.betas_normal, self.betas_reduce)
        ]

    def mixing_weights(self) -> Sequence[Sequence[Drawn] | Tensor]:
        """For each kind of cell what its edges get: weights of the operations, of the auxiliary skip connection and of
        the edge.
        """
        mixed = self.relaxation.mixed([self.alphas_normal, self.alphas_reduce])
        if self.relaxation.samples:
            drawn = [(weights, weights.argmax(1).tolist()) for weights in mixed]
            return [
                [Drawn(index, row[index : index + 1]) for index, row in zip(chosen, rows, strict=True)]
                for rows, chosen in drawn
            ]
        of_edges = self.edge_weights()
        if self._partial_channels > 1 and of_edges[0] is None:  # partial channels without edge normalisation
            of_edges = [weights.new_ones(len(weights)) for weights in mixed]
        return [self.relaxation.columns(*pair) for pair in zip(mixed, of_edges, strict=True)]

    @torch.no_grad()
    def genotype(self) -> Genotype:
        """The discrete cells.

        The strength of an edge is the weight of its strongest operation, times the edge's weight if it has one.
        """
        fields: list[Any] = []
        for cell, matrix, of_edges in zip(CELLS, self.relaxed(), self.edge_weights(), strict=True):
            weights = (matrix if of_edges is None else matrix * of_edges[:, None]).tolist()
            if cell == "normal" and self._max_skips is not None:
                weights = limit_skips(weights, self._steps, self._max_skips)
            edges = derive_cell(weights, self._steps)
            concat = range(2 + self._steps - self._multiplier, self._steps + 2)
            least = self.relaxation.threshold
            fields += above_threshold(edges, concat, weights, least, self._gate_rule) if least else [edges, concat]
        return Genotype(*fields)

    def betas_by_edge(self) -> dict[str, float]:
        """{edge: weight}, with the names of edges in `alphas_by_edge`. Empty if edges have no weights."""
        weights = [weight for of_cell in self.edge_weights() if of_cell is not None for weight in of_cell.tolist()]
        return dict(zip(self.alphas_by_edge(), weights, strict=True)) if weights else {}

    def alpha_lines(self) -> list[str]:
        """Lines for the log: a matrix of alphas for each kind of cell, and a vector of betas if edges have weights."""
        return super().alpha_lines() + [
            str(weights.detach().cpu()) for weights in self.edge_weights() if weights is not None
        ]


def limit_skips(weights: list[list[float]], steps: int, most: int) -> list[list[float]]:
    """Changed weights, from which `derive_cell` derives at most `most` skip connections (P-DARTS, section 3.3.2).

    While there are more, the weakest one is excluded, and the cell is derived again. `weights` and `steps` as for
    `derive_cell`.
    """
    weights = [list(row) for row in weights]
    skip = PRIMITIVES.index("skip_connect") if "skip_connect" in PRIMITIVES else None
    while skip is not None:
        cell = derive_cell(weights, steps)
        chosen = [_row(node, source) for name, node, source in triples(cell) if name == "skip_connect"]
        weakest = min(chosen, key=lambda row: weights[row][skip], default=0)
        if len(chosen) <= most or weights[weakest][skip] < 0:  # there are no other operations
            break
        weights[weakest][skip] = -1.0
    return weights


def above_threshold(
    edges: Edges, concat: Sequence[int], weights: list[list[float]], threshold: float, rule: str = "node"
) -> tuple[Edges, Sequence[int]]:
    """(edges, concat) in which operations with a weight below the threshold are replaced by `none` (FairDARTS, section
    4.4).

    A node without edges is not concatenated. If nothing would remain of the cell, it does not change.

    Args:
        edges, concat: a cell derived by DARTS' rule.
        weights: the weights that it was derived from.
        threshold: smallest weight of an operation that is kept.
        rule: `node` sifts these edges. `edge` sifts the two strongest operations of every edge, the weaker one first.
    """
    found = triples(edges)
    nodes: list[list[tuple[str, int]]] = [[] for _ in range(2, found[-1][1] + 1)]
    if rule == "edge":
        operations = [index for index, name in enumerate(PRIMITIVES) if name != "none"]
        found = [
            (PRIMITIVES[operation], node, source)
            for node in range(2, len(nodes) + 2)
            for source in range(node)
            for operation in sorted(operations, key=weights[_row(node, source)].__getitem__)[-2:]
        ]
    reached = {0, 1}
    for name, node, source in found:
        strong = source in reached and weights[_row(node, source)][PRIMITIVES.index(name)] >= threshold
        nodes[node - 2].append((name if strong else "none", source))
        if strong:
            reached.add(node)
    outputs = [node for node in concat if node in reached]
    return (of_nodes(nodes), outputs) if outputs else (edges, concat)


def _row(node: int, source: int) -> int:
    """The row in the alphas of the edge from node `source` to `node`."""
    return sum(range(2, node)) + source
