"""Pooling once per node of a search cell: the edges from a node pool the same input, without parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import model_search


def share_pools(network: nn.Module) -> None:
    """Makes the edges of a search cell that leave the same node pool once, instead of once per edge. Comes after `compile_regions`."""
    for cell in network.modules():
        if isinstance(cell, model_search.Cell) and all(type(edge) is model_search.MixedOp for edge in cell._ops):
            sources = [source for step in range(cell._steps) for source in range(2 + step)]
            for source in range(cell._steps + 1):
                edges: list[Any] = [edge for edge, start in zip(cell._ops, sources, strict=True) if start == source]
                shared = _SharedPool(edges)
                for edge in edges:
                    edge.pool = shared


class _SharedPool:
    """`MixedOp.pool` of edges from one node: the first edge that asks computes it for all. A class, so that networks can be copied."""

    def __init__(self, edges: Sequence[Any]) -> None:
        self.edges = edges
        self.compute = edges[0].pool
        self._clear()

    def _clear(self) -> None:
        self.given: Tensor | None = None
        self.pooled: list[Tensor] = []
        self.left = 0  # edges that have not asked yet

    def __call__(self, x: Tensor) -> list[Tensor]:
        if x is not self.given:
            self.given, self.pooled, self.left = x, self.compute(x), len(self.edges)
            first, *others = self.edges
            if others and first.training:  # BatchNorm's running statistics, which the other edges would compute, too
                torch._foreach_copy_([buffer for edge in others for buffer in _statistics(edge)], _statistics(first) * len(others))
        outputs = self.pooled
        self.left -= 1
        if not self.left:
            self._clear()
        return outputs


def _statistics(edge: model_search.MixedOp) -> list[Tensor]:
    return [buffer for op in edge._ops if model_search.is_pooling(op) for buffer in op.buffers()]
