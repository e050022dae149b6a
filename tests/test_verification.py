"""Fast steps that are wrong are found on a run's first batch, and the run goes on plainly. The check changes no result."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from speed import acceleration, capture, verification

TINY = ["--dataset", "digits", "--gpu", "-1", "--init_channels", "2", "--layers", "3", "--batch_size", "8", "--fast_dev_run"]
RUNS = {
    "first order": ["train_search"],
    "second order": ["train_search", "--unrolled", "--perturb", "random", "--auxiliary_skip"],
    "sampled": ["train_search", "--strategy", "enas"],
    "bfloat16": ["train_search", "--amp"],
    "training": ["train", "--auxiliary", "--drop_path_prob", "0.3"],
}


def right(function, **options):
    return function


def without_gradient(function, **options):
    def compiled(*inputs):
        result = function(*inputs)
        return result.detach() + 0 * result if isinstance(result, torch.Tensor) else result

    return compiled


def doubled(function, **options):
    return lambda *inputs: [2 * part for part in result] if isinstance(result := function(*inputs), list) else 2 * result


class WrongGraph(capture._NoGraph):
    """Replays steps without gradients."""

    def __init__(self, run, restore, model):
        super().__init__(run, restore, model)

        def replay():
            results = run()
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            restore()
            return results

        self.replay = replay


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(acceleration, "_compiled", acceleration._compiled.__wrapped__)

    def use(compiler=right, graph=capture._NoGraph):
        monkeypatch.setattr(torch, "compile", compiler)
        monkeypatch.setattr(capture, "_NoGraph", graph)

    return use


def compute(script, name, *flags, folder):
    """What a run computes, and its log's lines about the check."""
    assert script(name, *TINY, *flags, "--run_dir", folder)[0] == 0
    warned = [line for line in Path(folder, "log.txt").read_text().splitlines() if "the fast step is wrong" in line]
    state = torch.load(f"{folder}/checkpoint.pt")
    return {**state["parts"], "random": state["random"]["torch"]}, warned


def equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("way", RUNS)
def test_the_check_leaves_no_trace_and_finds_wrong_compiled_code(script, fast, way):
    fast()
    plain, _ = compute(script, *RUNS[way], "--compile", "no", folder="plain")
    checked, warned = compute(script, *RUNS[way], "--compile", "yes", folder="checked")
    equal(checked, plain)
    assert not warned
    for number, wrong in enumerate([without_gradient, doubled] if way == "first order" else [without_gradient]):
        fast(wrong)
        saved, warned = compute(script, *RUNS[way], "--compile", "yes", folder=f"wrong{number}")
        assert len(warned) == 1
        equal(saved, plain)


@pytest.mark.parametrize("way", ["first order", "training"])
def test_a_captured_step_that_is_wrong_is_found(script, fast, way):
    plain, _ = compute(script, *RUNS[way], folder="plain")
    fast(graph=WrongGraph)
    saved, warned = compute(script, *RUNS[way], "--capture", folder="wrong")
    assert len(warned) == 1
    equal(saved, plain)


def test_alphas_that_rest_at_first_are_checked_in_their_first_step():
    network, lines = torch.nn.Linear(2, 2), []
    architect = SimpleNamespace(resting=True, state_dict=dict, load_state_dict=lambda state: None)

    def plain(x):
        network.zero_grad()
        loss = network(x).square().mean()
        loss.backward()
        return (loss.detach(),)

    def fast(x):
        results = plain(x)
        if not architect.resting:
            network.weight.grad.zero_()
        return results

    step, x = verification.checked_step(fast, plain, network, [architect], 4, lines.append), torch.ones(4, 2)
    step(x)
    assert not lines
    architect.resting = False
    step(x)
    assert len(lines) == 1
    assert network.weight.grad.norm() > 0
