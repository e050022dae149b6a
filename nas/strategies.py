"""Strategies: how the architecture of a search model is learned, beside its weights.

`train_search.py` calls `step` before every step of the weights, and `settle` at the end of an epoch. A strategy of one's own is a class
derived from `Strategy`, or from one of those here; see docs/search_spaces.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from architect import Architect
from experiment import checkpoint, distributed
from nas.controller import EnasMutator, Reinforce
from nas.mutators import DartsMutator, Decisions, Mutator, RandomMutator
from nas.search_model import SearchModel


class Strategy:
    """The base of all strategies.

    Args:
        model: the search model, with `mutator` applied to its network.
        args: the command line's.
    """

    mutator: type[Mutator] = RandomMutator
    """Who decides for the choices of the space."""

    def __init__(self, model: Any, args: argparse.Namespace) -> None:
        self.model = model

    def step(
        self,
        input_train: Tensor,
        target_train: Tensor,
        input_valid: Tensor,
        target_valid: Tensor,
        eta: float,
        network_optimizer: torch.optim.Optimizer,
        unrolled: bool,
    ) -> None:
        """Learns from a batch, or decides which architecture the weights learn on next. Arguments as `architect.Architect.step`'s."""
        raise NotImplementedError(f"{type(self).__name__} lacks step()")

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Decides, at the end of an epoch, what has been found so far; `batches` are those of the validation half."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the model: tensors, numbers, texts, and lists and dictionaries of these."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Darts(Architect, Strategy):
    """Learns alphas by their gradient, first or second order. The alphas are the architecture: there is nothing to settle."""

    mutator = DartsMutator


class Random(Strategy):
    """Trains the weights on an architecture drawn at random for every step (Li, Talwalkar 2019, 1902.07638)."""

    candidates = 10  # drawn at the end of an epoch, as in ENAS (section 2.2)

    def __init__(self, model: SearchModel, args: argparse.Namespace) -> None:
        super().__init__(model, args)
        self.device = next(model.parameters()).device
        # A running average over steps, each with other layers, is the statistics of no architecture: a batch's own are used, always.
        for module in model.network.modules():
            if isinstance(module, _BatchNorm):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None

    def step(self, *batches: Any, **options: Any) -> None:
        """Decides which architecture the weights learn on next: any."""
        distributed.same_random_numbers(self.device)
        with torch.no_grad():
            self.model.mutator.reset()

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Decides on the most accurate of some architectures, measured on the first of `batches`; equals by their loss."""
        x, y = next(iter(batches))
        distributed.same_random_numbers(self.device)
        best: tuple[tuple[float, float], Any] | None = None
        for decisions in self.finalists():
            self.model.mutator.decide(decisions)
            score = self.score(x, y)
            if best is None or score > best[0]:
                best = score, decisions
        assert best is not None
        self.model.mutator.decide(best[1])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the model: the decisions of now."""
        return {"decisions": self.model.mutator.status()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        checkpoint.check_like(state_dict.get("decisions"), self.model.mutator.status(), "the decisions")
        self.model.mutator.decide(state_dict["decisions"])

    def finalists(self) -> Iterable[Decisions]:
        """The architectures that `settle` chooses from."""
        return (self.model.mutator.sample_final() for _ in range(self.candidates))

    @torch.no_grad()
    def score(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """(accuracy, -loss) of the architecture that is decided on, with the weights of now."""
        training = self.model.training
        logits = self.model.eval()(x)
        self.model.train(training)
        scores = torch.stack([(logits.argmax(1) == y).double().mean(), -F.cross_entropy(logits, y).double()])
        accuracy, negative_loss = distributed.mean(scores, y.size(0)).tolist()
        return accuracy, negative_loss


class Enas(Random):
    """ENAS (Pham et al. 2018): the controller learns from the accuracy of what it samples; the weights learn on its samples."""

    mutator = EnasMutator

    def __init__(self, model: SearchModel, args: argparse.Namespace) -> None:
        super().__init__(model, args)
        assert isinstance(model.mutator, EnasMutator)  # a sample's probability is only known to it
        self.controller = Reinforce(model.mutator)

    def step(
        self, input_train: Tensor, target_train: Tensor, input_valid: Tensor, target_valid: Tensor, *more: Any, **options: Any
    ) -> None:
        """One step on the controller, by the validation batch; then decides as `Random.step`."""
        distributed.same_random_numbers(self.device)
        self.model.mutator.reset()
        accuracy, _ = self.score(input_valid, target_valid)
        self.controller.step(accuracy)
        super().step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "controller": self.controller.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        checkpoint.load_optimizer(self.controller.optimizer, state_dict.get("controller", {}))
