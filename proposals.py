"""The commands that a finished search proposes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

# The sizes of the paper's search and training.
PAPER = {"init_channels": (16, 36), "layers": (8, 20), "epochs": (50, 600), "batch_size": (64, 96)}


def train_commands(args: argparse.Namespace, run: Path, images: int) -> dict[str, str]:
    """{purpose: command}: commands that train what the search in `run` found, on so many images, at the search's scale
    and at the paper's size."""
    commands = {"train what was found": train_command(args, run, proportional_sizes(args, images))}
    papers = train_command(args, run, {})
    if args.space == "darts" and papers not in commands.values():
        commands["train it by the paper's recipe, which takes days on a GPU"] = papers
    return commands


def proportional_sizes(args: argparse.Namespace, images: int) -> dict[str, int]:
    """{argument of train.py: value}: the search's sizes, multiplied as the paper's training multiplies those of its
    search.

    A network outside of the space of DARTS keeps the search's channels and cells, which the found architecture may
    depend on.
    """
    searched = {name: getattr(args, name) for name in PAPER if getattr(args, name) is not None}
    scaled = {name: round(value * PAPER[name][1] / PAPER[name][0]) for name, value in searched.items()}
    scaled["batch_size"] = min(scaled["batch_size"], images)
    if args.space != "darts":
        return scaled | {name: searched[name] for name in ("init_channels", "layers") if name in searched}
    return {name: value for name, value in scaled.items() if value != PAPER[name][1]}


def train_command(args: argparse.Namespace, run: Path, sizes: dict[str, int]) -> str:
    """The command that trains the found network on the search's images, at these sizes."""
    words = ["python", "train.py", "--arch", run, "--cutout", "--gpu", args.gpu]
    words += ["--dataset", args.dataset, "--data", args.data, "--image_size", args.image_size]
    words += ["--skip_bad_images"] * args.skip_bad_images
    words += ["--channels", 1] * (args.channels == 1)
    words += ["--network", "imagenet"] * (args.stem == "imagenet")
    words += ["--auxiliary"] if args.space == "darts" else ["--space", args.space]
    words += ["--space_arg", args.space_arg] * (args.space != "darts" and bool(args.space_arg))
    for name, value in sizes.items():
        words += [f"--{name}", value]
    return shlex.join(map(str, words))
