"""Shared by search, training and test of language models: arguments, position in the text, loss, evaluation."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import utils
from experiment import cli, files
from experiment.checkpoint import check_like
from experiment.errors import UserError
from experiment.run import Run
from rnn import data
from rnn.cells import RecurrentCell
from rnn.model import DARTSCell, Decoder, Dropouts, RNNModel

REGIONS = {DARTSCell: ("forward",), Decoder: ("loss",)}  # the methods that are compiled
EVAL_BATCH, TEST_BATCH = 10, 1  # columns of the validation and of the test text, as in the original
VOCABULARY = "vocabulary.json"  # in a run's folder
ARCH_HELP = f"{', '.join(RecurrentCell.names())}; a file with JSON or Genotype(...); a search's folder; or such a text"


# ---- Arguments


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that select the text, the same for every stage."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=data.DATASETS, default="ptb", help="pydoc needs no files; text reads your own")
    group.add_argument(
        "--data",
        type=cli.path,
        default="../data/penn/",
        help="folder with train.txt, valid.txt and test.txt; for --dataset text, a file or a folder",
    )
    group.add_argument("--vocabulary", type=cli.positive_int, default=10_000, help="largest number of words, for --dataset text and pydoc")


def arch(given: str) -> str:
    """The value of `--arch`, a published cell by its canonical name."""
    return RecurrentCell.canonical(given)


def add_network_arguments(parser: argparse.ArgumentParser, emsize: int) -> None:
    """Adds the arguments for the size of the network, and `--faithful`, the same for every stage."""
    group = parser.add_argument_group("network")
    group.add_argument("--emsize", type=cli.positive_int, default=emsize, help="units of embeddings and states")
    for name in ("--nhid", "--nhidlast"):
        group.add_argument(name, type=cli.positive_int, help="units of states; must equal --emsize; None: --emsize")
    group.add_argument("--bptt", type=cli.positive_int, default=35, help="length of a sequence")
    group.add_argument(
        "--faithful", action="store_true", help="compute as the authors' code does, including its faults (docs/recurrent.md)"
    )


def add_training_arguments(
    parser: argparse.ArgumentParser, batch_size: int, epochs: int, seed: int, dropoute: float, wdecay: float
) -> None:
    """Adds the arguments for training the weights. The two stages that train differ only in these defaults."""
    parser.add_argument("--seed", type=cli.seed, default=seed, help="of weights, dropout and sequence lengths")
    parser.add_argument(
        "--log-interval", dest="report_freq", type=cli.positive_int, default=argparse.SUPPRESS, help="the same as --report_freq"
    )
    group = parser.add_argument_group("weights")
    group.add_argument("--epochs", type=cli.positive_int, default=epochs)
    group.add_argument("--batch_size", type=cli.positive_int, default=batch_size)
    group.add_argument("--lr", type=cli.positive_float, default=20.0, help="learning rate")
    group.add_argument("--clip", type=cli.positive_float, default=0.25, help="largest norm of the gradient")
    group.add_argument("--wdecay", type=cli.non_negative_float, default=wdecay, help="weight decay")
    group.add_argument(
        "--alpha", type=cli.non_negative_float, default=0.0, help="weight of the mean square of the states that the decoder sees"
    )
    group.add_argument(
        "--beta", type=cli.non_negative_float, default=1e-3, help="weight of the mean square of a state's change in a time step"
    )
    group = parser.add_argument_group("dropout")
    words = {
        "dropout": (0.75, "of the states that the decoder sees"),
        "dropouth": (0.25, "of states within the cell"),
        "dropoutx": (0.75, "of the cell's input"),
        "dropouti": (0.2, "of embeddings"),
        "dropoute": (dropoute, "of words, in the whole batch"),
    }
    for name, (default, what) in words.items():
        group.add_argument(f"--{name}", type=cli.probability, default=default, help=what)
    cli.accept_unread(parser, "--small_batch_size")
    cli.accept_unread(parser, "--cuda", "--continue_train", "--single_gpu", nargs=0)


def check_sizes(args: argparse.Namespace) -> None:
    """Raises `UserError` unless embeddings and states have the same size, and sequences are long enough."""
    if {args.nhid or args.emsize, args.nhidlast or args.emsize} != {args.emsize}:
        raise UserError(f"--nhid and --nhidlast must be --emsize, {args.emsize}: embeddings and states share a matrix")
    if args.bptt < 4:
        raise UserError(f"--bptt {args.bptt} is too short: some sequences have half of it, and need two words at least; name 4 or more")


def dropouts(args: argparse.Namespace) -> Dropouts:
    """The dropout probabilities of the command line."""
    return Dropouts(**{name: getattr(args, name) for name in Dropouts._fields})


def data_flags(args: argparse.Namespace) -> list[str]:
    """The flags that select the same text."""
    flags = ["--dataset", args.dataset]
    if args.dataset != "pydoc":
        flags += ["--data", args.data]
    return flags if args.dataset in data.SOURCES else [*flags, "--vocabulary", str(args.vocabulary)]


def keep_vocabulary(corpus: data.Corpus, run: Run) -> None:
    """Writes the vocabulary and a checksum of the text into the run's folder.

    Raises:
        UserError: the run is resumed, and began with another text.
    """
    text = b"".join(getattr(corpus, part).numpy().tobytes() for part in data.PARTS)
    record = {"sha256": hashlib.sha256(text).hexdigest(), "words": corpus.words}
    path = run.folder / VOCABULARY
    if path.exists() and _read_json(path) != record:
        raise UserError(f"{run.folder} began with another text: name that one with --dataset and --data")
    run.write_json(VOCABULARY, record)


def check_vocabulary(corpus: data.Corpus, weights: Path) -> None:
    """Raises `UserError` if the vocabulary recorded beside the weights differs from that of the corpus."""
    path = weights.with_name(VOCABULARY)
    record = _read_json(path) if path.exists() else None
    if record is not None and (not isinstance(record, dict) or record.get("words") != corpus.words):
        raise UserError(
            f"the weights {weights} have another vocabulary than this text: give --dataset, --data and --vocabulary of their training"
        )


def _read_json(path: Path) -> Any:
    try:
        return files.parse_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} does not hold JSON: {error}") from None


# ---- The loop


class Meters(utils.Meters):
    """The mean loss per word of an epoch, and its perplexity."""

    _NAMES = ("loss",)

    def update_loss(self, loss: Tensor, words: int) -> None:
        """Adds the mean loss of `words` words."""
        self.loss.update(loss, words)

    def brief(self) -> str:
        return f"loss {self.loss.avg:.3f}, ppl {perplexity(self.loss.avg):.1f}"

    def __str__(self) -> str:
        return f"loss {self.loss.avg:5.2f} ppl {perplexity(self.loss.avg):8.2f}"


class Place:
    """The position of an epoch in the text: the next row, and the hidden states, (1, B, H) each, that are carried to the next sequence."""

    def __init__(self, *hidden: Tensor) -> None:
        self.row = 0
        self.hidden = list(hidden)

    def begin(self) -> None:
        """Resets to the beginning of an epoch."""
        self.row = 0
        self.hidden = [torch.zeros_like(hidden) for hidden in self.hidden]

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "hidden": self.hidden}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_like(state_dict, self.state_dict(), "the place in the text")
        if state_dict["row"] < 0:
            raise ValueError("the place in the text is before its beginning")
        self.row = state_dict["row"]
        self.hidden = [saved.to(hidden.device) for saved, hidden in zip(state_dict["hidden"], self.hidden, strict=True)]


def pieces(text: Tensor, place: Place, bptt: int, longest: int | None = None) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yields the sequences from `place` to the end of the epoch: (row, drawn length, words (T, B), next words (T, B)). Advances `place`.

    The last sequence may be shorter than its drawn length. `longest`: see `data.sequence_length`.
    """
    while place.row < len(text) - 2:
        row, length = place.row, data.sequence_length(bptt, longest)
        place.row += length  # before the step, so that a checkpoint after it continues with the next sequence
        yield row, length, *data.get_batch(text, row, length)


