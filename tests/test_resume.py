"""A run is never lost: killed, stopped, damaged or out of disk, it goes on and ends as if nothing had happened.

`KILLS=20 pytest -s -n0 tests/test_resume.py -k random_moments` kills each command 20 times instead of 3 (docs/reliability.md).
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from conftest import load

import cli
import experiment
import genotypes
import utils
from monitor import MEASURED
from nas.architecture import Architecture

EXAMPLES = Path(__file__).parent.parent / "examples"
KILLS = int(os.environ.get("KILLS", "3"))

SEARCH = ["train_search", "--init_channels", "2", "--layers", "3", "--epochs", "2", "--batch_size", "4"]
TRAIN = ["train", "--arch", "DARTS_V2", "--auxiliary", "--cutout", *SEARCH[1:7], "--batch_size", "8"]
COMMANDS = {
    "first order": SEARCH,
    "second order": [*SEARCH, "--unrolled"],
    "exact": [*SEARCH, "--unrolled", "--hvp", "exact"],
    "enas": [*SEARCH, "--space", "nasbench201", "--strategy", "enas"],
    "random": [*SEARCH, "--space", "enas_macro", "--strategy", "random"],
    "darts on nasbench201": [*SEARCH, "--space", "nasbench201"],
    "train": TRAIN,
}


def start(command, images, *arguments, prepare=lambda: None):
    """Runs a script in a child process that shares the modules already loaded: its process number and the end of a pipe with its output."""
    name, *rest = command
    data = ["--dataset", "folder", "--data", str(images), "--image_size", "16", "--gpu", "-1", "--workers", "0"]
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    status = 1
    try:
        os.dup2(writer, 1), os.dup2(writer, 2)
        for stream, fd, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):  # as Python's own
            setattr(sys, stream, io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), write_through=True, errors=errors))
        warnings.simplefilter("ignore"), warnings.simplefilter("default", UserWarning)  # pytest keeps all to itself
        warnings.showwarning = lambda message, category, *_: print(f"{category.__name__}: {message}", file=sys.stderr)
        sys.argv = [f"{name}.py", *rest, *data, *map(str, arguments)]
        module = load(name)
        prepare()
        cli.run(module.main)
        status = 0
    except SystemExit as exit:
        status = exit.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status or 0)


def finish(child, reader):
    """(exit status or minus the signal, output) of a child from `start`."""
    with open(reader, errors="replace") as pipe:
        output = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output


def run(command, images, *arguments, **options):
    return finish(*start(command, images, *arguments, **options))


def result(folder):
    """All that a run leaves, but for times."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        assert all(row.pop(key) > 0 for key in MEASURED)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state["progress"]["seconds"]
    for row in state["progress"]["metrics"]:
        for key in MEASURED:
            del row[key]
    files = {path.name: path.read_bytes() for path in folder.glob("*.json") if path.name != "config.json"}
    return metrics, torch.load(folder / "weights.pt", weights_only=True), state, files


