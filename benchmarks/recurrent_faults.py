"""Effects of the faults in the authors' recurrent code: the alphas' gradient with each fault, compared with the exact
gradient.

    python benchmarks/recurrent_faults.py               # about a minute on 2 cores
    python benchmarks/recurrent_faults.py --dropouts 0 --seeds 1
    python benchmarks/recurrent_faults.py --dropouts 0 --seeds 1 --clip 2

A small supernet learns on Python's reference text for a while, in float64; then its alphas' second-order gradient is
computed on one pair of batches in several ways. Expect a table: the norm of each in units of the exact gradient's, its
relative error, and the cosine of the angle between both, as medians over draws of dropout masks. The last line is about
the fourth fault, in the perplexity.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import torch
from torch import Tensor

from rnn import data, sequences
from rnn.architect import FAULTS, alpha_step, learner
from rnn.model import Dropouts
from rnn.model_search import RNNModelSearch

WAYS = {
    "exact product": ("exact", ()),
    "finite difference": ("finite_difference", ()),
    **{f"with the fault `{fault}`": ("finite_difference", (fault,)) for fault in FAULTS},
    "--faithful": ("finite_difference", FAULTS),
}


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Measure what each fault of the authors' recurrent code costs.")
    parser.add_argument("--emsize", type=cli.positive_int, default=32)
    parser.add_argument("--batch_size", type=cli.positive_int, default=16)
    parser.add_argument("--bptt", type=cli.positive_int, default=10)
    parser.add_argument("--lr", type=cli.positive_float, default=5.0)
    parser.add_argument(
        "--clip", type=cli.positive_float, default=0.25, help="in the measured step; weights learn by the paper's"
    )
    parser.add_argument(
        "--steps", type=cli.positive_int, default=300, help="of the weights, before the gradients are computed"
    )
    parser.add_argument("--dropouts", type=cli.non_negative_float, default=1.0, help="in units of the paper's")
    parser.add_argument("--seeds", type=cli.positive_int, default=7, help="draws of masks")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    corpus = data.load("pydoc", "", vocabulary=1000)
    text = data.batchify(corpus.train, args.batch_size, "training")
    model = RNNModelSearch(
        len(corpus.words), args.emsize, Dropouts(*(args.dropouts * p for p in (0.75, 0.25, 0.75, 0.2, 0.0)))
    )
    optimizer = torch.optim.SGD(model.weight_parameters(), args.lr, weight_decay=5e-7)
    hidden = model.init_hidden(args.batch_size)
    for step in range(args.steps):
        optimizer.zero_grad()
        x, y = data.get_batch(text, step * args.bptt % (len(text) - args.bptt), args.bptt)
        loss, regularised, hidden = sequences.losses(model, x, y, hidden, 0.0, 1e-3)
        regularised.backward(inputs=model.weight_parameters())
        torch.nn.utils.clip_grad_norm_(model.weight_parameters(), 0.25)
        optimizer.step()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    valid = data.batchify(corpus.valid, args.batch_size, "validation")
    pieces = [(*data.get_batch(source, 40, args.bptt), hidden) for source in (text, valid)]

    print(f"{args.emsize} units, {args.steps} steps, loss {float(loss.detach()):.2f}, {args.seeds} draws of masks\n")
    print("| alphas' gradient | norm | relative error | cosine |\n|---|---|---|---|")
    rows: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for seed in range(args.seeds):
        expected = None
        for way, (hvp, faults) in WAYS.items():
            gradient = _gradient(model, state, pieces, hvp, faults, seed, args)
            expected = gradient if expected is None else expected
            cosine = float(torch.dot(gradient, expected) / gradient.norm() / expected.norm())
            rows[way].append(
                (
                    float(gradient.norm() / expected.norm()),
                    float((gradient - expected).norm() / expected.norm()),
                    cosine,
                )
            )
    for way, found in rows.items():
        norm, error, cosine = map(statistics.median, zip(*found, strict=True))
        print(f"| {way} | {norm:.3g} | {error:.3g} | {cosine:.3f} |")

    columns = data.batchify(corpus.valid, data.EVAL_BATCH, "validation")
    right, low = (sequences.evaluate(model, columns, args.bptt, faithful).ppl for faithful in (False, True))
    print(
        f"\nperplexity over {len(columns) - 1} predictions of {len(columns)} rows: {right:.3f}, by the original "
        f"{low:.3f}"
    )


def _gradient(
    model: RNNModelSearch, state: dict, pieces: list, hvp: str, faults: tuple, seed: int, args: argparse.Namespace
) -> Tensor:
    """The alphas' gradient on these pieces, from this state, with masks of this seed."""
    model.load_state_dict(state)
    model.train()
    torch.manual_seed(seed)
    given = SimpleNamespace(clip=args.clip, wdecay=5e-7, arch_lr=3e-3, arch_wdecay=1e-3, hvp=hvp, unrolled=True)
    alpha_step(learner(model, given), model, pieces[0], pieces[1], args.lr, given, faults)
    assert model.alphas.grad is not None
    return model.alphas.grad.flatten().clone()


if __name__ == "__main__":
    cli.run(main)
