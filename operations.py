"""The operations of an edge: all map C channels to C channels, at stride 1 or 2.

`OPS[name](C, stride, affine)` builds one. All take and return (B, C, H, W), with H and W halved at stride 2, where they
must be even. Convolutions are ReLU, convolution, BatchNorm in this order (DARTS, section 3.1, after NASNet). `affine`
is False in the search, because an operation that can scale its own output would change the meaning of its alpha, and
True in the final network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiment.errors import UserError

OPS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda C, stride, affine: Zero(stride),
    "avg_pool_3x3": lambda C, stride, affine: nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False),
    "max_pool_3x3": lambda C, stride, affine: nn.MaxPool2d(3, stride=stride, padding=1),
    "skip_connect": lambda C, stride, affine: Identity() if stride == 1 else FactorizedReduce(C, C, affine=affine),
    "sep_conv_3x3": lambda C, stride, affine: SepConv(C, C, 3, stride, 1, affine=affine),
    "sep_conv_5x5": lambda C, stride, affine: SepConv(C, C, 5, stride, 2, affine=affine),
    "sep_conv_7x7": lambda C, stride, affine: SepConv(C, C, 7, stride, 3, affine=affine),
    "dil_conv_3x3": lambda C, stride, affine: DilConv(C, C, 3, stride, 2, 2, affine=affine),
    "dil_conv_5x5": lambda C, stride, affine: DilConv(C, C, 5, stride, 4, 2, affine=affine),
    "conv_7x1_1x7": lambda C, stride, affine: nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, (1, 7), stride=(1, stride), padding=(0, 3), bias=False),
        nn.Conv2d(C, C, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False),
        nn.BatchNorm2d(C, affine=affine),
    ),
}


def build(name: str, C: int, stride: int, affine: bool) -> nn.Module:
    """`OPS[name](C, stride, affine)`."""
    if name not in OPS:
        raise UserError(
            f"the operation {name} is not in OPS of operations.py: add a line that builds it, or leave the name out"
        )
    return OPS[name](C, stride, affine)


class _Sequence(nn.Module):
    op: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ReLUConvBN(_Sequence):
    """ReLU, convolution, BatchNorm: (B, C_in, H, W) -> (B, C_out, H', W')."""

    def __init__(self, C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, affine: bool = True) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )


class DilConv(_Sequence):
    """Dilated depthwise-separable convolution: (B, C_in, H, W) -> (B, C_out, H', W')."""

    def __init__(
        self, C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, dilation: int, affine: bool = True
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_in, kernel_size, stride, padding, dilation, groups=C_in, bias=False),
            nn.Conv2d(C_in, C_out, 1, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )


class SepConv(_Sequence):
    """Depthwise-separable convolution applied twice, the stride in the first; (B, C_in, H, W) -> (B, C_out, H', W')."""

    def __init__(self, C_in: int, C_out: int, kernel_size: int, stride: int, padding: int, affine: bool = True) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_in, kernel_size, stride, padding, groups=C_in, bias=False),
            nn.Conv2d(C_in, C_in, 1, bias=False),
            nn.BatchNorm2d(C_in, affine=affine),
            nn.ReLU(),
            nn.Conv2d(C_in, C_in, kernel_size, 1, padding, groups=C_in, bias=False),
            nn.Conv2d(C_in, C_out, 1, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )


class Identity(nn.Module):
    """The skip connection at stride 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Zero(nn.Module):
    """No connection: zeros, (B, C, H / stride, W / stride)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """Two 1x1 convolutions of stride 2, concatenated: (B, C_in, H, W) -> (B, C_out, H / 2, W / 2), C_out even.

    The second is shifted by one row and one column, so that the two together see even and odd ones.
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__()
        self.relu: nn.Module = nn.ReLU()
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        # Subsampled first, then convolved: equal to convolutions of stride 2, which corrupt memory on some CPUs
        # (speed/layers.py).
        return self.bn(torch.cat([self.conv_1(x[:, :, ::2, ::2]), self.conv_2(x[:, :, 1::2, 1::2])], dim=1))


def imagenet_stem(C: int, in_channels: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The two halves of the stem for ImageNet, C even: (B, in_channels, H, W) -> (B, C, H / 4, W / 4) -> (B, C, H / 8,
    W / 8).
    """
    stem0 = nn.Sequential(
        nn.Conv2d(in_channels, C // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(C // 2),
        nn.ReLU(),
        nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(C),
    )
    return stem0, nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(C))


def drop_path(x: Tensor, drop_prob: float | Tensor) -> Tensor:
    """Sets each image of x, (B, C, H, W), to zero with this probability, and scales the others to keep the mean.

    Larsson et al. 2017. With the same random state, a float and a tensor, (), of the same value drop the same images.
    """
    keep_prob = 1.0 - drop_prob
    mask = torch.rand(x.size(0), 1, 1, 1, device=x.device) < keep_prob
    return x * (mask / keep_prob).to(x.dtype)