def assert_same(left, right, where="result"):
    """Equal to the bit."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}.{index}")
    else:
        assert left == right, where


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    """The result of a command that nothing disturbs, computed once."""
    results = {}

    def get(name):
        if name not in results:
            folder = tmp_path_factory.mktemp("uninterrupted") / "run"
            started = time.monotonic()
            status, output = run(COMMANDS[name], images, "--run_dir", folder)
            assert status == 0, output
            results[name] = result(folder), time.monotonic() - started
        return results[name]

    return get


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(name, images, uninterrupted, tmp_path):
    expected, duration = uninterrupted(name)
    moments = random.Random(name)
    runs, kills = 1, 0
    while True:
        folder = tmp_path / f"run{runs}"
        begun = (folder / "config.json").exists()  # else it was killed before there was a run
        child, reader = start(COMMANDS[name], images, "--resume" if begun else "--run_dir", folder, "--checkpoint_minutes", "0")
        if kills < KILLS:
            time.sleep(moments.uniform(0, 0.75 * duration))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status, output = finish(child, reader)
        if status == -signal.SIGKILL:
            kills += 1
            continue
        assert status == 0, output
        assert_same(result(folder), expected)
        if kills == KILLS:
            break
        runs += 1  # it came to its end before it was killed
    print(f"{name}: killed {kills} times in {runs} runs")


@pytest.mark.parametrize("moment", range(1, 9))
def test_killed_while_saving(moment, images, uninterrupted, tmp_path):
    """Before a file is flushed, and before each rename, of the fourth to the sixth file that is written."""
    folder, calls = tmp_path / "run", iter(range(1000))

    def prepare():
        def deadly(original):
            def call(*arguments):
                if next(calls) == 5 + moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments)

            return call

        experiment.os = type("os", (), {**vars(os), "fsync": deadly(os.fsync), "replace": deadly(os.replace)})

    status, _ = run(TRAIN, images, "--run_dir", folder, "--checkpoint_minutes", "0", prepare=prepare)
    assert status == -signal.SIGKILL
    status, output = run(TRAIN, images, "--resume", folder)
    assert status == 0, output
    assert_same(result(folder), uninterrupted("train")[0])


@pytest.mark.parametrize("moment", range(5))
def test_killed_at_the_beginning(moment, images, tmp_path):
    """Before the first file is flushed and renamed, before the log is opened, before its first line, before the architecture is written."""
    folder, calls = tmp_path / "run", iter(range(1000))

    def prepare():
        def deadly(original):
            def call(*arguments, **options):
                if next(calls) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return call

        experiment.os = type("os", (), {**vars(os), "fsync": deadly(os.fsync), "replace": deadly(os.replace)})
        experiment._LogFile.__init__ = deadly(experiment._LogFile.__init__)
        experiment.Run.log = deadly(experiment.Run.log)

    command = [*TRAIN[:5], *SEARCH[1:5], "--batch_size", "8", "--fast_dev_run"]
    status, _ = run(command, images, "--run_dir", folder, prepare=prepare)
    assert status == -signal.SIGKILL
    if (folder / "config.json").exists():
        status, output = run(command[:1], images, "--resume", folder)
    else:
        status, output = run(command, images, "--run_dir", folder)
    assert status == 0, output
    assert Architecture.read(str(folder)).genotype == genotypes.DARTS_V2


def test_what_was_killed_at_the_beginning_is_no_run(tmp_path):
    """A folder that holds anything else is never written to."""
    args = argparse.Namespace(run_dir=str(tmp_path), save="", resume=None, checkpoint_minutes=10.0)
    for name in (".lock", "config.json.tmp", "log.txt"):
        (tmp_path / name).touch()
    (tmp_path / "config.json").write_text("")
    with pytest.raises(cli.UserError, match="never overwritten"):
        experiment.Run("search", args)
    (tmp_path / "config.json").unlink()
    with experiment.Run("search", args) as begun:
        begun.log("a line")
    (tmp_path / "config.json").unlink()
    with pytest.raises(cli.UserError, match="never overwritten"):
        experiment.Run("search", args)


def test_a_run_that_could_not_go_on_does_not_begin(images, tmp_path):
    """Without room for its config.json."""

    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    status, output = run(TRAIN, images, "--run_dir", tmp_path / "run", prepare=prepare)
    assert status == 2, output
    assert "config.json" in output.splitlines()[-1]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal(number, status, images, uninterrupted, tmp_path):
    child, reader = start(SEARCH, images, "--run_dir", tmp_path / "run", "--report_freq", "1")
    output = b""
    while b"train 001" not in output:  # in the middle of the first epoch; no checkpoint is due for ten minutes
        output += os.read(reader, 1000)
    os.kill(child, number)
    actual, rest = finish(child, reader)
    assert actual == status, rest
    assert f"--resume {tmp_path / 'run'}" in rest.splitlines()[-1]
    assert "Traceback" not in rest
    status, output = run(SEARCH, images, "--resume", tmp_path / "run")
    assert status == 0, output
    assert "going on from" in output
    assert "epoch 0, step 0" not in output
    assert_same(result(tmp_path / "run"), uninterrupted("first order")[0])


@pytest.fixture
def half(images, tmp_path):
    """A training run that was stopped in its second epoch, with a checkpoint and the one before it."""

    def prepare():
        original = experiment.Run.complete_step

        def stop(self):
            original(self)
            if (self.progress.epoch, self.progress.step) == (1, 2):
                os.kill(os.getpid(), signal.SIGKILL)

        experiment.Run.complete_step = stop

    status, _ = run(TRAIN, images, "--run_dir", tmp_path / "half", "--checkpoint_minutes", "0", prepare=prepare)
    assert status == -signal.SIGKILL
    return tmp_path / "half"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    """In the middle of the file: inside a tensor, where nothing but a checksum can tell."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, half, images, uninterrupted):
    damage(half / "checkpoint.pt")
    status, output = run(TRAIN, images, "--resume", half)
    assert status == 0, output
    assert "checkpoint.prev.pt: epoch 1, step 1" in output
    assert ("checkpoint.pt cannot be used" in output) == (half / "checkpoint.pt").exists() or damage.__name__ == "<lambda>"
    assert_same(result(half), uninterrupted("train")[0])


