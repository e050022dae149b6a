"""What torch.compile makes of regions computes what the regions compute: pytest -n0 tests/thorough/test_compiled.py

Every test is a process of its own: where a compiler has run, autograd no longer works in the processes that other tests
fork.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

CELLS = """
import model_search
from architect import HVP
import speed
from steps import CPU, SmallCell, batch, learn_cell

model_search.PRIMITIVES[:] = ["none", "max_pool_3x3", "skip_connect", "dil_conv_3x3"]
for unrolled, hvp in ((False, HVP[0]), (True, HVP[0]), (True, HVP[1])):
    plain, compiled = SmallCell(), SmallCell()
    speed.apply(compiled, CPU, compiled_for=4)
    ran = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    tolerance = 1e-9 if hvp == "exact" or not unrolled else 1e-7
    # The last step is on a smaller batch.
    ours, theirs = (learn_cell(network, unrolled, hvp) for network in (compiled, plain))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert unrolled or torch._dynamo.utils.counters["stats"]["unique_graphs"] > ran
    x, _ = batch(4)
    torch.testing.assert_close(compiled.eval()(x), plain.eval()(x), rtol=1e-9, atol=1e-9)
plain.load_state_dict(compiled.state_dict())
"""

TEXT = """
import rnn.model, rnn.model_search
# Of 6 time steps, 4 are compiled and 2 are not.
rnn.model.Decoder.rows = staticmethod(lambda batch_size: 4 * batch_size)
rnn.model.STEPS = rnn.model_search.STEPS = 2  # fewer nodes compile sooner
rnn.genotypes.short = rnn.genotypes.Genotype(recurrent=[("tanh", 0), ("relu", 1), ("identity", 0)], concat=range(1, 4))
from types import SimpleNamespace
from golden import close
from test_rnn_networks import B, both
from rnn.architect import alpha_step, learner
from rnn.model import REGIONS
from speed import compilation

for kind in ("search", "short"):
    model, plain, text, hidden = both(kind)
    compilation.compile_regions(model, B, REGIONS)
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
compiled = torch.compile(torch.nn.Linear.forward, dynamic=False, options=compilation.options())
inputs = [x, linear.weight, linear.bias]
grads = torch.autograd.grad(compiled(linear, x).square().sum(), inputs)  # compiles
with torch.profiler.profile() as profile:
    grads = torch.autograd.grad(compiled(linear, x).square().sum(), inputs)
for ours, theirs in zip(grads, torch.autograd.grad(linear(x).square().sum(), inputs)):
    close(ours, theirs, 1e-5)
calls = sum(event.count for event in profile.key_averages() if event.key == "mkldnn::_linear_pointwise")
assert calls == (3 if torch.backends.mkldnn.is_available() else 0), calls
"""

NO_COMPILER = """
import torch._inductor.config
from speed import compilation
torch._inductor.config.cpp.cxx = ("/nowhere/c++",)
try:
    compilation.try_compiler(torch.device("cpu"))
except Exception as error:
    print("no compiler:", error)
else:
    raise AssertionError
"""


@pytest.mark.parametrize("script", [CELLS, TEXT, NO_COMPILER], ids=["cells", "text", "no compiler"])
def test_compiled_code(script, tmp_path):
    script = (
        "import torch\ntorch.set_num_threads(1)\ntorch.set_default_dtype(torch.float64)\n" + script + "\nprint('equal')"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment)
    if script is not NO_COMPILER and "no compiler" in done.stderr:
        pytest.skip("no compiler works here")
    assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr
    assert "cannot compile" not in done.stderr
