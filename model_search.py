"""The supernet of the search: all edges and all operations at once, weighted by the softmax of the alphas.

This is the continuous relaxation of the paper (DARTS, section 2.2). `Network.genotype` derives the discrete cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genotypes import CELLS, PRIMITIVES, Genotype, edge_key, reductions
from operations import FactorizedReduce, ReLUConvBN, Zero, build, imagenet_stem


def candidate(primitive: str, C: int, stride: int) -> nn.Module:
    """An operation of an edge in the search, without affine parameters."""
    op = build(primitive, C, stride, False)
    # Convolutions end in BatchNorm; pooling gets one too, so that all outputs have the same scale.
    return nn.Sequential(op, nn.BatchNorm2d(C, affine=False)) if "pool" in primitive else op


class MixedOp(nn.Module):
    """One edge, the weighted sum of all its candidates (DARTS, equation 2): (B, C, H, W) -> (B, C, H / stride, W /
    stride).
    """

    def __init__(self, C: int, stride: int) -> None:
        super().__init__()
        self._ops = nn.ModuleList(candidate(primitive, C, stride) for primitive in PRIMITIVES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """`weights`: (len(PRIMITIVES),), this edge's softmaxed alphas."""
        return weighted_sum(x, self._ops, weights)


def weighted_sum(x: Tensor, operations: Iterable[nn.Module], weights: Tensor) -> Tensor:
    """The sum of what the operations make of x, weighted by `weights`, (operations,)."""
    # `none` adds nothing to the sum; its alpha still takes part in the softmax. Weights of shape (1,), unlike those of
    # shape (), keep the sum in float32 under autocast; in bfloat16, small changes of the alphas would be rounded away.
    return sum(
        weight * op(x) for weight, op in zip(weights[:, None], operations, strict=True) if not isinstance(op, Zero)
    )


