"""What a search space leaves open: choices of a layer and choices of inputs, declared inside an ordinary module.

Choices declare, mutators decide, spaces know neither. A choice holds its candidates' weights and says what there is to choose from; the
mutator applied to the model (`nas/mutators.py`) says what is chosen; the module around them only calls them. The interface is NNI 2.0's.
"""

from __future__ import annotations

import itertools
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from experiment.errors import UserError

REDUCTIONS = ("sum", "mean", "concat", "none")

_numbers = itertools.count(1)


def reset_mutable_counter() -> None:
    """Numbers keys from 1 again, so that a second model of a class gets the keys of the first."""
    global _numbers
    _numbers = itertools.count(1)


class Mutable(nn.Module):
    """A module with an identity: mutables of one key share one decision.

    Args:
        key: by default the class's name and a number that runs through the program, `LayerChoice1`, `InputChoice2`, ...
    """

    def __init__(self, key: str | None = None) -> None:
        super().__init__()
        if key is None:
            key = f"{type(self).__name__}{next(_numbers)}"
        elif not isinstance(key, str):
            warnings.warn(f"the key {key!r} of a {type(self).__name__} is no string: {str(key)!r} is used", stacklevel=3)
            key = str(key)
        self._key = key

    @property
    def key(self) -> str:
        return self._key

    @property
    def mutator(self):
        """The mutator that decides here.

        Raises:
            UserError: none has been applied.
        """
        if not self.has_mutator:
            raise UserError(f"nobody decides for {self.key}: apply a mutator to the model, e.g. RandomMutator(model), or an architecture")
        return self.__dict__["_mutator"]

    @property
    def has_mutator(self) -> bool:
        return "_mutator" in self.__dict__

    def set_mutator(self, mutator) -> None:
        """Called by a mutator on the mutables of its model.

        Raises:
            UserError: there is one already.
        """
        if self.has_mutator:
            raise UserError(f"a mutator already decides for {self.key}: a model takes one, build the model again for a second")
        # Past `nn.Module.__setattr__`, which would make the mutator a part of the model and its parameters some of the model's.
        self.__dict__["_mutator"] = mutator

    def extra_repr(self) -> str:
        return f"key={self.key!r}"


class MutableScope(Mutable):
    """A group of choices, for mutators that see the space as a tree. Its mutator is told when its forward begins and ends; scopes nest."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.has_mutator:
            return super().__call__(*args, **kwargs)
        self.mutator.enter_mutable_scope(self)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.mutator.exit_mutable_scope(self)


class Choice(Mutable):
    """What the two kinds of choice share: the mask over the candidates is applied, the results are reduced to one."""

    def __init__(self, reduction: str, return_mask: bool, key: str | None) -> None:
        super().__init__(key)
        if reduction not in REDUCTIONS:
            raise UserError(f"unknown reduction {reduction!r} in {self.key}: known are {', '.join(REDUCTIONS)}")
        self.reduction = reduction
        self.return_mask = return_mask

    def __len__(self) -> int:
        """The number of candidates."""
        raise NotImplementedError

    @property
    def labels(self) -> Sequence[str | int]:
        """What an exported architecture calls the candidates: their names where they have some, their positions otherwise."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reduction={self.reduction!r}" + (", return_mask=True" if self.return_mask else "")


