"""Training with what people add to the paper's recipe; how long it takes; and what it says of every class."""

import json
import re
import shlex
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scripts import load, log_lines, rows_of, said, save_image
from torch import nn

import data
import genotypes
import proposals
import recipes
import utils
from experiment import metrics
from model import NetworkCIFAR

TINY = shlex.split("--dataset folder --image_size 8 --gpu -1 --workers 0 --init_channels 2 --layers 3")
TRAIN = [*TINY, "--arch", "DARTS_V1", "--batch_size", "8"]
SEARCH = [*TINY, "--batch_size", "4"]


# ---- The best epoch, chosen on held-out images


@pytest.mark.parametrize(
    ("flags", "kind", "note"),
    [
        ("--valid_portion 0.25", "held-out", "8 of 32 training images are held out, to choose the best epoch on"),
        ("--valid_folder", "validation", "images/val are the validation images"),
    ],
)
def test_the_best_epoch_is_chosen_on_held_out_images_and_the_test_set_measured_once(
    done, images, monkeypatch, flags, kind, note
):
    shutil.copytree(images, "images")
    if kind == "validation":
        shutil.copytree(images / "test", "images/val")
    stems, accuracies, evaluate = [], iter([50.0, 75.0, 75.0, 25.0]), utils.evaluate

    def evaluated(model, *others):
        meters = evaluate(model, *others)
        if stems:  # the description of best.pt while the run goes on
            assert f" {kind} " in Path("run/network.json").read_text()
        if len(stems) < 4:  # the fifth measurement is of the test set
            meters.top1.sum, meters.top1.count = next(accuracies), 1
        stems.append(model.stem[0].weight.detach().clone())
        return meters

    with monkeypatch.context() as context:
        context.setattr(utils, "evaluate", evaluated)
        lines = done("train", *TRAIN, "--data", "images", "--epochs", "4", *flags.split(), "--run_dir", "run")
    rows = rows_of("run")
    assert [row["valid_acc"] for row in rows] == [50.0, 75.0, 75.0, 25.0]
    assert ["test_acc" in row for row in rows] == [False, False, False, True]
    best, last = (torch.load(f"run/{name}.pt", weights_only=True) for name in ("best", "weights"))
    for saved, measured in ((best, 1), (best, 4), (last, 3)):
        assert torch.equal(saved["stem.0.weight"], stems[measured])
    text = "\n".join(lines)
    for words in (
        note,
        "best accuracy on the held-out images 75.00%, in epoch 1: its weights are in best.pt",
        f"test accuracy {rows[-1]['test_acc']:.2f}% of these weights, measured once: the result",
    ):
        assert words in text
    assert "not a result" not in text
    described = json.loads(Path("run/network.json").read_text())
    assert (described["weights"], described["accuracy"]) == ("best.pt", rows[-1]["test_acc"])
    tested = done("test", *said(lines, "test the weights again: ")[2:], "--workers", "0")
    assert float(said(tested, "test_acc ")[0]) == pytest.approx(rows[-1]["test_acc"], abs=1e-4)


# ---- Every class


def test_every_class_is_told_at_the_end(done, images):
    done("train", *TRAIN, "--data", images, "--epochs", "2", "--run_dir", "run")
    first, last = rows_of("run")
    assert "confusion" not in first
    assert not Path("run/best.pt").exists()  # without held-out images nothing is chosen
    assert "valid_acc" not in last
    assert {name: sum(row.values()) for name, row in last["confusion"].items()} == {"dark": 4, "light": 4}
    assert last["class_acc"] == {name: 100 * row.get(name, 0) / 4 for name, row in last["confusion"].items()}
    assert sum(last["class_acc"].values()) / 2 == pytest.approx(last["test_acc"])
    told = [line for line in log_lines(Path("run")) if line.startswith("class ")]
    assert told == metrics.class_lines(last)
    assert len(told) == 2


