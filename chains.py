"""The sums that the fused supernet is made of, and their backward passes, which keep little; for fused.py.

Pixels are an image's other view: (B, C, H, W) in `channels_last` is (N, C), N = BHW; n images side by side, (B, n C, H, W), are (n, N, C).
Everything here goes through the pixels in chunks that fit into a processor's cache, where what is computed from a chunk then finds it: on
CPUs, the network is bound by memory traffic, not by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import depthwise
from depthwise import vector_jacobian

CHUNK = 2**18  # numbers, 1 MiB of float32; the same for any number of threads, so that roundings are, too


class Norm(Protocol):
    """An `nn.BatchNorm2d` without affine parameters, but with running statistics and a momentum."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    eps: float
    momentum: float
    training: bool


class Stage(NamedTuple):
    """n times a depthwise convolution, a pointwise one and BatchNorm."""

    norms: Sequence[Norm]  # alike
    kernels: Tensor | None  # of the depthwise convolutions, (n C, 1, k, k), or None for none
    matrices: Tensor  # the pointwise convolutions, (n, K, C)
    stride: int = 1
    padding: int = 0


class Branch(NamedTuple):
    """`alpha`, (n, 1, 1), times what n chains of stages, with a ReLU between stages, make of one image."""

    alpha: Tensor
    stages: Sequence[Stage]


def add_chains(total: Tensor, chains: Sequence[tuple[Tensor, Branch]]) -> Tensor:
    """`total`, (n, N, C), in place, plus what the branches make of their images, (B, C, H, W).

    Branches of the same image that differ in their kernels only go together.
    """
    groups: dict[tuple, list[tuple[Tensor, Branch]]] = {}
    for image, branch in chains:
        settings = [(stage.stride, stage.norms[0].training, stage.norms[0].eps, stage.norms[0].momentum) for stage in branch.stages]
        groups.setdefault((id(image), *settings), []).append((image, branch))
    for group in groups.values():
        image, branches = group[0][0], [branch for _, branch in group]
        levels, parameters = [], []
        for stages in zip(*(branch.stages for branch in branches), strict=True):
            norms = [norm for stage in stages for norm in stage.norms]
            levels.append(_Level(norms, stages[0].stride, [stage.padding for stage in stages]))
            parameters += [*(stage.kernels for stage in stages), torch.cat([stage.matrices for stage in stages])]
        alpha = torch.cat([branch.alpha for branch in branches])
        total = _Chains.apply(total, image, levels, alpha, *parameters)
    return total


class _Level(NamedTuple):
    """What b branches' stages of the same number are, apart from their parameters."""

    norms: Sequence[Norm]  # of all branches, b n
    stride: int
    paddings: Sequence[int]  # each branch's


