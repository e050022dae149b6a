"""convolutions.py computes what PyTorch's own convolutions compute, and nothing in a network writes past its memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speed import convolutions


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
    convolutions.use_fast_gradients(conv)
    assert type(conv) is convolutions.Depthwise
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
    assert torch.autograd.gradgradcheck(lambda x, weight: convolutions.depthwise(x, weight, 1, 2, 2), (x, weight))


def test_dilation_is_four_images(double):
    x, weight = torch.randn(2, 3, 8, 12), torch.randn(3, 1, 5, 5)
    images = convolutions.split(x)
    assert torch.equal(convolutions.join(images), x)
    close(convolutions.join(convolutions.depthwise(images, weight, 1, 2)), F.conv2d(x, weight, None, 1, 4, 2, groups=3))


# In a process of its own, which a write past the end of memory ends. glibc checks the end of every piece of memory that is freed.
GRID = """
import itertools, sys, torch
sys.path.insert(0, sys.argv[1])
import operations
from speed import convolutions
torch.set_num_threads(2)
for C, B, size in itertools.product((2, 3, 4, 8, 12), (2, 3, 13, 29), (8, 14, 16, 32)):
    x = torch.randn(B, C, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    for name, stride in itertools.product(operations.OPS, (1, 2)):
        if C % 2 == 0 or name != "skip_connect":
            operation = operations.OPS[name](C, stride, True)
            convolutions.use_fast_gradients(operation)
            sum_ = operation(x).square().sum()
            if sum_.requires_grad:
                sum_.backward()
print("all done")
"""


def test_no_operation_corrupts_memory_on_two_threads():
    checked = {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3"} if sys.platform == "linux" else {}
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}  # a waiting thread leaves its core to other tests
    command = [sys.executable, "-c", GRID, str(Path(__file__).parent.parent)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **checked, **threads})
    assert ended.stdout == "all done\n", (ended.returncode, ended.stderr[-500:])
