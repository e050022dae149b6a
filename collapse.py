"""Detects a collapse by the dominant eigenvalue of the Hessian of the validation loss with respect to the alphas.

Zela et al., ICLR 2020 (1909.09656). If the eigenvalue grows, the search tends towards cells full of skip connections,
which generalise badly (sections 4.1 and 4.2). `stop_at` is their rule to stop before that (section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from architect import Searchable
from experiment import distributed

WINDOW = 5  # measurements that are averaged
LAG = 5  # k, measurements between the two averages that are compared
THRESHOLD = 0.75  # stop if an average has grown by more than a third
EARLIEST = 10  # first epoch whose architecture may be returned; only in the authors' code, not in the paper


def dominant_eigenvalue(
    model: Searchable, input: Tensor, target: Tensor, tolerance: float = 1e-3, max_iterations: int = 100
) -> float:
    """The eigenvalue of d2/dalpha2 L_val(w, alpha) with the largest absolute value, with its sign, by power iteration.

    The loss is computed in training mode, as in the alpha step, without weight decay. Running statistics, gradients and
    random states do not change.

    Args:
        model: a search model whose alphas are `arch_parameters()`. The loss is its attribute `criterion` if it has one,
            else cross-entropy.
        input, target: a batch of the validation half, (B, C, H, W) and (B,), or this process's share of one.
        tolerance: the iteration ends when |H v - lambda v| is at most `tolerance` * |lambda|.
        max_iterations: most Hessian-vector products. They are exact.
    """
    alphas = model.arch_parameters()
    mine = {id(alpha) for alpha in alphas}
    constants = {name: parameter.detach() for name, parameter in model.named_parameters() if id(parameter) not in mine}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    criterion = getattr(model, "criterion", F.cross_entropy)
    training = model.training
    # Compiled code cannot be differentiated twice.
    with (
        torch.random.fork_rng([input.device] if input.device.type == "cuda" else []),
        torch.compiler.set_stance("force_eager"),
    ):
        logits = functional_call(model.train(), constants | buffers, (input,))
    model.train(training)
    gradient = _gradient(distributed.mean(criterion(logits, target), target.size(0)), alphas, create_graph=True)
    if not gradient.requires_grad:  # the loss is linear in the alphas or does not depend on them
        return 0.0

    start = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector = (start / start.norm()).to(gradient)
    eigenvalue = 0.0
    for _ in range(max_iterations):
        product = _gradient(gradient, alphas, grad_outputs=vector, retain_graph=True)
        eigenvalue = torch.dot(vector, product).item()
        norm = product.norm().item()
        if not norm or (product - eigenvalue * vector).norm().item() <= tolerance * abs(eigenvalue):
            break
        vector = product / norm
    return eigenvalue


def _gradient(output: Tensor, inputs: Sequence[Tensor], **options: Any) -> Tensor:
    """The gradient with respect to all inputs as one vector, of the whole batch if several processes share it."""
    gradients = torch.autograd.grad(output, inputs, allow_unused=True, materialize_grads=True, **options)
    return distributed.average([torch.cat([gradient.reshape(-1) for gradient in gradients])])[0]


def stop_at(metrics: Sequence[dict[str, Any]]) -> int | None:
    """If the search should stop now, the epoch whose architecture to return; else None.

    Let m(i) be the mean of the five measurements around measurement i (of three or four at the beginning), and i the
    last measurement with two more after it. The search stops if m(i - 5) / m(i) < 0.75, and returns the architecture of
    measurement i - 5.

    Args:
        metrics: the metrics of the epochs so far, in order. Only epochs with an `eigenvalue` count. If every epoch has
            one, as in the paper, the distance of five measurements is five epochs.
    """
    half = WINDOW // 2
    measured = [(row["epoch"], row["eigenvalue"]) for row in metrics if "eigenvalue" in row]
    last = len(measured) - 1 - half
    before = last - LAG
    if before < 0 or measured[before][0] < EARLIEST:
        return None

    def mean(center: int) -> float:
        window = measured[max(0, center - half) : center + half + 1]
        return math.fsum(value for _, value in window) / len(window)

    grown = mean(last) > 0 and mean(before) / mean(last) < THRESHOLD
    return measured[before][0] if grown else None
