"""The supernet of model_search.py, computed in fewer, larger operations: the same parameters, buffers and results, several times faster.

`Network` takes `model_search.Network`'s place; only the way through a cell's edges is its own. Where a cell of model_search.py goes edge by
edge and operation by operation, this one goes node by node: all that the n edges out of a node compute from it, is computed together.

    x                  (B, C, H, W)     a node, in `channels_last`: N = BHW pixels of C channels
    skip, pools        (N, C)           computed once per node; the n edges scale it differently
    FactorizedReduce   (N, 2C)          its 1x1 convolutions see the same pixels on all n edges
    DilConv            (N, n C)         depthwise: one convolution for the n edges of a kernel size
    SepConv            (N, n C)         depthwise, pointwise, ReLU, depthwise: one of each for the n edges of a kernel size
    the sum            (n, N, C)        what each edge gives to its node: n matrix products, accumulated over the operations

Three identities leave little to compute, and less to keep for the backward pass:

- A BatchNorm without affine parameters after a 1x1 convolution y = W z needs no y: its mean is W mean(z), its variance diag(W cov(z) W^T).
  Normalising is then part of W, and so is the operation's alpha: the last pointwise convolutions, their BatchNorms, the weighted sum over
  operations are one matrix product (`_sum_of_products`) with the weights alpha / std(y) W.
- A dilated convolution is an ordinary one on four interleaved images (depthwise.py). Pixels may come in any order through the statistics
  and products above, so only what the dilated convolutions of an edge add up to is put back into place.
- `none` adds nothing. Its alpha still has a gradient, through the softmax.

A column of operations that is none of these on some edge, or a network whose modules are partly in training and partly not, is computed as
in model_search.py. Hooks on the modules inside a cell's edges are not called where their operations are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import model_search
from depthwise import depthwise, join, split, vector_jacobian
from model_search import MixedOp
from operations import DilConv, FactorizedReduce, Identity, SepConv, Zero


class Cell(model_search.Cell):
    """`model_search.Cell`, computed node by node."""

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        if torch.is_autocast_enabled(s0.device.type):
            return super().forward(s0, s1, weights)
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        incoming: list[list[Tensor]] = [[] for _ in range(self._steps)]
        for source in range(self._steps + 1):
            if source >= 2:
                states.append(_sum(incoming[source - 2]))
            steps = range(max(0, source - 1), self._steps)
            edges = [step * (step + 3) // 2 + source for step in steps]
            outputs = _Node(states[source]).mix([self._ops[edge] for edge in edges], weights[edges])
            for step, output in zip(steps, outputs, strict=True):
                incoming[step].append(output)
        states.append(_sum(incoming[-1]))
        return torch.cat(states[-self._multiplier :], dim=1)


class Network(model_search.Network):
    """`model_search.Network`, computed in fewer, larger operations."""

    cell_type = Cell

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous(memory_format=torch.channels_last))


class _Node:
    """A node x, (B, C, H, W), and the terms that what its n edges make of it adds up from."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.relu = F.relu(self.x)
        self.split_relu: Tensor | None = None
        self.size = tuple(x.shape[2:])  # H', W' of what the edges make; N = B H' W'
        self.scaled: list[tuple[Tensor, Tensor]] = []  # pixels (1, N, C) and what each edge scales them by, (n, 1, C or 1)
        self.products: list[tuple[Tensor, Tensor]] = []  # pixels (n, N, K) and each edge's matrix, (n, K, C)
        self.split_products: list[tuple[Tensor, Tensor]] = []  # the same, the pixels in the order of `depthwise.split`
        self.shifts: list[Tensor] = []  # (n, 1, C)
        self.images: list[list[Tensor]] = []  # each edge's, (B, C, H', W')

    def mix(self, edges: Sequence[MixedOp], weights: Tensor) -> list[Tensor]:
        """What the edges make of the node, n times (B, C, H', W'). `weights`: (n, len(PRIMITIVES)), their softmaxed alphas."""
        for ops, alpha in zip(zip(*(edge._ops for edge in edges), strict=True), weights.unbind(1), strict=True):
            add = _ADD.get(type(ops[0]))
            if add is None or any(type(op) is not type(ops[0]) for op in ops) or not add(self, ops, alpha[:, None, None]):
                self.images.append([weight * op(self.x) for weight, op in zip(alpha, ops, strict=True)])
                self.size = tuple(self.images[-1][0].shape[2:])
        return self._sums(len(edges))

    def _sums(self, n: int) -> list[Tensor]:
        (B, C), (H, W) = self.x.shape[:2], self.size
        zeros = self.x.new_zeros(1, 1, 1)
        total = sum(self.shifts, zeros).expand(n, B * H * W, C)
        for pixels, scale in self.scaled:
            total = torch.addcmul(total, pixels, scale)
        if self.products:
            total = _AddProducts.apply(total, *_flat(self.products))
        images = [[_image(pixels[None], B, H, W) for pixels in total.unbind()]]
        if self.split_products:
            total = _AddProducts.apply(zeros.expand_as(total), *_flat(self.split_products))
            images.append([join(_image(pixels[None], 4 * B, H // 2, W // 2)) for pixels in total.unbind()])
        return [_sum(terms) for terms in zip(*images, *self.images, strict=True)]


# --- What is known: each function adds to `node` what the n operations `ops`, of one class, make of it, times `alpha`, (n, 1, 1); or does
# nothing and returns False, where one of them is not as operations.py builds it.


def _add_zero(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    node.size = tuple(-(-size // ops[0].stride) for size in node.x.shape[2:])
    return True


def _add_skip(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    node.scaled.append((_pixels(node.x), alpha))
    return True


def _add_pool(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    pools, norms = _layers(ops, (nn.MaxPool2d, nn.BatchNorm2d)) or _layers(ops, (nn.AvgPool2d, nn.BatchNorm2d)) or (None, None)
    if pools is None:
        return False
    image = pools[0](node.x)
    pixels = _pixels(image)

    def statistics() -> tuple[Tensor, Tensor]:
        mean = pixels.mean(1, keepdim=True)
        return mean, (pixels - mean).square().mean(1, keepdim=True)

    scale, shift = _normalisation(norms, pixels.size(1), statistics)
    node.size = tuple(image.shape[2:])
    node.scaled.append((pixels, alpha * scale))
    node.shifts.append(alpha * shift)
    return True


def _add_factorized_reduce(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    layers = _columns([(op.conv_1, op.conv_2, op.bn) for op in ops], (nn.Conv2d, nn.Conv2d, nn.BatchNorm2d))
    if layers is None:
        return False
    first, second, norms = layers
    image = torch.cat([node.relu[:, :, ::2, ::2], node.relu[:, :, 1::2, 1::2]], dim=1)
    upper, lower = _matrices(first), _matrices(second)  # (n, C, C / 2) each: the two halves of the result see different pixels
    matrices = torch.cat([F.pad(upper, (0, lower.size(2))), F.pad(lower, (upper.size(2), 0))], dim=1)
    pixels = _pixels(image)
    matrices, shift = _normalised(pixels, matrices, norms)
    node.size = tuple(image.shape[2:])
    node.products.append((pixels.expand(len(ops), -1, -1), alpha * matrices))
    node.shifts.append(alpha * shift)
    return True


def _add_dil_conv(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    layers = _layers([op.op for op in ops], (nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d))
    if layers is None or not _is_depthwise(layers[1], dilation=2) or not _is_pointwise(layers[2]):
        return False
    _, spatial, pointwise, norms = layers
    stride, padding, (H, W) = spatial[0].stride[0], spatial[0].padding[0] // 2, node.x.shape[2:]
    if stride == 2:
        image, products = node.relu[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last), node.products
        node.size = tuple(image.shape[2:])
    elif H % 2 == 0 and W % 2 == 0:
        node.split_relu = split(node.relu) if node.split_relu is None else node.split_relu
        image, products = node.split_relu, node.split_products
        node.size = H, W
    else:
        return False
    pixels = _pixels(depthwise(image, _weights(spatial), 1, padding), len(ops))
    matrices, shift = _normalised(pixels, _matrices(pointwise), norms)
    products.append((pixels, alpha * matrices))
    node.shifts.append(alpha * shift)
    return True


def _add_sep_conv(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    half = (nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d)
    layers = _layers([op.op for op in ops], half + half)
    if layers is None or not all(_is_depthwise(layers[i], dilation=1) and _is_pointwise(layers[i + 1]) for i in (1, 5)):
        return False
    _, first, first_pointwise, first_norms, _, second, second_pointwise, second_norms = layers
    n = len(ops)
    image = depthwise(node.relu, _weights(first), first[0].stride[0], first[0].padding[0])
    (B, _, H, W), pixels = image.shape, _pixels(image, n)
    matrices, shift = _normalised(pixels, _matrices(first_pointwise), first_norms)
    pixels = F.relu(_AddProducts.apply(shift.expand_as(pixels), pixels, matrices))
    pixels = _pixels(depthwise(_image(pixels, B, H, W), _weights(second), 1, second[0].padding[0]), n)
    matrices, shift = _normalised(pixels, _matrices(second_pointwise), second_norms)
    node.size = H, W
    node.products.append((pixels, alpha * matrices))
    node.shifts.append(alpha * shift)
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


def _weights(convs: Sequence[nn.Conv2d]) -> Tensor:
    return torch.cat([conv.weight for conv in convs])


def _matrices(convs: Sequence[nn.Conv2d]) -> Tensor:
    """The 1x1 convolutions as matrices, (n, K, C), that pixels are multiplied by from the left."""
    return torch.stack([conv.weight.flatten(1) for conv in convs]).transpose(1, 2)


# --- BatchNorm, as a scale and a shift.


def _normalised(pixels: Tensor, matrices: Tensor, norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """Matrices (n, K, C) and shifts (n, 1, C) such that `pixels @ matrices + shifts` are the normalised `pixels @ matrices` given.

    `pixels`: (n or 1, N, K).
    """

    def statistics() -> tuple[Tensor, Tensor]:
        mean, covariance = _Moments.apply(pixels)
        return mean @ matrices, ((covariance @ matrices) * matrices).sum(1, keepdim=True).clamp_min(0)

    scale, shift = _normalisation(norms, pixels.size(1), statistics)
    return matrices * scale, shift


def _normalisation(norms: Sequence[nn.BatchNorm2d], count: int, statistics: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What n BatchNorms scale their channels by and add to them, (n, 1, C) each (n or 1 in training).

    In training by `statistics()`, mean and variance over `count` pixels, (n or 1, 1, C), and the running statistics advance.
    """
    if not norms[0].training:
        mean = torch.stack([norm.running_mean for norm in norms])[:, None]
        var = torch.stack([norm.running_var for norm in norms])[:, None]
    else:
        mean, var = statistics()
        with torch.no_grad():
            for running, batch in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
                batches = batch.detach().expand(len(norms), 1, -1)[:, 0].unbind()
                torch._foreach_lerp_([getattr(norm, running) for norm in norms], list(batches), norms[0].momentum)
            torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    scale = (var + norms[0].eps).rsqrt()
    return scale, -mean * scale


class _Moments(torch.autograd.Function):
    """Mean, (n, 1, K), and covariance, (n, K, K), of pixels, (n, N, K)."""

    @staticmethod
    def forward(ctx, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, covariance = _moments(pixels)
        ctx.save_for_backward(pixels, mean)
        return mean, covariance

    @staticmethod
    def backward(ctx, grad_mean: Tensor, grad_covariance: Tensor):
        pixels, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            return vector_jacobian(_moments, (pixels,), (grad_mean, grad_covariance), (True,))[0]
        symmetric = (grad_covariance + grad_covariance.transpose(1, 2)) / pixels.size(1)
        shift = grad_mean / pixels.size(1) - mean @ symmetric
        return torch.baddbmm(shift, pixels, symmetric, out=_interleaved(pixels, pixels.size(0), pixels.size(2)))


def _moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    mean = pixels.mean(1, keepdim=True)
    centred = pixels - mean
    return mean, centred.transpose(1, 2) @ centred / pixels.size(1)


class _AddProducts(torch.autograd.Function):
    """`start` (n, N, C) and the products of pixels (n, N, K) and matrices (n, K, C), alternating in `factors`, added up."""

    @staticmethod
    def forward(ctx, start: Tensor, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(*factors)
        total = _interleaved(start, start.size(0), start.size(2))
        for pixels, matrices in zip(factors[::2], factors[1::2], strict=True):
            start = torch.baddbmm(start, pixels, matrices, out=total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        factors = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return grad, *vector_jacobian(_products, factors, grad, needed[1:])
        grads: list[Tensor | None] = [grad]
        for i in range(0, len(factors), 2):
            pixels, matrices = factors[i : i + 2]
            out = _interleaved(pixels, pixels.size(0), pixels.size(2)) if needed[i + 1] else None
            grads.append(torch.bmm(grad, matrices.transpose(1, 2), out=out) if needed[i + 1] else None)
            grads.append(torch.bmm(pixels.transpose(1, 2), grad) if needed[i + 2] else None)
        return tuple(grads)


def _products(*factors: Tensor) -> Tensor:
    return sum(pixels @ matrices for pixels, matrices in zip(factors[::2], factors[1::2], strict=True))


# --- Pixels and images, two views of the same memory.


def _pixels(image: Tensor, n: int = 1) -> Tensor:
    """(B, n C, H, W), in `channels_last`, as (n, N, C)."""
    return image.permute(0, 2, 3, 1).reshape(-1, n, image.size(1) // n).transpose(0, 1)


def _image(pixels: Tensor, B: int, H: int, W: int) -> Tensor:
    """The inverse of `_pixels`."""
    return pixels.transpose(0, 1).reshape(B, H, W, -1).permute(0, 3, 1, 2)


def _interleaved(like: Tensor, n: int, C: int) -> Tensor:
    """Room for pixels (n, N, C), in the memory order of `_pixels`."""
    return like.new_empty(like.size(1), n, C).transpose(0, 1)


def _flat(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [tensor for pair in pairs for tensor in pair]


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])
