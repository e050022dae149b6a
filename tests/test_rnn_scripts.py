"""The recurrent scripts as a user runs them: search, train, test; killed and resumed; what they refuse."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from scripts import assert_same, log_lines, result, run, said

import experiment.run
from architectures.cells import Cells
from experiment.errors import UserError
from pictures import drawing
from rnn import data, genotypes
from rnn.genotypes import RecurrentCell
from rnn.model import Dropouts, RNNModel
from visualize import read_any

SMALL = ["--emsize", "6", "--bptt", "6", "--batch_size", "4", "--epochs", "2"]
SEARCH = ["rnn/train_search", *SMALL, "--unrolled"]
TRAIN = [
    "rnn/train",
    "--arch",
    "DARTS_V2",
    *SMALL[:-2],
    "--epochs",
    "4",
    "--nonmono",
    "1",
    "--max_seq_len_delta",
    "2",
    "--lr",
    "60",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The flags for a text of one's own, 300 words long."""
    path, r = tmp_path_factory.mktemp("text") / "text.txt", np.random.RandomState(0)
    path.write_text(
        "".join(" ".join(r.choice(["red", "green", "blue", "house", "tree"], 5)) + ".\n" for _ in range(60))
    )
    return ["--dataset", "text", "--data", str(path)]


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    """(result, seconds) of a command that nothing disturbs, computed once."""
    results = {}

    def get(command):
        key = tuple(command)
        if key not in results:
            folder, started = tmp_path_factory.mktemp("undisturbed") / "run", time.monotonic()
            status, output = run(command, text, "--run_dir", folder)
            assert status == 0, output
            results[key] = result(folder), time.monotonic() - started
        return results[key]

    return get


@pytest.mark.parametrize(("command", "moment"), [(SEARCH, (1, 2)), (TRAIN, (3, 2))], ids=["search", "train"])
def test_stopped_by_a_signal_in_the_middle_of_an_epoch(command, moment, text, undisturbed, tmp_path):
    """Where the state that is carried, the row and NumPy's generator have to go on, too; in training's last epoch also
    the averages.
    """
    folder = tmp_path / "run"

    def prepare():
        original = experiment.run.Run.complete_step

        def complete_step(self):
            if (self.progress.epoch, self.progress.step) == moment:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self)

        experiment.run.Run.complete_step = complete_step

    status, output = run(command, text, "--run_dir", folder, prepare=prepare)
    assert status == 128 + signal.SIGTERM, output
    assert f"--resume {folder}" in output.splitlines()[-1]
    status, output = run(command[:1], text, "--resume", folder)
    assert status == 0, output
    assert f"epoch {moment[0]}, step {moment[1] + 1}" in output
    assert_same(result(folder), undisturbed(command)[0])


def test_the_averages_of_asgd_are_kept_and_resumed(undisturbed):
    """The run above has them, or it would prove nothing."""
    metrics, weights, state, _ = undisturbed(TRAIN)[0]
    assert [row["averaged"] for row in metrics] == sorted(row["averaged"] for row in metrics)
    assert metrics[0]["averaged"] == 0
    assert metrics[-1]["averaged"] == 1
    averages = [entry["ax"] for entry in state["parts"]["asgd"]["state"].values()]
    assert len(averages) == len(list(RNNModel(2, 2, Dropouts(), genotypes.DARTS).parameters()))
    best = min(metrics, key=lambda row: row["valid_loss"])
    if best is metrics[-1]:
        assert torch.equal(weights["encoder.weight"], averages[0])