class LayerChoice(Choice):
    """One of several layers, or several of them reduced to one output. Behaves as a list of its candidates.

    Args:
        op_candidates: the layers; in an `OrderedDict`, they have names.
        reduction: what becomes of the outputs where several are chosen: `sum`, `mean`, `concat` (along dimension 1) or `none` (a list).
        return_mask: whether to return (output, mask) with the mask of what was chosen, (len(self),).
        key: see `Mutable`.

    Raises:
        UserError: no candidates, or a name that is an attribute of this class.
    """

    def __init__(
        self,
        op_candidates: Sequence[nn.Module] | Mapping[str, nn.Module],
        reduction: str = "sum",
        return_mask: bool = False,
        key: str | None = None,
    ) -> None:
        super().__init__(reduction, return_mask, key)
        named = op_candidates if isinstance(op_candidates, Mapping) else OrderedDict((str(i), op) for i, op in enumerate(op_candidates))
        if not named:
            raise UserError(f"{self.key} has no candidates")
        self.names: list[str] = []
        for name, module in named.items():
            if not isinstance(name, str) or not name or "." in name or name in {*dir(type(self)), *self.__dict__}:
                raise UserError(f"{name!r} cannot name a candidate of {self.key}: it must be text without dots, and no attribute's name")
            if not isinstance(module, nn.Module):
                raise UserError(f"candidate {name!r} of {self.key} is a {type(module).__name__}, not a module")
            self.add_module(name, module)
            self.names.append(name)

    @property
    def labels(self) -> Sequence[str | int]:
        return [index if name == str(index) else name for index, name in enumerate(self.names)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The chosen candidates applied to the arguments."""
        output, mask = self.mutator.on_forward_layer_choice(self, *args, **kwargs)
        return (output, mask) if self.return_mask else output

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self._candidate(name) for name in self.names])

    @overload
    def __getitem__(self, index: int | str) -> nn.Module: ...

    @overload
    def __getitem__(self, index: slice) -> list[nn.Module]: ...

    def __getitem__(self, index: int | str | slice) -> nn.Module | list[nn.Module]:
        return [self._candidate(name) for name in self.names[index]] if isinstance(index, slice) else self._candidate(self._name(index))

    def __setitem__(self, index: int | str, module: nn.Module) -> None:
        self._modules[self._name(index)] = module

    def __delitem__(self, index: int | str | slice) -> None:
        for name in self.names[index] if isinstance(index, slice) else [self._name(index)]:
            del self._modules[name]
            self.names.remove(name)

    def _name(self, index: int | str) -> str:
        if isinstance(index, str) and index not in self.names:
            raise KeyError(index)
        return index if isinstance(index, str) else self.names[index]

    def _candidate(self, name: str) -> nn.Module:
        module = self._modules[name]
        assert module is not None
        return module


class InputChoice(Choice):
    """Some of several tensors, reduced to one.

    Args:
        n_candidates: how many there are; with `choose_from`, as many as that names.
        choose_from: what each candidate is: the key of the mutable that it comes from, or any label, or `NO_KEY`. A mutator may weigh an
            input by the choices behind it.
        n_chosen: how many are chosen; any number if None, and if it is none of them, the output is None.
        reduction, return_mask, key: as of `LayerChoice`.

    Raises:
        UserError: the arguments contradict each other.
    """

    NO_KEY = ""

    def __init__(
        self,
        n_candidates: int | None = None,
        choose_from: Sequence[str] | None = None,
        n_chosen: int | None = None,
        reduction: str = "sum",
        return_mask: bool = False,
        key: str | None = None,
    ) -> None:
        super().__init__(reduction, return_mask, key)
        if not n_candidates and not choose_from:
            raise UserError(f"{self.key} has no candidates: give n_candidates or choose_from")
        self.choose_from = list(choose_from or [self.NO_KEY] * (n_candidates or 0))
        self.n_candidates = len(self.choose_from)
        self.n_chosen = n_chosen
        if n_candidates not in (None, self.n_candidates):
            raise UserError(f"{self.key} has n_candidates={n_candidates}, but choose_from names {self.n_candidates}")
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
        """The positions of the inputs that are chosen now."""
        return self.mutator.chosen(self)

    def forward(self, optional_inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        """The chosen inputs, reduced; `optional_inputs` in the order of `choose_from`, or a dictionary by its keys."""
        output, mask = self.mutator.on_forward_input_choice(self, pick_inputs(self.key, self.choose_from, optional_inputs))
        return (output, mask) if self.return_mask else output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, choose_from={self.choose_from}, n_chosen={self.n_chosen}"


def pick_inputs(key: str, choose_from: Sequence[str], inputs: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    """The candidates of the input choice `key` as a list, whichever way they were given.

    Raises:
        UserError: their number or their labels are not the choice's.
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
    """The outputs of what was chosen, made one as `LayerChoice` says; None of an empty list, unless a list is asked for."""
    if reduction == "none":
        return outputs
    if len(outputs) < 2:
        return outputs[0] if outputs else None
    if reduction == "concat":
        return torch.cat(outputs, dim=1)
    total: Tensor = sum(outputs[1:], outputs[0])
    return total / len(outputs) if reduction == "mean" else total
