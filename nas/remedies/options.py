"""Remedies on the command line: their arguments, what does not go together, and from them to a supernet and its strategy."""

from __future__ import annotations

import argparse

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
    """The remedies' arguments, and `--preset`, which changes the defaults of others."""
    parser.presets = PRESETS
    group = parser.add_argument_group("remedies against memory use and collapse (docs/remedies.md)")
    group.add_argument("--preset", choices=PRESETS, help="the recipe of a remedy's paper; what else is given replaces its values")
    group.add_argument("--arch_warmup", type=cli.non_negative_int, default=0, help="first epochs in which the alphas rest")
    group.add_argument(
        "--partial_channels",
        type=cli.positive_int,
        default=1,
        metavar="K",
        help="1/K of the channels go through the operations, and edges have weights (PC-DARTS)",
    )
    group.add_argument("--perturb", choices=["none", "random"], default="none", help="alphas in the weights' step (SDARTS-RS)")
    group.add_argument(
        "--auxiliary_skip",
        type=cli.non_negative_float,
        nargs="?",
        const=1.0,
        default=0.0,
        metavar="WEIGHT",
        help="in the first epoch, of a skip connection beside every edge; descends linearly towards 0 (DARTS-)",
    )
    group.add_argument("--gate", choices=["softmax", "sigmoid"], default="softmax", help="of the alphas; sigmoid: FairDARTS")
    group.add_argument("--zero_one_weight", type=cli.non_negative_float, default=0.0, help="of the loss that draws sigmoids to 0 and 1")
    group.add_argument("--gate_threshold", type=cli.probability, default=0.0, help="operations of a lower sigmoid are left out")
    group.add_argument("--max_skips", type=cli.non_negative_int, help="skip connections in the normal cell, at most (P-DARTS)")


def check(args: argparse.Namespace, strategy: type) -> None:
    """Whether the remedies go together, and with the rest.

    Args:
        args: the command line's; `init_channels` is set.
        strategy: that of `args.strategy`.

    Raises:
        UserError: they do not, and why.
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
        raise UserError("--max_skips is a rule for the cells of --space darts that --strategy darts or gdas finds")
    if args.arch_warmup and not issubclass(strategy, Darts):
        raise UserError(f"--arch_warmup is of strategies that have alphas: --strategy {args.strategy} has none")
    if args.arch_warmup >= args.epochs:
        raise UserError(f"--arch_warmup {args.arch_warmup} leaves none of the {args.epochs} epochs to the alphas: lower it")
    if args.arch_warmup and args.capture:
        raise UserError("--capture repeats one step, and --arch_warmup changes it: leave one of them out")
    if args.space == "darts" and args.init_channels % args.partial_channels:
        raise UserError(f"--partial_channels {args.partial_channels} does not divide --init_channels {args.init_channels}: change one")
    if args.gate == "sigmoid" and args.perturb != "none":
        raise UserError("--perturb is of softmaxed alphas, whose sum is 1: leave --gate sigmoid out")
    if args.gate != "sigmoid" and (args.zero_one_weight or args.gate_threshold):
        raise UserError("--zero_one_weight and --gate_threshold are of sigmoids: add --gate sigmoid")
    if args.gate_threshold and args.max_skips is not None:
        raise UserError("--max_skips and --gate_threshold are two rules for one cell: leave one of them out")
    if sampled and (args.unrolled or args.hvp != HVP[0]):
        raise UserError("--unrolled and --hvp are not of --strategy gdas: every pass draws other operations; it is of first order")
    if sampled and (args.eigenvalue_every or args.early_stop):
        raise UserError("--eigenvalue_every and --early_stop are not of --strategy gdas: its loss is another one in every pass")


def build(args: argparse.Namespace, num_classes: int, criterion: nn.Module) -> tuple[Network, type[Darts]]:
    """The supernet of `args.strategy`, one of `NETWORKS`, with the remedies that were asked for, and what drives it.

    Without any, `model_search.Network`.
    """
    sizes = (args.init_channels, num_classes, args.layers, criterion)
    images = {"in_channels": args.channels, "stem": args.stem}
    if args.strategy == "gdas":
        return SampledNetwork(*sizes, max_skips=args.max_skips, **images), Gdas
    if not given(vars(args)).keys() - {"arch_warmup"}:
        return Network(*sizes, **images), Darts
    return Supernet(*sizes, **images, **{name: getattr(args, name) for name in OF_SUPERNET}), Remedied


NETWORKS = ("darts", "gdas")  # the strategies that learn on a supernet of their own
