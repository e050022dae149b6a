"""A run is never lost: killed, stopped, damaged or out of disk, it goes on and ends as if nothing had happened."""

import argparse
import functools
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import filelock
import pytest
import scripts
import torch
from scripts import at, refused, result, run, signal_oneself, succeed

import experiment.run
import genotypes
import utils
from architectures.cells import Cells
from experiment import errors

CPU = torch.device("cpu")
SIZE = ["--init_channels", "2", "--layers", "3", "--epochs", "2"]
SEARCH = ["train_search", *SIZE, "--nodes", "1", "--layers", "1", "--batch_size", "4"]
TRAIN = ["train", "--arch", "DARTS_V2", "--auxiliary", "--cutout", *SIZE, "--batch_size", "8"]


@pytest.fixture(scope="module")
def uninterrupted(undisturbed, images):
    return functools.partial(undisturbed, data=images)


def goes_on(folder, images, expected, *arguments, command=TRAIN):
    """The run in `folder` goes on and ends as the one that nothing disturbed; returns its output."""
    output = succeed(command[:1], images, "--resume", folder, *arguments)
    scripts.assert_same(result(folder), expected[0])
    return output


def full_disk(size):
    """For `prepare`: files may not grow beyond so many bytes."""

    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return prepare


@pytest.mark.parametrize("command", [SEARCH, TRAIN], ids=["search", "train"])
def test_killed_at_random_moments(command, images, uninterrupted, tmp_path):
    scripts.kill_at_random_moments(command[0], command, images, *uninterrupted(command), tmp_path)


def test_what_was_killed_at_the_beginning_is_no_run(tmp_path):
    """A folder that holds anything else is never written to."""
    args = argparse.Namespace(run_dir=str(tmp_path), save="", resume=None, checkpoint_minutes=10.0)
    for name in (".lock", "config.json.tmp", "log.txt"):
        (tmp_path / name).touch()
    (tmp_path / "config.json").write_text("")
    with pytest.raises(errors.UserError, match="never overwritten"):
        experiment.run.Run("search", args, CPU)
    (tmp_path / "config.json").unlink()
    with experiment.run.Run("search", args, CPU) as begun:
        begun.log("a line")
    (tmp_path / "config.json").unlink()
    with pytest.raises(errors.UserError, match="never overwritten"):
        experiment.run.Run("search", args, CPU)


def test_a_run_that_could_not_go_on_does_not_begin(images, tmp_path):
    """Without room for its config.json."""
    assert "config.json" in refused(TRAIN, images, "--run_dir", tmp_path / "run", prepare=full_disk(100))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_stopped_by_a_signal(number, status, images, uninterrupted, tmp_path):
    child, reader = scripts.start(SEARCH, images, "--run_dir", tmp_path / "run", "--report_freq", "1")
    until(reader, b"train 001")  # in the middle of the first epoch; no checkpoint is due for ten minutes
    os.kill(child, number)
    time.sleep(0.05)
    os.kill(child, number)  # as `timeout` does: both count as one
    actual, rest = scripts.finish(child, reader)
    assert actual == status, rest
    assert f"--resume {tmp_path / 'run'}" in rest.splitlines()[-1]
    assert "Traceback" not in rest
    output = goes_on(tmp_path / "run", images, uninterrupted(SEARCH), command=SEARCH)
    assert "going on from" in output
    assert "epoch 0, step 0" not in output


def until(reader, words):
    """Reads a child's output until these words have come."""
    output = b""
    while words not in output:
        output += os.read(reader, 1000)


def test_a_second_signal_ends_a_run_at_once(images, uninterrupted, tmp_path):
    """In the middle of a step, with the checkpoint from before it; what `timeout` sends twice counts as one."""
    folder = tmp_path / "run"

    def wait():
        print("a long step", flush=True)
        time.sleep(600)

    minutes = "--checkpoint_minutes", "0"
    child, reader = scripts.start(TRAIN, images, "--run_dir", folder, *minutes, prepare=at(1, 2, wait))
    until(reader, b"a long step")
    before = (folder / "checkpoint.pt").read_bytes()
    os.kill(child, signal.SIGTERM)
    time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    time.sleep(1)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it waits for the step
    os.kill(child, signal.SIGTERM)
    assert scripts.finish(child, reader)[0] == -signal.SIGTERM
    assert (folder / "checkpoint.pt").read_bytes() == before
    goes_on(folder, images, uninterrupted(TRAIN))


