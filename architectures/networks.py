"""Builds networks of any space from the arguments of a command: of one architecture, or with all choices open."""

from __future__ import annotations

import argparse
import inspect

from torch import nn

from architectures import Architecture, load_space
from architectures.cells import Cells
from experiment.errors import UserError

LARGE = 96  # pixels: `--network auto` takes the network for ImageNet for images of this size or larger
IMAGENET_DIVIDES = 32  # height and width are divided by this, in the stem and two reductions


def build_discrete(args: argparse.Namespace, num_classes: int, architecture: Architecture) -> nn.Module:
    """The network of this architecture in `args.space`; for the space of DARTS the one that `args.network` names,
    `cifar` or `imagenet`.
    """
    if args.space == "darts":
        if args.space_arg:
            raise UserError(f"--space_arg {args.space_arg} needs another --space: darts has no such arguments")
        from model import NetworkCIFAR, NetworkImageNet

        assert isinstance(architecture, Cells)  # as all of this space
        network = NetworkImageNet if args.network == "imagenet" else NetworkCIFAR
        return network(
            args.init_channels, num_classes, args.layers, args.auxiliary, architecture.genotype, args.channels
        )
    if args.auxiliary:
        raise UserError("--auxiliary needs --space darts: only its network has an auxiliary head")
    from nas.loading import build_network
    from nas.mutators import apply_fixed_architecture

    return apply_fixed_architecture(build_network(args, num_classes, discrete=True), architecture.choices)


def set_sizes(args: argparse.Namespace, init_channels: int = 36, layers: int = 20) -> None:
    """Fills in `args.init_channels` and `args.layers` where they are None: by these, a training's defaults, for the
    space of DARTS, else by the network's own."""
    defaults: dict[str, int | None] = {"init_channels": init_channels, "layers": layers}
    if args.space != "darts":
        from nas.loading import load_network

        space, parameters = load_space(args.space), inspect.signature(load_network(args.space)).parameters
        own = {"init_channels": space.WIDTH, "layers": space.DEPTH}
        defaults = {name: parameters[key].default if key in parameters else None for name, key in own.items()}
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)


def choose_network(args: argparse.Namespace) -> str:
    """Replaces `auto` in `args.network`, and returns a line for the log. In other spaces than that of DARTS, it becomes
    None."""
    if args.space != "darts":
        if args.network == "imagenet":
            raise UserError(f"--network imagenet needs --space darts: {args.space} has its own network")
        args.network = None
        return f"network: that of {args.space}"
    why, size = "", args.image_size
    if args.network == "auto":
        args.network = "imagenet" if size >= LARGE and size % IMAGENET_DIVIDES == 0 else "cifar"
        why = f" (--network auto, for images of {size}x{size})"
    if args.network == "cifar":
        return f"network: cifar, whose first cells have the resolution of the images{why}"
    check_imagenet_stem("--network imagenet", args)
    return f"network: imagenet, whose stem divides height and width by 8{why}"


def check_imagenet_stem(option: str, args: argparse.Namespace) -> None:
    """Raises `UserError` if the stem for ImageNet, which `option` asks for, does not fit."""
    if args.image_size < 2 * IMAGENET_DIVIDES or args.image_size % IMAGENET_DIVIDES:
        raise UserError(
            f"{option} needs images of a multiple of {IMAGENET_DIVIDES} pixels, from 64 on: --image_size is "
            f"{args.image_size}"
        )
    if args.init_channels % 2:
        raise UserError(f"{option} halves the channels in its stem: --init_channels {args.init_channels} is odd")