def test_the_class_that_fails_comes_first():
    row = metrics.of_classes([[5, 1, 0], [4, 0, 16], [0, 0, 0]], ["cat", "dog", "emu\n"])
    assert row == {
        "class_acc": {"cat": pytest.approx(500 / 6), "dog": 0.0},  # of the emu there was no image
        "confusion": {"cat": {"cat": 5, "dog": 1}, "dog": {"cat": 4, "emu\n": 16}},
    }
    assert metrics.class_lines(row) == [
        "class dog: 0 of 20 right, 0.00%; taken for emu\\n (16), cat (4)",
        "class cat: 5 of 6 right, 83.33%; taken for dog (1)",
    ]
    many = metrics.of_classes(torch.eye(50, dtype=torch.int64).tolist(), [str(number) for number in range(50)])
    assert len(metrics.class_lines(many)) == 21
    assert metrics.class_lines(many)[-1].startswith("30 more classes")
    assert metrics.class_lines({"epoch": 0}) == []


# ---- The recipe's flags


def network(classes=2, in_channels=3):
    return NetworkCIFAR(2, classes, 3, True, genotypes.DARTS_V1, in_channels)


def test_the_loss_that_is_shown_is_the_one_that_evaluation_measures():
    """While what is descended has the auxiliary head's share, and smoothed labels."""
    torch.manual_seed(0)
    model, x, y = network(), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    args = Namespace(amp=False, auxiliary_weight=0.4, grad_clip=1e9)
    shown, logits, _, auxiliary_loss = load("train").training_step(model, criterion, optimizer, args)(x, y)
    assert shown == F.cross_entropy(logits, y)
    gradient = model.classifier.weight.grad.clone()
    model.zero_grad()
    logits, auxiliary = model(x)
    torch.testing.assert_close(auxiliary_loss, F.cross_entropy(auxiliary, y))
    (criterion(logits, y) + 0.4 * criterion(auxiliary, y)).backward()
    torch.testing.assert_close(gradient, model.classifier.weight.grad)
    assert model.auxiliary_head.classifier.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
def test_the_optimizers(name, kind):
    args = Namespace(optimizer=name, learning_rate=1e-3, scale_lr=False, weight_decay=0.1, momentum=0.8)
    optimizer = recipes.optimizer(nn.Linear(2, 2), args)
    assert type(optimizer) is kind
    expected = {"lr": 1e-3, "weight_decay": 0.1} | ({"betas": (0.8, 0.999)} if name == "adam" else {"momentum": 0.8})
    assert expected.items() <= optimizer.defaults.items()


def test_training_begins_with_saved_weights_and_goes_on_without_them(done, refused, images):
    torch.manual_seed(1)
    torch.save(network().state_dict(), "two.pt")
    torch.save(network(classes=7).state_dict(), "seven.pt")
    for name, words in (("two", ""), ("seven", "; new, for 2 classes: auxiliary_head.classifier, classifier")):
        flags = ["--auxiliary", "--learning_rate", "1e-30", "--init_from", f"{name}.pt", "--run_dir", name]
        done("train", *TRAIN, "--data", images, "--fast_dev_run", *flags)
        assert f"begins with the weights in {Path(name).absolute()}.pt{words}" in log_lines(Path(name))
        begun, ended = (torch.load(path, weights_only=True) for path in (f"{name}.pt", f"{name}/weights.pt"))
        learned = {key for key, _ in network().named_parameters()}
        same = {key for key in learned if begun[key].shape == ended[key].shape}
        assert all((ended[key] - begun[key]).abs().max() < 1e-20 for key in same)
        assert learned - same == ({key for key in learned if "classifier" in key} if name == "seven" else set())
    Path("two.pt").unlink()
    done("train", "--resume", "two")
    assert "--init_from was " in refused("train", "--resume", "two", "--init_from", "b.pt")


# ---- Grey images


def test_a_network_of_one_channel_is_searched_trained_and_described(done, images):
    grey = ["--channels", "1", "--data", images, "--fast_dev_run"]
    done("train_search", *SEARCH, *grey, "--run_dir", "search")
    command = said(log_lines(Path("search")), "train what was found: ")
    assert command[command.index("--channels") + 1] == "1"
    sizes = [*TINY[2:], "--batch_size", "8", "--fast_dev_run"]
    done("train", *command[2:], *sizes, "--run_dir", "eval")
    for folder in ("search", "eval"):
        assert torch.load(f"{folder}/weights.pt", weights_only=True)["stem.0.weight"].shape == (6, 1, 3, 3)
    assert json.loads(Path("eval/network.json").read_text())["channels"] == 1
    assert "--channels 1" in next(line for line in log_lines(Path("search")) if "by the paper's recipe" in line)
    for space in ("nasbench201", "enas_macro"):
        flags = ["--space", space, *grey, "--init_channels", "4", "--batch_size", "4", "--run_dir", space]
        done("train_search", *TINY[:-4], *flags)