def test_a_run_started_by_nohup_outlives_its_terminal(images, tmp_path):
    def prepare():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        experiment.run.Run.complete_step = lambda self: os.kill(os.getpid(), signal.SIGHUP)

    succeed([*TRAIN, "--fast_dev_run"], images, "--run_dir", tmp_path / "run", prepare=prepare)


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """A training run that was killed in its second epoch, with a checkpoint and the one before it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    kill = at(1, 3, signal_oneself(signal.SIGKILL))
    status, _ = run(TRAIN, images, "--run_dir", folder, "--checkpoint_minutes", "0", prepare=kill)
    assert status == -signal.SIGKILL
    return folder


@pytest.fixture
def half(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "half"))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    """Inside a tensor, where nothing but a checksum can tell."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, half, images, uninterrupted):
    damage(half / "checkpoint.pt")
    output = goes_on(half, images, uninterrupted(TRAIN))
    assert "checkpoint.prev.pt: epoch 1, step 1" in output
    assert ("checkpoint.pt cannot be used" in output) == (damage is not Path.unlink)


def test_a_checkpoint_that_would_run_code_is_refused(half, images, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'trap'}",)

    for name in ("checkpoint.pt", "checkpoint.prev.pt"):
        torch.save({"progress": Bomb()}, half / name)
    assert "no checkpoint" in refused(TRAIN[:1], images, "--resume", half)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda state: state["progress"].update(epoch="1"),
        lambda state: state["parts"].pop("meters"),
        lambda state: state["parts"].update(model=torch.nn.Linear(2, 4).state_dict()),
        lambda state: state["random"].update(torch=[]),
    ],
    ids=["progress in words", "no meters", "another network", "random states"],
)
def test_a_checkpoint_of_something_else_is_refused(edit, half, images):
    state = torch.load(half / "checkpoint.pt", weights_only=True)
    edit(state)
    torch.save(state, half / "checkpoint.pt")
    (half / "checkpoint.prev.pt").unlink()
    assert f"no checkpoint in {half} can be used" in refused(TRAIN[:1], images, "--resume", half)


def test_a_full_disk_costs_no_checkpoint(half, images, uninterrupted):
    """A checkpoint and the weights cannot be written, the log and the metrics can."""
    before = (half / "checkpoint.pt").read_bytes()
    minutes = "--checkpoint_minutes", "0"
    line = refused(TRAIN[:1], images, "--resume", half, *minutes, prepare=full_disk(100_000))
    assert "could not write checkpoint.pt, weights.pt" in line
    assert "cannot write" in (half / "log.txt").read_text()
    assert (half / "checkpoint.pt").read_bytes() == before
    assert not list(half.glob("*.tmp"))
    goes_on(half, images, uninterrupted(TRAIN))


