"""What acceleration.py does to a network from outside leaves what it computes, and what is saved of it, as it was."""

import copy
import functools
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import steps
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import cells
import genotypes
import model_search
import operations
from architect import HVP, Architect
from experiment import errors
from model import NetworkCIFAR
from speed import acceleration
from speed.pooling import Edge as SharingEdge
from speed.pooling import share_pools
from speed.recomputation import recompute

CPU = torch.device("cpu")


def batch(size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def learn(network, unrolled, hvp=HVP[0], steps=2):
    """Alpha steps and weight steps, the last on a smaller batch; everything that they left in the network."""
    optimizer = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9)
    args = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-2, arch_weight_decay=1e-3, hvp=hvp)
    architect = Architect(network, args)
    for step in range(steps):
        train, valid = batch(4 - step, step), batch(4 - step, 10 + step)
        architect.step(*train, *valid, 0.025, optimizer, unrolled)
        optimizer.zero_grad()
        F.cross_entropy(network(train[0]), train[1]).backward(inputs=network.weight_parameters())
        optimizer.step()
    return network.state_dict()


def supernet(seed=0):
    torch.manual_seed(seed)
    return model_search.Network(2, 5, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2)


def equal(one, other, tolerance=1e-9):
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def in_a_child(test):
    """Runs a test in a child process: where a compiler has run, autograd no longer works in the processes that other tests fork."""

    @functools.wraps(test)
    def run(*arguments, **fixtures):
        if "IN_A_CHILD" in os.environ:
            return test(*arguments, **fixtures)
        command = [sys.executable, "-m", "pytest", "-n0", "-rs", "--tb=short", f"{__file__}::{test.__name__}"]
        done = subprocess.run(command, env={**os.environ, "IN_A_CHILD": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        if "1 skipped" in done.stdout:
            pytest.skip("no compiler works here")
        return None

    return run


class SmallCell(nn.Module):
    """A search model of one cell with one node, so that there is little to compile."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell = model_search.Cell(1, 1, 4, 4, 4, False, False)
        self.classifier = nn.Linear(4, 5)
        self.alphas = nn.Parameter(torch.randn(2, len(model_search.PRIMITIVES)))

    def arch_parameters(self):
        return [self.alphas]

    def weight_parameters(self):
        return [*self.cell.parameters(), *self.classifier.parameters()]

    def forward(self, x):
        x = F.pad(x, (0, 0, 0, 0, 0, 1))
        return self.classifier(self.cell(x, x, self.alphas.softmax(-1)).square().mean((2, 3)))


@in_a_child
def test_compiled_regions_are_equal_to_the_network(double, monkeypatch):
    """Both orders, either product, a last batch that is smaller, and evaluation."""
    if acceleration._no_compiler(CPU):
        pytest.skip()
    monkeypatch.setattr(model_search, "PRIMITIVES", ["none", "max_pool_3x3", "skip_connect", "dil_conv_3x3"])
    for unrolled, hvp in ((False, HVP[0]), (True, HVP[0]), (True, HVP[1])):
        plain, compiled = SmallCell(), SmallCell()
        acceleration.apply(compiled, CPU, compiled_for=4)
        assert all(type(edge) is SharingEdge for edge in compiled.cell._ops)
        ran = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        equal(learn(compiled, unrolled, hvp), learn(plain, unrolled, hvp), 1e-9 if hvp == "exact" or not unrolled else 1e-7)
        assert unrolled or torch._dynamo.utils.counters["stats"]["unique_graphs"] > ran
        x, _ = batch(4)
        torch.testing.assert_close(compiled.eval()(x), plain.eval()(x), rtol=1e-9, atol=1e-9)
    plain.load_state_dict(compiled.state_dict())


@pytest.mark.parametrize(("capability", "bits"), [("AVX2", 256), ("AVX512", 512), ("DEFAULT", None)])
def test_the_compilers_cache_tells_processors_apart(monkeypatch, capability, bits):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with torch._inductor.config.patch({"cpp.simdlen": None}):
        acceleration._compiled.__wrapped__(model_search.MixedOp, "forward", 4)
        assert torch._inductor.config.save_config_portable()["cpp.simdlen"] == bits  # which the cache's keys are made from


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("hvp", HVP)
def test_recomputed_cells_are_equal_to_the_network(double, unrolled, hvp):
    recomputed = supernet()
    recompute(recomputed)
    equal(learn(recomputed, unrolled, hvp), learn(supernet(), unrolled, hvp))


def test_recomputed_cells_keep_little(double):
    """Bytes that a training forward keeps for the backward pass."""

    def kept(network):
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t):
            network(batch(4)[0])
        return sum(seen.values())

    network = supernet()
    plain = kept(network)
    recompute(network)
    assert kept(network) < plain / 4


def test_drop_path_is_recomputed_with_the_same_mask(double):
    gradients = []
    for recomputing in (False, True):
        torch.manual_seed(0)
        network = NetworkCIFAR(2, 5, 3, False, genotypes.DARTS_V2)
        network.drop_path_prob = 0.5
        if recomputing:
            recompute(network)
        x, y = batch(4)
        F.cross_entropy(network(x)[0], y).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


def test_regions_are_edges_in_the_search_and_operations_in_training():
    assert {type(region) for region in acceleration._outermost(supernet())} == {
        nn.Sequential,
        model_search.MixedOp,
        operations.ReLUConvBN,
        operations.FactorizedReduce,
    }
    found = {type(region) for region in acceleration._outermost(NetworkCIFAR(2, 5, 3, False, genotypes.DARTS_V2))}
    assert {operations.SepConv, operations.DilConv, operations.FactorizedReduce} <= found


def arguments(**given):
    defaults = {"channels": 3, "batch_size": 4, "amp": False, "recompute": False, "sync_bn": False}
    return Namespace(**defaults | {"threads": None, "unrolled": False, "compile": "auto"} | given)


class Counted(nn.Module):
    """Strided, with a buffer that counts its passes."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return 2 * x[:, :, :: self.stride, :: self.stride]


OWN = {
    "counted": lambda C, stride, affine: Counted(stride),
    "pool_then_convolve": lambda C, stride, affine: nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.Conv2d(C, C, 1, bias=False)),
    "smooth": lambda C, stride, affine: nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.Conv2d(C, C, 1, bias=False)),
    "smooth_bn": lambda C, stride, affine: nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.BatchNorm2d(C)),
    "gelu_conv": lambda C, stride, affine: nn.Sequential(nn.GELU(), nn.Conv2d(C, C, 3, stride, 1), nn.BatchNorm2d(C, affine=affine)),
}
CANDIDATES = [
    ["none", "counted"],
    ["counted", "smooth"],
    ["smooth_bn", "skip_connect"],
    ["pool_then_convolve", "max_pool_3x3", "none"],
    ["none", "gelu_conv", "skip_connect", "sep_conv_3x3"],
    ["none", "max_pool_3x3", "avg_pool_3x3", "gelu_conv"],
]


