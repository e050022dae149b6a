"""Stage 3: the accuracy of saved weights on the test set, those of the original authors included.

    python test.py --auxiliary --model_path cifar10_model.pt --gpu 0      # the authors' weights of DARTS_V2: 97.37% by their account
    python test.py --arch eval-EXP-20260101-120000 --model_path eval-EXP-20260101-120000/weights.pt --auxiliary --gpu 0

Expect one number. The arguments that shape the network must be those of its training: train.py ends by printing the command.
"""

from __future__ import annotations

from experiment import cli, errors

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse

from torch import nn

import data
import genotypes
import utils
from experiment.weights import load_weights
from nas import registry, search
from speed import acceleration


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Measure the accuracy of saved weights on the test set.")
    cli.add_data_arguments(parser, data.DATASETS)
    cli.add_device_arguments(parser)
    cli.accept_unread(parser, "--seed", "--cutout_length", "--drop_path_prob", nargs=1)
    cli.accept_unread(parser, "--cutout", nargs=0)
    parser.add_argument("--batch_size", type=cli.positive_int, default=96)
    parser.add_argument("--report_freq", type=cli.positive_int, default=50, help="steps between two printed lines")
    parser.add_argument(
        "--arch", default="DARTS", help=f"{', '.join(genotypes.KNOWN)}; a JSON file; a run's folder; or Genotype(...) from a log"
    )
    parser.add_argument("--space", default="darts", help=registry.SPACE_HELP)
    parser.add_argument("--model_path", default="EXP/model.pt", help="the saved weights, a state_dict")
    parser.add_argument("--init_channels", type=cli.positive_int, help="channels of the first cells; None: 36, or the space's own number")
    parser.add_argument("--layers", type=cli.cell_count, help="cells; None: 20, or the space's own number")
    parser.add_argument("--auxiliary", action="store_true", help="the weights were trained with the auxiliary head")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    search.set_sizes(args, init_channels=36, layers=20)
    architecture = search.read(args)
    device = utils.select_device(args.gpu)
    images = data.load(args.dataset, args.data, args.image_size, args.workers, args.skip_bad_images)
    images = data.on_device(images, device, args.data_on_device)
    for note in images.notes:
        print(errors.printable(note))
    model = search.build_discrete(args, images.num_classes, architecture)
    load_weights(model, args.model_path)
    model.to(device)
    acceleration.set_memory_format(model, device)
    print(f"param size = {utils.count_parameters_in_MB(model):f}MB (the auxiliary head left out)")
    test_batches = data.test_batches(images, batch_size=args.batch_size, workers=args.workers, device=device)
    meters = utils.evaluate(
        model,
        test_batches,
        nn.CrossEntropyLoss(),
        lambda step, meters: step % args.report_freq or print(f"test {step:03d} {meters}"),
    )
    print(f"test_acc {meters.top1.avg:f}")


if __name__ == "__main__":
    cli.run(main)
