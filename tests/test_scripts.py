"""The stages as a user runs them: search, train, test; what they write, what they say, and what they refuse."""

import json
import math
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import load

import cli
import drawing
import experiment
import genotypes
import model_search
from architect import Architect
from model import NetworkCIFAR
from nas.architecture import Architecture

ROOT = Path(__file__).parent.parent
TINY = ["--dataset", "digits", "--gpu", "-1", "--init_channels", "2", "--layers", "3"]


def log_lines(folder):
    """The log without its times."""
    return [re.sub(r"^\d\d/\d\d \d\d:\d\d:\d\d [AP]M ", "", line) for line in (folder / "log.txt").read_text().splitlines()]


def said(lines, label):
    """The words of the command that follows `label` in a log."""
    [command] = [line.partition(label)[2] for line in lines if label in line]
    return shlex.split(command)


def test_search_then_train_then_test(script, tmp_path):
    status, out, _ = script("train_search", *TINY, "--fast_dev_run", "--unrolled", "--batch_size", "8", "--run_dir", "search")
    assert status == 0
    folder = tmp_path / "search"
    expected = {
        "log.txt",
        "config.json",
        "metrics.jsonl",
        "genotype.json",
        "architecture.json",
        "weights.pt",
        "checkpoint.pt",
        "checkpoint.prev.pt",
        "normal.png",
        "reduction.png",
        ".lock",
    }
    [events] = folder.glob("events.out.tfevents.*")
    assert {path.name for path in folder.iterdir()} == expected | {events.name}
    lines = log_lines(folder)
    assert lines == [re.sub(r"^\d\d/\d\d \d\d:\d\d:\d\d [AP]M ", "", line) for line in out.splitlines()]
    for pattern in (
        r"epoch 0 lr 2\.500000e-02",
        r"genotype = Genotype\(normal=\[.*reduce_concat=range\(2, 6\)\)",
        r"tensor\(\[\[0\.12\d\d, .*",
        r"train 000 \d\.\d{6}e[+-]\d\d \d+\.\d{6} \d+\.\d{6}",
        r"train_acc \d+\.\d{6} \(supernet\)",
        r"valid_acc \d+\.\d{6} \(supernet\)",
    ):
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    genotype = Architecture.read("search").genotype
    [metrics] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics["genotype"] == Architecture(genotype).json
    config = json.loads((folder / "config.json").read_text())
    assert config["arguments"]["unrolled"] is True
    assert config["arguments"]["arch_learning_rate"] == 3e-4
    assert config["versions"]["torch"] == torch.__version__

    command = said(lines, "train what was found: ")
    assert command[:2] == ["python", "train.py"]
    status, out, _ = script("train", *command[2:], *TINY, "--fast_dev_run", "--batch_size", "8", "--run_dir", "eval")
    assert status == 0
    assert Architecture.read("eval").genotype == genotype
    assert "(the auxiliary head left out)" in out
    assert "(test set)" in out
    assert "picked on the test set" in out

    command = said(log_lines(tmp_path / "eval"), "test the weights again: ")
    assert command[:2] == ["python", "test.py"]
    status, out, _ = script("test", *command[2:])
    assert status == 0
    assert re.search(r"^test_acc \d+\.\d{6}$", out, re.MULTILINE)


def test_a_search_that_cannot_draw_is_complete(script, tmp_path, monkeypatch):
    original = drawing.draw

    def draw(architecture, folder, caption):
        (folder / "reduction.png").write_bytes(b"a holiday")
        return original(architecture, folder, caption=caption)

    monkeypatch.setattr(drawing, "draw", draw)
    status, _, err = script("train_search", *TINY, "--fast_dev_run", "--batch_size", "8", "--run_dir", "run")
    assert (status, err) == (0, "")
    lines = log_lines(tmp_path / "run")
    assert said(lines, "train what was found: ")[:4] == ["python", "train.py", "--arch", "run"]
    assert lines[-1].startswith("no pictures: ")


def test_trained_weights_test_as_they_did_when_trained(script, tmp_path):
    script("train", *TINY, "--arch", "DARTS_V1", "--epochs", "2", "--batch_size", "160", "--run_dir", "eval", "--drop_path_prob", "0.3")
    metrics = [json.loads(line) for line in (tmp_path / "eval" / "metrics.jsonl").read_text().splitlines()]
    assert [row["drop_path_prob"] for row in metrics] == [0.0, pytest.approx(0.15)]
    assert [row["lr"] for row in metrics] == [pytest.approx(0.025), pytest.approx(0.0125)]
    command = said(log_lines(tmp_path / "eval"), "test the weights again: ")
    _, out, _ = script("test", *command[2:], "--batch_size", "160")
    assert float(re.search(r"test_acc (\S+)", out).group(1)) == pytest.approx(metrics[-1]["test_acc"], abs=1e-6)


