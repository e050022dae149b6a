"""The cells of DARTS (1806.09055, section 3.1) as choices: the space of `model_search.py`, for any mutator.

`nas.architecture.Architecture` makes an exported architecture a `Genotype`, which `model.py` trains, and goes the way back.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from experiment.errors import UserError
from genotypes import PRIMITIVES, edge_key
from nas.architecture import choice_of, switch_key
from nas.mutables import InputChoice, LayerChoice
from operations import OPS, FactorizedReduce, ReLUConvBN

NODES = 4


class DartsNode(nn.Module):
    """A node: an operation chosen for every node before it, and two of the results added up; each (B, C, H', W')."""

    def __init__(self, cell: str, node: int, channels: int, n_halved: int) -> None:
        super().__init__()
        keys = [edge_key(cell, node, source) for source in range(node)]
        self.ops = nn.ModuleList(LayerChoice(_candidates(channels, 2 if i < n_halved else 1), key=edge) for i, edge in enumerate(keys))
        self.input_switch = InputChoice(choose_from=keys, n_chosen=2, key=switch_key(cell, node))

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
        self.nodes = nn.ModuleList(DartsNode(kind, node, channels, n_halved) for node in range(2, n_nodes + 2))

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


def _candidates(channels: int, stride: int) -> OrderedDict[str, nn.Module]:
    """In the search without affine parameters; pooling followed by BatchNorm, so that all candidates are on one scale."""
    candidates: OrderedDict[str, nn.Module] = OrderedDict()
    for primitive in PRIMITIVES:
        if primitive != "none":  # a mutator that has alphas has one for it
            op = OPS[primitive](channels, stride, False)
            op = nn.Sequential(op, nn.BatchNorm2d(channels, affine=False)) if "pool" in primitive else op
            candidates[choice_of(primitive)] = op
    return candidates
