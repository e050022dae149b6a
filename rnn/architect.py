"""Training of the alphas of a recurrent cell: `architect.Architect` for a model with hidden states, clipped gradients and dropout.

The virtual step is the step that SGD is about to make, with its clipping: w' = w - xi (c d/dw L_train(w, alpha) + weight_decay w). The
clipping coefficient c is treated as a constant, like xi. All passes use the same dropout masks. The authors' code differs in four places,
`FAULTS`; docs/recurrent.md has measurements of their effects.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

import architect
from rnn.model_search import RNNModelSearch

EPSILON = 1e-6  # as in clip_grad_norm_

FAULTS = (
    "tied",  # the virtual step does not move the matrix that encoder and decoder share
    "coefficient",  # c is not limited to 1 in the second-order term
    "vector",  # the vector of that term is clipped
    "masks",  # every pass draws new dropout masks
)


class Architect(architect.Architect):
    """Trains the alphas of `model` on validation text.

    Args:
        model: the search network.
        args: any object with `clip` and `wdecay` (of the weights' SGD), `arch_lr` and `arch_wdecay` (of the alphas' Adam), `hvp`, and
            `faithful`: whether to compute all of `FAULTS`, as the authors' code.
    """

    betas = (0.9, 0.999)

    def __init__(self, model: RNNModelSearch, args: Any) -> None:
        self.clip = args.clip
        self.faults = frozenset(FAULTS if args.faithful else ())
        names = {"weight_decay": args.wdecay, "arch_learning_rate": args.arch_lr, "arch_weight_decay": args.arch_wdecay, "hvp": args.hvp}
        super().__init__(cast(Any, model), SimpleNamespace(momentum=0.0, **names))
        self._network = model

    def step_text(
        self,
        train: tuple[Tensor, Tensor, Tensor],
        valid: tuple[Tensor, Tensor, Tensor],
        eta: float | Tensor,
        network_optimizer: torch.optim.Optimizer,
        unrolled: bool,
    ) -> Tensor:
        """`step` on two sequences, each (words (T, B), next words (T, B), hidden state before it (1, B, H)).

        Returns:
            The hidden state after the validation sequence, (1, B, H); with `unrolled`, computed with the unrolled weights.
        """
        (x, y, hidden), (x_valid, y_valid, hidden_valid) = train, valid
        masks = None if "masks" in self.faults else self._network.draw_masks(x.size(1))
        self._valid = (x_valid, hidden_valid, masks)
        self.step(cast(Any, (x, hidden, masks)), y, cast(Any, self._valid), y_valid, eta, network_optimizer, unrolled)
        return self._hidden

    def _loss(self, input: Any, target: Tensor, state: dict[str, Tensor] | None = None, amp: bool = True) -> Tensor:
        """`input`: words, state and masks, the arguments of the model before the target."""
        loss, hidden, *_ = functional_call(cast(nn.Module, self.model), state or {}, (*input, target))
        if input is self._valid:
            self._hidden = hidden.detach()
        return loss

    def _virtual_step(
        self, w: Tensor, dw: Tensor, eta: float | Tensor, network_optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, float | Tensor]:
        coefficient = self.clip / (dw.norm() + EPSILON)
        capped = coefficient.clamp(max=1)
        w_virtual, _ = super()._virtual_step(w, dw * capped, eta, network_optimizer)
        if "tied" in self.faults:
            shared = self._network.encoder.weight.numel()  # the first of the weights
            w_virtual = torch.cat([w[:shared], w_virtual[shared:]])
        return w_virtual, eta * (coefficient if "coefficient" in self.faults else capped)

    def _product(self, w: Tensor, v: Tensor, input: Tensor, target: Tensor) -> list[Tensor]:
        if "vector" in self.faults:
            v = v * (self.clip / (v.norm() + EPSILON)).clamp(max=1)
        return super()._product(w, v, input, target)
