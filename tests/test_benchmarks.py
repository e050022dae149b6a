"""The benchmarks compute what they say, on tiny networks; their figures are nobody's but a reader's."""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from cli import UserError

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


def test_exact_is_nearest_to_the_truth_and_the_first_order_farthest(benchmark, monkeypatch, capsys, tmp_path):
    arguments = ["--dataset", "digits", *TINY, "--batch_size", "8", "--search_steps", "1", "--json", tmp_path / "table.json"]
    module = benchmark("hypergradient", *arguments)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Here)
    module.main()
    rows = {row["method"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert rows["exact"]["relative error"] < 1e-3 < rows["first order"]["relative error"]
    assert rows["exact"]["cosine"] > 0.99999
    assert "batch 8, after 1 steps" in capsys.readouterr().out


def test_a_batch_that_is_too_large_ends_in_advice_that_the_benchmark_takes(benchmark):
    module = benchmark("hypergradient", "--dataset", "digits", *TINY, "--batch_size", "5000")
    with pytest.raises(UserError, match=r"718 of 1437 images for the weights, less than a batch of 5000: lower --batch_size$"):
        module.main()


def test_finite_differences_of_a_smooth_network_converge_to_the_exact_product(benchmark, monkeypatch, tmp_path):
    """Central differences are exact to second order: a tenth of the step, a hundredth of the error."""
    arguments = [*TINY, "--batch_size", "4", "--search_steps", "0", "--smooth", "--float64", "--json", tmp_path / "table.json"]
    module = benchmark("hypergradient", "--dataset", "digits", *arguments)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Here)
    module.main()
    errors = [row["relative error"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]]
    first, large, middle, small, exact = errors
    assert first > 0.01
    assert large > middle
    assert 50 < middle / small < 200
    assert exact < 1e-9


class Here:
    """Takes the place of a pool of processes."""

    def __init__(self, *arguments, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        value = function(*arguments)
        return Namespace(result=lambda: value)


@pytest.mark.parametrize("engine", ["reference", "fused"])
@pytest.mark.parametrize("unrolled", [False, True])
def test_search_steps_learn_alphas_and_weights(benchmark, engine, unrolled, monkeypatch):
    module = benchmark("search_step", *TINY, "--image_size", "8")
    made = []
    network = module.ENGINES[engine]
    monkeypatch.setitem(module.ENGINES, engine, lambda *arguments: made.append(network(*arguments)) or made[0])
    step = module.search_step(engine, unrolled, 4, module.parse_arguments())
    before = {name: parameter.clone() for name, parameter in made[0].named_parameters()}
    step()
    still = [name for name, parameter in made[0].named_parameters() if torch.equal(parameter, before[name])]
    assert not still


def test_training_steps_of_both_formats_are_one(benchmark, monkeypatch):
    module = benchmark("train_step", *TINY, "--batch_size", "4")
    args, states, network = module.parse_arguments(), [], module.NetworkCIFAR
    for memory_format in module.FORMATS.values():
        made = []
        monkeypatch.setattr(module, "NetworkCIFAR", lambda *arguments, made=made: made.append(network(*arguments)) or made[0])
        module.training_step(memory_format, args)()
        states.append(made[0].state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-4)


def test_a_file_that_cannot_be_written_is_refused_at_once(benchmark, capsys, tmp_path):
    for name in ("hypergradient", "search_step", "train_step"):
        module = benchmark(name, "--json", tmp_path / "nowhere" / "table.json")
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 2
        assert "nowhere" in capsys.readouterr().err
