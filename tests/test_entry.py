"""`search()` and `train()` from Python: the runs of the two commands; names of published cells; the tutorial."""

import ast
import importlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from scripts import arguments_of, assert_same, log_lines, result, rows_of

import genotypes
import train
import train_search
import utils
from architectures import Architecture
from architectures.cells import Cells
from experiment import cli
from experiment.errors import UserError
from pictures import drawing
from rnn import genotypes as rnn
from rnn.genotypes import RecurrentCell
from visualize import canonical, read_any

SMALL = {"image_size": 8, "gpu": -1, "workers": 0, "init_channels": 2, "layers": 3}
SEARCH = SMALL | {"epochs": 1, "batch_size": 8, "arch_learning_rate": 0.01}
TRAIN = SMALL | {"epochs": 2, "batch_size": 16, "auxiliary": True, "cutout": True, "cutout_length": 2}


def flags(arguments, images):
    texts = [text for name, value in arguments.items() for text in (f"--{name}", str(value)) if text != "True"]
    return ["--dataset", "folder", "--data", images, *texts]


def configured(folder, *but):
    return {name: value for name, value in arguments_of(folder).items() if name not in but}


def test_both_from_python_are_the_runs_of_the_commands(script, images, monkeypatch, tmp_path):
    """To the bit, with the same arguments on record, log and files; callbacks see every epoch and change nothing.

    In a thread, as a server or a notebook's widget calls them.
    """
    seen = []

    def keep(epoch, metrics):
        seen.append((epoch, json.loads(json.dumps(metrics))))
        metrics.clear()

    def in_a_thread(function, *arguments, **options):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *arguments, **options).result()

    monkeypatch.setattr(drawing, "previews", lambda *_: {})  # for TensorBoard: slow
    assert script("train_search", *flags(SEARCH, images), "--run_dir", "a")[0] == 0
    found = in_a_thread(
        train_search.search, images=images, callbacks=[keep], run_dir="b", unrolled=False, preset=None, **SEARCH
    )
    assert_same(result(Path("a")), result(Path("b")))
    assert configured("a", "run_dir") == configured("b", "run_dir")
    assert [re.sub(r"/b\b", "/a", line) for line in log_lines(Path("b"))] == log_lines(Path("a"))
    assert {path.name for path in Path("b").iterdir()} >= {"normal.png", "reduction.png", "nni.json"}
    assert seen == [(row["epoch"], row) for row in rows_of("b")]
    assert found == Cells.read("a")

    assert script("train", *flags(TRAIN, images), "--arch", "a", "--run_dir", "c")[0] == 0
    trained = in_a_thread(train.train, found, images, [keep], run_dir=Path("d"), **TRAIN)
    assert_same(result(Path("c")), result(Path("d")))
    assert configured("c", "run_dir", "arch") == configured("d", "run_dir", "arch")
    assert seen[1:] == [(row["epoch"], row) for row in rows_of("d")]
    assert (trained.accuracy, trained.folder) == (rows_of("d")[-1]["test_acc"], tmp_path / "d")
    assert_same(trained.network.state_dict(), torch.load("d/weights.pt", weights_only=True))
    assert not trained.network.training


def test_a_run_goes_on_from_python(script, images, monkeypatch):
    """What `callbacks` ends goes on with its own arguments, and ends as the one that was never stopped."""

    class Enough(Exception):
        pass

    def stop(epoch, metrics):
        raise Enough

    whole = train.train("darts-v2", images, run_dir="whole", **TRAIN)
    with pytest.raises(Enough):
        train.train("DARTS_V2", images, [stop], run_dir="halves", **TRAIN)
    assert len(rows_of("halves")) == 1
    epochs = []
    train.train(resume="halves", callbacks=[lambda epoch, metrics: epochs.append(epoch)])
    assert epochs == [1]
    assert_same(result(Path("whole")), result(Path("halves")))
    assert configured("whole")["arch"] == "DARTS_V2"
    assert whole.accuracy == rows_of("halves")[-1]["test_acc"]
    with pytest.raises(UserError, match="epochs was 2, not 3"):
        train.train(resume="halves", epochs=3)
    with pytest.raises(UserError, match="whole is not empty") as _kept:  # as by a notebook
        train.train("DARTS_V2", images, run_dir="whole", **TRAIN)
    again = train.train(resume="whole")  # has nothing left to do
    assert again.accuracy == whole.accuracy
    assert_same(again.network.state_dict(), whole.network.state_dict())


def test_the_network_of_the_best_epoch_is_the_result(script, images, monkeypatch):
    evaluate, accuracies = utils.evaluate, iter([75.0, 50.0, 62.5])  # of two epochs, and on the test set

    def evaluated(*arguments):
        meters = evaluate(*arguments)
        meters.top1.sum, meters.top1.count = next(accuracies), 1
        return meters

    monkeypatch.setattr(utils, "evaluate", evaluated)
    best = train.train("DARTS_V1", images, run_dir="run", valid_portion=0.25, **TRAIN)
    assert best.accuracy == 62.5
    assert_same(best.network.state_dict(), torch.load("run/best.pt", weights_only=True))


