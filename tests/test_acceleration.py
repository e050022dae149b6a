"""What speed/ does to a network from outside leaves what it computes, and what is saved of it, as it was."""

import copy
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import steps
import torch
import torch.nn.functional as F
from steps import CPU, batch, learn_cell, supernet
from torch import nn
from torch.utils import _pytree as pytree

import genotypes
import model_search
import operations
import speed
from architect import HVP
from architectures import cells
from experiment import errors
from model import NetworkCIFAR
from nas.relaxation import Gumbel
from nas.supernet import Supernet
from speed import compilation
from speed.layers import share_pools
from speed.recomputation import recompute

ORDERS = [(False, HVP[0]), (True, HVP[0]), (True, HVP[1])]


def equal(one, other, tolerance=1e-9):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.fixture
def compiler(monkeypatch):
    """Takes a function in place of torch.compile, by default one that changes nothing."""

    def use(compile=lambda function, **options: function):
        monkeypatch.setattr(torch, "compile", compile)

    return use


# ---- Recomputed


@pytest.mark.parametrize(("unrolled", "hvp"), ORDERS)
def test_recomputed_cells_are_equal_to_the_network(double, unrolled, hvp):
    recomputed = supernet()
    recompute(recomputed)
    equal(learn_cell(recomputed, unrolled, hvp), learn_cell(supernet(), unrolled, hvp))


def test_recomputed_cells_keep_little(double):
    """Bytes that a training forward keeps for the backward pass."""

    def kept(network):
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: seen.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t
        ):
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
        gradients.append([weight.grad for weight in network.parameters()])
    equal(*gradients)


# ---- Candidates of one's own


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
    "smooth": lambda C, stride, affine: nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.Conv2d(C, C, 1, bias=False)),
    "smooth_bn": lambda C, stride, affine: nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.BatchNorm2d(C)),
    "gelu": lambda C, stride, affine: nn.Sequential(
        nn.GELU(), nn.Conv2d(C, C, 3, stride, 1), nn.BatchNorm2d(C, affine=affine)
    ),
}
CANDIDATES = [
    ["counted", "smooth"],
    ["smooth_bn", "max_pool_3x3", "none"],
    ["none", "gelu", "skip_connect", "sep_conv_3x3"],
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
def test_any_candidates_are_computed_fast_and_right(double, own, compiler, names):
    """Compiled (by a compiler that changes nothing), recomputed, captured (what a CPU can of it), in every order."""
    own(names)
    compiler()
    for unrolled, hvp in ORDERS:
        fast = supernet()
        speed.apply(fast, CPU, compiled_for=4, recomputed=True)
        equal(learn_cell(fast, unrolled, hvp), learn_cell(supernet(), unrolled, hvp))
    captured, ordinary = (pytree.tree_leaves(steps.learn(2, False, captured=captured)) for captured in (True, False))
    equal(captured, ordinary, 0)


def test_edges_from_one_node_share_their_pools(monkeypatch):
    pools = []
    for name in ("max_pool2d", "avg_pool2d"):
        original = getattr(F, name)
        monkeypatch.setattr(
            F, name, lambda *given, original=original, **named: pools.append(1) or original(*given, **named)
        )
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
    before = copy.deepcopy(shared.state_dict())
    copy.deepcopy(shared)(batch(4)[0])
    equal(shared.state_dict(), before, 0)  # the copy pooled on its own


# ---- Compiled


def faster(network, *, multiply_adds=1e20, batch_size=4, **given):
    """What the log says of a network that `fast_step` was given."""
    defaults = {"amp": False, "recompute": False, "sync_bn": False, "tf32": False, "unrolled": False, "compile": "auto"}
    lines = []
    args = Namespace(**defaults | {"batch_size": batch_size} | given)
    speed.fast_step(lambda: (), network, [], args, multiply_adds, lines.append)
    return lines[0]


def broken(function, **options):
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"multiply_adds": 1e12}, "too few for compiling to pay off"),
        ({"compile": "no"}, "--compile no"),
        ({}, "no compiler works here (broken)"),
        ({"network": lambda: NetworkCIFAR(2, 5, 3, False, genotypes.DARTS_V2)}, "only searches with mixed operations"),
        (
            {"network": lambda: Supernet(2, 5, 3, nn.CrossEntropyLoss(), Gumbel())},
            "only searches with mixed operations",
        ),
    ],
)
def test_what_is_not_compiled_says_why(given, says, compiler):
    compiler(broken)
    network = given.pop("network", supernet)()
    assert says in faster(network, **given)
    assert "threads: 1" in faster(supernet(), compile="no")


@pytest.mark.parametrize("name", ["torch._dynamo.exc", "torch._inductor.custom_graph_pass"])
def test_a_private_name_that_is_missing_costs_speed_not_the_run(name, monkeypatch):
    monkeypatch.delattr(speed, "compilation")
    monkeypatch.delitem(sys.modules, "speed.compilation")
    monkeypatch.setitem(sys.modules, name, None)
    network = supernet()
    assert "no compiler works here" in faster(network, compile="yes")
    network(batch(4)[0])


def test_without_onednn_code_is_compiled_without_it(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert set(compilation.options()) == {"fallback_random"}


def test_the_compilers_cache_tells_processors_apart(monkeypatch, compiler):
    compiler()
    with torch._inductor.config.patch({"cpp.simdlen": None}):
        for capability, bits in (("AVX2", 256), ("AVX512", 512), ("DEFAULT", None)):
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
            compilation.compile_regions(supernet(), 4)
            assert (
                torch._inductor.config.save_config_portable()["cpp.simdlen"] == bits
            )  # which the cache's keys are made from


def test_a_region_that_cannot_be_compiled_is_computed_without(compiler, capsys, double):
    def fails(*arguments):
        raise torch._dynamo.exc.Unsupported("a part that is missing")

    compiler(lambda function, **options: fails)
    plain, network = supernet(), supernet()
    compilation.compile_regions(network, 7)
    x, _ = batch(7)
    equal(network(x), plain(x))
    told = [line for line in capsys.readouterr().err.splitlines() if "MixedOp" in line]
    assert [line.split(";")[0].split()[-1] for line in told] == ["MixedOp.forward"]
    assert "a part that is missing" in told[0]


def test_how_far_the_compiler_is_is_told(monkeypatch, compiler, capsys, double):
    """Every ten seconds of its time."""
    now = [0.0]

    def slow(function, **options):
        compiled_for = set()

        def compiled(module, *arguments):
            if (repr(module), torch.is_grad_enabled()) not in compiled_for and isinstance(module, nn.Module):
                compiled_for.add((repr(module), torch.is_grad_enabled()))
                torch._dynamo.utils.counters["stats"]["unique_graphs"] += 1
                now[0] += 4
            return function(module, *arguments)

        return compiled

    compiler(slow)
    monkeypatch.setattr(compilation, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    network = NetworkCIFAR(2, 5, 3, False, genotypes.DARTS_V2)
    compilation.compile_regions(network, 9, passes=2)
    network(batch(9)[0])
    with torch.no_grad():
        network(batch(9)[0])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compiling")]
    parts = int(now[0] / 4)
    assert [line.split()[1] for line in told] == [str(done) for done in range(3, parts + 1, 3)]
    assert told[0] == f"compiling: 3 of about {parts} parts in 12 s, about {errors.duration(4 * (parts - 3))} left"
