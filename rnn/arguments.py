"""Arguments of the commands for recurrent cells."""

from __future__ import annotations

import argparse

from experiment import cli
from experiment.errors import UserError
from rnn import data
from rnn.cells import RecurrentCell
from rnn.model import Dropouts


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that select the text, the same for every stage."""
    group = parser.add_argument_group("data")
    what = "learn this text; pydoc needs no files; text reads your own"
    group.add_argument("--dataset", choices=data.DATASETS, default="ptb", help=what)
    what = "read train.txt, valid.txt and test.txt in this folder; for --dataset text, a file or a folder of files"
    group.add_argument("--data", type=cli.path, default="../data/penn/", help=what)
    what = "keep at most this many words in the vocabulary, for --dataset text and pydoc"
    group.add_argument("--vocabulary", type=cli.positive_int, default=10_000, help=what)


def add_arch_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--arch`. Its value is a published cell by its canonical name, or what was given."""
    known = ", ".join(RecurrentCell.names())
    what = f"the cell: {known}; a search's folder; or JSON or Genotype(...), as text or in a file"
    parser.add_argument("--arch", type=RecurrentCell.canonical, default="DARTS", help=what)


def add_network_arguments(parser: argparse.ArgumentParser, emsize: int) -> None:
    """Adds the arguments for the size of the network, and `--faithful`, the same for every stage."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--emsize", type=cli.positive_int, default=emsize, help="number of units of embeddings and hidden states"
    )
    for name in ("--nhid", "--nhidlast"):
        group.add_argument(name, type=cli.positive_int, help="must be equal to --emsize; None: it is")
    group.add_argument("--bptt", type=cli.positive_int, default=35, help="length of most sequences, in words")
    what = "compute as the authors' code does, including its faults (docs/recurrent.md)"
    group.add_argument("--faithful", action="store_true", help=what)


def add_training_arguments(
    parser: argparse.ArgumentParser, batch_size: int, epochs: int, seed: int, dropoute: float, wdecay: float
) -> None:
    """Adds the arguments for training the weights. The two stages that train differ only in these defaults."""
    number, positive, whole = cli.non_negative_float, cli.positive_float, cli.positive_int
    parser.add_argument(
        "--seed", type=cli.seed, default=seed, help="seed of weights, dropout masks and sequences' lengths"
    )
    what = "the same as --report_freq"
    parser.add_argument("--log-interval", dest="report_freq", type=whole, default=argparse.SUPPRESS, help=what)
    group = parser.add_argument_group("weights")
    group.add_argument("--epochs", type=whole, default=epochs, help="train for this many passes over the training text")
    group.add_argument("--batch_size", type=whole, default=batch_size, help="number of sequences in a batch")
    group.add_argument("--lr", type=positive, default=20.0, help="learning rate for a sequence of length --bptt")
    group.add_argument("--clip", type=positive, default=0.25, help="clip the gradient to this norm")
    group.add_argument("--wdecay", type=number, default=wdecay, help="weight decay")
    what = "weight of the mean square of the decoder's inputs in the loss"
    group.add_argument("--alpha", type=number, default=0.0, help=what)
    what = "weight of the mean square of the states' changes between time steps in the loss"
    group.add_argument("--beta", type=number, default=1e-3, help=what)
    group = parser.add_argument_group("dropout")
    dropped = {
        "dropout": (0.75, "units of the decoder's input"),
        "dropouth": (0.25, "units of hidden states within the cell"),
        "dropoutx": (0.75, "units of the cell's input"),
        "dropouti": (0.2, "units of embeddings"),
        "dropoute": (dropoute, "whole words, in the whole batch,"),
    }
    for name, (default, what) in dropped.items():
        group.add_argument(
            f"--{name}", type=cli.probability, default=default, help=f"drop {what} with this probability"
        )
    cli.accept_unread(parser, "--small_batch_size")
    cli.accept_unread(parser, "--cuda", "--continue_train", "--single_gpu", nargs=0)


def check_sizes(args: argparse.Namespace) -> None:
    """Raises `UserError` unless embeddings and states have the same size."""
    if {args.nhid or args.emsize, args.nhidlast or args.emsize} != {args.emsize}:
        raise UserError(f"--nhid and --nhidlast must be --emsize, {args.emsize}: embeddings and states share a matrix")


def dropouts(args: argparse.Namespace) -> Dropouts:
    """The dropout probabilities of the command line."""
    return Dropouts(**{name: getattr(args, name) for name in Dropouts._fields})


def data_flags(args: argparse.Namespace) -> list[str]:
    """The flags that select the same text."""
    flags = ["--dataset", args.dataset]
    if args.dataset != "pydoc":
        flags += ["--data", args.data]
    if args.dataset not in data.SOURCES:
        flags += ["--vocabulary", str(args.vocabulary)]
    return flags
