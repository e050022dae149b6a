"""Text data: corpora by name, their vocabularies, batches, and the perplexities of unigram and bigram models.

A corpus has three streams of words, as numbers in one vocabulary. Every line ends with `<eos>`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from experiment import files
from experiment.errors import UserError
from experiment.run import Run

DATASETS = ("ptb", "wikitext2", "text", "pydoc")
PARTS = ("train", "valid", "test")
EVAL_BATCH, TEST_BATCH = 10, 1  # columns of the validation and of the test text, as in the original
VOCABULARY = "vocabulary.json"  # in a run's folder

SOURCES = {
    "ptb": "Penn Treebank as prepared by Mikolov (ptb.train.txt and so on)",
    "wikitext2": "WikiText-2 (wiki.train.tokens and so on)",
}


class Corpus(NamedTuple):
    """The vocabulary, and streams of words as numbers in it, int64 (N,)."""

    words: list[str]
    train: Tensor
    valid: Tensor
    test: Tensor


def load(name: str, path: str, vocabulary: int = 10_000) -> Corpus:
    """The corpus `name`.

    Args:
        name: `ptb` or `wikitext2`: words separated by spaces in train.txt, valid.txt and test.txt, all of which are in
            the vocabulary, in the order of first occurrence, as in the original; `text`: your own text file, or all
            .txt files of a folder; or `pydoc`: Python's language reference (`pydoc_data.topics`).
        path: the folder or file; not used for `pydoc`.
        vocabulary: for `text` and `pydoc`, the largest number of words: the most frequent ones of the training part.
            Others become `<unk>`. Words are in lower case, and punctuation marks are words. The first 80% of the lines
            are for training, the next 10% for validation, and the last 10% for the test.

    Raises:
        UserError: files are missing, or not text in UTF-8.
    """
    if name in SOURCES:
        parts = [[line.split() for line in _read(_part(Path(path), part, name))] for part in PARTS]
    else:
        words = [re.findall(r"\w+|[^\w\s]", line.lower()) for line in (_topics() if name == "pydoc" else _own(path))]
        first, second = len(words) * 8 // 10, len(words) * 9 // 10
        parts = [words[:first], words[first:second], words[second:]]
    streams = [[word for line in lines for word in [*line, "<eos>"]] for lines in parts]
    if name in SOURCES:
        known = dict.fromkeys(word for stream in streams for word in stream)
    else:
        known = dict.fromkeys(["<unk>", *(word for word, _ in Counter(streams[0]).most_common(vocabulary - 1))])
    numbers = {word: number for number, word in enumerate(known)}
    return Corpus(list(known), *(torch.tensor([numbers.get(word, 0) for word in stream]) for stream in streams))


def _part(folder: Path, part: str, name: str) -> Path:
    for file in (f"{part}.txt", f"ptb.{part}.txt", f"wiki.{part}.tokens"):
        if (folder / file).exists():
            return folder / file
    raise UserError(
        f"{folder / part}.txt is missing: put the files of {SOURCES[name]} into that folder as train.txt, "
        "valid.txt and test.txt (this program does not download them), name another folder with --data, or choose "
        "--dataset pydoc"
    )


def _own(path: str) -> list[str]:
    """The lines of the user's text."""
    found = sorted(Path(path).glob("*.txt")) if Path(path).is_dir() else [Path(path)]
    if not found:
        raise UserError(f"{path} holds no .txt file: name a text file, or a folder of them, with --data")
    return [line for file in found for line in _read(file)]


def _read(path: Path) -> list[str]:
    """The lines of a file."""
    try:
        return path.read_bytes().decode().removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"cannot read the text {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start}): convert it") from None


def _topics() -> list[str]:
    """The lines of Python's language reference, which `help()` uses."""
    from pydoc_data.topics import topics

    return [line for _, text in sorted(topics.items()) for line in text.splitlines() if line.strip()]


class Vocabulary(msgspec.Struct):
    """A run's record of its text: the vocabulary, and a checksum of the words."""

    words: list[str]
    sha256: str


