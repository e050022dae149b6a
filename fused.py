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

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import depthwise
import model_search
from depthwise import join, split, vector_jacobian
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
        self.size = tuple(x.shape[2:])  # H', W' of what the edges make; N = B H' W'
        self.shifts: list[Tensor] = []  # (n, 1, C)
        self.scaled: list[Tensor] = []  # alternating: pixels (1, N, C) and what the n edges scale them by, (n, 1, C)
        self.chains: list[tuple] = []  # arguments of `_Chain`, whose pixels are in the order of x
        self.split_chains: list[tuple] = []  # and in the order of `depthwise.split`
        self.images: list[list[Tensor]] = []  # each edge's, (B, C, H', W')

    @cached_property
    def split_relu(self) -> Tensor:
        return split(self.relu)

    def mix(self, edges: Sequence[MixedOp], weights: Tensor) -> list[Tensor]:
        """What the edges make of the node, n times (B, C, H', W'). `weights`: (n, len(PRIMITIVES)), their softmaxed alphas."""
        for ops, alpha in zip(zip(*(edge._ops for edge in edges), strict=True), weights.unbind(1), strict=True):
            add = _ADD.get(type(ops[0]))
            if add is None or any(type(op) is not type(ops[0]) for op in ops) or not add(self, ops, alpha[:, None, None]):
                self.images.append([weight * op(self.x) for weight, op in zip(alpha, ops, strict=True)])
                self.size = tuple(self.images[-1][0].shape[2:])

        (B, C), (H, W) = self.x.shape[:2], self.size
        total = _Scaled.apply(sum(self.shifts, self.x.new_zeros(len(edges), 1, C)), B * H * W, *self.scaled)
        for chain in self.chains:
            total = _Chain.apply(total, *chain)
        images = [[_image(pixels[None], H, W) for pixels in total.unbind()]]
        if self.split_chains:
            total = torch.zeros_like(total)
            for chain in self.split_chains:
                total = _Chain.apply(total, *chain)
            images.append([join(_image(pixels[None], H // 2, W // 2)) for pixels in total.unbind()])
        return [_sum(terms) for terms in zip(*images, *self.images, strict=True)]


# --- What is known: each function adds to `node` what the n operations `ops`, of one class, make of it, times `alpha`, (n, 1, 1); or does
# nothing and returns False, where one of them is not as operations.py builds it.


def _add_zero(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    node.size = tuple(-(-size // ops[0].stride) for size in node.x.shape[2:])
    return True


def _add_skip(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    node.scaled += [_pixels(node.x), alpha.expand(-1, 1, node.x.size(1))]
    return True


def _add_pool(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    pools, norms = _layers(ops, (nn.MaxPool2d, nn.BatchNorm2d)) or _layers(ops, (nn.AvgPool2d, nn.BatchNorm2d)) or (None, None)
    if pools is None:
        return False
    image = pools[0](node.x)
    pixels = _pixels(image)
    if norms[0].training:
        mean = pixels.mean(1, keepdim=True)
        var = (pixels - mean).square().mean(1, keepdim=True)
        _advance(norms, mean, var, pixels.size(1))
    else:
        mean, var = _running(norms)
    scale = alpha * (var + norms[0].eps).rsqrt()
    node.size = tuple(image.shape[2:])
    node.scaled += [pixels, scale]
    node.shifts.append(-mean * scale)
    return True


def _add_factorized_reduce(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    layers = _columns([(op.conv_1, op.conv_2, op.bn) for op in ops], (nn.Conv2d, nn.Conv2d, nn.BatchNorm2d))
    if layers is None:
        return False
    first, second, norms = layers
    image = torch.cat([node.relu[:, :, ::2, ::2], node.relu[:, :, 1::2, 1::2]], dim=1)
    upper, lower = _matrices(first), _matrices(second)  # (n, C, C / 2) each: the two halves of the result see different pixels
    matrices = torch.cat([F.pad(upper, (0, lower.size(2))), F.pad(lower, (upper.size(2), 0))], dim=1)
    node.size = tuple(image.shape[2:])
    node.chains.append((image, [_Stage(norms)], alpha, None, matrices))
    return True


def _add_dil_conv(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    layers = _layers([op.op for op in ops], (nn.ReLU, Depthwise, nn.Conv2d, nn.BatchNorm2d))
    if layers is None or not _is_depthwise(layers[1], dilation=2) or not _is_pointwise(layers[2]):
        return False
    _, spatial, pointwise, norms = layers
    stage = _Stage(norms, 1, spatial[0].padding[0] // 2)
    parameters = alpha, _weights(spatial), _matrices(pointwise)
    if spatial[0].stride[0] == 2:
        image = node.relu[:, :, ::2, ::2]
        node.size = tuple(image.shape[2:])
        node.chains.append((image, [stage], *parameters))
        return True
    if any(size % 2 for size in node.x.shape[2:]):
        return False
    node.size = tuple(node.x.shape[2:])
    node.split_chains.append((node.split_relu, [stage], *parameters))
    return True


def _add_sep_conv(node: _Node, ops: Sequence[Any], alpha: Tensor) -> bool:
    half = (nn.ReLU, Depthwise, nn.Conv2d, nn.BatchNorm2d)
    layers = _layers([op.op for op in ops], half + half)
    if layers is None or not all(_is_depthwise(layers[i], dilation=1) and _is_pointwise(layers[i + 1]) for i in (1, 5)):
        return False
    _, first, first_pointwise, first_norms, _, second, second_pointwise, second_norms = layers
    stride, padding = first[0].stride[0], first[0].padding[0]
    stages = [_Stage(first_norms, stride, padding), _Stage(second_norms, 1, second[0].padding[0])]
    node.size = tuple(-(-size // stride) for size in node.x.shape[2:])
    node.chains.append(
        (node.relu, stages, alpha, _weights(first), _matrices(first_pointwise), _weights(second), _matrices(second_pointwise))
    )
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


# --- The sums, with backward passes that keep little. Both go through the pixels in chunks that fit into a processor's cache, where what is
# computed from a chunk then finds it: the network is bound by memory traffic, not by arithmetic.

_CHUNK = 2**18  # numbers


class _Scaled(torch.autograd.Function):
    """`shift` (n, 1, C) plus the sum over `pixels * scale`, (1, N, C) and (n, 1, C), alternating in `terms`: (n, N, C)."""

    @staticmethod
    def forward(ctx, shift: Tensor, count: int, *terms: Tensor) -> Tensor:
        ctx.save_for_backward(*terms)
        total = shift.new_empty(shift.size(0), count, shift.size(2))
        for rows in _chunks(count, total):
            part = total[:, rows].copy_(shift)
            for pixels, scale in zip(terms[::2], terms[1::2], strict=True):
                part.addcmul_(pixels[:, rows], scale)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        terms = ctx.saved_tensors
        needed = ctx.needs_input_grad
        grad_shift = grad.sum(1, keepdim=True)
        if torch.is_grad_enabled():
            return grad_shift, None, *vector_jacobian(_scaled, terms, grad, needed[2:])
        grads = [torch.zeros_like(term) if need else None for term, need in zip(terms, needed[2:], strict=True)]
        for rows in _chunks(grad.size(1), grad):
            part = grad[:, rows]
            for i in range(0, len(terms), 2):
                if needed[2 + i]:
                    grads[i][:, rows] = (part * terms[i + 1]).sum(0, keepdim=True)
                if needed[3 + i]:
                    grads[i + 1] += (part * terms[i][:, rows]).sum(1, keepdim=True)
        return grad_shift, None, *grads


def _scaled(*terms: Tensor) -> Tensor:
    return sum(pixels * scale for pixels, scale in zip(terms[::2], terms[1::2], strict=True))


class _Stage(NamedTuple):
    """A stage of a chain, apart from its parameters: the depthwise convolution's stride and padding, and the BatchNorms."""

    norms: Sequence[nn.BatchNorm2d]
    stride: int = 1
    padding: int = 0


class _Chain(torch.autograd.Function):
    """Adds to `total`, (n, N, C), in place, `alpha`, (n, 1, 1), times what n chains of stages make of x, (B, C, H, W).

    A stage is a depthwise convolution, a pointwise one, BatchNorm, and a ReLU, unless it is the last. `parameters` are, stage by stage, the
    depthwise kernels of all n, (n C, 1, k, k), or None for n copies of x, and the pointwise ones as matrices, (n, K, C). Kept for the
    backward pass are x and the results z of the depthwise convolutions, from which the rest is a matrix product away.
    """

    @staticmethod
    def forward(ctx, total: Tensor, x: Tensor, stages: Sequence[_Stage], alpha: Tensor, *parameters: Tensor) -> Tensor:
        n = alpha.size(0)
        images: Iterable[Tensor] = x.split(_images_per_chunk(x, n))
        saved: list[Tensor | None] = [x, alpha, *parameters]
        for stage, spatial, matrices in zip(stages, parameters[::2], parameters[1::2], strict=True):
            norm = stage.norms[0]
            zs, moments = [], _Moments()
            for image in images:
                z = _convolve(image, spatial, stage, n)
                zs.append(z)
                if norm.training:
                    moments.add(_pixels(z, n))
            if norm.training:
                mean_z, covariance = moments.result()
                mean, var = mean_z @ matrices, ((covariance @ matrices) * matrices).sum(1, keepdim=True).clamp_min_(0)
                _advance(stage.norms, mean, var, moments.count)
            else:
                (mean, var), mean_z, covariance = _running(stage.norms), None, None
            rstd = (var + norm.eps).rsqrt()
            saved += [mean_z, covariance, mean, rstd, *zs]
            if stage is not stages[-1]:
                images = _rectified(zs, matrices * rstd, -mean * rstd)
        scale = alpha * rstd
        factor, shift = matrices * scale, -mean * scale
        start = 0
        for z in zs:
            pixels = _pixels(z, n)
            part = total[:, start : start + pixels.size(1)]
            part.baddbmm_(pixels, factor).add_(shift)
            start += pixels.size(1)
        ctx.save_for_backward(*saved)
        ctx.stages = stages
        ctx.mark_dirty(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        stages, saved = ctx.stages, ctx.saved_tensors
        _, need_x, _, need_alpha, *need = ctx.needs_input_grad
        x, alpha, *rest = saved
        parameters, rest = rest[: 2 * len(stages)], rest[2 * len(stages) :]
        each = len(rest) // len(stages)
        records = [rest[i : i + each] for i in range(0, len(rest), each)]
        if torch.is_grad_enabled():
            statistics = [None if stage.norms[0].training else record[2:4] for stage, record in zip(stages, records, strict=True)]
            grads = vector_jacobian(partial(_chain, stages, statistics), (x, alpha, *parameters), grad, (need_x, need_alpha, *need))
            return grad, grads[0], None, *grads[1:]

        n, count = grad.shape[:2]
        grad_x, grad_alpha = None, None
        grad_images: list[Tensor] = []
        grad_parameters: list[Tensor | None] = [None] * len(parameters)
        for i in reversed(range(len(stages))):
            stage, spatial, matrices = stages[i], parameters[2 * i], parameters[2 * i + 1]
            mean_z, covariance, mean, rstd, *zs = records[i]
            if i == len(stages) - 1:
                results, scale = grad.split([_pixels(z, n).size(1) for z in zs], dim=1), alpha * rstd
            else:
                results, scale = grad_images, rstd

            # result = z factor + shift, where factor = matrices scale and shift = -mean scale
            factor = matrices * scale
            grad_factor = sum(_pixels(z, n).transpose(1, 2) @ result for z, result in zip(zs, results, strict=True))
            grad_shift = sum(result.sum(1, keepdim=True) for result in results)
            grad_scale = (grad_factor * matrices).sum(1, keepdim=True) - grad_shift * mean
            grad_matrices = grad_factor * scale
            if i == len(stages) - 1:
                grad_alpha = (grad_scale * rstd).sum(2, keepdim=True)
                grad_scale = grad_scale * alpha
            if mean_z is not None:
                # mean = mean_z matrices, rstd^-2 = diag(matrices^T covariance matrices) + eps; mean_z and covariance are of z
                count = sum(result.size(1) for result in results)
                grad_mean = -grad_shift * scale
                grad_var = -0.5 * grad_scale * rstd**3
                weighted = matrices * grad_var
                grad_matrices += mean_z.transpose(1, 2) @ grad_mean + 2 * covariance @ weighted
                through_covariance = (2 / count) * weighted @ matrices.transpose(1, 2)
                offset = grad_mean @ matrices.transpose(1, 2) / count - mean_z @ through_covariance
            grad_parameters[2 * i + 1] = grad_matrices

            if i == 0:
                images: Iterable[Tensor] = x.split(_images_per_chunk(x, n))
            else:
                _, _, mean, rstd, *before = records[i - 1]
                images = _rectified(before, parameters[2 * i - 1] * rstd, -mean * rstd)
            grad_images = []
            for image, z, result in zip(images, zs, results, strict=True):
                grad_z = torch.empty_like(z)
                pixels = _pixels(grad_z, n)
                torch.bmm(result, factor.transpose(1, 2), out=pixels)
                if mean_z is not None:
                    pixels.baddbmm_(_pixels(z, n), through_covariance).add_(offset)
                if need[2 * i]:
                    gradient = depthwise.weight_gradient(image, spatial, grad_z, stage.stride, stage.padding)
                    grad_parameters[2 * i] = gradient if grad_parameters[2 * i] is None else grad_parameters[2 * i] + gradient
                if i > 0:
                    grad_image = depthwise.input_gradient(image, spatial, grad_z, stage.stride, stage.padding)
                    grad_images.append(_pixels(torch.ops.aten.threshold_backward(grad_image, image, 0), n))
                elif need_x and spatial is None:
                    grad_images.append(depthwise.sum_copies(grad_z, n))
                elif need_x:
                    grad_images.append(depthwise.input_gradient(image, spatial, grad_z, stage.stride, stage.padding))
        if need_x:
            grad_x = torch.cat(grad_images)
        return grad, grad_x, None, grad_alpha, *grad_parameters


def _chain(stages: Sequence[_Stage], statistics: Sequence[Any], x: Tensor, alpha: Tensor, *parameters: Tensor) -> Tensor:
    """What `_Chain` adds, in plain operations. `statistics`: each stage's mean and 1 / deviation, (n, 1, C), None for the batch's."""
    n = alpha.size(0)
    for stage, given, spatial, matrices in zip(stages, statistics, parameters[::2], parameters[1::2], strict=True):
        z = _convolve(x, spatial, stage, n)
        result = _pixels(z, n) @ matrices
        if given is None:
            var, mean = torch.var_mean(result, 1, correction=0, keepdim=True)
            given = mean, (var + stage.norms[0].eps).rsqrt()
        result = (result - given[0]) * given[1]
        x = _image(F.relu(result), *z.shape[2:])
    return alpha * result


def _convolve(image: Tensor, spatial: Tensor | None, stage: _Stage, n: int) -> Tensor:
    if spatial is None:
        return depthwise.copies(image, n)
    return depthwise.convolve(image, spatial, stage.stride, stage.padding)


def _rectified(zs: Sequence[Tensor], factor: Tensor, shift: Tensor) -> Iterator[Tensor]:
    """The images that the next stage sees: ReLU of z times factor plus shift."""
    for z in zs:
        image = torch.empty_like(z)
        pixels = _pixels(image, factor.size(0))
        torch.bmm(_pixels(z, factor.size(0)), factor, out=pixels)
        pixels.add_(shift).relu_()
        yield image


class _Moments:
    """Mean, (n, 1, K), and covariance, (n, K, K), of pixels that come in parts, (n, N, K)."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, pixels: Tensor) -> None:
        if self.count == 0:
            # Close enough to the mean that nothing is lost when its square is taken off, below.
            self._origin = pixels.mean(1, keepdim=True)
            self._sum = torch.zeros_like(self._origin)
            self._products = pixels.new_zeros(pixels.size(0), pixels.size(2), pixels.size(2))
        centred = pixels - self._origin
        self.count += pixels.size(1)
        self._sum += centred.sum(1, keepdim=True)
        self._products.baddbmm_(centred.transpose(1, 2), centred)

    def result(self) -> tuple[Tensor, Tensor]:
        offset = self._sum / self.count
        return self._origin + offset, self._products / self.count - offset.transpose(1, 2) @ offset


# --- BatchNorms, taken together.


def _running(norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """Their running mean and variance, (n, 1, C)."""
    return torch.stack([norm.running_mean for norm in norms])[:, None], torch.stack([norm.running_var for norm in norms])[:, None]


@torch.no_grad()
def _advance(norms: Sequence[nn.BatchNorm2d], mean: Tensor, var: Tensor, count: int) -> None:
    """Moves their running statistics towards those of a batch of `count` pixels, (n or 1, 1, C)."""
    for name, batch in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
        batches = batch.detach()[:, 0].expand(len(norms), -1).unbind()
        torch._foreach_lerp_([getattr(norm, name) for norm in norms], batches, norms[0].momentum)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)


# --- Pixels and images, two views of the same memory.


def _pixels(image: Tensor, n: int = 1) -> Tensor:
    """(B, n C, H, W), in `channels_last`, as (n, N, C)."""
    return image.permute(0, 2, 3, 1).view(-1, n, image.size(1) // n).transpose(0, 1)


def _image(pixels: Tensor, H: int, W: int) -> Tensor:
    """The inverse of `_pixels`."""
    return pixels.transpose(0, 1).reshape(-1, H, W, pixels.size(0) * pixels.size(2)).permute(0, 3, 1, 2)


def _chunks(count: int, like: Tensor) -> Iterator[slice]:
    """Slices of `count` pixels of (n, N, C) that make up a chunk each."""
    rows = count if like.is_cuda else max(1, _CHUNK // (like.size(0) * like.size(2)))
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _images_per_chunk(x: Tensor, n: int) -> int:
    """How many of the images x, (B, C, H, W), make up a chunk, n times each."""
    return x.size(0) if x.is_cuda else max(1, _CHUNK // (n * x[0].numel()))


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])
