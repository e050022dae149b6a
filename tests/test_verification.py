"""Fast steps that are wrong are found on a run's first batch, and the run goes on plainly and unchanged."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from speed import capture, verification

IMAGES = "--dataset digits --init_channels 2 --layers 3 --batch_size 8"
TEXT = "--dataset text --data words.txt --emsize 6 --batch_size 4 --bptt 6"
RUNS = {
    "first order": f"train_search {IMAGES} --nodes 1",
    "second order": f"train_search {IMAGES} --nodes 1 --unrolled --perturb random --auxiliary_skip",
    "bfloat16": f"train_search {IMAGES} --nodes 1 --amp",
    "training": f"train {IMAGES} --auxiliary --drop_path_prob 0.3",
    "recurrent search": f"rnn/train_search {TEXT} --unrolled",
    "recurrent training": f"rnn/train {TEXT}",
}


def right(function, **options):
    return function


def without_gradient(function, **options):
    def compiled(*inputs):
        result = function(*inputs)
        return result.detach() + 0 * result if isinstance(result, torch.Tensor) else result

    return compiled


def doubled(function, **options):
    def compiled(*inputs):
        result = function(*inputs)
        return [2 * part for part in result] if isinstance(result, list) else 2 * result

    return compiled


def wrong_graph(run, warm_up, model):
    """Replays steps without gradients."""
    warm_up()

    def replay():
        results = run()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return results

    return replay


def compute(script, command, *flags, folder):
    """What a run computes, and its log's lines about the check."""
    Path("words.txt").write_text("red green blue house tree of a river.\n" * 40)
    status, _, error = script(*command.split(), "--gpu", "-1", "--fast_dev_run", *flags, "--run_dir", folder)
    assert status == 0, error
    warned = [line for line in Path(folder, "log.txt").read_text().splitlines() if "the fast step is wrong" in line]
    state = torch.load(f"{folder}/checkpoint.pt")
    return {**state["parts"], "random": state["random"]["torch"]}, warned


def equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("way", RUNS)
def test_the_check_leaves_no_trace_and_finds_wrong_compiled_code(script, monkeypatch, way):
    plain, _ = compute(script, RUNS[way], "--compile", "no", folder="plain")
    for compiler in (right, without_gradient, *([doubled] if way == "first order" else [])):
        monkeypatch.setattr(torch, "compile", compiler)
        saved, warned = compute(script, RUNS[way], "--compile", "yes", folder=compiler.__name__)
        assert len(warned) == (compiler is not right)
        equal(saved, plain)


@pytest.mark.parametrize("way", ["first order", "training"])
def test_a_captured_step_that_is_wrong_is_found(script, monkeypatch, way):
    plain, _ = compute(script, RUNS[way], folder="plain")
    monkeypatch.setattr(capture, "no_graph", wrong_graph)
    saved, warned = compute(script, RUNS[way], "--capture", folder="wrong")
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

    step, x = verification.checked_step(fast, plain, network, [architect], 2, lines.append), torch.ones(4, 2)
    step(x)
    assert not lines
    architect.resting = False
    step(x)
    assert len(lines) == 1
    assert network.weight.grad.norm() > 0
