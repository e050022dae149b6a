"""Stage 1, the search: learns the alphas and the weights of the supernet together and writes the cells that it finds.

    python train_search.py --unrolled --gpu 0               # CIFAR-10, second order: the paper's setting
    python train_search.py --gpu 0                          # first order: about a third of the time
    python train_search.py --dataset digits --gpu -1 --epochs 6 --init_channels 4 --layers 4 --batch_size 32
    python train_search.py --space nasbench201 --strategy enas --gpu 0
    python train_search.py --space examples/small_space.py:Net --dataset digits --gpu -1 --batch_size 16

Expect architecture.json, for cells genotype.json as well, and pictures in the run's folder, and at the end the command that trains them.
The accuracies on the way are the supernet's; what the found network is worth, only train.py can tell.
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
import utils
from architect import HVP, Architect, Searchable
from experiment import distributed, monitor
from experiment.errors import UserError
from experiment.run import Run
from nas import collapse, registry, search
from nas.architecture import Architecture
from nas.strategies import Strategy
from pictures import drawing
from speed import acceleration, capture


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Search for an architecture: with DARTS for cells, or with another strategy or in another space.")
    cli.add_data_arguments(parser, data.DATASETS)
    cli.add_run_arguments(parser)
    cli.accept_unread(parser, "--model_path", "--drop_path_prob")
    parser.add_argument("--seed", type=cli.seed, default=2, help="of weights, alphas, data order and augmentation")
    group = parser.add_argument_group("supernet")
    group.add_argument("--space", default="darts", help=registry.SPACE_HELP)
    group.add_argument("--strategy", default="darts", help=f"how the architecture is learned: {registry.STRATEGY_HELP}")
    group.add_argument("--init_channels", type=cli.positive_int, help="channels of the first cells; None: 16, or the space's own number")
    group.add_argument("--layers", type=cli.cell_count, help="cells; None: 8, or the space's own number")
    group = parser.add_argument_group("weights")
    group.add_argument("--epochs", type=cli.positive_int, default=50)
    group.add_argument("--batch_size", type=cli.positive_int, default=64)
    group.add_argument("--learning_rate", type=cli.positive_float, default=0.025, help="in the first epoch")
    group.add_argument("--learning_rate_min", type=cli.non_negative_float, default=0.001, help="that the cosine schedule descends to")
    group.add_argument("--momentum", type=cli.probability, default=0.9)
    group.add_argument("--weight_decay", type=cli.non_negative_float, default=3e-4)
    group.add_argument("--grad_clip", type=cli.positive_float, default=5.0, help="largest norm of the gradient")
    group.add_argument("--cutout", action="store_true", help="cut a square out of every image")
    group.add_argument("--cutout_length", type=cli.positive_int, default=16)
    group = parser.add_argument_group("alphas")
    group.add_argument("--unrolled", action="store_true", help="second order: the validation loss after one step of the weights")
    group.add_argument("--hvp", choices=HVP, default=HVP[0], help="how the second order multiplies with the Hessian")
    group.add_argument(
        "--train_portion", type=cli.proportion, default=0.5, help="of the training images for the weights; the rest for alphas"
    )
    group.add_argument("--arch_learning_rate", type=cli.positive_float, default=3e-4)
    group.add_argument("--arch_weight_decay", type=cli.non_negative_float, default=1e-3)
    group = parser.add_argument_group("collapse (Zela et al. 2020)")
    group.add_argument(
        "--eigenvalue_every",
        type=cli.non_negative_int,
        default=0,
        help="epochs between measuring the alphas' dominant eigenvalue; 0: never",
    )
    group.add_argument("--early_stop", choices=["eigenvalue"], help="stop when it grows, and return the architecture from before")
    args = cli.parse(parser, "search")
    if args.learning_rate_min > args.learning_rate:
        raise UserError(f"--learning_rate_min {args.learning_rate_min} is above --learning_rate {args.learning_rate}: lower it")
    if args.capture and args.strategy != "darts":
        raise UserError(f"--capture is of --strategy darts: by {args.strategy}, every step runs another architecture")
    if args.early_stop and not args.eigenvalue_every:
        args.eigenvalue_every = 1
    return args


def main() -> None:
    args = parse_arguments()
    search.set_sizes(args, init_channels=16, layers=8)
    registry.load_strategy(args.strategy)  # an unknown one is reported before images are loaded
    device = utils.begin(args)
    images = data.prepare(args, device)
    train_batches, alpha_batches, valid_batches = data.search_batches(
        images,
        batch_size=args.batch_size,
        train_portion=args.train_portion,
        cutout_length=args.cutout_length if args.cutout else 0,
        seed=args.seed,
        workers=args.workers,
        device=device,
    )
    epochs, steps, limit = utils.length(args, len(train_batches))

    criterion = nn.CrossEntropyLoss()
    model, architect = search.build(args, images.num_classes, criterion, device)
    speed = acceleration.accelerate(model, args, images.image_size, epochs * steps, device)
    optimizer = utils.optimizer(
        torch.optim.SGD, model.weight_parameters(), lr=args.learning_rate, momentum=args.momentum, weight_decay=args.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs, eta_min=args.learning_rate_min)
    step: capture.Step = search_step(model, architect, criterion, optimizer, args)
    if args.capture:
        assert isinstance(architect, Architect)  # the learner of --strategy darts
        step = capture.CapturedStep(step, model, [optimizer, architect.optimizer], args.batch_size)
    meters = utils.Meters()

    with Run("search", args, device) as run:
        run.log_each(*images.notes, speed)
        run.log("param size = %fMB", sum(weight.numel() for weight in model.weight_parameters()) / 1e6)
        parts = {"model": model, "architect": architect, "optimizer": optimizer, "meters": meters}
        progress = run.restore(epochs, steps, "valid_acc", Architecture.of_epoch, **parts)
        utils.advance(scheduler, progress.epoch)
        watch = monitor.Monitor(run, epochs, steps)
        stop = collapse.stop_at(progress.metrics) if args.early_stop else None
        for epoch in range(progress.epoch, epochs if stop is None else 0):
            lr = float(scheduler.get_last_lr()[0])
            if progress.step == 0:
                meters.reset()
                run.log("epoch %d lr %e", epoch, lr)
                run.log("%s", Architecture.of(model.export(), args.space))
                run.log_each(*model.alpha_lines())

            train_batches.set_epoch(epoch, progress.step)
            alpha_batches.set_epoch(epoch, progress.step)
            pairs = islice(zip(train_batches, alpha_batches, strict=True), limit and max(0, limit - progress.step))
            batches = ((x, y, x_valid, y_valid) for (x, y), (x_valid, y_valid) in watch.batches(pairs, meters))
            utils.train_epoch(model, batches, step, lr, meters, run)
            run.log("train_acc %f (supernet)", meters.top1.avg)

            distributed.synchronize(model)
            valid_batches.set_epoch(epoch)
            architect.settle(valid_batches)
            valid_meters = utils.evaluate(model, islice(valid_batches, limit), criterion, run.reporter("valid", args.report_freq))
            run.log("valid_acc %f (supernet)", valid_meters.top1.avg)
            utils.advance(scheduler)

            architecture = Architecture.of(model.export(), args.space)
            files = architecture.files()
            run.write_weights(model)
            run.write_architecture(files)
            metrics = {
                "lr": lr,
                "train_loss": meters.loss.avg,
                "train_acc": meters.top1.avg,
                "valid_loss": valid_meters.loss.avg,
                "valid_acc": valid_meters.top1.avg,
                **collapse.describe(architecture, model.alphas_by_edge()),
                **{name.removesuffix(".json"): content for name, content in files.items()},
                **watch.measured(),
            }
            if args.eigenvalue_every and epoch % args.eigenvalue_every == 0:
                metrics["eigenvalue"] = collapse.dominant_eigenvalue(model, *next(iter(valid_batches)))
                run.log("eigenvalue %e", metrics["eigenvalue"])
            if (warning := collapse.warning(metrics, progress.metrics)) is not None:
                run.log("%s", warning)
            watch.record(metrics, architecture, drawing.previews)
            run.complete_epoch(metrics)
            if args.early_stop and (stop := collapse.stop_at(progress.metrics)) is not None:
                break
        finish(args, run, Architecture.of(model.export(), args.space), stop)


def finish(args: argparse.Namespace, run: Run, architecture: Architecture, stop: int | None) -> None:
    """Logs, writes and draws what the search has found.

    Args:
        architecture: of the last epoch.
        stop: the epoch whose architecture is the result, where the search was stopped early.
    """
    epoch = len(run.progress.metrics)
    if stop is not None:
        before = Architecture.of_epoch(run.progress.metrics[stop])
        assert before is not None  # a search records one in every epoch
        run.log("the eigenvalue has grown by more than a third: stopped, and back to the architecture of epoch %d", stop)
        run.log("weights.pt is still the supernet of epoch %d", epoch - 1)
        architecture, epoch = before, stop + 1
        run.write_architecture(architecture.files())
    run.log("%s", architecture)
    run.log("train what was found: %s", train_command(args, run))
    if distributed.rank() == 0:
        try:
            pictures = drawing.draw(architecture, run.folder, caption=f"{run.folder.name}, epoch {epoch}, seed {args.seed}")
            run.log("pictures: %s", ", ".join(map(str, pictures)))
        except Exception as error:  # the search is complete, with or without
            run.log("no pictures: %s", error if isinstance(error, UserError) else repr(error))


def search_step(
    model: Searchable, architect: Strategy, criterion: nn.Module, optimizer: torch.optim.Optimizer, args: argparse.Namespace
) -> capture.Step:
    """The step of the paper's algorithm 1: from a training and a validation batch to loss, logits and the gradient's norm on the former."""
    weights = model.weight_parameters()

    def step(x: Tensor, y: Tensor, x_valid: Tensor, y_valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # 1. Update the alphas by descending the validation loss.
        architect.step(x, y, x_valid, y_valid, optimizer.param_groups[0]["lr"], optimizer, unrolled=args.unrolled)

        # 2. Update the weights by descending the training loss; the alphas need no gradient here.
        optimizer.zero_grad()
        logits, _ = utils.forward(model, x, args.amp)
        loss = distributed.mean(criterion(logits, y), y.size(0))
        loss.backward(inputs=weights)
        distributed.average_gradients(weights)
        norm = nn.utils.clip_grad_norm_(weights, args.grad_clip)
        optimizer.step()
        return loss.detach(), logits.detach(), norm

    return step


def train_command(args: argparse.Namespace, run: Run) -> str:
    """The command that trains the found network by the paper's recipe on the same data."""
    command = ["python", "train.py", "--arch", str(run.folder), "--cutout", "--gpu", str(args.gpu)]
    command += ["--dataset", args.dataset, "--data", args.data, "--image_size", str(args.image_size)]
    command += ["--skip_bad_images"][: args.skip_bad_images]
    command += ["--auxiliary"] if args.space == "darts" else ["--space", args.space]
    return shlex.join(command)


if __name__ == "__main__":
    cli.run(main)
