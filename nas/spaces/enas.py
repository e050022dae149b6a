"""The two spaces of ENAS (Pham et al., ICML 2018, 1802.03268): cells of two-input nodes (micro), and whole networks
with skips (macro). Modules and keys are those of NNI 2.0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures import Architecture, Cell, Edge, is_index
from architectures.cells import graph
from experiment.errors import UserError
from genotypes import CELLS, reductions
from nas.mutables import InputChoice, LayerChoice, MutableScope
from nas.spaces.darts import with_drop_path
from operations import FactorizedReduce, Identity


def _stem(C_in: int, C_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(C_in, C_out, 3, padding=1, bias=False), nn.BatchNorm2d(C_out))


def _pointwise(C_in: int, C_out: int) -> nn.Sequential:
    """1x1 convolution, BatchNorm, ReLU: adapts the channels before an operation."""
    return nn.Sequential(nn.Conv2d(C_in, C_out, 1, bias=False), nn.BatchNorm2d(C_out, affine=False), nn.ReLU())


def _separable(C: int, kernel_size: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(C, C, kernel_size, padding=kernel_size // 2, groups=C, bias=False)
    return [depthwise, nn.Conv2d(C, C, 1, bias=False)]


def _average_pool() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _reduce(C_in: int, C_out: int) -> FactorizedReduce:
    """The factorised reduction, without the ReLU that it has in DARTS."""
    reduction = FactorizedReduce(C_in, C_out, affine=False)
    reduction.relu = nn.Identity()
    return reduction


# ---- Micro: section 2.4


class _MicroInput(nn.Module):
    """One of a node's two inputs: chooses an earlier node, and an operation on it."""

    def __init__(self, key: str, prev_labels: list[str], channels: int) -> None:
        super().__init__()
        self.input_choice = InputChoice(choose_from=prev_labels, n_chosen=1, key=f"{key}_input")
        convolutions = [
            nn.Sequential(nn.ReLU(), *_separable(channels, kernel_size), nn.BatchNorm2d(channels))
            for kernel_size in (3, 5)
        ]
        others = [_average_pool(), nn.MaxPool2d(3, 1, 1), Identity()]
        self.op_choice = LayerChoice([*convolutions, *others], key=f"{key}_op")

    def forward(self, states: list[Tensor], drop_prob: float | Tensor) -> Tensor:
        x = self.op_choice(self.input_choice(states))
        return with_drop_path(self.op_choice, x, drop_prob)  # type: ignore[return-value]  # some layer is chosen


class ENASMicroNode(MutableScope):
    """The sum of two inputs, each an earlier node and an operation on it."""

    def __init__(self, key: str, prev_labels: list[str], channels: int) -> None:
        super().__init__(key)
        self.x = _MicroInput(f"{key}_x", prev_labels, channels)
        self.y = _MicroInput(f"{key}_y", prev_labels, channels)

    def forward(self, states: list[Tensor], drop_prob: float | Tensor) -> Tensor:
        return self.x(states, drop_prob) + self.y(states, drop_prob)


class ENASMicroLayer(nn.Module):
    """A cell of `num_nodes` nodes. Keys of its choices: `normal_node_0_x_input`, `normal_node_0_x_op`, ... or
    `reduce_...`."""

    def __init__(self, num_nodes: int, channels_pp: int, channels_p: int, out_channels: int, reduction: bool) -> None:
        super().__init__()
        self.reduction = reduction
        if reduction:
            self.reduce0 = _reduce(channels_pp, out_channels)
            self.reduce1 = _reduce(channels_p, out_channels)
            channels_pp = channels_p = out_channels
        self.preproc0 = nn.Identity() if channels_pp == out_channels else _pointwise(channels_pp, out_channels)
        self.preproc1 = nn.Identity() if channels_p == out_channels else _pointwise(channels_p, out_channels)
        kind = "reduce" if reduction else "normal"
        labels = [InputChoice.NO_KEY, InputChoice.NO_KEY, *(f"{kind}_node_{node}" for node in range(num_nodes))]
        self.nodes = nn.ModuleList(
            ENASMicroNode(label, labels[:index], out_channels) for index, label in enumerate(labels) if index > 1
        )
        self.final_conv_w = nn.Parameter(torch.empty(out_channels, num_nodes + 2, out_channels, 1, 1))
        nn.init.kaiming_normal_(self.final_conv_w)
        self.bn = nn.BatchNorm2d(out_channels, affine=False)

    def forward(self, pprev: Tensor, prev: Tensor, drop_prob: float | Tensor = 0.0) -> tuple[Tensor, Tensor]:
        """(B, channels_pp, H, W) and (B, channels_p, H, W) to (previous, output), the pair that the next layer takes:
        prev, halved in a reduction layer, and (B, out_channels, H', W')."""
        if self.reduction:
            pprev, prev = self.reduce0(pprev), self.reduce1(prev)
        states = [self.preproc0(pprev), self.preproc1(prev)]
        for node in self.nodes:
            states.append(node(states, drop_prob))
        used = {index for choice in self.modules() if isinstance(choice, InputChoice) for index in choice.chosen}
        loose = [index for index in range(len(states)) if index not in used]
        x = F.relu(torch.cat([states[index] for index in loose], dim=1))
        return prev, self.bn(F.conv2d(x, self.final_conv_w[:, loose].flatten(1, 2)))