@pytest.fixture
def own(monkeypatch):
    """Makes these the candidates, operations of one's own among them."""
    for name, build in OWN.items():
        monkeypatch.setitem(operations.OPS, name, build)
    monkeypatch.setattr(cells, "OPERATIONS", [*cells.OPERATIONS, *OWN])
    before = list(model_search.PRIMITIVES)
    yield lambda names: model_search.PRIMITIVES.__setitem__(slice(None), names)
    model_search.PRIMITIVES[:] = before


@pytest.mark.parametrize("names", CANDIDATES, ids=",".join)
def test_any_candidates_are_computed_fast_and_right(double, own, monkeypatch, names):
    """Compiled (by a compiler that changes nothing), recomputed, captured (what a CPU can of it), in every order."""
    own(names)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(acceleration, "_compiled", acceleration._compiled.__wrapped__)
    for unrolled, hvp in ((False, HVP[0]), (True, HVP[0]), (True, HVP[1])):
        plain = learn(supernet(), unrolled, hvp)
        for compiled_for, recomputed in ((None, False), (4, True)):
            fast = supernet()
            acceleration.apply(fast, CPU, compiled_for=compiled_for, recomputed=recomputed)
            equal(learn(fast, unrolled, hvp), plain)
        given = {"unrolled": unrolled, "hvp": hvp}
        for one, other in zip(
            pytree.tree_leaves(steps.learn(2, captured=True, **given)), pytree.tree_leaves(steps.learn(2, **given)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("names", [CANDIDATES[1], CANDIDATES[4]], ids=",".join)
def test_any_candidates_run_through_every_script(script, own, names):
    own(names)
    tiny = ["--dataset", "digits", "--gpu", "-1", "--init_channels", "3", "--layers", "3", "--batch_size", "8", "--fast_dev_run"]
    assert script("train_search", *tiny, "--unrolled", "--recompute", "--run_dir", "found")[0] == 0
    Path("found/checkpoint.pt").rename("found/checkpoint.prev.pt")
    assert script("train_search", "--resume", "found")[0] == 0
    assert script("train_search", *tiny, "--capture", "--run_dir", "captured")[0] == 0
    assert script("train", "--arch", "found", *tiny, "--run_dir", "trained")[0] == 0
    assert script("test", "trained")[0] == 0
    assert script("visualize", "found")[0] == 0


def test_edges_from_one_node_share_their_pools(monkeypatch):
    pools = []
    for name in ("max_pool2d", "avg_pool2d"):
        original = getattr(F, name)
        monkeypatch.setattr(F, name, lambda *given, original=original, **named: pools.append(1) or original(*given, **named))
    plain, shared = supernet(), supernet()
    share_pools(shared)
    counts = []
    for network in (plain, shared):
        pools.clear()
        network(batch(4)[0])
        counts.append(len(pools))
    edges, nodes = 2 + 3, 3  # of each of the three cells; no edge leaves the last node
    assert counts == [2 * edges * 3, 2 * nodes * 3]
    assert shared.state_dict().keys() == plain.state_dict().keys()
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    copy.deepcopy(shared)(batch(4)[0])
    equal(shared.state_dict(), before, 0)  # the copy pooled on its own


@pytest.mark.parametrize(
    ("given", "steps", "says"),
    [
        ({}, 10, "too few for compiling to pay off"),
        ({"compile": "no"}, 10**9, "--compile no"),
        ({}, 10**9, "no compiler works here (broken)"),
    ],
)
def test_what_is_not_compiled_says_why(given, steps, says, monkeypatch):
    monkeypatch.setattr(acceleration, "_no_compiler", lambda device: "broken")
    network = supernet()
    assert says in acceleration.accelerate(network, arguments(**given), 0.1, steps, CPU)
    assert not any("forward" in vars(module) for module in network.modules())


def test_on_a_cpu_trainings_and_gdas_are_not_compiled():
    from nas.remedies.sampling import SampledNetwork

    for network in (NetworkCIFAR(2, 5, 3, False, genotypes.DARTS_V2), SampledNetwork(2, 5, 3, nn.CrossEntropyLoss())):
        says = acceleration.accelerate(network, arguments(), 0.1, 10**9, CPU)
        assert "only searches with mixed operations" in says


@in_a_child
def test_without_a_compiler_a_run_goes_on(monkeypatch, tmp_path):
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # empty
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)}):
        assert acceleration._no_compiler(CPU)


