"""NAS-Bench-201 (Dong, Yang, ICLR 2020, 2001.00326): a cell of 4 nodes, one of 5 operations on each edge, so 15625
cells.

The benchmark contains results for all of them, and names cells by strings; `to_string` and `from_string` convert. The
supernet is that of the benchmark's own searches (docs/nasbench201.md).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

import operations
from architectures import Architecture, Cell, Edge
from experiment.errors import UserError, shown
from nas.edges import use_batch_statistics
from nas.mutables import LayerChoice
from operations import FactorizedReduce, Identity, ReLUConvBN

NODES = 4
EDGES = [f"{source}_{node}" for node in range(1, NODES) for source in range(node)]

# {name of a candidate, as in NNI: its name in the benchmark's strings}, in the benchmark's order.
CANDIDATES = {
    "none": "none",
    "skip_connect": "skip_connect",
    "conv_1x1": "nor_conv_1x1",
    "conv_3x3": "nor_conv_3x3",
    "avg_pool_3x3": "avg_pool_3x3",
}


class Cell201(Architecture):
    """A cell of the benchmark, {"0_1": "conv_3x3", ...}; texts may be the benchmark's strings."""

    NETWORK = "nas.spaces.nasbench201:NASBench201Network"
    WIDTH, DEPTH = "channels", "cells"
    DISCRETE = MappingProxyType({"reduction": "mean", "track_running_stats": True})

    @classmethod
    def decode(cls, text: str, name: str) -> Any:
        strings = re.findall(r"\|\w+~\d[\w~|+]*", text)
        return from_string(strings[-1]) if strings else super().decode(text, name)

    def __str__(self) -> str:
        return f"architecture = {self.text}"

    @property
    def text(self) -> str:
        return to_string(self.choices) if self.cells else super().text  # a choice may be an index or a mask

    @property
    def cells(self) -> dict[str, Cell]:
        if set(self.choices) != set(EDGES) or not all(
            isinstance(operation, str) for operation in self.choices.values()
        ):
            return {}
        edges = [Edge(key, key[0], key[-1], operation) for key, operation in self.choices.items()]
        return {"": Cell({"0": "input", "1": "node", "2": "node", "3": "output"}, edges, [])}

    @classmethod
    def ends(cls, key: str) -> tuple[str, str] | None:
        return (key[0], key[-1]) if key in EDGES else None


class Pooling(nn.Sequential):
    """Average pooling of 3x3, after a 1x1 `ReLUConvBN` if the channels differ: (B, C_in, H, W) -> (B, C_out, H /
    stride, W / stride)."""

    def __init__(self, C_in: int, C_out: int, stride: int) -> None:
        pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        super().__init__(*([] if C_in == C_out else [ReLUConvBN(C_in, C_out, 1, 1, 0)]), pool)


class Zero(operations.Zero):
    """Zeros: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride).

    A product, as in the benchmark: weights before it get a gradient, of zeros, and so SGD's weight decay.
    """

    def __init__(self, C_in: int, C_out: int, stride: int) -> None:
        super().__init__(stride)
        self.C_in, self.C_out = C_in, C_out

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.C_in == self.C_out else x[:, :1].expand(-1, self.C_out, -1, -1)
        return 0 * x[:, :, :: self.stride, :: self.stride]


def _candidates(C_in: int, C_out: int, stride: int, affine: bool) -> OrderedDict[str, nn.Module]:
    """The candidates in NNI's order. If the shapes of input and output differ, pooling and skip connection contain 1x1
    convolutions."""
    if stride == 2:
        skip: nn.Module = FactorizedReduce(C_in, C_out, affine)
    else:
        skip = Identity() if C_in == C_out else ReLUConvBN(C_in, C_out, 1, 1, 0, affine)
    return OrderedDict(
        none=Zero(C_in, C_out, stride),
        avg_pool_3x3=Pooling(C_in, C_out, stride),
        conv_3x3=ReLUConvBN(C_in, C_out, 3, stride, 1, affine),
        conv_1x1=ReLUConvBN(C_in, C_out, 1, stride, 0, affine),
        skip_connect=skip,
    )


