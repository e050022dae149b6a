"""Exports a trained network to a format that other programs read.

    python export.py runs/x --format onnx            # for onnxruntime and others
    python export.py runs/x --format torch           # for torch.export.load, which needs none of this code
    python export.py runs/x --format safetensors     # weights and description in one file, for `predict.load`

Writes a file beside the weights, for batches of any size, and compares its probabilities with PyTorch's on real images.
The file also contains the class names and how images are preprocessed (docs/own_images.md shows how to use both).
"""

from __future__ import annotations

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse
import json
import statistics
import tempfile
import timeit
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor

import data
import utils
from architectures import SPACE_HELP, trained
from experiment import files
from experiment.errors import UserError, printable
from experiment.weights import optional
from predict import Classifier, find_images, load

TOLERANCE = 1e-5  # of probabilities
IMAGES = 64  # compared at most

Run = Callable[[Tensor], Tensor]  # images (B, C, S, S) to logits
BATCH = ({0: torch.export.Dim("batch")},)


def metadata(net: Classifier) -> dict[str, str]:
    """Every field of `network.json`, the whole file, both as JSON, and a text about the preprocessing of images."""
    square = "the centre square, resized to image_size by Pillow's BILINEAR"
    if net.description.centre_crop != 1:
        shorter = round(net.image_size / net.description.centre_crop)
        square = f"resized by Pillow's BILINEAR, the shorter side to {shorter}, then the centre square of image_size"
    preprocessing = (
        f"turned upright by EXIF, on white where transparent, {square}; RGB / 255 (L / 255 for one channel), minus "
        "mean, divided by std; float32, (batch, channels, image_size, image_size)"
    )
    known = net.description.json
    fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()}
    return fields | {"preprocessing": preprocessing, trained.FILE: json.dumps(known)}


# Each of these functions writes a file, and returns the name of what runs it, and a function that does.


def export_onnx(net: Classifier, path: Path) -> tuple[str, Run]:
    """Writes an ONNX file with the input `images`, (batch, C, S, S), and the output `logits`, (batch, classes)."""
    optional("onnx"), optional("onnxscript")
    runtime = optional("onnxruntime")
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    program = torch.onnx.export(net.model, (_zeros(net, 2),), dynamo=True, verbose=False, dynamic_shapes=BATCH, **names)
    assert program is not None
    program.model.metadata_props.update(metadata(net))
    path.write_bytes(program.model_proto.SerializeToString())
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return f"onnxruntime {runtime.__version__}", run


def export_torch(net: Classifier, path: Path) -> tuple[str, Run]:
    """Writes a file for `torch.export.load`, with the metadata as its extra files."""
    program = torch.export.export(net.model, (_zeros(net, 2),), dynamic_shapes=BATCH)
    with open(path, "wb") as file:  # given a path, PyTorch warns of other endings than .pt2
        torch.export.save(program, file, extra_files=metadata(net))
    return f"torch.export, PyTorch {torch.__version__}", torch.export.load(path).module()


def export_safetensors(net: Classifier, path: Path) -> tuple[str, Run]:
    """Writes a file for `predict.load`: the `state_dict()` without the auxiliary head, and the metadata."""
    inner = Classifier(replace(net.description, auxiliary=False, weights=path.name), net.model, net.device)
    tensors = {name: tensor.contiguous() for name, tensor in net.model.network.state_dict().items()}
    optional("safetensors.torch").save_file(tensors, path, metadata=metadata(inner))
    return f"PyTorch {torch.__version__}", load(path, space=net.description.space).model


FORMATS: dict[str, tuple[str, Callable[[Classifier, Path], tuple[str, Run]]]] = {
    "onnx": ("network.onnx", export_onnx),
    "torch": ("network.pt2", export_torch),
    "safetensors": ("network.safetensors", export_safetensors),
}


@torch.no_grad()
def compare(net: Classifier, run: Run, images: Tensor) -> float:
    """The largest difference between probabilities of `net` and `run` on `images`, (B, C, S, S), as one batch and the
    first four one by one.
    """
    expected = net.model(images).softmax(1)
    alone = torch.cat([run(image[None]) for image in images[:4]])
    found = torch.cat([run(images), alone]).softmax(1)
    return (found - torch.cat([expected, expected[:4]])).abs().max().item()


def real_images(net: Classifier, run: str, paths: list[str]) -> Tensor:
    """Up to `IMAGES` preprocessed images: from `paths`, or if that is empty from the run's test set.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    if paths:
        found, _ = find_images(paths)
        return torch.stack([net.preprocess(path) for path in found[:: -(-len(found) // IMAGES)]])
    known = net.description
    try:
        root = cli.read_config(run)["arguments"].get("data")
        shape = known.image_size, known.channels, known.centre_crop
        options = data.Options(known.dataset, str(root), *shape, skip_bad_images=known.dataset in data.FOLDERS)
        images = data.load_test(options, known.classes, (known.mean, known.std))
    except (OSError, ValueError) as error:
        raise UserError(f"the images to compare the export on are missing ({error}): name some with --images") from None
    count = len(images.test)
    batch, _ = images.test.__getitems__(range(0, count, -(-count // IMAGES)))
    return data.normalise(batch, known.mean, known.std)


@torch.no_grad()
def latency(run: Run, batch: Tensor) -> float:
    """Milliseconds per image, the median of ten runs after a first one."""
    _, *times = timeit.repeat(lambda: run(batch), number=1, repeat=11)
    return 1e3 * statistics.median(times) / len(batch)


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        description="Export a trained network to a format that other programs read, and compare both on real images."
    )
    parser.add_argument("run", help="the folder of a training run")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="format of the exported file")
    output = "the file to write; None: network.onnx, .pt2 or .safetensors in the run's folder"
    parser.add_argument("--output", type=cli.output_file, help=output)
    images = "compare the two on these files or folders; none: on the run's test set"
    parser.add_argument("--images", nargs="+", default=[], help=images)
    parser.add_argument("--space", help=f"allow the code of the run's space, if it is in a file: {SPACE_HELP}")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    net = load(args.run, space=args.space)
    images = real_images(net, args.run, args.images)
    name, export = FORMATS[args.format]
    path = Path(args.output or Path(args.run) / name)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):  # the exporters' warnings
        temporary = Path(folder) / path.name
        runner, run = export(net, temporary)
        difference = compare(net, run, images)
        if not difference <= TOLERANCE:  # a wrong file does not replace a good one
            raise UserError(
                f"{path} was not written: it would compute something else than the run ({difference:.1e}); please "
                "report it"
            )
        try:
            files.write({path: temporary.read_bytes()})
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    parameters = sum(parameter.numel() for parameter in net.model.parameters()) / 1e6
    multiply_adds = utils.count_multiply_adds(net.model, net.image_size, net.description.channels)
    one, many = (latency(run, _zeros(net, batch)) for batch in (1, 32))
    where = f"{runner}, CPU, {torch.get_num_threads()} threads"
    print(f"wrote {printable(str(path))}: {path.stat().st_size / 1e6:.2f} MB, {len(net.classes)} classes")
    print(f"{parameters:.3f} million parameters, {multiply_adds:.1f} million multiply-adds per image")
    print(f"probabilities differ by at most {difference:.1e} from PyTorch's on {len(images)} images ({runner})")
    print(f"{one:.2f} ms per image at batch 1, {many:.2f} ms at batch 32 ({where})")


def _zeros(net: Classifier, batch: int) -> Tensor:
    return torch.zeros(batch, net.description.channels, net.image_size, net.image_size)


if __name__ == "__main__":
    cli.run(main)
