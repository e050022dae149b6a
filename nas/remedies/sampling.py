"""GDAS: a forward pass runs one operation per edge, sampled by the alphas (Dong, Yang, CVPR 2019, 1910.04465)."""

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


def sample(alphas: Tensor, temperature: Tensor) -> Tensor:
    """One-hot samples, (..., operations), with the gradient of the Gumbel softmax (equation 6; straight-through).

    Args:
        alphas: (..., operations). Their softmax is the probability of each operation.
        temperature: (). With a lower temperature, the softmax is closer to the one-hot sample.
    """
    return F.gumbel_softmax(F.log_softmax(alphas, dim=-1), temperature, hard=True)  # type: ignore[arg-type]  # a tensor works too


def likeliest(alphas: Tensor) -> Tensor:
    """One-hot rows: 1 at the operation with the largest alpha."""
    return F.one_hot(alphas.argmax(-1), alphas.size(-1)).to(alphas.dtype)


class Drawn(NamedTuple):
    """The operation that an edge runs, and the weight of its output: the number 1, (1,), with a gradient."""

    operation: int
    weight: Tensor


class OneOperation(MixedOp):
    """A mixed operation that runs one of its operations. It varies between passes, so only the single operations are compiled."""

    compilable = False

    def forward(self, x: Tensor, drawn: Drawn) -> Tensor:  # type: ignore[override]
        return drawn.weight * self._ops[drawn.operation](x)


class SampledNetwork(Supernet):
    """A supernet that runs one operation per edge, the same in all normal or all reduction cells. In evaluation, the likeliest runs.

    Args:
        C, num_classes, layers, criterion, max_skips, others: as for `Supernet`.
    """

    def __init__(self, C: int, num_classes: int, layers: int, criterion: nn.Module, max_skips: int | None = None, **others: Any) -> None:
        super().__init__(C, num_classes, layers, criterion, max_skips=max_skips, mixed_op=OneOperation, **others)
        self.register_buffer("temperature", torch.tensor(FIRST_TEMPERATURE), persistent=False)
        self.temperature: Tensor

    def mixing_weights(self) -> list[list[Drawn]]:  # type: ignore[override]
        kinds = []
        for alphas in self.arch_parameters():
            weights = sample(alphas, self.temperature) if self.training else likeliest(alphas)
            kinds.append([Drawn(index, row[index : index + 1]) for index, row in zip(weights.argmax(1).tolist(), weights, strict=True)])
        return kinds


class GdasMutator(DartsMutator):
    """GDAS for any space: a layer choice runs one candidate. There is no extra alpha for `none`."""

    dense = False
    none = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("temperature", torch.tensor(FIRST_TEMPERATURE), persistent=False)
        self.temperature: Tensor

    def sample_search(self) -> Decisions:
        decisions = super().sample_search()
        for key, alpha in self.choices.items():
            decisions[key] = sample(alpha, self.temperature) if self.training else likeliest(alpha)
        return decisions


class Gdas(Darts):
    """Trains alphas by the gradient of the sampled operations, in first order. The temperature falls from epoch to epoch.

    BatchNorm always uses the statistics of its batch: running averages would mix those of different operations.
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
        """`Architect.step`, with the same samples on all processes. The weight step samples again."""
        distributed.same_random_numbers(self._temperature.device)
        super().step(*batches, **options)

    def metrics(self) -> dict[str, Any]:
        return {"temperature": self._temperature.item()}
