"""What a run shows while it runs: metrics, TensorBoard, bar, warnings, the early stop. Watching changes nothing."""

import io
import json
import math
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from scripts import log_lines, rows_of, succeed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import collapse
import genotypes
import remedies
from architectures import Architecture
from experiment import console, errors, tensorboard
from experiment.loop import MEASURED
from pictures import drawing

ROOT = Path(__file__).parent.parent
TINY = shlex.split("--dataset folder --image_size 8 --gpu -1 --workers 0 --batch_size 8 --report_freq 1")
CELLS = [*TINY, "--init_channels", "2", "--layers", "1"]
SMALL_SPACE = [*TINY, "--space", f"{ROOT / 'examples' / 'small_space.py'}:Net", "--init_channels", "2"]


@pytest.fixture(scope="module")
def searched(images, tmp_path_factory):
    """A search of three epochs in a process of its own: (folder, all that it printed)."""

    def prepare():  # two products with the Hessian in place of up to 100
        collapse.dominant_eigenvalue = partial(collapse.dominant_eigenvalue, max_iterations=2)

    folder = tmp_path_factory.mktemp("searched") / "run"
    command = ["train_search", *CELLS[2:], "--epochs", "3", "--eigenvalue_every", "2"]
    output = succeed(command, images, "--image_size", "8", "--run_dir", folder, prepare=prepare)
    return folder, output


# What a training, another space, a remedy (test_remedies.py) and a benchmark (test_benchmark.py) record.
ELSEWHERE = """
    train_auxiliary_loss test_loss test_acc drop_path_prob class_acc confusion class images valid_top5 test_top5
    entropy skips betas auxiliary_weight perturbation temperature true true_acc true_best true_optimum true_rank
"""


