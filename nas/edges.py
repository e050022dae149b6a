"""Remedies that wrap an edge: partial channels with the edge's weight, and an auxiliary skip connection.

An edge is a mixed operation of `model_search.Network`, or a layer choice that keeps the number of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiment.errors import UserError
from model_search import MixedOp
from nas.mutables import LayerChoice
from operations import OPS

Mix = Callable[[Tensor, Tensor], Tensor]


class Edge(MixedOp):
    """A mixed operation with partial channels, an auxiliary skip connection, or both; see `surround`.

    Args:
        channels: C, a multiple of `parts`.
        stride: 1 or 2.
        parts, auxiliary_skip: as for `_equip`.
    """

    def __init__(self, channels: int, stride: int, parts: int = 1, auxiliary_skip: bool = False) -> None:
        super().__init__(channels // parts, stride)
        _equip(self, channels, stride, parts, auxiliary_skip)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return surround(self, super().forward, x, weights)


class Drawn(NamedTuple):
    """The operation that an edge runs, and the weight of its output: the number 1, (1,), with a gradient."""

    operation: int
    weight: Tensor


class OneOperation(MixedOp):
    """A mixed operation that runs one of its operations.

    It varies between passes, so only the single operations are compiled.
    """

    compilable = False

    def forward(self, x: Tensor, drawn: Drawn) -> Tensor:  # type: ignore[override]
        return drawn.weight * self._ops[drawn.operation](x)


def _equip(edge: Any, channels: int, stride: int, parts: int, auxiliary_skip: bool) -> None:
    """Gives `edge` what `surround` needs.

    Args:
        parts: K; 1/K of the channels go through the candidates.
        auxiliary_skip: whether the edge has an auxiliary skip connection.
    """
    edge.parts = parts
    edge.around = nn.Identity() if stride == 1 else nn.MaxPool2d(2)
    edge.auxiliary_op = OPS["skip_connect"](channels, stride, False) if auxiliary_skip else None


def surround(edge: Any, mix: Mix, x: Tensor, weights: Tensor) -> Tensor:
    """The output of an edge, (B, C, H, W) -> (B, C, H / stride, W / stride).

    Of K > 1 parts of the channels, only the first is mixed, then all are shuffled, and the output is multiplied by the
    edge's weight (PC-DARTS, sections 3.2 and 3.3). An auxiliary skip connection is added with its own weight (DARTS-,
    section 3.2).

    Args:
        mix: computes the weighted sum of the candidates, `mix(x, weights)`.
        weights: those of the candidates, then of the auxiliary skip connection and of the edge, as `Relaxation.columns`
            returns them.
    """
    strength = auxiliary = None
    if edge.parts > 1:
        weights, strength = weights[:-1], weights[-1:]
    if edge.auxiliary_op is not None:
        weights, auxiliary = weights[:-1], weights[-1:]
    mixed = x.size(1) // edge.parts
    out = mix(x[:, :mixed], weights)
    if edge.parts > 1:
        # Output channel i * K + g is channel g * (C / K) + i, so the first channels of the next edge come from all
        # parts.
        out = F.channel_shuffle(torch.cat([out, edge.around(x[:, mixed:])], dim=1), edge.parts)
    if auxiliary is not None:
        out = out + auxiliary * edge.auxiliary_op(x)
    return out if strength is None else strength * out


@torch.no_grad()
def equip_choices(network: nn.Module, images: tuple[int, ...], parts: int, auxiliary_skip: bool) -> None:
    """Makes every layer choice of `network` an edge with partial channels, an auxiliary skip connection, or both.

    With partial channels, all convolutions and BatchNorms of the candidates get 1/K of their channels.

    Args:
        network: with a mutator. It runs once, to see the shapes.
        images: the shape of its input, (B, C, H, W).
        parts, auxiliary_skip: as for `_equip`.

    Raises:
        UserError: a choice does not keep the number of channels, or a candidate cannot have fewer.
    """
    seen: dict[LayerChoice, tuple[Any, Any]] = {}
    choices = [module for module in network.modules() if isinstance(module, LayerChoice)]
    hooks = [choice.register_forward_hook(lambda *call: seen.update({call[0]: call[1:]})) for choice in choices]
    training = network.training
    network.eval()(torch.zeros(images))
    for hook in hooks:
        hook.remove()
    for choice, (inputs, output) in seen.items():
        flag = "--partial_channels" if parts > 1 else "--auxiliary_skip"
        if not (len(inputs) == 1 and isinstance(output, Tensor) and output.shape[:2] == inputs[0].shape[:2]):
            raise UserError(f"{flag} needs choices that keep the number of channels, and {choice.key} does not")
        x = inputs[0]
        stride = x.size(2) // output.size(2)
        if stride not in (1, 2) or (x.size(2), x.size(3)) != (stride * output.size(2), stride * output.size(3)):
            raise UserError(f"{flag} needs choices that keep or halve height and width, and {choice.key} does not")
        if parts > 1:
            _narrow_candidates(choice, x, output, parts)
        _equip(choice, x.size(1), stride, parts, auxiliary_skip)
    network.train(training)


def _narrow_candidates(choice: LayerChoice, x: Tensor, output: Tensor, parts: int) -> None:
    """Divides the channels of all candidates by `parts`, and tries them."""
    x, expected = x[:, : x.size(1) // parts], output[:, : x.size(1) // parts].shape
    for name in choice.names:
        try:
            setattr(choice, name, _narrowed(choice[name], parts).eval())
            shape = choice[name](x).shape
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--partial_channels: the candidate {name} of {choice.key} cannot have fewer channels: {error}"
            ) from None
        if shape != expected:
            raise UserError(
                f"--partial_channels: the candidate {name} of {choice.key} makes {tuple(shape)}, not {tuple(expected)}"
            )


def _narrowed(module: nn.Module, parts: int) -> nn.Module:
    """`module` with 1/`parts` of the channels in every convolution and BatchNorm.

    Other layers must have no parameters.
    """
    if isinstance(module, nn.Conv2d):
        groups = module.groups // parts if module.groups > 1 else 1
        if module.in_channels % parts or module.out_channels % parts or not groups:
            raise ValueError(f"{module} cannot be divided by {parts}")
        return nn.Conv2d(
            module.in_channels // parts,
            module.out_channels // parts,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            groups,
            module.bias is not None,
            module.padding_mode,
        )
    if isinstance(module, _BatchNorm):
        return type(module)(
            module.num_features // parts, module.eps, module.momentum, module.affine, module.track_running_stats
        )
    if any(True for _ in module.parameters(recurse=False)):
        raise ValueError(f"a {type(module).__name__} has parameters of its own")
    for name, child in module.named_children():
        setattr(module, name, _narrowed(child, parts))
    return module


def use_batch_statistics(network: nn.Module) -> None:
    """Makes BatchNorm always use the statistics of its batch.

    Running averages would mix those of different architectures. A network with the attribute `own_statistics` has
    decided itself, and does not change.
    """
    for module in network.modules():
        if getattr(module, "own_statistics", False):
            break
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
