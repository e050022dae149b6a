import itertools
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from scripts import load, result, save_image, succeed

from experiment import cli

# Tiny networks gain nothing from more threads, and lose much where other processes compete for the cores; in the
# scripts' processes, too.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def threads():
    """A run that goes on takes the number of threads that it began with, for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """Runs a script's `main` in an empty folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        try:
            cli.run(load(name).main)
            status = 0
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def done(script):
    """Runs a command that succeeds, and returns the lines of its output."""

    def run(name, *arguments):
        status, out, error = script(name, *arguments)
        assert (status, error) == (0, "")
        return out.splitlines()

    return run


@pytest.fixture
def refused(script):
    """Runs a command that ends in one line on standard error, and returns it."""

    def run(name, *arguments):
        status, out, error = script(name, *arguments)
        assert (status, out, error.count("\n")) == (2, "", 1), error
        return error

    return run


@pytest.fixture
def no_waiting():
    """A test that waits, for a pipe, fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def double():
    """Double precision by default, for comparisons to the last decimals."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of 32 small images of two classes to train on, 8 to test on."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 4)):
        for label, number in itertools.product(("dark", "light"), range(count)):
            pixels = generator.integers(0, 128, (16, 16, 3)) + 127 * (label == "light")
            save_image(root / part / label / f"{number}.png", pixels)
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(result, seconds) of a command on images or a text, that nothing disturbs; computed once."""
    results = {}

    def get(command, data):
        if (key := str((command, data))) not in results:
            folder, started = tmp_path_factory.mktemp("undisturbed") / "run", time.monotonic()
            succeed(command, data, "--run_dir", folder)
            results[key] = result(folder), time.monotonic() - started
        return results[key]

    return get
