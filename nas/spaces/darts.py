"""The cells of DARTS (1806.09055, section 3.1) as choices: the space of `model_search.py` for any mutator.

`architectures.cells.Cells` converts between exported architectures and `Genotype`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.cells import NNI_NAMES, switch_key
from experiment.errors import UserError
from genotypes import PRIMITIVES, edge_key
from model_search import candidate, cell_sizes
from nas.mutables import InputChoice, LayerChoice
from operations import FactorizedReduce, Identity, ReLUConvBN, drop_path


def with_drop_path(op: nn.Module, x: Tensor | None, drop_prob: float | Tensor) -> Tensor | None:
    """`x`, the output of `op`, with drop path in training as in `model.Cell`: identities are not dropped.

    A fixed choice of no layer has the output None.
    """
    dropping = op.training and (isinstance(drop_prob, Tensor) or drop_prob > 0)  # a tensor's value is on the GPU
    return x if x is None or not dropping or isinstance(op, Identity) else drop_path(x, drop_prob)


class DartsNode(nn.Module):
    """A node: a layer choice for every node before it, and an input choice that adds two of the results."""

    def __init__(self, cell: str, node: int, channels: int, n_halved: int) -> None:
        super().__init__()
        keys = [edge_key(cell, node, source) for source in range(node)]
        names = [name for name in PRIMITIVES if name != "none"]  # mutators with alphas have one for `none`
        self.ops = nn.ModuleList()
        for source, key in enumerate(keys):
            stride = 2 if source < n_halved else 1
            self.ops.append(
                LayerChoice({NNI_NAMES.get(name, name): candidate(name, channels, stride) for name in names}, key=key)
            )
        self.input_switch = InputChoice(choose_from=keys, n_chosen=2, key=switch_key(cell, node))

    def forward(self, states: list[Tensor], drop_prob: float | Tensor) -> Tensor:
        """The outputs of the nodes before, (B, C, H, W) each, to (B, C, H', W')."""
        edges = zip(self.ops, states, strict=True)
        return self.input_switch([with_drop_path(op, op(state), drop_prob) for op, state in edges])


class DartsCell(nn.Module):
    """A cell whose `n_nodes` nodes are concatenated.

    Keys of its choices: `normal_n2_p0`, ..., `normal_n2_switch` or `reduce_...`, with nodes counted from 2.
    """

    def __init__(
        self, n_nodes: int, channels_pp: int, channels_p: int, channels: int, reduction_p: bool, reduction: bool
    ) -> None:
        super().__init__()
        self.reduction = reduction
        if reduction_p:
            self.preproc0: nn.Module = FactorizedReduce(channels_pp, channels, affine=False)
        else:
            self.preproc0 = ReLUConvBN(channels_pp, channels, 1, 1, 0, affine=False)
        self.preproc1 = ReLUConvBN(channels_p, channels, 1, 1, 0, affine=False)
        kind, n_halved = ("reduce", 2) if reduction else ("normal", 0)
        self.nodes = nn.ModuleList(DartsNode(kind, node, channels, n_halved) for node in range(2, n_nodes + 2))

    def forward(self, pprev: Tensor, prev: Tensor, drop_prob: float | Tensor = 0.0) -> Tensor:
        """(B, channels_pp, H, W) (2H, 2W after a reduction) and (B, channels_p, H, W) to (B, n_nodes * channels, H',
        W')."""
        states = [self.preproc0(pprev), self.preproc1(prev)]
        for node in self.nodes:
            states.append(node(states, drop_prob))
        return torch.cat(states[2:], dim=1)


class DartsNetwork(nn.Module):
    """The search network of `model_search.Network`, with choices in place of mixed operations.

    Args:
        init_channels: channels of the first cells; doubled at each reduction.
        layers: cells, at least 3, with reduction cells at 1/3 and 2/3 of the depth.
        num_classes, in_channels: of the dataset.
        n_nodes: intermediate nodes per cell.
    """

    def __init__(
        self, init_channels: int = 16, layers: int = 8, num_classes: int = 10, in_channels: int = 3, n_nodes: int = 4
    ) -> None:
        super().__init__()
        if layers < 3:
            raise UserError(f"{layers} cells: at least 3 are needed, because fewer are all reduction cells")
        self.drop_path_prob: float | Tensor = 0.0  # see `model.NetworkCIFAR`
        C_stem, reduction_p = 3 * init_channels, False
        self.stem = nn.Sequential(nn.Conv2d(in_channels, C_stem, 3, padding=1, bias=False), nn.BatchNorm2d(C_stem))
        self.cells = nn.ModuleList()
        for channels_pp, channels_p, channels, reduction in cell_sizes(init_channels, C_stem, layers, n_nodes):
            self.cells.append(DartsCell(n_nodes, channels_pp, channels_p, channels, reduction_p, reduction))
            reduction_p = reduction
        self.classifier = nn.Linear(n_nodes * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W), H and W multiples of 4, to logits (B, num_classes)."""
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
        return self.classifier(s1.mean((2, 3)))
