"""The description of a trained network: `network.json` in its run's folder holds everything except the weights that using it needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

import networks
from architecture import Architecture
from data import ImageData
from experiment import cli, files
from experiment.errors import UserError, shorten, shown
from experiment.run import versions
from experiment.weights import load_weights, read_metadata
from registry import load_space

FILE = "network.json"


@dataclass(frozen=True)
class Trained:
    """Everything that using a trained network needs, except its weights. The fields are the keys of `network.json`."""

    space: str
    architecture: Architecture
    init_channels: int | None
    layers: int | None
    network: str | None  # `cifar` or `imagenet`; None in spaces other than that of DARTS
    space_arg: str | None  # arguments of the space's constructor, as on the command line
    auxiliary: bool  # whether the weights include an auxiliary head's
    dataset: str
    classes: tuple[str, ...]  # in the order of the logits
    image_size: int
    centre_crop: float  # of an image's shorter side, the share that the square keeps which is resized to `image_size`
    channels: int  # of the images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float  # in percent
    measured_on: str
    weights: str  # the file beside network.json
    versions: dict[str, str]

    @property
    def json(self) -> dict[str, Any]:
        return asdict(self) | {"architecture": self.architecture.json}

    @classmethod
    def of(cls, content: Any) -> Trained:
        """The description in decoded JSON, which may be untrusted.

        Raises:
            ValueError: it is not a valid description.
        """
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        if differing := sorted(content.keys() ^ _FIELDS.keys()):
            raise ValueError(f"it belongs to another version: {shown(differing)} are missing or unknown")
        for name, (accepted, description) in _FIELDS.items():
            if not accepted(content[name]):
                raise ValueError(f"{name} is {shown(content[name])}, not {description}")
        if content["space"] == "darts" and None in (content["init_channels"], content["layers"]):
            raise ValueError("a network of cells needs init_channels and layers")
        if content["network"] == "imagenet" and (content["image_size"] % networks.IMAGENET_DIVIDES or content["image_size"] < 64):
            raise ValueError(f"image_size is {content['image_size']}, not one of the network for ImageNet")
        if not len(content["mean"]) == len(content["std"]) == content["channels"]:
            raise ValueError("mean and std are not of as many channels as the images have")
        lists = {name: tuple(content[name]) for name in ("classes", "mean", "std")}
        return cls(**content | lists | {"architecture": load_space(content["space"]).of(content["architecture"])})

    def build(self, weights: str | Path, trusted: str | None = None) -> nn.Module:
        """The network with its weights, on the CPU.

        Args:
            weights: the file with the weights.
            trusted: a space, `file.py:Class`, whose code may be run. No other file is run.

        Raises:
            UserError: the space is in a file that is not `trusted`, the network cannot be built, or the weights do not fit.
        """
        if cli.runs_code(self.space) and self.space != trusted:
            raise UserError(
                f"this network's space is the code in {shorten(self.space)}: if you trust that file, add --space {shorten(self.space)}"
            )
        args = argparse.Namespace(
            **{name: getattr(self, name) for name in ("space", "init_channels", "layers", "network", "space_arg", "auxiliary", "channels")}
        )
        network = networks.build_discrete(args, len(self.classes), self.architecture)
        load_weights(network, str(weights))
        return network


def describe(
    args: argparse.Namespace, images: ImageData, architecture: Architecture, weights: str, accuracy: float, measured_on: str
) -> dict[str, Any]:
    """The content of `network.json` for a network that `train.py` trains.

    Args:
        args: the arguments of the run.
        images: the images that it is trained on.
        weights: the name of the file with the weights.
        accuracy: the accuracy of these weights, in percent.
        measured_on: a text about the images that `accuracy` was measured on.
    """
    return Trained(
        space=args.space,
        architecture=architecture,
        init_channels=args.init_channels,
        layers=args.layers,
        network=args.network,
        space_arg=args.space_arg,
        auxiliary=args.auxiliary,
        dataset=images.name,
        classes=images.classes,
        image_size=images.image_size,
        centre_crop=images.centre_crop,
        channels=len(images.mean),
        mean=images.mean,
        std=images.std,
        accuracy=accuracy,
        measured_on=measured_on,
        weights=weights,
        versions=versions(),
    ).json


def read(run: str | Path) -> Trained:
    """The description in the folder of a training run, which may be untrusted.

    Raises:
        UserError: it is not such a folder, or the file is not valid. The message says what is wrong.
    """
    folder = Path(run)
    path = folder / FILE
    if not folder.is_dir():
        raise UserError(f"{shorten(str(run))} is not a folder: name that of a training run")
    if not path.exists():
        raise UserError(f"{shorten(str(run))} {_instead(folder)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    return _parsed(content, path)


def within(path: str | Path) -> Trained:
    """The description in a .safetensors file, which may be untrusted.

    Raises:
        UserError: it cannot be read, or has no description.
    """
    metadata = read_metadata(str(path))
    if FILE not in metadata:
        raise UserError(f"{path} does not describe its network: export.py --format safetensors writes files that do")
    return _parsed(metadata[FILE], path)


def _parsed(content: bytes | str, path: str | Path) -> Trained:
    try:
        return Trained.of(files.parse_json(content))
    except ValueError as error:
        raise UserError(f"{path} does not describe a trained network: {error}") from None


def beside(weights: str | Path) -> Trained | None:
    """The description in the folder of a file with weights; None if there is none.

    Raises:
        UserError: see `read`.
    """
    folder = Path(weights).parent
    return read(folder) if (folder / FILE).exists() else None


def _instead(folder: Path) -> str:
    """For the error message: what kind of folder has no `network.json`, and what to do."""
    try:
        stage = cli.read_config(folder).get("stage")
    except (OSError, ValueError):
        return f"holds no {FILE}: it is not the folder of a training run"
    if stage == "search":
        return "is a search, not a training: train its architecture with train.py --arch, and name the folder of that run"
    return f"holds no {FILE}: train.py writes it after its first epoch; test.py also takes --model_path"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000 and "\0" not in value


def _is_count(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= most


def _are(accepted: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, list) and len(values) > 0 and all(map(accepted, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e6  # false for nan


# The bounds prevent an untrusted file from using all memory and time. They are far above real networks.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "space": (_is_text, "the name of a space"),
    "architecture": (lambda value: isinstance(value, dict), "an object"),
    "init_channels": (lambda value: value is None or _is_count(4096)(value), "a number of channels"),
    "layers": (lambda value: value is None or _is_count(1024)(value), "a number of cells"),
    "network": (lambda value: value in (None, *cli.NETWORKS), "the name of a network"),
    "space_arg": (lambda value: value is None or _is_text(value), "a text"),
    "auxiliary": (lambda value: isinstance(value, bool), "true or false"),
    "dataset": (_is_text, "the name of a dataset"),
    "classes": (lambda value: _are(_is_text)(value) and len(set(value)) == len(value), "a list of names, each once"),
    "image_size": (lambda value: _is_count(4096)(value) and value % 8 == 0, "a multiple of 8, from 8 to 4096"),
    "centre_crop": (lambda value: _is_number(value) and 0.1 <= value <= 1, "a share from 0.1 to 1"),
    "channels": (lambda value: type(value) is int and value in (1, 3), "1 or 3"),
    "mean": (_are(_is_number), "a list of numbers"),
    "std": (_are(lambda value: _is_number(value) and value > 0), "a list of numbers above 0"),
    "accuracy": (lambda value: _is_number(value) and 0 <= value <= 100, "a percentage"),
    "measured_on": (_is_text, "a text"),
    "weights": (lambda value: _is_text(value) and value not in ("", "..") and Path(value).name == value, "the name of a file"),
    "versions": (lambda value: isinstance(value, dict) and all(map(_is_text, value.values())), "an object of texts"),
}