def test_the_command_that_goes_on_is_the_script_s(monkeypatch):
    args = cli.argparse.Namespace(space="darts")
    root = Path(cli.__file__).parent.parent
    for program, stage, expected in (
        ("my.py", "search", f"python {root}/train_search.py --resume run"),
        ("-c", "eval", f"python {root}/train.py --resume run"),
        ("somewhere/train.py", "eval", "python somewhere/train.py --resume run"),
        (str(root / "rnn" / "train.py"), "rnn-eval", "python -m rnn.train --resume run"),
    ):
        monkeypatch.setattr(sys, "argv", [program])
        assert cli.resume_command(stage, args, "run") == expected


@pytest.mark.parametrize(
    ("call", "given", "kind", "words"),
    [
        ("search", {"epoch": 3}, TypeError, r"unknown argument epoch: known are .*epochs.*unrolled"),
        ("train", {"unrolled": True}, TypeError, r"unknown argument unrolled: known are .*auxiliary_weight"),
        ("search", {"images": "digits", "dataset": "cifar10"}, TypeError, "dataset"),
        ("search", {"images": "digit"}, UserError, "digit is neither a folder nor one of cifar10"),
        ("search", {"images": "digits", "epochs": "many"}, UserError, "--epochs: 'many' is not a whole number"),
        ("train", {"network": "darts-v3", "images": "digits"}, UserError, "unknown architecture darts-v3"),
        ("search", {"images": "digits", "unrolled": "yes"}, UserError, "--unrolled: 'yes' is not true or false"),
    ],
)
def test_mistakes(call, given, kind, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=words):
        {"search": train_search.search, "train": train.train}[call](**given)
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


# ---- Names


def test_published_cells_by_any_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for space in (Cells, RecurrentCell):
        known = space.names()
        for name in known:
            for spelt in (name.lower().replace("_", "-"), name.upper()):
                assert space.canonical(spelt) in known
                assert space.read(spelt) == space.read(name) == space(known[name])
    assert canonical("rnn.darts-v1") == "rnn.DARTS_V1"
    assert [canonical(other) for other in ("darts v2", "darts-v2/", "")] == ["darts v2", "darts-v2/", ""]


def test_a_folder_comes_before_another_spelling_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("darts_v2").mkdir()
    Path("darts_v2/genotype.json").write_text(json.dumps(Cells.read("DARTS_V1").json))
    assert Cells.read("darts_v2") == Cells.read("DARTS_V1") != Cells.read("darts-v2")


def test_an_architecture_of_any_space_is_text():
    choices = Architecture({"conv": "large", "skip": [0]})
    for architecture in (choices, Cells(genotypes.NASNet), RecurrentCell(rnn.ENAS)):
        text = json.dumps(architecture.json)
        assert type(architecture).read(text) == read_any(text) == architecture


def test_the_auxiliary_loss_is_logged_apart(script, images):
    """tests/test_recipe.py has its value."""
    for name, auxiliary in (("with", True), ("plain", False)):
        train.train("DARTS_V1", images, run_dir=name, report_freq=1, **TRAIN | {"auxiliary": auxiliary})
        assert all(("train_auxiliary_loss" in row) == auxiliary for row in rows_of(name))
        lines = [line for line in log_lines(Path(name)) if line.startswith("train 0")]
        assert [(" auxiliary loss " in line) for line in lines] == [auxiliary] * 4


# ---- The tutorial


def test_the_tutorial_runs_and_its_page_quotes_it(images, tmp_path, monkeypatch, capsys):
    tutorial = importlib.import_module("examples.darts_tutorial")
    page = (Path(train.__file__).parent / "docs" / "nni_tutorial.md").read_text()
    *quoted, _ = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(quoted) == 6
    for lines in quoted:
        assert lines in Path(tutorial.__file__).read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "previews", lambda *_: {})
    monkeypatch.setattr(tutorial, "IMAGES", images)
    for name in ("SEARCH", "RETRAIN"):
        monkeypatch.setattr(tutorial, name, SMALL | {"fast_dev_run": True, "batch_size": 8})
    tutorial.main()
    wanted = re.compile(r"after|\{|runs|plainly|by the paper's recipe: \d")
    printed = [line for line in capsys.readouterr().out.splitlines() if wanted.match(line)]
    assert len(printed) == 7
    assert "train_auxiliary_loss" in printed[-2]
    exported = ast.literal_eval(printed[1])
    assert exported == json.loads(Path("runs/tutorial/search/nni.json").read_text())
    assert Cells.of(exported) == Cells.read("runs/tutorial/plain") == Cells.read("runs/tutorial/recipe")
    assert Image.open("runs/tutorial/cells.png").width > Image.open("runs/tutorial/cells.png").height
