"""Extensions of `MixedOp`. `edge` combines those that are wanted into one class.

Some need a number for each edge in addition to the weights of the operations: a further column of `weights`. The outermost class takes the
last column.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_search import MixedOp
from operations import OPS


class PartialChannels(MixedOp):
    """Only the first 1/K of the channels go through the operations; then all channels are shuffled (PC-DARTS, section 3.2).

    Args:
        channels: C, a multiple of `parts`.
        stride: 1 or 2.
        parts: K.
    """

    def __init__(self, channels: int, stride: int, parts: int) -> None:
        super().__init__(channels // parts, stride)
        self._parts = parts
        self._around = nn.Identity() if stride == 1 else nn.MaxPool2d(2)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        mixed = x.size(1) // self._parts
        out = torch.cat([super().forward(x[:, :mixed], weights), self._around(x[:, mixed:])], dim=1)
        # Output channel i * K + g is channel g * (C / K) + i, so the first channels of the next edge come from all parts.
        return F.channel_shuffle(out, self._parts)


class AuxiliarySkip(MixedOp):
    """A skip connection in addition to the operations, with its own weight (DARTS-, section 3.2). Never part of the genotype."""

    def __init__(self, channels: int, stride: int, **others: Any) -> None:
        super().__init__(channels, stride, **others)
        self.auxiliary_op = OPS["skip_connect"](channels, stride, False)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights[:-1]) + weights[-1:] * self.auxiliary_op(x)


class EdgeWeight(MixedOp):
    """Multiplies the output by the weight of the edge: edge normalisation (PC-DARTS, section 3.3)."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return weights[-1:] * super().forward(x, weights[:-1])


def edge(partial_channels: int = 1, auxiliary_skip: bool = False) -> Callable[[int, int], nn.Module]:
    """A function that builds an edge from channels and stride: a `MixedOp` with the extensions that are wanted.

    With partial channels, edges have weights.
    """
    skip = [AuxiliarySkip] if auxiliary_skip else []
    if partial_channels > 1:
        return partial(type("Edge", (EdgeWeight, *skip, PartialChannels), {}), parts=partial_channels)
    return AuxiliarySkip if auxiliary_skip else MixedOp