class Cell(nn.Module):
    """A cell in which every node has an edge, a `MixedOp`, from every node before it.

    Inputs: the outputs of the two previous cells, (B, C_prev_prev, H, W) (2H, 2W after a reduction) and (B, C_prev, H,
    W). Output: (B, multiplier * C, H, W); a reduction cell halves H and W.
    """

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        mixed_op: Callable[[int, int], nn.Module] = MixedOp,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self._steps = steps
        self._multiplier = multiplier
        if reduction_prev:  # the input from two cells back still has the size from before the reduction
            self.preprocess0: nn.Module = FactorizedReduce(C_prev_prev, C, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        # Edges in the order of the alphas' rows: those into node 2 (from 0, 1), into node 3 (from 0, 1, 2), ...
        self._ops = nn.ModuleList(
            mixed_op(C, 2 if reduction and source < 2 else 1) for step in range(steps) for source in range(2 + step)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """`weights`: (edges, len(PRIMITIVES)), the softmaxed alphas of this kind of cell."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        offset = 0
        for _ in range(self._steps):
            node = sum(self._ops[offset + j](state, weights[offset + j]) for j, state in enumerate(states))
            offset += len(states)
            states.append(node)
        return torch.cat(states[-self._multiplier :], dim=1)


def cell_sizes(C: int, C_stem: int, layers: int, multiplier: int) -> Iterator[tuple[int, int, int, bool]]:
    """(C_prev_prev, C_prev, C, reduction) of every cell behind a stem; C is doubled at each reduction."""
    C_prev_prev = C_prev = C_stem
    for i in range(layers):
        reduction = i in reductions(layers)
        C *= 2 if reduction else 1
        yield C_prev_prev, C_prev, C, reduction
        C_prev_prev, C_prev = C_prev, multiplier * C


class Network(nn.Module):
    """The search network: stem, cells (reduction cells at 1/3 and 2/3 of the depth), global pooling, classifier.

    Args:
        C: channels of the first cells.
        num_classes: classes.
        layers: cells. Fewer than 3 are all reduction cells: then no gradient reaches `alphas_normal`.
        criterion: the loss, `criterion(logits, target)`.
        steps: intermediate nodes per cell.
        multiplier: how many nodes, counted from the last, are concatenated into a cell's output.
        stem_multiplier: the stem's channels, in multiples of C.
        in_channels: channels of the images.
        mixed_op: builds an edge, from its number of channels and its stride.
        stem: `cifar`, which keeps height and width, or `imagenet`, which divides them by 8 and has C channels, C even.

    All normal cells share `alphas_normal`, all reduction cells `alphas_reduce`, (edges, len(PRIMITIVES)) each. They are
    parameters, so that `to()` and `state_dict()` include them, but they are never in `weight_parameters()`.
    """

    def __init__(
        self,
        C: int,
        num_classes: int,
        layers: int,
        criterion: Callable[[Tensor, Tensor], Tensor],
        steps: int = 4,
        multiplier: int = 4,
        stem_multiplier: int = 3,
        in_channels: int = 3,
        mixed_op: Callable[[int, int], nn.Module] = MixedOp,
        stem: str = "cifar",
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self._steps = steps
        self._multiplier = multiplier
        self._halves = stem == "imagenet"  # which differ in size, as cells do before and after a reduction
        if self._halves:
            C_stem = C
            self.stem0, self.stem1 = imagenet_stem(C, in_channels)
        else:
            C_stem = stem_multiplier * C
            self.stem = nn.Sequential(nn.Conv2d(in_channels, C_stem, 3, padding=1, bias=False), nn.BatchNorm2d(C_stem))
        self.cells = nn.ModuleList()
        reduction_prev = self._halves
        for C_prev_prev, C_prev, C_curr, reduction in cell_sizes(C, C_stem, layers, multiplier):
            self.cells.append(Cell(steps, multiplier, C_prev_prev, C_prev, C_curr, reduction, reduction_prev, mixed_op))
            reduction_prev = reduction
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(multiplier * C_curr, num_classes)

        edges = sum(2 + step for step in range(steps))
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(edges, len(PRIMITIVES)))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(edges, len(PRIMITIVES)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W), H and W multiples of 4 (32 with the stem for ImageNet), to logits (B,
        num_classes).
        """
        weights_normal, weights_reduce = self.mixing_weights()
        s0 = self.stem0(x) if self._halves else self.stem(x)
        s1 = self.stem1(s0) if self._halves else s0
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, weights_reduce if cell.reduction else weights_normal)
        return self.classifier(self.global_pooling(s1).flatten(1))

    def relaxed(self) -> list[Tensor]:
        """The softmaxed alphas of normal and reduction cells, (edges, len(PRIMITIVES))."""
        return [F.softmax(alphas, dim=-1) for alphas in (self.alphas_normal, self.alphas_reduce)]

    def mixing_weights(self) -> Sequence[Sequence[Any] | Tensor]:
        """What `forward` gives each edge of normal and of reduction cells."""
        return self.relaxed()

    def arch_parameters(self) -> list[nn.Parameter]:
        """The alphas, alpha in the paper: normal, then reduction."""
        return [self.alphas_normal, self.alphas_reduce]

    def weight_parameters(self) -> list[nn.Parameter]:
        """The network's weights, w in the paper: every parameter but the alphas."""
        alphas = {id(alpha) for alpha in self.arch_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in alphas]

    def genotype(self) -> Genotype:
        """The discrete cells derived from the current alphas (DARTS, section 2.4; see `derive_cell`)."""
        concat = range(2 + self._steps - self._multiplier, self._steps + 2)
        normal, reduce = (derive_cell(weights.tolist(), self._steps) for weights in self.relaxed())
        return Genotype(normal=normal, normal_concat=concat, reduce=reduce, reduce_concat=concat)

    def export(self) -> Genotype:
        """`genotype`, by the name that all search models have."""
        return self.genotype()

    def alphas_by_edge(self) -> dict[str, dict[str, float]]:
        """The softmaxed alphas, {edge: {operation: weight}}, with the edges' names of `genotypes.edge_key`."""
        edges = [(node, source) for node in range(2, self._steps + 2) for source in range(node)]
        return {
            edge_key(cell, *edge): dict(zip(PRIMITIVES, weights, strict=True))
            for cell, matrix in zip(CELLS, self.relaxed(), strict=True)
            for edge, weights in zip(edges, matrix.tolist(), strict=True)
        }

    def alpha_lines(self) -> list[str]:
        """The log's lines about the alphas, as in the original: two matrices of softmaxed alphas."""
        return [str(weights.detach().cpu()) for weights in self.relaxed()]


def derive_cell(weights: list[list[float]], steps: int) -> list[tuple[str, int]]:
    """For each of the `steps` nodes its two strongest edges, the stronger first, each with its strongest operation.

    The strength of an edge is the weight of its strongest operation other than `none`. A large weight of `none` makes
    the edge weaker, because of the softmax, but `none` is never chosen. Between equal weights, the earlier edge and the
    earlier operation are chosen. `weights`: the softmaxed alphas of each edge, in the order of `Cell`.
    """
    candidates = [index for index, primitive in enumerate(PRIMITIVES) if primitive != "none"]
    cell = []
    first_edge = 0
    for step in range(steps):
        edges = weights[first_edge : first_edge + 2 + step]
        best = [max(candidates, key=edge.__getitem__) for edge in edges]
        strongest = sorted(range(len(edges)), key=lambda source: -edges[source][best[source]])[:2]
        cell += [(PRIMITIVES[best[source]], source) for source in strongest]
        first_edge += len(edges)
    return cell
