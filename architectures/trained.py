"""`network.json`, the description of a trained network. With the weights, it is all that using the network needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import msgspec
from torch import nn

from architectures import Architecture, load_space, networks
from data import ImageData
from experiment import cli
from experiment.errors import UserError, shorten
from experiment.run import versions
from experiment.weights import load_weights, read_metadata

FILE = "network.json"
# The arguments of train.py that define the network.
ARGUMENTS = ("space", "init_channels", "layers", "network", "space_arg", "auxiliary")


class Trained(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that using a trained network needs, except its weights."""

    space: str
    architecture: dict[str, Any]
    init_channels: int | None
    layers: int | None
    network: Literal["cifar", "imagenet"] | None  # None in spaces other than that of DARTS
    space_arg: str | None  # arguments of the space's constructor, as on the command line
    auxiliary: bool  # whether the weights include an auxiliary head's
    dataset: str
    classes: tuple[str, ...]  # in the order of the logits
    image_size: int
    centre_crop: float  # side of the central square that is resized, as a share of the image's shorter side
    channels: Literal[1, 3]  # of the images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float  # in percent
    measured_on: str
    weights: str  # the file beside network.json
    versions: dict[str, str]

    @property
    def json(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)

    def build(self, weights: str | Path, trusted: str | None = None) -> nn.Module:
        """The network with its weights, on the CPU.

        `trusted` is a space, `file.py:Class`, whose code may be run, in any folder. No other file is run.
        """
        args = argparse.Namespace(**{name: getattr(self, name) for name in (*ARGUMENTS, "channels", "image_size")})
        if self.network == "imagenet":
            networks.check_imagenet_stem("network imagenet", args)
        if cli.runs_code(self.space):
            if trusted is None or Path(trusted).name != Path(self.space).name:
                space = shorten(self.space)
                raise UserError(
                    f"this network's space is the code in {space}: if you trust that file, add --space {space}"
                )
            args.space = trusted
        network = networks.build_discrete(args, len(self.classes), load_space(self.space).of(self.architecture))
        load_weights(network, str(weights))
        return network


def describe(
    args: argparse.Namespace,
    images: ImageData,
    architecture: Architecture,
    weights: str,
    accuracy: float,
    measured_on: str,
) -> dict[str, Any]:
    """The content of `network.json` for a network that `train.py` trains; arguments as in `Trained`."""
    of_network = {name: getattr(args, name) for name in ARGUMENTS}
    of_images = {name: getattr(images, name) for name in ("classes", "image_size", "centre_crop", "mean", "std")}
    return {
        **of_network,
        **of_images,
        "architecture": architecture.json,
        "dataset": images.name,
        "channels": len(images.mean),
        "accuracy": accuracy,
        "measured_on": measured_on,
        "weights": weights,
        "versions": versions(),
    }


def read(run: str | Path) -> Trained:
    """The description in the folder of a training run, which may be untrusted."""
    path = Path(run) / FILE
    try:
        return _parsed(path.read_bytes(), path)
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): name the folder of a run of train.py, which writes it after its "
            f"first epoch"
        ) from None


def beside(weights: str | Path) -> Trained | None:
    """The description in the folder of a file with weights; None if there is none."""
    folder = Path(weights).parent
    return read(folder) if (folder / FILE).exists() else None


def within(path: str | Path) -> Trained:
    """The description in a .safetensors file, which may be untrusted."""
    metadata = read_metadata(str(path))
    if FILE not in metadata:
        raise UserError(f"{path} does not describe its network: export.py --format safetensors writes files that do")
    return _parsed(metadata[FILE], path)


def _parsed(content: bytes | str, path: str | Path) -> Trained:
    try:
        found = msgspec.json.decode(content, type=Trained)
        load_space(found.space).of(found.architecture)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} does not describe a trained network: {error}") from None
    return found
