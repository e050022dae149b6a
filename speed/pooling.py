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
                _share_pools([edge for edge, start in zip(cell._ops, sources, strict=True) if start == source])


def _share_pools(edges: Sequence[Any]) -> None:
    first, *others = edges
    compute = first.pool
    given: Tensor | None = None
    pooled: list[Tensor] = []
    left = 0  # edges that have not asked yet

    def pool(x: Tensor) -> list[Tensor]:
        nonlocal given, pooled, left
        if x is not given:
            given, pooled, left = x, compute(x), len(edges)
            if others and first.training:  # BatchNorm's running statistics, which the other edges would compute, too
                own = _statistics(first)
                torch._foreach_copy_([buffer for edge in others for buffer in _statistics(edge)], own * len(others))
        outputs = pooled
        left -= 1
        if not left:
            given, pooled = None, []
        return outputs

    for edge in edges:
        edge.pool = pool


def _statistics(edge: model_search.MixedOp) -> list[Tensor]:
    return [buffer for op in edge._ops if model_search.is_pooling(op) for buffer in op.buffers()]
