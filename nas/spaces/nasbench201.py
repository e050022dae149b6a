"""NAS-Bench-201 (Dong, Yang, ICLR 2020, 2001.00326): a cell of 4 nodes, one of 5 operations on each edge, so 15625 cells.

The benchmark contains results for all of them, and names cells by strings; `to_string` and `from_string` convert. `Cell201` is the space.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import operations
from architecture import Architecture, Cell, Edge
from experiment.errors import UserError, shown
from nas.mutables import LayerChoice
from operations import Identity

NODES = 4
EDGES = [f"{source}_{node}" for node in range(1, NODES) for source in range(node)]


class ReLUConvBN(operations.ReLUConvBN):
    """ReLU, convolution, BatchNorm: (B, C_in, H, W) -> (B, C_out, H', W').

    Args:
        C_in, C_out: channels.
        kernel_size, stride, padding, dilation: of the convolution.
        bn_affine, bn_momentum, bn_track_running_stats: of BatchNorm.
    """

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int = 1,
        bn_affine: bool = True,
        bn_momentum: float = 0.1,
        bn_track_running_stats: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(C_out, momentum=bn_momentum, affine=bn_affine, track_running_stats=bn_track_running_stats),
        )


class Pooling(nn.Sequential):
    """Average pooling of 3x3, after a 1x1 `ReLUConvBN` if input and output channels differ. Arguments as for `ReLUConvBN`."""

    def __init__(
        self, C_in: int, C_out: int, stride: int, bn_affine: bool = True, bn_momentum: float = 0.1, bn_track_running_stats: bool = True
    ) -> None:
        pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        norm = (bn_affine, bn_momentum, bn_track_running_stats)
        super().__init__(*([] if C_in == C_out else [ReLUConvBN(C_in, C_out, 1, 1, 0, 1, *norm)]), pool)


class Zero(operations.Zero):
    """Zeros: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, C_in: int, C_out: int, stride: int) -> None:
        super().__init__(stride)
        self.C_in, self.C_out = C_in, C_out

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.C_in == self.C_out else x[:, :1].expand(-1, self.C_out, -1, -1))


class FactorizedReduce(operations.FactorizedReduce):
    """Halves H and W with two 1x1 convolutions, see `operations.FactorizedReduce`. Arguments as for `ReLUConvBN`; `stride` must be 2."""

    def __init__(
        self, C_in: int, C_out: int, stride: int, bn_affine: bool = True, bn_momentum: float = 0.1, bn_track_running_stats: bool = True
    ) -> None:
        if stride != 2:
            raise UserError(f"FactorizedReduce has stride 2, not {stride}")
        super().__init__(C_in, C_out)
        self.bn = nn.BatchNorm2d(C_out, momentum=bn_momentum, affine=bn_affine, track_running_stats=bn_track_running_stats)


# {NNI's name of a candidate: its name in the benchmark's strings}.
CANDIDATES = {
    "none": "none",
    "avg_pool_3x3": "avg_pool_3x3",
    "conv_3x3": "nor_conv_3x3",
    "conv_1x1": "nor_conv_1x1",
    "skip_connect": "skip_connect",
}


