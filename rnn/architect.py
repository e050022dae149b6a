"""The alpha step for text: losses for `architect.Architect`, with hidden states, dropout and clipped gradients.

The virtual step is SGD's next step, with its clipping: w' = w - xi (c d/dw L_train(w, alpha) + weight_decay w). The
coefficient c of the clipping is a constant, like xi. All passes use the same dropout masks. The authors' code differs
in four places, `FAULTS`; docs/recurrent.md has measurements of their effects.
"""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from torch.func import functional_call

from architect import Architect, State
from rnn.model_search import RNNModelSearch

EPSILON = 1e-6  # as in clip_grad_norm_

FAULTS = (
    "tied",  # the virtual step does not move the matrix that encoder and decoder share
    "coefficient",  # c is not limited to 1 in the second-order term
    "vector",  # the vector of that term is clipped
    "masks",  # every pass draws new dropout masks
)

Text = tuple[Tensor, Tensor, Tensor]  # words (T, B), next words (T, B), hidden state before them (1, B, H)


def learner(model: RNNModelSearch, args: Any) -> Architect:
    """Learns the alphas of `model`. Reads `wdecay`, `arch_lr`, `arch_wdecay` and `hvp` of `args`."""
    alphas = {"arch_learning_rate": args.arch_lr, "arch_weight_decay": args.arch_wdecay, "arch_beta1": 0.9}
    return Architect(model, SimpleNamespace(momentum=0.0, weight_decay=args.wdecay, hvp=args.hvp, **alphas))


def alpha_step(
    architect: Architect,
    model: RNNModelSearch,
    train: Text,
    valid: Text,
    eta: float | Tensor,
    args: Any,
    faults: Collection[str] = (),
) -> Tensor:
    """`Architect.step` on two pieces of text.

    Args:
        train: the text of the next weight step, read only if `args.unrolled`.
        eta: the learning rate of the virtual step.
        args: `clip` and `wdecay` of the weights' SGD, and `unrolled` are read.
        faults: those of `FAULTS` that are computed.

    Returns:
        The hidden state after the validation text, (1, B, H); with `unrolled`, computed with the unrolled weights.
    """
    masks = None if "masks" in faults else model.draw_masks(train[0].size(1))
    carried = valid[2]

    def run(text: Text, state: State) -> tuple[Tensor, Tensor]:
        """The loss, and the hidden state after the text."""
        x, y, hidden = text
        return functional_call(model, state, (x, hidden, masks, y))[:2]

    def train_loss(state: State) -> Tensor:
        return run(train, state)[0]

    def valid_loss(state: State) -> Tensor:
        nonlocal carried
        loss, carried = run(valid, state)
        return loss

    def virtual_step(w: Tensor, dw: Tensor) -> tuple[Tensor, Tensor]:
        coefficient = args.clip / (dw.norm() + EPSILON)
        capped = coefficient.clamp(max=1)
        w_virtual = w - eta * (capped * dw + args.wdecay * w)
        if "tied" in faults:
            shared = model.encoder.weight.numel()  # the first of the weights
            w_virtual[:shared] = w[:shared]
        return w_virtual, eta * (coefficient if "coefficient" in faults else capped)

    def product(w: Tensor, v: Tensor) -> list[Tensor]:
        if "vector" in faults:
            v = v * (args.clip / (v.norm() + EPSILON)).clamp(max=1)
        return architect.product(train_loss, w, v)

    if args.unrolled:
        architect.descend(architect.unrolled_gradient(train_loss, valid_loss, virtual_step, product))
    else:
        architect.descend(architect.first_order_gradient(valid_loss))
    return carried.detach()
