"""Recurrent runs that are killed at random moments."""

import pytest
from scripts import kill_at_random_moments
from test_rnn_scripts import SEARCH, TRAIN, text  # noqa: F401

KILLED = {
    "first order": SEARCH[:-1],
    "second order": SEARCH,
    "exact": [*SEARCH, "--hvp", "exact", "--epochs", "1"],
    "faithful": [*SEARCH, "--faithful"],
    "train": TRAIN,
}


@pytest.mark.parametrize("name", KILLED)
def test_killed_at_random_moments(name, text, undisturbed, tmp_path):  # noqa: F811
    kill_at_random_moments(name, KILLED[name], text, *undisturbed(KILLED[name], text), tmp_path)
