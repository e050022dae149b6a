"""The supernet of model_search.py in fewer, larger operations: the same parameters, buffers and results, in about half of the time.

`Network` takes `model_search.Network`'s place. Only the way through a cell's edges is its own: where model_search.py goes edge by edge and
operation by operation, this goes node by node, and computes together what the n edges that leave a node make of it.

    skip, pools        (N, C)           once per node, in pixels: N = BHW rows of C channels; each of the n edges scales them
    FactorizedReduce   (N, 2C)          once per node, the pixels that its two 1x1 convolutions see; each edge has a matrix for them
    DilConv            (N, n C)         one depthwise convolution per kernel size for the n edges; each edge has a matrix for its C channels
    SepConv            (N, n C)         the same, then ReLU, then the same
    what the n edges   (n, N, C)        the sum of all that: products of pixels and matrices, accumulated over the operations (chains.py)
    make of the node

Three identities leave little to compute and less to keep:

- A BatchNorm without affine parameters after a pointwise convolution y = z M is part of it, for mean and variance of y follow from those of
  z. The alphas join in: pointwise convolution, BatchNorm and weighted sum are one product with alpha / std(y) M, and y is never kept.
- A dilated convolution is an ordinary one on four interleaved images (depthwise.py), and to the products above the order of pixels is all
  one: only what all dilated convolutions of an edge add up to is put back into place.
- `none` adds nothing. Its alpha still has a gradient, through the softmax.

Operations that are not built as operations.py builds them, or on some of a node's edges only, are computed as in model_search.py; so is a
cell under autocast. Hooks on modules inside of a cell's edges are not called where these are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import model_search
from chains import Branch, Stage, add_chains, as_image, as_pixels, batch_statistics, running_statistics, scaled_sum
from depthwise import join, split
from model_search import MixedOp
from operations import Depthwise, DilConv, FactorizedReduce, Identity, SepConv, Zero


class Cell(model_search.Cell):
    """`model_search.Cell`, computed node by node."""

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        B, _, H, W = s1.shape
        pixels = B * H * W // (4 if self.reduction else 1)
        if pixels == 1 or torch.is_autocast_enabled(s0.device.type):
            return super().forward(s0, s1, weights)
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        incoming: list[list[Tensor]] = [[] for _ in range(self._steps)]
        for source in range(self._steps + 1):
            if source >= 2:
                states.append(_sum(incoming[source - 2]))
            steps = range(max(0, source - 1), self._steps)
            edges = [step * (step + 3) // 2 + source for step in steps]
            ops: list[MixedOp] = [self._ops[edge] for edge in edges]  # type: ignore[misc]  # a ModuleList holds Modules, to mypy
            outputs = _Node(states[source]).mix(ops, weights[edges])
            for step, output in zip(steps, outputs, strict=True):
                incoming[step].append(output)
        states.append(_sum(incoming[-1]))
        # Between the cells not in `channels_last`, in which PyTorch's BatchNorm on CPUs sums 5 to 100 times less exactly.
        return torch.cat(states[-self._multiplier :], dim=1).contiguous()


class Network(model_search.Network):
    """`model_search.Network`, computed in fewer, larger operations."""

    cell_type = Cell


class _Node:
    """A node x, (B, C, H, W), and the terms that what its n edges make of it adds up from."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.size = tuple(x.shape[2:])  # H', W' of what the edges make; N = B H' W'
        self.shifts: list[Tensor] = []  # (n, 1, C)
        self.scaled: list[tuple[Tensor, Tensor]] = []  # pixels (N, C) and what each edge scales them by, (n, 1, C)
        self.chains: list[tuple[Tensor, Branch]] = []  # images, and what is made of them
        self.split_chains: list[tuple[Tensor, Branch]] = []  # the same, of images split by `depthwise.split`
        self.images: list[list[Tensor]] = []  # each edge's, (B, C, H', W')

    @cached_property
    def relu(self) -> Tensor:
        return F.relu(self.x)

    @cached_property
    def split_relu(self) -> Tensor:
        return split(self.relu)

    @cached_property
    def half_relu(self) -> Tensor:
        return self.relu[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)

    def mix(self, edges: Sequence[MixedOp], weights: Tensor) -> list[Tensor]:
        """What the edges make of the node, n times (B, C, H', W'). `weights`: (n, len(PRIMITIVES)), their softmaxed alphas."""
        for ops, alpha in zip(zip(*(edge._ops for edge in edges), strict=True), weights.t()[:, :, None, None].unbind(), strict=True):
            add = _ADD.get(type(ops[0]))
            if add is None or any(type(op) is not type(ops[0]) for op in ops) or not add(self, ops, alpha):
                self.images.append([weight * op(self.x) for weight, op in zip(alpha, ops, strict=True)])
                self.size = tuple(self.images[-1][0].shape[2:])

        (B, C), (H, W) = self.x.shape[:2], self.size
        total = scaled_sum(sum(self.shifts, self.x.new_zeros(len(edges), 1, C)), B * H * W, self.scaled)
        total = add_chains(total, self.chains)
        images = [[as_image(pixels, H, W) for pixels in total.unbind()]]
        if self.split_chains:
            total = add_chains(torch.zeros_like(total), self.split_chains)
            images.append([join(as_image(pixels, H // 2, W // 2)) for pixels in total.unbind()])
        return [_sum(terms) for terms in zip(*images, *self.images, strict=True)]


# --- What is known: each function adds to `node` what the n operations `ops`, of one class, make of it, times `alpha`, (n, 1, 1); or does
# nothing and returns False, where one of them is not as operations.py builds it.


def _add_zero(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    node.size = tuple(-(-size // ops[0].stride) for size in node.x.shape[2:])
    return True


def _add_skip(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    node.scaled.append((as_pixels(node.x), alpha.expand(-1, 1, node.x.size(1))))
    return True


def _add_pool(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    layers = _layers(ops, (nn.MaxPool2d, nn.BatchNorm2d)) or _layers(ops, (nn.AvgPool2d, nn.BatchNorm2d))
    if layers is None:
        return False
    pools, norms = layers
    image = pools[0](node.x)
    pixels = as_pixels(image)
    mean, var = batch_statistics(pixels, norms) if norms[0].training else running_statistics(norms)
    scale = alpha * (var + norms[0].eps).rsqrt()
    node.size = tuple(image.shape[2:])
    node.scaled.append((pixels, scale))
    node.shifts.append(-mean * scale)
    return True


def _add_factorized_reduce(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    layers = _columns([(op.relu, op.conv_1, op.conv_2, op.bn) for op in ops], (nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d))
    if layers is None:
        return False
    _, first, second, norms = layers
    image = torch.cat([node.half_relu, node.relu[:, :, 1::2, 1::2]], dim=1)
    upper, lower = _matrices(first), _matrices(second)  # (n, C, C / 2) each: the two halves of the result see different pixels
    matrices = torch.cat([F.pad(upper, (0, lower.size(2))), F.pad(lower, (upper.size(2), 0))], dim=1)
    node.size = tuple(image.shape[2:])
    node.chains.append((image, Branch(alpha, [Stage(norms, None, matrices)])))
    return True


def _add_dil_conv(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    layers = _layers([op.op for op in ops], (nn.ReLU, Depthwise, nn.Conv2d, nn.BatchNorm2d))
    if layers is None or not _is_depthwise(layers[1], dilation=2) or not _is_pointwise(layers[2]):
        return False
    _, spatial, pointwise, norms = layers
    branch = Branch(alpha, [Stage(norms, _kernels(spatial), _matrices(pointwise), 1, spatial[0].padding[0] // 2)])
    if spatial[0].stride[0] == 2:
        node.size = tuple(node.half_relu.shape[2:])
        node.chains.append((node.half_relu, branch))
        return True
    if any(size % 2 for size in node.x.shape[2:]):
        return False
    node.split_chains.append((node.split_relu, branch))
    return True


def _add_sep_conv(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    half = (nn.ReLU, Depthwise, nn.Conv2d, nn.BatchNorm2d)
    layers = _layers([op.op for op in ops], half + half)
    if layers is None or not all(_is_depthwise(layers[i], dilation=1) and _is_pointwise(layers[i + 1]) for i in (1, 5)):
        return False
    stages = [
        Stage(norms, _kernels(spatial), _matrices(pointwise), spatial[0].stride[0], spatial[0].padding[0])
        for _, spatial, pointwise, norms in (layers[:4], layers[4:])
    ]
    node.size = tuple(-(-size // stages[0].stride) for size in node.x.shape[2:])
    node.chains.append((node.relu, Branch(alpha, stages)))
    return True


_ADD: dict[type, Callable[[_Node, Sequence[Any], Tensor], bool]] = {
    Zero: _add_zero,
    Identity: _add_skip,
    nn.Sequential: _add_pool,
    FactorizedReduce: _add_factorized_reduce,
    DilConv: _add_dil_conv,
    SepConv: _add_sep_conv,
}


# --- Their layers, taken together.


def _layers(stacks: Sequence[nn.Module], types: tuple[type, ...]) -> list[tuple[Any, ...]] | None:
    return _columns([tuple(stack.children()) for stack in stacks], types)


def _columns(rows: Sequence[tuple[nn.Module, ...]], types: tuple[type, ...]) -> list[tuple[Any, ...]] | None:
    """The first layers of all rows, the second layers, ...: None unless they are of these types and of one setting."""
    if any(tuple(map(type, row)) != types for row in rows):
        return None
    columns = list(zip(*rows, strict=True))
    for column in columns:
        settings = {_settings(layer) for layer in column}
        if len(settings) > 1 or None in settings:
            return None
    return columns


def _settings(layer: Any) -> tuple | None:
    """All that the result depends on, apart from the tensors; None for what is not expected."""
    if isinstance(layer, nn.BatchNorm2d):
        expected = not layer.affine and layer.track_running_stats and layer.momentum is not None
        return (layer.training, layer.eps, layer.momentum) if expected else None
    if isinstance(layer, nn.Conv2d):
        expected = layer.bias is None and layer.padding_mode == "zeros"
        return (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups) if expected else None
    return tuple(getattr(layer, name) for name in getattr(layer, "__constants__", ()))


def _is_depthwise(convs: Sequence[nn.Conv2d], dilation: int) -> bool:
    conv, k, stride = convs[0], convs[0].kernel_size[0], convs[0].stride[0]
    shape = (conv.in_channels, 1, k, k)
    geometry = ((stride, stride), (dilation * (k // 2),) * 2, (dilation,) * 2)
    return conv.weight.shape == shape and (conv.stride, conv.padding, conv.dilation) == geometry and k % 2 == 1 and stride in (1, 2)


def _is_pointwise(convs: Sequence[nn.Conv2d]) -> bool:
    return _settings(convs[0]) == ((1, 1), (1, 1), (0, 0), (1, 1), 1)


def _kernels(convs: Sequence[nn.Conv2d]) -> Tensor:
    return torch.cat([conv.weight for conv in convs])


def _matrices(convs: Sequence[nn.Conv2d]) -> Tensor:
    """The 1x1 convolutions as matrices, (n, K, C), that pixels are multiplied by from the left."""
    weights = torch.cat([conv.weight for conv in convs])
    return weights.view(len(convs), -1, weights.size(1)).transpose(1, 2)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])
