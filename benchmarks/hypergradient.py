"""Accuracy of the alphas' gradient: first order, finite difference and exact product, on one network and one batch.

    python benchmarks/hypergradient.py --dataset digits --init_channels 8 --layers 5 --batch_size 32
    python benchmarks/hypergradient.py --dataset folder --data data                    # the paper's network, batch 16
    python benchmarks/hypergradient.py --dataset digits --smooth --float64 ...   # does it converge?

Prints a table. The reference is the gradient of L_val(w - xi (momentum * buffer + d/dw L_train(w, alpha) + weight_decay
w), alpha) with respect to alpha, with the exact Hessian-vector product in float64. Relative error and cosine are those
of the whole gradient of the alphas, computed in float32 as in a search, or with `--float64` in float64. Each row runs
in a separate process, to measure its peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import torch
from torch import Tensor, nn

import data
import utils
from architect import Architect
from model_search import Network

# Name, unrolled, how to multiply with the Hessian, length r of the finite difference's step.
METHODS = [
    ("first order", False, "finite_difference", None),
    ("finite difference, r = 0.1", True, "finite_difference", 0.1),
    ("finite difference, r = 0.01 (the paper's)", True, "finite_difference", 0.01),
    ("finite difference, r = 0.001", True, "finite_difference", 0.001),
    ("exact", True, "exact", None),
]


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Compare the ways to compute the alphas' gradient.")
    cli.add_data_arguments(parser, data.DATASETS)
    parser.add_argument("--gpu", type=cli.device_number, default=-1, help="number of the CUDA device; -1 for the CPU")
    parser.add_argument("--seed", type=cli.non_negative_int, default=2)
    parser.add_argument("--init_channels", type=cli.positive_int, default=16, help="channels of the first cells")
    parser.add_argument("--layers", type=cli.positive_int, default=8, help="cells")
    parser.add_argument("--batch_size", type=cli.positive_int, default=16)
    parser.add_argument(
        "--search_steps", type=cli.non_negative_int, default=3, help="first-order search steps before the comparison"
    )
    parser.add_argument("--smooth", action="store_true", help="GELU instead of ReLU, average instead of max pooling")
    parser.add_argument("--float64", action="store_true", help="compare in float64: what is wrong then is not rounding")
    parser.add_argument("--json", type=cli.output_file, help="also write the table to this file")
    args = parser.parse_args()
    args.momentum, args.weight_decay, args.learning_rate = 0.9, 3e-4, 0.025  # the search's defaults
    args.arch_learning_rate, args.arch_weight_decay = 3e-4, 1e-3
    return args


def measure(
    args: argparse.Namespace,
    batches: list[tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    unrolled: bool,
    hvp: str,
    r: float | None,
) -> tuple[list[float], float, float]:
    """The alphas' gradient by one method, (alphas,), the seconds that it took and the process's peak memory in MiB.

    `batches`: a training and a validation batch for each step of the search before, and then those to compare on.
    """
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    model = Network(
        args.init_channels, args.num_classes, args.layers, nn.CrossEntropyLoss(), in_channels=args.channels
    ).to(device)
    if args.smooth:
        make_smooth(model)
    weights = model.weight_parameters()
    optimizer = torch.optim.SGD(weights, args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay)
    batches = [(x.to(device), y.to(device)) for x, y in batches]
    before = Architect(model, argparse.Namespace(**vars(args), hvp="finite_difference"))
    for train, valid in zip(batches[:-2:2], batches[1:-2:2], strict=True):
        before.step(*train, *valid, args.learning_rate, optimizer, unrolled=False)
        optimizer.zero_grad()
        model.criterion(model(train[0]), train[1]).backward(inputs=weights)
        nn.utils.clip_grad_norm_(weights, 5)
        optimizer.step()

    model.to(dtype)
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].to(dtype)
    (x, y), (x_valid, y_valid) = batches[-2:]
    architect = Architect(model, argparse.Namespace(**vars(args), hvp=hvp))
    if r is not None:
        architect.r = r
    _synchronize(device)
    started = time.perf_counter()
    architect.step(x.to(dtype), y, x_valid.to(dtype), y_valid, args.learning_rate, optimizer, unrolled)
    _synchronize(device)
    seconds = time.perf_counter() - started
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    gradients = [
        alpha.grad.double().flatten() for alpha in model.arch_parameters() if alpha.grad is not None
    ]  # every one, by `step`
    return torch.cat(gradients).tolist(), seconds, memory


def make_smooth(module: nn.Module) -> None:
    """Takes the kinks out of a network, whose gradient then is differentiable everywhere."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.GELU())
        elif isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, count_include_pad=False))
        else:
            make_smooth(child)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    args = parse_arguments()
    args.device = str(utils.select_device(args.gpu))
    options = data.Options.of(args)
    images = data.load(options)
    args.num_classes = images.num_classes
    train, valid, _ = data.search_batches(images, options, "cpu")
    batches = [batch for pair in islice(zip(train, valid, strict=True), args.search_steps + 1) for batch in pair]

    dtype = torch.float64 if args.float64 else torch.float32
    network = (
        f"{args.init_channels} channels, {args.layers} cells, batch {args.batch_size}, after {args.search_steps} steps"
    )
    print(
        f"{args.dataset}, {'smooth, ' * args.smooth}{network}; {dtype}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads",
        flush=True,
    )
    print(
        "| gradient of the alphas | relative error | cosine | seconds | peak memory |\n|---|---|---|---|---|",
        flush=True,
    )
    rows = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        true_gradient, _, _ = processes.submit(measure, args, batches, torch.float64, True, "exact", None).result()
        truth = torch.tensor(true_gradient, dtype=torch.float64)
        for name, unrolled, hvp, r in METHODS:
            numbers, seconds, memory = processes.submit(measure, args, batches, dtype, unrolled, hvp, r).result()
            gradient = torch.tensor(numbers, dtype=torch.float64)
            error = float((gradient - truth).norm() / truth.norm())
            cosine = float(torch.cosine_similarity(gradient, truth, dim=0))
            rows.append(
                {"method": name, "relative error": error, "cosine": cosine, "seconds": seconds, "peak MiB": memory}
            )
            print(f"| {name} | {error:.3g} | {cosine:.4f} | {seconds:.2f} | {memory:.0f} MiB |", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
