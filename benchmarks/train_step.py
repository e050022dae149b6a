"""Seconds and memory of a step of the final training: plain, as `--compile no` and as `--compile yes` compute it, side
by side.

    python benchmarks/train_step.py               # DARTS_V2 as in the paper on the CPU: about 10 minutes on 2 cores
    python benchmarks/train_step.py --batch_size 16 --json train_step.json
    python benchmarks/train_step.py --network imagenet --image_size 224 --init_channels 48 --layers 14 --batch_size 32
    python benchmarks/train_step.py --device cuda

A step is forward with drop path and the auxiliary head, backward, clipping, SGD. The ways and the table are those of
search_step.py; "bfloat16" is `--compile yes --amp`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import torch
import torch.nn.functional as F
import turns

import speed
import utils
from architectures.cells import names
from model import NetworkCIFAR, NetworkImageNet

WAYS = ("plain", "eager", "default", "recompute", "bfloat16")


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Time a step of the final training, computed in several ways.")
    parser.add_argument("--arch", choices=names(), default="DARTS_V2")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:3])
    parser.add_argument("--batch_size", type=cli.positive_int, default=96)
    parser.add_argument("--init_channels", type=cli.positive_int, default=36)
    parser.add_argument("--layers", type=cli.positive_int, default=20)
    parser.add_argument("--image_size", type=cli.image_size, default=32)
    parser.add_argument("--network", choices=cli.NETWORKS, default="cifar", help="imagenet: of 1000 classes")
    turns.add_arguments(parser, steps=3)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    machine = turns.machine(args.device, args.threads)
    size = f"{args.init_channels} channels, {args.layers} cells, images of {args.image_size}"
    print(f"{args.arch}, {size}; {machine}\n\n{turns.header(args.ways)}", flush=True)
    makers = {way: partial(training_step, way, args) for way in args.ways}
    results = turns.compare(makers, args.steps, args.device, args.threads)
    print(turns.row(f"training, {args.arch}", args.batch_size, results))
    turns.save(args.json, {"machine": machine, "arguments": vars(args), "figures": [results]})


def training_step(way: str, args: argparse.Namespace) -> Callable[[], None]:
    """A network on random images, and the step that trains it."""
    torch.manual_seed(0)
    build, classes = (NetworkImageNet, 1000) if args.network == "imagenet" else (NetworkCIFAR, 10)
    network = build(args.init_channels, classes, args.layers, True, names()[args.arch]).to(args.device)
    network.drop_path_prob = 0.1 if args.network == "cifar" else 0.0
    if way != "plain":
        compiled = way in ("default", "recompute", "bfloat16")
        speed.apply(
            network,
            torch.device(args.device),
            way == "bfloat16",
            args.batch_size if compiled else None,
            way == "recompute",
        )
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    targets = torch.randint(0, classes, (args.batch_size,), device=args.device)

    def step() -> None:
        optimizer.zero_grad()
        logits, auxiliary = utils.forward(network, images, amp=way == "bfloat16")
        assert auxiliary is not None
        loss = F.cross_entropy(logits, targets) + 0.4 * F.cross_entropy(auxiliary, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()

    return step


if __name__ == "__main__":
    cli.run(main)