class ENASMicroNetwork(nn.Module):
    """Stem, `num_layers` normal layers with reduction layers after the first and second third of them, global pooling,
    classifier.

    `out_channels` are those of the first layers, doubled at each reduction; the stem has 3 times as many.
    """

    def __init__(
        self,
        num_layers: int = 6,
        num_nodes: int = 5,
        out_channels: int = 20,
        in_channels: int = 3,
        num_classes: int = 10,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path_prob: float | Tensor = 0.0  # see `model.NetworkCIFAR`
        channels_pp = channels_p = 3 * out_channels
        self.stem = _stem(in_channels, channels_p)
        self.layers = nn.ModuleList()
        for layer in range(num_layers):
            if layer in reductions(num_layers):
                out_channels *= 2
                self.layers.append(ENASMicroLayer(num_nodes, channels_pp, channels_p, out_channels, reduction=True))
                channels_pp = channels_p = out_channels
            self.layers.append(ENASMicroLayer(num_nodes, channels_pp, channels_p, out_channels, reduction=False))
            channels_pp, channels_p = channels_p, out_channels
        self.dropout = nn.Dropout(dropout_rate)
        self.classifier = nn.Linear(channels_p, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W), H and W multiples of 4, to logits (B, num_classes)."""
        p = output = self.stem(x)
        for layer in self.layers:
            p, output = layer(p, output, self.drop_path_prob)
        return self.classifier(self.dropout(F.relu(output).mean((2, 3))))


class Micro(Architecture):
    """Two cells of ENAS, {"normal_node_0_x_input": 0, "normal_node_0_x_op": 1, ...}."""

    NETWORK = "nas.spaces.enas:ENASMicroNetwork"
    WIDTH, DEPTH = "out_channels", "num_layers"
    NUMBERED = ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "skip_connect")

    @property
    def cells(self) -> dict[str, Cell]:
        found, remaining = {}, dict(self.choices)
        for name in CELLS:
            pairs: list[tuple[str, int]] = []
            keys: list[str] = []
            node = 0
            while f"{name}_node_{node}_x_op" in remaining:
                for side in ("x", "y"):
                    key = f"{name}_node_{node}_{side}"
                    operation, source = remaining.pop(f"{key}_op", None), remaining.pop(f"{key}_input", None)
                    if not is_index(operation, len(self.NUMBERED)) or not is_index(source, node + 2):
                        return {}
                    pairs.append((self.NUMBERED[operation], source))
                    keys.append(f"{key}_op")
                node += 1
            used = {source for _, source in pairs}
            if pairs:
                found[name] = graph(name, pairs, [index for index in range(node + 2) if index not in used], keys)
        return {} if remaining else found


# ---- Macro: section 2.3


def _branch(C: int, *layers: nn.Module) -> nn.Sequential:
    """1x1 convolution, these layers, BatchNorm: (B, C, H, W) -> (B, C, H, W)."""
    return nn.Sequential(_pointwise(C, C), *layers, nn.BatchNorm2d(C, affine=False))


class ENASMacroLayer(MutableScope):
    """One of six branches applied to the previous layer, plus any of the earlier layers with the labels
    `prev_labels`."""

    def __init__(self, key: str, prev_labels: list[str], filters: int) -> None:
        super().__init__(key)
        branches: list[nn.Module] = []
        for kernel_size in (3, 5):
            plain = nn.Conv2d(filters, filters, kernel_size, padding=kernel_size // 2)
            branches += [_branch(filters, plain).append(nn.ReLU())]
            branches += [_branch(filters, *_separable(filters, kernel_size)).append(nn.ReLU())]
        branches += [_branch(filters, _average_pool()), _branch(filters, nn.MaxPool2d(3, 1, 1))]
        self.branch = LayerChoice(branches)
        self.skipconnect = InputChoice(choose_from=prev_labels) if prev_labels else None
        self.batch_norm = nn.BatchNorm2d(filters, affine=False)

    def forward(self, prev_list: list[Tensor]) -> Tensor:
        """`prev_list`: the outputs of the stem and of all layers so far, (B, C, H, W) each."""
        out = self.branch(prev_list[-1])
        skips = self.skipconnect(prev_list[:-1]) if self.skipconnect is not None else None
        return self.batch_norm(out if skips is None else out + skips)


class ENASMacroGeneralModel(nn.Module):
    """Stem, `num_layers` layers, global pooling, dropout, classifier. After the first and second third of the layers,
    the outputs of all layers so far are halved in height and width by one factorised reduction. With fewer than 3
    layers, there is no reduction.

    Keys of layers are `layer_0`, ...; as in NNI, the label `layer_i` of a skip connection means the input of layer i:
    `layer_0` is the stem's output. `out_filters`, the channels of every layer, is an even number.
    """

    def __init__(
        self,
        num_layers: int = 12,
        out_filters: int = 24,
        in_channels: int = 3,
        num_classes: int = 10,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if out_filters % 2:
            raise UserError(f"{out_filters} channels: an even number is needed, because a reduction halves it")
        self.stem = _stem(in_channels, out_filters)
        labels = [f"layer_{layer}" for layer in range(num_layers)]
        self.layers = nn.ModuleList(ENASMacroLayer(label, labels[:i], out_filters) for i, label in enumerate(labels))
        third = num_layers // 3
        self.reductions = nn.ModuleDict(
            {str(layer): _reduce(out_filters, out_filters) for layer in (third - 1, 2 * third - 1) if third}
        )
        self.dropout = nn.Dropout(dropout_rate)
        self.classifier = nn.Linear(out_filters, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W), H and W multiples of 4, to logits (B, num_classes)."""
        outputs = [self.stem(x)]
        for i, layer in enumerate(self.layers):
            outputs.append(layer(outputs))
            if str(i) in self.reductions:
                outputs = [self.reductions[str(i)](output) for output in outputs]
        return self.classifier(self.dropout(outputs[-1].mean((2, 3))))


class Macro(Architecture):
    """A network of ENAS: the branch of the first layer, then of every further layer its branch and the layers that are
    added."""

    NETWORK = "nas.spaces.enas:ENASMacroGeneralModel"
    WIDTH, DEPTH = "out_filters", "num_layers"
    NUMBERED = ("conv_3x3", "sep_conv_3x3", "conv_5x5", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")

    @property
    def cells(self) -> dict[str, Cell]:
        """The whole network as one cell: a branch leads from each node to the next one, and skip connections are fixed
        edges."""
        entries = [(key, chosen if isinstance(chosen, list) else [chosen]) for key, chosen in self.choices.items()]
        branches, skips = entries[:1] + entries[1::2], [[], *(chosen for _, chosen in entries[2::2])]
        if len(branches) != len(skips) or len(branches) < 3:
            return {}
        nodes = ["stem", *map(str, range(len(branches)))]
        edges, fixed = [], []
        for layer, ((key, branch), added) in enumerate(zip(branches, skips, strict=True)):
            inputs = {f"layer_{index}": nodes[index] for index in range(layer)}  # `layer_i` is the input of layer i
            known = all(isinstance(label, str) and label in inputs for label in added)
            if not known or len(branch) != 1 or not is_index(branch[0], len(self.NUMBERED)):
                return {}
            edges.append(Edge(key, nodes[layer], nodes[layer + 1], self.NUMBERED[branch[0]]))
            fixed += [(inputs[label], nodes[layer + 1]) for label in added]
        kinds = {"stem": "input"} | dict.fromkeys(nodes[1:], "node") | {"classifier": "output"}
        return {"": Cell(kinds, edges, nodes[-1:], fixed)}

    def skips(self) -> dict[str, int]:
        """The number of inputs that are added."""
        return {name: len(cell.fixed) for name, cell in self.cells.items()}
