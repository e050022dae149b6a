"""Scripts as a user runs them, in child processes, and what they leave."""

import contextlib
import importlib.util
import io
import json
import os
import random
import re
import shlex
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import experiment.run
from experiment import cli
from experiment.loop import MEASURED

KILLS = int(os.environ.get("KILLS", "1"))


def load(name):
    """The script as a module; by its path, because the standard library has a `test`, too."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", Path(__file__).parent.parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(command, images, *arguments, prepare=lambda: None):
    """`start_plain` on images: their folder, or the flags that name other data."""
    data = ["--dataset", "folder", "--data", str(images), "--image_size", "16", "--workers", "0"]
    return start_plain([*command, "--gpu", "-1", *(images if isinstance(images, list) else data), *arguments], prepare)


def start_plain(command, prepare=lambda: None):
    """A script in a child process that shares the loaded modules: its number and a pipe with its output."""
    name, *rest = command
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    status = 1
    try:
        torch.set_num_threads(1)  # this process would wait for the threads of the one that was forked
        os.dup2(writer, 1), os.dup2(writer, 2)
        for stream, fd, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):  # as Python's own
            setattr(sys, stream, io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), write_through=True, errors=errors))
        warnings.simplefilter("ignore"), warnings.simplefilter("default", UserWarning)  # pytest keeps all to itself
        warnings.showwarning = lambda message, category, *_: print(f"{category.__name__}: {message}", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as from a terminal
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        sys.argv = [f"{name}.py", *map(str, rest)]
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


def succeed(command, images, *arguments, **options):
    """The output of a command that ends well."""
    status, output = run(command, images, *arguments, **options)
    assert status == 0, output
    return output


def refused(command, images, *arguments, **options):
    """The one line that a command ends with, after what its log has said."""
    status, output = run(command, images, *arguments, **options)
    assert status == 2, output
    assert "Traceback" not in output
    return output.splitlines()[-1]


def at(epoch, step, action):
    """For `prepare`: `action()` is called when this step of a run, counted from 1, is done and not yet recorded."""

    def prepare():
        original = experiment.run.Run.complete_step

        def complete_step(run):
            if (run.progress.epoch, run.progress.step + 1) == (epoch, step):
                action()
            original(run)

        experiment.run.Run.complete_step = complete_step

    return prepare


def signal_oneself(number):
    return lambda: os.kill(os.getpid(), number)


def arguments_of(folder):
    """The arguments on record in a run's config.json."""
    return json.loads(Path(folder, "config.json").read_text())["arguments"]


def edit(path, **fields):
    """Replaces fields of the object in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def save_image(path, pixels, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).convert(mode).save(path)


def rows_of(folder):
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def result(folder):
    """All that a run leaves, but for times."""
    metrics = rows_of(folder)
    for row in metrics:
        assert all(row.pop(key) > 0 for key in MEASURED)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state["progress"]["seconds"]
    for row in state["progress"]["metrics"]:
        for key in MEASURED:
            del row[key]
    files = {path.name: path.read_bytes() for path in folder.glob("*.json") if path.name != "config.json"}
    weights = [
        torch.load(path, weights_only=True) for path in (folder / "weights.pt", folder / "best.pt") if path.exists()
    ]
    return metrics, weights, state, files


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


def kill_at_random_moments(name, command, images, expected, duration, folder):
    """Kills a command `KILLS` times, each time goes on with its run, and compares what it leaves.

    `expected`, `duration`: result and seconds of the command where nothing disturbs it. `folder`: for its runs.
    """
    moments, runs, kills = random.Random(name), 1, 0
    while True:
        run_dir = folder / f"run{runs}"
        begun = (run_dir / "config.json").exists()  # else it was killed before there was a run
        child, reader = start(
            command, images, "--resume" if begun else "--run_dir", run_dir, "--checkpoint_minutes", "0"
        )
        if kills < KILLS:
            time.sleep(moments.uniform(0, 0.75 * duration))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status, output = finish(child, reader)
        if status == -signal.SIGKILL:
            kills += 1
            continue
        assert status == 0, output
        assert_same(result(run_dir), expected)
        if kills == KILLS:
            break
        runs += 1  # it came to its end before it was killed
    print(f"{name}: killed {kills} times in {runs} runs")


def log_lines(folder):
    """The log without its times."""
    return without_times((folder / "log.txt").read_text())


def without_times(text):
    """The lines of a log without the time of day, seconds per step, and time left."""
    lines = [re.sub(r"^\d\d/\d\d \d\d:\d\d:\d\d [AP]M ", "", line) for line in text.splitlines()]
    lines = [re.sub(r" \| \d+\.\d\d s/(step|batch), [\d a-z]+ left( to evaluate)?$", "", line) for line in lines]
    return [line for line in lines if not line.startswith(("pace: ", "the whole run: "))]


def said(lines, label):
    """The words of the command that follows `label` in a log."""
    [command] = [line.partition(label)[2] for line in lines if label in line]
    return shlex.split(command)


def check_measured(lines, row):
    """The output of test.py has the accuracy, which is coarse, and the loss of this row of metrics.jsonl."""
    found = [float(said(lines, name)[0]) for name in ("test_acc ", "test_loss ")]
    assert found == pytest.approx([row["test_acc"], row["test_loss"]], rel=1e-5)
