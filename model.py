"""The discrete network: the cells of a genotype, stacked, with an optional auxiliary head, for CIFAR-sized images and
for ImageNet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genotypes import Genotype, reductions, triples
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
        edges = triples(genotype.reduce if reduction else genotype.normal)
        self._ops = nn.ModuleList(
            build(name, C, 2 if reduction and source < 2 else 1, True) for name, _, source in edges
        )
        self._edges = [(node, source) for _, node, source in edges]
        self._concat = list(genotype.reduce_concat if reduction else genotype.normal_concat)
        self.multiplier = len(self._concat)

    def forward(self, s0: Tensor, s1: Tensor, drop_prob: float | Tensor) -> Tensor:
        """`drop_prob`: probability of drop path in training, for every operation but `Identity`."""
        # A tensor's value is not read: that would wait for the GPU.
        dropping = self.training and (isinstance(drop_prob, Tensor) or drop_prob > 0)
        states = {0: self.preprocess0(s0), 1: self.preprocess1(s1)}
        for op, (node, source) in zip(self._ops, self._edges, strict=True):
            h = op(states[source])
            if dropping and not isinstance(op, Identity):
                h = drop_path(h, drop_prob)
            states[node] = states[node] + h if node in states else h
        return torch.cat([states[node] for node in self._concat], dim=1)


class _AuxiliaryPool(nn.Module):
    """Average pooling by overlapping windows a `share` of S apart: (B, C, S, S), S at least 2, -> (B, C, 2, 2)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        stride = max(1, round(self.share * x.size(-1)))
        return F.avg_pool2d(x, x.size(-1) - stride, stride, count_include_pad=False)


class AuxiliaryHeadCIFAR(nn.Module):
    """A second classifier at 2/3 of the depth: (B, C, S, S), S at least 2 (8 in the original), to logits (B,
    num_classes).
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
    """The same for ImageNet, where S = 7; without a BatchNorm after the second convolution, as in the authors' code."""

    share = 2 / 7  # of a 7x7 map: windows of 5x5 at stride 2
    second_norm = False


class NetworkCIFAR(nn.Module):
    """The network for CIFAR-10 and images of its size (DARTS, section 3.2).

    `drop_path_prob` is the probability of drop path in training. It is 0 at first; `train.py` raises it in every epoch.

    Args:
        C: channels of the first cells; doubled at each reduction.
        num_classes: classes.
        layers: cells, with reduction cells at 1/3 and 2/3 of the depth.
        auxiliary: whether to add the auxiliary head.
        genotype: the cells.
        in_channels: channels of the images.
    """

    auxiliary_class = AuxiliaryHeadCIFAR

    def __init__(
        self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.drop_path_prob: float | Tensor = 0.0
        C_prev_prev = C_prev = self._build_stem(C, in_channels)
        reduction_prev = hasattr(self, "stem1")  # whose halves differ in size, as cells do around a reduction
        self._auxiliary_after = reductions(layers)[1]
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in reductions(layers)
            C *= 2 if reduction else 1
            cell = Cell(genotype, C_prev_prev, C_prev, C, reduction, reduction_prev)
            self.cells.append(cell)
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, cell.multiplier * C
            if i == self._auxiliary_after and auxiliary:
                self.auxiliary_head = self.auxiliary_class(C_prev, num_classes)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)

    def _build_stem(self, C: int, in_channels: int) -> int:
        """Builds the stem, and returns its number of channels."""
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))
        return 3 * C

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s0 = self.stem(x)
        return s0, s0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, in_channels, S, S), S a multiple of 8, to logits and auxiliary logits, (B, num_classes) each.

        The auxiliary logits are None in evaluation or without `auxiliary`.
        """
        s0, s1 = self._stem(x)
        logits_aux = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if i == self._auxiliary_after and self.training and hasattr(self, "auxiliary_head"):
                logits_aux = self.auxiliary_head(s1)
        return self.classifier(self.global_pooling(s1).flatten(1)), logits_aux


class NetworkImageNet(NetworkCIFAR):
    """The network for ImageNet in the mobile setting (DARTS, section 3.3), for images from 64 pixels on, in multiples
    of 32. C must be even.

    The stem divides H and W by 8, and the two reductions by 4: the last cells see 7x7 of an image of 224x224.
    """

    auxiliary_class = AuxiliaryHeadImageNet

    def _build_stem(self, C: int, in_channels: int) -> int:
        self.stem0, self.stem1 = imagenet_stem(C, in_channels)
        return C

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s0 = self.stem0(x)
        return s0, self.stem1(s0)
