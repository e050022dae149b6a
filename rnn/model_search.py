"""The supernet of the recurrent search: all edges and all activations, weighted by the softmax of the alphas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genotypes import edge_key
from rnn.genotypes import PRIMITIVES, STEPS, Genotype
from rnn.model import ACTIVATIONS, DARTSCell, Dropouts, RNNModel, masked


class DARTSCellSearch(DARTSCell):
    """One time step of a cell in which every node has an edge from every node before it, with every activation.

    DARTS, equation 2. All edges into a node share its matrix. All nodes share one BatchNorm, which has no parameters.
    `none` has no output, so the weights of the other activations of an edge sum to less than 1.
    """

    def __init__(self, nhid: int, genotype: None) -> None:
        super().__init__(nhid, genotype)
        self.bn = nn.BatchNorm1d(nhid, affine=False)

    def forward(self, x: Tensor, h: Tensor, h_mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """Like `DARTSCell.forward`. `weights`: the softmaxed alphas, (edges, len(PRIMITIVES))."""
        assert weights is not None
        states = self.bn(self.first_node(x, h, h_mask))[None]  # (nodes so far, B, H)
        for W, edges in zip(self._Ws, weights.split(list(range(1, STEPS + 1))), strict=True):
            c, q = (masked(states, h_mask) @ W).chunk(2, dim=-1)
            # For each edge, the sum over activations of weight * (s + c * (activation(q) - s)), factored.
            columns = dict(zip(PRIMITIVES, edges.t()[:, :, None, None], strict=True))  # {primitive: (edges, 1, 1)}
            activated = sum(columns[name] * activation(q) for name, activation in ACTIVATIONS.items())
            kept = sum(columns[name] for name in ACTIVATIONS) * states
            node = (kept + c.sigmoid() * (activated - kept)).sum(0)
            states = torch.cat([states, self.bn(node)[None]])
        return states[1:].mean(0)


class RNNModelSearch(RNNModel):
    """The search network. Row i (i - 1) / 2 + j of its alphas, (edges, len(PRIMITIVES)), is the edge from node j to i.

    The alphas are a parameter: unlike the original's, they move by `to()`, and `state_dict()` has them.
    """

    CELL = DARTSCellSearch

    def __init__(self, ntoken: int, ninp: int, dropouts: Dropouts) -> None:
        super().__init__(ntoken, ninp, dropouts, None)
        self.alphas = nn.Parameter(1e-3 * torch.randn(STEPS * (STEPS + 1) // 2, len(PRIMITIVES)))

    def edge_weights(self) -> Tensor:
        return F.softmax(self.alphas, dim=-1)

    def arch_parameters(self) -> list[nn.Parameter]:
        """The alphas, alpha in the paper."""
        return [self.alphas]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Like `RNNModel.weight_parameters`, w in the paper."""
        return [parameter for parameter in self.parameters() if parameter is not self.alphas]

    def alphas_by_edge(self) -> dict[str, dict[str, float]]:
        """The softmaxed alphas, {edge: {activation: weight}}, with the edges' names of `genotypes.edge_key`."""
        keys = [edge_key("recurrent", node, source) for node in range(1, STEPS + 1) for source in range(node)]
        rows = self.edge_weights().tolist()
        return {key: dict(zip(PRIMITIVES, row, strict=True)) for key, row in zip(keys, rows, strict=True)}

    def genotype(self) -> Genotype:
        """The discrete cell derived from the alphas: for each node the strongest edge and activation, without `none`.

        Between equal weights, the earlier edge and the earlier activation are chosen.
        """
        gene = []
        for edges in self.edge_weights().split(list(range(1, STEPS + 1))):
            best = int(edges[:, 1:].argmax())  # the first of several; column 0 is `none`
            gene.append((PRIMITIVES[1 + best % len(ACTIVATIONS)], best // len(ACTIVATIONS)))
        return Genotype(recurrent=gene, concat=range(1, STEPS + 1))

    export = genotype

    def alpha_lines(self) -> list[str]:
        """Lines for the log: the softmaxed alphas, as in the original."""
        return [str(self.edge_weights().detach().cpu())]
