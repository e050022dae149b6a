"""Faster layers of networks for images: the memory format, gradients of depthwise convolutions, shared poolings.

**Depthwise convolutions.** In `channels_last` on a CPU, PyTorch has fast kernels for them, with two exceptions that
take 10 to 50 times as long as the forward pass: the gradient of a kernel wider than 3, and all gradients of a dilated
kernel. Both can be computed by fast ones:

- A kernel of width 5. Grouped in pairs of columns, an image has half the width and twice the channels: those of the
  even columns, then those of the odd ones (in `channels_last`, the same memory). Two columns of the kernel's reach are
  at most one pair apart. If their distance is even, they are in the same half of the channels, otherwise in opposite
  halves. This gives two gradients of kernels of width 3.
- Dilation 2. The image is split into four images, of even and odd rows and columns (`_split`, `_join`). On these, the
  convolution is not dilated. At stride 2, only the first of them is needed.

**A 1x1 convolution of stride 2** must not run in `channels_last` on a CPU. Therefore operations.py subsamples first and
convolves at stride 1. With 2 to 15 input channels, float32, AVX-512 and more than one thread, oneDNN's gradient of the
weight writes up to 256 bytes past the end of its scratch memory, which ends in "double free or corruption" or worse.
Seen in PyTorch 2.14.1 and 2.15 (oneDNN 3.12), at stride 2 and 3, on images of 14 pixels and more, for odd batches from
3 on. Guard bytes around all memory found nothing else among 10,800 convolutions on two threads (kernels 1, 3, 5;
strides 1, 2; 1 to 32 channels; batches of 1 to 29).

**Poolings.** The edges of a search cell from one node pool the same input, without parameters: once is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import model_search
from operations import Zero

# ---- Memory format


def set_memory_format(network: nn.Module, device: torch.device, amp: bool = False) -> None:
    """Makes `network` convert its images to the memory format that is fastest on `device`. On a CPU, also uses fast
    gradients.

    On CPUs, this is `channels_last`, which halves the time of a step (benchmarks/README.md). On GPUs, it is
    `channels_last` for bfloat16, which tensor cores need. In float32, cuDNN has no fast depthwise convolution for it
    (`use_cudnn_depthwise` in PyTorch's aten/src/ATen/native/Convolution.cpp accepts only float16 and bfloat16).
    """
    format = torch.channels_last if device.type == "cpu" or amp else torch.contiguous_format
    if device.type == "cpu":
        use_fast_gradients(network)
        if any(map(_corrupts_memory, network.modules())):
            format = torch.contiguous_format
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(memory_format=format), *inputs[1:]))


def _corrupts_memory(module: nn.Module) -> bool:
    """Whether this convolution must not run in `channels_last` on a CPU (see above)."""
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1):
        return False
    return max(module.stride) > 1 and module.groups == 1 and module.in_channels < 16


# ---- Depthwise convolutions


class Depthwise(nn.Conv2d):
    """The class that `use_fast_gradients` gives to a depthwise `nn.Conv2d`."""

    padding: tuple[int, ...]  # never a string

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(x, self.weight, self.stride[0], self.padding[0], self.dilation[0])


def use_fast_gradients(network: nn.Module) -> None:
    """Makes the depthwise convolutions of `network` use the gradients of this file."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_depthwise(module):
            module.__class__ = Depthwise


def _is_depthwise(conv: nn.Conv2d) -> bool:
    square = all(len(set(sizes)) == 1 for sizes in (conv.kernel_size, conv.stride, conv.padding, conv.dilation))
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return conv.groups == conv.in_channels == conv.out_channels > 1 and conv.bias is None and square and zeros


def depthwise(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    """Convolution of x, (B, C, H, W), by `weight`, (C, 1, k, k), with a group for each channel, to (B, C, H', W').

    By PyTorch's own, where x is not on a CPU and in `channels_last`, or a gradient is not one of those above.
    """
    if x.is_cpu and torch.is_autocast_enabled("cpu"):
        # Its kernels give NaN gradients of dilated convolutions with less than 16 channels.
        with torch.autocast("cpu", enabled=False):
            return depthwise(x.float(), weight, stride, padding, dilation)
    fast = x.is_cpu and x.is_contiguous(memory_format=torch.channels_last)
    if fast and dilation == 2 and padding % 2 == 0:
        if stride == 2:
            x = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
            return _fast(x, weight, 1, padding // 2)
        if stride == 1 and x.size(2) % 2 == 0 and x.size(3) % 2 == 0 and padding == weight.size(2) - 1:
            return _join(_fast(_split(x), weight, 1, padding // 2))
    if fast and dilation == 1:
        return _fast(x, weight, stride, padding)
    return F.conv2d(x, weight, None, stride, padding, dilation, groups=weight.size(0))


def _fast(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Computes `_convolve` with the gradients of this file. The result is in `channels_last`."""
    # PyTorch's fast kernels return this format, so `contiguous` copies nothing. It is called outside of the function,
    # because PyTorch 2.11 computes zero gradients for a compiled function that ends with it.
    return _Depthwise.apply(2, x, weight, None, stride, padding).contiguous(memory_format=torch.channels_last)


def _split(x: Tensor) -> Tensor:
    """The four images of even and odd rows and columns, (B, C, H, W) -> (4B, C, H / 2, W / 2), in `channels_last`."""
    B, C, H, W = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(B, H // 2, 2, W // 2, 2, C).permute(2, 4, 0, 1, 3, 5)
    return parts.reshape(4 * B, H // 2, W // 2, C).permute(0, 3, 1, 2)


def _join(x: Tensor) -> Tensor:
    """The inverse of `_split`, (4B, C, H, W) -> (B, C, 2H, 2W)."""
    B, C, H, W = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(2, 2, B // 4, H, W, C).permute(2, 3, 0, 4, 1, 5)
    return parts.reshape(B // 4, 2 * H, 2 * W, C).permute(0, 3, 1, 2)


class _Depthwise(torch.autograd.Function):
    """`_derivative`. T is linear in x, weight and grad, so the derivatives of a derivative are of the same kind."""

    @staticmethod
    def forward(ctx, by: int, x: Tensor, weight: Tensor, grad: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight, grad)
        ctx.by, ctx.geometry = by, (stride, padding)
        return _derivative(by, x, weight, grad, stride, padding)

    @staticmethod
    def backward(ctx, vector: Tensor):
        compute = _Depthwise.apply if torch.is_grad_enabled() else _derivative
        inputs = list(ctx.saved_tensors)
        inputs[ctx.by] = vector if ctx.by == 1 else vector.contiguous(memory_format=torch.channels_last)
        needed = [need and by != ctx.by for by, need in enumerate(ctx.needs_input_grad[1:4])]
        gradients = (compute(by, *inputs, *ctx.geometry) if need else None for by, need in enumerate(needed))
        return None, *gradients, None, None


def _derivative(by: int, x: Tensor, weight: Tensor, grad: Tensor | None, stride: int, padding: int) -> Tensor:
    """The derivative of T = sum(_convolve(x, weight) * grad) by x (0), weight (1), or grad (2)."""
    if grad is None or by == 2:
        return _convolve(x, weight, stride, padding)
    return (_weight_gradient if by == 1 else _input_gradient)(x, weight, grad, stride, padding)


def _convolve(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, padding, groups=weight.size(0))


def _input_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int, padding: int) -> Tensor:
    if stride == 1 and 2 * padding == weight.size(-1) - 1:
        result = _convolve(grad, weight.flip(2, 3), 1, padding)  # with the kernel rotated by 180 degrees
    else:
        result = _backward(grad, x, weight, stride, (padding, padding), [True, False, False])[0]
    return result.contiguous(memory_format=torch.channels_last)


def _weight_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int, padding: int) -> Tensor:
    B, C, H, W = x.shape
    if not (weight.size(-1) == 5 and stride == 1 and padding == 2 and W % 2 == 0 and W >= 8):
        return _backward(grad, x, weight, stride, (padding, padding), [False, True, False])[1]
    narrow = weight.new_empty(2 * C, 1, 5, 3)
    grad = grad.permute(0, 2, 3, 1).reshape(B, H, W // 2, 2 * C).permute(0, 3, 1, 2)
    halves = x.permute(0, 2, 3, 1).reshape(B, H, W // 2, 2, C)
    paired = (half.reshape(B, H, W // 2, 2 * C).permute(0, 3, 1, 2) for half in (halves, halves.flip(3)))
    same, opposite = (_backward(grad, x, narrow, 1, (2, 1), [False, True, False])[1].split(C) for x in paired)
    result = torch.empty_like(weight)
    result[..., 0::2] = same[0] + same[1]
    # The neighbours of an even column are the odd columns of the previous and of its own pair; those of an odd column,
    # the even columns of its own and of the next pair.
    result[..., 1::2] = opposite[0][..., :2] + opposite[1][..., 1:]
    return result


def _backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], mask: list[bool]):
    """PyTorch's own gradients of x, weight and bias, those that `mask` asks for."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], weight.size(0), mask
    )


# ---- Poolings


def share_pools(network: nn.Module) -> None:
    """Makes the edges of a search cell that leave the same node pool once, instead of once per edge.

    Comes before `compile_regions`.
    """
    for cell in network.modules():
        if not isinstance(cell, model_search.Cell) or not all(type(edge) is model_search.MixedOp for edge in cell._ops):
            continue
        sources = [source for step in range(cell._steps) for source in range(2 + step)]
        for source in range(cell._steps + 1):
            edges = [edge for edge, start in zip(cell._ops, sources, strict=True) if start == source]
            if any(map(_is_pooling, edges[0]._ops)):  # type: ignore[arg-type, union-attr]
                for edge in edges:
                    edge.__class__ = Edge
                    edge.others = [other for other in edges if other is not edge]  # type: ignore[assignment]


class Edge(model_search.MixedOp):
    """The class that `share_pools` gives to a `MixedOp`. Its parts are compiled apart, because the first is computed
    for several edges."""

    others: list[Edge]  # those from the same node
    given: tuple[Tensor, list[Tensor]] | None = None  # an input and its poolings, which another edge has computed

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        if self.given is None or self.given[0] is not x:
            self._pool_for_all(x)
        assert self.given is not None
        pooled, self.given = self.given[1], None
        return self.mix(x, pooled, weights)

    def _pool_for_all(self, x: Tensor) -> None:
        pooled = self.pool(x)
        for edge in (self, *self.others):
            edge.given = x, pooled
        if self.training and self.others:  # BatchNorm's running statistics, which they would compute, too
            statistics = [buffer for edge in self.others for buffer in edge._statistics()]
            torch._foreach_copy_(statistics, self._statistics() * len(self.others))

    def _statistics(self) -> list[Tensor]:
        return [buffer for op in self._ops if _is_pooling(op) for buffer in op.buffers()]

    def pool(self, x: Tensor) -> list[Tensor]:
        return [op(x) for op in self._ops if _is_pooling(op)]

    def mix(self, x: Tensor, pooled: Sequence[Tensor], weights: Tensor) -> Tensor:
        """The weighted sum, given the outputs of `pool`."""
        outputs = iter(pooled)
        return sum(
            weight * (next(outputs) if _is_pooling(op) else op(x))
            for weight, op in zip(weights[:, None], self._ops, strict=True)
            if not isinstance(op, Zero)
        )


def _is_pooling(op: nn.Module) -> bool:
    """Whether this candidate of a `MixedOp` is a pooling and a BatchNorm without parameters, and nothing else."""
    if not (isinstance(op, nn.Sequential) and len(op) == 2 and type(op[0]) in (nn.AvgPool2d, nn.MaxPool2d)):
        return False
    return isinstance(op[1], _BatchNorm) and op[1].track_running_stats and not op[1].affine
