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
from architectures import Architecture, load_space, networks, read_architecture
from experiment import distributed
from experiment.errors import UserError
from experiment.loop import Loop, Step, length
from experiment.run import Callback, Run
from experiment.weights import load_weights
from selection import Selection, hold_out


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
    recipes.add_network_arguments(parser, group, recipes.IMAGENET)
    what = "begin with the weights in this file, except for a classifier of another number of classes"
    group.add_argument("--init_from", type=cli.path, metavar="WEIGHTS", help=what)
    group = cli.add_weights_arguments(parser, epochs=600, batch_size=recipes.CIFAR_BATCH, learning_rate_min=0.0)
    add = group.add_argument
    add("--auxiliary_weight", type=cli.non_negative_float, default=0.4, help="weight of the auxiliary head's loss")
    what = "probability of drop path at the end; it grows linearly from 0"
    add("--drop_path_prob", type=cli.probability, default=0.2, help=what)
    add = parser.add_argument_group("held-out images and best epoch").add_argument
    what = "hold out this share of the training images, and choose the best epoch on it"
    add("--valid_portion", type=cli.probability, default=0.0, help=what)
    what = "choose the best epoch on the images in val/; test/ must be there, too"
    add("--valid_folder", action="store_true", help=what)
    what = "best: also write the weights of the epoch with the best test accuracy to best.pt"
    add("--keep", choices=["last", "best"], default="last", help=what)
    recipes.add_arguments(parser)
    args = cli.parse(parser, "eval", arguments)
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

    # The images to train on, those that every epoch is measured on, and the test images: often the same.
    options = data.Options.of(args)
    images, measured_images = hold_out(data.prepare(options, device), args.valid_portion)
    train_batches = data.train_batches(images, options, device)
    valid_batches, test_batches = (data.test_batches(part, options, device) for part in (measured_images, images))

    # The network and what trains it.
    model = networks.build_discrete(args, images.num_classes, architecture).to(device)
    notes = initialise(model, args, images.num_classes)
    size = images.image_size
    multiply_adds = utils.count_multiply_adds(model, size, images.channels)
    work = 1e6 * multiply_adds * args.batch_size
    utils.set_threads(args, work, device)
    if args.sync_bn:
        from experiment import sync_batchnorm

        sync_batchnorm.convert(model)
    optimizer = recipes.optimizer(model, args)
    scheduler = recipes.scheduler(optimizer, args)
    step = training_step(model, nn.CrossEntropyLoss(label_smoothing=args.label_smoothing), optimizer, args)

    with Run("eval", args, device, callbacks, images.record()) as run:
        run.log_each(*images.notes, network, *notes, architecture)
        if recorded is None:
            run.write_json(architecture.FILES[0], architecture.json)
        run.log("param size = %.6f million (the auxiliary head left out)", utils.count_parameters_in_MB(model))
        counted = "multiply-adds = %.6f million (convolutions and linear layers, one image of %dx%d)"
        run.log(counted, multiply_adds, size, size)
        meters = utils.Meters()
        progress = run.restore(model=model, optimizer=optimizer, meters=meters)
        utils.advance(scheduler, progress.epoch)
        epochs, steps, _ = length(args, len(train_batches))
        step = speed.fast_step(step, model, [optimizer], args, work * epochs * steps, run.log)
        loop = Loop(run, len(train_batches), len(valid_batches))
        selection = Selection(args, images, architecture, test_batches, loop)
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
            loop.train(model, train_batches, meters.metered(step), meters, lr)
            run.log("train_acc %f", meters.top1.avg)
            row |= {"train_loss": meters.loss.avg, "train_acc": meters.top1.avg}
            if meters.auxiliary.count:
                row["train_auxiliary_loss"] = meters.auxiliary.avg

            distributed.synchronize(model)
            measured = utils.evaluate(model, loop.limited(valid_batches), F.cross_entropy, loop.reporter("valid"))
            utils.advance(scheduler)
            loop.complete(row | selection.of_epoch(model, measured))
        accuracy = selection.finish(model)
        return Result(accuracy, run.folder, model.eval())


def training_step(
    model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, args: argparse.Namespace
) -> Step:
    """A step on a batch, which returns loss, logits, the gradient's norm, and the auxiliary head's loss if any.

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


def initialise(model: nn.Module, args: argparse.Namespace, num_classes: int) -> list[str]:
    """Gives `model` the weights of `--init_from`, and returns what the log should say of it."""
    if args.init_from is None or (args.resume and any(Path(args.resume).glob("checkpoint*.pt"))):  # which has its own
        return []
    notes: list[str] = []
    kept = load_weights(model, args.init_from, num_classes, say=notes.append)
    new = f"; new, for {num_classes} classes: {', '.join(kept)}" if kept else ""
    return [*notes, f"begins with the weights in {args.init_from}{new}"]


if __name__ == "__main__":
    cli.run(main)
