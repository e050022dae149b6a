"""Seconds and memory of a step of the recurrent search and training: operation by operation, eager, and compiled, side
by side.

    python benchmarks/recurrent_step.py                     # the paper's sizes on the CPU: 15 minutes on 2 cores
    python benchmarks/recurrent_step.py --stages first --steps 1 --json recurrent_step.json
    python benchmarks/recurrent_step.py --device cuda

A step of the search updates the alphas, then the weights (forward, backward, clipping, SGD). A step of the training
updates the weights.

| way | what is computed |
|---|---|
| plain | the original's: a sum over edges per activation, a product with the input per time step, one loss |
| eager | `--compile no`: rnn/model.py and rnn/model_search.py |
| default | `--compile yes` |

Expect a table: per stage the median seconds of a step, how many times as fast as the plain one it is, and its share of
the plain one's peak memory. Each way runs in a separate process. The first step, which compiles, is not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import torch
import torch.nn.functional as F
import turns
from torch import Tensor

from rnn import genotypes, sequences
from rnn.architect import alpha_step, learner
from rnn.genotypes import PRIMITIVES
from rnn.model import ACTIVATIONS, REGIONS, DARTSCell, Dropouts, Masks, RNNModel, masked
from rnn.model_search import DARTSCellSearch, RNNModelSearch
from speed import compilation
from utils import constant

WAYS = ("plain", "eager", "default")
STAGES = {"first": "search, first order", "second": "search, second order", "training": "training"}
DROPOUTS = Dropouts(0.75, 0.25, 0.75, 0.2, 0.0)


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Time a step of the recurrent search and training, computed in several ways.")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--search_size", nargs=2, type=cli.positive_int, default=[300, 256], metavar=("UNITS", "BATCH"))
    parser.add_argument(
        "--training_size", nargs=2, type=cli.positive_int, default=[850, 64], metavar=("UNITS", "BATCH")
    )
    parser.add_argument("--words", type=cli.positive_int, default=10_000, help="of the vocabulary")
    parser.add_argument("--bptt", type=cli.positive_int, default=35)
    turns.add_arguments(parser, steps=3)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    machine = turns.machine(args.device, args.threads)
    print(f"{args.words} words, sequences of {args.bptt}; {machine}\n\n{turns.header(args.ways)}", flush=True)
    figures = []
    for stage in args.stages:
        units, batch_size = args.training_size if stage == "training" else args.search_size
        makers = {way: partial(make_step, way, stage, units, batch_size, args) for way in args.ways}
        results = turns.compare(makers, args.steps, args.device, args.threads)
        print(turns.row(f"{STAGES[stage]}, {units} units", batch_size, results), flush=True)
        figures.append({"stage": stage, "units": units, "batch_size": batch_size, **results})
    turns.save(args.json, {"machine": machine, "arguments": vars(args), "figures": figures})


def make_step(way: str, stage: str, units: int, batch_size: int, args: argparse.Namespace) -> Callable[[], None]:
    """A model on random words, and the step that trains it."""
    torch.manual_seed(0)
    model = (
        RNNModel(args.words, units, DROPOUTS._replace(dropoute=0.1), genotypes.DARTS_V2)
        if stage == "training"
        else RNNModelSearch(args.words, units, DROPOUTS)
    )
    model.to(args.device)
    if way == "plain":
        model.rnns[0].__class__ = PlainCell if stage == "training" else PlainCellSearch
        model.__class__ = PlainModel if stage == "training" else PlainModelSearch
    if way == "default":
        compilation.compile_regions(model, batch_size, REGIONS)
    weights = model.weight_parameters()
    optimizer = torch.optim.SGD(weights, 20.0, weight_decay=5e-7)
    given = SimpleNamespace(
        clip=0.25, wdecay=5e-7, arch_lr=3e-3, arch_wdecay=1e-3, hvp="finite_difference", unrolled=stage == "second"
    )
    architect = learner(model, given) if isinstance(model, RNNModelSearch) else None
    train, valid = (
        (*torch.randint(args.words, (2, args.bptt, batch_size), device=args.device), model.init_hidden(batch_size))
        for _ in range(2)
    )

    x, y, hidden = train

    def step() -> None:
        if architect is not None and isinstance(model, RNNModelSearch):
            alpha_step(architect, model, train, valid, 20.0, given)
        optimizer.zero_grad()
        with constant(model.arch_parameters() if isinstance(model, RNNModelSearch) and way != "plain" else ()):
            _, loss, _ = sequences.losses(model, x, y, hidden, alpha=0.0, beta=1e-3)
        loss.backward(inputs=weights)
        torch.nn.utils.clip_grad_norm_(weights, 0.25)
        optimizer.step()

    return step


# ---- The original's operations


class PlainModel(RNNModel):
    """`RNNModel` with the log-probabilities of all time steps at once."""

    def forward(self, x: Tensor, hidden: Tensor, masks: Masks | None = None, target: Tensor | None = None):
        log_prob, *others = super().forward(x, hidden, masks)
        return log_prob if target is None else F.nll_loss(log_prob.flatten(0, 1), target.flatten()), *others


class PlainModelSearch(PlainModel, RNNModelSearch):
    """`RNNModelSearch` with the log-probabilities of all time steps at once."""


class PlainCell(DARTSCell):
    """`DARTSCell` with the input's product in every time step."""

    def project(self, x: Tensor) -> Tensor:
        return x

    def first_node(self, x: Tensor, h: Tensor, h_mask: Tensor | None) -> Tensor:
        c, q = (torch.cat([x, masked(h, h_mask)], dim=-1) @ self._W0).chunk(2, dim=-1)
        return h + c.sigmoid() * (q.tanh() - h)


class PlainCellSearch(PlainCell, DARTSCellSearch):
    """`DARTSCellSearch` with one sum over the edges for every activation."""

    def forward(self, x: Tensor, h: Tensor, h_mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
        assert weights is not None
        states, first = self.bn(self.first_node(x, h, h_mask))[None], 0
        for W in self._Ws:
            c, q = (masked(states, h_mask) @ W).chunk(2, dim=-1)
            c = c.sigmoid()
            node = torch.zeros_like(states[0])
            for name, activation in ACTIVATIONS.items():
                column = weights[first : first + len(states), PRIMITIVES.index(name)]
                node = node + (column[:, None, None] * (states + c * (activation(q) - states))).sum(0)
            first += len(states)
            states = torch.cat([states, self.bn(node)[None]])
        return states[1:].mean(0)


if __name__ == "__main__":
    cli.run(main)
