"""Stage 2, the evaluation of a recurrent cell: trains the language model of a genotype from scratch.

    python -m rnn.train --arch DARTS_V2 --data ../data/penn --gpu 0      # test perplexity 55.7 in the paper
    python -m rnn.train --dataset wikitext2 --data ../data/wikitext-2 --emsize 700 --dropouth 0.15 --wdecay 5e-7 --gpu 0

Trains with SGD until the validation loss has not improved for some epochs, then with ASGD, whose averaged weights are
evaluated and saved (Merity et al. 2017, 1708.02182). Writes weights.pt, the weights of the epoch of the best validation
loss, and prints their test perplexity; that of the second command is 69.6 in the paper.
"""

from __future__ import annotations

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

import speed
import utils
from experiment.loop import Loop, length
from experiment.run import Run
from experiment.weights import load_weights
from rnn import arguments, data, sequences
from rnn.genotypes import RecurrentCell
from rnn.model import REGIONS, RNNModel
from rnn.sequences import Meters, Place


def parse_arguments() -> argparse.Namespace:
    parser = arguments.training_parser(
        "Train the language model of a recurrent cell from scratch.",
        emsize=850,
        batch_size=64,
        epochs=8000,
        seed=1267,
        dropoute=0.1,
        wdecay=8e-7,
    )
    arguments.add_arch_argument(parser)
    what = "begin ASGD after this many epochs without a better validation loss"
    parser.add_argument("--nonmono", type=cli.positive_int, default=5, help=what)
    what = "let sequences be longer than --bptt by at most this many words"
    parser.add_argument("--max_seq_len_delta", type=cli.non_negative_int, default=20, help=what)
    args = cli.parse(parser, "rnn-eval")
    arguments.check_sizes(args)
    return args


def main() -> None:
    args = parse_arguments()
    recorded = RecurrentCell.recorded(args.resume) if args.resume else None
    architecture = recorded or RecurrentCell.read(args.arch)
    device = utils.begin(args)
    corpus = data.load(args.dataset, args.data, args.vocabulary)
    train_text = data.batchify(corpus.train, args.batch_size, "training", least=args.bptt + 1).to(device)
    valid_text = data.batchify(corpus.valid, data.EVAL_BATCH, "validation").to(device)
    test_text = data.batchify(corpus.test, data.TEST_BATCH, "test").to(device)
    epochs, steps, _ = length(args, sequences.expected_pieces(train_text, args.bptt))

    genotype = architecture.genotype
    model = RNNModel(len(corpus.words), args.emsize, arguments.dropouts(args), genotype).to(device)
    weights = model.weight_parameters()
    sgd = utils.optimizer(torch.optim.SGD, weights, lr=args.lr, weight_decay=args.wdecay)
    asgd = utils.optimizer(torch.optim.ASGD, weights, lr=args.lr, t0=0, lambd=0.0, weight_decay=args.wdecay)
    multiply_adds = model.multiply_adds(len(genotype.recurrent), args.batch_size * args.bptt)
    utils.set_threads(args, multiply_adds, device)
    meters, place = Meters(), Place(model.init_hidden(args.batch_size))

    with Run("rnn-eval", args, device) as run:
        data.record(corpus, run)
        run.log("%s", architecture)
        if recorded is None:
            run.write_json(architecture.FILES[0], architecture.json)
        run.log("param size = %.6f million", utils.count_parameters_in_MB(model))
        progress = run.restore(model=model, sgd=sgd, asgd=asgd, meters=meters, place=place)
        plain, changed = sequences.weight_step(model, place, meters, args), [sgd, asgd, place, meters]
        step = speed.fast_step(plain, model, changed, args, multiply_adds * epochs * steps, run.log, REGIONS)
        loop = Loop(run, steps, len(sequences.starts(valid_text, args.bptt)))
        for epoch in loop.epochs():
            before = [row["valid_loss"] for row in progress.metrics]
            averages = averaging(before, args.nonmono)
            optimizer = asgd if averages else sgd
            if progress.step == 0:
                meters.reset()
                place.begin()
                run.log("epoch %d lr %e, %s", epoch, args.lr, "ASGD" if averages else "SGD")

            pieces = sequences.pieces(train_text, place, args.bptt, args.bptt + args.max_seq_len_delta)
            loop.train(model, ((optimizer, *piece) for piece in pieces), step, meters, args.lr, "--lr or --clip")
            run.log("train %s", meters)

            with averaged(model, asgd):
                valid = sequences.evaluate(model, valid_text, args.bptt, args.faithful, loop.reporter("valid"))
                run.log("valid %s", valid)
                if valid.loss.avg < min(before, default=float("inf")):
                    run.write_weights(model)
            loop.complete(
                {"lr": args.lr, "averaged": int(averages), **meters.described("train"), **valid.described("valid")}
            )

        best = min(progress.metrics, key=lambda row: row["valid_loss"])
        weights_file = str(run.folder / "weights.pt")
        load_weights(model, weights_file)
        report = run.reporter("test", 20 * args.report_freq, len(sequences.starts(test_text, args.bptt)))
        test = sequences.evaluate(model, test_text, args.bptt, args.faithful, report)
        run.log("valid ppl %.2f, test ppl %.2f: the weights of epoch %d", best["valid_ppl"], test.ppl, best["epoch"])
        flags = ["--model_path", weights_file, "--emsize", str(args.emsize), "--bptt", str(args.bptt)]
        flags += ["--faithful"] if args.faithful else []
        run.propose({"test the weights again": arguments.next_command("rnn.test", run, *flags)})


def averaging(losses: Sequence[float], nonmono: int) -> bool:
    """Whether ASGD has taken over, by the validation losses of the epochs so far.

    It takes over when a loss is above the smallest of the losses more than `nonmono` epochs before it.
    """
    return any(loss > min(losses[: epoch - nonmono]) for epoch, loss in enumerate(losses) if epoch > nonmono)


@contextmanager
def averaged(model: nn.Module, asgd: torch.optim.Optimizer) -> Iterator[None]:
    """Replaces the weights by the averages of ASGD in the body, if ASGD has made a step."""
    weights = [(weight, weight.detach().clone()) for weight in model.parameters() if "ax" in asgd.state.get(weight, {})]
    with torch.no_grad():
        for weight, _ in weights:
            weight.copy_(asgd.state[weight]["ax"])
        yield
        for weight, value in weights:
            weight.copy_(value)


if __name__ == "__main__":
    cli.run(main)
