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
short = rnn.genotypes.Genotype(recurrent=[("tanh", 0), ("relu", 1), ("identity", 0)], concat=range(1, 4))
from types import SimpleNamespace
from golden import close
from recurrent_step import PlainCell, PlainCellSearch
from rnn.model import REGIONS, Dropouts, RNNModel
from rnn.model_search import RNNModelSearch
from rnn.architect import alpha_step, learner
from speed import compilation

T, B, V, H = 6, 5, 11, 7
sizes = V, H, Dropouts(0.5, 0.25, 0.5, 0.2, 0.1)
text, hidden = torch.randint(V, (2, T, B)), torch.randn(1, B, H)
for kind, original in (("search", PlainCellSearch), ("short", PlainCell)):
    model, plain = (RNNModelSearch(*sizes) if kind == "search" else RNNModel(*sizes, short) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    plain.rnns[0].__class__ = original
    for parameter in (*model.parameters(), *plain.parameters()):
        parameter.data.mul_(10)
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
    path = ":".join(map(str, (ROOT, ROOT / "tests", ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment)
    if script is not NO_COMPILER and "no compiler" in done.stderr:
        pytest.skip("no compiler works here")
    assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr
    assert "cannot compile" not in done.stderr
