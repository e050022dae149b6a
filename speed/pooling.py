"""Pooling once per node of a search cell: the edges from a node pool the same input, without parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import model_search
from operations import Zero


def share_pools(network: nn.Module) -> None:
    """Makes the edges of a search cell that leave the same node pool once, instead of once per edge.

    Comes before `compile_regions`.
    """
    for cell in network.modules():
        if not isinstance(cell, model_search.Cell) or not all(type(edge) is model_search.MixedOp for edge in cell._ops):
            continue
        sources = [source for step in range(cell._steps) for source in range(2 + step)]
        for source in range(cell._steps + 1):
            edges = [edge for edge, start in zip(cell._ops, sources, strict=True) if start == source]
            if any(map(_is_pooling, edges[0]._ops)):  # type: ignore[arg-type, union-attr]
                shared = _SharedPool(edges)  # type: ignore[arg-type]
                for edge in edges:
                    edge.__class__ = Edge
                    edge.shared = shared  # type: ignore[assignment]


class Edge(model_search.MixedOp):
    """The class that `share_pools` gives to a `MixedOp`.

    Its parts are compiled apart, because the first is computed for several edges.
    """

    shared: _SharedPool

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.mix(x, self.shared(x), weights)

    def pool(self, x: Tensor) -> list[Tensor]:
        """The outputs of the poolings."""
        return [op(x) for op in self._ops if _is_pooling(op)]

    def mix(self, x: Tensor, pooled: Sequence[Tensor], weights: Tensor) -> Tensor:
        """The weighted sum, given the outputs of `pool`."""
        outputs = iter(pooled)
        return sum(
            weight * (next(outputs) if _is_pooling(op) else op(x))
            for weight, op in zip(weights[:, None], self._ops, strict=True)
            if not isinstance(op, Zero)
        )


class _SharedPool:
    """The outputs of `Edge.pool` for edges from one node: the first that asks computes them for all.

    A class, so that networks can be copied.
    """

    def __init__(self, edges: Sequence[Edge]) -> None:
        self.edges = edges
        self._clear()

    def _clear(self) -> None:
        self.given: Tensor | None = None
        self.pooled: list[Tensor] = []
        self.left = 0  # edges that have not asked yet

    def __call__(self, x: Tensor) -> list[Tensor]:
        if x is not self.given:
            first, *others = self.edges
            self.given, self.pooled, self.left = x, first.pool(x), len(self.edges)
            if others and first.training:  # BatchNorm's running statistics, which the other edges would compute, too
                torch._foreach_copy_(
                    [buffer for edge in others for buffer in _statistics(edge)], _statistics(first) * len(others)
                )
        outputs = self.pooled
        self.left -= 1
        if not self.left:
            self._clear()
        return outputs


def _is_pooling(op: nn.Module) -> bool:
    """Whether this candidate of a `MixedOp` is a pooling and a BatchNorm without parameters, and nothing else."""
    if not (isinstance(op, nn.Sequential) and len(op) == 2 and type(op[0]) in (nn.AvgPool2d, nn.MaxPool2d)):
        return False
    return isinstance(op[1], _BatchNorm) and op[1].track_running_stats and not op[1].affine


def _statistics(edge: Edge) -> list[Tensor]:
    return [buffer for op in edge._ops if _is_pooling(op) for buffer in op.buffers()]
