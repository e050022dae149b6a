"""From the command line's `--space` and `--strategy` to what `train_search.py` drives: a search model, and who learns its architecture.

A *learner* offers `step`, `architect.Architect`'s, called before every step of the weights; `settle`, called at the end of an epoch; and
`state_dict` and `load_state_dict`, for checkpoints. `architect.Architect` is the learner of `darts`; the learners of `enas` and `random`
train the weights on one architecture at a time.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import itertools
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import distributed
import genotypes
import untrusted
import utils
from architect import HVP, Architect, Searchable
from cli import UserError, shorten
from genotypes import CHOICES, PRIMITIVES
from model import NetworkCIFAR
from model_search import Network
from nas.mutables import reset_mutable_counter
from nas.mutators import Architecture, DartsMutator, EnasMutator, Mutator, RandomMutator, apply_fixed_architecture, read_architecture
from nas.spaces.darts import DartsNetwork
from nas.spaces.enas import ENASMacroGeneralModel, ENASMicroNetwork
from nas.spaces.nasbench201 import NASBench201Network


class Space(NamedTuple):
    """A network that holds choices, and what its constructor calls `--init_channels` and `--layers`."""

    network: type[nn.Module]
    width: str = "init_channels"
    depth: str = "layers"


SPACES = {
    "darts": Space(DartsNetwork),
    "enas_micro": Space(ENASMicroNetwork, "out_channels", "num_layers"),
    "enas_macro": Space(ENASMacroGeneralModel, "out_filters", "num_layers"),
    "nasbench201": Space(NASBench201Network, "channels", "cells"),
}
STRATEGIES = ("darts", "enas", "random")
SPACE_HELP = f"{', '.join(SPACES)}; or a network with choices of your own, my_space.py:Net"


class SearchModel(Searchable):
    """A network with choices and its mutator, as one model: (B, 3, H, W) to logits (B, num_classes)."""

    def __init__(self, space: str, network: nn.Module, mutator: Mutator) -> None:
        super().__init__()
        self.space = space
        self.network = network
        self.mutator = mutator
        mutator.reset()

    def forward(self, x: Tensor) -> Tensor:
        if self.mutator.differentiable:
            self.mutator.reset()
        return self.network(x)

    def arch_parameters(self) -> list[nn.Parameter]:
        """The mutator's: alphas, or a controller's weights."""
        return list(self.mutator.parameters())

    def weight_parameters(self) -> list[nn.Parameter]:
        """The network's weights, those of all candidates."""
        return list(self.network.parameters())

    def export(self) -> Architecture:
        """The architecture found so far: the best of the relaxation; or the one that is decided on, where one runs at a time."""
        return self.mutator.export() if self.mutator.differentiable else self.mutator.current()


class Learner(Protocol):
    """Who learns the architecture."""

    def step(
        self,
        input_train: Tensor,
        target_train: Tensor,
        input_valid: Tensor,
        target_valid: Tensor,
        eta: float,
        network_optimizer: torch.optim.Optimizer,
        unrolled: bool,
    ) -> None: ...

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Darts(Architect):
    """Learns alphas by their gradient, first or second order."""

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """The alphas are the architecture: there is nothing to settle."""


class Random:
    """Trains the weights on an architecture drawn at random for every step (Li, Talwalkar 2019, 1902.07638)."""

    candidates = 10  # drawn at the end of an epoch, as in ENAS (section 2.2)

    def __init__(self, model: SearchModel, args: argparse.Namespace) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        # A running average over steps, each with other layers, is the statistics of no architecture: a batch's own are used, always.
        for module in model.network.modules():
            if isinstance(module, _BatchNorm):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None

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
        """Decides which architecture the weights learn on next. Arguments as `Architect.step`'s; those that are not needed are not read."""
        distributed.same_random_numbers(self.device)
        with torch.no_grad():
            self.model.mutator.reset()

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Decides on the most accurate of some architectures, measured on the first of `batches`; equals by their loss."""
        x, y = next(iter(batches))
        distributed.same_random_numbers(self.device)
        best: tuple[tuple[float, float], Any] | None = None
        for _ in range(self.candidates):
            decisions = self.model.mutator.sample_final()
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
        utils.check_like(state_dict.get("decisions"), self.model.mutator.status(), "the decisions")
        self.model.mutator.decide(state_dict["decisions"])

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

    def __init__(self, model: SearchModel, args: argparse.Namespace) -> None:
        super().__init__(model, args)
        assert isinstance(model.mutator, EnasMutator)  # a sample's probability is only known to it
        self.controller = Reinforce(model.mutator)

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
        """One step on the controller, by the validation batch; then decides as `Random.step`."""
        distributed.same_random_numbers(self.device)
        self.model.mutator.reset()
        accuracy, _ = self.score(input_valid, target_valid)
        self.controller.step(accuracy)
        super().step(input_train, target_train, input_valid, target_valid, eta, network_optimizer, unrolled)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "controller": self.controller.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        utils.load_optimizer(self.controller.optimizer, state_dict.get("controller", {}))


class Reinforce:
    """REINFORCE on an `EnasMutator`, with a moving average of the rewards as the baseline.

    Args:
        mutator: the controller. It keeps the baseline, which is saved with it.
        learning_rate: Adam's.
        entropy_weight: of the sample's entropy, added to the reward.
        skip_weight: of the sample's skip penalty, added to the loss.
        baseline_decay: of the moving average, which begins with the first reward.
    """

    def __init__(
        self,
        mutator: EnasMutator,
        learning_rate: float = 3.5e-4,
        entropy_weight: float = 1e-4,
        skip_weight: float = 0.8,
        baseline_decay: float = 0.999,
    ) -> None:
        self.mutator = mutator
        self.optimizer = torch.optim.Adam(mutator.parameters(), lr=learning_rate)
        self.entropy_weight = entropy_weight
        self.skip_weight = skip_weight
        self.baseline_decay = baseline_decay

    def step(self, reward: float) -> None:
        """Learns that the mutator's latest sample, of its `reset`, deserves `reward`."""
        reward += self.entropy_weight * self.mutator.sample_entropy.item()
        baseline = self.mutator.baseline
        baseline.fill_(reward if baseline.isnan() else self.baseline_decay * baseline + (1 - self.baseline_decay) * reward)
        loss = self.skip_weight * self.mutator.sample_skip_penalty - self.mutator.sample_log_prob * (reward - baseline)
        self.optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients(self.mutator.parameters())
        self.optimizer.step()


