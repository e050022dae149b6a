"""The recurrent scripts as a user runs them: search, train, test; killed and resumed; what they refuse."""

import json
import signal

import numpy as np
import pytest
import torch
from scripts import assert_same, at, log_lines, refused, result, run, said, signal_oneself, succeed

from architectures.cells import Cells
from experiment.errors import UserError
from pictures import drawing
from rnn import data, genotypes
from rnn.genotypes import RecurrentCell
from rnn.model import Dropouts, RNNModel
from visualize import read_any

SMALL = ["--emsize", "6", "--bptt", "6", "--batch_size", "4", "--epochs", "2"]
SEARCH = ["rnn/train_search", *SMALL, "--unrolled"]
TRAIN = ["rnn/train", *SMALL, "--epochs", "4", "--nonmono", "1", "--max_seq_len_delta", "2", "--lr", "60"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The flags for a text of one's own, 200 words long."""
    path, r = tmp_path_factory.mktemp("text") / "text.txt", np.random.RandomState(0)
    path.write_text(
        "".join(" ".join(r.choice(["red", "green", "blue", "house", "tree"], 5)) + ".\n" for _ in range(40))
    )
    return ["--dataset", "text", "--data", str(path)]


@pytest.mark.parametrize(("command", "moment"), [(SEARCH, (1, 3)), (TRAIN, (3, 3))], ids=["search", "train"])
def test_stopped_by_a_signal_in_the_middle_of_an_epoch(command, moment, text, undisturbed, tmp_path):
    """The hidden state, the row, NumPy's generator and in training's last epoch the averages go on, too."""
    folder = tmp_path / "run"

    stop = at(*moment, signal_oneself(signal.SIGTERM))
    status, output = run(command, text, "--run_dir", folder, prepare=stop)
    assert status == 128 + signal.SIGTERM, output
    assert f"--resume {folder}" in output.splitlines()[-1]
    other = tmp_path / "other.txt"
    other.write_text("red green\n" * 200)
    assert "began with another text" in refused(command[:1], text, "--resume", folder, "--data", other)
    output = succeed(command[:1], text, "--resume", folder)
    assert f"epoch {moment[0]}, step {moment[1]}" in output
    assert_same(result(folder), undisturbed(command, text)[0])


def test_the_averages_of_asgd_are_kept_and_resumed(undisturbed, text):
    """The run above has them, or it would prove nothing."""
    metrics, weights, state, _ = undisturbed(TRAIN, text)[0]
    averaged = [row["averaged"] for row in metrics]
    assert (averaged[0], averaged[-1], sorted(averaged)) == (0, 1, averaged)
    averages = [entry["ax"] for entry in state["parts"]["asgd"]["state"].values()]
    assert len(averages) == len(list(RNNModel(2, 2, Dropouts(), genotypes.DARTS).parameters()))
    if min(metrics, key=lambda row: row["valid_loss"]) is metrics[-1]:
        assert torch.equal(weights[0]["encoder.weight"], averages[0])


def test_search_then_train_then_test(text, tmp_path):
    search, trained = tmp_path / "search", tmp_path / "eval"
    succeed([*SEARCH, "--fast_dev_run"], text, "--run_dir", search)
    files = "log.txt config.json metrics.jsonl genotype.json vocabulary.json weights.pt recurrent.png"
    assert set(files.split()) < {path.name for path in search.iterdir()}
    lines = log_lines(search)
    for beginning in ("genotype = Genotype(recurrent=[(", "unigram: valid ppl", "bigram: valid ppl"):
        assert any(line.startswith(beginning) for line in lines)
    assert "alphas" in torch.load(search / "weights.pt", weights_only=True)

    command = said(lines, "train what was found: ")
    assert command[:3] == ["python", "-m", "rnn.train"]
    succeed(["rnn/train", *command[3:], *SMALL, "--fast_dev_run"], text, "--run_dir", trained)
    assert RecurrentCell.read(str(trained)) == RecurrentCell.read(str(search))
    lines = log_lines(trained)
    [perplexities] = [line for line in lines if line.startswith("valid ppl") and "the weights of epoch" in line]

    command = said(lines, "test the weights again: ")
    assert command[:3] == ["python", "-m", "rnn.test"]
    output = succeed(["rnn/test", *command[3:]], text)
    assert output.splitlines()[-1] == f"model: {perplexities.partition(':')[0]}"


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        (TRAIN, "--nhid 7", "--nhid and --nhidlast must be --emsize, 6"),
        (TRAIN, "--bptt 100", "too few for 4 sequences of 101"),
        (SEARCH, "--dataset ptb --data nowhere", "is missing: put the files of Penn Treebank"),
        (TRAIN, "--data nowhere.txt", "nowhere.txt: No such file"),
        (TRAIN, "--data latin.txt", "latin.txt is not text in UTF-8 (byte 3)"),
        (TRAIN, "--data folder", "folder holds no .txt file"),
        (SEARCH, "--batch_size 1", "at least 2"),
        (SEARCH[:-1], "--hvp exact", "add --unrolled"),
        (TRAIN, "--arch NASNet", "unknown architecture NASNet"),
        (SEARCH, "--lr 1e30 --run_dir run", "--lr or --clip"),
    ],
)
def test_mistakes_are_told_in_one_line(command, given, words, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("caf\xe9 olé".encode("latin-1"))
    (tmp_path / "folder").mkdir()
    assert words in refused(command, text, *given.split())


def test_weights_of_another_vocabulary(text, tmp_path):
    model = RNNModel(5, 6, Dropouts(), genotypes.DARTS)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    command = ["rnn/test", "--emsize", "6", "--model_path", tmp_path / "weights.pt"]
    assert "check --arch, --emsize, --dataset, --data and --vocabulary" in refused(command, text)
    (tmp_path / "vocabulary.json").write_text(json.dumps({"words": ["a", "b"], "sha256": ""}))
    assert "have another vocabulary than this text" in refused(command, text)


def test_every_form_of_a_recurrent_cell(tmp_path):
    one = RecurrentCell.read("DARTS_V2")
    (tmp_path / "genotype.json").write_text(json.dumps(one.json))
    logged = repr(genotypes.DARTS_V2._replace(concat=range(1, 9)))
    forms = [tmp_path, tmp_path / "genotype.json", repr(genotypes.DARTS_V2), f"01/02 genotype = {logged}"]
    for form in map(str, forms):
        assert RecurrentCell.read(form) == read_any(form) == one
    assert one.genotype == genotypes.DARTS_V2
    assert read_any("rnn.DARTS_V2") == one != read_any("DARTS_V2")
    assert one.distance(RecurrentCell.read("DARTS_V1")) == 7  # all but ("relu", 1) into node 2
    assert one.distance(Cells.read("DARTS_V2")) is None
    assert one.skips() == {}
    assert RecurrentCell.of_epoch({"genotype": one.json, "alphas": {}}) == one
    for space, others, fields in ((Cells, one, "normal"), (RecurrentCell, Cells.read("DARTS_V2"), "recurrent, concat")):
        with pytest.raises(UserError, match=f"must be an object with {fields}"):
            space.of(others.json)
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
        corpora = [data.Corpus(list("abcd"), words, text, text) for text in texts]
        return np.array([1 / data.baselines(corpus)[model]["valid"] for corpus in corpora])

    assert probabilities("unigram", 0) == pytest.approx([0.1, 0.4, 0.3, 0.2])
    # Pairs 12 (twice), 21 (twice), 13 (once): D = 1 / (1 + 2 * 2); 1 was followed by two words, three times.
    continuation = np.array([1, 2, 2, 2]) / 7
    assert probabilities("bigram", 1)[3] == pytest.approx((1 - 0.2) / 3 + 0.2 * 2 / 3 * continuation[3])
    assert probabilities("bigram", 3) == pytest.approx(continuation)
    assert [probabilities("bigram", before).sum() for before in range(4)] == pytest.approx([1, 1, 1, 1])
