"""Cuts texts into sequences for language models, and computes the weight step, losses and perplexities on them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import utils
from experiment.loop import Step
from rnn import data
from rnn.model import RNNModel


class Meters(utils.Meters):
    """The mean loss per word of an epoch or of a text, and its perplexity."""

    @property
    def ppl(self) -> float:
        """The perplexity, at most e^200: the loss of a supernet may be too large."""
        return math.exp(min(self.loss.avg, 200.0))

    def described(self, part: str) -> dict[str, float]:
        """For metrics.jsonl."""
        return {f"{part}_loss": self.loss.avg, f"{part}_ppl": self.ppl}

    def brief(self) -> str:
        return f"loss {self.loss.avg:.3f}, ppl {self.ppl:.1f}"

    def __str__(self) -> str:
        return f"loss {self.loss.avg:5.2f} ppl {self.ppl:8.2f}"


class Place:
    """The position of an epoch in the text: the next row, and the hidden states before it, (1, B, H) each."""

    def __init__(self, *hidden: Tensor) -> None:
        self.row = 0
        self.hidden = list(hidden)

    def begin(self) -> None:
        """Resets to the beginning of an epoch."""
        self.row = 0
        self.hidden = [torch.zeros_like(hidden) for hidden in self.hidden]

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "hidden": list(self.hidden)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.row = state_dict["row"]
        self.hidden = [saved.to(hidden.device) for saved, hidden in zip(state_dict["hidden"], self.hidden, strict=True)]


def pieces(
    text: Tensor, place: Place, bptt: int, longest: int | None = None
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yields the sequences from `place` to the end of the epoch, and advances `place`.

    Each is a row, the drawn length, words (T, B) and next words (T, B). The last may be shorter than its drawn length.
    `longest`: see `data.sequence_length`.
    """
    while place.row < len(text) - 2:
        row, length = place.row, data.sequence_length(bptt, longest)
        place.row += length  # before the step, so that a checkpoint after it continues with the next sequence
        yield row, length, *data.get_batch(text, row, length)


def expected_pieces(text: Tensor, bptt: int) -> int:
    """The approximate number of sequences in an epoch."""
    return max(1, round((len(text) - 2) / (0.975 * bptt)))


def losses(
    model: RNNModel, x: Tensor, y: Tensor, hidden: Tensor, alpha: float, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(mean loss per word, the same with regularisers, state after the sequence). Merity et al. 2017, 1708.02182."""
    loss, hidden, output, states = model(x, hidden, target=y)
    regularised = loss
    if alpha:
        regularised = regularised + alpha * output.square().mean()
    if beta:
        regularised = regularised + beta * (states[1:] - states[:-1]).square().mean()
    return loss, regularised, hidden.detach()


def weight_step(model: RNNModel, place: Place, meters: Meters, args: argparse.Namespace) -> Step:
    """The step of an optimizer of the weights on a piece. `meters` get the loss without regularisers."""
    weights = model.weight_parameters()

    def step(optimizer: torch.optim.Optimizer, row: int, length: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        loss, regularised, place.hidden[0] = losses(model, x, y, place.hidden[0], args.alpha, args.beta)
        regularised.backward(inputs=weights)
        norm = nn.utils.clip_grad_norm_(weights, args.clip)
        optimizer.param_groups[0]["lr"] = args.lr * length / args.bptt
        optimizer.step()
        optimizer.param_groups[0]["lr"] = args.lr  # the value in checkpoints
        meters.loss.update(loss, y.numel())
        return regularised, norm

    return step


def starts(text: Tensor, bptt: int) -> range:
    """The first row of each sequence in which `evaluate` reads `text`, (rows, columns)."""
    return range(0, len(text) - 1, bptt)


@torch.no_grad()
def evaluate(
    model: RNNModel,
    text: Tensor,
    bptt: int,
    faithful: bool,
    report: Callable[[int, object], None] = lambda step, meters: None,
) -> Meters:
    """Reads `text`, (rows, columns). Each sequence begins with the state of the one before.

    Args:
        faithful: divide the loss by the number of rows, as the original, although the first row is never predicted.
        report: called after every sequence.
    """
    model.eval()
    hidden, meters = model.init_hidden(text.size(1)), Meters()
    for step, row in enumerate(starts(text, bptt)):
        x, y = data.get_batch(text, row, bptt)
        log_prob, hidden, *_ = model(x, hidden)
        meters.loss.update(F.nll_loss(log_prob.flatten(0, 1), y.flatten()), len(x))
        report(step, f"{row + len(x)} of {len(text) - 1} rows")
    meters.loss.count += faithful
    return meters
