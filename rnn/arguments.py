"""Arguments of the commands for recurrent cells, and the commands that a run proposes."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from experiment import cli
from experiment.errors import UserError
from experiment.run import Run
from rnn import data
from rnn.genotypes import RecurrentCell
from rnn.model import Dropouts

WEIGHTS = {
    "epochs": (cli.positive_int, None, "train for this many passes over the training text"),
    "batch_size": (cli.positive_int, None, "number of sequences in a batch"),
    "lr": (cli.positive_float, 20.0, "learning rate for a sequence of length --bptt"),
    "clip": (cli.positive_float, 0.25, "clip the gradient to this norm"),
    "wdecay": (cli.non_negative_float, None, "weight decay"),
    "alpha": (cli.non_negative_float, 0.0, "weight of the mean square of the decoder's inputs in the loss"),
    "beta": (
        cli.non_negative_float,
        1e-3,
        "weight of the mean square of the states' changes between time steps in the loss",
    ),
}
DROPOUT = {
    "dropout": (cli.probability, 0.75, "drop units of the decoder's input with this probability"),
    "dropouth": (cli.probability, 0.25, "drop units of hidden states within the cell with this probability"),
    "dropoutx": (cli.probability, 0.75, "drop units of the cell's input with this probability"),
    "dropouti": (cli.probability, 0.2, "drop units of embeddings with this probability"),
    "dropoute": (cli.probability, None, "drop whole words, in the whole batch, with this probability"),
}


def add_network_arguments(parser: cli.Parser, emsize: int) -> None:
    """Adds the arguments for text and network, the same for every stage."""
    group = parser.add_argument_group("data")
    what = "learn this text; pydoc needs no files; text reads your own"
    group.add_argument("--dataset", choices=data.DATASETS, default="ptb", help=what)
    what = "read train.txt, valid.txt and test.txt in this folder; for --dataset text, a file or a folder of files"
    group.add_argument("--data", type=cli.path, default="../data/penn/", help=what)
    what = "keep at most this many words in the vocabulary, for --dataset text and pydoc"
    group.add_argument("--vocabulary", type=cli.positive_int, default=10_000, help=what)
    group = parser.add_argument_group("network")
    what = "number of units of embeddings and hidden states"
    group.add_argument("--emsize", type=cli.positive_int, default=emsize, help=what)
    for name in ("--nhid", "--nhidlast"):
        group.add_argument(name, type=cli.positive_int, help="must be equal to --emsize; None: it is")
    group.add_argument("--bptt", type=cli.positive_int, default=35, help="length of most sequences, in words")
    what = "compute as the authors' code does, including its faults (docs/recurrent.md)"
    group.add_argument("--faithful", action="store_true", help=what)


def add_arch_argument(parser: cli.Parser) -> None:
    """Adds `--arch`. Its value is a published cell by its canonical name, or what was given."""
    known = ", ".join(RecurrentCell.names())
    what = f"the cell: {known}; a search's folder; or JSON or Genotype(...), as text or in a file"
    parser.add_argument("--arch", type=RecurrentCell.canonical, default="DARTS", help=what)


def training_parser(description: str, emsize: int, **defaults: float) -> cli.Parser:
    """A parser with the arguments of a stage that trains weights. The two such stages differ in these defaults."""
    parser = cli.Parser(description=description)
    cli.add_run_arguments(parser, images=False)
    add_network_arguments(parser, emsize)
    parser.add_argument("--seed", type=cli.seed, help="seed of weights, dropout masks and sequences' lengths")
    what = "the same as --report_freq"
    parser.add_argument(
        "--log-interval", dest="report_freq", type=cli.positive_int, default=argparse.SUPPRESS, help=what
    )
    _add(parser.add_argument_group("weights"), WEIGHTS)
    _add(parser.add_argument_group("dropout"), DROPOUT)
    cli.accept_unread(parser, "--small_batch_size")
    cli.accept_unread(parser, "--cuda", "--continue_train", "--single_gpu", nargs=0)
    parser.set_defaults(**defaults)
    return parser


def _add(group: Any, options: Mapping[str, tuple[Callable[[str], Any], float | None, str]]) -> None:
    for name, (kind, default, what) in options.items():
        group.add_argument(f"--{name}", type=kind, default=default, help=what)


def check_sizes(args: argparse.Namespace) -> None:
    """Raises `UserError` unless embeddings and states have the same size."""
    if {args.nhid or args.emsize, args.nhidlast or args.emsize} != {args.emsize}:
        raise UserError(f"--nhid and --nhidlast must be --emsize, {args.emsize}: embeddings and states share a matrix")


def dropouts(args: argparse.Namespace) -> Dropouts:
    """The dropout probabilities of the command line."""
    return Dropouts(**{name: getattr(args, name) for name in Dropouts._fields})


def next_command(module: str, run: Run, *flags: str) -> str:
    """The command that hands the run's result to the script `module`, on the same text."""
    args = run.args
    command = ["python", "-m", module, "--arch", str(run.folder), *flags, "--gpu", str(args.gpu)]
    command += ["--dataset", args.dataset]
    if args.dataset != "pydoc":
        command += ["--data", args.data]
    if args.dataset not in data.SOURCES:
        command += ["--vocabulary", str(args.vocabulary)]
    return shlex.join(command)
