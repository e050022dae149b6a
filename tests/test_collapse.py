"""The dominant eigenvalue against the full Hessian's, and the rule that stops a search."""

import pytest
import torch
from torch import nn

import collapse
from model_search import Network
from nas.mutators import DartsMutator
from nas.search_model import SearchModel
from nas.spaces.nasbench201 import NASBench201Network
from speed import compilation, layers


def batch(size=4, side=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, side, side, generator=generator), torch.arange(size) % 3


class Tiny(nn.Module):
    """Two mixed operations on a vector: a search model whose Hessian is small enough to be computed whole."""

    def __init__(self, indefinite=False):
        super().__init__()
        self.indefinite = indefinite
        self.ops = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Tanh()) for _ in range(3))
        self.classifier = nn.Linear(12, 3)
        self.alphas = nn.ParameterList(nn.Parameter(torch.randn(3)) for _ in range(2))

    def arch_parameters(self):
        return list(self.alphas)

    def forward(self, x):
        x = x.flatten(1)[:, :12]
        for alpha in self.alphas:
            weights = -3 * alpha**2 if self.indefinite else torch.softmax(alpha, 0)
            x = sum(weight * op(x) for weight, op in zip(weights, self.ops, strict=True))
        return self.classifier(x)


def full_hessian(model, x, y):
    """By `torch.autograd.functional.hessian`, on the alphas as one vector, at the running statistics of a copy."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    alphas = model.arch_parameters()

    def loss(flat):
        parts = flat.split([alpha.numel() for alpha in alphas])
        state = {names[id(alpha)]: part.view_as(alpha) for alpha, part in zip(alphas, parts, strict=True)}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return nn.functional.cross_entropy(torch.func.functional_call(model.train(), state | buffers, (x,)), y)

    return torch.autograd.functional.hessian(loss, torch.cat([alpha.detach().flatten() for alpha in alphas]))


@pytest.mark.parametrize("indefinite", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_full_hessians(double, seed, indefinite):
    torch.manual_seed(seed)
    model, (x, y) = Tiny(indefinite), batch(size=12)
    eigenvalues = torch.linalg.eigvalsh(full_hessian(model, x, y))  # of both signs among the indefinite ones
    found = collapse.dominant_eigenvalue(model, x, y, tolerance=1e-7, max_iterations=5000)
    assert found == pytest.approx(max(eigenvalues.tolist(), key=abs), rel=1e-9)


def test_a_fast_network_has_the_same(double):
    torch.manual_seed(0)
    reference, (x, y) = Network(2, 3, 3, nn.CrossEntropyLoss()), batch()
    fast = Network(2, 3, 3, nn.CrossEntropyLoss())
    fast.load_state_dict(reference.state_dict())
    layers.set_memory_format(fast, torch.device("cpu"))
    compilation.compile_regions(fast, len(x))  # whose code has no second derivative, and is not to be run
    found = collapse.dominant_eigenvalue(fast, x, y, max_iterations=4)
    assert found == pytest.approx(collapse.dominant_eigenvalue(reference, x, y, max_iterations=4), rel=1e-9)


def nasbench201():
    network = NASBench201Network(channels=2, cells=1, num_classes=3)
    return SearchModel(network, DartsMutator(network))


@pytest.mark.parametrize("build", [lambda: Network(2, 3, 3, nn.CrossEntropyLoss()), nasbench201])
def test_leaves_nothing_behind_and_measures_the_same_in_either_mode(build):
    torch.manual_seed(0)
    model = build()
    x, y = batch()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.train()
    first = collapse.dominant_eigenvalue(model, x, y, max_iterations=2)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    assert collapse.dominant_eigenvalue(model, x, y, max_iterations=2) == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("values", "every", "expected"),
    [
        ([0.3] * 50, 1, None),
        ([0.3 * 0.9**epoch for epoch in range(50)], 1, None),
        # One value jumps from 1 to 3 at epoch 20 and stays: the averages around 18, 19, ... are 1.4, 1.8, ...
        ([1.0] * 20 + [3.0] * 20, 1, (20, 13)),
        ([1.0] * 20 + [3.0] * 20, 2, (40, 26)),  # measured every second epoch
        # Around 18: 1.3, and 1 / 1.3 = 0.77 is not below 0.75; around 19: 1.6.
        ([1.0] * 20 + [2.5] * 20, 1, (21, 14)),
        # In five epochs by 1.05 ** 5 = 1.28 < 1 / 0.75, and by 1.07 ** 5 = 1.40.
        ([1.05**epoch for epoch in range(50)], 1, None),
        ([1.07**epoch for epoch in range(50)], 1, (17, 10)),
        ([2.0**epoch for epoch in range(50)], 1, (17, 10)),  # no architecture from before epoch 10
    ],
)
def test_the_rule_stops_once_the_average_has_grown_by_a_third(values, every, expected):
    """(Epoch after which it stops first, epoch whose architecture it returns.)"""
    metrics = [{"epoch": epoch} for epoch in range(every * len(values))]
    for index, value in enumerate(values):
        metrics[every * index]["eigenvalue"] = value
    stops = [(row["epoch"], collapse.stop_at(metrics[: number + 1])) for number, row in enumerate(metrics)]
    assert next((stop for stop in stops if stop[1] is not None), None) == expected