class _Chains(torch.autograd.Function):
    """Adds to `total`, (n, N, C), in place, what b branches of n chains make of x, (B, C, H, W), times `alpha`, (b n, 1, 1).

    `parameters` are, level by level, each branch's kernels and the matrices of all branches, (b n, K, C). Kept for the backward pass are x
    and the results z of the depthwise convolutions, from which the rest is a matrix product away:

    With y = z M, BatchNorm's mean of y is mean(z) M, its variance diag(M^T cov(z) M), and its result z `factor` + `shift`, where
    `factor` is M / std(y) and `shift` -mean(y) / std(y), both also times alpha at the end of the chain.
    """

    @staticmethod
    def forward(ctx, total: Tensor, x: Tensor, levels: Sequence[_Level], alpha: Tensor, *parameters: Tensor | None) -> Tensor:
        n, branches = total.size(0), len(levels[0].paddings)
        saved = [x, alpha, *parameters]
        images: Iterable[Sequence[Tensor]] = ([_copies(part, n)] * branches for part in _image_chunks(x, n))
        for level, (*kernels, matrices) in zip(levels, _by_level(parameters, levels), strict=True):
            moments = [_Moments() for _ in kernels]
            chunks = []  # of z, each branch's
            for chunk in images:
                chunks.append([_convolve(*arguments, level.stride) for arguments in zip(chunk, kernels, level.paddings, strict=True)])
                if level.norms[0].training:
                    for branch, z in zip(moments, chunks[-1], strict=True):
                        branch.add(as_pixels(z, n))
            mean_z = covariance = None
            if level.norms[0].training:
                mean_z, covariance = (torch.cat(each) for each in zip(*(branch.result() for branch in moments), strict=True))
                mean = torch.bmm(mean_z, matrices)
                var = (torch.bmm(covariance, matrices) * matrices).sum(1, keepdim=True).clamp_min_(0)
                _advance(level.norms, mean, var, moments[0].count)
            else:
                mean, var = running_statistics(level.norms)
            rstd = (var + level.norms[0].eps).rsqrt()
            saved += [mean_z, covariance, mean, rstd, *(z for chunk in chunks for z in chunk)]
            images = _rectified(chunks, matrices * rstd, -mean * rstd)  # if there is another level

        scale = alpha * rstd
        factors, shift = (matrices * scale).split(n), (-mean * scale).view(branches, n, 1, -1).sum(0)
        start = 0
        for chunk in chunks:
            for z, factor in zip(chunk, factors, strict=True):
                pixels = as_pixels(z, n)
                part = total[:, start : start + pixels.size(1)]
                part.baddbmm_(pixels, factor)
            start += pixels.size(1)
            part.add_(shift)
        ctx.save_for_backward(*saved)
        ctx.levels = levels
        ctx.mark_dirty(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        levels, (x, alpha, *rest) = ctx.levels, ctx.saved_tensors
        _, need_x, _, need_alpha, *need = ctx.needs_input_grad
        parameters, rest = rest[: len(need)], rest[len(need) :]
        records = _by_level(rest, levels)  # each level's mean_z, covariance, mean, rstd and z
        if torch.is_grad_enabled():
            statistics = [None if level.norms[0].training else record[2:4] for level, record in zip(levels, records, strict=True)]
            plain = partial(_chains, grad.size(0), levels, statistics)
            gradients = vector_jacobian(plain, (x, alpha, *parameters), grad, (need_x, need_alpha, *need))
            return grad, gradients[0], None, *gradients[1:]

        n, branches = grad.size(0), len(levels[0].paddings)
        grad_parameters: list[Tensor | None] = []  # from the last to the first
        grad_alpha = None
        results: Sequence[Sequence[Tensor]] = []  # the gradients of a level's results, (n, N, C), chunk by chunk, each branch's
        for i in reversed(range(len(levels))):
            level, (*kernels, matrices) = levels[i], _by_level(parameters, levels)[i]
            mean_z, covariance, mean, rstd, *flat = records[i]
            chunks = [flat[k : k + branches] for k in range(0, len(flat), branches)]
            last = i == len(levels) - 1
            if last:
                results = [[part] * branches for part in grad.split([as_pixels(chunk[0], n).size(1) for chunk in chunks], dim=1)]
            scale = alpha * rstd if last else rstd

            # Through result = z factor + shift, factor = M scale, shift = -mean scale, scale = rstd or alpha rstd.
            grad_factor = torch.cat(
                [
                    _sum([torch.bmm(as_pixels(z, n).transpose(1, 2), result) for z, result in zip(zs, grads, strict=True)])
                    for zs, grads in zip(zip(*chunks, strict=True), zip(*results, strict=True), strict=True)
                ]
            )
            sums = [
                _sum([result.sum(1, keepdim=True) for result in grads]) for grads in list(zip(*results, strict=True))[: 1 if last else None]
            ]
            grad_shift = torch.cat(sums * (branches // len(sums)))
            grad_scale = (grad_factor * matrices).sum(1, keepdim=True).addcmul_(grad_shift, mean, value=-1)
            grad_matrices = grad_factor * scale
            if last:
                grad_alpha = (grad_scale * rstd).sum(2, keepdim=True)
                grad_scale *= alpha
            factors = (matrices * scale).transpose(1, 2).split(n)
            if mean_z is not None:
                # Through mean = mean_z M and rstd = (diag(M^T covariance M) + eps)^-1/2, where mean_z and covariance are those of z.
                count = sum(grads[0].size(1) for grads in results)
                grad_mean = -grad_shift * scale
                weighted = matrices * (grad_scale * rstd**3)  # -2 times the gradient of the variance, spread over M
                grad_matrices.baddbmm_(mean_z.transpose(1, 2), grad_mean).baddbmm_(covariance, weighted, alpha=-1)
                through_covariance = torch.bmm(weighted, matrices.transpose(1, 2)).div_(-count)
                offsets = torch.bmm(grad_mean / count, matrices.transpose(1, 2)).baddbmm_(mean_z, through_covariance, alpha=-1).split(n)
                through_covariances = through_covariance.split(n)

            if i == 0:
                images: Iterable[Sequence[Tensor]] = ([_copies(part, n)] * branches for part in _image_chunks(x, n))
            else:
                _, _, mean_before, rstd_before, *flat_before = records[i - 1]
                factor_before = _by_level(parameters, levels)[i - 1][-1] * rstd_before
                before = [flat_before[k : k + branches] for k in range(0, len(flat_before), branches)]
                images = _rectified(before, factor_before, -mean_before * rstd_before)
            grad_kernels: list[Tensor | None] = [None] * branches
            grad_images: list[list[Tensor]] = []
            need_kernels = need[i * (branches + 1) : i * (branches + 1) + branches]
            for chunk, zs, grads in zip(images, chunks, results, strict=True):
                grad_images.append([])
                for b, (image, z, result) in enumerate(zip(chunk, zs, grads, strict=True)):
                    grad_z = torch.empty_like(z)
                    pixels = as_pixels(grad_z, n)
                    torch.bmm(result, factors[b], out=pixels)
                    if mean_z is not None:
                        pixels.baddbmm_(as_pixels(z, n), through_covariances[b]).add_(offsets[b])
                    geometry = level.stride, level.paddings[b]
                    if need_kernels[b]:
                        gradient = depthwise.weight_gradient(image, kernels[b], grad_z, *geometry)
                        so_far = grad_kernels[b]
                        grad_kernels[b] = gradient if so_far is None else so_far + gradient
                    if i > 0 or need_x:
                        grad_image = grad_z if kernels[b] is None else depthwise.input_gradient(image, kernels[b], grad_z, *geometry)
                        if i > 0:
                            grad_image = as_pixels(torch.ops.aten.threshold_backward(grad_image, image, 0), n)
                        grad_images[-1].append(grad_image)
                if i == 0 and need_x:
                    grad_images[-1] = [_sum_copies(_sum(grad_images[-1]), n)]
            results = grad_images
            grad_parameters += [grad_matrices, *reversed(grad_kernels)]
        grad_x = torch.cat([image for (image,) in results]) if need_x else None
        return grad, grad_x, None, grad_alpha, *reversed(grad_parameters)


def _chains(n: int, levels: Sequence[_Level], statistics: Sequence, x: Tensor, alpha: Tensor, *parameters: Tensor | None) -> Tensor:
    """What `_Chains` adds, in plain operations. `statistics`: each level's mean and 1 / deviation, (b n, 1, C), None for the batch's."""
    images = [_copies(x, n)] * len(levels[0].paddings)
    for level, given, (*kernels, matrices) in zip(levels, statistics, _by_level(parameters, levels), strict=True):
        zs = [_convolve(*arguments, level.stride) for arguments in zip(images, kernels, level.paddings, strict=True)]
        results = torch.cat([as_pixels(z, n) for z in zs]) @ matrices
        if given is None:
            var, mean = torch.var_mean(results, 1, correction=0, keepdim=True)
            given = mean, (var + level.norms[0].eps).rsqrt()
        results = (results - given[0]) * given[1]
        images = [as_image(result, *zs[0].shape[2:]) for result in F.relu(results).split(n)]
    return _sum((alpha * results).split(n))


def _by_level(values: Sequence, levels: Sequence[_Level]) -> list[Sequence]:
    size = len(values) // len(levels)
    return [values[i : i + size] for i in range(0, len(values), size)]


def _convolve(image: Tensor, kernels: Tensor | None, padding: int, stride: int) -> Tensor:
    return image if kernels is None else depthwise.convolve(image, kernels, stride, padding)


def _rectified(chunks: Sequence[Sequence[Tensor]], factor: Tensor, shift: Tensor) -> Iterator[list[Tensor]]:
    """The images that the next level sees, ReLU of z `factor` + `shift`, chunk by chunk, each branch's."""
    n = factor.size(0) // len(chunks[0])
    factors, shifts = factor.split(n), shift.split(n)
    for chunk in chunks:
        images = [torch.empty_like(z) for z in chunk]
        for image, z, factor, shift in zip(images, chunk, factors, shifts, strict=True):
            pixels = as_pixels(image, n)
            torch.bmm(as_pixels(z, n), factor, out=pixels)
            pixels.add_(shift).relu_()
        yield images


class _Moments:
    """Mean, (n, 1, K), and covariance, (n, K, K), of pixels that come in parts, (n, N, K)."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, pixels: Tensor) -> None:
        if self.count == 0:
            self._origin = pixels.mean(1, keepdim=True)  # near the mean of all, so that the squares below cancel but little
            centred = pixels - self._origin
            self._sum = torch.zeros_like(self._origin)
            self._products = torch.bmm(centred.transpose(1, 2), centred)
        else:
            centred = pixels - self._origin
            self._sum += centred.sum(1, keepdim=True)
            self._products.baddbmm_(centred.transpose(1, 2), centred)
        self.count += pixels.size(1)

    def result(self) -> tuple[Tensor, Tensor]:
        offset = self._sum.div_(self.count)
        return self._origin + offset, self._products.div_(self.count).baddbmm_(offset.transpose(1, 2), offset, alpha=-1)


def scaled_sum(shift: Tensor, count: int, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """`shift` (n, 1, C) plus the sum over pixels, (N, C), times scale, (n, 1, C), of `terms`: (n, N, C), where N is `count`."""
    return _ScaledSum.apply(shift, count, *(tensor for term in terms for tensor in term))


class _ScaledSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shift: Tensor, count: int, *terms: Tensor) -> Tensor:
        ctx.save_for_backward(*terms)
        total = shift.new_empty(shift.size(0), count, shift.size(2))
        for rows in _pixel_chunks(total):
            part = total[:, rows].copy_(shift)
            for pixels, scale in zip(terms[::2], terms[1::2], strict=True):
                part.addcmul_(pixels[rows], scale)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        terms = ctx.saved_tensors
        need_shift, _, *need = ctx.needs_input_grad
        grad_shift = grad.sum(1, keepdim=True) if need_shift else None
        if torch.is_grad_enabled():
            return grad_shift, None, *vector_jacobian(_scaled_sum, terms, grad, need)
        grads = [torch.zeros_like(term) if needed else None for term, needed in zip(terms, need, strict=True)]
        for rows in _pixel_chunks(grad):
            part = grad[:, rows]
            for i in range(0, len(terms), 2):
                if (grad_pixels := grads[i]) is not None:
                    torch.sum(part * terms[i + 1], 0, out=grad_pixels[rows])
                if (grad_scale := grads[i + 1]) is not None:
                    grad_scale += (part * terms[i][rows]).sum(1, keepdim=True)
        return grad_shift, None, *grads


def _scaled_sum(*terms: Tensor) -> Tensor:
    return _sum([pixels * scale for pixels, scale in zip(terms[::2], terms[1::2], strict=True)])


# --- BatchNorms, taken together.


def running_statistics(norms: Sequence[Norm]) -> tuple[Tensor, Tensor]:
    """Their running mean and variance, (n, 1, C) each."""
    return torch.stack([norm.running_mean for norm in norms])[:, None], torch.stack([norm.running_var for norm in norms])[:, None]


def batch_statistics(pixels: Tensor, norms: Sequence[Norm]) -> tuple[Tensor, Tensor]:
    """Mean and variance, (1, 1, C) each, of pixels (N, C) that all of the `norms` see, whose running statistics advance."""
    mean = pixels.mean(0)
    var = (pixels - mean).square().mean(0)
    mean, var = mean[None, None], var[None, None]
    _advance(norms, mean, var, pixels.size(0))
    return mean, var


@torch.no_grad()
def _advance(norms: Sequence[Norm], mean: Tensor, var: Tensor, count: int) -> None:
    """Moves the running statistics towards those of a batch of `count` pixels, (n or 1, 1, C)."""
    for name, batch in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
        batches = batch.flatten(0, 1).expand(len(norms), -1).unbind()
        torch._foreach_lerp_([getattr(norm, name) for norm in norms], batches, norms[0].momentum)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)


# --- Pixels, images and chunks.


def as_pixels(image: Tensor, n: int | None = None) -> Tensor:
    """(B, C, H, W), in `channels_last`, as (N, C); with n, (B, n C, H, W) as (n, N, C). A view."""
    if n is None:
        return image.permute(0, 2, 3, 1).view(-1, image.size(1))
    return image.permute(0, 2, 3, 1).view(-1, n, image.size(1) // n).transpose(0, 1)


def as_image(pixels: Tensor, H: int, W: int) -> Tensor:
    """The inverse of `as_pixels`."""
    if pixels.dim() == 3:
        pixels = pixels.transpose(0, 1).flatten(1)
    return pixels.reshape(-1, H, W, pixels.size(1)).permute(0, 3, 1, 2)


def _copies(image: Tensor, n: int) -> Tensor:
    """n copies side by side, (B, C, H, W) -> (B, n C, H, W), in `channels_last`."""
    return (torch.cat([image] * n, dim=1) if n > 1 else image).contiguous(memory_format=torch.channels_last)


def _sum_copies(image: Tensor, n: int) -> Tensor:
    """The sum of n images side by side, (B, n C, H, W) -> (B, C, H, W)."""
    return _sum(image.chunk(n, dim=1))


def _image_chunks(x: Tensor, n: int) -> Sequence[Tensor]:
    """Images that, n times each, make up a chunk."""
    return x.split(x.size(0) if x.is_cuda else max(1, CHUNK // (n * x[0].numel())))


def _pixel_chunks(pixels: Tensor) -> Iterator[slice]:
    """Slices of the N of (n, N, C) that make up a chunk each."""
    n, count, C = pixels.shape
    size = count if pixels.is_cuda else max(1, CHUNK // (n * C))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _sum(terms: Sequence[Tensor]) -> Tensor:
    """In one piece of memory, where no gradients are recorded."""
    if len(terms) == 1:
        return terms[0]
    total = terms[0] + terms[1]
    for term in terms[2:]:
        total = total.add(term) if torch.is_grad_enabled() else total.add_(term)
    return total
