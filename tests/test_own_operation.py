"""docs/own_operation.md, done exactly as it says in a copy of the project; and operations that do not work."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import rows_of, save_image
from torch import nn

import genotypes
import model_search
import operations
import train_search
from model import NetworkCIFAR

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own_operation.md").read_text()
TINY = ["--dataset", "digits", "--gpu", "-1", "--init_channels", "2", "--layers", "3", "--batch_size", "8"]
SHORT = [*TINY, "--fast_dev_run"]

# Runs scripts one after the other in one process: importing torch takes longer than they do.
DRIVER = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as exit:
        assert not exit.code, (command, exit.code)
"""


def copy_project(folder):
    packages = {path.parent for path in ROOT.glob("*/*.py")} - {ROOT / "tests"}
    inside = (path for package in packages for path in package.rglob("*") if path.suffix in (".py", ".html"))
    for path in [*ROOT.glob("*.py"), *inside]:
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.relative_to(ROOT))


def insert(path, opening, text):
    """Puts `text` behind the line `opening`."""
    source = path.read_text()
    assert source.count(opening) == 1
    path.write_text(source.replace(opening, opening + text))


def run(folder, *commands):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_edits_of_two_files_add_and_remove_operations_everywhere(tmp_path):
    copy_project(tmp_path)
    line, name = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    insert(tmp_path / "operations.py", "OPS: dict[str, Callable[[int, int, bool], nn.Module]] = {\n", line)
    insert(tmp_path / "genotypes.py", "PRIMITIVES = [\n", name)
    name = name.strip(' ",\n')
    assert name not in genotypes.PRIMITIVES
    source = (tmp_path / "genotypes.py").read_text()
    removed = ["none", "skip_connect", "dil_conv_5x5"]
    for operation in removed:
        source = source.replace(f'    "{operation}",\n', "", 1)
    (tmp_path / "genotypes.py").write_text(source)
    edges = [[name, 0], [name, 1], [name, 2], ["skip_connect", 0]]  # which OPS still has
    cell = {"normal": edges, "normal_concat": [2, 3], "reduce": edges, "reduce_concat": [2, 3]}
    (tmp_path / "mine.json").write_text(json.dumps(cell))
    out = run(
        tmp_path,
        ["train_search.py", *SHORT, "--run_dir", "search0"],
        ["train_search.py", *SHORT, "--run_dir", "search1", "--strategy", "random"],
        ["train.py", "--arch", "search1", *SHORT, "--run_dir", "found"],
        ["train.py", "--arch", "mine.json", *SHORT, "--auxiliary", "--run_dir", "trained"],
        ["test.py", "trained"],
        ["visualize.py", "search0", "--report"],
        ["visualize.py", "search1", "trained"],
        ["visualize.py", "trained/genotype.json", "--format", "svg"],
    )
    left = [*(operation for operation in genotypes.PRIMITIVES if operation not in removed), name]
    for strategy, folder in (("darts", "search0"), ("random", "search1")):
        [row] = rows_of(tmp_path / folder)
        assert len(row["alphas"]) == (28 if strategy == "darts" else 0)
        assert all(sorted(edge) == sorted(left) for edge in row["alphas"].values())
        assert {operation for cell in ("normal", "reduce") for operation, _ in row["genotype"][cell]} <= set(left)
    assert "test_acc" in out
    drawn = {path.name for path in (tmp_path / "search0").iterdir()}
    assert {"alphas.png", "cells.gif", "operations.png", "report.html"} <= drawn
    assert (tmp_path / "normal.svg").read_text().count(f">{name}<") == 3
    [row] = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("| trained |")]
    assert "| 1 + 1 |" in row  # its skip connections


@pytest.fixture
def candidates():
    """`PRIMITIVES`, which every module shares, to be edited in place."""
    before = list(genotypes.PRIMITIVES)
    yield genotypes.PRIMITIVES
    genotypes.PRIMITIVES[:] = before


class Halves(nn.Module):
    """Of a normal cell: the input plus its product with its other half, from left to right, normalised."""

    def __init__(self, C, stride, affine):
        super().__init__()
        self.stride, self.norm = stride, nn.BatchNorm2d(C, affine=affine)

    def forward(self, x):
        return self.norm(x + x * x.roll(x.size(-1) // 2, -1) if self.stride == 1 else x[:, :, ::2, ::2])


def test_the_only_operation_that_tells_the_classes_apart_is_found(tmp_path, monkeypatch, candidates):
    """The images' halves are alike in one class, opposite in the other; other operations see neighbours only."""
    rng = np.random.default_rng(0)
    for part, number, sign in itertools.product(("train", "test"), range(256), (1, -1)):
        left, noise = rng.normal(size=(2, 16, 8, 3))
        pixels = 128 + 40 * np.concatenate([left, 0.5 * sign * left + 0.9 * noise], axis=1)
        save_image(tmp_path / part / str(sign) / f"{number}.png", pixels.clip(0, 255))
    monkeypatch.setitem(operations.OPS, "halves", Halves)
    candidates[:] = ["none", "skip_connect", "max_pool_3x3", "halves"]
    size = {"image_size": 16, "nodes": 1, "init_channels": 2, "layers": 3, "epochs": 4, "batch_size": 16}
    rates = {"learning_rate": 0.05, "arch_learning_rate": 0.1, "unrolled": True, "seed": 4}
    found = train_search.search(images=tmp_path, gpu=-1, workers=0, run_dir=tmp_path / "run", **size, **rates)

    assert [operation for operation, _ in found.genotype.normal] == ["halves", "halves"]
    alphas = rows_of(tmp_path / "run")[-1]["alphas"]
    assert min(alphas[edge]["halves"] for edge in ("normal_n2_p0", "normal_n2_p1")) > 0.5


def test_an_operation_that_is_missing_ends_the_search_before_it_begins(refused, tmp_path, candidates):
    candidates.append("mine")
    error = refused("train_search", *SHORT, "--run_dir", "run")
    assert "the operation mine is not in OPS of operations.py" in error
    assert list(tmp_path.iterdir()) == []


def test_a_search_does_not_go_on_among_other_candidates(script, refused, candidates):
    assert script("train_search", *SHORT, "--run_dir", "run")[0] == 0
    candidates[1:3] = candidates[2:0:-1]  # the two pools: the weights have the same names and shapes as before
    assert "PRIMITIVES in genotypes.py has changed: restore it" in refused("train_search", "--resume", "run")
    candidates[1:3] = candidates[2:0:-1]
    assert script("train_search", "--resume", "run")[0] == 0


def test_an_odd_number_of_channels():
    """Only reduction cells hold skip connections of stride 2, and they have twice the channels."""
    network = NetworkCIFAR(3, 10, 3, True, genotypes.DARTS_V2)
    assert network(torch.zeros(2, 3, 8, 8))[0].shape == (2, 10)
    supernet = model_search.Network(3, 10, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2)
    assert supernet(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
