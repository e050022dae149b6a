"""Checks a fast step on a run's first batch, before it is used: compiled and captured code has been wrong without any
error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import speed
from experiment import distributed
from experiment.loop import Step
from speed.capture import remember

# How far a fast step may be from the plain one: the loss by this share of it, and a gradient by this share of its norm.
# A gradient that is wrong, zero or unrelated to the true one, is its whole norm away or more. What rounding can do is
# less, unless it decides everything: one that switches a ReLU, or the sign of an alpha's first step of Adam, changed
# the gradients by up to 5% of their norm (float32, 4 channels, 4 cells, second order; other kernels for the same
# convolutions).
LOSS, GRADIENT = 0.01, 1 / 3
ROUNDINGS = 4.0  # or by so many times what one more rounding of every layer's output does to it, where that is more


def checked_step(
    fast: Step,
    plain: Step,
    model: nn.Module,
    parts: Sequence[Any],
    batch_size: int,
    log: Callable[[str], None],
) -> Step:
    """`fast`, compared with `plain` on its first batch of `batch_size`; from there on `plain`, not compiled, if they
    differ. The other arguments are those of `speed.fast_step`.

    The loss and the gradient of every parameter are compared, within the bound above. It is wider for what rounding
    itself decides, in bfloat16 or for a bias before a BatchNorm: a second plain step, whose layers round once more,
    shows how much that is. The check takes these two plain steps, and leaves no trace in the run's results. Where the
    alphas rest at first, it is made again in their first step.
    """
    checked: set[bool] = set()  # whether the alphas rested
    right = True

    def step(*batch: Any) -> tuple[Tensor, ...]:
        nonlocal right
        resting = any(getattr(part, "resting", False) for part in parts)
        if not right or resting in checked or batch[-1].size(-1) != batch_size:
            return (fast if right else plain)(*batch)
        checked.add(resting)
        restore = remember(model, parts)
        speed.uses_compiled_code = False
        truth = _measured(plain(*batch), model)
        restore()
        with _rounded_once_more(model):
            rounded = _measured(plain(*batch), model)
        restore()
        speed.uses_compiled_code = True
        results = fast(*batch)
        wrong = distributed.largest(_differing(_measured(results, model), truth, rounded))
        if not wrong:
            return results
        restore()
        right = speed.uses_compiled_code = False
        log(f"the fast step is wrong here: {wrong} of loss and {len(truth) - 1} gradients differ; going on without it")
        return plain(*batch)

    return step


def _measured(results: Sequence[Tensor], model: nn.Module) -> list[Tensor]:
    """The loss and all gradients, zeros where a parameter has none."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return [results[0].detach().clone(), *gradients]


def _differing(found: list[Tensor], truth: list[Tensor], rounded: list[Tensor]) -> int:
    """How many of the tensors found are too far from the true ones."""
    size = torch.stack([tensor.double().norm() for tensor in truth])
    noise, error = (
        torch.stack([(one - other).double().norm() for one, other in zip(tensors, truth, strict=True)])
        for tensors in (rounded, found)
    )
    share = torch.full_like(size, GRADIENT)
    share[0] = LOSS
    noise = noise.clamp(min=noise.median())  # a gradient that is zero but for rounding may have been spared by chance
    return int((~(error <= torch.maximum(share * size, ROUNDINGS * noise)) & size.isfinite()).sum())


@contextmanager
def _rounded_once_more(model: nn.Module) -> Iterator[None]:
    """Multiplies the output of every layer by 1 plus or minus the precision of its type."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)

    def round_again(layer: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        precision = torch.finfo(output.dtype).eps
        if output.is_cuda and torch.backends.cuda.matmul.allow_tf32:
            precision = max(precision, 2.0**-10)
        up = torch.rand(output.shape, generator=generator, device=output.device) < 0.5
        return output * torch.where(up, 1 + precision, 1 - precision).to(output.dtype)

    hooks = [
        layer.register_forward_hook(round_again) for layer in model.modules() if not any(True for _ in layer.children())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
