"""Recurrent cells: compiled code computes the same, and runs are killed at random moments."""

import subprocess
import sys
from pathlib import Path

import pytest
from scripts import kill_at_random_moments
from test_rnn_scripts import SEARCH, TRAIN, text, undisturbed  # noqa: F401

ROOT = Path(__file__).parent.parent.parent
KILLED = {
    "first order": SEARCH[:-1],
    "second order": SEARCH,
    "exact": [*SEARCH, "--hvp", "exact", "--epochs", "1"],
    "faithful": [*SEARCH, "--faithful"],
    "train": TRAIN,
}


@pytest.mark.parametrize("name", KILLED)
def test_killed_at_random_moments(name, text, undisturbed, tmp_path):  # noqa: F811
    kill_at_random_moments(name, KILLED[name], text, *undisturbed(KILLED[name]), tmp_path)


COMPILED = """
import sys, torch
sys.path[:0] = ["tests", "."]
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
from types import SimpleNamespace
import rnn.model, rnn.model_search
# Of 6 time steps, 4 are compiled and 2 are not.
rnn.model.Decoder.rows = staticmethod(lambda batch_size: 4 * batch_size)
# Fewer nodes compile sooner.
rnn.model.STEPS = rnn.model_search.STEPS = 2
rnn.genotypes.short = rnn.genotypes.Genotype(recurrent=[("tanh", 0), ("relu", 1), ("identity", 0)], concat=range(1, 4))
from golden import close
from test_rnn_speed import B, H, T, V, both
from rnn.architect import alpha_step, learner
from rnn.model import REGIONS
from speed import acceleration, products

for kind in ("search", "short"):
    model, plain, text, hidden = both(kind)
    acceleration.compile_regions(model, B, REGIONS)
    masks = model.draw_masks(B)
    for one in (model, plain):
        loss, new_hidden, *_ = one(text[0], hidden, masks, text[1])
        (loss + new_hidden.sum()).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        close(ours.grad, theirs.grad, 1e-9)
    for ours, theirs in zip(model.buffers(), plain.buffers()):
        close(ours, theirs, 1e-9)
    if kind == "search":
        model.zero_grad(), plain.zero_grad()
        for hvp in ("finite_difference", "exact"):
            args = SimpleNamespace(clip=0.25, wdecay=0.0, arch_lr=3e-3, arch_wdecay=0.0, hvp=hvp, unrolled=True)
            for one in (model, plain):
                torch.manual_seed(2)
                alpha_step(learner(one, args), one, (*text, hidden), (*text, hidden), 0.5, args)
            close(model.alphas.grad, plain.alphas.grad, 1e-6 if hvp == "finite_difference" else 1e-9)

# In float32, compiled products are those of oneDNN.
torch.set_default_dtype(torch.float32)
linear = torch.nn.Linear(30, 20)
x = torch.randn(7, 30, requires_grad=True)
compiled = torch.compile(torch.nn.Linear.forward, dynamic=False, options=products.options())
inputs = [x, linear.weight, linear.bias]
grads = torch.autograd.grad(compiled(linear, x).square().sum(), inputs)  # compiles
with torch.profiler.profile() as profile:
    grads = torch.autograd.grad(compiled(linear, x).square().sum(), inputs)
for ours, theirs in zip(grads, torch.autograd.grad(linear(x).square().sum(), inputs)):
    close(ours, theirs, 1e-5)
calls = sum(event.count for event in profile.key_averages() if event.key == "mkldnn::_linear_pointwise")
assert calls == (3 if torch.backends.mkldnn.is_available() else 0), calls
print("equal")
"""


def test_compiled_cells_compute_the_same():
    """In a process of its own, so that other tests can fork."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd=ROOT)
    if "cannot compile" in done.stderr:
        pytest.skip("no compiler works here")
    assert done.stdout == "equal\n", done.stderr
