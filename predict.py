"""Predicts the classes of images with a trained network, from Python or as a command.

    from predict import load
    net = load("runs/x")
    [[(name, probability), *others]] = net.predict(["photo.jpg"])

    python predict.py runs/x photo.jpg more_photos/ --top 3

Prints a line for each image: its classes, the most probable first. Only the run's folder is needed, not the images of
its training.
"""

from __future__ import annotations

from experiment import cli, errors

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import torch
from PIL import Image
from torch import Tensor, nn

import data
import utils
from architectures import SPACE_HELP, trained
from architectures.trained import Trained
from experiment.errors import UserError
from image_files import files, folders
from speed import layers

Prediction = list[tuple[str, float]]  # classes and their probabilities, the most probable first


class Logits(nn.Module):
    """A network in evaluation mode without auxiliary head: normalised images (B, C, S, S) to logits (B, classes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if hasattr(network, "auxiliary_head"):
            del network.auxiliary_head  # used in training only
        self.network = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        output = self.network(x)
        return output[0] if isinstance(output, tuple) else output


class Classifier:
    """A trained network. `model` maps images as `preprocess` returns them, (B, C, S, S), to logits (B, classes);
    `classes` are their names; `image_size` is S; `description` is the content of `network.json`.
    """

    def __init__(self, description: Trained, model: Logits, device: torch.device | str) -> None:
        self.description, self.classes, self.image_size = description, description.classes, description.image_size
        self.device = torch.device(device)
        self.model = model.to(self.device)

    def preprocess(self, image: Image.Image | str | os.PathLike[str]) -> Tensor:
        """(C, S, S), float32, of an opened image or one in a file, processed exactly as in the network's evaluation.

        Raises:
            UserError: the file cannot be read or decoded. Errors of an opened image are those of `files.pixels`.
        """
        known = self.description
        shape = known.image_size, known.channels, known.centre_crop
        if isinstance(image, Image.Image):
            pixels = files.pixels(image, *shape)
        elif isinstance(image, str | os.PathLike):
            pixels = files.decode(os.fspath(image), *shape)
        else:
            raise UserError(
                f"an image is a path or an opened image, not {type(image).__name__}: PIL.Image.fromarray opens an array"
            )
        return data.normalise(pixels, known.mean, known.std)

    @torch.no_grad()
    def predict(
        self, images: Iterable[Image.Image | str | os.PathLike[str] | Tensor], top: int = 5
    ) -> list[Prediction]:
        """For each image, opened, in a file, or from `preprocess`, the `top` most probable classes. All images are one
        batch. Raises the errors of `preprocess`.
        """
        batch = [x if isinstance(x, Tensor) else self.preprocess(x) for x in images]
        if not batch:
            return []
        logits = self.model(torch.stack(batch).to(self.device))
        probabilities, indices = logits.softmax(1).topk(min(top, len(self.classes)), dim=1)
        rows = zip(probabilities.tolist(), indices.tolist(), strict=True)
        return [[(self.classes[index], value) for value, index in zip(*row, strict=True)] for row in rows]


def load(run: str | os.PathLike[str], device: torch.device | str = "cpu", space: str | None = None) -> Classifier:
    """The trained network of a run.

    Args:
        run: the folder of a training run, or a file that `export.py --format safetensors` wrote. It may be untrusted.
        space: if the network's space is a class in a Python file, its `file.py:Class` again, which allows this code to
            run.

    Raises:
        UserError: `run` is neither a run's folder nor such a file, or it is damaged.
    """
    path = Path(run)
    if path.suffix == ".safetensors" and not path.is_dir():
        description, file = trained.within(path), path
    else:
        description = trained.read(path)
        file = path / description.weights
    network = description.build(file, space)
    if cli.runs_code(description.space):  # an export of it names the file where it lies here
        description = msgspec.structs.replace(description, space=space)
    return Classifier(description, Logits(network), device)


def find_images(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """(`paths` with folders replaced by the images in them, sorted; lines about what else these folders hold).

    Raises:
        UserError: a folder cannot be read, or holds no image.
    """
    found: list[str] = []
    left_out = folders.LeftOut()
    for path in paths:
        try:
            images = folders.images_in(path, left_out) if os.path.isdir(path) else [path]
        except OSError as error:
            raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from None
        if not images:
            kinds = ", ".join(folders.IMG_EXTENSIONS)
            raise UserError(f"the folder {path} holds no image ({kinds}); other kinds can be named one by one")
        found += images
    return found, [*folders.told(left_out)]


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Predict the classes of images with a trained network.")
    parser.add_argument("run", help="the folder of a training run, or a .safetensors file of export.py")
    images = "an image file of any format that Pillow reads, or a folder of such files"
    parser.add_argument("images", nargs="+", metavar="image", help=images)
    parser.add_argument("--top", type=cli.positive_int, default=5, help="name this many classes for each image")
    line = 'print a line of JSON for each image: {"image": ..., "classes": {name: probability}}'
    parser.add_argument("--json", action="store_true", help=line)
    parser.add_argument("--batch_size", type=cli.positive_int, default=32, help="images per batch")
    gpu = "compute on the CUDA device of this number; -1: on the CPU"
    parser.add_argument("--gpu", type=cli.device_number, default=0, help=gpu)
    parser.add_argument("--space", help=f"allow the code of the run's space, if it is in a file: {SPACE_HELP}")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    device = utils.select_device(args.gpu)
    net = load(args.run, device, args.space)
    layers.set_memory_format(net.model, device)
    paths, notes = find_images(args.images)
    for note in notes:
        errors.tell(note)
    width, class_width = (max(len(errors.printable(text)) for text in texts) for texts in (paths, net.classes))
    failures = 0
    for start in range(0, len(paths), args.batch_size):
        readable: list[tuple[str, Tensor]] = []
        for path in paths[start : start + args.batch_size]:
            try:
                readable.append((path, net.preprocess(path)))
            except UserError as error:
                errors.tell(str(error))
                failures += 1
        predictions = net.predict([image for _, image in readable], args.top)
        for (path, _), prediction in zip(readable, predictions, strict=True):
            if args.json:
                print(json.dumps({"image": path, "classes": dict(prediction)}))
                continue
            cells = [f"{errors.printable(name):<{class_width}} {100 * share:6.2f}%" for name, share in prediction]
            print("  ".join([f"{errors.printable(path):<{width}}", *cells]))
    if failures:
        raise UserError(f"{failures} of {len(paths)} images could not be read: see above")


if __name__ == "__main__":
    cli.run(main)
