"""The cells of DARTS (1806.09055, section 3.1) as choices: the space of `model_search.py` for any mutator.

`cells.Cells` converts between exported architectures and `Genotype`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from architectures.cells import NNI_NAMES, switch_key
from experiment.errors import UserError
from genotypes import PRIMITIVES, edge_key
from model_search import candidate, cell_sizes
from nas.mutables import InputChoice, LayerChoice
from operations import FactorizedReduce, Identity, ReLUConvBN, drop_path


class DropPath(nn.Module):
    """Drop path (see `operations.drop_path`) with the probability in the network's `drop_path_prob`, see
    `give_drop_path`."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["network"] = (
            None  # bypasses `nn.Module.__setattr__`, which would register the network as a submodule
        )

    def forward(self, x: Tensor | None) -> Tensor | None:
        probability = getattr(self.__dict__["network"], "drop_path_prob", 0.0)
        dropping = self.training and (isinstance(probability, Tensor) or probability > 0)
        return drop_path(x, probability) if dropping and x is not None else x


def give_drop_path(network: nn.Module) -> None:
    """Gives `network` the attribute `drop_path_prob`, initially 0: the probability of all its `DropPath` modules in
    training."""
    network.__dict__["drop_path_prob"] = 0.0
    for module in network.modules():
        if isinstance(module, DropPath):
            module.__dict__["network"] = network


class DartsNode(nn.Module):
    """A node: a layer choice for every node before it, and an input choice that adds two of the results, each (B, C,
    H', W').

    As in `model.Cell`, drop path does not affect identities.
    """

    def __init__(self, cell: str, node: int, channels: int, n_halved: int) -> None:
        super().__init__()
        keys = [edge_key(cell, node, source) for source in range(node)]
        self.ops = nn.ModuleList()
        for source, key in enumerate(keys):
            stride = 2 if source < n_halved else 1
            operations = {
                NNI_NAMES.get(name, name): candidate(name, channels, stride) for name in PRIMITIVES if name != "none"
            }
            self.ops.append(
                LayerChoice(OrderedDict(operations), key=key)
            )  # mutators with alphas have an alpha for `none`
        self.drop_path = DropPath()
        self.input_switch = InputChoice(choose_from=keys, n_chosen=2, key=switch_key(cell, node))

    def forward(self, states: list[Tensor]) -> Tensor:
        results = [op(state) for op, state in zip(self.ops, states, strict=True)]
        return self.input_switch(
            [x if isinstance(op, Identity) else self.drop_path(x) for op, x in zip(self.ops, results, strict=True)]
        )


class DartsCell(nn.Module):
    """A cell. Keys of its choices: `normal_n2_p0`, ..., `normal_n2_switch` or `reduce_...`, with nodes counted from 2.

    Args:
        n_nodes: intermediate nodes, all of them concatenated.
        channels_pp, channels_p: channels of the outputs of the two previous cells.
        channels: C, channels of a node.
        reduction_p: whether the previous cell halves height and width.
        reduction: whether this cell does.
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

    def forward(self, pprev: Tensor, prev: Tensor) -> Tensor:
        """(B, channels_pp, H, W) (2H, 2W after a reduction) and (B, channels_p, H, W) to (B, n_nodes * channels, H',
        W')."""
        states = [self.preproc0(pprev), self.preproc1(prev)]
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

    def __init__(
        self, init_channels: int = 16, layers: int = 8, num_classes: int = 10, in_channels: int = 3, n_nodes: int = 4
    ) -> None:
        super().__init__()
        if layers < 3:
            raise UserError(
                f"{layers} cells: at least 3 are needed, because fewer are all reduction cells and leave no normal "
                f"cell to choose"
            )
        C_stem, reduction_p = 3 * init_channels, False
        self.stem = nn.Sequential(nn.Conv2d(in_channels, C_stem, 3, padding=1, bias=False), nn.BatchNorm2d(C_stem))
        self.cells = nn.ModuleList()
        for channels_pp, channels_p, channels, reduction in cell_sizes(init_channels, C_stem, layers, n_nodes):
            self.cells.append(DartsCell(n_nodes, channels_pp, channels_p, channels, reduction_p, reduction))
            reduction_p = reduction
        self.classifier = nn.Linear(n_nodes * channels, num_classes)
        give_drop_path(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W), H and W multiples of 4, to logits (B, num_classes)."""
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return self.classifier(s1.mean((2, 3)))