def test_metrics_hold_everything_that_the_documentation_names(searched):
    """The strongest edges by the metrics are the genotype: names of edges and operations are right."""
    rows = rows_of(searched[0])
    documented = set(re.findall(r"^\|.*?\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    documented = {key for cell in documented for key in re.findall(r"`(\w+)`", cell)}
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert ["eigenvalue" in row for row in rows] == [True, False, True]
    for row in rows:
        assert set(row) | {"eigenvalue"} == documented - set(ELSEWHERE.split())
        assert len(row["alphas"]) == 28
        for edge in row["alphas"].values():
            assert list(edge) == genotypes.PRIMITIVES
            assert math.fsum(edge.values()) == pytest.approx(1, abs=1e-6)
        assert 0 < row["entropy_normal"] <= math.log(8) + 1e-6
        assert all(row[key] > 0 for key in MEASURED)
        assert row["seconds_per_step"] < row["seconds"]
        for cell in ("normal", "reduce"):
            found = row["genotype"][cell]
            assert row[f"skips_{cell}"] == sum(operation == "skip_connect" for operation, _ in found)
            for node in range(2, 6):
                best = []
                for source in range(node):
                    edge = row["alphas"][f"{cell}_n{node}_p{source}"]
                    weight, name = max((weight, name) for name, weight in edge.items() if name != "none")
                    best.append((weight, [name, source]))
                assert found[2 * node - 4 : 2 * node - 2] == [edge for _, edge in sorted(best, reverse=True)[:2]]


def test_tensorboard_shows_the_metrics(searched):
    folder = searched[0]
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    rows = rows_of(folder)
    keys = {"loss/train": "train_loss", "acc/valid": "valid_acc", "lr": "lr", "skips/normal": "skips_normal"}
    for tag, key in keys.items():
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx([row[key] for row in rows], rel=1e-6)
    assert [event.step for event in events.Scalars("eigenvalue")] == [1, 3]
    tags = set(events.Tags()["scalars"])
    assert {"entropy/normal", "entropy/reduce", "seconds_per_step", "memory_mb"} <= tags
    assert sum(tag.startswith("softmaxed alphas ") for tag in tags) == 28 * 8
    [*_, last] = events.Scalars("softmaxed alphas normal_n3_p1/sep_conv_5x5")
    assert last.value == pytest.approx(rows[-1]["alphas"]["normal_n3_p1"]["sep_conv_5x5"], rel=1e-6)
    before = [None, *(row["genotype"] for row in rows)]
    changed = [number for number, row in enumerate(rows, start=1) if row["genotype"] != before[number - 1]]
    for cell in ("normal", "reduction"):
        assert [picture.step for picture in events.Images(f"architecture/{cell}")] == changed


def test_nothing_but_lines_where_there_is_no_terminal(searched):
    """Of a process without a terminal, standard output and standard error together are the log."""
    folder, output = searched
    for text in (output, (folder / "log.txt").read_text(), (folder / "metrics.jsonl").read_text()):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert output == (folder / "log.txt").read_text()


def test_watching_changes_nothing(searched, images, tmp_path):
    watched, plain = searched[0], tmp_path / "run"
    command = ["train_search", *CELLS[2:], "--epochs", "3"]  # in a process of its own, too: with as many threads
    succeed(command, images, "--image_size", "8", "--run_dir", plain)
    ours, theirs = (torch.load(folder / "weights.pt", weights_only=True) for folder in (watched, plain))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    for left, right in zip(rows_of(watched), rows_of(plain), strict=True):
        for key in (*MEASURED, "eigenvalue"):
            left.pop(key, None), right.pop(key, None)
        assert left == right
    kept = [line for line in log_lines(watched)[1:] if not line.startswith("eigenvalue")]
    assert [line.replace(str(watched), str(plain)) for line in kept] == log_lines(plain)[1:]


def test_spaces_without_cells(images, done):
    done("train_search", *SMALL_SPACE, "--data", images, "--epochs", "1", "--run_dir", "run")
    [row] = rows_of(Path("run"))
    assert list(row["alphas"]) == ["first", "second"]
    assert list(row["alphas"]["first"]) == ["0", "1", "none"]
    assert row["entropy"] == pytest.approx(math.log(3), abs=1e-3)
    assert row["skips"] == 0


# ---- Collapse


@pytest.mark.parametrize(("epochs", "resumed"), [(30, False), (30, True), (9, False)])
def test_early_stop_returns_the_architecture_from_before(images, script, monkeypatch, epochs, resumed):
    """Measured are eight times 1, then 3: the mean around epoch 6 is 1.4, which is more than 1 / 0.75 times the mean
    around epoch 1.

    Also where the ninth epoch is the last.
    """
    measured = iter([1.0] * 8 + [3.0] * 20)
    monkeypatch.setattr(collapse, "EARLIEST", 0)
    monkeypatch.setattr(collapse, "dominant_eigenvalue", lambda *_: next(measured))
    arguments = [*SMALL_SPACE, "--data", images, "--epochs", epochs, "--arch_learning_rate", "1"]
    assert script("train_search", *arguments, "--early_stop", "eigenvalue", "--run_dir", "run")[0] == 0
    folder = Path("run")
    rows = rows_of(folder)
    assert [row["eigenvalue"] for row in rows] == [1.0] * 8 + [3.0]
    assert json.loads((folder / "architecture.json").read_text()) == rows[1]["architecture"]
    assert any("stopped, and back to the architecture of epoch 1" in line for line in log_lines(folder))
    if resumed:  # what was stopped stays so
        before = (folder / "metrics.jsonl").read_bytes()
        assert script("train_search", "--resume", "run", "--space", SMALL_SPACE[-3])[0] == 0
        assert (folder / "metrics.jsonl").read_bytes() == before
        assert json.loads((folder / "architecture.json").read_text()) == rows[1]["architecture"]


def test_a_warning_for_every_new_number_of_skip_connections():
    assert remedies.warning({"skips_normal": 2}, []) == ""
    assert remedies.warning({"skips": 5}, []) == ""
    assert "3 of the normal cell's edges" in remedies.warning({"skips_normal": 3}, [])
    assert remedies.warning({"skips_normal": 3}, [{"skips_normal": 3}]) == ""
    assert "4 of" in remedies.warning({"skips_normal": 4}, [{"skips_normal": 3}])


def test_entropy_is_that_of_the_edges():
    alphas = {
        "normal_n2_p0": {"a": 0.5, "b": 0.5},
        "normal_n2_p1": {"a": 1.0, "b": 0.0},
        "reduce_n2_p0": {"a": 0.25, "b": 0.75},
    }
    metrics = Architecture({}).metrics(alphas)
    assert metrics["entropy_normal"] == pytest.approx(math.log(2) / 2)
    assert metrics["entropy_reduce"] == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


# ---- The terminal, and what goes wrong


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_below_the_lines_of_the_log(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    told = "loss 0.500, 2.00 s/step, 6 s left"
    for _ in console.bar("ab", 1, 0, 2, lambda: told):
        console.show("a line")
    # What a terminal shows of a line is what follows its last carriage return.
    shown = [line.rpartition("\r")[2] for line in terminal.getvalue().split("\n")]
    assert shown.count("a line") == 2
    assert all(words in terminal.getvalue() for words in ("epoch 1", told))


def test_time_left_of_an_evaluation(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    lines = []
    report = console.reporter("valid", 2, 10, lines.append)
    now[0] += 6.0  # the first batch starts workers
    report(0, "loss 1.5")
    assert lines.pop() == "valid 000 loss 1.5"
    now[0] += 4.0
    report(1, "loss 1.4")
    assert not lines
    report(2, "loss 1.4")
    assert lines.pop() == "valid 002 loss 1.4 | 2.00 s/batch, 14 s left to evaluate"
    now[0] += 3.0
    report(8, "loss 1.3")
    assert lines.pop() == "valid 008 loss 1.3 | 0.88 s/batch, 1 s left to evaluate"


def test_times_in_words():
    seconds = (0.4, 41, 119, 120, 3599, 3600, 12_000, 86_400, 200_000)
    words = ["0 s", "41 s", "2 min", "2 min", "1 h 0 min", "1 h 0 min", "3 h 20 min", "1 day 0 h", "2 days 7 h"]
    assert [errors.duration(time) for time in seconds] == words


@pytest.mark.parametrize("name", ["__init__", "add_scalar", "close"])
def test_tensorboard_s_failure_ends_the_recording_and_not_the_run(images, script, monkeypatch, name):
    def failing(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard.SummaryWriter, name, failing)
    status, out, _ = script("train_search", *SMALL_SPACE, "--data", images, "--epochs", "2", "--run_dir", "run")
    assert status == 0
    assert out.count("cannot write for TensorBoard (No space left on device)") == 1
    assert len(rows_of(Path("run"))) == 2


def test_a_picture_s_failure_does_not_end_a_search(images, script, monkeypatch):
    """Neither in an epoch nor at the end; TensorBoard still has the numbers."""
    monkeypatch.setattr(drawing, "graphs", lambda *_: {}["se_conv_3x3"])
    status, out, error = script("train_search", *SMALL_SPACE, "--data", images, "--epochs", "2", "--run_dir", "run")
    assert (status, error) == (0, "")
    assert out.count("cannot draw the architecture (KeyError('se_conv_3x3'))") == 1
    assert "no pictures: KeyError('se_conv_3x3')" in out.splitlines()[-1]
    assert len(EventAccumulator("run").Reload().Scalars("lr")) == 2


def test_a_run_on_the_cpu_leaves_the_gpu_alone(images, done, monkeypatch):
    """On a machine that has one."""

    def touched(*_, **__):
        raise AssertionError("the GPU was touched")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    used = "get_device_name get_rng_state_all get_rng_state synchronize reset_peak_memory_stats max_memory_allocated"
    for name in used.split():
        monkeypatch.setattr(torch.cuda, name, touched)
    # PyTorch's optimizers ask for the current stream of any accelerator, whatever the device.
    monkeypatch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None)
    arguments = [*SMALL_SPACE, "--data", images, "--epochs", "1", "--run_dir", "run", "--strategy", "enas"]
    done("train_search", *arguments)
    assert json.loads(Path("run/config.json").read_text())["gpu"] is None