def record(corpus: Corpus, run: Run) -> None:
    """Writes the vocabulary into the run's folder, and logs the baselines.

    Raises `UserError` if the resumed run began with another text.
    """
    text = b"".join(getattr(corpus, part).numpy().tobytes() for part in PARTS)
    own, path = Vocabulary(corpus.words, hashlib.sha256(text).hexdigest()), run.folder / VOCABULARY
    if path.exists() and files.read_json(path, Vocabulary) != own:
        raise UserError(f"{run.folder} began with another text: name that one with --dataset and --data")
    run.write_json(VOCABULARY, msgspec.to_builtins(own))
    run.log_each(*baseline_lines(corpus))


def check_vocabulary(corpus: Corpus, weights: Path) -> None:
    """Raises `UserError` if the vocabulary recorded beside the weights differs from that of the corpus."""
    path = weights.with_name(VOCABULARY)
    if path.exists() and files.read_json(path, Vocabulary).words != corpus.words:
        raise UserError(
            f"the weights {weights} have another vocabulary than this text: give --dataset, --data and --vocabulary "
            f"of their training"
        )


# ---- Batches


def batchify(stream: Tensor, columns: int, part: str, least: int = 2) -> Tensor:
    """(rows, columns): each column is a contiguous part of the stream, in order. The remainder at the end is dropped.

    Raises `UserError` if the text, whose name is `part`, is too short for `least` rows.
    """
    rows = len(stream) // columns
    if rows < least:
        raise UserError(
            f"the {part} text has {len(stream)} words, too few for {columns} sequences of {least}: "
            "name a longer text, or lower --batch_size or --bptt"
        )
    return stream[: rows * columns].view(columns, rows).t().contiguous()


def get_batch(source: Tensor, row: int, length: int) -> tuple[Tensor, Tensor]:
    """(words, next words), (T, B) each: `length` rows of `source` from `row`, or fewer at its end; and one further."""
    length = min(length, len(source) - 1 - row)
    return source[row : row + length], source[row + 1 : row + 1 + length]


def sequence_length(bptt: int, longest: int | None) -> int:
    """The random length of the next sequence, from NumPy's generator: `bptt`, or half of it with a probability of 1/20.

    With `longest`, normal noise is added, and the length is limited to 5 to `longest`.
    """
    base = bptt if np.random.random() < 0.95 else bptt / 2
    return int(base) if longest is None else min(max(5, int(np.random.normal(base, 5))), longest)


# ---- Baselines


def baselines(corpus: Corpus) -> dict[str, dict[str, float]]:
    """{model: {part: perplexity}} of a unigram model with add-one smoothing, and of a bigram model.

    The latter has interpolated Kneser-Ney smoothing with one discount D = n1 / (n1 + 2 n2) (Chen, Goodman 1998).
    """
    train, V = corpus.train.tolist(), len(corpus.words)
    counts, pairs = Counter(train), Counter(pairwise(train))
    starts = Counter(train[:-1])  # how often a word is followed by any word
    followers = Counter(before for before, _ in pairs)  # by how many different words
    contexts = Counter(word for _, word in pairs)  # after how many different words it occurs
    n1, n2 = (list(pairs.values()).count(times) for times in (1, 2))
    discount = n1 / max(1, n1 + 2 * n2)

    def unigram(before: int, word: int) -> float:
        return (counts[word] + 1) / (len(train) + V)

    def bigram(before: int, word: int) -> float:
        continuation = (contexts[word] + 1) / (len(pairs) + V)
        if not starts[before]:
            return continuation
        seen = max(0, pairs[before, word] - discount)
        return (seen + discount * followers[before] * continuation) / starts[before]

    def perplexity(model: Callable[[int, int], float], stream: Tensor) -> float:
        return math.exp(-fmean(math.log(model(*pair)) for pair in pairwise(stream.tolist())))

    return {
        model.__name__: {part: perplexity(model, getattr(corpus, part)) for part in PARTS[1:]}
        for model in (unigram, bigram)
    }


def baseline_lines(corpus: Corpus) -> list[str]:
    """Lines for the log: the perplexities of the baselines."""
    found = baselines(corpus)
    return [f"{name}: valid ppl {ppl['valid']:.2f}, test ppl {ppl['test']:.2f}" for name, ppl in found.items()]
