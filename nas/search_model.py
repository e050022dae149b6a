"""A network with choices and its mutator, as one search model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nas.architecture import operation_of
from nas.mutators import DartsMutator, Mutator


class SearchModel(nn.Module):
    """What `architect.Architect` and `train_search.py` drive, for any space: (B, C, H, W) to logits (B, num_classes).

    Args:
        network: holds the choices.
        mutator: decides for `network`.
    """

    def __init__(self, network: nn.Module, mutator: Mutator) -> None:
        super().__init__()
        self.network = network
        self.mutator = mutator
        mutator.reset()

    def forward(self, x: Tensor) -> Tensor:
        if self.mutator.differentiable:
            self.mutator.reset()
        return self.network(x)

    def arch_parameters(self) -> list[nn.Parameter]:
        """The mutator's: alphas, or a controller's weights."""
        return list(self.mutator.parameters())

    def weight_parameters(self) -> list[nn.Parameter]:
        """The network's weights, those of all candidates."""
        return list(self.network.parameters())

    def export(self) -> dict[str, Any]:
        """The architecture found so far: the best of the relaxation; or the one that is decided on, where one runs at a time."""
        return self.mutator.export() if self.mutator.differentiable else self.mutator.current()

    def alphas_by_edge(self) -> dict[str, dict[str, float]]:
        """The softmaxed alphas, {key of a layer choice: {operation: weight}}; empty where the strategy has no alphas.

        Operations without a name have their number; `none` is the alpha that stands for no operation.
        """
        if not isinstance(self.mutator, DartsMutator):
            return {}
        edges = {}
        for mutable in self.mutator.layer_choices:
            weights = torch.softmax(self.mutator.choices[mutable.key].detach(), dim=-1).tolist()
            edge = dict(zip(map(operation_of, map(str, mutable.labels)), weights, strict=False))
            for none in weights[len(mutable) :]:
                edge["none"] = edge.get("none", 0.0) + none  # a space may have a `none` of its own
            edges[mutable.key] = edge
        return edges

    def alpha_lines(self) -> list[str]:
        """The log's lines about the alphas: one for each choice."""
        status = self.mutator.status() if self.mutator.differentiable else {}
        return [f"{key}: {' '.join(f'{weight:.4f}' for weight in weights)}" for key, weights in status.items()]