# ---- Known before one waits


def test_time_and_memory_are_told_after_a_few_steps_and_at_every_report(done, images):
    flags = ["--batch_size", "4", "--epochs", "2", "--report_freq", "3", "--run_dir", "run"]
    lines = [line[18:] for line in done("train", *TRAIN, "--data", images, *flags)]
    first, *reports = [line for line in lines if line.startswith("train 0")]
    assert "s/step" not in first  # the first step may have to compile
    assert len(reports) == 5  # of 8 steps, at 0, 3 and 6, twice
    assert all(re.search(r"\| \d+\.\d\d s/step, \d+ s left$", line) for line in reports)
    [told] = [line for line in lines if line.startswith("pace: ")]
    assert re.search(r"about \d+ s for all 2 epochs; peak memory [\d,]+ MB$", told)


def test_a_dev_run_tells_the_time_of_the_whole_run(done, images):
    for name, arguments in (("train", TRAIN), ("train_search", SEARCH)):
        lines = done(name, *arguments, "--data", images, "--fast_dev_run", "--epochs", "123", "--run_dir", name)
        [told] = [line for line in lines if "the whole run: " in line]
        assert re.search(r"s/step, about \d.* for all 123 epochs; peak memory [\d,]+ MB$", told)


@pytest.mark.parametrize(
    ("given", "images", "expected"),
    [
        ({}, 50000, {}),  # the paper's search
        (
            {"init_channels": 4, "layers": 4, "epochs": 4, "batch_size": 32},
            1437,
            {"init_channels": 9, "layers": 10, "epochs": 48, "batch_size": 48},
        ),
        ({"space": "mine.py:Net", "layers": None}, 50000, {"init_channels": 16, "epochs": 600, "batch_size": 96}),
    ],
)
def test_the_training_is_in_proportion_to_the_search(given, images, expected):
    args = Namespace(**{"space": "darts", "init_channels": 16, "layers": 8, "epochs": 50, "batch_size": 64} | given)
    assert proposals.proportional_sizes(args, images) == expected


def test_a_search_prints_both_commands(script, images):
    script("train_search", *SEARCH, "--data", images, "--fast_dev_run", "--epochs", "5", "--run_dir", "run")
    lines = log_lines(Path("run"))
    ours = said(lines, "train what was found: ")
    papers = said(lines, "train it by the paper's recipe, which takes days on a GPU: ")
    assert ours[:-8] == papers
    assert ours[-8:] == ["--init_channels", "4", "--layers", "8", "--epochs", "60", "--batch_size", "6"]


# ---- The command lines


@pytest.mark.parametrize("name", ["train", "train_search"])
def test_help_shows_the_default_of_every_flag(script, name):
    status, out, _ = script(name, "--help")
    assert status == 0
    flags = re.split(r"\n  (?=-)", out.partition("options:")[2])[2:]  # after --help itself
    assert len(flags) > 30
    assert [flag for flag in flags if "(default:" not in " ".join(flag.split())] == []


def test_imbalanced_classes_and_one_with_a_single_image(done, tmp_path, images):
    shutil.copytree(images, tmp_path / "images")
    for part in ("train", "test"):
        save_image(tmp_path / "images" / part / "rare" / "0.png", np.zeros((8, 8, 3)))
    (tmp_path / "images" / "test").rename(tmp_path / "images" / "val")

    done("train_search", *SEARCH, "--data", "images", "--fast_dev_run", "--run_dir", "search")
    done("train", *TRAIN, "--data", "images", "--epochs", "1", "--valid_portion", "0.2", "--run_dir", "eval")
    assert list(rows_of("eval")[-1]["class_acc"]) == ["dark", "light", "rare"]
    assert data.load(data.Options("folder", "images", 8, workers=0)).notes[-1].endswith("are the test set")
    shutil.copytree("images/val", "images/test")  # with images for both sides there is nothing to split
    done("train_search", *SEARCH, "--data", "images", "--fast_dev_run", "--valid_folder", "--run_dir", "both")
    assert f"the 9 images in {Path('images/val').absolute()} are the validation images" in log_lines(Path("both"))