def build(args: argparse.Namespace, num_classes: int, criterion: nn.Module, device: torch.device) -> tuple[Network | SearchModel, Learner]:
    """(search model, learner) for `args.space` and `args.strategy`; the paper's own network for DARTS's space and strategy.

    Raises:
        UserError: an unknown space, one that cannot be built, or arguments that the strategy has no use for.
    """
    if args.strategy != "darts" and (args.unrolled or args.hvp != HVP[0]):
        raise UserError(f"--unrolled and --hvp are of --strategy darts: {args.strategy} takes no gradient of an architecture")
    if args.hvp != HVP[0] and not args.unrolled:
        raise UserError(f"--hvp {args.hvp} is of the second order: add --unrolled, or leave it out")
    if args.strategy != "darts" and (args.eigenvalue_every or args.early_stop):
        raise UserError(f"--eigenvalue_every and --early_stop are of --strategy darts: {args.strategy} has no alphas")
    if (args.space, args.strategy) == ("darts", "darts"):
        supernet = Network(args.init_channels, num_classes, args.layers, criterion).to(device)
        return supernet, Darts(supernet, args)
    strategies: dict[str, tuple[type[Mutator], Callable[[SearchModel, argparse.Namespace], Learner]]] = {
        "darts": (DartsMutator, Darts),
        "enas": (EnasMutator, Enas),
        "random": (RandomMutator, Random),
    }
    make_mutator, learner = strategies[args.strategy]
    network = build_network(args, num_classes)
    mutator = make_mutator(network)
    if not mutator.layer_choices and not mutator.input_choices:
        raise UserError(f"{args.space} holds no choices: there is nothing to search")
    model = SearchModel(args.space, network, mutator).to(device)
    return model, learner(model, args)


def build_discrete(args: argparse.Namespace, num_classes: int, architecture: genotypes.Genotype | Architecture) -> nn.Module:
    """The network of this architecture, as `read` gives it, in `args.space`; `model.NetworkCIFAR` for the space of DARTS.

    Raises:
        UserError: the architecture is not one of the space; or an auxiliary head outside of the space of DARTS.
    """
    if isinstance(architecture, genotypes.Genotype):
        return NetworkCIFAR(args.init_channels, num_classes, args.layers, args.auxiliary, architecture)
    if args.auxiliary:
        raise UserError("--auxiliary is of --space darts: only its network has an auxiliary head")
    return apply_fixed_architecture(build_network(args, num_classes), architecture)


def build_network(args: argparse.Namespace, num_classes: int) -> nn.Module:
    """The network of `args.space` with all its choices open."""
    space = load_space(args.space)
    given = {space.width: args.init_channels, space.depth: args.layers}
    given = {name: value for name, value in given.items() if value is not None}
    signature = inspect.signature(space.network)
    if "num_classes" in signature.parameters:
        given["num_classes"] = num_classes
    try:
        signature.bind(**given)
    except TypeError as error:
        raise UserError(f"--space {args.space} cannot be built with {given}: {error}") from None
    reset_mutable_counter()
    return space.network(**given)


def set_sizes(args: argparse.Namespace, init_channels: int, layers: int) -> None:
    """Fills in `args.init_channels` and `args.layers` where they are None: by these for the space of DARTS, else by the network's own."""
    space = load_space(args.space)
    parameters = inspect.signature(space.network).parameters
    for name, own, darts in (("init_channels", space.width, init_channels), ("layers", space.depth, layers)):
        if getattr(args, name) is None:
            default = parameters[own].default if own in parameters else None
            setattr(args, name, darts if args.space == "darts" else default)


