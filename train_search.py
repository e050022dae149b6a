"""Stage 1, the search: learns the alphas and the weights of the supernet together and writes the cells that it finds.

    python train_search.py --unrolled --gpu 0               # CIFAR-10, second order: the paper's setting
    python train_search.py --gpu 0                          # first order: about a third of the time
    python train_search.py --dataset digits --gpu -1 --epochs 6 --init_channels 4 --layers 4 --batch_size 32
    python train_search.py --stem imagenet --dataset folder --data photos --image_size 128 --gpu 0    # docs/imagenet.md
    python train_search.py --space nasbench201 --strategy enas --gpu 0
    python train_search.py --space examples/small_space.py:Net --dataset digits --gpu -1 --batch_size 16

The run's folder then holds genotype.json, architecture.json, nni.json and pictures of the cells. The log ends with the
command that trains them. Accuracies in the log are those of the supernet. They do not predict the accuracy of the found
network, which train.py measures.
"""

from __future__ import annotations

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import data
import proposals
import remedies
import speed
import utils
from architect import HVP, Architect, Searchable
from architectures import Architecture, load_space
from experiment import distributed
from experiment.loop import Loop, Step, length
from experiment.run import Callback, Run
from model_search import Network
from pictures import drawing


def parse_arguments(arguments: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """Returns the arguments of the command line, or `arguments`, {name: value}, with all defaults."""
    parser = cli.Parser(
        description="Search for an architecture: for cells with DARTS, or in another space or with another strategy."
    )
    cli.add_data_arguments(parser, data.DATASETS)
    cli.add_run_arguments(parser)
    cli.accept_unread(parser, "--model_path", "--drop_path_prob")
    parser.add_argument("--seed", type=cli.seed, default=2, help="seed of weights, alphas, data order and augmentation")
    add = parser.add_argument_group("supernet").add_argument
    add("--init_channels", type=cli.positive_int, help="channels of the first cells; None: 16, or the space's default")
    what = "number of cells, in nasbench201 of each stage; None: 8, or the space's own"
    add("--layers", type=cli.positive_int, help=what)
    add("--nodes", type=cli.positive_int, default=4, help="intermediate nodes in a cell of --space darts")
    what = (
        "put this stem before the cells of --space darts; imagenet divides height and width by 8, for images from 64 "
        "pixels on"
    )
    add("--stem", choices=cli.NETWORKS, default="cifar", help=what)
    cli.add_weights_arguments(parser, epochs=50, batch_size=64, learning_rate_min=0.001)
    add = parser.add_argument_group("alphas").add_argument
    add("--unrolled", action="store_true", help="second order: the validation loss after a virtual step of the weights")
    add("--hvp", choices=HVP, default=HVP[0], help="how to compute the second order's Hessian-vector product")
    what = "train the weights on this share of the training images, and the alphas on the rest"
    add("--train_portion", type=cli.proportion, default=0.5, help=what)
    what = "train the alphas on val/ and the weights on all of train/; needs test/, too"
    add("--valid_folder", action="store_true", help=what)
    add("--arch_learning_rate", type=cli.positive_float, default=3e-4, help="learning rate of the alphas' Adam")
    add("--arch_weight_decay", type=cli.non_negative_float, default=1e-3, help="weight decay of the alphas' Adam")
    add("--arch_beta1", type=cli.probability, default=0.5, help="first beta of the alphas' Adam")
    remedies.add_arguments(parser)
    return cli.parse(parser, "search", arguments)


def main() -> None:
    run_search(parse_arguments())


def search(
    space: str | None = None,
    strategy: str | None = None,
    images: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    **arguments: Any,
) -> Architecture:
    """Searches as the command does: the same run's folder, log, pictures, signals and result.

    Args:
        space: a value of `--space`; None here and below: the command's default.
        strategy: a value of `--strategy`.
        images: a value of `--dataset`, or a folder of images (`--dataset folder --data`).
        callbacks: each is called after every epoch, with its number from 0 on and its row of `metrics.jsonl`.
        arguments: the command's other arguments by their names, `epochs=4, unrolled=True`; False leaves a flag out.

    Returns:
        The architecture that was found, as it is written in the run's folder.

    Raises:
        UserError: what the command ends with in one line.
        TypeError: an argument that the command does not have.
        SystemExit: a signal has stopped the run, which `resume=` the run's folder goes on with.
    """
    return run_search(
        parse_arguments(dict(space=space, strategy=strategy, **data.source(images), **arguments)), callbacks
    )


def run_search(args: argparse.Namespace, callbacks: Sequence[Callback] = ()) -> Architecture:
    remedies.check(args)  # before images are loaded
    space, table = load_space(args.space), remedies.load_benchmark(args)
    device = utils.begin(args)

    # The training images: one part for the weights, the other for the alphas.
    options = data.Options.of(args)
    images = data.prepare(options, device)
    train_batches, alpha_batches, valid_batches = data.search_batches(images, options, device)

    # The supernet, and what learns its alphas and its weights.
    criterion = nn.CrossEntropyLoss()
    model, architect = build(args, images.num_classes, criterion, device)
    if table is not None:
        table.of(space.of(model.export()))  # that of another space is refused before an epoch is trained
    work = 1e6 * utils.count_multiply_adds(model, images.image_size, images.channels) * args.batch_size
    utils.set_threads(args, work, device)
    if args.sync_bn:
        from experiment import sync_batchnorm

        sync_batchnorm.convert(model)
    optimizer = utils.optimizer(
        torch.optim.SGD,
        model.weight_parameters(),
        lr=args.learning_rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        nesterov=args.nesterov == "yes",
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs, eta_min=args.learning_rate_min)
    make_step = remedies.search_step(args) or search_step
    step = make_step(model, architect, criterion, optimizer, args)

    with Run("search", args, device, callbacks, images.record()) as run:
        run.log_each(*images.notes, *data.one_sided(images, *data.search_split(images, args.train_portion)))
        if args.space == "darts" and args.layers < 3:
            run.log("warning: fewer than 3 cells are all reduction cells: the normal cell is not searched")
        run.log("param size = %.6f million", sum(weight.numel() for weight in model.weight_parameters()) / 1e6)
        meters = utils.Meters()
        progress = run.restore(model=model, architect=architect, optimizer=optimizer, meters=meters)
        utils.advance(scheduler, progress.epoch)
        epochs, steps, _ = length(args, len(train_batches))
        step = speed.fast_step(step, model, [optimizer, architect], args, work * epochs * steps, run.log)
        loop = Loop(run, len(train_batches), len(valid_batches))
        for epoch in loop.epochs():
            if remedies.stop_at(args, progress.metrics) is not None:
                break
            lr = float(scheduler.get_last_lr()[0])
            architect.resting = epoch < args.arch_warmup
            architect.begin_epoch(epoch)
            if progress.step == 0:
                meters.reset()
                run.log("epoch %d lr %e", epoch, lr)
                run.log("%s", space.of(model.export()))
                run.log_each(*model.alpha_lines())

            train_batches.set_epoch(epoch, progress.step)
            alpha_batches.set_epoch(epoch, progress.step)
            pairs = ((*train, *valid) for train, valid in zip(train_batches, alpha_batches, strict=True))
            loop.train(model, pairs, meters.metered(step), meters, lr)
            run.log("train_acc %f (supernet)", meters.top1.avg)

            distributed.synchronize(model)
            valid_batches.set_epoch(epoch)
            architect.settle(valid_batches)
            measured = utils.evaluate(model, loop.limited(valid_batches), criterion, loop.reporter("valid"))
            run.log("valid_acc %f (supernet)", measured.top1.avg)
            utils.advance(scheduler)

            architecture = space.of(model.export())
            run.write_weights(model)
            for name, content in architecture.files().items():
                run.write_json(name, content)
            metrics = {
                "lr": lr,
                "train_loss": meters.loss.avg,
                "train_acc": meters.top1.avg,
                "valid_loss": measured.loss.avg,
                "valid_acc": measured.top1.avg,
                **architecture.metrics(model.alphas_by_edge()),
                **architect.metrics(),
            }
            metrics |= remedies.signs_of_collapse(args, model, valid_batches, metrics, run)
            if table is not None:
                metrics |= table.record(architecture, progress.metrics)
                run.log("true accuracy of %s", table.line(architecture))
            loop.complete(metrics, architecture, drawing.previews)
        found = finish(args, run, len(images.train), space.of(model.export()))
        if table is not None:
            remedies.judge(args, table, found, model, valid_batches, run)
        return found


def search_step(
    model: Searchable,
    architect: Architect,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
) -> Step:
    """The step of the paper's algorithm 1: from a training and a validation batch to loss, logits and the gradient's
    norm on the former.
    """
    weights = model.weight_parameters()

    def step(x: Tensor, y: Tensor, x_valid: Tensor, y_valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # 1. Update the alphas by descending the validation loss.
        architect.step(x, y, x_valid, y_valid, optimizer.param_groups[0]["lr"], optimizer, unrolled=args.unrolled)

        # 2. Update the weights by descending the training loss; the alphas need no gradient here.
        optimizer.zero_grad()
        with utils.constant(model.arch_parameters()):
            logits, _ = utils.forward(model, x, args.amp)
        loss = distributed.mean(criterion(logits, y), y.size(0))
        if loss.requires_grad:  # sampled operations may have no weights
            loss.backward(inputs=weights)
        distributed.average_gradients(weights)
        norm = nn.utils.clip_grad_norm_(weights, args.grad_clip)
        optimizer.step()
        return loss.detach(), logits.detach(), norm

    return step


def build(args: argparse.Namespace, num_classes: int, criterion: nn.Module, device: torch.device) -> tuple[Any, Any]:
    """(search model, architect): the paper's network and what learns its alphas, or what other arguments ask for."""
    if remedies.wanted(args):
        from nas import building

        return building.build(args, num_classes, criterion, device)
    nodes = args.nodes  # all concatenated
    model = Network(
        args.init_channels, num_classes, args.layers, criterion, nodes, nodes, in_channels=args.channels, stem=args.stem
    )
    return model.to(device), Architect(model, args)


def finish(args: argparse.Namespace, run: Run, images: int, architecture: Architecture) -> Architecture:
    """Logs, writes and draws what the search has found, at last or where it was stopped early, and returns it."""
    rows = run.progress.metrics
    epoch = len(rows)
    if (stop := remedies.stop_at(args, rows)) is not None:
        before = load_space(args.space).of_epoch(rows[stop])
        assert before is not None  # a search records one in every epoch
        run.log(
            "the eigenvalue has grown by more than a third: stopped, and back to the architecture of epoch %d", stop
        )
        run.log("weights.pt is still the supernet of epoch %d", epoch - 1)
        architecture, epoch = before, stop + 1
        for name, content in architecture.files().items():
            run.write_json(name, content)
    run.log("%s", architecture)
    run.propose(proposals.train_commands(args, run.folder, images))
    drawing.draw_result(architecture, run, epoch)
    return architecture


if __name__ == "__main__":
    cli.run(main)
