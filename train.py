"""Stage 2, the evaluation of an architecture: trains the network of a genotype from scratch.

    python train.py --arch DARTS_V2 --auxiliary --cutout --gpu 0      # CIFAR-10: the paper's setting, 600 epochs, 97.24 +- 0.09% there
    python train.py --arch search-EXP-20260101-120000/genotype.json --auxiliary --cutout --gpu 0

Expect weights.pt in the run's folder after every epoch, and the accuracy on the test set, measured after every epoch. The last one is the
result. The best one is printed as well, as what it is: picked on the test set, so too good.
"""

from __future__ import annotations

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse
import shlex
from itertools import islice

import torch
from torch import Tensor, nn

import data
import genotypes
import utils
from experiment import distributed, monitor
from experiment.errors import UserError
from experiment.run import Run
from nas import registry, search
from nas.architecture import Architecture
from speed import acceleration, capture


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Train the network of an architecture from scratch.")
    cli.add_data_arguments(parser, data.DATASETS)
    cli.add_run_arguments(parser)
    cli.accept_unread(parser, "--model_path")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of weights, data order, augmentation and drop path")
    group = parser.add_argument_group("network")
    group.add_argument("--space", default="darts", help=registry.SPACE_HELP)
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
    group.add_argument("--grad_clip", type=cli.positive_float, default=5.0, help="largest norm of the gradient")
    group.add_argument("--auxiliary_weight", type=cli.non_negative_float, default=0.4, help="of the auxiliary head's loss")
    group.add_argument(
        "--drop_path_prob", type=cli.probability, default=0.2, help="that drop path grows to, linearly with the epochs; in cells"
    )
    group.add_argument("--cutout", action="store_true", help="cut a square out of every image")
    group.add_argument("--cutout_length", type=cli.positive_int, default=16)
    args = cli.parse(parser, "eval")
    if args.auxiliary and args.batch_size == 1:
        raise UserError("--auxiliary needs a --batch_size of at least 2: its BatchNorm sees a single pixel of each image")
    return args


def main() -> None:
    args = parse_arguments()
    search.set_sizes(args, init_channels=36, layers=20)
    recorded = Architecture.recorded(args.resume, args.space) if args.resume else None
    architecture = recorded or search.read(args)
    device = utils.begin(args)
    images = data.prepare(args, device)
    train_batches = data.train_batches(
        images,
        batch_size=args.batch_size,
        cutout_length=args.cutout_length if args.cutout else 0,
        seed=args.seed,
        workers=args.workers,
        device=device,
    )
    test_batches = data.test_batches(images, batch_size=args.batch_size, workers=args.workers, device=device)
    epochs, steps, limit = utils.length(args, len(train_batches))

    criterion = nn.CrossEntropyLoss()
    model = search.build_discrete(args, images.num_classes, architecture).to(device)
    speed = acceleration.accelerate(model, args, images.image_size, epochs * steps, device)
    optimizer = utils.optimizer(
        torch.optim.SGD, list(model.parameters()), lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    step: capture.Step = training_step(model, criterion, optimizer, args)
    if args.capture:
        step = capture.CapturedStep(step, model, [optimizer], args.batch_size)
    meters = utils.Meters()

    with Run("eval", args, device) as run:
        run.log_each(*images.notes, speed, architecture)
        if recorded is None:
            run.write_json(architecture.file_name, architecture.json)
        run.log("param size = %fMB (the auxiliary head left out)", utils.count_parameters_in_MB(model))
        size = images.image_size
        multiply_adds = utils.count_multiply_adds(model, size)
        run.log("multiply-adds = %fM (convolutions and linear layers, one image of %dx%d)", multiply_adds, size, size)
        progress = run.restore(epochs, steps, "test_acc", model=model, optimizer=optimizer, meters=meters)
        utils.advance(scheduler, progress.epoch)
        watch = monitor.Monitor(run, epochs, steps)
        distributed.own_random_numbers()  # for drop path
        for epoch in range(progress.epoch, epochs):
            lr = float(scheduler.get_last_lr()[0])
            drop_path = {}
            if hasattr(model, "drop_path_prob"):  # the networks of other spaces have none
                drop_path["drop_path_prob"] = model.drop_path_prob = args.drop_path_prob * epoch / args.epochs
            if progress.step == 0:
                meters.reset()
                run.log("epoch %d lr %e", epoch, lr)

            train_batches.set_epoch(epoch, progress.step)
            batches = islice(train_batches, limit and max(0, limit - progress.step))
            utils.train_epoch(model, watch.batches(batches, meters), step, lr, meters, run)
            run.log("train_acc %f", meters.top1.avg)

            distributed.synchronize(model)
            test_meters = utils.evaluate(model, islice(test_batches, limit), criterion, run.reporter("valid", args.report_freq))
            run.log("valid_acc %f (test set)", test_meters.top1.avg)
            utils.advance(scheduler)

            run.write_weights(model)
            metrics = {
                "lr": lr,
                **drop_path,
                "train_loss": meters.loss.avg,
                "train_acc": meters.top1.avg,
                "test_loss": test_meters.loss.avg,
                "test_acc": test_meters.top1.avg,
                **watch.measured(),
            }
            watch.record(metrics)
            run.complete_epoch(metrics)

        accuracies = [row["test_acc"] for row in progress.metrics]
        if args.fast_dev_run:
            run.log("test accuracy %.2f%% after two batches: --fast_dev_run only tries whether everything runs", accuracies[-1])
        else:
            run.log("final test accuracy %.2f%% after %d epochs: the result", accuracies[-1], epochs)
            run.log("best test accuracy %.2f%%: picked on the test set, so not a result", max(accuracies))
        run.log("test the weights again: %s", test_command(args, run))


def training_step(model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> capture.Step:
    """A step of SGD on a batch, which gives loss, logits and the gradient's norm."""

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        optimizer.zero_grad()
        logits, logits_aux = utils.forward(model, x, args.amp)
        loss = criterion(logits, y)
        if logits_aux is not None:
            loss = loss + args.auxiliary_weight * criterion(logits_aux, y)
        loss = distributed.mean(loss, y.size(0))
        loss.backward()
        distributed.average_gradients(model.parameters())
        norm = nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        return loss.detach(), logits.detach(), norm

    return step


def test_command(args: argparse.Namespace, run: Run) -> str:
    """The command that measures the saved weights' accuracy."""
    command = ["python", "test.py", "--arch", str(run.folder), "--model_path", str(run.folder / "weights.pt"), "--gpu", str(args.gpu)]
    command += ["--dataset", args.dataset, "--data", args.data, "--image_size", str(args.image_size)]
    command += ["--skip_bad_images"][: args.skip_bad_images]
    for name in ("init_channels", "layers"):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    command += [*["--auxiliary"][: args.auxiliary], *([] if args.space == "darts" else ["--space", args.space])]
    return shlex.join(command)


if __name__ == "__main__":
    cli.run(main)
