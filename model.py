"""The discrete network: the cells of a genotype, stacked, with an optional auxiliary head, for CIFAR-sized images and
for ImageNet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genotypes import Genotype, reductions
from operations import FactorizedReduce, Identity, ReLUConvBN, build, drop_path, imagenet_stem


class Cell(nn.Module):
    """A cell of a genotype.

    Inputs: the outputs of the two previous cells, (B, C_prev_prev, H, W) (2H, 2W after a reduction) and (B, C_prev, H,
    W). Output: (B, multiplier * C, H, W), where `multiplier` is the number of concatenated nodes; a reduction cell
    halves H and W.
    """

    def __init__(
        self, genotype: Genotype, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool
    ) -> None:
        super().__init__()
        if reduction_prev:
            self.preprocess0: nn.Module = FactorizedReduce(C_prev_prev, C)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0)
        edges, concat = (
            (genotype.reduce, genotype.reduce_concat) if reduction else (genotype.normal, genotype.normal_concat)
        )
        self._ops = nn.ModuleList(build(name, C, 2 if reduction and source < 2 else 1, True) for name, source in edges)
        self._indices = [source for _, source in edges]
        self._concat = list(concat)
        self.multiplier = len(self._concat)

    def forward(self, s0: Tensor, s1: Tensor, drop_prob: float | Tensor) -> Tensor:
        """`drop_prob`: probability of drop path in training, for every operation but `Identity`."""
        dropping = self.training and (
            isinstance(drop_prob, Tensor) or drop_prob > 0
        )  # reading a tensor's value would wait for the GPU
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for first in range(0, len(self._ops), 2):
            edges = []
            for op, source in zip(self._ops[first : first + 2], self._indices[first : first + 2], strict=True):
                h = op(states[source])
                if dropping and not isinstance(op, Identity):
                    h = drop_path(h, drop_prob)
                edges.append(h)
            states.append(edges[0] + edges[1])
        return torch.cat([states[node] for node in self._concat], dim=1)


class _AuxiliaryPool(nn.Module):
    """Average pooling to 2x2 with two overlapping windows a side, which are a `share` of the map apart:

    (B, C, S, S), any S from 2.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        stride = max(1, round(self.share * x.size(-1)))
        return F.avg_pool2d(x, x.size(-1) - stride, stride, count_include_pad=False)


class AuxiliaryHeadCIFAR(nn.Module):
    """A second classifier at 2/3 of the depth:

    (B, C, S, S), S at least 2, to logits (B, num_classes). S = 8 in the original.
    """

    share = 3 / 8  # of an 8x8 map: windows of 5x5 at stride 3
    second_norm = True

    def __init__(self, C: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            _AuxiliaryPool(self.share),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *([nn.BatchNorm2d(768)] if self.second_norm else []),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class AuxiliaryHeadImageNet(AuxiliaryHeadCIFAR):
    """The same for ImageNet, where S = 7.

    There is no BatchNorm after the second convolution, as in the authors' code.
    """

    share = 2 / 7  # of a 7x7 map: windows of 5x5 at stride 2
    second_norm = False


class _Network(nn.Module):
    """Base class of the two discrete networks: the stack of cells and its forward pass.

    `drop_path_prob` is the probability of drop path in training. It is 0 at first; `train.py` raises it in every epoch.
    """

    def _build(
        self,
        C: int,
        num_classes: int,
        layers: int,
        genotype: Genotype,
        C_stem: int,
        reduction_prev: bool,
        auxiliary_head: type[nn.Module] | None,
    ) -> None:
        """Builds the cells, the auxiliary head and the classifier for a stem with `C_stem` channels."""
        self.drop_path_prob: float | Tensor = 0.0
        _, self._auxiliary_after = reductions(layers)
        self.cells = nn.ModuleList()
        C_prev_prev, C_prev = C_stem, C_stem
        for i in range(layers):
            reduction = i in reductions(layers)
            if reduction:
                C *= 2
            cell = Cell(genotype, C_prev_prev, C_prev, C, reduction, reduction_prev)
            self.cells.append(cell)
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, cell.multiplier * C
            if i == self._auxiliary_after and auxiliary_head is not None:
                self.auxiliary_head = auxiliary_head(C_prev, num_classes)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)

    def _classify(self, s0: Tensor, s1: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_aux = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if i == self._auxiliary_after and self.training and hasattr(self, "auxiliary_head"):
                logits_aux = self.auxiliary_head(s1)
        return self.classifier(self.global_pooling(s1).flatten(1)), logits_aux


class NetworkCIFAR(_Network):
    """The network for CIFAR-10 and images of its size (DARTS, section 3.2).

    Args:
        C: channels of the first cells; doubled at each reduction.
        num_classes: classes.
        layers: cells, with reduction cells at 1/3 and 2/3 of the depth.
        auxiliary: whether to add the auxiliary head.
        genotype: the cells.
        in_channels: channels of the images.
    """

    def __init__(
        self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype, in_channels: int = 3
    ) -> None:
        super().__init__()
        C_stem = 3 * C
        self.stem = nn.Sequential(nn.Conv2d(in_channels, C_stem, 3, padding=1, bias=False), nn.BatchNorm2d(C_stem))
        self._build(C, num_classes, layers, genotype, C_stem, False, AuxiliaryHeadCIFAR if auxiliary else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, in_channels, S, S), S a multiple of 8, to logits and auxiliary logits, (B, num_classes) each.

        The auxiliary logits are None in evaluation or without `auxiliary`.
        """
        s0 = s1 = self.stem(x)
        return self._classify(s0, s1)


class NetworkImageNet(_Network):
    """The network for ImageNet in the mobile setting (DARTS, section 3.3).

    Arguments as for `NetworkCIFAR`; C must be even.

    The stem divides H and W by 8, and the two reductions by 4: the last cells see 7x7 of an image of 224x224.
    """

    def __init__(
        self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.stem0, self.stem1 = imagenet_stem(C, in_channels)
        self._build(C, num_classes, layers, genotype, C, True, AuxiliaryHeadImageNet if auxiliary else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, in_channels, S, S), S a multiple of 32, at least 64, to logits and auxiliary logits, as for
        `NetworkCIFAR`.
        """
        s0 = self.stem0(x)
        return self._classify(s0, self.stem1(s0))
