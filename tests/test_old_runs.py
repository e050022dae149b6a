"""A run's folder of November 2026, stopped in its second of two epochs, goes on being of use: it draws, resumes, and feeds train.py.

    python train_search.py --dataset digits --gpu -1 --init_channels 2 --layers 3 --epochs 2 --batch_size 64 --arch_learning_rate 0.01

Left out are weights.pt, the checkpoint before the last, and TensorBoard's events; the checkpoint is compressed.
"""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch

OLD = Path(__file__).parent / "fixtures" / "run_2026_11"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(OLD, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt.xz").unlink()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(lzma.decompress((OLD / "checkpoint.pt.xz").read_bytes()))
    # With the threads that tests compute with: it began with two, which slow each other down where tests share the cores.
    config = json.loads((OLD / "config.json").read_text()) | {"threads": torch.get_num_threads()}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path / "run"


def test_it_draws(script, folder):
    status, out, error = script("visualize", "run", "--report")
    assert (status, error) == (0, "")
    names = ["normal.png", "reduction.png", "cells.gif", "curves.png", "alphas.png", "operations.png", "report.html"]
    assert out.splitlines() == [f"run/{name}" for name in names]


def test_it_goes_on_from_the_step_at_which_it_stopped(script, folder):
    recorded = (folder / "metrics.jsonl").read_text()
    status, out, error = script("train_search", "--resume", "run")
    assert (status, error) == (0, "")
    assert f"going on from {folder}/checkpoint.pt: epoch 1, step 7" in out
    metrics = (folder / "metrics.jsonl").read_text()
    assert metrics.startswith(recorded)
    before, after = map(json.loads, metrics.splitlines())
    assert after["epoch"] == 1
    assert after.keys() == before.keys()
    assert after["alphas"].keys() == before["alphas"].keys()
    assert after["alphas"]["normal_n2_p0"].keys() == before["alphas"]["normal_n2_p0"].keys()
    assert after["genotype"] == json.loads((folder / "genotype.json").read_text())


def test_it_feeds_the_training(script, folder):
    arguments = ["--dataset", "digits", "--gpu", "-1", "--init_channels", "2", "--layers", "3", "--batch_size", "8", "--fast_dev_run"]
    status, _, error = script("train", "--arch", "run", *arguments, "--run_dir", "trained")
    assert (status, error) == (0, "")
    assert json.loads(Path("trained/genotype.json").read_text()) == json.loads((OLD / "genotype.json").read_text())
