"""GDAS: a forward pass runs one operation on every edge, drawn by the alphas (Dong, Yang, CVPR 2019, 1910.04465)."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiment import distributed
from model_search import MixedOp
from nas.mutators import DartsMutator, Decisions
from nas.remedies.supernet import Supernet
from nas.search_model import SearchModel
from nas.strategies import Darts, use_batch_statistics

FIRST_TEMPERATURE, LAST_TEMPERATURE = 10.0, 0.1


def gumbel(like: Tensor) -> Tensor:
    """Random numbers of Gumbel's distribution, in the shape of `like`."""
    return -torch.empty_like(like).exponential_().log()


def sample(alphas: Tensor, temperature: Tensor | float, noise: Tensor) -> Tensor:
    """1 at the drawn operation of each row and 0 elsewhere, (..., operations); their gradient is that of the softmax below (equation 6).

    Args:
        alphas: (..., operations); an operation is drawn with the probability of their softmax.
        temperature: the lower, the nearer the softmax is to what was drawn.
        noise: from `gumbel`.
    """
    soft = F.softmax((F.log_softmax(alphas, dim=-1) + noise) / temperature, dim=-1)
    hard = F.one_hot(soft.argmax(-1), soft.size(-1)).to(soft.dtype)
    return hard - soft.detach() + soft


def likeliest(alphas: Tensor) -> Tensor:
    """1 at the operation with the largest alpha of each row and 0 elsewhere."""
    return F.one_hot(alphas.argmax(-1), alphas.size(-1)).to(alphas.dtype)


class Drawn(NamedTuple):
    """What an edge runs, and by what its result is multiplied: 1, (1,), with a gradient."""

    operation: int
    weight: Tensor


class OneOperation(MixedOp):
    """A mixed operation that runs one of its operations. What runs is another one each time: only the operations are compiled."""

    compilable = False

    def forward(self, x: Tensor, drawn: Drawn) -> Tensor:  # type: ignore[override]
        return drawn.weight * self._ops[drawn.operation](x)


class SampledNetwork(Supernet):
    """The supernet of which one operation runs on every edge; all cells of a kind run the same. In evaluation, the likeliest.

    Args:
        C, num_classes, layers, criterion, max_skips, in_channels, stem: as of `Supernet`.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: nn.Module,
        max_skips: int | None = None,
        in_channels: int = 3,
        stem: str = "cifar",
    ) -> None:
        super().__init__(C, num_classes, layers, criterion, max_skips=max_skips, mixed_op=OneOperation, in_channels=in_channels, stem=stem)
        self.register_buffer("temperature", torch.tensor(FIRST_TEMPERATURE), persistent=False)
        self.temperature: Tensor

    def mixing_weights(self) -> list[list[Drawn]]:  # type: ignore[override]
        kinds = []
        for alphas in self.arch_parameters():
            weights = sample(alphas, self.temperature, gumbel(alphas)) if self.training else likeliest(alphas)
            kinds.append([Drawn(index, row[index : index + 1]) for index, row in zip(weights.argmax(1).tolist(), weights, strict=True)])
        return kinds


class GdasMutator(DartsMutator):
    """GDAS for any space: a layer choice runs one candidate. Alphas are of the candidates alone: what a space lacks is not drawn."""

    dense = False
    none = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("temperature", torch.tensor(FIRST_TEMPERATURE), persistent=False)
        self.temperature: Tensor

    def sample_search(self) -> Decisions:
        decisions = super().sample_search()
        for key, alpha in self.choices.items():
            decisions[key] = sample(alpha, self.temperature, gumbel(alpha)) if self.training else likeliest(alpha)
        return decisions


class Gdas(Darts):
    """Learns alphas by the gradient of what was drawn, first order, while the temperature falls from epoch to epoch.

    BatchNorm always takes the statistics of its batch: a running average over steps that each ran other operations would be that of none.
    """

    mutator = GdasMutator

    def __init__(self, model: SampledNetwork | SearchModel, args: argparse.Namespace) -> None:
        super().__init__(model, args)
        use_batch_statistics(model)
        self._epochs = args.epochs
        sampler = model.mutator if isinstance(model, SearchModel) else model
        self._temperature: Tensor = sampler.temperature  # type: ignore[assignment]

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        share = epoch / max(1, self._epochs - 1)
        self._temperature.fill_(FIRST_TEMPERATURE + (LAST_TEMPERATURE - FIRST_TEMPERATURE) * share)

    def step(self, *batches: Any, **options: Any) -> None:
        """As `Architect.step`, on operations that all processes draw alike; those of the weights' step are drawn next."""
        distributed.same_random_numbers(self._temperature.device)
        super().step(*batches, **options)

    def metrics(self) -> dict[str, Any]:
        return {"temperature": self._temperature.item()}
