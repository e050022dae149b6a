"""Runs that are killed at random moments, `KILLS=20 pytest -s -n0 tests/thorough/test_kills.py` times each."""

import shlex

import pytest
from scripts import kill_at_random_moments
from test_resume import SIZE, TRAIN

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
def test_killed_at_random_moments(name, images, undisturbed, tmp_path):
    kill_at_random_moments(name, COMMANDS[name], images, *undisturbed(COMMANDS[name], images), tmp_path)
