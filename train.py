"""Stage 2, the evaluation of an architecture: trains the network of a genotype from scratch.

    python train.py --arch DARTS_V2 --auxiliary --cutout --gpu 0      # CIFAR-10: the paper's setting, 600 epochs, 97.24 +- 0.09% there
    python train.py --arch search-EXP-20260101-120000/genotype.json --auxiliary --cutout --gpu 0

Expect weights.pt in the run's folder after every epoch, and the accuracy on the test set, measured after every epoch. The last one is the
result. The best one is printed as well, as what it is: picked on the test set, so too good.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn

import cli
import data
import experiment
import genotypes
import utils
from nas import search


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Train the network of an architecture from scratch.")
    cli.add_data_arguments(parser, data.DATASETS)
    cli.add_run_arguments(parser)
    cli.accept_unread(parser, "--model_path")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, help="of weights, data order, augmentation and drop path")
    group = parser.add_argument_group("network")
    group.add_argument("--space", default="darts", help=search.SPACE_HELP)
    group.add_argument(
        "--arch", default="DARTS", help=f"{', '.join(genotypes.KNOWN)}; a JSON file; a search's folder; or Genotype(...) from a log"
    )
    group.add_argument("--init_channels", type=cli.positive_int, help="channels of the first cells; None: 36, or the space's own number")
    group.add_argument("--layers", type=cli.cell_count, help="cells; None: 20, or the space's own number")
    group.add_argument("--auxiliary", action="store_true", help="add the auxiliary head")
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=cli.positive_int, default=600)
    group.add_argument("--batch_size", type=cli.positive_int, default=96)
    group.add_argument("--learning_rate", type=cli.positive_float, default=0.025, help="in the first epoch; descends to 0 as a cosine")
    group.add_argument("--momentum", type=cli.probability, default=0.9)
    group.add_argument("--weight_decay", type=cli.non_negative_float, default=3e-4)
    group.add_argument("--grad_clip", type=cli.positive_float, default=5, help="largest norm of the gradient")
    group.add_argument("--auxiliary_weight", type=cli.non_negative_float, default=0.4, help="of the auxiliary head's loss")
    group.add_argument(
        "--drop_path_prob", type=cli.probability, default=0.2, help="that drop path grows to, linearly with the epochs; in cells"
    )
    group.add_argument("--cutout", action="store_true", help="cut a square out of every image")
    group.add_argument("--cutout_length", type=cli.positive_int, default=16)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    search.set_sizes(args, init_channels=36, layers=20)
    architecture = search.read(args)
    device = utils.select_device(args.gpu)
    utils.seed_everything(args.seed, args.deterministic)
    images = data.load(args.dataset, args.data, args.image_size, args.workers)
    train_batches = data.train_batches(
        images,
        batch_size=args.batch_size,
        cutout_length=args.cutout_length if args.cutout else 0,
        seed=args.seed,
        workers=args.workers,
        device=device,
    )
    test_batches = data.test_batches(images, batch_size=args.batch_size, workers=args.workers, device=device)
    steps = 2 if args.fast_dev_run else None  # None: all
    epochs = 1 if args.fast_dev_run else args.epochs

    criterion = nn.CrossEntropyLoss()
    model = search.build_discrete(args, images.num_classes, architecture).to(device)
    optimizer = torch.optim.SGD(model.parameters(), args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

    run = experiment.Run(args.run_dir or experiment.default_folder("eval", args.save), args)
    run.log("%s", search.describe(architecture))
    run.write_json(*search.record(architecture))
    run.log("param size = %fMB (the auxiliary head left out)", utils.count_parameters_in_MB(model))
    run.log(
        "multiply-adds = %fM (convolutions and linear layers, one image of %dx%d)",
        utils.count_multiply_adds(model, images.image_size),
        images.image_size,
        images.image_size,
    )
    best = 0.0
    for epoch in range(epochs):
        started = time.perf_counter()
        lr = scheduler.get_last_lr()[0]
        run.log("epoch %d lr %e", epoch, lr)
        model.drop_path_prob = args.drop_path_prob * epoch / args.epochs
        train_batches.set_epoch(epoch)
        train_meters = train(islice(train_batches, steps), model, criterion, optimizer, args, run)
        run.log("train_acc %f", train_meters.top1.avg)
        test_meters = utils.evaluate(
            model,
            islice(test_batches, steps),
            criterion,
            lambda step, meters: step % args.report_freq or run.log("valid %03d %s", step, meters),
        )
        best = max(best, test_meters.top1.avg)
        run.log("valid_acc %f (test set)", test_meters.top1.avg)
        scheduler.step()

        run.write_weights(model)
        run.append_metrics(
            {
                "epoch": epoch,
                "lr": lr,
                "drop_path_prob": model.drop_path_prob,
                "train_loss": train_meters.loss.avg,
                "train_acc": train_meters.top1.avg,
                "test_loss": test_meters.loss.avg,
                "test_acc": test_meters.top1.avg,
                "seconds": time.perf_counter() - started,
            }
        )

    run.log("final test accuracy %.2f%% after %d epochs: the result", test_meters.top1.avg, epochs)
    run.log("best test accuracy %.2f%%: picked on the test set, so not a result", best)
    run.log("test the weights again: %s", test_command(args, run))


def train(
    batches: Iterable[tuple[Tensor, Tensor]],
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
    run: experiment.Run,
) -> utils.Meters:
    """One epoch; the loss that is reported is the main classifier's and the auxiliary head's weighted sum, the accuracy the main one's."""
    model.train()
    meters = utils.Meters()
    for step, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        output = model(x)
        logits, logits_aux = output if isinstance(output, tuple) else (output, None)  # only the network of cells has an auxiliary head
        loss = criterion(logits, y)
        if logits_aux is not None:
            loss = loss + args.auxiliary_weight * criterion(logits_aux, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()

        meters.update(loss, logits, y)
        if step % args.report_freq == 0:
            run.log("train %03d %s", step, meters)
    return meters


def test_command(args: argparse.Namespace, run: experiment.Run) -> str:
    """The command that measures the saved weights' accuracy."""
    command = ["python", "test.py", "--arch", str(run.folder), "--model_path", str(run.folder / "weights.pt"), "--gpu", str(args.gpu)]
    command += ["--dataset", args.dataset, "--data", args.data, "--image_size", str(args.image_size)]
    for name in ("init_channels", "layers"):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    command += [*["--auxiliary"][: args.auxiliary], *([] if args.space == "darts" else ["--space", args.space])]
    return shlex.join(command)


if __name__ == "__main__":
    cli.run(main)