def test_two_damaged_checkpoints_are_an_error(half, images):
    truncate(half / "checkpoint.pt")
    truncate(half / "checkpoint.prev.pt")
    status, output = run(TRAIN, images, "--resume", half)
    assert status == 2
    assert "no checkpoint" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_a_checkpoint_that_would_run_code_is_refused(half, images, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'trap'}",)

    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        torch.save({"progress": Bomb()}, half / name)
    status, output = run(TRAIN, images, "--resume", half)
    assert status == 2, output
    assert not (tmp_path / "trap").exists()


def test_a_full_disk_costs_no_checkpoint(half, images, uninterrupted):
    """Files that may not grow beyond 100 kB: a checkpoint and the weights cannot be written, the log and the metrics can."""
    before = (half / "checkpoint.pt").read_bytes()

    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    status, output = run(TRAIN, images, "--resume", half, "--checkpoint_minutes", "0", prepare=prepare)
    assert status == 2, output
    assert "cannot write" in output
    assert "could not write checkpoint.pt, weights.pt" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert (half / "checkpoint.pt").read_bytes() == before
    assert not list(half.glob("*.tmp"))
    status, output = run(TRAIN, images, "--resume", half)
    assert status == 0, output
    assert_same(result(half), uninterrupted("train")[0])


def test_a_second_process_on_the_same_folder_is_refused(half, images):
    with filelock.FileLock(half / ".lock"):
        status, output = run(TRAIN, images, "--resume", half)
    assert status == 2
    assert "in use by another process" in output


def test_resuming_with_other_arguments(half, images, uninterrupted):
    for arguments, words in (
        (["--learning_rate", "0.1"], "--learning_rate was 0.025, not 0.1"),
        (["--epochs", "3"], "--epochs was 2, not 3"),
    ):
        status, output = run(["train"], images, "--resume", half, *arguments)
        assert status == 2
        assert words in output
    status, output = run(["train_search"], images, "--resume", half)
    assert status == 2
    assert "other script" in output
    status, output = run(["train"], images, "--resume", half, "--workers", "1", "--report_freq", "7", "--checkpoint_minutes", "3")
    assert status == 0, output
    assert_same(result(half), uninterrupted("train")[0])


def test_a_training_run_goes_on_with_the_architecture_that_it_began_with(images, tmp_path):
    """Whatever has become of the file that it came from."""
    source, folder = tmp_path / "genotype.json", tmp_path / "run"
    command = ["train", "--arch", str(source), *TRAIN[3:]]
    source.write_text(json.dumps(Architecture(genotypes.DARTS_V1).json))

    def prepare():
        experiment.Run.complete_epoch = lambda self, metrics: os.kill(os.getpid(), signal.SIGKILL)

    status, _ = run(command, images, "--run_dir", folder, prepare=prepare)
    assert status == -signal.SIGKILL
    for change in (lambda: source.write_text(json.dumps(Architecture(genotypes.DARTS_V2).json)), source.unlink):
        change()
        status, output = run(command[:1], images, "--resume", folder, prepare=prepare)
        assert status == -signal.SIGKILL, output
        assert Architecture.read(str(folder)).genotype == genotypes.DARTS_V1
    status, output = run(command[:1], images, "--resume", folder)
    assert status == 0, output
    assert str(genotypes.DARTS_V1) in output


SPY = """
from pathlib import Path
from small_space import Net
Path(__file__).with_name("imported").touch()
"""


def test_resuming_runs_no_code_that_only_the_folder_names(images, tmp_path):
    """The folder may be a stranger's: a space in a file is to be named on the command line, too."""
    space, trace, folder = tmp_path / "a space.py", tmp_path / "imported", tmp_path / "run of mine"
    space.write_text(SPY)
    name = f"{space}:Net"
    command = ["train_search", "--init_channels", "2", "--epochs", "1", "--batch_size", "4", "--space", name]

    def prepare():
        sys.path.append(str(EXAMPLES))
        original = experiment.Run.complete_step

        def stop(self):
            os.kill(os.getpid(), signal.SIGTERM)
            original(self)

        experiment.Run.complete_step = stop

    status, output = run(command, images, "--run_dir", folder, prepare=prepare)
    assert status == 128 + signal.SIGTERM, output
    trace.unlink()
    status, output = run(command[:1], images, "--resume", folder, prepare=prepare)
    assert (status, output.count("\n")) == (2, 1), output
    assert f"add --space '{name}'" in output
    assert not trace.exists()
    status, output = run(command[:1], images, "--resume", folder, "--space", f"{tmp_path / 'other.py'}:Net", prepare=prepare)
    assert (status, output.count("\n")) == (2, 1), output
    status, output = run(command[:1], images, "--resume", folder, "--space", name, prepare=prepare)
    assert status == 128 + signal.SIGTERM, output
    assert trace.exists()
    said = shlex.split(output.splitlines()[-1].partition("go on with: ")[2])
    assert said == ["python", "train_search.py", "--resume", str(folder), "--space", name]


