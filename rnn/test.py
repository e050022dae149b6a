"""Stage 3: the perplexity of saved weights on the validation and the test text.

    python -m rnn.test --arch RUN_DIR --model_path RUN_DIR/weights.pt --data ../data/penn --gpu 0

Prints the perplexities of a unigram and a bigram model of the same text, the progress, and in the last line the model's
perplexities. The arguments of network and text must be those of the training; rnn/train.py prints the command at its
end. The authors' file holds a whole module; docs/faq.md shows how to convert it.
"""

from __future__ import annotations

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse
from functools import partial
from pathlib import Path

import utils
from experiment import console
from experiment.weights import load_weights
from rnn import arguments, data
from rnn.genotypes import RecurrentCell
from rnn.model import Dropouts, RNNModel
from rnn.sequences import evaluate, starts

REPORT_FREQ = 200  # sequences


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Measure the perplexity of saved weights.")
    cli.add_device_arguments(parser, images=False)
    arguments.add_network_arguments(parser, emsize=850)
    arguments.add_arch_argument(parser)
    parser.add_argument("--model_path", default="EXP/model.pt", help="the file of the saved weights, a state_dict")
    args = parser.parse_args()
    arguments.check_sizes(args)
    return args


def main() -> None:
    args = parse_arguments()
    architecture = RecurrentCell.read(args.arch)
    device = utils.select_device(args.gpu)
    corpus = data.load(args.dataset, args.data, args.vocabulary)
    data.check_vocabulary(corpus, Path(args.model_path))
    model = RNNModel(len(corpus.words), args.emsize, Dropouts(), architecture.genotype)
    load_weights(model, args.model_path, hint="check --arch, --emsize, --dataset, --data and --vocabulary")
    model.to(device)
    for line in data.baseline_lines(corpus):
        print(line)
    found = []
    for part, columns in (("valid", data.EVAL_BATCH), ("test", data.TEST_BATCH)):
        stream = data.batchify(getattr(corpus, part), columns, part).to(device)
        report = console.reporter(part, REPORT_FREQ, len(starts(stream, args.bptt)), partial(print, flush=True))
        found.append(f"{part} ppl {evaluate(model, stream, args.bptt, args.faithful, report).ppl:.2f}")
    print(f"model: {', '.join(found)}")


if __name__ == "__main__":
    cli.run(main)
