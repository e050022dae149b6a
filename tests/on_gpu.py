"""What only a GPU shows. Not collected by `pytest` alone, because processes that have used a GPU must not fork, as
other tests do.

pytest -n0 tests/on_gpu.py
DEVICE=cpu pytest -n0 tests/on_gpu.py        # tries the tests themselves on a CPU
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from steps import CPU, REMEDIES, SmallCell, learn
from test_gpu import batches

import data
import speed
from experiment import errors
from experiment.run import Run

DEVICE = torch.device(os.environ.get("DEVICE", "cuda"))
pytestmark = [pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a GPU")]
KINDS = {
    "first order": (False, {}),
    "second order": (True, {}),
    "exact": (True, {"hvp": "exact"}),
    "training": (None, {}),
}


@pytest.fixture(autouse=True)
def deterministic():
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.deterministic = False


@pytest.fixture(autouse=True)
def no_warning(monkeypatch):
    """A step that cannot be captured or compiled only warns."""
    monkeypatch.setattr(errors, "warn", pytest.fail)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_a_cpu(kind, double):
    """In float64. The finite difference divides rounding errors by a small number."""
    unrolled, given = KINDS[kind]
    ours, theirs = (learn(3, unrolled, device=device, drop_path=False, **given) for device in (DEVICE, CPU))
    tolerance = 1e-6 if kind == "second order" else 1e-9
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_batches_are_those_of_a_cpu():
    for ours, theirs in zip(*(batches(data.train_batches, device) for device in (DEVICE, CPU)), strict=True):
        assert ours[0].device.type == DEVICE.type
        torch.testing.assert_close([tensor.cpu() for tensor in ours], list(theirs))


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind != "exact"), "remedies"])
def test_captured_steps_are_equal_to_ordinary_ones(kind, double):
    """In float64, for 20 steps, the last on a smaller batch.

    In a training, both draw the same random numbers for drop path.
    """
    unrolled, given = KINDS.get(kind, (False, REMEDIES))
    ordinary, captured = (learn(20, unrolled, device=DEVICE, captured=captured, **given) for captured in (False, True))
    torch.testing.assert_close(captured, ordinary, rtol=1e-9, atol=1e-9)


def test_a_compiled_edge_is_equal_to_the_edge(double):
    gradients = []
    for compiled in (False, True):
        model = SmallCell().to(DEVICE)
        speed.apply(model, DEVICE, compiled_for=4 if compiled else None)
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        model(x).square().sum().backward()
        gradients.append(
            {name: parameter.grad for name, parameter in model.named_parameters()} | dict(model.named_buffers())
        )
    assert gradients[0].keys() > {"alphas", "classifier.weight"}
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "flags",
    [[], ["--capture"], ["--capture", "--amp", "--tf32"], ["--recompute"], ["--unrolled", "--capture"]],
    ids=" ".join,
)
def test_a_search_goes_on_and_its_cells_are_trained_and_used(flags, script, images, monkeypatch):
    data = ["--dataset", "folder", "--data", images, "--image_size", 16, "--workers", 1]
    gpu = ["--gpu", 0 if DEVICE.type == "cuda" else -1]
    small = [*data, *gpu, "--init_channels", 4, "--layers", 3, "--batch_size", 8]
    complete = Run.complete_epoch
    common = [flag for flag in flags if flag != "--unrolled"]
    for name, arguments in (
        ("train_search", flags),
        ("train", [*common, "--arch", "train_search", "--auxiliary", "--cutout"]),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(Run, "complete_epoch", lambda run, row: complete(run, row) or sys.exit(143))
            status, _, error = script(name, *small, *arguments, "--epochs", 2, "--run_dir", name)
        assert status == 143, error
        [before] = Path(name, "metrics.jsonl").read_text().splitlines()
        status, out, error = script(name, "--resume", name)
        assert status == 0, error
        assert "checkpoint.pt: epoch 1, step 0" in out
        rows = Path(name, "metrics.jsonl").read_text().splitlines()
        assert len(rows) == 2
        assert rows[0] == before  # with its seconds: the epoch did not run again
        assert max(json.loads(row)["train_loss"] for row in rows) < 10
    for name, arguments in (("test", ["train"]), ("predict", ["train", images / "test"])):
        status, _, error = script(name, *arguments, *gpu)
        assert status == 0, error