class NASBench201Cell(nn.Module):
    """A cell. Every node is the sum of all nodes before it, with a chosen operation on each edge. Keys: `0_1`, `0_2`,
    `1_2`, ..., the same in all cells, and so the same decisions.

    Args:
        C_in, C_out: channels of the input and of the output.
        stride: of the edges from the input.
        reduction: `mean`, the cell of NNI 2.0, which with one operation on each edge is that of the benchmark's
            networks; or `sum`, the cell of the benchmark's searches: BatchNorm without parameters, and no alpha for
            choosing nothing beside that of the candidate `none`.
    """

    def __init__(self, C_in: int, C_out: int, stride: int, reduction: str = "mean") -> None:
        super().__init__()
        self.edges = nn.ModuleDict()
        for key in EDGES:
            shape = (C_in, C_out, stride) if key[0] == "0" else (C_out, C_out, 1)
            candidates = _candidates(*shape, affine=reduction == "mean")
            if reduction == "sum":
                candidates = OrderedDict((name, candidates[name]) for name in CANDIDATES)
            self.edges[key] = LayerChoice(candidates, reduction, key, nothing=reduction == "mean")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        nodes = [input]
        for node in range(1, NODES):
            nodes.append(sum(self.edges[f"{source}_{node}"](nodes[source]) for source in range(node)))
        return nodes[-1]


class NASBench201Network(nn.Module):
    """The benchmark's network: three stages of cells with C, 2C and 4C channels, and a residual block of stride 2
    between stages.

    Args:
        channels: C, 16 in the benchmark.
        cells: cells per stage, 5 in the benchmark.
        num_classes, in_channels: of the dataset.
        reduction: as for `NASBench201Cell`.
        track_running_stats: whether the BatchNorms in the cells evaluate by running statistics, and not by those of
            the batch. None: with the reduction `mean` only.
    """

    def __init__(
        self,
        channels: int = 16,
        cells: int = 5,
        num_classes: int = 10,
        in_channels: int = 3,
        reduction: str = "sum",
        track_running_stats: bool | None = None,
    ) -> None:
        super().__init__()
        self.own_statistics = reduction == "sum"
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.layers = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.layers.append(ResidualBlock(channels, 2 * channels))
                channels *= 2
            for _ in range(cells):
                cell = NASBench201Cell(channels, channels, 1, reduction)
                if not (reduction == "mean" if track_running_stats is None else track_running_stats):
                    use_batch_statistics(cell)
                self.layers.append(cell)
        self.norm = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W), H and W multiples of 4, to logits (B, num_classes)."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.norm(x).mean((2, 3)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first with stride 2, plus a pooled 1x1 convolution: (B, C_in, H, W) -> (B, C_out, H /
    2, W / 2)."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ReLUConvBN(C_in, C_out, 3, 2, 1), ReLUConvBN(C_out, C_out, 3, 1, 1))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, stride=2), nn.Conv2d(C_in, C_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.convs(x)


_NAMES = {name: candidate for candidate, name in CANDIDATES.items()}
_STRING = r"\+".join(
    r"\|" + r"\|".join(rf"(\w+)~{source}" for source in range(node)) + r"\|" for node in range(1, NODES)
)


def to_string(architecture: Mapping[str, Any]) -> str:
    """The benchmark's name of an architecture of this space, `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|`.

    Raises:
        UserError: it is not an architecture of this space.
    """
    if set(architecture) != set(EDGES) or not set(architecture.values()) <= set(CANDIDATES):
        raise UserError(
            f"{shown(architecture)} is not of NAS-Bench-201: {', '.join(EDGES)} are each one of {', '.join(CANDIDATES)}"
        )
    nodes = (
        [f"{CANDIDATES[architecture[f'{source}_{node}']]}~{source}" for source in range(node)]
        for node in range(1, NODES)
    )
    return "+".join(f"|{'|'.join(edges)}|" for edges in nodes)


def from_string(text: str) -> dict[str, str]:
    """The architecture for the benchmark's string `text`. Raises `UserError` if it is not such a string."""
    match = re.fullmatch(_STRING, text.strip())
    if not match or not set(match.groups()) <= set(_NAMES):
        raise UserError(
            f"{shown(text)} is not a name of NAS-Bench-201, |<operation>~<node>|+|...|, with operations "
            f"{', '.join(_NAMES)}"
        )
    return {edge: _NAMES[name] for edge, name in zip(EDGES, match.groups(), strict=True)}
