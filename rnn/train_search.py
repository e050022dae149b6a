"""Stage 1, the search for a recurrent cell: trains alphas and weights of the supernet, and writes the cell it finds.

    python -m rnn.train_search --unrolled --data ../data/penn --gpu 0     # Penn Treebank, second order, as in the paper
    python -m rnn.train_search --data ../data/penn --gpu 0                # first order
    python -m rnn.train_search --dataset pydoc --gpu -1 --emsize 64 --batch_size 32 --epochs 2

Writes genotype.json and a picture of the cell into the run's folder, and prints the command that trains it. Printed
perplexities are those of the supernet; rnn/train.py measures the quality of the cell.
"""

from __future__ import annotations

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse

import torch
from torch import Tensor

import speed
import utils
from architect import HVP, Architect
from experiment.errors import UserError
from experiment.loop import Loop, Step, length
from experiment.run import Run
from pictures import drawing
from rnn import arguments, data, sequences
from rnn.architect import FAULTS, alpha_step, learner
from rnn.genotypes import RecurrentCell
from rnn.model import REGIONS
from rnn.model_search import RNNModelSearch
from rnn.sequences import Meters, Place


def parse_arguments() -> argparse.Namespace:
    parser = arguments.training_parser(
        "Search for a recurrent cell with DARTS.",
        emsize=300,
        batch_size=256,
        epochs=50,
        seed=3,
        dropoute=0.0,
        wdecay=5e-7,
    )
    cli.accept_unread(parser, "--nonmono", "--max_seq_len_delta")
    group = parser.add_argument_group("alphas")
    what = "use the second order: the validation loss after a virtual step of the weights"
    group.add_argument("--unrolled", action="store_true", help=what)
    what = "compute the second order's Hessian-vector product in this way"
    group.add_argument("--hvp", choices=HVP, default=HVP[0], help=what)
    group.add_argument("--arch_lr", type=cli.positive_float, default=3e-3, help="learning rate of the alphas")
    group.add_argument("--arch_wdecay", type=cli.non_negative_float, default=1e-3, help="weight decay of the alphas")
    args = cli.parse(parser, "rnn-search")
    arguments.check_sizes(args)
    if args.hvp != HVP[0] and not args.unrolled:
        raise UserError(f"--hvp {args.hvp} needs the second order: add --unrolled, or leave it out")
    if args.batch_size == 1:
        raise UserError("--batch_size must be at least 2: BatchNorm sees one word of each sequence at a time")
    return args


def main() -> None:
    args = parse_arguments()
    device = utils.begin(args)
    corpus = data.load(args.dataset, args.data, args.vocabulary)
    train_text = data.batchify(corpus.train, args.batch_size, "training", least=args.bptt + 1).to(device)
    alpha_text = data.batchify(corpus.valid, args.batch_size, "validation").to(device)
    valid_text = data.batchify(corpus.valid, data.EVAL_BATCH, "validation").to(device)
    epochs, steps, _ = length(args, sequences.expected_pieces(train_text, args.bptt))

    model = RNNModelSearch(len(corpus.words), args.emsize, arguments.dropouts(args)).to(device)
    architect = learner(model, args)
    optimizer = utils.optimizer(torch.optim.SGD, model.weight_parameters(), lr=args.lr, weight_decay=args.wdecay)
    multiply_adds = model.multiply_adds(len(model.alphas), args.batch_size * args.bptt)
    utils.set_threads(args, multiply_adds, device)
    meters, place = Meters(), Place(*(model.init_hidden(args.batch_size) for _ in range(2)))

    with Run("rnn-search", args, device) as run:
        data.record(corpus, run)
        run.log("param size = %.6f million", sum(weight.numel() for weight in model.weight_parameters()) / 1e6)
        progress = run.restore(model=model, architect=architect, optimizer=optimizer, meters=meters, place=place)
        plain = search_step(alpha_text, model, architect, optimizer, place, meters, args)
        changed = [optimizer, architect, place, meters]
        step = speed.fast_step(plain, model, changed, args, multiply_adds * epochs * steps, run.log, REGIONS)
        loop = Loop(run, steps, len(sequences.starts(valid_text, args.bptt)))
        for epoch in loop.epochs():
            if progress.step == 0:
                meters.reset()
                place.begin()
                run.log("epoch %d lr %e", epoch, args.lr)
                run.log_each(RecurrentCell(model.genotype()), *model.alpha_lines())

            loop.train(model, sequences.pieces(train_text, place, args.bptt), step, meters, args.lr, "--lr or --clip")
            run.log("train %s (supernet)", meters)

            valid = sequences.evaluate(model, valid_text, args.bptt, args.faithful, loop.reporter("valid"))
            run.log("valid %s (supernet)", valid)

            architecture = RecurrentCell(model.genotype())
            run.write_weights(model)
            run.write_json(architecture.FILES[0], architecture.json)
            metrics = {
                "lr": args.lr,
                **meters.described("train"),
                **valid.described("valid"),
                **architecture.metrics(model.alphas_by_edge()),
                "genotype": architecture.json,
            }
            loop.complete(metrics, architecture)

        architecture = RecurrentCell(model.genotype())
        run.log("%s", architecture)
        run.propose({"train what was found": arguments.next_command("rnn.train", run)})
        drawing.draw_result(architecture, run, epochs)


def search_step(
    alpha_text: Tensor,
    model: RNNModelSearch,
    architect: Architect,
    optimizer: torch.optim.Optimizer,
    place: Place,
    meters: Meters,
    args: argparse.Namespace,
) -> Step:
    """The step of algorithm 1 on a piece of the training text and one of `alpha_text`."""
    weight_step = sequences.weight_step(model, place, meters, args)
    faults = FAULTS if args.faithful else ()

    def step(row: int, length: int, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        # 1. Update the alphas by descending the validation loss.
        hidden, hidden_valid = place.hidden
        valid = *data.get_batch(alpha_text, row % (len(alpha_text) - 1), args.bptt), hidden_valid
        lr = args.lr * length / args.bptt
        place.hidden[1] = alpha_step(architect, model, (x, y, hidden), valid, lr, args, faults)

        # 2. Update the weights by descending the training loss; the alphas need no gradient here.
        with utils.constant(model.arch_parameters()):
            return weight_step(optimizer, row, length, x, y)

    return step


if __name__ == "__main__":
    cli.run(main)