def test_search_then_train_then_test(text, tmp_path):
    status, output = run([*SEARCH, "--fast_dev_run"], text, "--run_dir", tmp_path / "search")
    assert status == 0, output
    names = {path.name for path in (tmp_path / "search").iterdir()}
    assert {
        "log.txt",
        "config.json",
        "metrics.jsonl",
        "genotype.json",
        "vocabulary.json",
        "weights.pt",
        "recurrent.png",
    } < names
    lines = log_lines(tmp_path / "search")
    found = RecurrentCell.read(str(tmp_path / "search"))
    assert any(line.startswith("genotype = Genotype(recurrent=[(") for line in lines)
    assert any(line.startswith("unigram: valid ppl") for line in lines)
    assert any(line.startswith("bigram: valid ppl") for line in lines)
    assert "alphas" in torch.load(tmp_path / "search" / "weights.pt", weights_only=True)

    command = said(lines, "train what was found: ")
    assert command[:3] == ["python", "-m", "rnn.train"]
    status, output = run(["rnn/train", *command[3:], *SMALL, "--fast_dev_run"], text, "--run_dir", tmp_path / "eval")
    assert status == 0, output
    assert RecurrentCell.read(str(tmp_path / "eval")) == found
    lines = log_lines(tmp_path / "eval")
    [perplexities] = [line for line in lines if line.startswith("valid ppl") and "the weights of epoch" in line]

    command = said(lines, "test the weights again: ")
    assert command[:3] == ["python", "-m", "rnn.test"]
    status, output = run(["rnn/test", *command[3:]], text)
    assert status == 0, output
    assert output.splitlines()[-1] == f"model: {perplexities.partition(':')[0]}"


def test_a_run_that_diverges_stops_and_says_what_helps(text, tmp_path):
    status, output = run(SEARCH, text, "--run_dir", tmp_path / "run", "--lr", "1e30")
    assert (status, output.splitlines()[-1].count("--lr or --clip")) == (2, 1), output


