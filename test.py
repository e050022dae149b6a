"""Stage 3: the accuracy of saved weights on the test set. Weights of the original authors also load.

    python test.py eval-EXP-20260101-120000      # a run of train.py: its folder holds everything else
    python test.py --auxiliary --model_path cifar10_model.pt --gpu 0    # the authors' weights: they report 97.37%
    python test.py --preset imagenet --auxiliary --model_path imagenet_model.pt --gpu 0      # docs/imagenet.md

Prints loss and accuracy. Without a run's folder, the arguments that define the network must be the same as in its
training.
"""

from __future__ import annotations

from experiment import cli, errors

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

import data
import recipes
import utils
from architectures import networks, read_architecture, trained
from architectures.trained import Trained
from experiment import console
from experiment.errors import UserError
from experiment.weights import load_weights
from speed import layers

# Arguments that define the network and its images. For a run's folder, they cannot be changed.
FIXED = ("arch", *trained.ARGUMENTS, "image_size", "centre_crop", "channels")


def parse_arguments() -> tuple[argparse.Namespace, Trained | None]:
    """The arguments, and the run that they name or None.

    Arguments that are not given have their values from the run's training.
    """
    parser = cli.Parser(description="Measure the accuracy of saved weights on the test set.")
    parser.add_argument("run", nargs="?", help="the folder of a training run; without it, give --arch and --model_path")
    cli.add_data_arguments(parser, data.DATASETS)
    cli.add_device_arguments(parser)
    cli.accept_unread(parser, "--seed", "--cutout_length", "--drop_path_prob", nargs=1)
    cli.accept_unread(parser, "--cutout", nargs=0)
    parser.add_argument("--batch_size", type=cli.positive_int, default=96, help="images per batch")
    parser.add_argument("--report_freq", type=cli.positive_int, default=50, help="print a line every so many batches")
    parser.add_argument("--model_path", default="EXP/model.pt", help="the file of the saved weights, a state_dict")
    recipes.add_network_arguments(parser, parser, recipes.IMAGENET_NETWORK)
    args = parser.parse_args()
    if args.run is None:
        networks.set_sizes(args)
        networks.choose_network(args)
        return args, trained.beside(args.model_path)
    network = trained.read(args.run)
    own = {"arch": args.run} | {name: getattr(network, name) for name in FIXED[1:]}
    if cli.runs_code(network.space):  # code: the command line must name it
        own["space"] = args.space
    parser.set_defaults(dataset=network.dataset, model_path=str(Path(args.run) / network.weights), **own)
    if Path(args.run, "config.json").exists():
        arguments = cli.read_config(args.run)["arguments"]
        parser.set_values({name: arguments.get(name) for name in ("data", "skip_bad_images", "gpu")})
    args = parser.parse_args()
    for name, value in own.items():
        if getattr(args, name) != value:
            raise UserError(
                f"--{name} {getattr(args, name)}: the network in {args.run} has {value}, which is fixed: leave it out"
            )
    return args, network


def load_images(args: argparse.Namespace, options: data.Options, network: Trained | None) -> data.ImageData:
    """The images to measure on, with size, classes and statistics of `network` if it is known."""
    if network is None:
        return data.load_test(options)
    if args.image_size != network.image_size:
        raise UserError(
            f"--image_size {args.image_size}: {args.model_path} was trained on images of {network.image_size} pixels"
        )
    options = replace(options, channels=network.channels, centre_crop=network.centre_crop)
    return data.load_test(options, network.classes, (network.mean, network.std))


def main() -> None:
    args, network = parse_arguments()
    architecture = None if args.run else read_architecture(args.arch, args.space)
    device = utils.select_device(args.gpu)
    options = data.Options.of(args)
    images = data.on_device(load_images(args, options, network), device, args.data_on_device)
    for note in images.notes:
        print(errors.printable(note))
    if architecture is not None:
        model = networks.build_discrete(args, images.num_classes, architecture)
        load_weights(model, args.model_path, say=lambda line: print(errors.printable(line)))
    elif network is not None:
        model = network.build(args.model_path, trusted=args.space)
        print(errors.printable(f"the run says {network.accuracy:f} ({network.measured_on})"))
    model.to(device)
    layers.set_memory_format(model, device)
    multiply_adds = utils.count_multiply_adds(model, images.image_size, images.channels)
    utils.set_threads(args, 1e6 * multiply_adds * args.batch_size, device)
    print(f"param size = {utils.count_parameters_in_MB(model):.6f} million (the auxiliary head left out)")
    test_batches = data.test_batches(images, options, device)
    report = console.reporter("test", args.report_freq, len(test_batches), partial(print, flush=True))
    meters = utils.evaluate(model, test_batches, nn.CrossEntropyLoss(), report)
    print(f"test_loss {meters.loss.avg:f}")
    print(f"test_acc {meters.top1.avg:f}")
    if images.num_classes > 5:
        print(f"test_top5 {meters.top5.avg:f}")


if __name__ == "__main__":
    cli.run(main)
