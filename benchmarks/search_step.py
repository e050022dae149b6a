"""Seconds and memory of a step of the search: plain, as a search computes it, and with remedies, side by side.

    python benchmarks/search_step.py                  # the paper's network on the CPU: about half an hour on 2 cores
    python benchmarks/search_step.py --batch_sizes 16 --steps 3 --json search_step.json
    python benchmarks/search_step.py --orders first --ways eager pc-darts gdas sdarts-rs darts-minus fair-darts
    python benchmarks/search_step.py --space nasbench201 --layers 1 --orders first --ways plain eager gdas
    python benchmarks/search_step.py --device cuda

A step updates the alphas, then the weights (forward, backward, clipping, SGD). The ways are in `WAYS`; "default" is
`--compile yes`, and the remedies are computed as "eager" is.

Expect a table: per order and batch size the median seconds of a step, how many times as fast as the first way it is,
and its share of that way's peak memory. Each way runs in a separate process. The first step, which compiles, is not
counted.
"""

from __future__ import annotations

import argparse
import ctypes
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

import remedies
import speed
import train_search
from architect import HVP
from experiment.errors import UserError

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "eager": {},
    "default": {"compile": True},
    "recompute": {"compile": True, "recompute": True},
    "tcmalloc": {"compile": True},  # with LD_PRELOAD
    "warm-up": {"arch_warmup": 1},  # an epoch in which the alphas rest
    "pc-darts": {"partial_channels": 4},
    "gdas": {"strategy": "gdas"},
    "sdarts-rs": {"perturb": "random"},
    "darts-minus": {"auxiliary_skip": 1.0},
    "fair-darts": {"gate": "sigmoid", "zero_one_weight": 10.0},
}
TCMALLOC = "libtcmalloc_minimal.so.4"


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Time a step of the search, computed in several ways.")
    parser.add_argument("--orders", nargs="+", choices=["first", "second"], default=["first", "second"])
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS)[:4], help="the others are compared with the first"
    )
    parser.add_argument("--batch_sizes", nargs="+", type=cli.positive_int, default=[16, 64])
    parser.add_argument("--space", choices=["darts", "nasbench201"], default="darts", help="search in this space")
    parser.add_argument("--init_channels", type=cli.positive_int, default=16)
    parser.add_argument("--layers", type=cli.positive_int, default=8)
    parser.add_argument("--image_size", type=cli.image_size, default=32)
    parser.add_argument(
        "--hvp", choices=HVP, default=HVP[0], help="of the second order; plain takes the finite difference"
    )
    turns.add_arguments(parser, steps=5)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if "tcmalloc" in args.ways:
        try:
            ctypes.CDLL(TCMALLOC)
        except OSError as error:
            raise UserError(f"--ways tcmalloc: {error}; on Debian, install libtcmalloc-minimal4") from None
    machine = turns.machine(args.device, args.threads)
    print(f"{args.init_channels} channels, {args.layers} cells, images of {args.image_size}; {machine}\n")
    print(turns.header(args.ways), flush=True)
    figures = []
    for batch_size in args.batch_sizes:
        for order in args.orders:
            makers = {way: partial(search_step, way, order == "second", batch_size, args) for way in args.ways}
            results = turns.compare(makers, args.steps, args.device, args.threads, {"tcmalloc": TCMALLOC})
            name = f"search, {order} order" + (", exact" if order == "second" and args.hvp == "exact" else "")
            print(turns.row(name, batch_size, results), flush=True)
            figures.append({"order": order, "batch_size": batch_size, **results})
    turns.save(args.json, {"machine": machine, "arguments": vars(args), "figures": figures})


def search_step(way: str, unrolled: bool, batch_size: int, args: argparse.Namespace) -> Callable[[], None]:
    """A supernet on random images, and the step of `train_search.py` that trains it."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    settings = argparse.Namespace(
        **{**remedies.OFF, "strategy": "darts", "compile": False, "recompute": False, **WAYS[way]},
        **{name: getattr(args, name) for name in ("init_channels", "layers")},
        space=args.space,
        space_arg=None,
        strategy_arg=None,
        channels=3,
        stem="cifar",
        nodes=4,
        epochs=50,
        momentum=0.9,
        weight_decay=3e-4,
        arch_learning_rate=3e-4,
        arch_weight_decay=1e-3,
        hvp=HVP[0] if way == "plain" else args.hvp,
        unrolled=unrolled,
        amp=False,
        grad_clip=5.0,
    )
    criterion = torch.nn.CrossEntropyLoss()
    network, architect = train_search.build(settings, 10, criterion, device)
    architect.begin_epoch(0)
    architect.resting = settings.arch_warmup > 0
    if way != "plain":
        speed.apply(network, device, False, batch_size if settings.compile else None, settings.recompute)
    optimizer = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    images = [torch.randn(batch_size, 3, args.image_size, args.image_size, device=device) for _ in range(2)]
    classes = [torch.randint(0, 10, (batch_size,), device=device) for _ in range(2)]
    step = train_search.search_step(network, architect, criterion, optimizer, settings)

    def run() -> None:
        step(images[0], classes[0], images[1], classes[1])

    return run


if __name__ == "__main__":
    cli.run(main)
