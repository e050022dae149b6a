"""Recurrent networks against the original's operations, and the alphas' gradient against autograd alone."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from golden import close
from gradients import relative_error
from torch.func import functional_call

from rnn.architect import EPSILON, alpha_step, learner
from rnn.genotypes import RecurrentCell
from rnn.model import Dropouts, RNNModel
from rnn.model_search import RNNModelSearch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from benchmarks.recurrent_step import PlainCell, PlainCellSearch

pytestmark = pytest.mark.usefixtures("double")

T, B, V, H, ETA = 6, 5, 11, 7, 0.7
ARGS = {"wdecay": 1e-2, "arch_lr": 3e-3, "arch_wdecay": 1e-3}


def network(kind):
    torch.manual_seed(1)
    sizes = V, H, Dropouts(0.5, 0.25, 0.5, 0.2, 0.1)
    model = RNNModelSearch(*sizes) if kind == "search" else RNNModel(*sizes, RecurrentCell.names()[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


def both(kind):
    """A model, the same with the original's operations, and a text for them."""
    model, plain = network(kind), network(kind)
    plain.rnns[0].__class__ = PlainCellSearch if kind == "search" else PlainCell
    return model, plain, torch.randint(V, (2, T, B)), torch.randn(1, B, H)


@pytest.mark.parametrize("kind", ["search", *RecurrentCell.names()])
def test_edges_computed_together_are_the_original_s_operations(kind):
    model, plain, (x, y), hidden = both(kind)
    masks = model.draw_masks(B)
    for one in (model, plain):
        log_prob, new_hidden, *_ = one(x, hidden, masks)
        (log_prob.gather(2, y[..., None]).mean() + new_hidden.sum()).backward()
    close(model(x, hidden, masks)[0].detach(), plain(x, hidden, masks)[0].detach(), 1e-12)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        close(ours.grad, theirs.grad, 1e-9)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        close(ours, theirs, 1e-12)


def directly(model, train, valid, clip):
    """d/dalpha of L_val(w - xi (c d/dw L_train(w, alpha) + wdecay w), alpha), the same masks in both; and c."""
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
    model = network("search")
    train, valid = ((*torch.randint(V, (2, T, B)), torch.randn(1, B, H)) for _ in range(2))
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
