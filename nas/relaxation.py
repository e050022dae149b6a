"""Relaxations: how the alphas of edges become weights of their candidates, in any space.

A strategy names its class, `Darts.relaxation`. To write one, derive a class from `Relaxation` and define `forward`, or
`mixed` if the weights of a pass are not those that the architecture is derived from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiment import distributed

FIRST_RADIUS, LAST_RADIUS = 0.03, 0.3  # of SDARTS; as in the authors' code, the last epoch stays below the second value
FIRST_TEMPERATURE, LAST_TEMPERATURE = 10.0, 0.1  # of GDAS

# How the weight of the auxiliary skip connection decays, by the share of the epochs that have passed (DARTS-, and its
# code).
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda passed: 1 - passed,
    "cosine": lambda passed: (1 + math.cos(math.pi * passed)) / 2,
    "slow_cosine": lambda passed: math.cos(math.pi / 2 * passed),
    "none": lambda passed: 1.0,
}


class Relaxation(nn.Module):
    """The softmax (DARTS, section 2.2).

    Numbers that change with the epochs are tensors, which keep their memory: compiled code and CUDA graphs read them
    anew.

    Args:
        epochs: of the search.
        auxiliary_skip: weight in the first epoch of an additional skip connection on every edge; 0 for none.
        decay: one of `DECAYS`; the epoch from which that weight decays; the one from which it stays, None for never.
    """

    none = True  # whether the choice of nothing takes part: it has an alpha in every space, but no output
    draws = False  # whether `mixed` draws anew in every pass, so that losses of two passes cannot be compared
    samples = False  # whether `mixed` returns one-hot rows: an edge runs one candidate
    scalars = False  # whether such an edge adds the other weights to its output: see `nas.strategies.Gdas`
    weighs_edges = True  # whether edges with partial channels have weights (edge normalisation)
    threshold = 0.0  # operations with a smaller weight are left out of the architecture

    def __init__(
        self, epochs: int = 1, auxiliary_skip: float = 0.0, decay: tuple[str, int, int | None] = ("linear", 0, None)
    ) -> None:
        super().__init__()
        self.epochs, self.auxiliary_skip, self._decay = epochs, auxiliary_skip, decay
        self.register_buffer("auxiliary_weight", torch.tensor(auxiliary_skip), persistent=False)
        self.auxiliary_weight: Tensor

    def prepare(self, alphas: nn.Parameter, candidates: Sequence[str]) -> nn.Parameter:
        """Returns the parameters to train in place of new alphas, (..., candidates).

        Called for each tensor of alphas, in order.
        """
        return alphas

    def forward(self, alphas: Sequence[Tensor]) -> list[Tensor]:
        """The weights from which the architecture is derived, (..., candidates) each."""
        return [F.softmax(alpha, dim=-1) for alpha in alphas]

    def mixed(self, alphas: Sequence[Tensor]) -> list[Tensor]:
        """The weights by which edges mix their candidates in this pass, (..., candidates) each."""
        return self(alphas)

    def columns(self, weights: Tensor, edges: Tensor | None = None) -> Tensor:
        """`weights`, (..., candidates), with a column for the auxiliary skip connection and one for the weights of
        `edges`, (...).
        """
        more = [self.auxiliary_weight.expand(*weights.shape[:-1], 1)] if self.auxiliary_skip else []
        more += [] if edges is None else [edges.unsqueeze(-1)]
        return torch.cat([weights, *more], dim=-1) if more else weights

    def begin_epoch(self, epoch: int) -> None:
        """Sets the values that change with the epochs."""
        decay, first, last = self._decay
        passed = max(0, min(epoch, self.epochs if last is None else last) - first)
        self.auxiliary_weight.fill_(self.auxiliary_skip * DECAYS[decay](passed / max(1, self.epochs - first)))

    def before_alphas(self) -> None:
        """Called before every alpha step, and at the end of an epoch."""

    def before_weights(self, train_loss: Callable[[], Tensor]) -> None:
        """Called between an alpha step and the weight step.

        Args:
            train_loss: the loss of the weight step's batch in evaluation mode, ().
        """

    def metrics(self) -> dict[str, float]:
        """Numbers for the epoch's row in metrics.jsonl."""
        return {"auxiliary_weight": self.auxiliary_weight.item()} if self.auxiliary_skip else {}


