"""Seconds and memory of a step of the search: plain, as a search computes it by default, and with recomputation, side by side.

    python benchmarks/search_step.py                        # the paper's network on the CPU: about half an hour on 2 cores
    python benchmarks/search_step.py --batch_sizes 16 --steps 3 --json search_step.json
    python benchmarks/search_step.py --device cuda

A step is the whole of it: the alphas' (`Architect.step`), then the weights' (forward, backward, clipping, SGD).

| way | what is computed |
|---|---|
| plain | contiguous images, PyTorch's own gradients of convolutions, nothing compiled |
| eager | `--compile no`: the memory format and the fast gradients of `speed/` |
| default | `--compile yes` |
| recompute | `--compile yes --recompute` |
| tcmalloc | `--compile yes`, with `LD_PRELOAD=libtcmalloc_minimal.so.4` (Debian's package libtcmalloc-minimal4); only with `--ways` |

Expect a table: per order and batch size the median seconds of a step, how many times as fast as the plain one it is, and its share of the
plain one's peak memory. Each way runs in a separate process. The first step, which compiles, is not counted.
"""

from __future__ import annotations

import argparse
import ctypes
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

import model_search
from architect import HVP, Architect
from experiment.errors import UserError
from speed import acceleration
from utils import constant

WAYS = ("plain", "eager", "default", "recompute", "tcmalloc")
TCMALLOC = "libtcmalloc_minimal.so.4"


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Time a step of the search, computed in several ways.")
    parser.add_argument("--orders", nargs="+", choices=["first", "second"], default=["first", "second"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:-1])
    parser.add_argument("--batch_sizes", nargs="+", type=cli.positive_int, default=[16, 64])
    parser.add_argument("--init_channels", type=cli.positive_int, default=16)
    parser.add_argument("--layers", type=cli.positive_int, default=8)
    parser.add_argument("--image_size", type=cli.image_size, default=32)
    parser.add_argument("--hvp", choices=HVP, default=HVP[0], help="the plain way always takes the finite difference")
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
    print(
        f"{args.init_channels} channels, {args.layers} cells, images of {args.image_size}; {machine}\n\n{turns.header(args.ways)}",
        flush=True,
    )
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
    """A network on random images, and the step that trains it."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    network = model_search.Network(args.init_channels, 10, args.layers, torch.nn.CrossEntropyLoss()).to(device)
    if way != "plain":
        acceleration.apply(network, device, False, batch_size if way != "eager" else None, way == "recompute")
    weights = network.weight_parameters()
    optimizer = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)
    hvp = HVP[0] if way == "plain" else args.hvp
    architect = Architect(
        network, SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3, hvp=hvp)
    )
    train, valid = (
        (
            torch.randn(batch_size, 3, args.image_size, args.image_size, device=device),
            torch.randint(0, 10, (batch_size,), device=device),
        )
        for _ in range(2)
    )

    def step() -> None:
        architect.step(*train, *valid, 0.025, optimizer, unrolled)
        optimizer.zero_grad()
        with constant(() if way == "plain" else network.arch_parameters()):
            loss = F.cross_entropy(network(train[0]), train[1])
        loss.backward(inputs=weights)
        torch.nn.utils.clip_grad_norm_(weights, 5)
        optimizer.step()

    return step


if __name__ == "__main__":
    cli.run(main)
