"""Searches beyond the paper's: spaces, strategies, remedies, settings of other papers, and signs of a collapse.

This file imports the code of these, and torch, only where a flag asks for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from architectures import SPACE_HELP, STRATEGY_HELP, Architecture, load_space
from experiment import cli
from experiment.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from architect import Searchable
    from experiment.loop import Step
    from experiment.run import Run
    from nas.benchmark import Benchmark

# The authors' settings for searches on CIFAR-10 that differ from the defaults here; docs/remedies.md lists what is left
# out.
PRESETS: dict[str, dict[str, Any]] = {
    "pc-darts": {
        "partial_channels": 4,
        "arch_warmup": 15,
        "batch_size": 256,
        "learning_rate": 0.1,
        "learning_rate_min": 0.0,
        "arch_learning_rate": 6e-4,
    },
    "gdas": {"strategy": "gdas", "epochs": 250, "batch_size": 256, "layers": 6, "weight_decay": 5e-4},
    "drnas": {"strategy": "drnas", "epochs": 100},
    "sdarts-adv": {"perturb": "adversarial"},
    "sdarts-rs": {"perturb": "random"},
    "darts-minus": {"auxiliary_skip": 1.0},
    "fair-darts": {
        "gate": "sigmoid",
        "zero_one_weight": 10.0,
        "gate_threshold": 0.85,
        "batch_size": 128,
        "learning_rate": 0.005,
        "arch_learning_rate": 3e-3,
        "arch_beta1": 0.9,
    },
    "nasbench201": {  # docs/nasbench201.md
        "space": "nasbench201",
        "weight_decay": 5e-4,
        "nesterov": "yes",
        "weights_first": "yes",
        "clip_alphas": "yes",
    },
}

# {argument: its value without the remedy}.
OFF: dict[str, Any] = {
    "partial_channels": 1,
    "auxiliary_skip": 0.0,
    "auxiliary_decay": "linear",
    "auxiliary_start": 0,
    "auxiliary_stop": None,
    "gate": "softmax",
    "zero_one_weight": 0.0,
    "gate_threshold": 0.0,
    "gate_rule": "node",
    "max_skips": None,
    "perturb": "none",
    "arch_warmup": 0,
    "weights_first": "no",
    "clip_alphas": "no",
}
_OF_THE_STEP = {"weights_first", "clip_alphas"}  # and not of the network or the strategy


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The remedies in the arguments of a search: {argument: value}."""
    return {name: arguments[name] for name, off in OFF.items() if arguments.get(name, off) != off}


def wanted(args: argparse.Namespace) -> bool:
    """Whether the search needs more than the network and the `Architect` of the paper."""
    more = given(vars(args)).keys() - {"arch_warmup", *_OF_THE_STEP}
    return bool(more or args.space_arg or args.strategy_arg) or (args.space, args.strategy) != ("darts", "darts")


def add_arguments(parser: cli.Parser) -> None:
    """Adds the arguments of such searches, and `--preset`, which changes defaults."""
    parser.presets = PRESETS
    group = parser.add_argument_group("other spaces and strategies (docs/search_spaces.md)")
    group.add_argument("--space", default="darts", help=f"search in this space: {SPACE_HELP}")
    cli.add_space_argument(group, "--space_arg", "space")
    group.add_argument("--strategy", default="darts", help=f"search with this strategy: {STRATEGY_HELP}")
    cli.add_space_argument(group, "--strategy_arg", "strategy")

    what = "use the settings of a paper's code (docs/remedies.md, docs/nasbench201.md); other arguments override them"
    group.add_argument("--preset", choices=PRESETS, help=what)

    add = parser.add_argument_group("remedies against memory use and collapse (docs/remedies.md)").add_argument
    what = "train only the weights in this many epochs at first"
    add("--arch_warmup", type=cli.non_negative_int, default=0, help=what)
    what = "send 1/K of the channels through the operations, with edge normalisation (PC-DARTS)"
    add("--partial_channels", type=cli.positive_int, default=1, metavar="K", help=what)
    what = "perturb the softmaxed alphas in the weight step (SDARTS-RS; adversarial: SDARTS-ADV)"
    add("--perturb", choices=["none", "random", "adversarial"], default="none", help=what)
    what = "add a skip connection with this weight, which decays, to every edge (DARTS-)"
    weight: dict[str, Any] = {"type": cli.non_negative_float, "default": 0.0}
    add("--auxiliary_skip", **weight, nargs="?", const=1.0, metavar="WEIGHT", help=what)
    decays = ["linear", "cosine", "slow_cosine", "none"]
    add("--auxiliary_decay", choices=decays, default="linear", help="the way in which that weight decays")
    add("--auxiliary_start", type=cli.non_negative_int, default=0, help="the epoch from which that weight decays")
    add("--auxiliary_stop", type=cli.non_negative_int, help="the epoch from which it stays as it is; None: never")
    what = "map alphas to the weights of operations with this function (sigmoid: FairDARTS)"
    add("--gate", choices=["softmax", "sigmoid"], default="softmax", help=what)
    add("--zero_one_weight", **weight, help="weight of the loss that pulls sigmoids towards 0 or 1 (FairDARTS)")
    what = "leave operations with a lower sigmoid out of the derived cells (FairDARTS)"
    add("--gate_threshold", type=cli.probability, default=0.0, help=what)
    what = (
        "apply that threshold to the edges that DARTS' rule derives, or to the two strongest operations of every edge"
    )
    add("--gate_rule", choices=["node", "edge"], default="node", help=what)
    what = "allow at most this many skip connections in the normal cell of the genotype (P-DARTS)"
    add("--max_skips", type=cli.non_negative_int, help=what)

    add = parser.add_argument_group("steps as in the code of NAS-Bench-201 (docs/nasbench201.md)").add_argument
    off: dict[str, Any] = {"choices": ["no", "yes"], "default": "no"}
    add("--nesterov", **off, help="use Nesterov's momentum")
    what = (
        "count the alphas' gradients, those of the alpha step and the weight step, in the norm that --grad_clip limits"
    )
    add("--clip_alphas", **off, help=what)
    what = "take the weight step before the alpha step; without effect with --unrolled or --perturb"
    add("--weights_first", **off, help=what)

    add = parser.add_argument_group("collapse (Zela et al. 2020)").add_argument
    what = "measure the dominant eigenvalue of the alphas' Hessian every so many epochs; 0: never"
    add("--eigenvalue_every", type=cli.non_negative_int, default=0, help=what)
    what = "stop when the eigenvalue has grown, and return an earlier architecture"
    add("--early_stop", choices=["eigenvalue"], help=what)

    add = parser.add_argument_group("tabular benchmark (docs/nasbench201.md)").add_argument
    what = "report the true accuracy of what is found from this table; it never influences the search"
    add("--benchmark", type=cli.path, metavar="FILE.csv", help=what)
    what = (
        "after the search, compare the supernet's accuracy of N random architectures with the table of --benchmark "
        "(Kendall's tau); not for --space darts"
    )
    add("--rank", type=cli.positive_int, metavar="N", help=what)