class Perturbed(Relaxation):
    """SDARTS-RS: in the weight step, every softmaxed alpha is changed at random by at most `radius` (section 4.1)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("radius", torch.tensor(FIRST_RADIUS), persistent=False)
        self.radius: Tensor
        self._alphas: Sequence[Tensor] = []  # of the last pass
        self.perturbed: list[Tensor] = []  # the weights of this weight step

    def mixed(self, alphas: Sequence[Tensor]) -> list[Tensor]:
        self._alphas = alphas
        return self.perturbed or self(alphas)

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self.radius.fill_(FIRST_RADIUS + (LAST_RADIUS - FIRST_RADIUS) * epoch / self.epochs)

    def before_alphas(self) -> None:
        self.perturbed = []

    @torch.no_grad()
    def before_weights(self, train_loss: Callable[[], Tensor]) -> None:
        distributed.same_random_numbers(self.radius.device)
        self.perturbed = [
            onto_simplex(weights + torch.empty_like(weights).uniform_(-1, 1) * self.radius)
            for weights in self(self._alphas)
        ]

    def metrics(self) -> dict[str, float]:
        return {**super().metrics(), "perturbation": self.radius.item()}


class Adversarial(Perturbed):
    """SDARTS-ADV: the change of the softmaxed alphas is the worst that projected gradient ascent on the training loss
    finds from a random start (section 4.2).
    """

    steps = 7  # of ascent, as in the authors' code; each moves every weight by 2 / 7 of the radius

    def before_weights(self, train_loss: Callable[[], Tensor]) -> None:
        super().before_weights(train_loss)
        start = self.perturbed
        with torch.no_grad():
            self.perturbed = plain = self(self._alphas)
            bounds = [(weights - self.radius, weights + self.radius) for weights in plain]
            loss = train_loss()
        self.perturbed = start
        for _ in range(self.steps):
            for weights in self.perturbed:
                weights.requires_grad_()
            gradients = distributed.average(torch.autograd.grad(train_loss(), self.perturbed))
            self.perturbed = [
                onto_simplex((weights.detach() + 2 / self.steps * self.radius * gradient.sign()).clamp(*allowed))
                for weights, gradient, allowed in zip(self.perturbed, gradients, bounds, strict=True)
            ]
        with torch.no_grad():
            rose = train_loss() > loss
            self.perturbed = [torch.where(rose, *pair) for pair in zip(self.perturbed, plain, strict=True)]


class Dirichlet(Relaxation):
    """DrNAS: the weights of an edge are a sample of a Dirichlet distribution, anew in every pass, in evaluation too.

    Its concentration is elu(alpha) + 1 (section 2.3). The architecture is derived from the softmaxed alphas, as in the
    authors' code.
    """

    none = weighs_edges = False
    draws = True

    def mixed(self, alphas: Sequence[Tensor]) -> list[Tensor]:
        return [torch.distributions.Dirichlet(concentration(alpha), validate_args=False).rsample() for alpha in alphas]

    def before_alphas(self) -> None:
        distributed.same_random_numbers(self.auxiliary_weight.device)


class Sigmoid(Relaxation):
    """FairDARTS: operations do not compete. `none` has no alpha, and alphas begin at 0.

    Args:
        threshold: the weight of a candidate `none`, so that it is chosen where all others have a smaller one.
    """

    none = False

    def __init__(self, *args: Any, threshold: float = 0.0) -> None:
        super().__init__(*args)
        self.threshold = threshold
        self._nones: list[int | None] = []  # the position of `none` among the candidates

    def prepare(self, alphas: nn.Parameter, candidates: Sequence[str]) -> nn.Parameter:
        none = candidates.index("none") if "none" in candidates else None
        self._nones.append(none)
        return nn.Parameter(torch.zeros(*alphas.shape[:-1], len(candidates) - (none is not None)))

    def forward(self, alphas: Sequence[Tensor]) -> list[Tensor]:
        weights = [alpha.sigmoid() for alpha in alphas]
        return [self._with_none(weight, none) for weight, none in zip(weights, self._nones, strict=True)]

    def _with_none(self, weights: Tensor, none: int | None) -> Tensor:
        if none is None:
            return weights
        column = weights.new_full((*weights.shape[:-1], 1), self.threshold)
        return torch.cat([weights[..., :none], column, weights[..., none:]], dim=-1)


class Gumbel(Relaxation):
    """GDAS: an edge runs one candidate, sampled by its alphas; in evaluation, the likeliest one."""

    none = False
    draws = samples = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("temperature", torch.tensor(FIRST_TEMPERATURE), persistent=False)
        self.temperature: Tensor

    def mixed(self, alphas: Sequence[Tensor]) -> list[Tensor]:
        if self.training:
            return [sample(alpha, self.temperature) for alpha in alphas]
        return [F.one_hot(alpha.argmax(-1), alpha.size(-1)).to(alpha.dtype) for alpha in alphas]

    def begin_epoch(self, epoch: int) -> None:
        share = epoch / max(1, self.epochs - 1)
        self.temperature.fill_(FIRST_TEMPERATURE + (LAST_TEMPERATURE - FIRST_TEMPERATURE) * share)

    def before_alphas(self) -> None:
        distributed.same_random_numbers(self.temperature.device)

    def metrics(self) -> dict[str, float]:
        return {"temperature": self.temperature.item()}


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


def sample(alphas: Tensor, temperature: Tensor) -> Tensor:
    """One-hot samples, (..., candidates), with the gradient of the Gumbel softmax (GDAS, equation 6; straight-through).

    Args:
        alphas: (..., candidates). Their softmax is the probability of each candidate.
        temperature: (). With a lower temperature, the softmax is closer to the one-hot sample.
    """
    return F.gumbel_softmax(F.log_softmax(alphas, dim=-1), temperature, hard=True)  # type: ignore[arg-type]  # a tensor works too


def concentration(alphas: Tensor) -> Tensor:
    """The concentration of DrNAS' Dirichlet distributions, (..., candidates): 1, the uniform one, for alphas of 0."""
    return F.elu(alphas) + 1


def divergence(alphas: Tensor) -> Tensor:
    """KL(Dirichlet(concentration) || the uniform distribution), summed over all rows, (); DrNAS' other regulariser."""
    given = torch.distributions.Dirichlet(concentration(alphas), validate_args=False)
    uniform = torch.distributions.Dirichlet(torch.ones_like(alphas), validate_args=False)
    return torch.distributions.kl_divergence(given, uniform).sum()


def onto_simplex(weights: Tensor) -> Tensor:
    """Projects rows, (..., candidates), to weights: clips them to [0, 1] and divides by their sum.

    If a row has no number above 0, its largest number becomes 1.
    """
    clamped = weights.clamp(0, 1)
    largest = torch.zeros_like(weights).scatter(-1, weights.argmax(-1, keepdim=True), 1)
    clamped = torch.where((clamped > 0).any(-1, keepdim=True), clamped, largest)
    return clamped / clamped.sum(-1, keepdim=True)


def edge_weights(betas: Tensor, nodes: Sequence[int]) -> Tensor:
    """Betas, (edges,), softmaxed over the edges into each node; `nodes` are their numbers of edges (PC-DARTS, section
    3.3).
    """
    return torch.cat([F.softmax(part, dim=0) for part in betas.split(list(nodes))])