def load_space(name: str) -> Space:
    """The space of this name, or the class of `file.py:Class`.

    Raises:
        UserError: there is none, the file cannot be imported, or the class is none of networks.
    """
    if name in SPACES:
        return SPACES[name]
    file, _, class_name = name.rpartition(":")
    if not file or not class_name.isidentifier():
        raise UserError(f"unknown space {name!r}: {SPACE_HELP}")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--space {name}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"space_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--space {name}: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"--space {name}: {file} does not import: {type(error).__name__}: {error}") from None
    network = getattr(module, class_name, None)
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise UserError(f"--space {name}: {file} has no class {class_name} that is a torch.nn.Module")
    return Space(network)


def read(args: argparse.Namespace) -> genotypes.Genotype | Architecture:
    """What `args.arch` stands for in `args.space`: a genotype in that of DARTS, an architecture otherwise.

    Raises:
        UserError: it is neither, or the folder of a run in another space.
    """
    if args.space != "darts" and args.arch in genotypes.KNOWN and not Path(args.arch).exists():
        raise UserError(f"--arch {args.arch} is of --space darts: name a JSON file or a search's folder of --space {args.space}")
    space = _recorded_space(args.arch)
    if space is not None and (space == "darts") != (args.space == "darts"):
        raise UserError(f"{shorten(args.arch)} is a run in another space: add {shlex.join(['--space', shorten(space)])}")
    return genotypes.read(args.arch) if args.space == "darts" else read_architecture(args.arch)


def _recorded_space(folder: str) -> str | None:
    """The `--space` of the run in this folder; None if it is none."""
    try:
        space = untrusted.read_json(Path(folder) / "config.json")["arguments"]["space"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return space if isinstance(space, str) else None


def resume(args: argparse.Namespace) -> genotypes.Genotype | Architecture | None:
    """What the run `args.resume` has recorded that it trains, whatever has become of `args.arch` since; None if it did not come so far."""
    recorded = Path(args.resume) / ("genotype.json" if args.space == "darts" else "architecture.json")
    if not recorded.exists():
        return None
    return genotypes.read(str(recorded)) if args.space == "darts" else read_architecture(recorded)


def found(model: Network | SearchModel) -> genotypes.Genotype | Architecture:
    """What a search has found so far: a genotype in the space of DARTS, an architecture otherwise."""
    if isinstance(model, Network):
        return model.genotype()
    return genotypes.from_json(model.export()) if model.space == "darts" else model.export()


def record(architecture: genotypes.Genotype | Architecture) -> tuple[str, Any]:
    """The name and the JSON content of the file that keeps it in a run's folder."""
    if isinstance(architecture, genotypes.Genotype):
        return "genotype.json", genotypes.to_json(architecture)
    return "architecture.json", architecture


def files(architecture: genotypes.Genotype | Architecture) -> dict[str, Any]:
    """{name: JSON content} of what a search leaves: always `architecture.json`, the choices, and for cells `genotype.json` as well."""
    choices = genotypes.to_choices(architecture) if isinstance(architecture, genotypes.Genotype) else architecture
    return {"architecture.json": choices, **dict([record(architecture)])}


def describe(architecture: genotypes.Genotype | Architecture) -> str:
    """The log's line of it."""
    return f"{'genotype' if isinstance(architecture, genotypes.Genotype) else 'architecture'} = {architecture}"


def alphas(model: Network | SearchModel) -> dict[str, dict[str, float]]:
    """The softmaxed alphas, JSON-ready: {edge: {operation: weight}}, in the cells of DARTS with the edges' names of nas/spaces/darts.py.

    Operations without a name have their number; `none` is the alpha that stands for no operation. Empty where the strategy has no alphas.
    """
    if isinstance(model, Network):
        return {
            edge: dict(zip(PRIMITIVES, weights, strict=True))
            for cell, alpha in zip(("normal", "reduce"), model.arch_parameters(), strict=True)
            for edge, weights in zip(_edges(cell, len(alpha)), torch.softmax(alpha.detach(), dim=-1).tolist(), strict=True)
        }
    if not isinstance(model.mutator, DartsMutator):
        return {}
    edges = {}
    for mutable in model.mutator.layer_choices:
        *weights, none = torch.softmax(model.mutator.choices[mutable.key].detach(), dim=-1).tolist()
        labels = [CHOICES.get(str(label), str(label)) for label in mutable.labels]
        edges[mutable.key] = dict(zip(labels, weights, strict=True))
        edges[mutable.key]["none"] = edges[mutable.key].get("none", 0.0) + none  # a space may have a `none` of its own
    return edges


def _edges(cell: str, count: int) -> Iterator[str]:
    """The names of the first `count` edges of a cell in which every node takes every node before it."""
    return islice((f"{cell}_n{node}_p{source}" for node in itertools.count(2) for source in range(node)), count)


def alpha_lines(model: Network | SearchModel) -> list[str]:
    """The log's lines of them."""
    if isinstance(model, Network):  # as the original logs them
        return [str(torch.softmax(alpha.detach(), dim=-1).cpu()) for alpha in model.arch_parameters()]
    status = model.mutator.status() if model.mutator.differentiable else {}
    return [f"{key}: {' '.join(f'{weight:.4f}' for weight in weights)}" for key, weights in status.items()]
