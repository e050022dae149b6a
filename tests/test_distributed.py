"""Several processes learn as one would from the whole batch; one writes; none is left behind when another ends.

Processes are forked, on the CPU, and speak over 127.0.0.1. tests/thorough/test_torchrun.py starts them by torchrun.
"""

import itertools
import json
import os
import pickle
import signal
import socket
import time
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from scripts import assert_same, at, finish, load, result, signal_oneself, start
from torch import nn
from torch.utils import _pytree as pytree

import genotypes
from experiment import distributed, errors

ROOT = Path(__file__).parent.parent

# Reductions in another order: rounding, and what a few steps make of it. Anything that is wrong is larger by many
# orders.
TOLERANCE = 1e-9


def environment(processes):
    """What torchrun would set, for each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(processes)]


def together(processes, function, *arguments):
    """What `function(*arguments)` returns in each of the processes of a group, in double precision."""
    children = []
    for variables in environment(processes):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)  # as in scripts.start_plain
                os.environ.update(variables)
                torch.set_default_dtype(torch.float64)
                distributed.join(torch.device("cpu"))
                value = function(*arguments)
            except BaseException:
                value = traceback.format_exc()
            with open(writer, "wb") as pipe:
                pickle.dump(value, pipe)
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    values = []
    for child, reader in children:
        with open(reader, "rb") as pipe:
            values.append(pickle.load(pipe))
        os.waitpid(child, 0)
    assert not any(isinstance(value, str) for value in values), "\n".join(map(str, values))
    return values


def launch(processes, command, images, *arguments, prepare=lambda rank: None, double=True):
    """A script in each of the processes of a group: (exit status or minus the signal, output) of each."""

    def prepare_one(rank, variables):
        os.environ.update(variables)
        torch.set_default_dtype(torch.float64 if double else torch.float32)
        prepare(rank)

    children = []
    for rank, variables in enumerate(environment(processes) if processes > 1 else [{}]):
        children.append(start(command, images, *arguments, prepare=partial(prepare_one, rank, variables)))
    return [finish(*child) for child in children]


def assert_close(left, right):
    """Equal to `TOLERANCE`, beside 1 or relative to what is larger; what is no number, exactly."""
    (ours, structure), (theirs, expected) = pytree.tree_flatten(left), pytree.tree_flatten(right)
    assert structure == expected
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, float | torch.Tensor):
            torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)
        else:
            assert one == other


def random_numbers():
    torch.manual_seed(0)
    before = torch.rand(3)
    distributed.own_random_numbers()
    own = torch.rand(3)
    distributed.same_random_numbers(torch.device("cpu"))
    return before, own, torch.rand(3)


def test_random_numbers_of_ones_own_and_of_all():
    before, own, same = zip(*together(3, random_numbers), strict=True)
    assert_same(before[1:], before[:1] * 2)
    assert len({tuple(numbers.tolist()) for numbers in own}) == 3
    assert_same(same[1:], same[:1] * 2)
    torch.manual_seed(0)
    alone = [torch.rand(3, dtype=torch.float64) for _ in range(3)]  # process 0's are as ever
    assert_same([before[0], own[0], same[0]], alone)


def synchronized(differ):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    nn.init.ones_(model[0].weight), nn.init.ones_(model[0].bias)
    model[1].running_mean.fill_(distributed.rank())
    if differ and distributed.rank() == 1:
        with torch.no_grad():
            model[0].bias[1] += 1e-15
    try:
        distributed.synchronize(model)
    except errors.UserError as error:
        return [str(error)]
    return model[1].running_mean


def test_the_end_of_an_epoch():
    for mean in together(3, synchronized, False):
        assert_close(mean, torch.ones(2, dtype=torch.float64))
    for [message] in together(3, synchronized, True):
        assert message.startswith("0.bias is not the same on all processes")


# ---- Runs

SPACE = ["--space", f"{ROOT}/examples/small_space.py:Net", "--init_channels", "4", "--batch_size", "8", "--sync_bn"]
CELLS = ["--init_channels", "2", "--layers", "3", "--batch_size", "8", "--sync_bn", "--epochs", "1"]
SEARCH = ["train_search", *SPACE, "--epochs", "2"]
ARCH = ["--arch", '{"first": 0, "second": 1, "skip": 0}']
COMMANDS = {
    "second order": [*SEARCH, "--unrolled"],
    "enas": [*SEARCH, "--strategy", "enas"],
    "train": ["train", *SPACE, *ARCH, "--epochs", "2", "--valid_portion", "0.25"],
}
EDGES = [("sep_conv_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 0), ("dil_conv_3x3", 2)]
UNUSED = str(genotypes.Genotype(EDGES, [2, 3], EDGES, [2]))  # some of its operations are used by nothing
EPOCHS = {
    "first order": ["train_search", *CELLS, "--nodes", "1"],
    "exact": [*SEARCH, "--unrolled", "--hvp", "exact"],
    "random": [*SEARCH, "--strategy", "random"],
    "gdas, warm-up": [*SEARCH, "--strategy", "gdas", "--arch_warmup", "1"],
    "train": ["train", *CELLS, "--arch", UNUSED, "--auxiliary", "--cutout", "--drop_path_prob", "0"],
}


@pytest.mark.parametrize("command", EPOCHS.values(), ids=EPOCHS)
def test_processes_learn_what_one_learns_from_the_whole_batch(command, images, tmp_path):
    """Three have unequal shares of the batches of 8 images."""
    for processes in (1, 3):
        for status, output in launch(processes, command, images, "--run_dir", tmp_path / str(processes)):
            assert status == 0, output
    assert_close(result(tmp_path / "3"), result(tmp_path / "1"))


def test_batches_that_cannot_be_shared(images, tmp_path):
    ends = launch(4, SEARCH, images, "--batch_size", "7", "--run_dir", tmp_path / "run")
    assert [status for status, _ in ends] == [2] * 4
    assert "--batch_size 7 is shared by 4 processes" in ends[0][1]


def on(rank, prepare):
    """For `launch`: `prepare` in one of the processes."""
    return lambda number: prepare() if number == rank else None


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_any_number_of_processes_goes_on(command, images, tmp_path):
    """Two processes, of which the second is asked to stop; one, asked as well; four: as one that was never asked."""
    [(status, output)] = launch(1, command, images, "--run_dir", tmp_path / "one")
    assert status == 0, output
    folder = tmp_path / "run"
    stop = on(1, at(0, 1, signal_oneself(signal.SIGTERM)))
    stopped = launch(2, command, images, "--run_dir", folder, prepare=stop)
    assert [status for status, _ in stopped] == [143, 143], stopped
    assert stopped[1][1] == ""
    assert f"--resume {folder}" in stopped[0][1].splitlines()[-1]
    assert json.loads((folder / "config.json").read_text())["processes"] == 2
    resume = [*command[:1], *SPACE[:2], "--resume", str(folder)]
    [(status, output)] = launch(1, resume, images, prepare=on(0, at(1, 1, signal_oneself(signal.SIGINT))))
    assert status == 130, output
    assert "epoch 0, step 1" in output
    (status, output), *others = launch(4, resume, images)
    assert status == 0, output
    assert "epoch 1, step 1" in output
    assert others == [(0, "")] * 3
    assert_close(result(folder), result(tmp_path / "one"))
    ours, others = ({path.name for path in folder.glob("[!e]*")} for folder in (folder, tmp_path / "one"))
    assert ours - {"checkpoint.prev.pt"} == others - {"checkpoint.prev.pt"}


def killed_in_backward():
    """In its second one."""
    original, calls = torch.Tensor.backward, itertools.count()

    def backward(loss, **options):
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        original(loss, **options)

    torch.Tensor.backward = backward


@pytest.mark.parametrize(
    ("name", "prepare"), [("second order", at(0, 1, signal_oneself(signal.SIGKILL))), ("train", killed_in_backward)]
)
def test_a_process_that_dies_ends_the_others(name, prepare, images, tmp_path):
    started = time.monotonic()
    ends = launch(3, COMMANDS[name], images, "--run_dir", tmp_path / "run", prepare=on(2, prepare))
    assert time.monotonic() - started < 60
    for rank, (status, output) in enumerate(ends):
        assert status == (-signal.SIGKILL if rank == 2 else 2), output
        if rank != 2:
            assert "another process of this run has ended" in output.splitlines()[-1]
            assert "Traceback" not in output


def test_a_process_that_hangs_ends_the_others(images, tmp_path):
    def prepare(rank):
        distributed.TIMEOUT = timedelta(seconds=3)
        on(1, at(0, 1, lambda: time.sleep(5)))(rank)

    (status, output), *_ = launch(2, SEARCH, images, "--run_dir", tmp_path / "run", prepare=prepare)
    assert status == 2, output
    assert "does not answer" in output.splitlines()[-1]


def search_with_a_slow_callback(images, folder):
    arguments = {"image_size": 16, "workers": 0, "gpu": -1, "init_channels": 4, "batch_size": 8, "epochs": 1}
    slow = [lambda epoch, row: time.sleep(5)]
    found = load("train_search").search(SPACE[1], images=images, callbacks=slow, run_dir=str(folder), **arguments)
    return [str(found)]


def test_the_others_wait_while_the_first_is_busy(images, tmp_path, monkeypatch):
    """Five minutes in a callback, with all times divided by 60."""
    monkeypatch.setattr(distributed, "TIMEOUT", distributed.TIMEOUT / 60)
    one, other = together(2, search_with_a_slow_callback, images, tmp_path / "run")
    assert one == other


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_an_error_of_one_s_own_is_not_another_process_s(error):
    with pytest.raises(type(error)), distributed.others():
        raise error


def test_restarts_need_a_folder(images, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    [(status, output)] = launch(1, SEARCH, images)
    assert status == 2
    assert "--max_restarts needs --run_dir" in output
