"""fused.py computes what model_search.py computes: logits, gradients, running statistics, in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chains
import depthwise
import fused
import model_search
import operations
from architect import HVP, Architect

pytestmark = pytest.mark.usefixtures("double")


def close(actual, expected, relative=1e-9):
    """Equal to `relative` times the size of the whole tensor."""
    assert actual.shape == expected.shape
    error = (actual - expected).double().norm() / expected.double().norm().clamp_min(1e-30)
    assert error <= relative, f"relative error {error:.2e}"


def networks(C=2, layers=3, steps=4, multiplier=4, seed=0):
    """The same network in both engines, its buffers and alphas random."""
    torch.manual_seed(seed)
    reference = model_search.Network(C, 5, layers, nn.CrossEntropyLoss(), steps, multiplier)
    for alphas in reference.arch_parameters():
        nn.init.normal_(alphas)
    for name, buffer in reference.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 1.5)
    network = fused.Network(C, 5, layers, nn.CrossEntropyLoss(), steps, multiplier)
    network.load_state_dict(reference.state_dict())
    return reference, network


def batch(size, side=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, side, side, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def compare(reference, network, images, targets):
    """Logits, gradients of the loss and buffers after it; the loss weighs the images unequally, so that no sum over them vanishes."""
    for engine in (reference, network):
        engine.zero_grad()
        engine.logits = engine(images)
        (F.cross_entropy(engine.logits, targets, reduction="none") @ torch.arange(1.0, len(images) + 1)).backward()
    close(network.logits, reference.logits)
    for (name, expected), actual in zip(reference.named_parameters(), network.parameters(), strict=True):
        assert expected.grad is not None, name
        assert actual.grad is not None, name
        # A weight before a BatchNorm is orthogonal to its gradient; what is left of some is rounding.
        if expected.grad.norm() > 1e-12:
            close(actual.grad, expected.grad)
    for (name, expected), actual in zip(reference.named_buffers(), network.buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert actual == expected, name
        else:
            close(actual, expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("layers", "steps", "multiplier", "size"), [(3, 4, 4, 2), (4, 3, 2, 1), (5, 5, 3, 3), (3, 3, 1, 4)], ids=lambda value: str(value)
)
def test_equal_to_the_reference(layers, steps, multiplier, size, training):
    reference, network = networks(2, layers, steps, multiplier)
    compare(reference.train(training), network.train(training), *batch(size))


@pytest.mark.parametrize("seed", range(6))
def test_equal_at_random_sizes(seed):
    random = np.random.RandomState(seed)
    steps = random.randint(1, 6)
    reference, network = networks(2 * random.randint(1, 4), random.randint(3, 6), steps, random.randint(1, steps + 1), seed)
    training = bool(random.randint(2))
    size, side = random.randint(1, 6), 4 * random.randint(2, 5)  # 12, for one, has odd images after two reductions
    compare(reference.train(training), network.train(training), *batch(size, side, seed))


def test_equal_in_small_chunks(monkeypatch):
    monkeypatch.setattr(chains, "CHUNK", 2 * 4 * 2 * 8 * 8)  # two images of four edges, and a rest
    reference, network = networks()
    compare(reference, network, *batch(5))


def test_as_exact_as_the_reference_in_float32():
    """Rounding errors near zero flip ReLUs and change which pixel is the largest, so gradients suffer from them far more than logits."""
    reference, network = networks(C=4)
    images = torch.rand(32, 3, 32, 32)  # not centred, as a BatchNorm's input in general
    exact = reference(images).detach()
    errors = []
    for engine in (reference, network):
        rounded = engine.float()(images.float()).detach().double()
        errors.append(float((rounded - exact).norm() / exact.norm()))
    assert errors[1] < 3 * errors[0] < 1e-5, errors


def test_one_pixel_is_refused_in_training_as_in_the_reference():
    for network in networks():
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network(torch.randn(1, 3, 4, 4))


def test_a_second_order_step_by_either_product_is_equal():
    train, valid = batch(2, seed=2), batch(3, seed=3)
    for hvp in HVP:
        gradients, buffers = [], []
        for network in networks(layers=3, steps=3, multiplier=3):
            optimizer = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9)
            args = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3, hvp=hvp)
            Architect(network, args).step(*train, *valid, 0.025, optimizer, unrolled=True)
            gradients.append(torch.cat([alphas.grad for alphas in network.arch_parameters()]))
            buffers.append(torch.cat([buffer.double().flatten() for buffer in network.buffers()]))
        close(gradients[1], gradients[0], 1e-9 if hvp == "exact" else 1e-7)  # a difference of nearly equal numbers
        close(buffers[1], buffers[0])


@pytest.mark.parametrize("unrolled", [False, True])
def test_the_alphas_gradient_leaves_the_weights_alone(unrolled):
    reference, network = networks()
    for engine in (reference, network):
        optimizer = torch.optim.SGD(engine.weight_parameters(), 0.025, momentum=0.9)
        args = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3)
        Architect(engine, args).step(*batch(2), *batch(2, seed=5), 0.025, optimizer, unrolled)
        assert all(weight.grad is None for weight in engine.weight_parameters())


def test_second_derivatives_of_chains():
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(2, affine=False) for _ in range(2)]
    shapes = [(3, 2, 4, 4), *[(2, 1, 1), *[(4, 1, 3, 3), (2, 2, 2)] * 2] * 2]
    x, *parameters = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def total(x, *parameters):
        branches = [
            chains.Branch(alpha, [chains.Stage(norms, k1, m1, 1, 1), chains.Stage(norms, k2, m2, 1, 1)])
            for alpha, k1, m1, k2, m2 in (parameters[:5], parameters[5:])
        ]
        image = x.contiguous(memory_format=torch.channels_last)
        return chains.add_chains(torch.zeros(2, 48, 2), [(image, branch) for branch in branches])

    assert torch.autograd.gradcheck(total, (x, *parameters))
    assert torch.autograd.gradgradcheck(total, (x, *parameters))


def test_the_state_moves_between_the_engines():
    reference, network = networks()
    assert list(reference.state_dict()) == list(network.state_dict())
    assert repr(reference.genotype()) == repr(network.genotype())
    images, _ = batch(2)
    network(images)
    reference.load_state_dict(network.state_dict())
    close(network.eval()(images), reference.eval()(images))


def test_float32_is_as_near_to_float64_as_the_reference_is():
    images, _ = batch(4, 16)
    exact = networks(4, 4)[0](images)
    for engine in networks(4, 4):
        result = engine.float()(images.float())
        assert result.dtype == torch.float32
        close(result.double(), exact, 1e-4)


# What fused.py does not know, it leaves to the reference.


class Doubled(nn.Module):
    def __init__(self, C, stride):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1, stride=stride)

    def forward(self, x):
        return 2 * self.conv(x)


def replaced(change):
    """Both engines, with the same change to their modules."""
    pair = networks()
    for network in pair:
        torch.manual_seed(3)
        for cell in network.cells:
            for edge in cell._ops:
                change(edge)
    return pair


def channels(edge):
    return edge._ops[5].op[1].in_channels


def swap_in_a_stranger(edge):
    edge._ops[4] = Doubled(channels(edge), edge._ops[0].stride)


def swap_operations(edge):
    if torch.rand(()) < 0.5:
        edge._ops[6], edge._ops[7] = edge._ops[7], edge._ops[6]
        edge._ops[0], edge._ops[2] = edge._ops[2], edge._ops[0]


def dilate_by_three(edge):
    edge._ops[6].op[1].dilation = edge._ops[6].op[1].padding = (3, 3)


def freeze(edge):
    edge._ops[5].op[7].eval()


def slow_down(edge):
    edge._ops[1][1].momentum = 0.5 if torch.rand(()) < 0.5 else None
    edge._ops[7].op[3].momentum = 0.3


def scale(edge):
    edge._ops[6].op[3] = nn.BatchNorm2d(channels(edge))
    nn.init.uniform_(edge._ops[6].op[3].weight)


def no_statistics(edge):
    edge._ops[4].op[3] = nn.BatchNorm2d(channels(edge), affine=False, track_running_stats=False)


def bend(edge):
    for stack in [module for module in edge.modules() if any(isinstance(child, nn.ReLU) for child in module.children())]:
        for name, child in stack.named_children():
            if isinstance(child, nn.ReLU):
                setattr(stack, name, nn.GELU())


@pytest.mark.parametrize("change", [swap_in_a_stranger, swap_operations, dilate_by_three, freeze, slow_down, scale, no_statistics, bend])
def test_what_is_not_known_is_computed_as_in_the_reference(change):
    compare(*replaced(change), *batch(3))


@pytest.mark.parametrize("extra", sorted(operations.OPS))
def test_every_operation_is_computed_as_the_reference_does(extra, monkeypatch):
    """Alone, and after another."""
    for primitives in ([extra], ["avg_pool_3x3", extra]):
        monkeypatch.setattr(model_search, "PRIMITIVES", primitives)
        reference, network = networks(steps=2, multiplier=2)
        images, targets = batch(2)
        if primitives == ["none"]:  # then nothing depends on anything
            close(network(images), reference(images))
        else:
            compare(reference, network, images, targets)


def test_a_new_operation_is_computed_as_the_reference_does(monkeypatch):
    monkeypatch.setitem(operations.OPS, "doubled", lambda C, stride, affine: Doubled(C, stride))
    monkeypatch.setattr(model_search, "PRIMITIVES", [*model_search.PRIMITIVES, "doubled"])
    compare(*networks(), *batch(2))


def test_the_known_operations_are_not_left_to_the_reference(monkeypatch):
    _, network = networks()
    for cell in network.cells:
        for edge in cell._ops:
            for module in edge._ops:
                if not isinstance(module, nn.Sequential):  # a pool's BatchNorm is not called, but one pool per node is
                    module.register_forward_hook(lambda module, *_: pytest.fail(f"{type(module).__name__} was called"))
    network(batch(2)[0])


# The depthwise convolutions.


@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 10), (9, 7), (2, 16), (4, 4)])
def test_depthwise_and_its_gradients(k, stride, dilation, size):
    torch.manual_seed(k)
    conv = operations.Depthwise(4, k, stride, dilation * (k // 2), dilation)
    x = torch.randn(2, 4, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = nn.Conv2d.forward(conv, x)
    actual = conv(x)
    close(actual, expected)
    grad = torch.randn_like(expected)
    gradients = (torch.autograd.grad(result, (x, conv.weight), grad) for result in (actual, expected))
    for ours, plain in zip(*gradients, strict=True):
        close(ours, plain)


def test_second_derivatives_of_depthwise():
    x = torch.randn(2, 2, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(2, 1, 3, 3, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, weight: depthwise.depthwise(x, weight, 1, 2, 2), (x, weight))


def test_dilation_is_four_images():
    x, weight = torch.randn(2, 3, 8, 12), torch.randn(3, 1, 5, 5)
    images = depthwise.split(x)
    assert torch.equal(depthwise.join(images), x)
    close(depthwise.join(depthwise.depthwise(images, weight, 1, 2)), F.conv2d(x, weight, None, 1, 4, 2, groups=3))