def test_learning_rate_of_the_search_and_xi(script, tmp_path, monkeypatch):
    module = load("train_search")
    seen = []

    def step(self, x, y, x_valid, y_valid, eta, optimizer, unrolled):
        seen.append((eta, optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(module.registry.Darts, "step", step)
    arguments = [*TINY, "--epochs", "3", "--train_portion", "0.05", "--batch_size", "64", "--run_dir", "run"]
    monkeypatch.setattr(module.utils, "evaluate", lambda *_: module_meters(module))
    monkeypatch.setattr(sys, "argv", ["train_search.py", *arguments])
    module.main()
    expected = [0.001 + (0.025 - 0.001) * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    per_epoch = len(seen) // 3
    for epoch, rate in enumerate(expected):
        for eta, lr in seen[epoch * per_epoch : (epoch + 1) * per_epoch]:
            assert eta == lr == pytest.approx(rate, rel=1e-12)


def module_meters(module):
    meters = module.utils.Meters()
    meters.update(torch.tensor(1.0), torch.eye(10), torch.arange(10))
    return meters


def test_bad_images_are_logged_by_every_stage(script, tmp_path, images):
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "train" / "dark" / "0.png").write_bytes(b"")
    folder = ["--dataset", "folder", "--data", "images", "--image_size", "16", "--skip_bad_images", "--gpu", "-1", "--workers", "0"]
    status, out, _ = script("train_search", *folder, *TINY[4:], "--fast_dev_run", "--batch_size", "4", "--run_dir", "search")
    assert status == 0
    sizes = ["--fast_dev_run", "--batch_size", "4", "--workers", "0", *TINY[4:]]
    status, more, _ = script("train", *said(out.splitlines(), "train what was found: ")[2:], *sizes, "--run_dir", "eval")
    assert status == 0
    status, most, _ = script("test", *said(more.splitlines(), "test the weights again: ")[2:])
    assert status == 0
    for text in (out, more, most, *((tmp_path / name / "log.txt").read_text() for name in ("search", "eval"))):
        assert text.count("skipped 1 of 40 images, which cannot be decoded: images/train/dark/0.png: ") == 1


def test_same_seed_same_log(script, tmp_path, monkeypatch):
    logs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        script("train_search", *TINY, "--fast_dev_run", "--batch_size", "8", "--run_dir", "run", "--cutout")
        logs.append(log_lines(tmp_path / name / "run"))
    assert logs[0] == logs[1]
    monkeypatch.chdir(tmp_path)
    script("train_search", *TINY, "--fast_dev_run", "--batch_size", "8", "--run_dir", "other", "--cutout", "--seed", "3")
    assert log_lines(tmp_path / "other")[2:] != logs[0][2:]


def test_default_folders_have_the_originals_names(script, tmp_path):
    script("train", *TINY, "--fast_dev_run", "--batch_size", "8", "--save", "NAME")
    [folder] = tmp_path.iterdir()
    assert re.fullmatch(r"eval-NAME-\d{8}-\d{6}", folder.name)


def test_flags_that_the_original_never_read_are_taken_with_a_warning(script):
    status, _, err = script("train", *TINY, "--fast_dev_run", "--batch_size", "8", "--run_dir", "run", "--model_path", "saved_models")
    assert status == 0
    assert err == "warning: --model_path has no effect here\n"


def test_where_cuda_is_absent_one_warning(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, err = script("train", *TINY, "--gpu", "0", "--fast_dev_run", "--batch_size", "8", "--run_dir", "run")
    assert status == 0
    assert err.count("\n") == 1
    assert "CUDA is not available" in err


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train", ["--arch", "DARTS_V3"], "DARTS_V3.*known|DARTS_V3.*DARTS_V2"),
        ("train", ["--arch", "Genotype(1)"], "cannot parse"),
        ("train", ["--layers", "2"], "at least 3"),
        ("train", ["--epochs", "-1"], "--epochs"),
        ("train", ["--batch_size", "0"], "--batch_size"),
        ("train", ["--auxiliary", "--batch_size", "1"], "--auxiliary needs a --batch_size of at least 2"),
        ("train", ["--seed", str(2**32)], "--seed.*at most 4294967295"),
        ("train_search", ["--seed", str(2**32)], "--seed.*at most 4294967295"),
        ("train_search", ["--epochs", "9" * 400], r"--epochs.*9\.\.\. is not a whole number of at least 1 and at most 2147483647"),
        ("train_search", ["--epochs", "9" * 5000], r"--epochs.*9\.\.\. is not a whole number"),
        ("train", ["--learning_rate", "nan"], "--learning_rate"),
        ("train", ["--drop_path_prob", "1"], "--drop_path_prob"),
        ("train", ["--batch_size", "100000"], "1437.*batch of 100000"),
        ("train", ["--image_size", "30"], "multiple of 8"),
        ("train", ["--dataset", "mnist"], "--dataset"),
        ("train", ["--dataset", "folder", "--data", "nowhere"], "nowhere"),
        ("train_search", ["--train_portion", "1.0"], "--train_portion"),
        ("train_search", ["--batch_size", "719"], "718 of 1437"),
        ("train_search", ["--hvp", "wrong"], "finite_difference.*exact"),
        ("train_search", ["--gpu", "-2"], "--gpu"),
        ("test", ["--model_path", "missing.pt"], "missing.pt.*No such file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_and_leaves_nothing(script, tmp_path, name, arguments, words):
    run_dir = [] if name == "test" else ["--run_dir", "run"]
    status, out, err = script(name, *TINY, *run_dir, *arguments)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(words, err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_anything_is_refused(script, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("precious")
    for name in ("train_search", "train"):
        status, _, err = script(name, *TINY, "--fast_dev_run", "--batch_size", "8", "--run_dir", "run")
        assert status == 2
        assert "never overwritten" in err
    assert (tmp_path / "run" / "log.txt").read_text() == "precious"
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"log.txt", ".lock"}


def test_a_mistake_ends_the_process_without_a_traceback():
    done = subprocess.run([sys.executable, ROOT / "train.py", "--arch", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"train\.py: error: unknown architecture nonsense.*\n", done.stderr)


@pytest.fixture
def unread(tmp_path):
    """Runs a script in a process whose standard output nobody reads: (exit status, standard error)."""

    def run(name, *arguments, closed=False):
        reader, writer = os.pipe()
        os.close(reader)
        close = ["sh", "-c", 'exec "$0" "$@" >&-'] if closed else []
        command = [*close, sys.executable, ROOT / f"{name}.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_whose_reader_goes_away_goes_on(unread, tmp_path, closed):
    """As with `| head -1`: its log has every line."""
    assert unread("train", *TINY, "--fast_dev_run", "--batch_size", "8", "--run_dir", "run", closed=closed) == (0, "")
    assert said(log_lines(tmp_path / "run"), "test the weights again: ")[:2] == ["python", "test.py"]


def test_what_is_only_printed_ends_without_a_word_when_nobody_reads(unread, tmp_path):
    assert unread("visualize", "DARTS_V2", "--format", "svg") == (141, "")
    assert (tmp_path / "reduction.svg").exists()
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    assert unread("test", *TINY, "--auxiliary", "--model_path", "weights.pt") == (141, "")


def test_importing_anything_does_nothing(tmp_path):
    modules = [path.stem for path in ROOT.glob("*.py")]
    assert "train_search" in modules
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", code, "--bad-flag"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# ---- Weights


def network(C=2):
    return NetworkCIFAR(C, 10, 3, True, genotypes.DARTS_V2)


def test_weights_of_2018_load(tmp_path):
    """The authors' files come from before BatchNorm counted its batches."""
    old = {key: value for key, value in network().state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "weights.pt")
    model = network()
    experiment.load_weights(model, str(tmp_path / "weights.pt"))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in old.items())


def test_weights_of_another_network_are_named(tmp_path):
    torch.save(network(4).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(cli.UserError, match=r"stem\.0\.weight is 12x3x3x3 in the file, 6x3x3x3 here"):
        experiment.load_weights(network(), str(tmp_path / "wide.pt"))
    without = {key: value for key, value in network().state_dict().items() if "auxiliary" not in key}
    torch.save(without, tmp_path / "without.pt")
    with pytest.raises(cli.UserError, match=r"leave out --auxiliary.*auxiliary_head"):
        experiment.load_weights(network(), str(tmp_path / "without.pt"))
    torch.save(network().state_dict(), tmp_path / "with.pt")
    with pytest.raises(cli.UserError, match=r"add --auxiliary.*auxiliary_head"):
        experiment.load_weights(NetworkCIFAR(2, 10, 3, False, genotypes.DARTS_V2), str(tmp_path / "with.pt"))


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it is about to drop
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.to_sparse(), "does not hold a state_dict"),
        (lambda tensor: tensor.to("meta"), "does not hold a state_dict"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 1.0, 0, torch.qint8), "does not hold a state_dict"),
        (lambda tensor: tensor.to(torch.complex64), r"stem\.0\.weight is of torch\.complex64 in the file, of torch\.float32 here"),
        (lambda tensor: tensor.to(torch.int64), r"stem\.0\.weight is of torch\.int64 in the file"),
    ],
    ids=["sparse", "meta", "quantized", "complex", "int"],
)
def test_tensors_that_are_no_weights(tmp_path, change, words):
    torch.save(network().state_dict() | {"stem.0.weight": change(torch.zeros(6, 3, 3, 3))}, tmp_path / "weights.pt")
    with pytest.raises(cli.UserError, match=words):
        experiment.load_weights(network(), str(tmp_path / "weights.pt"))


def test_names_that_are_none_of_weights(tmp_path):
    torch.save(network().state_dict() | {1: torch.zeros(1)}, tmp_path / "number.pt")
    torch.save(network().state_dict() | {"x" * 10**6: torch.zeros(1)}, tmp_path / "huge.pt")
    for name, words in (("number.pt", "a dictionary of names"), ("huge.pt", r"only in the file: x+\.\.\.$")):
        with pytest.raises(cli.UserError, match=words) as raised:
            experiment.load_weights(network(), str(tmp_path / name))
        assert len(str(raised.value)) < 1000


def test_a_checkpoint_and_a_folder_are_no_weights(tmp_path):
    torch.save({"progress": {}, "random": {}, "parts": {}}, tmp_path / "checkpoint.pt")
    for name, words in (
        ("checkpoint.pt", r"checkpoint\.pt is a checkpoint.*weights\.pt beside it"),
        ("", r"is a folder: name its weights\.pt"),
    ):
        with pytest.raises(cli.UserError, match=words):
            experiment.load_weights(network(), str(tmp_path / name))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_would_run_code_are_refused(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"stem.0.weight": Bomb(trap)}, tmp_path / "bomb.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Bomb(trap)))
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    for name in ("bomb.pt", "pickle.pt", "truncated.pt", "empty.pt", "list.pt"):
        with pytest.raises(cli.UserError, match=name) as raised:
            experiment.load_weights(network(), str(tmp_path / name))
        assert "\n" not in str(raised.value)
    assert not trap.exists()


def test_in_autocast_networks_learn_and_all_that_is_kept_is_float32(script, tmp_path):
    arguments = [*TINY, "--fast_dev_run", "--batch_size", "16", "--amp"]
    for order in ([], ["--unrolled"], ["--unrolled", "--hvp", "exact"]):
        status, _, errors = script("train_search", *arguments, *order, "--run_dir", "-".join(["search", *order]))
        assert status == 0, errors
    status, _, errors = script("train", *arguments, "--arch", "search", "--auxiliary", "--run_dir", "train")
    assert status == 0, errors
    for folder in ("search", "train"):
        weights = torch.load(tmp_path / folder / "weights.pt", weights_only=True)
        assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("unrolled", "hvp"), [(False, "exact"), (True, "exact"), (True, "finite_difference")])
def test_autocast_changes_the_alphas_gradient_by_its_roundings_only(unrolled, hvp):
    gradients = []
    for amp in (False, True):
        torch.manual_seed(0)
        network = model_search.Network(4, 10, 3, torch.nn.CrossEntropyLoss())
        x, y = torch.randn(2, 16, 3, 16, 16), torch.randint(10, (2, 16))
        hyperparameters = SimpleNamespace(
            momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3, hvp=hvp, amp=amp
        )
        optimizer = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9)
        Architect(network, hyperparameters).step(x[0], y[0], x[1], y[1], 0.025, optimizer, unrolled)
        gradients.append(torch.cat([alpha.grad.flatten() for alpha in network.arch_parameters()]))
    plain, rounded = gradients
    assert plain.dtype == rounded.dtype == torch.float32
    assert not torch.equal(plain, rounded)
    assert torch.cosine_similarity(rounded, plain, dim=0) > 0.95  # each of many operations rounds by up to 0.4%
