"""Runs that are killed at random moments, `KILLS=20 pytest -s -n0 tests/thorough/test_kills.py` times each, or while
they write a file.
"""

import shlex

import pytest
from scripts import kill_at_random_moments
from test_resume import SEARCH, SIZE, TRAIN, kill_while_writing, uninterrupted  # noqa: F401

CELLS = ["train_search", *SIZE, "--batch_size", "8"]
COMMANDS = {
    "first order": CELLS,
    "second order": [*CELLS, "--unrolled"],
    "exact": [*CELLS, "--unrolled", "--hvp", "exact"],
    "exact on nasbench201": [*CELLS, "--space", "nasbench201", "--unrolled", "--hvp", "exact"],
    "enas": [*CELLS, "--space", "nasbench201", "--strategy", "enas"],
    "random": [*CELLS, "--space", "enas_macro", "--strategy", "random"],
    "train": TRAIN,
    "best epoch": [*TRAIN, *shlex.split("--valid_portion 0.25 --optimizer adam --learning_rate 0.001")],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(name, images, uninterrupted, tmp_path):  # noqa: F811
    kill_at_random_moments(name, COMMANDS[name], images, *uninterrupted(COMMANDS[name]), tmp_path)


@pytest.mark.parametrize("moment", range(40))
@pytest.mark.parametrize("command", [SEARCH, TRAIN], ids=["search", "train"])
def test_killed_while_writing(command, moment, images, uninterrupted, tmp_path):  # noqa: F811
    kill_while_writing(command, moment, images, uninterrupted(command)[0], tmp_path / "run")
