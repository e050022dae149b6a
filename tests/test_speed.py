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
from speed import compilation, layers
from speed.recomputation import recompute

ORDERS = [(False, HVP[0]), (True, HVP[0]), (True, HVP[1])]


def equal(one, other, tolerance=1e-9):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def darts_v2():
    return NetworkCIFAR(2, 5, 3, False, genotypes.DARTS_V2)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 10), (9, 7), (2, 16), (4, 4)])
def test_depthwise_convolutions_and_their_gradients_are_pytorch_s(k, stride, dilation, size):
    torch.manual_seed(k)
    conv = nn.Conv2d(4, 4, k, stride, dilation * (k // 2), dilation, groups=4, bias=False)
    x = torch.randn(2, 4, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = conv(x)
    layers.use_fast_gradients(conv)
    found = conv(x)
    assert type(conv) is layers.Depthwise
    equal(found, expected)
    grad = torch.randn_like(expected)
    equal(*(torch.autograd.grad(result, (x, conv.weight), grad) for result in (found, expected)))


def test_second_derivatives_of_depthwise_convolutions(double):
    x = torch.randn(2, 2, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(2, 1, 3, 3, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, weight: layers.depthwise(x, weight, 1, 2, 2), (x, weight))


@pytest.mark.parametrize("channels", [15, 16])
def test_convolutions_that_corrupt_memory_stay_out_of_channels_last(channels):
    """A user's network; with fewer than 16 channels, the gradient of its shortcut would corrupt memory."""
    formats = []
    network = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 4, 1, stride=2))
    network[1].register_forward_pre_hook(
        lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    layers.set_memory_format(network, CPU)
    network(torch.randn(2, 3, 8, 8))
    assert formats == [channels >= 16]


def test_a_copy_of_a_network_that_shares_pools_pools_on_its_own():
    plain, shared = supernet(), supernet()
    layers.share_pools(shared)
    assert shared.state_dict().keys() == plain.state_dict().keys()
    before = copy.deepcopy(shared.state_dict())
    copy.deepcopy(shared)(batch(4)[0])
    equal(shared.state_dict(), before, 0)


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
    for change in (lambda network: None, recompute):
        torch.manual_seed(0)
        network = darts_v2()
        network.drop_path_prob = 0.5
        change(network)
        x, y = batch(4)
        F.cross_entropy(network(x)[0], y).backward()
        gradients.append([weight.grad for weight in network.parameters()])
    equal(*gradients)


# ---- All together, also with candidates of one's own


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
    "gelu": lambda C, stride, affine: nn.Sequential(nn.GELU(), nn.Conv2d(C, C, 3, stride, 1), nn.BatchNorm2d(C)),
}
CANDIDATES = [
    genotypes.PRIMITIVES[:],
    ["counted", "smooth"],
    ["smooth_bn", "max_pool_3x3", "none"],
    ["none", "gelu", "skip_connect", "sep_conv_3x3"],
]


@pytest.mark.parametrize("names", CANDIDATES, ids=",".join)
def test_any_candidates_are_computed_fast_and_right(double, monkeypatch, names):
    """Compiled (by a compiler that changes nothing), recomputed, captured (what a CPU can of it), in every order."""
    for name, build in OWN.items():
        monkeypatch.setitem(operations.OPS, name, build)
    monkeypatch.setattr(cells, "OPERATIONS", [*cells.OPERATIONS, *OWN])
    monkeypatch.setattr(model_search, "PRIMITIVES", names)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for unrolled, hvp in ORDERS:
        fast = supernet()
        speed.apply(fast, CPU, compiled_for=4, recomputed=True)
        equal(learn_cell(fast, unrolled, hvp), learn_cell(supernet(), unrolled, hvp))
    captured, ordinary = (pytree.tree_leaves(steps.learn(2, False, captured=captured)) for captured in (True, False))
    equal(captured, ordinary, 0)


# ---- Compiled


def said_of(network, *, multiply_adds=1e20, batch_size=4, **given):
    """What the log says of a network that `fast_step` was given."""
    defaults = {"amp": False, "recompute": False, "sync_bn": False, "tf32": False, "unrolled": False, "compile": "auto"}
    lines = []
    args = Namespace(**defaults | {"batch_size": batch_size} | given)
    speed.fast_step(lambda: (), network, [], args, multiply_adds, lines.append)
    return lines[0]


def broken(function, **options):
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("network", "given", "says"),
    [
        (supernet, {"multiply_adds": 1e12}, "too few for compiling to pay off"),
        (supernet, {"compile": "no"}, "--compile no; threads: 1"),
        (supernet, {}, "no compiler works here (broken)"),
        (darts_v2, {}, "only searches with mixed operations"),
        (lambda: Supernet(2, 5, 3, nn.CrossEntropyLoss(), Gumbel()), {}, "only searches with mixed operations"),
    ],
)
def test_what_is_not_compiled_says_why(network, given, says, monkeypatch):
    monkeypatch.setattr(torch, "compile", broken)
    assert says in said_of(network(), **given)


@pytest.mark.parametrize("name", ["torch._dynamo.exc", "torch._inductor.custom_graph_pass"])
def test_a_private_name_that_is_missing_costs_speed_not_the_run(name, monkeypatch):
    monkeypatch.delattr(speed, "compilation")
    monkeypatch.delitem(sys.modules, "speed.compilation")
    monkeypatch.setitem(sys.modules, name, None)
    network = supernet()
    assert "no compiler works here" in said_of(network, compile="yes")
    network(batch(4)[0])


def test_the_compilers_cache_tells_processors_apart(monkeypatch):
    """Its keys are made from this configuration."""
    with torch._inductor.config.patch({"cpp.simdlen": None}):
        for capability, bits in (("AVX2", 256), ("AVX512", 512), ("DEFAULT", None)):
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
            compilation.options()
            assert torch._inductor.config.save_config_portable()["cpp.simdlen"] == bits


def test_a_region_that_cannot_be_compiled_is_computed_without(monkeypatch, capsys, double):
    def fails(*arguments):
        raise torch._dynamo.exc.Unsupported("a part that is missing")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    plain, network = supernet(), supernet()
    compilation.compile_regions(network, 7)
    x, _ = batch(7)
    equal(network(x), plain(x))
    [told] = [line for line in capsys.readouterr().err.splitlines() if "MixedOp" in line]
    assert "cannot compile MixedOp.forward" in told
    assert "a part that is missing" in told


def test_how_far_the_compiler_is_is_told(monkeypatch, capsys, double):
    """Every ten seconds of its time; here, it takes four for each part."""
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

    monkeypatch.setattr(torch, "compile", slow)
    monkeypatch.setattr(compilation, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    network = darts_v2()
    compilation.compile_regions(network, 9, passes=2)
    network(batch(9)[0])
    with torch.no_grad():
        network(batch(9)[0])
    first, *_, last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compiling")]
    parts = int(now[0] / 4)
    assert first == f"compiling: 3 of about {parts} parts in 12 s, about {errors.duration(4 * (parts - 3))} left"
    assert last.startswith(f"compiling: {parts // 3 * 3} of about ")
