"""The edges of a node, computed together, are the original's operations."""

import sys
from pathlib import Path

import pytest
import torch
from golden import close

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from benchmarks.recurrent_step import PlainCell, PlainCellSearch
from rnn.genotypes import RecurrentCell
from rnn.model import Dropouts, RNNModel
from rnn.model_search import RNNModelSearch

pytestmark = pytest.mark.usefixtures("double")
T, B, V, H = 6, 5, 11, 7
P = Dropouts(0.3, 0.3, 0.3, 0.3, 0.3)


def both(kind):
    """A model, the same with the original's operations, and a text for them."""
    models = []
    for plain in (False, True):
        torch.manual_seed(1)
        model = RNNModelSearch(V, H, P) if kind == "search" else RNNModel(V, H, P, RecurrentCell.names()[kind])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(10)
        if plain:
            model.rnns[0].__class__ = PlainCellSearch if kind == "search" else PlainCell
        models.append(model)
    return *models, torch.randint(V, (2, T, B)), torch.randn(1, B, H)


@pytest.mark.parametrize("kind", ["search", *RecurrentCell.names()])
def test_edges_computed_together_are_the_original_s_operations(kind):
    model, plain, (x, y), hidden = both(kind)
    masks = model.draw_masks(B)
    for one in (model, plain):
        log_prob, new_hidden, *_ = one(x, hidden, masks)
        (log_prob.gather(2, y[..., None]).mean() + new_hidden.sum()).backward()
    close(model(x, hidden, masks)[0].detach(), plain(x, hidden, masks)[0].detach(), 1e-12)
    for (name, ours), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert ours.grad is not None, name
        close(ours.grad, theirs.grad, 1e-9)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        close(ours, theirs, 1e-12)
