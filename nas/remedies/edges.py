"""What remedies put around the sum of a mixed operation. `edge` joins those that are wanted into one class.

Some take a number for each edge, besides the operations' weights: a column of `weights` after these. The outermost class takes the last.
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
    """The operations see the first 1/K of the channels; the others go around them, and all are shuffled (PC-DARTS, section 3.2).

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
        # Output channel i * K + g is channel g * (C / K) + i, so that the next edge's first channels are from all parts.
        return F.channel_shuffle(out, self._parts)


class AuxiliarySkip(MixedOp):
    """A skip connection beside the operations, weighed by a number of its own (DARTS-, section 3.2); never a part of the genotype."""

    def __init__(self, channels: int, stride: int, **others: Any) -> None:
        super().__init__(channels, stride, **others)
        self.auxiliary_op = OPS["skip_connect"](channels, stride, False)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return super().forward(x, weights[:-1]) + weights[-1:] * self.auxiliary_op(x)


class EdgeWeight(MixedOp):
    """The edge's part in the sum of its node (PC-DARTS, section 3.3)."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return weights[-1:] * super().forward(x, weights[:-1])


def edge(partial_channels: int = 1, auxiliary_skip: bool = False) -> Callable[[int, int], nn.Module]:
    """What makes an edge of so many channels and this stride: a `MixedOp` with what is wanted around it.

    With partial channels, an edge has a weight.
    """
    around: list[type[MixedOp]] = []
    if partial_channels > 1:
        around.append(EdgeWeight)
    if auxiliary_skip:
        around.append(AuxiliarySkip)
    if partial_channels > 1:
        around.append(PartialChannels)
    if not around:
        return MixedOp
    kind = type("Edge", (*around, MixedOp), {})
    return partial(kind, parts=partial_channels) if partial_channels > 1 else kind
