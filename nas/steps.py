"""The search's step as in the code of NAS-Bench-201: `--weights_first` and `--clip_alphas`."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import utils
from architect import Architect, Searchable
from experiment import distributed
from experiment.loop import Step


def search_step(
    model: Searchable,
    architect: Architect,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
) -> Step:
    """As `train_search.search_step`."""
    weights = model.weight_parameters()
    alphas = model.arch_parameters() if model.alphas_by_edge() else []  # other strategies learn something else
    counted = alphas if args.clip_alphas == "yes" else []
    weights_first = args.weights_first == "yes" and not args.unrolled and args.perturb == "none" and bool(alphas)

    def step(x: Tensor, y: Tensor, x_valid: Tensor, y_valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if weights_first:
            results = weight_step(x, y)
        architect.step(x, y, x_valid, y_valid, optimizer.param_groups[0]["lr"], optimizer, unrolled=args.unrolled)
        return results if weights_first else weight_step(x, y)

    def weight_step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        optimizer.zero_grad()
        with utils.constant([] if counted else model.arch_parameters()):  # which need no gradient here
            logits, _ = utils.forward(model, x, args.amp)
        loss = distributed.mean(criterion(logits, y), y.size(0))
        gradients = [alpha.grad for alpha in counted]  # of the last alpha step
        for alpha in counted:
            alpha.grad = None
        if loss.requires_grad:  # sampled operations may have no weights
            loss.backward(inputs=[*weights, *counted])
        distributed.average_gradients([*weights, *counted])
        for alpha, gradient in zip(counted, gradients, strict=True):
            if gradient is not None:
                alpha.grad = gradient.clone() if alpha.grad is None else alpha.grad + gradient
        norm = nn.utils.clip_grad_norm_([*weights, *counted], args.grad_clip)
        for alpha, gradient in zip(counted, gradients, strict=True):
            alpha.grad = gradient
        optimizer.step()
        return loss.detach(), logits.detach(), norm

    return step
