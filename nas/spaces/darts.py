"""The cells of DARTS (1806.09055, section 3.1) as choices: the space of `model_search.py`, for any mutator.

Architectures convert to a `Genotype` and back, so what is found here is trained by `model.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

import genotypes
from cli import UserError
from genotypes import Genotype
from nas.mutables import InputChoice, LayerChoice
from operations import OPS, FactorizedReduce, ReLUConvBN

# The candidates' names, as NNI has them, and what they are in a genotype.
CANDIDATES = {
    "maxpool": "max_pool_3x3",
    "avgpool": "avg_pool_3x3",
    "skipconnect": "skip_connect",
    "sepconv3x3": "sep_conv_3x3",
    "sepconv5x5": "sep_conv_5x5",
    "dilconv3x3": "dil_conv_3x3",
    "dilconv5x5": "dil_conv_5x5",
}
NODES = 4


class DartsNode(nn.Module):
    """A node: an operation chosen for every node before it, and two of the results added up; each (B, C, H', W')."""

    def __init__(self, key: str, n_inputs: int, channels: int, n_halved: int) -> None:
        super().__init__()
        keys = [f"{key}_p{source}" for source in range(n_inputs)]
        self.ops = nn.ModuleList(LayerChoice(_candidates(channels, 2 if i < n_halved else 1), key=edge) for i, edge in enumerate(keys))
        self.input_switch = InputChoice(choose_from=keys, n_chosen=2, key=f"{key}_switch")

    def forward(self, states: list[Tensor]) -> Tensor:
        return self.input_switch([op(state) for op, state in zip(self.ops, states, strict=True)])


class DartsCell(nn.Module):
    """A cell; keys `normal_n2_p0`, ..., `normal_n2_switch` or `reduce_...`, nodes counted from 2.

    Args:
        n_nodes: intermediate nodes, all of them concatenated.
        channels_pp, channels_p: channels of the outputs of the two cells before.
        channels: C, channels of a node.
        reduction_p: whether the cell before halved height and width.
        reduction: whether this one does.
    """

    def __init__(self, n_nodes: int, channels_pp: int, channels_p: int, channels: int, reduction_p: bool, reduction: bool) -> None:
        super().__init__()
        self.reduction = reduction
        if reduction_p:
            self.preproc0: nn.Module = FactorizedReduce(channels_pp, channels, affine=False)
        else:
            self.preproc0 = ReLUConvBN(channels_pp, channels, 1, 1, 0, affine=False)
        self.preproc1 = ReLUConvBN(channels_p, channels, 1, 1, 0, affine=False)
        kind, n_halved = ("reduce", 2) if reduction else ("normal", 0)
        self.nodes = nn.ModuleList(DartsNode(f"{kind}_n{node}", node, channels, n_halved) for node in range(2, n_nodes + 2))

    def forward(self, pp: Tensor, p: Tensor) -> Tensor:
        """(B, channels_pp, H, W) (2H, 2W after a reduction) and (B, channels_p, H, W) to (B, n_nodes * channels, H', W')."""
        states = [self.preproc0(pp), self.preproc1(p)]
        for node in self.nodes:
            states.append(node(states))
        return torch.cat(states[2:], dim=1)


class DartsNetwork(nn.Module):
    """The search network of `model_search.Network`, with choices in place of mixed operations.

    Args:
        init_channels: channels of the first cells; doubled at each reduction.
        layers: cells, at least 3, with reduction cells at 1/3 and 2/3 of the depth.
        num_classes, in_channels: of the dataset.
        n_nodes: intermediate nodes per cell.
    """

    def __init__(self, init_channels: int = 16, layers: int = 8, num_classes: int = 10, in_channels: int = 3, n_nodes: int = NODES) -> None:
        super().__init__()
        if layers < 3:
            raise UserError(f"{layers} cells: at least 3 are needed, with reduction cells at 1/3 and 2/3 of the depth")
        channels_pp = channels_p = 3 * init_channels
        channels = init_channels
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels_p, 3, padding=1, bias=False), nn.BatchNorm2d(channels_p))
        self.cells = nn.ModuleList()
        reduction_p = False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            self.cells.append(DartsCell(n_nodes, channels_pp, channels_p, channels, reduction_p, reduction))
            reduction_p = reduction
            channels_pp, channels_p = channels_p, n_nodes * channels
        self.classifier = nn.Linear(channels_p, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W), H and W multiples of 4, to logits (B, num_classes)."""
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return self.classifier(s1.mean((2, 3)))