class NASBench201Cell(nn.Module):
    """A cell. Every node is the sum of all nodes before it, with a chosen operation on each edge. Keys: `0_1`, `0_2`, `1_2`, ...

    Args:
        cell_id: a name for this cell, stored as an attribute. All cells have the same keys, and so the same decisions.
        C_in, C_out: channels of the input and of the output.
        stride: of the edges from the input.
        bn_affine, bn_momentum, bn_track_running_stats: of BatchNorm.
    """

    def __init__(
        self,
        cell_id: str | int,
        C_in: int,
        C_out: int,
        stride: int,
        bn_affine: bool = True,
        bn_momentum: float = 0.1,
        bn_track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.cell_id = cell_id
        norm = (bn_affine, bn_momentum, bn_track_running_stats)
        self.edges = nn.ModuleDict()
        for node in range(1, NODES):
            for source in range(node):
                shape = (C_in, C_out, stride) if source == 0 else (C_out, C_out, 1)
                key = f"{source}_{node}"
                self.edges[key] = LayerChoice(_candidates(*shape, norm), reduction="mean", key=key)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        nodes = [input]
        for node in range(1, NODES):
            nodes.append(sum(self.edges[f"{source}_{node}"](nodes[source]) for source in range(node)))
        return nodes[-1]


class NASBench201Network(nn.Module):
    """The benchmark's network: three stages of cells with C, 2C and 4C channels, and a residual block of stride 2 between stages.

    Args:
        channels: C, 16 in the benchmark.
        cells: cells per stage, 5 in the benchmark.
        num_classes, in_channels: of the dataset.
    """

    def __init__(self, channels: int = 16, cells: int = 5, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.layers = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.layers.append(ResidualBlock(channels, 2 * channels))
                channels *= 2
            self.layers.extend(NASBench201Cell(f"{stage}_{cell}", channels, channels, 1) for cell in range(cells))
        self.norm = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W), H and W multiples of 4, to logits (B, num_classes)."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.norm(x).mean((2, 3)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first with stride 2, plus a pooled 1x1 convolution: (B, C_in, H, W) -> (B, C_out, H / 2, W / 2)."""

    def __init__(self, C_in: int, C_out: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ReLUConvBN(C_in, C_out, 3, 2, 1), ReLUConvBN(C_out, C_out, 3, 1, 1))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, stride=2), nn.Conv2d(C_in, C_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.convs(x)


class Cell201(Architecture):
    """A cell of the benchmark, {"0_1": "conv_3x3", ...}; texts may be the benchmark's strings."""

    WIDTH, DEPTH = "channels", "cells"

    @classmethod
    def network(cls) -> type[nn.Module]:
        return NASBench201Network

    @classmethod
    def decode(cls, text: str, name: str) -> Any:
        strings = re.findall(r"\|\w+~\d[\w~|+]*", text)
        return from_string(strings[-1]) if strings else super().decode(text, name)

    @property
    def cells(self) -> dict[str, Cell]:
        if set(self.choices) != set(EDGES) or not all(isinstance(operation, str) for operation in self.choices.values()):
            return {}
        edges = [Edge(key, key[0], key[-1], operation) for key, operation in self.choices.items()]
        return {"": Cell({"0": "input", "1": "node", "2": "node", "3": "output"}, edges, [])}

    @classmethod
    def ends(cls, key: str) -> tuple[str, str] | None:
        return (key[0], key[-1]) if key in EDGES else None


def to_string(architecture: Mapping[str, Any]) -> str:
    """The benchmark's name of an architecture of this space, `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|`.

    Raises:
        UserError: it is not an architecture of this space.
    """
    if set(architecture) != set(EDGES):
        raise UserError(
            f"a NAS-Bench-201 architecture has the keys {', '.join(EDGES)}, not {', '.join(sorted(map(str, architecture))[:8])}"
        )
    for key in EDGES:
        if not isinstance(architecture[key], str) or architecture[key] not in CANDIDATES:
            raise UserError(f"{key} is {architecture[key]!r}: known are {', '.join(CANDIDATES)}")
    nodes = ([f"{CANDIDATES[architecture[f'{source}_{node}']]}~{source}" for source in range(node)] for node in range(1, NODES))
    return "+".join(f"|{'|'.join(edges)}|" for edges in nodes)


def from_string(text: str) -> dict[str, str]:
    """The architecture for the benchmark's string `text`.

    Raises:
        UserError: `text` is not such a string.
    """
    names = {name: candidate for candidate, name in CANDIDATES.items()}
    architecture = {}
    nodes = text.strip().split("+")
    for node, edges in enumerate(nodes, start=1):
        for source, edge in enumerate(edges.strip("|").split("|")):
            match = re.fullmatch(r"(\w+)~(\d)", edge)
            if not match or match[1] not in names or int(match[2]) != source or not source < node < NODES:
                raise UserError(f"{shown(edge)} in {shown(text)} is not an edge to node {node}: <operation>~<node>, of {', '.join(names)}")
            architecture[f"{source}_{node}"] = names[match[1]]
    if to_string(architecture) != text.strip():
        raise UserError(f"{shown(text)} is not a name of NAS-Bench-201")
    return architecture


def _candidates(C_in: int, C_out: int, stride: int, norm: tuple[bool, float, bool]) -> OrderedDict[str, nn.Module]:
    """The candidates. If the shapes of input and output differ, pooling and skip connection contain 1x1 convolutions."""
    if stride == 2:
        skip: nn.Module = FactorizedReduce(C_in, C_out, stride, *norm)
    else:
        skip = Identity() if C_in == C_out else ReLUConvBN(C_in, C_out, 1, 1, 0, 1, *norm)
    return OrderedDict(
        none=Zero(C_in, C_out, stride),
        avg_pool_3x3=Pooling(C_in, C_out, stride, *norm),
        conv_3x3=ReLUConvBN(C_in, C_out, 3, stride, 1, 1, *norm),
        conv_1x1=ReLUConvBN(C_in, C_out, 1, stride, 0, 1, *norm),
        skip_connect=skip,
    )
