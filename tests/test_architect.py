"""The second order against the gradient of its own expression by autograd alone; what a step leaves alone."""

from pathlib import Path
from types import SimpleNamespace

import golden
import pytest
import torch
from gradients import ARGS, ETA, EXACT, direct_gradient, relative_error, sgd

from architect import Architect
from model_search import Network
from nas.loading import load_network
from nas.mutators import DartsMutator
from nas.search_model import SearchModel

EXAMPLE = Path(__file__).parent.parent / "examples" / "small_space.py"
pytestmark = pytest.mark.usefixtures("double")


def network():
    model = Network(2, 10, 3, torch.nn.CrossEntropyLoss())
    golden.fill(model)
    golden.fill_alphas(model, 5)
    return model


def choices():
    """A search model of layer choices, with a weight that nothing reads."""
    torch.manual_seed(3)
    space = load_network(f"{EXAMPLE}:Net")(init_channels=2)
    space.idle = torch.nn.Parameter(torch.ones(3))
    model = SearchModel(space, DartsMutator(space))
    with torch.no_grad():
        for alpha in model.arch_parameters():
            alpha.normal_()
    return model


def batches():
    return [golden.batch(seed, 3, image_size=8) for seed in (1, 2)]


@pytest.mark.parametrize("build", [network, choices])
@pytest.mark.parametrize("sgd_steps", [0, 2], ids=["first step", "with momentum"])
def test_exact_is_the_gradient_of_the_unrolled_loss(build, sgd_steps):
    model = build()
    train, valid = batches()
    optimizer = sgd(model, train, sgd_steps)
    expected = direct_gradient(model, train, valid, optimizer)
    Architect(model, EXACT).step(*train, *valid, ETA, optimizer, unrolled=True)
    assert relative_error([alpha.grad for alpha in model.arch_parameters()], expected) < 1e-10

    # The term is there and matters: without it, the same comparison fails.
    first_order = direct_gradient(model, train, valid, optimizer, eta=0.0)
    assert relative_error(first_order, expected) > 1e-4


# First order: one pass over the validation batch. Second: over the training batch at w, w+ and w-, none of the virtual
# w'.
@pytest.mark.parametrize(
    ("unrolled", "hvp", "passes"), [(False, "finite_difference", 1), (True, "finite_difference", 3), (True, "exact", 1)]
)
def test_a_step_changes_the_alphas_and_nothing_else(unrolled, hvp, passes):
    model = network()
    train, valid = batches()
    optimizer = sgd(model, train)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = [optimizer.state[w]["momentum_buffer"].clone() for w in model.weight_parameters()]
    gradients = [w.grad.clone() for w in model.weight_parameters()]
    Architect(model, SimpleNamespace(**vars(ARGS), hvp=hvp)).step(*train, *valid, ETA, optimizer, unrolled)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.startswith("alphas")), name
    for w, buffer, gradient in zip(model.weight_parameters(), momentum, gradients, strict=True):
        assert torch.equal(optimizer.state[w]["momentum_buffer"], buffer)
        assert torch.equal(w.grad, gradient)
    counter = "cells.0.preprocess0.op.2.num_batches_tracked"
    assert model.state_dict()[counter] - before[counter] == passes
