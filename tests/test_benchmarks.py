"""The benchmarks compute what they say, on tiny networks; their figures are nobody's but a reader's."""

import importlib.util
import json
import os
import sys
import time
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from experiment.errors import UserError

FOLDER = Path(__file__).parent.parent / "benchmarks"
TINY = ["--init_channels", "2", "--layers", "3"]


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark as a module, with its command line."""

    def load(name, *arguments):
        monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class Here(nullcontext):
    """Takes the place of a pool of processes."""

    def __init__(self, *_, **__):
        super().__init__(self)

    def submit(self, function, *arguments):
        value = function(*arguments)
        return Namespace(result=lambda: value)


def test_finite_differences_of_a_smooth_network_converge_to_the_exact_product(
    benchmark, monkeypatch, images, tmp_path, capsys
):
    """Central differences are exact to second order: a tenth of the step, a hundredth of the error."""
    monkeypatch.chdir(tmp_path)
    small = "--dataset folder --image_size 8 --workers 0 --batch_size 8 --smooth --float64 --search_steps 1"
    module = benchmark("hypergradient", *small.split(), "--data", images, *TINY, "--json", "table.json")
    monkeypatch.setattr(module, "ProcessPoolExecutor", Here)
    module.main()
    rows = {row["method"]: row for row in json.loads(Path("table.json").read_text())["rows"]}
    first, large, middle, small, exact = (row["relative error"] for row in rows.values())
    assert first > 0.01
    assert large > middle
    assert 50 < middle / small < 200
    assert exact < 1e-9
    assert rows["exact"]["cosine"] > 1 - 1e-9
    assert rows["first order"]["cosine"] < 1 - 1e-4
    assert "batch 8, after 1 steps; torch.float64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("way", "unrolled"),
    [("plain", False), ("eager", True), ("recompute", False), ("warm-up", False), ("gdas", False), ("pc-darts", True)],
)
def test_search_steps_learn_alphas_and_weights(benchmark, way, unrolled, monkeypatch):
    module = benchmark("search_step", "--init_channels", "4", "--layers", "3", "--image_size", "8")
    made, build = [], module.train_search.build
    monkeypatch.setattr(module.train_search, "build", lambda *arguments: made.append(build(*arguments)) or made[0])
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    step = module.search_step(way, unrolled, 4, module.parse_arguments())
    network = made[0][0]
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    step()
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert ({"alphas_normal", "alphas_reduce"} <= moved) == (way != "warm-up")
    assert {"classifier.weight", "stem.0.weight"} <= moved
    still = len(before) - len(moved)
    assert still > len(before) / 2 if way == "gdas" else still == 2 * (way == "warm-up")  # most were not drawn


def test_training_steps_of_both_formats_run(benchmark):
    module = benchmark("train_step", *TINY, "--batch_size", "4")
    for way in ("plain", "eager"):
        module.training_step(way, module.parse_arguments())()


def test_a_file_that_cannot_be_written_is_refused_at_once(benchmark, tmp_path):
    for name in ("hypergradient", "search_step", "train_step"):
        module = benchmark(name, "--json", tmp_path / "nowhere" / "table.json")
        with pytest.raises(UserError, match="nowhere"):
            module.main()


def test_a_part_that_fails_costs_its_own_row(benchmark, tmp_path):
    module = benchmark("gpu", "--out", tmp_path)
    args = module.parse_arguments()
    args.deadline = time.monotonic() + 60

    def failing(args):
        raise ValueError("no such kernel")

    module.do(args, "fails", failing)
    module.do(args, "dies", lambda args: os._exit(3))
    module.do(args, "works", lambda args: {"answer": 42})
    module.do(args, "late", lambda args: {"answer": 43}, until=time.monotonic() - 1)
    module.do(args, "slow", lambda args: time.sleep(600), until=time.monotonic() + 0.6)
    assert json.loads((tmp_path / "report.json").read_text()) == [
        {"part": "fails", "error": "ValueError: no such kernel"},
        {"part": "dies", "error": "its process ended with status 3"},
        {"part": "works", "answer": 42},
        {"part": "slow", "error": "stopped after 1 s"},
    ]
    assert time.monotonic() < args.deadline
