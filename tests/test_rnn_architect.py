"""The alphas' gradient of a recurrent cell by the paper's mathematics: the unrolled validation loss, differentiated by
autograd alone.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from gradients import relative_error
from torch.func import functional_call

from rnn.architect import EPSILON, alpha_step, learner
from rnn.model import Dropouts
from rnn.model_search import RNNModelSearch

pytestmark = pytest.mark.usefixtures("double")

T, B, V, H, ETA = 4, 3, 12, 5, 0.7
ARGS = {"wdecay": 1e-2, "arch_lr": 3e-3, "arch_wdecay": 1e-3}


def text(seed):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randint(V, (T, B), generator=g),
        torch.randint(V, (T, B), generator=g),
        torch.randn(1, B, H, generator=g),
    )


def network():
    torch.manual_seed(3)
    model = RNNModelSearch(V, H, Dropouts(0.5, 0.25, 0.5, 0.2, 0.1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


def directly(model, train, valid, clip):
    """d/dalpha of L_val(w - xi (c d/dw L_train(w, alpha) + wdecay w), alpha), the same masks in both losses; c is a
    constant.
    """
    masks = model.draw_masks(B)

    def loss(state, x, y, hidden):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        log_prob, *_ = functional_call(model, buffers | state, (x, hidden, masks))
        return F.nll_loss(log_prob.flatten(0, 1), y.flatten())

    names = {name: parameter for name, parameter in model.named_parameters() if name != "alphas"}
    dw = torch.autograd.grad(loss({}, *train), list(names.values()), create_graph=True)
    norm = torch.sqrt(sum(g.detach().square().sum() for g in dw))
    c = min(1.0, float(clip / (norm + EPSILON)))
    virtual = {name: w - ETA * (c * g + ARGS["wdecay"] * w) for (name, w), g in zip(names.items(), dw, strict=True)}
    return torch.autograd.grad(loss(virtual, *valid), [model.alphas]), c


@pytest.mark.parametrize("clip", [0.05, 100.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize(("hvp", "tolerance"), [("exact", 1e-10), ("finite_difference", 1e-4)])
def test_the_second_order_is_the_gradient_of_the_unrolled_loss(hvp, tolerance, clip):
    """The finite difference by a small step: at the paper's, ReLU's kinks cost half a percent in this tiny cell."""
    model, train, valid = network(), text(1), text(2)
    torch.manual_seed(5)
    expected, c = directly(model, train, valid, clip)
    assert (c < 1) == (clip < 1)
    torch.manual_seed(5)
    args = SimpleNamespace(**ARGS, clip=clip, hvp=hvp, unrolled=True)
    architect = learner(model, args)
    architect.r = 1e-5
    before = [weight.clone() for weight in model.weight_parameters()]
    alpha_step(architect, model, train, valid, ETA, args)
    assert relative_error([model.alphas.grad], expected) < tolerance
    assert all(map(torch.equal, model.weight_parameters(), before))
