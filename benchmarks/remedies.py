"""Seconds and memory of a step of the search with each remedy beside plain DARTS, first order.

    python benchmarks/remedies.py                           # the paper's network on the CPU: about half an hour on 2 cores
    python benchmarks/remedies.py --batch_sizes 16 --steps 3 --json remedies.json
    python benchmarks/remedies.py --recompute --methods darts pc-darts
    python benchmarks/remedies.py --device cuda

A step is the whole of it: the alphas' (`Strategy.step`), then the weights' (forward, backward, clipping, SGD). `--compile yes` compiles
every method's regions, `--recompute` computes activations again in the backward pass.

| method | what is searched with |
|---|---|
| darts | nothing |
| warm-up | `--arch_warmup`: an epoch in which the alphas rest |
| pc-darts | `--partial_channels 4` |
| gdas | `--strategy gdas` |
| sdarts-rs | `--perturb random` |
| darts-minus | `--auxiliary_skip` |
| fair-darts | `--gate sigmoid --zero_one_weight 10` |

Expect a table: per batch size the median seconds of a step of DARTS and its peak memory, and of each method how many times as fast it is,
and its share of that memory. Each method runs in a separate process. The first step, which compiles, is not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import torch
import turns

import train_search
from architect import HVP
from nas import flags
from speed import acceleration

METHODS: dict[str, dict[str, Any]] = {
    "darts": {},
    "warm-up": {"arch_warmup": 1},
    "pc-darts": {"partial_channels": 4},
    "gdas": {"strategy": "gdas"},
    "sdarts-rs": {"perturb": "random"},
    "darts-minus": {"auxiliary_skip": 1.0},
    "fair-darts": {"gate": "sigmoid", "zero_one_weight": 10.0},
}


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Time a step of the search with each remedy.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="the others are compared with the first")
    parser.add_argument("--batch_sizes", nargs="+", type=cli.positive_int, default=[16, 64])
    parser.add_argument("--init_channels", type=cli.positive_int, default=16)
    parser.add_argument("--layers", type=cli.positive_int, default=8)
    parser.add_argument("--image_size", type=cli.image_size, default=32)
    parser.add_argument("--compile", choices=["yes", "no"], default="no")
    parser.add_argument("--recompute", action="store_true")
    turns.add_arguments(parser, steps=5)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    machine = turns.machine(args.device, args.threads)
    how = f"compile {args.compile}, recompute {'yes' if args.recompute else 'no'}"
    print(f"{args.init_channels} channels, {args.layers} cells, images of {args.image_size}, {how}; {machine}\n")
    print(turns.header(args.methods), flush=True)
    figures = []
    for batch_size in args.batch_sizes:
        makers = {method: partial(search_step, method, batch_size, args) for method in args.methods}
        results = turns.compare(makers, args.steps, args.device, args.threads)
        print(turns.row("search, first order", batch_size, results), flush=True)
        figures.append({"batch_size": batch_size, **results})
    turns.save(args.json, {"machine": machine, "arguments": vars(args), "figures": figures})


def search_step(method: str, batch_size: int, args: argparse.Namespace) -> Callable[[], None]:
    """A supernet with this remedy on random images, and the step of `train_search.py` that trains it."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    settings = argparse.Namespace(
        **{**flags.OFF, "strategy": "darts", **METHODS[method]},
        space="darts",
        space_arg=None,
        strategy_arg=None,
        channels=3,
        stem="cifar",
        nodes=4,
        **{name: getattr(args, name) for name in ("init_channels", "layers")},
        epochs=50,
        momentum=0.9,
        weight_decay=3e-4,
        arch_learning_rate=3e-4,
        arch_weight_decay=1e-3,
        hvp=HVP[0],
        unrolled=False,
        amp=False,
        grad_clip=5.0,
    )
    criterion = torch.nn.CrossEntropyLoss()
    network, architect = train_search.build(settings, 10, criterion, device)
    architect.begin_epoch(0)
    architect.resting = settings.arch_warmup > 0
    acceleration.apply(network, device, False, batch_size if args.compile == "yes" else None, args.recompute)
    optimizer = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    images = [torch.randn(batch_size, 3, args.image_size, args.image_size, device=device) for _ in range(2)]
    classes = [torch.randint(0, 10, (batch_size,), device=device) for _ in range(2)]
    step = train_search.search_step(network, architect, criterion, optimizer, settings)
    (x, x_valid), (y, y_valid) = images, classes

    def run() -> None:
        step(x, y, x_valid, y_valid)

    return run


if __name__ == "__main__":
    cli.run(main)
