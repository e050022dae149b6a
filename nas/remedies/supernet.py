"""The supernet with remedies, and its strategy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiment import distributed
from genotypes import CELLS, PRIMITIVES, Genotype
from model_search import Network, derive_cell
from nas.remedies.cells import above_threshold, limit_skips
from nas.remedies.edges import edge
from nas.strategies import Darts

FIRST_RADIUS, LAST_RADIUS = 0.03, 0.3  # of the perturbation; as in the authors' code, the last epoch stays below the second value


class Supernet(Network):
    """`model_search.Network` with remedies; without any, it computes the same.

    Args:
        C, num_classes, layers, criterion, others: as for `Network`.
        partial_channels: K; 1/K of the channels go through the operations. If K > 1, edges have weights (edge normalisation):
            `betas_normal` and `betas_reduce`, (edges,), softmaxed over the edges into a node.
        auxiliary_skip: weight in the first epoch of an additional skip connection on every edge; 0 for none.
        gate: `softmax`, or `sigmoid`, with which operations do not compete; `none` then has no alpha, and alphas begin at 0.
        zero_one_weight: weight of the loss that pulls sigmoids to 0 or 1.
        gate_threshold: the genotype leaves out operations with a smaller sigmoid.
        max_skips: most skip connections in the normal cell of the genotype; None for any number.
        mixed_op: builds an edge from its channels and stride; None for the edge that the options above need.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: nn.Module,
        partial_channels: int = 1,
        auxiliary_skip: float = 0.0,
        gate: str = "softmax",
        zero_one_weight: float = 0.0,
        gate_threshold: float = 0.0,
        max_skips: int | None = None,
        mixed_op: Callable[[int, int], nn.Module] | None = None,
        **others: Any,
    ) -> None:
        mixed_op = mixed_op or edge(partial_channels, auxiliary_skip > 0)
        super().__init__(C, num_classes, layers, criterion, mixed_op=mixed_op, **others)
        self._sigmoid = gate == "sigmoid"
        self._gate_threshold, self._max_skips = gate_threshold, max_skips
        self._auxiliary_skip = auxiliary_skip
        # Numbers that change with the epochs are tensors: compiled code and CUDA graphs read them anew.
        self.register_buffer("auxiliary_weight", torch.tensor(auxiliary_skip), persistent=False)
        self.register_buffer("radius", torch.tensor(FIRST_RADIUS), persistent=False)
        self.auxiliary_weight: Tensor
        self.radius: Tensor
        self.noise: list[Tensor] | None = None  # added to the relaxed alphas in training, (edges, operations) each

        edges = len(self.alphas_normal)
        if self._sigmoid:
            count = len(PRIMITIVES) - ("none" in PRIMITIVES)
            self.alphas_normal, self.alphas_reduce = (nn.Parameter(torch.zeros(edges, count)) for _ in CELLS)
        if zero_one_weight:
            self.criterion = ZeroOneLoss(criterion, zero_one_weight, [self.alphas_normal, self.alphas_reduce])
        weighed = partial_channels > 1
        self.betas_normal, self.betas_reduce = (nn.Parameter(1e-3 * torch.randn(edges)) if weighed else None for _ in CELLS)

    @property
    def betas(self) -> list[nn.Parameter]:
        """The weights of the edges before the softmax: normal, then reduction. Empty if edges have no weights."""
        return [betas for betas in (self.betas_normal, self.betas_reduce) if betas is not None]

    def arch_parameters(self) -> list[nn.Parameter]:
        """Alphas, then betas."""
        return [self.alphas_normal, self.alphas_reduce, *self.betas]

    def set_progress(self, share: float) -> None:
        """Sets the values that change with the epochs. `share` is the part of the search that is done: 0 in the first epoch."""
        self.auxiliary_weight.fill_(self._auxiliary_skip * (1 - share))  # DARTS-'s linear decay
        self.radius.fill_(FIRST_RADIUS + (LAST_RADIUS - FIRST_RADIUS) * share)  # SDARTS, section 5

    # ---- Weights

    def relaxed(self) -> list[Tensor]:
        """The softmaxed alphas, or their sigmoids with 0 for `none`; (edges, len(PRIMITIVES)) each."""
        if not self._sigmoid:
            return super().relaxed()
        gates = [alphas.sigmoid() for alphas in (self.alphas_normal, self.alphas_reduce)]
        if "none" not in PRIMITIVES:
            return gates
        index = PRIMITIVES.index("none")
        return [torch.cat([gate[:, :index], gate.new_zeros(len(gate), 1), gate[:, index:]], dim=1) for gate in gates]

    def edge_weights(self) -> list[Tensor]:
        """The betas, softmaxed over the edges into a node, (edges,) each."""
        into = [2 + step for step in range(self._steps)]
        return [torch.cat([F.softmax(part, dim=0) for part in betas.split(into)]) for betas in self.betas]

    def mixing_weights(self) -> list[Tensor]:
        """(edges, columns) for each kind of cell: weights of the operations, of the auxiliary skip connection and of the edge."""
        mixed = self.relaxed()
        if self.noise is not None and self.training:
            mixed = [onto_simplex(weights + noise) for weights, noise in zip(mixed, self.noise, strict=True)]
        if self._auxiliary_skip:
            mixed = [torch.cat([weights, self.auxiliary_weight.expand(len(weights), 1)], dim=1) for weights in mixed]
        if self.betas:
            pairs = zip(mixed, self.edge_weights(), strict=True)
            mixed = [torch.cat([weights, of_edges[:, None]], dim=1) for weights, of_edges in pairs]
        return mixed

    def draw_noise(self) -> None:
        """Samples a perturbation of the relaxed alphas, each by at most `radius` (SDARTS-RS). It stays until `noise` changes."""
        self.noise = [torch.empty_like(weights).uniform_(-1, 1) * self.radius for weights in self.relaxed()]

    # ---- What was found

    @torch.no_grad()
    def genotype(self) -> Genotype:
        """The discrete cells. The strength of an edge is the weight of its strongest operation, times the edge's weight if it has one."""
        strengths = self.relaxed()
        if self.betas:
            strengths = [weights * of_edges[:, None] for weights, of_edges in zip(strengths, self.edge_weights(), strict=True)]
        fields: list[Any] = []
        for cell, matrix in zip(CELLS, strengths, strict=True):
            limited = cell == "normal" and self._max_skips is not None
            weights = limit_skips(matrix.tolist(), self._steps, self._max_skips or 0) if limited else matrix.tolist()
            edges = derive_cell(weights, self._steps)
            concat = range(2 + self._steps - self._multiplier, self._steps + 2)
            fields += above_threshold(edges, concat, weights, self._gate_threshold) if self._gate_threshold else [edges, concat]
        return Genotype(*fields)

    def betas_by_edge(self) -> dict[str, float]:
        """{edge: weight}, with the names of edges in `alphas_by_edge`. Empty if edges have no weights."""
        weights = [weight for of_cell in self.edge_weights() for weight in of_cell.tolist()]
        return dict(zip(self.alphas_by_edge(), weights, strict=True)) if weights else {}

    def alpha_lines(self) -> list[str]:
        """Lines for the log: a matrix of alphas for each kind of cell, and a vector of betas if edges have weights."""
        return super().alpha_lines() + [str(weights.detach().cpu()) for weights in self.edge_weights()]


