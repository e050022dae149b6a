"""How exact the search network is in float32: errors of logits and gradients against float64, by each way of computing it.

    python benchmarks/rounding.py                           # the paper's network, about 4 minutes on 2 cores

Expect a table: relative errors of the logits, of the weights' and of the alphas' gradient, the median over a few random batches, for
the ways of search_step.py. A rounding near zero flips a ReLU or moves a maximum, so gradients have far larger errors than logits, the plain
network's too. What to look at is the ratio to the plain one.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import torch
import torch.nn.functional as F
import turns
from torch import Tensor

import model_search
from speed import acceleration

WAYS = ("plain", "eager", "default")


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Measure the rounding errors of the search network in float32.")
    parser.add_argument("--init_channels", type=cli.positive_int, default=16)
    parser.add_argument("--layers", type=cli.positive_int, default=8)
    parser.add_argument("--image_size", type=cli.image_size, default=32)
    parser.add_argument("--batch_size", type=cli.positive_int, default=16)
    parser.add_argument("--batches", type=cli.positive_int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--threads", type=cli.positive_int, default=2)
    parser.add_argument("--json", type=cli.output_file, help="file to write the figures to")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device("cpu")
    reference = model_search.Network(args.init_channels, 10, args.layers, torch.nn.CrossEntropyLoss())
    exact = copy.deepcopy(reference).double()
    networks = {way: copy.deepcopy(reference) for way in args.ways}
    for way, network in networks.items():
        if way != "plain":
            acceleration.apply(network, device, False, args.batch_size if way == "default" else None)
    errors: dict[str, list[list[float]]] = {way: [] for way in args.ways}
    for _ in range(args.batches):
        images = torch.rand(args.batch_size, 3, args.image_size, args.image_size)  # not centred, as a BatchNorm's input in general
        targets = torch.randint(0, 10, (args.batch_size,))
        truth = measure(exact, images.double(), targets)
        for way, network in networks.items():
            found = measure(network, images, targets)
            errors[way].append([float((f.double() - t).norm() / t.norm()) for f, t in zip(found, truth, strict=True)])
    print(f"{args.init_channels} channels, {args.layers} cells, batch {args.batch_size}; {turns.machine('cpu', args.threads)}\n")
    print("| relative error in float32 | logits | weights' gradient | alphas' gradient |\n|---|---|---|---|")
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in errors.items()}
    for way, values in medians.items():
        print(f"| {way} | {' | '.join(f'{value:.2e}' for value in values)} |")
    turns.save(args.json, {"arguments": vars(args), "errors": medians})


def measure(network: model_search.Network, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and the gradients of all weights and of all alphas, each as one vector."""
    logits = network(images)
    weights, alphas = network.weight_parameters(), network.arch_parameters()
    gradients = torch.autograd.grad(F.cross_entropy(logits, targets), [*weights, *alphas])
    flat = [gradient.flatten() for gradient in gradients]
    return logits.detach().flatten(), torch.cat(flat[: len(weights)]), torch.cat(flat[len(weights) :])


if __name__ == "__main__":
    cli.run(main)
