"""Cells of NAS-Bench-201's supernet with fewer and larger operations.

The edges from one node read the same tensor. So their 3x3 convolutions are one with the outputs of all of them, their
1x1 convolutions another, and ReLU and pooling are computed once. An operation's weight takes the place of the scale
that its BatchNorm does not have.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.mutables import LayerChoice
from nas.spaces.nasbench201 import CANDIDATES, EDGES, NODES, NASBench201Cell


def merge_cells(network: nn.Module) -> None:
    """Makes the cells of `network` whose BatchNorms have neither parameters nor running statistics `MergedCell`s, if
    their edges mix operations."""
    for cell in network.modules():
        if type(cell) is NASBench201Cell and _mixes(cell) and all(map(_is_mergeable, cell.modules())):
            cell.__class__ = MergedCell


def _mixes(cell: NASBench201Cell) -> bool:
    """Whether the edges are open choices that run all operations, and no remedy wraps them."""
    choices: Any = cell.edges.values()
    return all(isinstance(choice, LayerChoice) and len(choice.chosen) > 1 and choice.edge is None for choice in choices)


def _is_mergeable(module: nn.Module) -> bool:
    plain = type(module) is nn.BatchNorm2d and not module.affine and module.running_mean is None
    return plain or not isinstance(module, _BatchNorm)


class MergedCell(NASBench201Cell):
    """The class that `merge_cells` gives to a cell. It computes as before while an edge runs one operation."""

    def forward(self, input: Tensor) -> Tensor:
        if not _mixes(self):
            return super().forward(input)
        choices: Any = self.edges.values()
        return self.mix(input, torch.stack([choice.mask for choice in choices]))

    def mix(self, x: Tensor, weights: Tensor) -> Tensor:
        """The cell's output; `weights` are those of the operations, (edges, operations)."""
        skip, conv_1x1, conv_3x3, pool = (list(CANDIDATES).index(name) for name in list(CANDIDATES)[1:])
        C, H, W = x.shape[1:]
        ones = x.new_ones(C, 1, 3, 3)
        pooled_pixels = F.conv2d(x.new_ones(1, 1, H, W), ones[:1], padding=1)  # fewer at the border
        sums: dict[int, Tensor] = {0: x}
        for source in range(NODES - 1):
            x, heads = sums[source], range(source + 1, NODES)
            keys = [f"{source}_{head}" for head in heads]
            rows = weights[[EDGES.index(key) for key in keys]]
            relu, pooled = x.relu(), F.conv2d(x, ones, padding=1, groups=C) / pooled_pixels
            normed = []
            for operation, name in ((conv_3x3, "conv_3x3"), (conv_1x1, "conv_1x1")):
                _, convs, norms = zip(*(self.edges[key][name].op for key in keys), strict=True)  # type: ignore[index]
                y = F.conv2d(relu, torch.cat([conv.weight for conv in convs]), padding=convs[0].padding)
                scale = rows[:, operation].repeat_interleave(C)
                normed.append(F.batch_norm(y, None, None, scale, None, True, eps=norms[0].eps))
            for head, row, part in zip(heads, rows, torch.add(*normed).split(C, 1), strict=True):
                out = part + row[skip] * x + row[pool] * pooled
                sums[head] = sums[head] + out if source else out
        return sums[NODES - 1]
