"""The choices of a search space: of a layer and of inputs, declared inside an ordinary module.

A choice holds its candidates with their weights. The mutator that is applied to the model (`nas/mutators.py`) decides
between them, and the module around the choices only calls them. The interface is that of NNI 2.0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiment.errors import UserError

REDUCTIONS = ("sum", "mean", "concat", "none")

_numbers = itertools.count(1)


def reset_mutable_counter() -> None:
    """Restarts the numbers of keys at 1, so that a second model of a class gets the same keys as the first."""
    global _numbers
    _numbers = itertools.count(1)


class Mutable(nn.Module):
    """A module with a key. Mutables with the same key share one decision.

    Args:
        key: by default the name of the class and a number that counts up through the program: `LayerChoice1`,
            `InputChoice2`, ...
    """

    def __init__(self, key: str | None = None) -> None:
        super().__init__()
        self.key = f"{type(self).__name__}{next(_numbers)}" if key is None else key

    def extra_repr(self) -> str:
        return f"key={self.key!r}"


class MutableScope(Mutable):
    """A group of choices, which ENAS treats as one step. Scopes may be nested."""


class Choice(Mutable):
    """Base class of both kinds of choice.

    `labels` are the candidates in an exported architecture: their names, or their positions if they have no names.
    A mutator or a fixed architecture sets `mask`, (candidates,), booleans or weights that multiply the outputs, and
    `chosen`, the positions of the candidates that run.
    """

    labels: Sequence[str | int]
    chosen: Sequence[int] = ()
    mask: Tensor | None = None

    def __init__(self, reduction: str, key: str | None) -> None:
        super().__init__(key)
        if reduction not in REDUCTIONS:
            raise UserError(f"unknown reduction {reduction!r} in {self.key}: known are {', '.join(REDUCTIONS)}")
        self.reduction = reduction

    def __len__(self) -> int:
        """The number of candidates."""
        return len(self.labels)

    def combined(self, output_of: Callable[[int], Any]) -> Any:
        """The outputs of the chosen candidates, reduced."""
        if self.mask is None:
            raise UserError(f"{self.key} is not decided: apply a mutator to the model and call its reset()")
        if self.mask.dtype == torch.bool:
            return reduce([output_of(index) for index in self.chosen], self.reduction)
        # Weights of shape (1,), not (): under autocast, the product would be bfloat16 otherwise, and round small
        # changes of the weight away.
        weights = self.mask.split(1)
        return reduce([weights[index] * output_of(index) for index in self.chosen], self.reduction)


class LayerChoice(Choice):
    """A choice between layers. If several are chosen, their outputs are reduced to one; if none is chosen, the output
    is None.

    Its candidates are counted, iterated over and found by position or name.

    Args:
        op_candidates: the layers; in a dictionary, they have names.
        reduction: how several outputs are combined: `sum`, `mean`, `concat` (along dimension 1) or `none` (a list).
        nothing: whether `DartsMutator` has an alpha for choosing none of the candidates.
    """

    edge: Callable[[Tensor], Tensor] | None = None  # computes the output instead, if a remedy wraps the choice

    def __init__(
        self,
        op_candidates: Sequence[nn.Module] | Mapping[str, nn.Module],
        reduction: str = "sum",
        key: str | None = None,
        nothing: bool = True,
    ) -> None:
        super().__init__(reduction, key)
        self.nothing = nothing
        named = op_candidates
        if not isinstance(named, Mapping):
            named = {str(index): candidate for index, candidate in enumerate(named)}
        self.names = list(named)
        self.labels = [index if name == str(index) else name for index, name in enumerate(self.names)]
        for name, module in named.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Applies the chosen candidates to the arguments."""
        if self.edge is not None:
            return self.edge(*args, **kwargs)
        return self.combined(lambda index: self[index](*args, **kwargs))

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[name] for name in self.names)

    def __getitem__(self, index: int | str) -> nn.Module:
        return getattr(self, index if isinstance(index, str) else self.names[index])


class InputChoice(Choice):
    """A choice between input tensors. The chosen ones are reduced to one.

    Args:
        n_candidates: the number of inputs; not needed with `choose_from`.
        choose_from: for each input the key of the mutable that it comes from, or `NO_KEY`. A mutator may use it to rate
            the inputs.
        n_chosen: how many inputs are chosen; None for any number. If none is chosen, the output is None.
        reduction: as for `LayerChoice`.
    """

    NO_KEY = ""

    def __init__(
        self,
        n_candidates: int | None = None,
        choose_from: Sequence[str] | None = None,
        n_chosen: int | None = None,
        reduction: str = "sum",
        key: str | None = None,
    ) -> None:
        super().__init__(reduction, key)
        self.choose_from = list(choose_from or [self.NO_KEY] * (n_candidates or 0))
        if not self.choose_from:
            raise UserError(f"{self.key} has no candidates: give n_candidates or choose_from")
        self.n_chosen = n_chosen
        if n_chosen is not None and not 1 <= n_chosen <= len(self.choose_from):
            raise UserError(f"{self.key} cannot choose {n_chosen} of {len(self.choose_from)}")
        named = self.NO_KEY not in self.choose_from and len(set(self.choose_from)) == len(self.choose_from)
        self.labels = self.choose_from if named else range(len(self.choose_from))

    def forward(self, optional_inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """The chosen inputs, reduced. `optional_inputs` is a list in the order of `choose_from`, or a dictionary with
        its keys."""
        inputs = optional_inputs
        if isinstance(inputs, Mapping):
            if missing := [label for label in self.choose_from if label not in inputs]:
                raise UserError(f"{self.key} chooses from {self.choose_from}; its inputs lack {missing}")
            inputs = [inputs[label] for label in self.choose_from]
        if len(inputs) != len(self):
            raise UserError(f"{self.key} chooses from {len(self)} inputs, and was given {len(inputs)}")
        return self.combined(inputs.__getitem__)


def reduce(outputs: list[Any], reduction: str) -> Any:
    """Combines the outputs of the chosen candidates, see `LayerChoice`."""
    if reduction == "none":
        return outputs
    if len(outputs) < 2:
        return outputs[0] if outputs else None
    if reduction == "concat":
        return torch.cat(outputs, dim=1)
    try:
        total: Tensor = sum(outputs[1:], outputs[0])
    except RuntimeError:
        shapes = {tuple(output.shape) for output in outputs}
        if len(shapes) == 1:
            raise
        raise UserError(
            f"the outputs of a choice cannot be added, their shapes are {', '.join(map(str, sorted(shapes)))}: "
            "candidates that differ in shape need a strategy that runs one at a time, such as --strategy enas"
        ) from None
    return total / len(outputs) if reduction == "mean" else total
