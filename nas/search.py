"""From the command line to a search model and its strategy, and to the network of an architecture, in any space."""

from __future__ import annotations

import argparse

import torch
from torch import nn

from architect import HVP
from cells import MOST_NODES, check_candidates
from experiment import cli
from experiment.errors import UserError
from model_search import Network
from nas.remedies import options
from nas.search_model import SearchModel
from nas.strategies import Strategy
from networks import build_network, check_imagenet_stem
from registry import constructor_arguments, load_strategy


def check(args: argparse.Namespace) -> None:
    """Checks what can be checked without images: the combination of strategy, space and other arguments.

    Args:
        args: `init_channels` is set.

    Raises:
        UserError: an unknown strategy, or arguments that cannot be combined.
    """
    strategy = load_strategy(args.strategy)
    options.check(args, strategy)
    if not strategy.mutator.differentiable and (args.unrolled or args.hvp != HVP[0]):
        raise UserError(f"--unrolled and --hvp need --strategy darts: {args.strategy} takes no gradient of an architecture")
    if args.hvp != HVP[0] and not args.unrolled:
        raise UserError(f"--hvp {args.hvp} needs the second order: add --unrolled, or leave it out")
    if not strategy.mutator.differentiable and (args.eigenvalue_every or args.early_stop):
        raise UserError(f"--eigenvalue_every and --early_stop need --strategy darts: {args.strategy} has no alphas")
    if args.nodes > MOST_NODES:
        raise UserError(f"--nodes {args.nodes}: a cell can have {MOST_NODES}")
    if args.nodes != 4 and args.space != "darts":
        raise UserError(f"--nodes needs --space darts: {args.space} takes its numbers by --space_arg, if it has any")
    if args.stem == "imagenet":
        if args.space != "darts" or args.strategy not in options.NETWORKS:
            raise UserError("--stem imagenet needs --space darts with --strategy darts or gdas: leave it out")
        check_imagenet_stem("--stem imagenet", args)


def build(args: argparse.Namespace, num_classes: int, criterion: nn.Module, device: torch.device) -> tuple[Network | SearchModel, Strategy]:
    """(search model, strategy) for `args.space` and `args.strategy`; the paper's own network for DARTS's space and strategy.

    Raises:
        UserError: an unknown space or strategy, a space that cannot be built, an operation that does not work, or unknown arguments of
            a space or a strategy.
    """
    strategy = load_strategy(args.strategy)
    if args.space == "darts":
        check_candidates()
    reserved = ("model", "args")
    of_strategy, of_mutator = constructor_arguments(
        "--strategy_arg", cli.assignments(args.strategy_arg or ""), (strategy, strategy.mutator), reserved
    )
    if args.space == "darts" and args.strategy in options.NETWORKS:
        constructor_arguments("--space_arg", cli.assignments(args.space_arg or ""), (), ())
        supernet, strategy = options.build(args, num_classes, criterion)
        supernet = supernet.to(device)
        return supernet, strategy(supernet, args, **of_strategy)
    network = build_network(args, num_classes)
    mutator = strategy.mutator(network, **of_mutator)
    if not mutator.layer_choices and not mutator.input_choices:
        raise UserError(f"{args.space} holds no choices: there is nothing to search")
    model = SearchModel(network, mutator).to(device)
    return model, strategy(model, args, **of_strategy)
