"""Watching for collapse: the dominant eigenvalue of the validation loss's Hessian in the alphas (Zela et al., ICLR 2020, 1909.09656).

Where it grows, the search is heading for cells full of skip connections that generalise badly (sections 4.1 and 4.2). `stop_at` is their
rule for stopping before that (section 4.3).
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
from nas.architecture import Alphas, Architecture, entropies

WINDOW = 5  # measurements that are averaged
LAG = 5  # k, measurements between the two averages that are compared
THRESHOLD = 0.75  # stop where an average has grown by more than a third
# Skip connections of a normal cell's eight edges. Liang et al. 2019 (DARTS+, 1909.06035) stop a search there.
MOST_SKIPS = 2
EARLIEST = 10  # the first epoch whose architecture may be returned: not in the paper, but in its authors' code


def dominant_eigenvalue(model: Searchable, input: Tensor, target: Tensor, tolerance: float = 1e-3, max_iterations: int = 100) -> float:
    """The eigenvalue of d2/dalpha2 L_val(w, alpha) that is the largest in absolute value, with its sign, by power iteration.

    The loss is taken in training mode, as the alphas see it, without weight decay. Nothing is left behind: not in running statistics, not
    in gradients, not in the state of random numbers.

    Args:
        model: a search model whose alphas are `arch_parameters()`; its attribute `criterion`, where it has one, is the loss.
        input, target: a batch of the validation half, (B, 3, H, W) and (B,), or this process's share of one.
        tolerance: the iteration ends where |H v - lambda v| is at most this share of |lambda|.
        max_iterations: or after so many products with the Hessian, each exact: the gradient differentiated once more along a vector.
    """
    alphas = model.arch_parameters()
    mine = {id(alpha) for alpha in alphas}
    constants = {name: parameter.detach() for name, parameter in model.named_parameters() if id(parameter) not in mine}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    criterion = getattr(model, "criterion", F.cross_entropy)
    training = model.training
    # Compiled code has no second derivative.
    with torch.random.fork_rng([input.device] if input.device.type == "cuda" else []), torch.compiler.set_stance("force_eager"):
        logits = functional_call(model.train(), constants | buffers, (input,))
    model.train(training)
    gradient = _gradient(distributed.mean(criterion(logits, target), target.size(0)), alphas, create_graph=True)
    if not gradient.requires_grad:  # the loss is linear in the alphas, or knows none
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
    """The gradient by all inputs as one vector; of several processes that share the batch, that of the whole batch."""
    gradients = torch.autograd.grad(output, inputs, allow_unused=True, materialize_grads=True, **options)
    return distributed.average([torch.cat([gradient.reshape(-1) for gradient in gradients])])[0]


def stop_at(metrics: Sequence[dict[str, Any]]) -> int | None:
    """The epoch whose architecture to return, if the search should stop now; else None.

    Let m(i) be the mean of the five measurements around the i-th (of three or four at the beginning). With i the last one that has two
    after it, the search stops where m(i - 5) / m(i) < 0.75, and the architecture of measurement i - 5 is returned.

    Args:
        metrics: of the epochs so far, in order, of which those with an `eigenvalue` count: with a measurement in every epoch, as in the
            paper, k is five epochs.
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


def describe(architecture: Architecture, alphas: Alphas) -> dict[str, Any]:
    """An epoch's metrics of what is being searched: the alphas, their entropy, the skip connections; by cell where there are cells."""
    metrics: dict[str, Any] = {}
    for name, values in (("entropy", entropies(alphas)), ("skips", architecture.skips())):
        metrics |= {f"{name}_{cell}" if cell else name: value for cell, value in values.items()}
    return metrics | {"alphas": alphas}


def warning(metrics: dict[str, Any], earlier: list[dict[str, Any]]) -> str | None:
    """That the normal cell has too many skip connections, once for every number of them; None if all is well."""
    skips = metrics.get("skips_normal", 0)
    if skips <= MOST_SKIPS or (earlier and earlier[-1].get("skips_normal") == skips):
        return None
    return (
        f"warning: {skips} of the normal cell's edges are skip connections; cells with more than {MOST_SKIPS} tend to train badly "
        "(--early_stop eigenvalue, a shorter search or another --seed may help)"
    )
