"""Runs that are killed at random moments, `KILLS=20 pytest -s -n0 tests/thorough/test_kills.py` times each."""

import shlex

import pytest
import test_rnn_scripts as rnn
from scripts import kill_at_random_moments
from test_resume import SIZE, TRAIN
from test_rnn_scripts import text  # noqa: F401

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
    "recurrent, first order": rnn.SEARCH[:-1],
    "recurrent, second order": rnn.SEARCH,
    "recurrent, exact": [*rnn.SEARCH, "--hvp", "exact", "--epochs", "1"],
    "recurrent, faithful": [*rnn.SEARCH, "--faithful"],
    "recurrent, train": rnn.TRAIN,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(name, images, text, undisturbed, tmp_path):  # noqa: F811
    data = text if name.startswith("recurrent") else images
    kill_at_random_moments(name, COMMANDS[name], data, *undisturbed(COMMANDS[name], data), tmp_path)
