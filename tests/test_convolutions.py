"""speed/layers.py computes what PyTorch's own convolutions compute, and nothing in a network writes past its memory."""

import pytest
import torch
from torch import nn

from speed import layers


def close(actual, expected, relative=1e-9):
    """Equal to `relative` times the size of the whole tensor."""
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm().clamp_min(1e-30)
    assert error <= relative, f"relative error {error:.2e}"


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 10), (9, 7), (2, 16), (4, 4)])
def test_depthwise_and_its_gradients(k, stride, dilation, size):
    torch.manual_seed(k)
    conv = nn.Conv2d(4, 4, k, stride, dilation * (k // 2), dilation, groups=4, bias=False)
    layers.use_fast_gradients(conv)
    assert type(conv) is layers.Depthwise
    x = torch.randn(2, 4, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = nn.Conv2d.forward(conv, x)
    actual = conv(x)
    close(actual, expected)
    grad = torch.randn_like(expected)
    gradients = (torch.autograd.grad(result, (x, conv.weight), grad) for result in (actual, expected))
    for ours, plain in zip(*gradients, strict=True):
        close(ours, plain)


def test_second_derivatives_of_depthwise(double):
    x = torch.randn(2, 2, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(2, 1, 3, 3, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, weight: layers.depthwise(x, weight, 1, 2, 2), (x, weight))


class Strided(nn.Module):
    """A user's network with a convolution whose gradient corrupts memory in `channels_last`."""

    def __init__(self, channels):
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 4, 1, stride=2)

    def forward(self, x):
        x = self.stem(x)
        self.format = "channels_last" if x.is_contiguous(memory_format=torch.channels_last) else "contiguous"
        return self.shortcut(x)


@pytest.mark.parametrize(("channels", "format"), [(15, "contiguous"), (16, "channels_last")])
def test_convolutions_that_corrupt_memory_stay_out_of_channels_last(channels, format):
    network = Strided(channels)
    layers.set_memory_format(network, torch.device("cpu"))
    network(torch.randn(2, 3, 8, 8))
    assert network.format == format