class ZeroOneLoss(nn.Module):
    """A loss plus the zero-one loss, `weight` * -mean((sigmoid(alpha) - 1/2)^2), which pulls sigmoids away from 1/2.

    FairDARTS, section 4.3.

    Args:
        criterion: the loss, `criterion(logits, target)`.
        weight: weight of the zero-one loss.
        alphas: the mean is over all their numbers.
    """

    def __init__(self, criterion: nn.Module, weight: float, alphas: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.criterion, self.weight = criterion, weight
        self._alphas: list[Tensor] = list(alphas)  # a list, so that they are not parameters of this module

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.criterion(logits, target) + self.weight * self.zero_one()

    def zero_one(self) -> Tensor:
        """The zero-one loss, ()."""
        return -(torch.cat(self._alphas).sigmoid() - 0.5).square().mean()


def onto_simplex(weights: Tensor) -> Tensor:
    """Projects rows, (..., operations), to weights: clips them to [0, 1] and divides by their sum.

    If a row has no number above 0, its largest number becomes 1.
    """
    clamped = weights.clamp(0, 1)
    largest = torch.zeros_like(weights).scatter(-1, weights.argmax(-1, keepdim=True), 1)
    clamped = torch.where((clamped > 0).any(-1, keepdim=True), clamped, largest)
    return clamped / clamped.sum(-1, keepdim=True)


class Remedied(Darts):
    """DARTS on a `Supernet`. Updates values that change with the epochs. With `args.perturb`, weight steps use perturbed alphas."""

    model: Supernet

    def __init__(self, model: Supernet, args: argparse.Namespace) -> None:
        super().__init__(model, args)
        self._epochs, self._perturbs = args.epochs, args.perturb == "random"
        self._decays = bool(args.auxiliary_skip)

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self.model.set_progress(epoch / self._epochs)

    def step(self, *batches: Any, **options: Any) -> None:
        """`Architect.step` without perturbation. Then samples the perturbation for the weight step."""
        self.model.noise = None
        super().step(*batches, **options)
        if self._perturbs:
            distributed.same_random_numbers(self.model.radius.device)
            self.model.draw_noise()

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.model.noise = None

    def metrics(self) -> dict[str, Any]:
        """Betas, and the values of this epoch."""
        metrics: dict[str, Any] = {"betas": betas} if (betas := self.model.betas_by_edge()) else {}
        if self._decays:
            metrics["auxiliary_weight"] = self.model.auxiliary_weight.item()
        if self._perturbs:
            metrics["perturbation"] = self.model.radius.item()
        return metrics
