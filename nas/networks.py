"""Builds networks in any space from command-line arguments: with all choices open, or with those of an architecture."""

from __future__ import annotations

import argparse
import inspect
import shlex
from pathlib import Path

from torch import nn

from experiment import cli
from experiment.errors import UserError, shorten
from model import NetworkCIFAR, NetworkImageNet
from nas.architecture import Architecture, names
from nas.mutables import reset_mutable_counter
from nas.mutators import apply_fixed_architecture
from nas.registry import constructor_arguments, load_space


def build_discrete(args: argparse.Namespace, num_classes: int, architecture: Architecture) -> nn.Module:
    """The network of this architecture in `args.space`; for the space of DARTS the one that `args.network` names, `cifar` or `imagenet`.

    Raises:
        UserError: the architecture is not one of the space, an operation does not work, or an auxiliary head outside of the space of DARTS.
    """
    if args.space == "darts":
        constructor_arguments("--space_arg", cli.assignments(args.space_arg or ""), (), ())
        network = NetworkImageNet if args.network == "imagenet" else NetworkCIFAR
        return network(args.init_channels, num_classes, args.layers, args.auxiliary, architecture.genotype, args.channels)
    if args.auxiliary:
        raise UserError("--auxiliary needs --space darts: only its network has an auxiliary head")
    return apply_fixed_architecture(build_network(args, num_classes), architecture.choices)


def build_network(args: argparse.Namespace, num_classes: int) -> nn.Module:
    """The network of `args.space` with all its choices open."""
    space = load_space(args.space)
    given = {space.width: args.init_channels, space.depth: args.layers} | ({"n_nodes": args.nodes} if args.space == "darts" else {})
    given = {name: value for name, value in given.items() if value is not None}
    signature = inspect.signature(space.network)
    if "num_classes" in signature.parameters:
        given["num_classes"] = num_classes
    if "in_channels" in signature.parameters:
        given["in_channels"] = args.channels
    elif args.channels != 3:
        raise UserError(f"--channels {args.channels} needs a network that takes in_channels, and {args.space} does not: leave it out")
    reserved = (space.width, space.depth, "num_classes", "in_channels", *given)
    given |= constructor_arguments("--space_arg", cli.assignments(args.space_arg or ""), (space.network,), reserved)[0]
    try:
        signature.bind(**given)
    except TypeError as error:
        raise UserError(f"--space {args.space} cannot be built with {given}: {error}") from None
    reset_mutable_counter()
    return space.network(**given)


def set_sizes(args: argparse.Namespace, init_channels: int, layers: int) -> None:
    """Fills in `args.init_channels` and `args.layers` where they are None: by these for the space of DARTS, else by the network's own."""
    space = load_space(args.space)
    parameters = inspect.signature(space.network).parameters
    for name, own, darts in (("init_channels", space.width, init_channels), ("layers", space.depth, layers)):
        if getattr(args, name) is None:
            default = parameters[own].default if own in parameters else None
            setattr(args, name, darts if args.space == "darts" else default)


LARGE = 96  # pixels: `--network auto` takes the network for ImageNet for images of this size or larger
IMAGENET_DIVIDES = 32  # height and width are divided by this, in the stem and two reductions


def choose_network(args: argparse.Namespace) -> str:
    """Replaces `auto` in `args.network`, and returns a line for the log. In spaces other than that of DARTS, it becomes None.

    Args:
        args: `init_channels` is set.

    Raises:
        UserError: the network does not fit the space, the size of the images or the number of channels.
    """
    if args.space != "darts":
        if args.network == "imagenet":
            raise UserError(f"--network imagenet needs --space darts: {args.space} has its own network")
        args.network = None
        return f"network: that of {args.space}"
    chosen, size = args.network == "auto", args.image_size
    if chosen:
        args.network = "imagenet" if size >= LARGE and size % IMAGENET_DIVIDES == 0 else "cifar"
    if args.network == "imagenet":
        check_imagenet_stem("--network imagenet", args)
        what = "imagenet, whose stem divides height and width by 8"
    else:
        what = "cifar, whose first cells have the resolution of the images"
    return f"network: {what}" + f" (--network auto, for images of {size}x{size})" * chosen


def check_imagenet_stem(option: str, args: argparse.Namespace) -> None:
    """Raises `UserError` if the stem for ImageNet, which `option` asks for, does not fit the images or `args.init_channels`."""
    if args.image_size < 2 * IMAGENET_DIVIDES or args.image_size % IMAGENET_DIVIDES:
        raise UserError(f"{option} needs images of a multiple of {IMAGENET_DIVIDES} pixels, from 64 on: --image_size is {args.image_size}")
    if args.init_channels % 2:
        raise UserError(f"{option} halves the channels in its stem: --init_channels {args.init_channels} is odd")


def read(args: argparse.Namespace) -> Architecture:
    """What `args.arch` stands for in `args.space`.

    Raises:
        UserError: it is not an architecture of the space, or is the folder of a run in another one.
    """
    if args.space != "darts" and args.arch in names("darts") and not Path(args.arch).exists():
        raise UserError(f"--arch {args.arch} belongs to --space darts: name a JSON file or a search's folder of --space {args.space}")
    try:
        space = cli.read_config(args.arch)["arguments"].get("space")
    except (OSError, ValueError):  # not a run's folder
        space = None
    if isinstance(space, str) and (space == "darts") != (args.space == "darts"):
        raise UserError(f"{shorten(args.arch)} is a run in another space: add {shlex.join(['--space', shorten(space)])}")
    return Architecture.read(args.arch, args.space)