def test_nothing_is_written_through_a_link(half, images, uninterrupted, tmp_path):
    """A link that is there before the run is refused; one that comes later is replaced."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (half / "weights.pt.tmp").symlink_to(precious)
    assert "weights.pt.tmp is a link" in refused(TRAIN[:1], images, "--resume", half)
    (half / "weights.pt.tmp").unlink()

    def prepare():
        original = experiment.run.Run.restore

        def restore(self, *arguments, **parts):
            for name in ("metrics.jsonl", "weights.pt.tmp", "checkpoint.pt.tmp"):
                (half / name).unlink(missing_ok=True)
                (half / name).symlink_to(precious)
            return original(self, *arguments, **parts)

        experiment.run.Run.restore = restore

    succeed(TRAIN[:1], images, "--resume", half, prepare=prepare)
    assert precious.read_text() == "precious"
    scripts.assert_same(result(half), uninterrupted(TRAIN)[0])


def test_a_run_goes_on_with_its_number_of_threads(half, images):
    """Or says that it does not."""
    if torch.get_num_threads() > 1:
        pytest.skip("the runs are forked, and a process whose threads have run cannot fork one that uses threads")
    scripts.edit(half / "config.json", threads=2)

    def prepare():
        os.cpu_count = lambda: 8
        experiment.run.Run.complete_step = lambda self: print(f"computed with {torch.get_num_threads()}") or sys.exit(7)

    for arguments, words in (
        ([], "going on with 2 threads, as the run began: with 1, results would differ"),
        (["--threads", "1"], "warning: the run began with 2 threads: with 1, results differ"),
    ):
        status, output = run(["train"], images, "--resume", half, *arguments, prepare=prepare)
        assert status == 7, output
        assert words in output
        assert f"computed with {1 if arguments else 2}" in output


def test_an_error_of_the_gpu_is_not_a_damaged_checkpoint_and_not_a_full_disk(half, images):
    """Whatever a device raises while a checkpoint is read or written is let through, with what helps."""

    def fails(name):
        def prepare():
            def fail(*_, **__):
                raise torch.OutOfMemoryError("CUDA out of memory")

            setattr(torch.optim.SGD, name, fail)

        return prepare

    for name in ("load_state_dict", "state_dict"):
        status, output = run(TRAIN, images, "--resume", half, "--checkpoint_minutes", "0", prepare=fails(name))
        assert status == 1, output
        assert "not enough memory; a smaller --batch_size" in output.splitlines()[-1]
        assert "no checkpoint" not in output
        assert "cannot write" not in output


def test_a_second_process_on_the_same_folder_is_refused(half, images):
    with filelock.FileLock(half / ".lock"):
        assert "in use by another process" in refused(TRAIN[:1], images, "--resume", half)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train", "--epochs 3", "--epochs was 2, not 3: .* with its weights: --init_from {half}/weights.pt"),
        ("train", "--save other", "--save was EXP, not other"),
        ("train", "--run_dir other", "--resume {half} goes on in that folder: leave out --run_dir other"),
        ("train_search", "", "is a run of another script"),
    ],
)
def test_resuming_with_other_arguments(half, images, script, arguments, words):
    line = refused([script], images, "--resume", half, *arguments.split())
    assert re.search(words.format(half=half), line)
    assert not Path("other").exists()


def test_resuming_with_arguments_that_may_differ(half, images, uninterrupted, tmp_path, monkeypatch):
    """And with images that have moved."""
    shutil.copytree(images, tmp_path / "elsewhere" / "images")
    monkeypatch.chdir(tmp_path)
    differ = ["--workers", "1", "--report_freq", "7", "--checkpoint_minutes", "3"]
    goes_on(Path("half"), Path("elsewhere/images"), uninterrupted(TRAIN), *differ)


def test_a_training_run_goes_on_with_the_architecture_that_it_began_with(images, tmp_path):
    """Whatever has become of the file that it came from."""
    source, folder = tmp_path / "genotype.json", tmp_path / "run"
    command = ["train", "--arch", str(source), *TRAIN[3:]]
    source.write_text(json.dumps(Cells(genotypes.DARTS_V1).json))

    def prepare():
        experiment.run.Run.complete_epoch = lambda self, metrics: os.kill(os.getpid(), signal.SIGKILL)

    assert run(command, images, "--run_dir", folder, prepare=prepare)[0] == -signal.SIGKILL
    for change in (lambda: source.write_text(json.dumps(Cells(genotypes.DARTS_V2).json)), source.unlink):
        change()
        assert str(genotypes.DARTS_V1) in succeed(command[:1], images, "--resume", folder)


def test_resuming_after_the_last_step_of_an_epoch(images, uninterrupted, tmp_path):
    """Stopped while it was measured: what is left of the epoch takes no step."""

    def prepare():
        utils.evaluate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    status, _ = run(TRAIN, images, "--run_dir", tmp_path / "run", prepare=prepare)
    assert status == -signal.SIGKILL
    output = goes_on(tmp_path / "run", images, uninterrupted(TRAIN))
    assert "epoch 0, step 4" in output
    assert "Warning" not in output


def test_images_in_a_folder_whose_name_is_no_text(images, tmp_path):
    elsewhere = Path(f"{tmp_path}/\udcff")
    shutil.copytree(images, elsewhere)
    output = succeed([*TRAIN, "--fast_dev_run"], elsewhere, "--run_dir", tmp_path / "run")
    for said in (output, (tmp_path / "run" / "log.txt").read_text()):
        assert f"data='{tmp_path}/\\udcff'" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read {folder}/config.json: No such file"),
        ("[" * 100_000, "{folder}/config.json is damaged or was edited"),
        ('{"stage": "eval", "arguments": {"epochs": "many"}}', "argument --epochs: 'many' is not a whole number"),
        ('{"stage": "eval", "arguments": {"help": true}}', "an argument that this version does not know, 'help'"),
    ],
    ids=["nothing", "deep", "number", "unknown"],
)
def test_what_is_no_run_is_not_resumed(images, tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert words.format(folder=tmp_path) in refused(TRAIN[:1], images, "--resume", tmp_path)


@pytest.mark.parametrize("command", [SEARCH, TRAIN])
def test_a_run_that_diverges_stops_and_keeps_a_good_checkpoint(command, images, tmp_path):
    flags = ["--learning_rate", "1e30", "--checkpoint_minutes", "0"]
    line = refused(command, images, "--run_dir", tmp_path / "run", *flags)
    assert "learning rate 1e+30" in line
    assert "--batch_size" in line
    assert "Warning" not in line
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["parts"]["model"].values())
