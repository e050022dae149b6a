"""From the command line to a search model and its strategy, in any space."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Set

import torch
from torch import nn

from architect import HVP
from architectures import load_space
from architectures.networks import set_sizes
from experiment import cli
from experiment.errors import UserError
from nas.edges import equip_choices
from nas.loading import build_network, constructor_arguments, load_strategy
from nas.mutators import DartsMutator
from nas.relaxation import Relaxation, ZeroOneLoss
from nas.search_model import SearchModel
from nas.strategies import Darts, Strategy
from nas.supernet import Supernet


def check(args: argparse.Namespace, remedies: Set[str]) -> None:
    """Completes the sizes of the network, and checks how space, strategy and the remedies with these names go
    together."""
    set_sizes(args, init_channels=16, layers=8)
    strategy = load_strategy(args.strategy)
    derivatives = {name for name in ("unrolled", "eigenvalue_every", "early_stop") if getattr(args, name)}
    derivatives |= {"hvp"} if args.hvp != HVP[0] else set()
    if not strategy.mutator.differentiable:
        _refuse(remedies | derivatives, f"needs alphas, and --strategy {args.strategy} has none")
    if not issubclass(strategy, Darts):
        _refuse(remedies - {"arch_warmup"}, f"needs a strategy derived from Darts, and {args.strategy} is none")
    elif strategy.relaxation.samples:
        _refuse(
            (remedies | derivatives) - {"max_skips", "arch_warmup"},
            f"does not work with --strategy {args.strategy}, which samples operations in every pass",
        )
    elif strategy.relaxation.draws:
        _refuse(derivatives, f"compares losses, and --strategy {args.strategy} draws other weights in every pass")
    if issubclass(strategy, Darts) and strategy.relaxation is not Relaxation:
        _refuse(
            remedies & {"gate", "perturb"},
            f"does not work with --strategy {args.strategy}, which makes the weights itself",
        )
    if not args.auxiliary_skip:
        _refuse(remedies & {"auxiliary_decay", "auxiliary_start", "auxiliary_stop"}, "needs --auxiliary_skip")
    if args.gate == "sigmoid" and args.perturb != "none":
        raise UserError("--perturb needs softmaxed alphas, whose sum is 1: leave --gate sigmoid out")
    if args.gate != "sigmoid" and (args.zero_one_weight or args.gate_threshold):
        raise UserError("--zero_one_weight and --gate_threshold need sigmoids: add --gate sigmoid")
    if args.gate_threshold and args.max_skips is not None:
        raise UserError("--max_skips and --gate_threshold cannot be combined: leave one of them out")
    if args.gate_rule == "edge" and not args.gate_threshold:
        raise UserError("--gate_rule edge needs a threshold: add --gate_threshold")
    if args.space != "darts":
        _refuse(remedies & {"max_skips", "gate_rule"}, f"needs --space darts, whose cells it limits, not {args.space}")
        if args.nodes != 4:
            raise UserError(f"--nodes needs --space darts: {args.space} takes its numbers by --space_arg")
    elif args.init_channels % args.partial_channels:
        given = f"--partial_channels {args.partial_channels} does not divide --init_channels {args.init_channels}"
        raise UserError(f"{given}: change one")
    if args.stem == "imagenet" and not _has_supernet(args.space, strategy):
        raise UserError("--stem imagenet needs --space darts and a strategy with alphas: leave it out")


def _refuse(remedies: Iterable[str], why: str) -> None:
    for name in sorted(remedies):
        raise UserError(f"--{name} {why}: leave it out")


def _has_supernet(space: str, strategy: type[Strategy]) -> bool:
    """Whether the search runs on the network of `model_search.py`."""
    return space == "darts" and issubclass(strategy, Darts) and strategy.mutator is DartsMutator


def build(
    args: argparse.Namespace, num_classes: int, criterion: nn.Module, device: torch.device
) -> tuple[Supernet | SearchModel, Strategy]:
    """(search model, strategy) for `args.space`, `args.strategy` and the remedies."""
    strategy = load_strategy(args.strategy)
    of_strategy, of_mutator = constructor_arguments(
        "--strategy_arg", cli.assignments(args.strategy_arg or ""), (strategy, strategy.mutator), ("model", "args")
    )
    if _has_supernet(args.space, strategy):
        constructor_arguments("--space_arg", cli.assignments(args.space_arg or ""), (), ())
        model: Supernet | SearchModel = Supernet(
            args.init_channels,
            num_classes,
            args.layers,
            criterion,
            strategy.relaxed_by(args),  # type: ignore[attr-defined]  # only `Darts` has this mutator
            args.partial_channels,
            args.zero_one_weight,
            args.max_skips,
            args.gate_rule,
            steps=args.nodes,
            multiplier=args.nodes,
            in_channels=args.channels,
            stem=args.stem,
        )
    else:
        model = _search_model(args, num_classes, criterion, strategy, of_mutator)
    return model.to(device), strategy(model, args, **of_strategy)


def _search_model(
    args: argparse.Namespace, num_classes: int, criterion: nn.Module, strategy, of_mutator
) -> SearchModel:
    network = build_network(args, num_classes)
    if issubclass(strategy, Darts):
        of_mutator["relaxation"] = strategy.relaxed_by(args)
    mutator = strategy.mutator(network, **of_mutator)
    if not mutator.layer_choices and not mutator.input_choices:
        raise UserError(f"{args.space} holds no choices: there is nothing to search")
    if args.gate_threshold and not any("none" in choice.names for choice in mutator.layer_choices):
        raise UserError(f"--gate_threshold needs a candidate none, and {args.space} has none: set it to 0")
    model = SearchModel(network, mutator)
    if args.partial_channels > 1 or args.auxiliary_skip:
        images = (2, args.channels, args.image_size, args.image_size)
        equip_choices(network, images, args.partial_channels, args.auxiliary_skip > 0)
    if args.partial_channels > 1 and mutator.relaxation.weighs_edges:
        mutator.weigh_edges(load_space(args.space).ends)
    if args.zero_one_weight:
        model.criterion = ZeroOneLoss(criterion, args.zero_one_weight, list(mutator.alphas.values()))
    return model
