"""Strategies: how a search finds the architecture, while it trains the weights.

`train_search.py` calls `begin_epoch`, then `step` before every weight step, and `settle` at the end of the epoch. To
write a strategy, derive a class from `Strategy` or from one of its subclasses; see docs/search_spaces.md.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from architect import Architect, Loss, State
from experiment import distributed
from nas.controller import EnasMutator
from nas.edges import use_batch_statistics
from nas.mutators import DartsMutator, Decisions, Mutator, RandomMutator
from nas.relaxation import Adversarial, Dirichlet, Gumbel, Perturbed, Relaxation, Sigmoid, divergence
from nas.search_model import SearchModel


class Strategy:
    """Base class of all strategies. Its methods are those of `architect.Architect`.

    Args:
        model: the search model, with `mutator` applied to its network.
        args: the arguments of the command line.
    """

    mutator: type[Mutator] = RandomMutator
    resting = False  # whether the alphas rest, if there are any

    def __init__(self, model: Any, args: argparse.Namespace) -> None:
        self.model = model

    def begin_epoch(self, epoch: int) -> None:
        """Called before the steps of an epoch, and again when a run is resumed in the middle of one."""

    def step(self, *batches: Any, **options: Any) -> None:
        """Called before every weight step, with the arguments of `Architect.step`.

        Trains the architecture, or decides which one the weight step trains.
        """
        raise NotImplementedError(f"{type(self).__name__} lacks step()")

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Called at the end of an epoch, with the batches of the validation half.

        Decides which architecture has been found so far.
        """

    def metrics(self) -> dict[str, Any]:
        """Numbers for the epoch's row in metrics.jsonl."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the model: tensors, numbers, strings, lists and dictionaries of them."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Darts(Architect, Strategy):
    """Trains alphas by their gradient, in first or second order. `relaxation` maps them to weights of the candidates.

    A class derived from this one, with another relaxation, needs no more to work on every space.
    """

    model: Any  # with `relaxation` and `betas_by_edge()`
    mutator = DartsMutator
    relaxation: type[Relaxation] = Relaxation

    @classmethod
    def relaxed_by(cls, args: argparse.Namespace) -> Relaxation:
        """The relaxation for the arguments of the command line."""
        decay = args.auxiliary_decay, args.auxiliary_start, args.auxiliary_stop
        of_skip = args.epochs, args.auxiliary_skip, decay
        if args.gate == "sigmoid":
            return Sigmoid(*of_skip, threshold=args.gate_threshold)
        perturbed = {"random": Perturbed, "adversarial": Adversarial}
        return perturbed.get(args.perturb, cls.relaxation)(*of_skip)

    def begin_epoch(self, epoch: int) -> None:
        self.model.relaxation.begin_epoch(epoch)

    def step(self, input_train: Tensor, target_train: Tensor, *more: Any, **options: Any) -> None:
        def train_loss() -> Tensor:
            self.model.eval()
            loss = self._loss(input_train, target_train, self.amp, {})
            self.model.train()
            return loss

        self.model.relaxation.before_alphas()
        super().step(input_train, target_train, *more, **options)
        if not self.resting:
            self.model.relaxation.before_weights(train_loss)

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.model.relaxation.before_alphas()

    def metrics(self) -> dict[str, Any]:
        betas = self.model.betas_by_edge()
        return ({"betas": betas} if betas else {}) | self.model.relaxation.metrics()


class Gdas(Darts):
    """GDAS (Dong, Yang, CVPR 2019, 1910.04465): trains alphas by the gradient of sampled operations, in first order.

    BatchNorm is as in `use_batch_statistics`.

    Args:
        scalars: whether an edge adds the weights of the candidates that do not run, which are 0, to its output. They
            change the gradient of the alphas. Only for layer choices; None: with `--space nasbench201`, as the authors.
    """

    relaxation = Gumbel

    def __init__(self, model: Any, args: argparse.Namespace, scalars: bool | None = None) -> None:
        super().__init__(model, args)
        use_batch_statistics(model)
        model.relaxation.scalars = args.space == "nasbench201" if scalars is None else scalars


class Drnas(Darts):
    """DrNAS (Chen et al., ICLR 2021, 2006.10355): trains the concentrations of Dirichlet distributions, in first order.

    Its progressive stages, which prune operations and widen the network, are left out.

    Args:
        kl: weight of the divergence from the uniform distribution in the alphas' loss; 0 leaves the regularisation to
            `--arch_weight_decay`, the authors' default.
    """

    relaxation = Dirichlet

    def __init__(self, model: Any, args: argparse.Namespace, kl: float = 0.0) -> None:
        super().__init__(model, args)
        self.kl = kl

    def first_order_gradient(self, valid_loss: Loss) -> list[Tensor]:
        def regularised(state: State) -> Tensor:
            return valid_loss(state) + self.kl * sum(map(divergence, self.model.arch_parameters()))

        return super().first_order_gradient(regularised if self.kl else valid_loss)


class Random(Strategy):
    """Trains the weights on a random architecture in every step (Li, Talwalkar 2019, 1902.07638).

    Args:
        candidates: sampled at the end of an epoch; 10 as in ENAS (section 2.2).
    """

    def __init__(self, model: SearchModel, args: argparse.Namespace, candidates: int = 10) -> None:
        super().__init__(model, args)
        self.candidates = candidates
        self.device = next(model.parameters()).device
        use_batch_statistics(model.network)

    def step(self, *batches: Any, **options: Any) -> None:
        distributed.same_random_numbers(self.device)
        with torch.no_grad():
            self.model.mutator.reset()

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Decides on the finalist with the highest accuracy. Each is measured on one of `batches`, in turn."""
        distributed.same_random_numbers(self.device)
        best: tuple[float, Decisions] | None = None
        for decisions, (x, y) in zip(self.finalists(), itertools.cycle(batches), strict=False):
            self.model.mutator.decide(decisions)
            accuracy, _ = self.score(x, y)
            if best is None or accuracy > best[0]:
                best = accuracy, decisions
        assert best is not None  # there are finalists and batches
        self.model.mutator.decide(best[1])

    def state_dict(self) -> dict[str, Any]:
        return {"decisions": self.model.mutator.status()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.model.mutator.decide(state_dict["decisions"])

    def finalists(self) -> Iterable[Decisions]:
        """The architectures that `settle` chooses from."""
        return (self.model.mutator.sample_final() for _ in range(self.candidates))

    @torch.no_grad()
    def score(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """(accuracy, -loss) of the current architecture with the current weights."""
        training = self.model.training
        logits = self.model.eval()(x)
        self.model.train(training)
        scores = torch.stack([(logits.argmax(1) == y).double().mean(), -F.cross_entropy(logits, y).double()])
        accuracy, negative_loss = distributed.mean(scores, y.size(0)).tolist()
        return accuracy, negative_loss


class Enas(Random):
    """ENAS (Pham et al. 2018): trains a controller by REINFORCE on the accuracy of the architectures that it samples,
    and the weights on its samples.

    Args:
        learning_rate: of the controller's Adam.
        entropy_weight: weight of the sample's entropy in the reward.
        skip_weight: weight of the sample's skip penalty in the loss.
        baseline_decay: decay of the moving average of the rewards, which begins with the first one.
    """

    mutator = EnasMutator

    def __init__(
        self,
        model: SearchModel,
        args: argparse.Namespace,
        candidates: int = 10,
        learning_rate: float = 3.5e-4,
        entropy_weight: float = 1e-4,
        skip_weight: float = 0.8,
        baseline_decay: float = 0.999,
    ) -> None:
        super().__init__(model, args, candidates)
        self.optimizer = torch.optim.Adam(model.mutator.parameters(), lr=learning_rate)
        self.entropy_weight, self.skip_weight, self.baseline_decay = entropy_weight, skip_weight, baseline_decay

    def step(self, x: Tensor, y: Tensor, x_valid: Tensor, y_valid: Tensor, *more: Any, **options: Any) -> None:
        """One step on the controller, with the validation batch.

        Then samples the architecture for the next weight step.
        """
        distributed.same_random_numbers(self.device)
        self.model.mutator.reset()
        accuracy, _ = self.score(x_valid, y_valid)
        self.learn(accuracy)
        super().step()

    def learn(self, reward: float) -> None:
        """One step on the controller, with the reward of its last sample."""
        controller: Any = self.model.mutator
        reward += self.entropy_weight * controller.sample_entropy.item()
        mean, decay = controller.baseline, self.baseline_decay
        mean.fill_(reward if mean.isnan() else decay * mean + (1 - decay) * reward)
        loss = self.skip_weight * controller.sample_skip_penalty - controller.sample_log_prob * (reward - mean)
        self.optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients(controller.parameters())
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "controller": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["controller"])
