"""The choices of a search space: of a layer and of inputs, declared inside an ordinary module.

A choice holds its candidates with their weights. The mutator that is applied to the model (`nas/mutators.py`) decides
between them. The module around the choices only calls them. The interface is that of NNI 2.0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
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

    @property
    def mutator(self):
        """The mutator that decides for this module.

        Raises:
            UserError: none has been applied.
        """
        if not self.has_mutator:
            raise UserError(
                f"{self.key} has no mutator: apply a mutator to the model, e.g. RandomMutator(model), or an "
                f"architecture"
            )
        return self.__dict__["_mutator"]

    @property
    def has_mutator(self) -> bool:
        return "_mutator" in self.__dict__

    def set_mutator(self, mutator) -> None:
        """Called by a mutator for every mutable of its model.

        Raises:
            UserError: the module already has a mutator.
        """
        if self.has_mutator:
            raise UserError(
                f"a mutator already decides for {self.key}: a model can have only one; build the model again for "
                f"another"
            )
        # Bypasses `nn.Module.__setattr__`, which would register the mutator, with its parameters, as a submodule.
        self.__dict__["_mutator"] = mutator

    def extra_repr(self) -> str:
        return f"key={self.key!r}"


class MutableScope(Mutable):
    """A group of choices, for mutators that use the space as a tree. Scopes may be nested."""


class Choice(Mutable):
    """Base class of both kinds of choice."""

    def __init__(self, reduction: str, key: str | None) -> None:
        super().__init__(key)
        if reduction not in REDUCTIONS:
            raise UserError(f"unknown reduction {reduction!r} in {self.key}: known are {', '.join(REDUCTIONS)}")
        self.reduction = reduction

    def __len__(self) -> int:
        """The number of candidates."""
        raise NotImplementedError

    @property
    def labels(self) -> Sequence[str | int]:
        """The candidates in an exported architecture: their names, or their positions if they have no names."""
        raise NotImplementedError


class LayerChoice(Choice):
    """A choice between layers. If several are chosen, their outputs are reduced to one; if none is chosen, the output
    is None.

    Its candidates are counted, iterated over and found by position or name.

    Args:
        op_candidates: the layers; in an `OrderedDict`, they have names.
        reduction: how several outputs are combined: `sum`, `mean`, `concat` (along dimension 1) or `none` (a list).
        key: see `Mutable`.
        nothing: whether `DartsMutator` has an alpha for choosing none of the candidates.
    """

    def __init__(
        self,
        op_candidates: Sequence[nn.Module] | Mapping[str, nn.Module],
        reduction: str = "sum",
        key: str | None = None,
        nothing: bool = True,
    ) -> None:
        super().__init__(reduction, key)
        self.nothing = nothing
        named = (
            op_candidates
            if isinstance(op_candidates, Mapping)
            else {str(index): op for index, op in enumerate(op_candidates)}
        )
        self.names = list(named)
        for name, module in named.items():
            self.add_module(name, module)

    @property
    def labels(self) -> Sequence[str | int]:
        return [index if name == str(index) else name for index, name in enumerate(self.names)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Applies the chosen candidates to the arguments."""
        return self.mutator.on_forward_layer_choice(self, *args, **kwargs)

    def __len__(self) -> int:
        return len(self.names)

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
        reduction, key: as for `LayerChoice`.

    Raises:
        UserError: there are no candidates, or fewer than `n_chosen`.
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
        if not n_candidates and not choose_from:
            raise UserError(f"{self.key} has no candidates: give n_candidates or choose_from")
        self.choose_from = list(choose_from or [self.NO_KEY] * (n_candidates or 0))
        self.n_candidates = len(self.choose_from)
        self.n_chosen = n_chosen
        if n_chosen is not None and not 1 <= n_chosen <= self.n_candidates:
            raise UserError(f"{self.key} cannot choose {n_chosen} of {self.n_candidates}")

    @property
    def labels(self) -> Sequence[str | int]:
        named = self.NO_KEY not in self.choose_from and len(set(self.choose_from)) == self.n_candidates
        return self.choose_from if named else list(range(self.n_candidates))

    def __len__(self) -> int:
        return self.n_candidates

    @property
    def chosen(self) -> list[int]:
        """The positions of the currently chosen inputs."""
        return self.mutator.chosen(self)

    def forward(self, optional_inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """The chosen inputs, reduced.

        `optional_inputs` is a list in the order of `choose_from`, or a dictionary with its keys.
        """
        return self.mutator.on_forward_input_choice(self, pick_inputs(self.key, self.choose_from, optional_inputs))


def pick_inputs(key: str, choose_from: Sequence[str], inputs: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    """The inputs of the input choice `key` as a list in the order of `choose_from`.

    Raises:
        UserError: their number or their keys are wrong.
    """
    if isinstance(inputs, Mapping):
        missing = [label for label in choose_from if label not in inputs]
        if missing:
            raise UserError(f"{key} chooses from {list(choose_from)}; its inputs lack {missing}")
        return [inputs[label] for label in choose_from]
    if len(inputs) != len(choose_from):
        raise UserError(f"{key} chooses from {len(choose_from)} inputs, and was given {len(inputs)}")
    return list(inputs)


def reduce(outputs: list[Any], reduction: str) -> Any:
    """Combines the outputs of the chosen candidates, see `LayerChoice`.

    An empty list gives None, or with `none` a list.
    """
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
