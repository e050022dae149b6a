"""Stage 2, the evaluation of an architecture: trains the network of a genotype from scratch.

    python train.py --arch DARTS_V2 --auxiliary --cutout --gpu 0      # CIFAR-10, as the paper: 97.24 +- 0.09% there
    python train.py --arch search-EXP-20260101-120000/genotype.json --auxiliary --cutout --gpu 0
    python train.py --arch DARTS_V2 --valid_portion 0.1 --auxiliary --cutout --gpu 0
    python train.py --preset imagenet --arch DARTS_V2 --auxiliary --gpu 0      # docs/imagenet.md

After every epoch, weights.pt in the run's folder holds the weights, and the log the test accuracy. The last one is the
result. The best one is printed too, but it was picked on the test set, so it is too high. With --valid_portion, the
best epoch is chosen on held-out training images, its weights are in best.pt, and the test set is measured once.
"""

from __future__ import annotations

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import recipes
import speed
import utils
from architectures import SPACE_HELP, Architecture, load_space, networks, read_architecture, trained
from architectures.cells import Cells
from experiment import distributed, metrics
from experiment.errors import UserError
from experiment.loop import Loop, Step, length
from experiment.run import Callback, Run
from experiment.weights import load_weights


def parse_arguments(arguments: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """Returns the arguments of the command line, or `arguments`, {name: value}, with all defaults."""
    parser = cli.Parser(description="Train the network of an architecture from scratch.")
    cli.add_data_arguments(parser, data.DATASETS)
    cli.add_run_arguments(parser)
    cli.accept_unread(parser, "--model_path")
    cli.accept_unread(parser, "--parallel", nargs=0)  # torchrun starts several processes
    parser.add_argument(
        "--seed", type=cli.seed, default=0, help="seed of weights, data order, augmentation and drop path"
    )
    group = parser.add_argument_group("network")
    group.add_argument("--space", default="darts", help=f"space of --arch: {SPACE_HELP}")
    group.add_argument(
        "--arch",
        type=Cells.canonical,
        default="DARTS",
        help=f"train this architecture: {', '.join(Cells.names())}; a search's folder; or JSON or Genotype(...), as "
        f"text or in a file",
    )
    group.add_argument(
        "--init_channels",
        type=cli.positive_int,
        help="number of channels of the first cells; None: 36, or the space's default",
    )
    group.add_argument("--layers", type=cli.positive_int, help="number of cells; None: 20, or the space's default")
    recipes.add_network_arguments(parser, group, recipes.IMAGENET)
    cli.add_space_argument(group, "--space_arg", "space")
    group.add_argument("--auxiliary", action="store_true", help="add the auxiliary head")
    group.add_argument(
        "--init_from",
        type=cli.path,
        metavar="WEIGHTS",
        help="begin with the weights in this file, except for a classifier of another number of classes",
    )
    group = cli.add_weights_arguments(parser, epochs=600, batch_size=recipes.CIFAR_BATCH, learning_rate_min=0.0)
    group.add_argument(
        "--auxiliary_weight", type=cli.non_negative_float, default=0.4, help="weight of the auxiliary head's loss"
    )
    group.add_argument(
        "--drop_path_prob",
        type=cli.probability,
        default=0.2,
        help="probability of drop path at the end; it grows linearly from 0",
    )
    group = parser.add_argument_group("held-out images and best epoch")
    group.add_argument(
        "--valid_portion",
        type=cli.probability,
        default=0.0,
        help="hold out this share of the training images, and choose the best epoch on it",
    )
    group.add_argument(
        "--valid_folder",
        action="store_true",
        help="choose the best epoch on the images in val/; test/ must be there, too",
    )
    group.add_argument(
        "--keep",
        choices=["last", "best"],
        default="last",
        help="best: also write the weights of the epoch with the best test accuracy to best.pt",
    )
    recipes.add_arguments(parser)
    args = cli.parse(parser, "eval", arguments)
    cli.check_learning_rates(args)
    if args.valid_portion and args.valid_folder:
        raise UserError("--valid_portion and --valid_folder both say which images are held out: leave one of them out")
    recipes.check(args)
    return args


def main() -> None:
    run_training(parse_arguments())


class Result(NamedTuple):
    """The result of a training."""

    accuracy: float  # on the test set, in percent
    folder: Path  # the run's
    network: nn.Module  # the network with that accuracy; `predict.load(folder)` gives one that takes images


def train(
    network: Architecture | str | Path | None = None,
    images: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    **arguments: Any,
) -> Result:
    """Trains as the command does: the same run's folder, log, signals and result.

    Args:
        network: the result of `train_search.search`, or a value of `--arch`; None here and below: the command's
            default. `init_channels` and `layers` set its size.
        images, callbacks, arguments: as of `train_search.search`, which also says what is raised.
    """
    arch = json.dumps(network.json) if isinstance(network, Architecture) else network
    return run_training(parse_arguments({"arch": arch, **data.source(images), **arguments}), callbacks)


def run_training(args: argparse.Namespace, callbacks: Sequence[Callback] = ()) -> Result:
    networks.set_sizes(args)
    network = networks.choose_network(args)
    recorded = load_space(args.space).recorded(args.resume) if args.resume else None
    architecture = recorded or read_architecture(args.arch, args.space)
    device = utils.begin(args)
    options = data.Options.of(args)
    images, selection = data.hold_out(data.prepare(options, device), args.valid_portion)
    train_batches = data.train_batches(images, options, device)
    valid_batches, test_batches = (data.test_batches(part, options, device) for part in (selection, images))
    epochs, steps, _ = length(args, len(train_batches))

    model = networks.build_discrete(args, images.num_classes, architecture).to(device)
    notes = initialise(model, args, images.num_classes)
    size = images.image_size
    multiply_adds = utils.count_multiply_adds(model, size, images.channels)
    batch_work = 1e6 * multiply_adds * args.batch_size
    utils.set_threads(args, batch_work / distributed.world_size(), device)
    if args.sync_bn:
        distributed.convert(model)
    optimizer = recipes.optimizer(model, args)
    scheduler = recipes.scheduler(optimizer, args)
    plain = training_step(model, nn.CrossEntropyLoss(label_smoothing=args.label_smoothing), optimizer, args)
    meters = utils.Meters()

    def train_step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits, norm, *auxiliary_loss = step(x, y)
        meters.update(loss, logits, y, *auxiliary_loss)
        return loss, norm

    with Run("eval", args, device, callbacks, images.record()) as run:
        run.log_each(*images.notes, network, *notes, architecture)
        if recorded is None:
            run.write_json(architecture.FILES[0], architecture.json)
        run.log("param size = %.6f million (the auxiliary head left out)", utils.count_parameters_in_MB(model))
        run.log(
            "multiply-adds = %.6f million (convolutions and linear layers, one image of %dx%d)",
            multiply_adds,
            size,
            size,
        )
        part = "valid" if holds_out(args) else "test"  # that every epoch is measured on
        progress = run.restore(model=model, optimizer=optimizer, meters=meters)
        utils.advance(scheduler, progress.epoch)
        step = speed.fast_step(plain, model, [optimizer], args, batch_work * epochs * steps, run.log)
        loop = Loop(run, len(train_batches), len(valid_batches))
        distributed.own_random_numbers()  # for drop path
        for epoch in loop.epochs():
            lr = float(scheduler.get_last_lr()[0])
            row = {"lr": lr}
            if hasattr(model, "drop_path_prob"):  # the networks of other spaces have none
                row["drop_path_prob"] = model.drop_path_prob = args.drop_path_prob * epoch / args.epochs
            if progress.step == 0:
                meters.reset()
                run.log("epoch %d lr %e", epoch, lr)

            train_batches.set_epoch(epoch, progress.step)
            loop.train(model, train_batches, train_step, meters, lr)
            run.log("train_acc %f", meters.top1.avg)

            distributed.synchronize(model)
            measured = utils.evaluate(model, loop.limited(valid_batches), F.cross_entropy, loop.reporter("valid"))
            run.log("valid_acc %f (%s)", measured.top1.avg, "held-out images" if holds_out(args) else "test set")
            if images.num_classes > 5:
                run.log("valid_top5 %f", measured.top5.avg)
            utils.advance(scheduler)

            row |= {"train_loss": meters.loss.avg, "train_acc": meters.top1.avg}
            if meters.auxiliary.count:
                row["train_auxiliary_loss"] = meters.auxiliary.avg
            row |= accuracies(part, measured, images.num_classes)
            run.write_weights(model)
            best = all(row[f"{part}_acc"] > before[f"{part}_acc"] for before in progress.metrics)
            if best and (holds_out(args) or args.keep == "best"):
                run.write_weights(model, "best.pt")
            last = epoch == epochs - 1
            if last and holds_out(args):
                measured = measure_best(model, test_batches, loop, run)
                row |= accuracies("test", measured, images.num_classes)
            if last:
                row |= metrics.of_classes(measured.confusion.tolist(), images.classes)
            if last or best or not holds_out(args):
                weights = "best.pt" if holds_out(args) else "weights.pt"
                measured_on = (
                    f"{measured.top1.count} {measured_images(args, last)} images, after epoch {epoch + 1} of {epochs}"
                )
                run.write_json(
                    trained.FILE, trained.describe(args, images, architecture, weights, measured.top1.avg, measured_on)
                )
            loop.complete(row)

        finish(args, run)
        if holds_out(args):
            load_best(model, run)
        return Result(progress.metrics[-1]["test_acc"], run.folder, model.eval())


def accuracies(part: str, measured: utils.Meters, classes: int) -> dict[str, float]:
    """The entries of an epoch's metrics about the images of `part`."""
    found = {f"{part}_loss": measured.loss.avg, f"{part}_acc": measured.top1.avg}
    return found | {f"{part}_top5": measured.top5.avg} if classes > 5 else found


def measured_images(args: argparse.Namespace, last: bool) -> str:
    """Which images the accuracy in network.json was measured on."""
    if last or not holds_out(args):
        return "test"
    return "validation" if args.valid_folder else "held-out training"


def holds_out(args: argparse.Namespace) -> bool:
    """Whether the best epoch is chosen on held-out images, and the test set measured once."""
    return args.valid_folder or args.valid_portion > 0


def initialise(model: nn.Module, args: argparse.Namespace, num_classes: int) -> tuple[str, ...]:
    """Gives `model` the weights of `--init_from`, and returns what the log should say of it."""
    if args.init_from is None:
        return ()
    notes: list[str] = []
    kept = load_weights(model, args.init_from, num_classes, say=notes.append)
    return (
        *notes,
        f"begins with the weights in {args.init_from}"
        + f"; new, for {num_classes} classes: {', '.join(kept)}" * bool(kept),
    )


def measure_best(model: nn.Module, batches: data.Batches, loop: Loop, run: Run) -> utils.Meters:
    """Loss and accuracy of the best epoch's weights on `batches`; `model` keeps its own weights."""
    last = {name: value.clone() for name, value in model.state_dict().items()}
    load_best(model, run)
    measured = utils.evaluate(model, loop.limited(batches), F.cross_entropy, loop.reporter("test", len(batches)))
    model.load_state_dict(last)
    return measured


def load_best(model: nn.Module, run: Run) -> None:
    """Gives `model` the weights of the best epoch."""
    if distributed.rank() == 0:
        load_weights(model, str(run.folder / "best.pt"))
    distributed.take_over(model)


def finish(args: argparse.Namespace, run: Run) -> None:
    """Logs what the training has led to, for every class as well."""
    rows = run.progress.metrics
    accuracy = rows[-1]["test_acc"]
    if args.fast_dev_run:
        run.log("test accuracy %.2f%% after two batches: --fast_dev_run only tries whether everything runs", accuracy)
    elif holds_out(args):
        best = max(rows, key=lambda row: row["valid_acc"])
        run.log(
            "best accuracy on the held-out images %.2f%%, in epoch %d: its weights are in best.pt",
            best["valid_acc"],
            best["epoch"],
        )
        run.log("test accuracy %.2f%% of these weights, measured once: the result", accuracy)
    else:
        run.log("final test accuracy %.2f%% after %d epochs: the result", accuracy, len(rows))
        best = max(rows, key=lambda row: row["test_acc"])
        kept = f" in epoch {best['epoch']}, whose weights are in best.pt" if args.keep == "best" else ""
        run.log("best test accuracy %.2f%%%s: picked on the test set, so not a result", best["test_acc"], kept)
    run.log_each(*metrics.class_lines(rows[-1]))
    run.propose({"test the weights again": test_command(args, run)})


def training_step(
    model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, args: argparse.Namespace
) -> Step:
    """Returns a step on a batch. The step returns loss, logits, the gradient's norm, and the auxiliary head's loss if
    any.

    This loss is the one that evaluation measures, so that they can be compared: without the auxiliary head's, and
    without label smoothing.
    """
    parallel = distributed.data_parallel(model)

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        optimizer.zero_grad()
        logits, logits_aux = utils.forward(parallel, x, args.amp)
        loss = criterion(logits, y)
        if logits_aux is not None:
            loss = loss + args.auxiliary_weight * criterion(logits_aux, y)
        distributed.mean(loss, y.size(0)).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        losses = [F.cross_entropy(each.detach(), y) for each in (logits, logits_aux) if each is not None]
        return losses[0], logits.detach(), norm, *losses[1:]

    return step


def test_command(args: argparse.Namespace, run: Run) -> str:
    """The command that measures the saved weights' accuracy; a space in a file is named again (see `cli.parse`)."""
    return shlex.join(
        ["python", "test.py", str(run.folder), *(["--space", args.space] if cli.runs_code(args.space) else [])]
    )


if __name__ == "__main__":
    cli.run(main)
