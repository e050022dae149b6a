"""Images per second that one core decodes and augments: this project's loader and torchvision's reference pipeline,
side by side.

    python benchmarks/loading.py --data imagenet     # a folder with train/<class>/*.JPEG and val/<class>/*.JPEG
    python benchmarks/loading.py --data imagenet --color_jitter 0,0,0,0 --json loading.json

The ways take turns, batch by batch, in one process with one thread, as a worker of a loader has. "loader" is that of
`--dataset imagenet --crop resized`, up to the batch that a network gets. "torchvision" is an ImageFolder with the
transforms of its reference, stacked. "Pillow" and "torchvision.io" are the two ways to decode, followed by the same
random crop, flip and jitter.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import torch
import torchvision
import turns
from PIL import Image
from torchvision.transforms import v2

import data
import recipes
from image_files.files import FileImages


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Time the decoding and augmentation of images.")
    parser.add_argument("--data", required=True, help="the folder, as of --dataset imagenet")
    parser.add_argument("--image_size", type=cli.image_size, default=224)
    parser.add_argument("--color_jitter", type=recipes.color_jitter, default="0.4,0.4,0.4,0.2")
    parser.add_argument("--batch_size", type=cli.positive_int, default=16)
    parser.add_argument(
        "--batches", type=cli.positive_int, default=8, help="of each way, after one that is not counted"
    )
    parser.add_argument("--json", type=cli.output_file, help="file to write the figures to")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    ways = make_ways(args)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for batch in range(1 + args.batches):
        for name, way in ways.items():
            start = time.perf_counter()
            way(batch)
            seconds[name].append(time.perf_counter() - start)
    rates = {name: args.batch_size / statistics.median(times[1:]) for name, times in seconds.items()}
    machine = turns.machine("cpu", 1)
    print(
        f"images of {args.image_size}, jitter {args.color_jitter}; {machine}\n\n| way | images per second |\n|---|---|"
    )
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} |")
    turns.save(args.json, {"machine": machine, "arguments": vars(args), "images_per_second": rates, "seconds": seconds})


def make_ways(args: argparse.Namespace) -> dict[str, Callable[[int], torch.Tensor]]:
    """{way: function from a batch's number to the batch}."""
    size, jitter = args.image_size, recipes.jitter(args.color_jitter)
    options = data.Options("imagenet", args.data, size, crop="resized", color_jitter=args.color_jitter, workers=0)
    images = data.load(options)
    assert isinstance(images.train, FileImages)
    paths = [os.fsdecode(path) for path in images.train.paths]
    batches = data.train_batches(images, replace(options, batch_size=min(args.batch_size, len(paths))), "cpu")
    stream = chain.from_iterable(itertools.repeat(batches))
    distort = [
        v2.RandomResizedCrop(size),
        v2.RandomHorizontalFlip(),
        *([v2.ColorJitter(*jitter)] if any(jitter) else []),
    ]
    mean, std = images.mean, images.std
    normalise = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    reference = torchvision.datasets.ImageFolder(Path(args.data) / "train", v2.Compose([*distort, *normalise]))
    augment = v2.Compose(distort)

    def of_files(one: Callable[[str], torch.Tensor]) -> Callable[[int], torch.Tensor]:
        return lambda batch: torch.stack([one(paths[i]) for i in chosen(batch)])

    def chosen(batch: int) -> list[int]:
        return [i % len(images.train) for i in range(batch * args.batch_size, (batch + 1) * args.batch_size)]

    def pillow(path: str) -> torch.Tensor:
        with Image.open(path) as image:
            return v2.functional.pil_to_tensor(augment(image.convert("RGB")))

    def torchvision_io(path: str) -> torch.Tensor:
        return augment(torchvision.io.decode_image(path, torchvision.io.ImageReadMode.RGB))

    return {
        "loader": lambda batch: next(stream)[0],
        "torchvision": lambda batch: torch.stack([reference[i][0] for i in chosen(batch)]),
        "Pillow": of_files(pillow),
        "torchvision.io": of_files(torchvision_io),
    }


if __name__ == "__main__":
    cli.run(main)
