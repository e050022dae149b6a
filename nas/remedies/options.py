"""Remedies on the command line: arguments, checks of their combinations, and building the supernet and its strategy."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from architect import HVP
from experiment import cli
from experiment.errors import UserError
from model_search import Network
from nas.remedies.recipes import OF_SUPERNET, PRESETS, given
from nas.remedies.sampling import Gdas, SampledNetwork
from nas.remedies.supernet import Remedied, Supernet
from nas.strategies import Darts


def add_arguments(parser: cli.Parser) -> None:
    """Adds the arguments of the remedies, and `--preset`, which changes defaults."""
    parser.presets = PRESETS
    group = parser.add_argument_group("remedies against memory use and collapse (docs/remedies.md)")
    group.add_argument("--preset", choices=PRESETS, help="the settings of a paper's code; other arguments override them")
    group.add_argument(
        "--arch_warmup", type=cli.non_negative_int, default=0, help="number of first epochs in which only the weights are trained"
    )
    group.add_argument(
        "--partial_channels",
        type=cli.positive_int,
        default=1,
        metavar="K",
        help="1/K of the channels go through the operations, with edge normalisation (PC-DARTS)",
    )
    group.add_argument(
        "--perturb", choices=["none", "random"], default="none", help="perturb the softmaxed alphas in the weight step (SDARTS-RS)"
    )
    group.add_argument(
        "--auxiliary_skip",
        type=cli.non_negative_float,
        nargs="?",
        const=1.0,
        default=0.0,
        metavar="WEIGHT",
        help="weight of an additional skip connection on every edge; decays linearly from the first epoch (DARTS-)",
    )
    group.add_argument("--gate", choices=["softmax", "sigmoid"], default="softmax", help="maps alphas to weights; sigmoid: FairDARTS")
    group.add_argument(
        "--zero_one_weight", type=cli.non_negative_float, default=0.0, help="weight of the loss that pulls sigmoids to 0 or 1"
    )
    group.add_argument(
        "--gate_threshold", type=cli.probability, default=0.0, help="the genotype leaves out operations with a lower sigmoid"
    )
    group.add_argument("--max_skips", type=cli.non_negative_int, help="most skip connections in the normal cell of the genotype (P-DARTS)")


def check(args: argparse.Namespace, strategy: type) -> None:
    """Checks the combination of remedies and other arguments.

    Args:
        args: the arguments of the command line; `init_channels` is set.
        strategy: the class of `args.strategy`.

    Raises:
        UserError: they cannot be combined. The message says why.
    """
    names = given(vars(args))
    sampled = issubclass(strategy, Gdas)
    supernet = names.keys() & (OF_SUPERNET.keys() | {"perturb"})
    if sampled:
        supernet -= {"max_skips"}
    if supernet and (args.space, args.strategy) != ("darts", "darts"):
        flags = ", ".join(f"--{name}" for name in sorted(supernet))
        raise UserError(f"{flags}: only for --space darts with --strategy darts, not {args.space} with {args.strategy}")
    if args.max_skips is not None and (args.space != "darts" or args.strategy not in NETWORKS):
        raise UserError("--max_skips needs --space darts, and --strategy darts or gdas")
    if args.arch_warmup and not issubclass(strategy, Darts):
        raise UserError(f"--arch_warmup needs a strategy with alphas: --strategy {args.strategy} has none")
    if args.arch_warmup >= args.epochs:
        raise UserError(f"--arch_warmup {args.arch_warmup} leaves none of the {args.epochs} epochs for the alphas: lower it")
    if args.arch_warmup and args.capture:
        raise UserError("--capture repeats one step, but --arch_warmup changes it: leave one of them out")
    if args.space == "darts" and args.init_channels % args.partial_channels:
        raise UserError(f"--partial_channels {args.partial_channels} does not divide --init_channels {args.init_channels}: change one")
    if args.gate == "sigmoid" and args.perturb != "none":
        raise UserError("--perturb needs softmaxed alphas, whose sum is 1: leave --gate sigmoid out")
    if args.gate != "sigmoid" and (args.zero_one_weight or args.gate_threshold):
        raise UserError("--zero_one_weight and --gate_threshold need sigmoids: add --gate sigmoid")
    if args.gate_threshold and args.max_skips is not None:
        raise UserError("--max_skips and --gate_threshold cannot be combined: leave one of them out")
    if sampled and (args.unrolled or args.hvp != HVP[0]):
        raise UserError("--unrolled and --hvp do not work with --strategy gdas, a first-order method: every pass samples other operations")
    if sampled and (args.eigenvalue_every or args.early_stop):
        raise UserError("--eigenvalue_every and --early_stop do not work with --strategy gdas: its loss changes with every pass")


def build(args: argparse.Namespace, num_classes: int, criterion: nn.Module) -> tuple[Network, type[Darts]]:
    """The supernet with the remedies of `args`, and the class of its strategy. `args.strategy` is one of `NETWORKS`.

    Without remedies, the supernet is `model_search.Network`.
    """
    sizes = (args.init_channels, num_classes, args.layers, criterion)
    others: dict[str, Any] = {"in_channels": args.channels, "stem": args.stem, "steps": args.nodes, "multiplier": args.nodes}
    if args.strategy == "gdas":
        return SampledNetwork(*sizes, max_skips=args.max_skips, **others), Gdas
    if not given(vars(args)).keys() - {"arch_warmup"}:
        return Network(*sizes, **others), Darts
    return Supernet(*sizes, **others | {name: getattr(args, name) for name in OF_SUPERNET}), Remedied


NETWORKS = ("darts", "gdas")  # strategies with their own supernet
