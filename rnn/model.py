"""The language model with the recurrent cell of a genotype (DARTS, section 3.2 and appendix A.2).

`DARTSCell` computes one time step. `RNNModel` is the model around it: an embedding, the cell over the time steps, and a
decoder that shares its matrix with the embedding (Inan et al. 2017, 1611.01462). Dropout is variational (Gal,
Ghahramani 2016, 1512.05287): all time steps of a batch share one mask.

Names of dimensions: T time steps, B sequences, V words of the vocabulary, H units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnn.genotypes import STEPS, Genotype

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
INITRANGE = 0.04


class Dropouts(NamedTuple):
    """Dropout probabilities, as of rnn/train.py's flags of these names."""

    dropout: float = 0.0
    dropouth: float = 0.0
    dropoutx: float = 0.0
    dropouti: float = 0.0
    dropoute: float = 0.0


class Masks(NamedTuple):
    """The dropout masks of one batch, with values 0 or 1 / (1 - probability); None without dropout."""

    embedding: Tensor | None = None  # (V, 1)
    input: Tensor | None = None  # (1, B, H)
    x: Tensor | None = None  # (B, H)
    h: Tensor | None = None  # (B, H)
    output: Tensor | None = None  # (1, B, H)


class DARTSCell(nn.Module):
    """One time step of a recurrent cell: input x and previous state h, (B, H), to the next state, (B, H).

    Every edge is a highway connection: s + sigmoid(c) * (activation(q) - s), where c and q are the halves of the
    product of the edge's input s and a matrix.
    """

    def __init__(self, nhid: int, genotype: Genotype | None) -> None:
        super().__init__()
        self.genotype = genotype
        steps = STEPS if genotype is None else len(genotype.recurrent)
        self._W0 = nn.Parameter(torch.empty(2 * nhid, 2 * nhid).uniform_(-INITRANGE, INITRANGE))
        matrices = (torch.empty(nhid, 2 * nhid).uniform_(-INITRANGE, INITRANGE) for _ in range(steps))
        self._Ws = nn.ParameterList(map(nn.Parameter, matrices))

    def project(self, x: Tensor) -> Tensor:
        """The input's part of node 0 for all time steps: masked inputs (T, B, H) to (T, B, 2H)."""
        return x @ self._W0[: x.size(-1)]

    def forward(self, x: Tensor, h: Tensor, h_mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """`x`: (B, 2H), from `project`. `h_mask`: `Masks.h`. `weights`: of the edges, in the search only."""
        assert self.genotype is not None
        states = [self.first_node(x, h, h_mask)]
        for W, (name, source) in zip(self._Ws, self.genotype.recurrent, strict=True):
            s = states[source]
            c, q = (masked(s, h_mask) @ W).chunk(2, dim=-1)
            states.append(s + c.sigmoid() * (ACTIVATIONS[name](q) - s))
        return torch.stack([states[node] for node in self.genotype.concat]).mean(0)

    def first_node(self, x: Tensor, h: Tensor, h_mask: Tensor | None) -> Tensor:
        """Node 0: a highway connection of the previous state and the input."""
        c, q = (x + masked(h, h_mask) @ self._W0[-h.size(-1) :]).chunk(2, dim=-1)
        return h + c.sigmoid() * (q.tanh() - h)


class Decoder(nn.Linear):
    """Maps states, (..., H), to logits of the next words, (..., V)."""

    def loss(self, states: Tensor, target: Tensor) -> Tensor:
        """The sum of the cross-entropies of states, (N, H), with the next words, (N,)."""
        return F.cross_entropy(self(states), target, reduction="sum")

    @staticmethod
    def rows(batch_size: int) -> int:
        """N in `loss`: as many whole time steps as fit into 256 rows, but at least one.

        Their logits should fit into a processor's cache. Fewer rows would cost time: every call computes a gradient of
        the matrix.
        """
        return batch_size * max(1, 256 // batch_size)


class RNNModel(nn.Module):
    """Embedding, cell, decoder. `ntoken` is V; `ninp` is H, the size of embeddings and states."""

    CELL: type[DARTSCell] = DARTSCell

    def __init__(self, ntoken: int, ninp: int, dropouts: Dropouts, genotype: Genotype | None) -> None:
        super().__init__()
        self.ntoken, self.ninp, self.dropouts = ntoken, ninp, dropouts
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnns = nn.ModuleList([self.CELL(ninp, genotype)])
        self.decoder = Decoder(ninp, ntoken)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -INITRANGE, INITRANGE)
        nn.init.zeros_(self.decoder.bias)

    def weight_parameters(self) -> list[nn.Parameter]:
        """The network's weights. The matrix that encoder and decoder share comes first."""
        return list(self.parameters())

    def edge_weights(self) -> Tensor | None:
        """The cell's argument `weights`."""
        return None

    def forward(
        self, x: Tensor, hidden: Tensor, masks: Masks | None = None, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Runs the model on a sequence.

        Args:
            x: words, (T, B).
            hidden: the state before the sequence, (1, B, H).
            masks: dropout masks; None draws new ones in training mode.
            target: the next words, (T, B); None to get log-probabilities.

        Returns:
            Log-probabilities of the next words, (T, B, V), or with `target` the mean loss, (); the state after the
            sequence, (1, B, H); all states, (T, B, H), after the decoder's dropout; and the same before it.
        """
        if masks is None:
            masks = self.draw_masks(x.size(1))
        embedded = masked(F.embedding(x, masked(self.encoder.weight, masks.embedding)), masks.input)
        cell, h, weights = cast(DARTSCell, self.rnns[0]), hidden[0], self.edge_weights()
        over_time = []
        for x_t in cell.project(masked(embedded, masks.x)):
            h = cell(x_t, h, masks.h, weights)
            over_time.append(h)
        states = torch.stack(over_time)
        output = masked(states, masks.output)
        if target is None:
            return F.log_softmax(self.decoder(output), dim=-1), states[-1:], output, states
        rows = self.decoder.rows(x.size(1))
        parts = zip(output.flatten(0, 1).split(rows), target.flatten().split(rows), strict=True)
        total = torch.stack([self.decoder.loss(*part) for part in parts]).sum()
        return total / target.numel(), states[-1:], output, states

    def draw_masks(self, batch_size: int) -> Masks:
        """Draws the dropout masks of a batch. In evaluation mode, all are None."""
        if not self.training:
            return Masks()
        weight, p, B, H = self.encoder.weight, self.dropouts, batch_size, self.ninp

        def mask(p: float, *shape: int) -> Tensor | None:
            return weight.new_empty(shape).bernoulli_(1 - p).div_(1 - p) if p else None

        return Masks(
            embedding=mask(p.dropoute, self.ntoken, 1),
            input=mask(p.dropouti, 1, B, H),
            x=mask(p.dropoutx, B, H),
            h=mask(p.dropouth, B, H),
            output=mask(p.dropout, 1, B, H),
        )

    def multiply_adds(self, edges: int, words: int) -> float:
        """Multiply-adds of a forward pass over this many words, by a cell with this many edges."""
        return float(words) * self.ninp * (2 * self.ninp * (2 + edges) + self.ntoken)

    def init_hidden(self, batch_size: int) -> Tensor:
        """The initial state: zeros, (1, B, H)."""
        return self.encoder.weight.new_zeros(1, batch_size, self.ninp)


# The methods that `--compile` compiles.
REGIONS: dict[type[nn.Module], tuple[str, ...]] = {DARTSCell: ("forward",), Decoder: ("loss",)}


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x * mask`, or `x` if the mask is None."""
    return x if mask is None else x * mask
