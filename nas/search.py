"""From the command line to a search model and its strategy, and to the network of an architecture, in any space."""

from __future__ import annotations

import argparse
import inspect
import shlex
from pathlib import Path

import torch
from torch import nn

import operations
from architect import HVP
from experiment import cli
from experiment.errors import UserError, shorten
from genotypes import KNOWN, PRIMITIVES
from model import NetworkCIFAR
from model_search import Network
from nas.architecture import Architecture, check_candidates
from nas.mutables import reset_mutable_counter
from nas.mutators import apply_fixed_architecture
from nas.registry import load_space, load_strategy
from nas.search_model import SearchModel
from nas.strategies import Strategy


def build(args: argparse.Namespace, num_classes: int, criterion: nn.Module, device: torch.device) -> tuple[Network | SearchModel, Strategy]:
    """(search model, strategy) for `args.space` and `args.strategy`; the paper's own network for DARTS's space and strategy.

    Raises:
        UserError: an unknown space or strategy, a space that cannot be built, an operation that does not work, or arguments that the
            strategy has no use for.
    """
    strategy = load_strategy(args.strategy)
    if not strategy.mutator.differentiable and (args.unrolled or args.hvp != HVP[0]):
        raise UserError(f"--unrolled and --hvp are of --strategy darts: {args.strategy} takes no gradient of an architecture")
    if args.hvp != HVP[0] and not args.unrolled:
        raise UserError(f"--hvp {args.hvp} is of the second order: add --unrolled, or leave it out")
    if not strategy.mutator.differentiable and (args.eigenvalue_every or args.early_stop):
        raise UserError(f"--eigenvalue_every and --early_stop are of --strategy darts: {args.strategy} has no alphas")
    if args.space == "darts":
        check_candidates()
        operations.check(PRIMITIVES, args.init_channels)
    if (args.space, args.strategy) == ("darts", "darts"):
        supernet = Network(args.init_channels, num_classes, args.layers, criterion).to(device)
        return supernet, strategy(supernet, args)
    network = build_network(args, num_classes)
    mutator = strategy.mutator(network)
    if not mutator.layer_choices and not mutator.input_choices:
        raise UserError(f"{args.space} holds no choices: there is nothing to search")
    model = SearchModel(network, mutator).to(device)
    return model, strategy(model, args)


def build_discrete(args: argparse.Namespace, num_classes: int, architecture: Architecture) -> nn.Module:
    """The network of this architecture in `args.space`; `model.NetworkCIFAR` for the space of DARTS.

    Raises:
        UserError: the architecture is not one of the space, an operation does not work, or an auxiliary head outside of the space of DARTS.
    """
    if args.space == "darts":
        genotype = architecture.genotype
        operations.check(dict.fromkeys(operation for operation, _ in [*genotype.normal, *genotype.reduce]), args.init_channels)
        return NetworkCIFAR(args.init_channels, num_classes, args.layers, args.auxiliary, genotype)
    if args.auxiliary:
        raise UserError("--auxiliary is of --space darts: only its network has an auxiliary head")
    return apply_fixed_architecture(build_network(args, num_classes), architecture.choices)


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


def read(args: argparse.Namespace) -> Architecture:
    """What `args.arch` stands for in `args.space`.

    Raises:
        UserError: it is not an architecture of the space, or is the folder of a run in another one.
    """
    if args.space != "darts" and args.arch in KNOWN and not Path(args.arch).exists():
        raise UserError(f"--arch {args.arch} is of --space darts: name a JSON file or a search's folder of --space {args.space}")
    try:
        space = cli.read_config(args.arch)["arguments"].get("space")
    except (OSError, ValueError):  # not a run's folder
        space = None
    if isinstance(space, str) and (space == "darts") != (args.space == "darts"):
        raise UserError(f"{shorten(args.arch)} is a run in another space: add {shlex.join(['--space', shorten(space)])}")
    return Architecture.read(args.arch, args.space)