def test_resuming_with_images_that_have_moved(half, images, uninterrupted, tmp_path, monkeypatch):
    shutil.copytree(images, tmp_path / "elsewhere" / "images")
    monkeypatch.chdir(tmp_path)
    status, output = run(["train"], Path("elsewhere/images"), "--resume", "half")
    assert status == 0, output
    assert_same(result(half), uninterrupted("train")[0])


def test_resuming_after_the_last_step_of_an_epoch(images, uninterrupted, tmp_path):
    """Stopped while it was measured: what is left of the epoch takes no step."""

    def prepare():
        utils.evaluate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    status, _ = run(TRAIN, images, "--run_dir", tmp_path / "run", prepare=prepare)
    assert status == -signal.SIGKILL
    status, output = run(TRAIN[:1], images, "--resume", tmp_path / "run")
    assert status == 0, output
    assert "epoch 0, step 4" in output
    assert "Warning" not in output
    assert_same(result(tmp_path / "run"), uninterrupted("train")[0])


def test_a_folder_whose_name_is_no_text(images, tmp_path):
    status, output = run(TRAIN, images, "--run_dir", f"{tmp_path}/\udcff")
    assert (status, output.count("\n")) == (2, 1), output
    assert "UTF-8" in output
    assert not list(tmp_path.iterdir())


def test_images_in_a_folder_whose_name_is_no_text(images, tmp_path):
    elsewhere = Path(f"{tmp_path}/\udcff")
    shutil.copytree(images, elsewhere)
    status, output = run([*TRAIN, "--fast_dev_run"], elsewhere, "--run_dir", tmp_path / "run")
    assert status == 0, output
    for said in (output, (tmp_path / "run" / "log.txt").read_text()):
        assert f"--data '{tmp_path}/\\udcff'" in said


def test_resuming_what_is_no_run(images, tmp_path):
    (tmp_path / "config.json").write_text('{"stage": "eval", "arguments": {"epochs": "many"}}')
    status, output = run(TRAIN[:1], images, "--resume", tmp_path)
    assert status == 2
    assert "--epochs" in output
    (tmp_path / "config.json").write_text("[]")
    status, output = run(TRAIN[:1], images, "--resume", tmp_path)
    assert (status, output.count("\n")) == (2, 1)
    status, output = run(TRAIN[:1], images, "--resume", tmp_path / "nowhere")
    assert (status, output.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "not one of a run"),
        ('{"stage": "eval", "arguments": {"help": true}}', "an argument that this version does not know, 'help'"),
        ('{"stage": "eval", "arguments": {"seed\\nx": 1}}', r"does not know, 'seed\nx'"),
        ('{"stage": "eval", "arguments": {"seed": "1\\n2"}}', "is not a whole number"),
        ('{"stage": "eval", "arguments": {"data": "a\\u0000b"}}', r"data is 'a\x00b'"),
        ('{"stage": "eval", "arguments": {"seed": [1]}}', "seed is [1]"),
        ('{"stage": "eval", "arguments": {"see": 1}}', "does not know, 'see'"),
    ],
    ids=["deep", "help", "newline in a name", "newline", "zero", "list", "abbreviated"],
)
def test_odd_configurations(images, tmp_path, content, words):
    (tmp_path / "config.json").write_text(content)
    status, output = run(TRAIN[:1], images, "--resume", tmp_path)
    assert (status, output.count("\n")) == (2, 1), output
    assert words in output


def test_a_flag_without_effect_is_warned_of_once(half, images):
    status, output = run(TRAIN[:1], images, "--resume", half, "--model_path", "x")
    assert status == 0, output
    assert output.count("--model_path has no effect") == 1


@pytest.mark.parametrize("command", [SEARCH, TRAIN])
def test_a_run_that_diverges_stops_and_keeps_a_good_checkpoint(command, images, tmp_path):
    status, output = run(command, images, "--run_dir", tmp_path / "run", "--learning_rate", "1e30", "--checkpoint_minutes", "0")
    assert status == 2
    assert "learning rate 1e+30" in output.splitlines()[-1]
    assert "--batch_size" in output.splitlines()[-1]
    assert "Warning" not in output
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["parts"]["meters"].values() if isinstance(value, torch.Tensor))
    assert np.isfinite([total for total, _ in state["parts"]["meters"].values()]).all()