def test_another_text_is_refused_on_resuming(text, tmp_path):
    def prepare():
        experiment.run.Run.complete_epoch = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    status, _ = run(TRAIN, text, "--run_dir", tmp_path / "run", prepare=prepare)
    assert status == -signal.SIGKILL
    other = tmp_path / "other.txt"
    other.write_text("red green\n" * 200)
    status, output = run(TRAIN[:1], [*text[:3], str(other)], "--resume", tmp_path / "run")
    assert status == 2, output
    assert "began with another text" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        (TRAIN, "--nhid 7", "--nhid and --nhidlast must be --emsize, 6"),
        (TRAIN, "--bptt 100", "too few for 4 sequences of 101"),
        (SEARCH, "--dataset ptb --data nowhere", "is missing: put the files of Penn Treebank"),
        (TRAIN, "--dataset wikitext2 --data nowhere", "is missing: put the files of WikiText-2"),
        (TRAIN, "--data nowhere.txt", "nowhere.txt: No such file"),
        (TRAIN, "--data latin.txt", "latin.txt is not text in UTF-8 (byte 3)"),
        (TRAIN, "--data folder", "folder holds no .txt file"),
        (SEARCH, "--batch_size 1", "at least 2"),
        (SEARCH[:-1], "--hvp exact", "add --unrolled"),
        (TRAIN, "--arch DARTS_V3", "DARTS_V3"),
        (TRAIN, "--arch NASNet", "NASNet"),
    ],
)
def test_mistakes_are_told_in_one_line(command, given, words, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("caf\xe9 olé".encode("latin-1"))
    (tmp_path / "folder").mkdir()
    status, output = run(command, text, *given.split())
    assert (status, output.count("\n")) == (2, 1), output
    assert words in output


def test_weights_of_another_vocabulary(text, tmp_path):
    model = RNNModel(5, 6, Dropouts(), genotypes.DARTS)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    command = ["rnn/test", "--emsize", "6", "--model_path", str(tmp_path / "weights.pt")]
    status, output = run(command, text)
    assert (status, output.count("\n")) == (2, 1), output
    assert "check --arch, --emsize, --dataset, --data and --vocabulary" in output
    (tmp_path / "vocabulary.json").write_text(json.dumps({"words": ["a", "b"], "sha256": ""}))
    status, output = run(command, text)
    assert (status, output.count("\n")) == (2, 1), output
    assert "have another vocabulary than this text" in output


def test_every_form_of_a_recurrent_cell(tmp_path):
    one = RecurrentCell.read("DARTS_V2")
    assert one.genotype == genotypes.DARTS_V2
    (tmp_path / "genotype.json").write_text(json.dumps(one.json))
    logged = repr(genotypes.DARTS_V2._replace(concat=range(1, 9)))
    for form in (
        str(tmp_path),
        str(tmp_path / "genotype.json"),
        repr(genotypes.DARTS_V2),
        logged,
        f"01/02 genotype = {logged}",
    ):
        assert RecurrentCell.read(form) == read_any(form) == one
    assert read_any("rnn.DARTS_V2") == one != read_any("DARTS_V2")
    assert one.distance(RecurrentCell.read("DARTS_V1")) == 7  # all but ("relu", 1) into node 2
    assert one.distance(Cells.read("DARTS_V2")) is None
    assert one.skips() == {}
    assert RecurrentCell.of_epoch({"genotype": one.json, "alphas": {}}) == one
    with pytest.raises(UserError, match="must be an object with normal"):
        Cells.of(one.json)
    with pytest.raises(UserError, match="must be an object with recurrent, concat"):
        RecurrentCell.of(Cells.read("DARTS_V2").json)
    [graph] = drawing.graphs(one).values()
    assert graph.source.count("->") == 2 + 2 * 8 + 8


@pytest.mark.parametrize(
    ("recurrent", "concat", "words"),
    [
        ([["tanh", 1]], [1], "can only take nodes 0 to 0"),
        ([["none", 0]], [1], "unknown activation 'none'"),
        ([["tanh", 0]], [2], "from 0 to 1"),
        ([["tanh", 0]], [1, 1], "each at most once"),
        ("tanh", [1], "list of pairs"),
    ],
)
def test_cells_that_cannot_be_built(recurrent, concat, words):
    with pytest.raises(UserError, match=words):
        RecurrentCell.of({"recurrent": recurrent, "concat": concat})


# ---- Text


def test_a_text_of_one_s_own(tmp_path):
    (tmp_path / "b.txt").write_text("The cat, the dog.\n" * 8)
    (tmp_path / "c.txt").write_text("A cat!\nA zebra.\n")
    corpus = data.load("text", str(tmp_path), vocabulary=5)
    assert corpus.words == ["<unk>", "the", "cat", ",", "dog"]
    assert corpus.train.tolist() == [1, 2, 3, 1, 4, 0, 0] * 8
    assert corpus.valid.tolist() == [0, 2, 0, 0]
    assert corpus.test.tolist() == [0, 0, 0, 0]


def test_python_s_reference_needs_no_files():
    corpus = data.load("pydoc", "nowhere")
    assert len(corpus.train) > 50_000
    assert {"<eos>", "<unk>", "the", "class"} < set(corpus.words)
    found = data.baselines(corpus)
    assert found["bigram"]["test"] < found["unigram"]["test"] < len(corpus.words)


def test_the_baselines_are_distributions():
    """Whatever word stands before, the probabilities of all words sum to 1; and those of an example are right."""
    words = torch.tensor([1, 2, 1, 2, 1, 3])

    def probabilities(model, before):
        texts = [torch.tensor([before, word]) for word in range(4)]
        return np.array(
            [1 / data.baselines(data.Corpus(list("abcd"), words, text, text))[model]["valid"] for text in texts]
        )

    assert probabilities("unigram", 0) == pytest.approx([0.1, 0.4, 0.3, 0.2])
    # Pairs 12 (twice), 21 (twice), 13 (once): D = 1 / (1 + 2 * 2); 1 was followed by two words, three times.
    continuation = np.array([1, 2, 2, 2]) / 7
    assert probabilities("bigram", 1)[3] == pytest.approx((1 - 0.2) / 3 + 0.2 * 2 / 3 * continuation[3])
    assert probabilities("bigram", 3) == pytest.approx(continuation)
    assert [probabilities("bigram", before).sum() for before in range(4)] == pytest.approx([1, 1, 1, 1])