def to_genotype(architecture: dict[str, Any]) -> Genotype:
    """The genotype of an architecture of this space, exported by any mutator.

    Raises:
        UserError: it is not one.
    """
    cells: dict[str, Any] = {}
    remaining = set(architecture)
    for kind in ("normal", "reduce"):
        edges, node = [], 2
        while f"{kind}_n{node}_switch" in architecture:
            keys = [f"{kind}_n{node}_p{source}" for source in range(node)]
            remaining -= {f"{kind}_n{node}_switch", *keys}
            switch = architecture[f"{kind}_n{node}_switch"]
            if not isinstance(switch, list) or len(switch) != 2:
                raise UserError(f"{kind}_n{node}_switch must name two of {keys}, not {switch!r}")
            for chosen in switch:
                source = keys.index(chosen) if chosen in keys else chosen
                name = architecture.get(f"{kind}_n{node}_p{source}")
                if not isinstance(name, str) or name not in CANDIDATES:
                    raise UserError(f"no operation for {chosen!r}, chosen by {kind}_n{node}_switch: {name!r}, of {', '.join(CANDIDATES)}")
                edges.append((CANDIDATES[name], source))
            node += 1
        cells[kind] = edges
        cells[f"{kind}_concat"] = list(range(2, node))
    if remaining:
        raise UserError(f"not keys of the DARTS space: {', '.join(sorted(map(str, remaining))[:8])}")
    return genotypes.check(**cells)


def from_genotype(genotype: Genotype) -> dict[str, Any]:
    """The architecture of this space that a genotype stands for. An edge that it leaves out, and so is open, skips.

    Raises:
        UserError: it is no cell of this space: another operation, both edges of a node from one source, or not all nodes concatenated.
    """
    names = {primitive: name for name, primitive in CANDIDATES.items()}
    architecture: dict[str, Any] = {}
    for kind, edges, concat in (
        ("normal", genotype.normal, genotype.normal_concat),
        ("reduce", genotype.reduce, genotype.reduce_concat),
    ):
        if sorted(concat) != list(range(2, len(edges) // 2 + 2)):
            raise UserError(f"the DARTS space concatenates all nodes of the {kind} cell, not only {list(concat)}")
        for node in range(2, len(edges) // 2 + 2):
            pair = {source: operation for operation, source in edges[2 * node - 4 : 2 * node - 2]}
            if len(pair) < 2:
                raise UserError(f"in the DARTS space, node {node} of the {kind} cell takes two different nodes, not {[*pair, *pair]}")
            for source in range(node):
                operation = pair.get(source, "skip_connect")
                if operation not in names:
                    raise UserError(f"{operation} is no operation of the DARTS space: {', '.join(names)}")
                architecture[f"{kind}_n{node}_p{source}"] = names[operation]
            architecture[f"{kind}_n{node}_switch"] = [f"{kind}_n{node}_p{source}" for source in sorted(pair)]
    return architecture


def _candidates(channels: int, stride: int) -> OrderedDict[str, nn.Module]:
    """In the search without affine parameters; pooling followed by BatchNorm, so that all candidates are on one scale."""
    candidates: OrderedDict[str, nn.Module] = OrderedDict()
    for name, primitive in CANDIDATES.items():
        op = OPS[primitive](channels, stride, False)
        candidates[name] = nn.Sequential(op, nn.BatchNorm2d(channels, affine=False)) if "pool" in name else op
    return candidates
