"""Recomputation of activations: a cell stores only its inputs, and runs again in the backward pass (Chen et al. 2016,
1604.06174).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import model
import model_search


def recompute(network: nn.Module) -> None:
    """Makes the cells of `network` store only their inputs, and recompute their activations in the backward pass."""
    for cell in network.modules():
        if isinstance(cell, (model_search.Cell, model.Cell)):
            cell.forward = _recomputed(cell)  # type: ignore[method-assign]


def _recomputed(cell: nn.Module) -> Callable[..., Tensor]:
    """The cell's `forward` with gradient checkpointing."""
    forward, inside = cell.forward, False

    def recomputed(*inputs: Any) -> Tensor:
        if inside or not torch.is_grad_enabled():
            return forward(*inputs)
        # Those of this pass: under `functional_call` they differ from the cell's own, which the backward pass would
        # use.
        parameters, buffers = dict(cell.named_parameters()), dict(cell.named_buffers())
        passes = itertools.count()

        def run(*inputs: Any) -> Tensor:
            nonlocal inside
            # The second pass uses copies of the buffers, so that running statistics are updated once.
            own = buffers if next(passes) == 0 else {name: buffer.clone() for name, buffer in buffers.items()}
            inside = True
            try:
                return functional_call(cell, parameters | own, inputs)
            finally:
                inside = False

        return checkpoint(run, *inputs, use_reentrant=False)

    return recomputed