def expected_pieces(text: Tensor, bptt: int) -> int:
    """The approximate number of sequences in an epoch."""
    return max(1, round((len(text) - 2) / (0.975 * bptt)))


def losses(model: RNNModel, x: Tensor, y: Tensor, hidden: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, regularised loss, state after the sequence). The loss is the mean per word; regularisers: Merity et al. 2017, 1708.02182."""
    loss, hidden, output, states = model(x, hidden, target=y)
    regularised = loss
    if alpha:
        regularised = regularised + alpha * output.square().mean()
    if beta:
        regularised = regularised + beta * (states[1:] - states[:-1]).square().mean()
    return loss, regularised, hidden.detach()


def sequences(text: Tensor, bptt: int) -> range:
    """The first row of each sequence in which `evaluate` reads `text`, (rows, columns)."""
    return range(0, len(text) - 1, bptt)


@torch.no_grad()
def evaluate(
    model: RNNModel, text: Tensor, bptt: int, faithful: bool, report: Callable[[int, object], None] = lambda step, meters: None
) -> float:
    """The mean loss per word of `text`, (rows, columns), in evaluation mode. The state is carried from sequence to sequence.

    Args:
        faithful: divide by the number of rows, as the original, although the first row is never predicted.
        report: called after every sequence.
    """
    model.eval()
    hidden = model.init_hidden(text.size(1))
    total = torch.zeros((), dtype=torch.float64, device=text.device)
    for step, row in enumerate(sequences(text, bptt)):
        x, y = data.get_batch(text, row, bptt)
        log_prob, hidden, *_ = model(x, hidden)
        total += len(x) * F.nll_loss(log_prob.flatten(0, 1), y.flatten()).double()
        report(step, f"{row + len(x)} of {len(text) - 1} rows")
    return float(total) / (len(text) - (not faithful))


def perplexity(loss: float) -> float:
    """The exponential of a mean loss, at most e^200: the loss of a supernet may be too large."""
    return math.exp(min(loss, 200.0))


def baseline_lines(corpus: data.Corpus) -> list[str]:
    """Lines for the log: the perplexities of the baselines."""
    return [f"{name}: valid ppl {found['valid']:.2f}, test ppl {found['test']:.2f}" for name, found in data.baselines(corpus).items()]


def multiply_adds(model: RNNModel, edges: int, words: int) -> float:
    """Multiply-adds of a forward pass over `words` words, by a cell with `edges` edges."""
    return float(words) * model.ninp * (2 * model.ninp * (2 + edges) + model.ntoken)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