def check(args: argparse.Namespace) -> None:
    """Completes the sizes of the network, and checks what can be checked without images."""
    if args.capture and args.strategy != "darts":
        raise UserError(f"--capture needs --strategy darts: with {args.strategy}, every step runs another architecture")
    if args.early_stop and not args.eigenvalue_every:
        args.eigenvalue_every = 1
    if args.space == "darts":
        args.init_channels, args.layers = args.init_channels or 16, args.layers or 8
    if wanted(args):
        from nas import building

        building.check(args, given(vars(args)).keys() - _OF_THE_STEP)
    if args.rank and not args.benchmark:
        raise UserError("--rank compares the supernet with a table: add --benchmark FILE.csv")
    if args.rank and args.space == "darts":
        raise UserError("--rank needs a space of layer choices, such as --space nasbench201: leave it out")
    if args.stem == "imagenet":
        from architectures.networks import check_imagenet_stem

        check_imagenet_stem("--stem imagenet", args)
    if args.arch_warmup >= args.epochs:
        raise UserError(
            f"--arch_warmup {args.arch_warmup} leaves none of the {args.epochs} epochs for the alphas: lower it"
        )
    if args.capture and args.arch_warmup:
        raise UserError("--capture repeats one step, but --arch_warmup changes it: leave one of them out")
    first_order = not args.unrolled and args.perturb == "none"  # the others take the alphas' step first
    if args.capture and first_order and (args.weights_first, args.clip_alphas) == ("yes", "yes"):
        raise UserError("--capture cannot count the gradient of the alphas' last step: add --clip_alphas no")
    if args.hvp != "finite_difference" and not args.unrolled:
        raise UserError(f"--hvp {args.hvp} needs the second order: add --unrolled, or leave it out")


def search_step(args: argparse.Namespace) -> Callable[..., Step] | None:
    """What makes the step instead of `train_search.search_step`, if the arguments ask for another one; else None."""
    if "yes" not in (args.weights_first, args.clip_alphas):
        return None
    from nas import steps

    return steps.search_step


# ---- A tabular benchmark


def load_benchmark(args: argparse.Namespace) -> Benchmark | None:
    """The table of `--benchmark`, or None."""
    if args.benchmark is None:
        return None
    from nas.benchmark import Benchmark

    return Benchmark(args.benchmark, args.dataset)


def judge(
    args: argparse.Namespace, table: Benchmark, found: Architecture, model: nn.Module, valid_batches: Any, run: Run
) -> None:
    """Logs what the table says of the result, and with `--rank` how well the supernet ranks."""
    run.log("found %s", table.line(found))
    if args.rank:
        from nas import ranking

        ranking.rank(model, load_space(args.space), table, valid_batches, args.rank, run)


# ---- Signs of a collapse

# Skip connections among the eight edges of a normal cell. Liang et al. 2019 (DARTS+, 1909.06035) stop a search at this
# number.
MOST_SKIPS = 2


def signs_of_collapse(
    args: argparse.Namespace,
    model: Searchable,
    valid_batches: Iterable[tuple[Tensor, Tensor]],
    metrics: Mapping[str, Any],
    run: Run,
) -> dict[str, float]:
    """`eigenvalue` of an epoch with these metrics, where it is measured. Logs it, and a warning of many skips."""
    found = {}
    if args.eigenvalue_every and run.progress.epoch % args.eigenvalue_every == 0:
        import collapse

        found["eigenvalue"] = collapse.dominant_eigenvalue(model, *next(iter(valid_batches)))
        run.log("eigenvalue %e", found["eigenvalue"])
    if text := warning(metrics, run.progress.metrics):
        run.log("%s", text)
    return found


def warning(metrics: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> str:
    """A warning if the normal cell has too many skip connections and their number has changed; else empty."""
    skips = metrics.get("skips_normal", 0)
    if skips <= MOST_SKIPS or (earlier and earlier[-1].get("skips_normal") == skips):
        return ""
    return (
        f"warning: {skips} of the normal cell's edges are skip connections; cells with more than {MOST_SKIPS} tend to "
        f"train badly (--early_stop eigenvalue, a shorter search or another --seed may help)"
    )


def stop_at(args: argparse.Namespace, metrics: Sequence[dict[str, Any]]) -> int | None:
    """The epoch whose architecture is the result, if `--early_stop` ends the search after these epochs; else None."""
    if not args.early_stop:
        return None
    import collapse

    return collapse.stop_at(metrics)
