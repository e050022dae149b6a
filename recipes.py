"""Training recipes beyond the paper's for CIFAR-10: that of the authors' train_imagenet.py, and its parts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision.transforms.v2 import ColorJitter

import utils
from architectures import SPACE_HELP
from architectures.cells import Cells
from experiment import cli
from experiment.cli import Parser
from experiment.errors import UserError, shown

# What the authors trained on ImageNet, and with which images.
IMAGENET_NETWORK: dict[str, Any] = {
    "network": "imagenet",
    "init_channels": 48,
    "layers": 14,
    "dataset": "imagenet",
    "data": "../data/imagenet",
    "image_size": 224,
    "centre_crop": 0.875,  # images resized to 256, of which 224 are cut out
    "batch_size": 128,
}

# How they trained it, for 250 epochs as in the paper.
IMAGENET = IMAGENET_NETWORK | {
    "epochs": 250,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 3e-5,
    "decay_period": 1,
    "gamma": 0.97,
    "grad_clip": 5.0,
    "label_smoothing": 0.1,
    "auxiliary_weight": 0.4,
    "drop_path_prob": 0.0,
    "crop": "resized",
    "color_jitter": "0.4,0.4,0.4,0.2",
    "keep": "best",
}
CIFAR_BATCH = 96  # the default of `--batch_size`; the default of `--learning_rate` suits it


def add_network_arguments(parser: Parser, group: Any, preset: Mapping[str, Any]) -> None:
    """Adds the arguments that say which network it is, the same for training and testing.

    `preset`: the defaults of `--preset imagenet`.
    """
    parser.presets = {"imagenet": preset}
    what = "use the authors' settings for ImageNet; other arguments override them"
    group.add_argument("--preset", choices=parser.presets, help=what)
    known = ", ".join(Cells.names())
    what = f"the network's architecture: {known}; a run's folder; or JSON or Genotype(...), as text or in a file"
    group.add_argument("--arch", type=Cells.canonical, default="DARTS", help=what)
    group.add_argument("--space", default="darts", help=f"space of --arch: {SPACE_HELP}")
    cli.add_space_argument(group, "--space_arg", "space")
    what = "number of channels of the first cells; None: 36, or the space's default"
    group.add_argument("--init_channels", type=cli.positive_int, help=what)
    group.add_argument("--layers", type=cli.positive_int, help="number of cells; None: 20, or the space's default")
    group.add_argument("--auxiliary", action="store_true", help="the network has the auxiliary head")
    what = (
        "build this network from the cells of --space darts; the stem of imagenet divides height and width by 8; auto: "
        "choose by the size of the images"
    )
    group.add_argument("--network", choices=["auto", *cli.NETWORKS], default="auto", help=what)
    what = (
        "crop the centre of each image to a square of this share of its shorter side; for --dataset folder and imagenet"
    )
    share = cli.number(float, lambda x: 0.1 <= x <= 1, "a number from 0.1 to 1")
    group.add_argument("--centre_crop", type=share, default=1.0, help=what)


def add_arguments(parser: Parser) -> None:
    """Adds the arguments of these recipes."""
    add = parser.add_argument_group("other recipes (docs/imagenet.md)").add_argument
    what = "use this optimizer; adam needs a far lower --learning_rate, such as 1e-3"
    add("--optimizer", choices=["sgd", "adam"], default="sgd", help=what)
    what = "multiply the learning rate by --gamma every so many epochs; 0: cosine schedule"
    add("--decay_period", type=cli.non_negative_int, default=0, help=what)
    add("--gamma", type=cli.proportion, default=0.97, help="multiply the learning rate by this; see --decay_period")
    batch = IMAGENET["batch_size"]
    what = f"multiply the learning rate by --batch_size / {CIFAR_BATCH}; with --preset imagenet / {batch}"
    add("--scale_lr", action="store_true", help=what)
    what = "raise the learning rate linearly from a hundredth during this many epochs"
    add("--lr_warmup_epochs", type=cli.non_negative_int, default=0, help=what)
    what = "smooth the labels of the training loss by this share"
    add("--label_smoothing", type=cli.probability, default=0.0, help=what)
    what = (
        "crop training images at random; pad: after padding by an eighth; resized: with torchvision's "
        "RandomResizedCrop, for --dataset folder or imagenet"
    )
    add("--crop", choices=["pad", "resized"], default="pad", help=what)
    what = "change brightness, contrast, saturation and hue at random by these shares; needs --crop resized"
    add("--color_jitter", type=color_jitter, default="0,0,0,0", help=what)


def check(args: argparse.Namespace) -> None:
    """Raises `UserError` if these arguments cannot be combined."""
    if args.decay_period and args.learning_rate_min:
        raise UserError(
            "--learning_rate_min belongs to the cosine schedule, which --decay_period replaces: leave one of them out"
        )
    if args.lr_warmup_epochs >= args.epochs:
        raise UserError(f"--lr_warmup_epochs {args.lr_warmup_epochs} are all of the {args.epochs} epochs: lower it")
    if any(jitter(args.color_jitter)) and args.crop != "resized":
        raise UserError("--color_jitter goes with --crop resized: add it")


def color_jitter(text: str) -> str:
    """Brightness, contrast, saturation and hue of torchvision's ColorJitter, as `jitter` reads them."""
    try:
        brightness, contrast, saturation, hue = jitter(text)
        ColorJitter(brightness, contrast, saturation, hue)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not four numbers, such as 0.4,0.4,0.4,0.2, none below 0 and the last at most 0.5"
        ) from None
    return text


def jitter(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


def optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    lr = args.learning_rate
    if args.scale_lr:
        lr *= args.batch_size / (CIFAR_BATCH if args.preset is None else IMAGENET["batch_size"])
    weights, options = list(model.parameters()), {"lr": lr, "weight_decay": args.weight_decay}
    if args.optimizer == "adam":
        return utils.optimizer(torch.optim.Adam, weights, betas=(args.momentum, 0.999), **options)
    return utils.optimizer(torch.optim.SGD, weights, momentum=args.momentum, **options)


def scheduler(optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate epoch by epoch, as in torchvision's references."""
    schedules = torch.optim.lr_scheduler
    main: torch.optim.lr_scheduler.LRScheduler
    if args.decay_period:
        main = schedules.StepLR(optimizer, args.decay_period, gamma=args.gamma)
    else:
        epochs = args.epochs - args.lr_warmup_epochs
        main = schedules.CosineAnnealingLR(optimizer, epochs, eta_min=args.learning_rate_min)
    if not args.lr_warmup_epochs:
        return main
    warmup = schedules.LinearLR(optimizer, start_factor=0.01, total_iters=args.lr_warmup_epochs)
    return schedules.SequentialLR(optimizer, [warmup, main], [args.lr_warmup_epochs])
