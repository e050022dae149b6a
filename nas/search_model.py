"""A search model that combines a network with choices and its mutator."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from architectures.cells import CHOICES
from nas.mutators import DartsMutator, Mutator
from nas.relaxation import Relaxation


class SearchModel(nn.Module):
    """The search model of any space, for `architect.Architect` and `train_search.py`: a network and its mutator, (B, C,
    H, W) to logits (B, num_classes)."""

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
        """The parameters of the mutator: alphas, or the weights of a controller."""
        return list(self.mutator.parameters())

    def weight_parameters(self) -> list[nn.Parameter]:
        """The weights of the network, including all candidates."""
        return list(self.network.parameters())

    def export(self) -> dict[str, Any]:
        """The architecture found so far: derived from the alphas, or the one that runs."""
        return self.mutator.export() if self.mutator.differentiable else self.mutator.current()

    @property
    def relaxation(self) -> Relaxation:
        """The relaxation that maps the alphas to weights."""
        assert isinstance(self.mutator, DartsMutator)  # the others have no alphas
        return self.mutator.relaxation

    def alphas_by_edge(self) -> dict[str, dict[str, float]]:
        """The softmaxed alphas, {key of a layer choice: {operation: weight}}; empty if the mutator has no alphas.

        Operations without a name have a number. `none` is the weight of choosing no operation.
        """
        if not isinstance(self.mutator, DartsMutator):
            return {}
        edges = {}
        alphas = self.relaxation([alpha.detach() for alpha in self.mutator.alphas.values()])
        for choice, weights in zip(self.mutator.layer_choices, map(Tensor.tolist, alphas), strict=True):
            names = [CHOICES.get(label, label) for label in map(str, choice.labels)]
            edge = dict(zip(names, weights, strict=False))
            for none in weights[len(choice) :]:
                edge["none"] = edge.get("none", 0.0) + none  # a space may also have a candidate `none`
            edges[choice.key] = edge
        return edges

    def betas_by_edge(self) -> dict[str, float]:
        """{key of a layer choice: weight}; empty if edges have no weights."""
        weights = self.mutator.edge_weights() if isinstance(self.mutator, DartsMutator) else {}
        return {key: weight.item() for key, weight in weights.items()}

    def alpha_lines(self) -> list[str]:
        """Lines for the log: the softmaxed alphas of each layer choice."""
        edges = self.alphas_by_edge().items()
        return [f"{key}: {' '.join(f'{weight:.4f}' for weight in weights.values())}" for key, weights in edges]
