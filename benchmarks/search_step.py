"""Seconds and memory of a step of the search, by the reference and by the fused supernet, side by side.

    python benchmarks/search_step.py                        # the paper's network on the CPU: about 20 minutes on 2 cores
    python benchmarks/search_step.py --batch_sizes 16 --steps 3 --json search_step.json
    python benchmarks/search_step.py --device cuda

A step is the whole of it: the alphas' (`Architect.step`), then the weights' (forward, backward, clipping, SGD). Expect a table: per order
and batch size the median seconds of a step, their ratio, and the peak memory of each engine, which has a process of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import torch
import torch.nn.functional as F
import turns

import fused
import model_search
from architect import Architect

ENGINES = {"reference": model_search.Network, "fused": fused.Network}


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Time a step of the search, by the reference and by the fused supernet.")
    parser.add_argument("--orders", nargs="+", choices=["first", "second"], default=["first", "second"])
    parser.add_argument("--batch_sizes", nargs="+", type=cli.positive_int, default=[16, 64])
    parser.add_argument("--init_channels", type=cli.positive_int, default=16)
    parser.add_argument("--layers", type=cli.cell_count, default=8)
    parser.add_argument("--image_size", type=cli.image_size, default=32)
    parser.add_argument("--hvp", choices=["finite_difference", "exact"], default="finite_difference")
    parser.add_argument("--steps", type=cli.positive_int, default=5, help="measured, after one that is not")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=cli.positive_int, default=2, help="on the CPU")
    parser.add_argument("--json", type=cli.output_file, help="file to write the figures to")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    machine = turns.machine(args.device, args.threads)
    print(f"{args.init_channels} channels, {args.layers} cells, images of {args.image_size}; {machine}\n\n{turns.HEADER}", flush=True)
    figures = []
    for batch_size in args.batch_sizes:
        for order in args.orders:
            makers = {engine: partial(search_step, engine, order == "second", batch_size, args) for engine in ENGINES}
            results = turns.compare(makers, args.steps, args.device, args.threads)
            print(turns.row(f"search, {order} order", batch_size, results), flush=True)
            figures.append({"order": order, "batch_size": batch_size, **results})
    turns.save(args.json, {"machine": machine, "arguments": vars(args), "figures": figures})


def search_step(engine: str, unrolled: bool, batch_size: int, args: argparse.Namespace) -> Callable[[], None]:
    """A network of this engine on random images, and the step that trains it."""
    torch.manual_seed(0)
    network = ENGINES[engine](args.init_channels, 10, args.layers, torch.nn.CrossEntropyLoss()).to(args.device)
    weights = network.weight_parameters()
    optimizer = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)
    hyperparameters = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3, hvp=args.hvp)
    architect = Architect(network, hyperparameters)
    train, valid = (
        (
            torch.randn(batch_size, 3, args.image_size, args.image_size, device=args.device),
            torch.randint(0, 10, (batch_size,), device=args.device),
        )
        for _ in range(2)
    )

    def step() -> None:
        architect.step(*train, *valid, 0.025, optimizer, unrolled)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(train[0]), train[1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 5)
        optimizer.step()

    return step


if __name__ == "__main__":
    cli.run(main)