def test_a_region_that_cannot_be_compiled_is_computed_without(monkeypatch, capsys, double):
    def broken(function, **options):
        def compiled(*arguments):
            raise torch._dynamo.exc.Unsupported("a part that is missing")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    plain, network = supernet(), supernet()
    acceleration.compile_regions(network, 7)
    x, _ = batch(7)
    torch.testing.assert_close(network(x), plain(x))
    told = [line for line in capsys.readouterr().err.splitlines() if "MixedOp" in line]
    assert [line.split(";")[0].split()[-1] for line in told] == ["MixedOp.forward"]
    assert all("a part that is missing" in line for line in told)


def test_how_far_the_compiler_is_is_told(monkeypatch, capsys, double):
    """Every ten seconds of its time."""
    now = [0.0]

    def slow(function, **options):
        compiled_for = set()

        def compiled(module, *arguments):
            if (repr(module), module.training) not in compiled_for:
                compiled_for.add((repr(module), module.training))
                torch._dynamo.utils.counters["stats"]["unique_graphs"] += 1
                now[0] += 4
            return function(module, *arguments)

        return compiled

    monkeypatch.setattr(torch, "compile", slow)
    monkeypatch.setattr(acceleration, "_no_compiler", lambda device: "")
    monkeypatch.setattr(acceleration, "_compiler", acceleration._Compiler())
    monkeypatch.setattr(acceleration, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    network = NetworkCIFAR(2, 5, 3, False, genotypes.DARTS_V2)
    acceleration.accelerate(network, arguments(compile="yes", batch_size=9), 0.1, 10, CPU)
    network(batch(9)[0]), network.eval()(batch(9)[0])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compiling")]
    parts = int(now[0] / 4)
    assert [line.split()[1] for line in told] == [str(done) for done in range(3, parts + 1, 3)]
    assert told[0] == f"compiling: 3 of about {parts} parts in 12 s, about {errors.duration(4 * (parts - 3))} left"


class Strided(nn.Module):
    """A user's network with a convolution whose gradient corrupts memory in `channels_last` (speed/convolutions.py)."""

    def __init__(self, channels):
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 4, 1, stride=2)

    def forward(self, x):
        x = self.stem(x)
        self.format = "channels_last" if x.is_contiguous(memory_format=torch.channels_last) else "contiguous"
        return self.shortcut(x)


@pytest.mark.parametrize(("channels", "format"), [(15, "contiguous"), (16, "channels_last")])
def test_convolutions_that_corrupt_memory_stay_out_of_channels_last(channels, format):
    network = Strided(channels)
    acceleration.set_memory_format(network, CPU)
    network(batch(2)[0])
    assert network.format == format
