"""Who decides: mutators, applied to a model that holds choices (`nas/mutables.py`), and fixed architectures.

A mutator of one's own is a class with two methods, `sample_search` and `sample_final`; see docs/search_spaces.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiment.errors import UserError, shown
from nas.architecture import Architecture
from nas.mutables import Choice, InputChoice, LayerChoice, Mutable, MutableScope, pick_inputs, reduce

Decisions = dict[str, Tensor]
Choices = dict[str, Any]


@dataclass
class SpaceNode:
    """A search space as a tree: its mutables in the order of their construction, those of a scope below it. The root has none."""

    mutable: Mutable | None = None
    children: list[SpaceNode] = field(default_factory=list)

    def __iter__(self) -> Iterator[Mutable]:
        if self.mutable is not None:
            yield self.mutable
        for child in self.children:
            yield from child


def find_space(model: nn.Module) -> SpaceNode:
    """The mutables of `model`, as a tree.

    Raises:
        UserError: a choice inside a choice, or one key for two choices that differ in what they choose from.
    """
    root = SpaceNode()
    seen: set[int] = set()
    by_key: dict[str, Mutable] = {}

    def walk(module: nn.Module, node: SpaceNode, choice: Choice | None) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        if isinstance(module, Mutable):
            if choice is not None:
                raise UserError(f"{module.key} stands inside a candidate of {choice.key}: choices do not nest")
            first = by_key.setdefault(module.key, module)
            if _question(first) != _question(module):
                raise UserError(f"two mutables share the key {module.key!r}, and so one decision, but differ in what they choose from")
            node.children.append(node := SpaceNode(module))
            choice = module if isinstance(module, Choice) else None
        for child in module.children():
            walk(child, node, choice)

    walk(model, root, None)
    return root


def _question(mutable: Mutable) -> tuple:
    """All that a decision depends on."""
    if isinstance(mutable, LayerChoice):
        return "layer", *mutable.names
    if isinstance(mutable, InputChoice):
        return "input", mutable.n_chosen, *mutable.choose_from
    return ("scope",)


class Mutator(nn.Module):
    """Decides for every choice of `model`, which it does not contain: its own parameters are no part of the model's, nor the other way.

    A decision is a mask over the candidates, a tensor (candidates,): of booleans, or of weights that multiply the candidates' outputs.
    Candidates with a zero mask do not run.

    Args:
        model: any module that holds choices.

    Raises:
        UserError: see `find_space`; or the model has a mutator already.
    """

    differentiable = False
    """Whether the decisions are a function of the mutator's parameters, so that they are made anew for every pass through the model."""

    dense = False
    """Whether weights are never looked at: all candidates that have one run, and no pass waits for a GPU to tell which are zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._space = find_space(model)
        self._by_key: dict[str, Mutable] = {}
        for mutable in self._space:
            mutable.set_mutator(self)
            self._by_key.setdefault(mutable.key, mutable)
        self._decisions: Decisions = {}
        self._running: dict[str, list[int]] = {}

    @property
    def mutables(self) -> list[Mutable]:
        """The mutables of the space, scopes included, one of each key."""
        return list(self._by_key.values())

    @property
    def layer_choices(self) -> list[LayerChoice]:
        """The layer choices of the space, one of each key."""
        return [mutable for mutable in self.mutables if isinstance(mutable, LayerChoice)]

    @property
    def input_choices(self) -> list[InputChoice]:
        """The input choices of the space, one of each key."""
        return [mutable for mutable in self.mutables if isinstance(mutable, InputChoice)]

    def sample_search(self) -> Decisions:
        """{key: mask} for every choice, as the search is to run next."""
        raise NotImplementedError(f"{type(self).__name__} lacks sample_search()")

    def sample_final(self) -> Decisions:
        """{key: mask} for every choice, as the search has found it."""
        raise NotImplementedError(f"{type(self).__name__} lacks sample_final()")

    def reset(self) -> None:
        """Decides anew, for all passes through the model until the next call."""
        self.decide(self.sample_search())

    def decide(self, decisions: Decisions) -> None:
        """Takes these decisions, {key: mask}.

        Raises:
            UserError: they are not one mask of the right length for each choice.
        """
        self._decisions = self._checked(decisions)
        self._running = {key: list(range(len(mask))) for key, mask in self._decisions.items()}
        unsure = {key: mask.detach() != 0 for key, mask in self._decisions.items() if mask.dtype == torch.bool or not self.dense}
        for device in {mask.device for mask in unsure.values()}:
            there = {key: mask for key, mask in unsure.items() if mask.device == device}
            on = iter(torch.cat(list(there.values())).tolist())  # read at once: each reading waits for the device
            self._running |= {key: [index for index in self._running[key] if next(on)] for key in there}

    def export(self) -> Choices:
        """The final architecture, JSON-ready: {key: what was chosen}, a name or, where there are none, an index; or a list of these."""
        return self._named(self.sample_final())

    def current(self) -> Choices:
        """The architecture that the decisions of now make, as `export` writes it."""
        return self._named(self._decisions)

    def status(self) -> dict[str, list]:
        """The decisions of now: {key: mask as a list}."""
        return {key: mask.tolist() for key, mask in self._decisions.items()}

    def on_forward_layer_choice(self, mutable: LayerChoice, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """(output, mask): the candidates that were chosen, applied to the arguments and reduced."""
        mask, chosen = self._decision(mutable)
        return reduce([_weighted(mutable[index](*args, **kwargs), mask, index) for index in chosen], mutable.reduction), mask

    def on_forward_input_choice(self, mutable: InputChoice, inputs: list[Any]) -> tuple[Any, Tensor]:
        """(output, mask): the inputs that were chosen, reduced."""
        mask, chosen = self._decision(mutable)
        return reduce([_weighted(inputs[index], mask, index) for index in chosen], mutable.reduction), mask

    def chosen(self, mutable: Choice) -> list[int]:
        """The candidates that the decisions of now run."""
        return self._decision(mutable)[1]

    def enter_mutable_scope(self, scope: MutableScope) -> None:
        """Called before the forward of a scope."""

    def exit_mutable_scope(self, scope: MutableScope) -> None:
        """Called after the forward of a scope."""

    def _decision(self, mutable: Choice) -> tuple[Tensor, list[int]]:
        if mutable.key not in self._decisions:
            raise UserError(f"nothing is decided for {mutable.key}: call reset() on the mutator before the model")
        return self._decisions[mutable.key], self._running[mutable.key]

    def _choices(self) -> dict[str, Choice]:
        return {key: mutable for key, mutable in self._by_key.items() if isinstance(mutable, Choice)}

    def _checked(self, decisions: Decisions) -> Decisions:
        choices = self._choices()
        if decisions.keys() != choices.keys():
            missing, unknown = sorted(choices.keys() - decisions.keys()), sorted(decisions.keys() - choices.keys())
            raise UserError(f"{type(self).__name__} must decide for each choice: missing {missing}, unknown {unknown}")
        decisions = {key: torch.as_tensor(decisions[key]) for key in choices}
        for key, mask in decisions.items():
            if mask.shape != (len(choices[key]),):
                raise UserError(
                    f"{type(self).__name__} decides {key} by a mask of shape {tuple(mask.shape)}, for {len(choices[key])} candidates"
                )
        return decisions

    def _named(self, decisions: Decisions) -> Choices:
        architecture, choices = {}, self._choices()
        for key, mask in self._checked(decisions).items():
            chosen = [label for label, on in zip(choices[key].labels, mask.tolist(), strict=True) if on]
            architecture[key] = chosen[0] if len(chosen) == 1 else chosen
        return architecture

    def __getstate__(self) -> dict[str, Any]:
        """For copies: a decision is a tensor inside an autograd graph, which cannot be copied. The value is; `reset` makes a new graph."""
        return {name: value.detach() if isinstance(value, Tensor) else value for name, value in self.__dict__.items()} | {
            "_decisions": {key: mask.detach() for key, mask in self._decisions.items()}
        }


def _weighted(output: Any, mask: Tensor, index: int) -> Any:
    # A weight of shape (1,), and not (): autocast's bfloat16 would round away what it learns.
    return output if mask.dtype == torch.bool else mask[index : index + 1] * output


class RandomMutator(Mutator):
    """Every candidate with the same probability; inputs, where any number may be chosen, each with probability 1/2."""

    def sample_search(self) -> Decisions:
        return {mutable.key: _random_mask(mutable) for mutable in [*self.layer_choices, *self.input_choices]}

    def sample_final(self) -> Decisions:
        return self.sample_search()


def _random_mask(mutable: Choice) -> Tensor:
    n_chosen = mutable.n_chosen if isinstance(mutable, InputChoice) else 1
    if n_chosen is None:
        return torch.rand(len(mutable)) < 0.5
    return mask_of(torch.randperm(len(mutable))[:n_chosen], len(mutable))


def mask_of(chosen: Tensor, length: int) -> Tensor:
    """(length,) booleans, true at the indices `chosen`."""
    return torch.zeros(length, dtype=torch.bool, device=chosen.device).index_fill(0, chosen, True)


class DartsMutator(Mutator):
    """The continuous relaxation (DARTS, section 2.2), for any space: all candidates at once, weighted by the softmax of their alphas.

    Every layer choice has one alpha more than candidates, the last: that of `none`, which takes its part of the softmax and gives nothing.
    Input choices have no alphas. In the search, all inputs take part; at the end, the `n_chosen` whose layer choices (those that
    `choose_from` names) have the strongest best candidates (section 2.4), or all, where any number may be chosen. An input that no
    layer choice stands behind has strength 0, and among equals the earlier wins.
    """

    differentiable = True
    dense = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.alphas = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(len(mutable) + 1)) for mutable in self.layer_choices)

    @property
    def choices(self) -> dict[str, nn.Parameter]:
        """The alphas by their choice's key, each (candidates + 1,)."""
        return {mutable.key: alpha for mutable, alpha in zip(self.layer_choices, self.alphas, strict=True)}

    def sample_search(self) -> Decisions:
        everything = {mutable.key: torch.ones(len(mutable), dtype=torch.bool) for mutable in self.input_choices}
        return everything | {key: F.softmax(alpha, dim=-1)[:-1] for key, alpha in self.choices.items()}

    @torch.no_grad()
    def sample_final(self) -> Decisions:
        weights = {key: F.softmax(alpha, dim=-1)[:-1] for key, alpha in self.choices.items()}
        decisions = {key: mask_of(weight.argmax().view(1), len(weight)) for key, weight in weights.items()}
        strength = {key: weight.max().item() for key, weight in weights.items()}
        for mutable in self.input_choices:
            strengths = [strength.get(label, 0.0) for label in mutable.choose_from]
            ranked = sorted(range(len(mutable)), key=strengths.__getitem__, reverse=True)
            decisions[mutable.key] = mask_of(torch.tensor(ranked[: mutable.n_chosen]), len(mutable))
        return decisions


def apply_fixed_architecture(model: nn.Module, architecture: Mapping[str, Any] | str | Path) -> nn.Module:
    """Replaces every choice of `model` by what was chosen, and lets go of the rest.

    Args:
        model: a space without a mutator; changed in place.
        architecture: what `Mutator.export` gives, NNI's included, or a JSON file of it: {key: a name or an index, or a list of these}.

    Returns:
        The model; another one only where the model itself was a choice.

    Raises:
        UserError: the file cannot be read, or the architecture is not one of this space.
    """
    if isinstance(architecture, str | Path):
        architecture = Architecture.read(str(architecture), space="any").choices  # as written, whatever the keys
    if not isinstance(architecture, Mapping):
        raise UserError("an architecture is an object, {key of a choice: what was chosen}")
    space = list(find_space(model))
    choices = [mutable for mutable in space if isinstance(mutable, LayerChoice | InputChoice)]
    keys = {mutable.key for mutable in choices}
    missing, unknown = sorted(keys - set(architecture)), sorted(map(str, set(architecture) - keys))
    if missing or unknown:
        raise UserError(f"this architecture belongs to another space: missing keys {_few(missing)}, unknown keys {_few(unknown)}")
    if any(mutable.has_mutator for mutable in space):
        raise UserError("a mutator already decides for this model: build the model again to fix its architecture")
    fixed: dict[nn.Module, nn.Module] = {mutable: _fixed(mutable, _chosen(mutable, architecture[mutable.key])) for mutable in choices}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in fixed:
                parent._modules[name] = fixed[child]
    return fixed.get(model, model)


def _chosen(mutable: LayerChoice | InputChoice, value: Any) -> list[int]:
    """The indices that an architecture's entry for this choice stands for."""
    values = value if isinstance(value, list) else [value]
    if len(values) == len(mutable) and all(isinstance(on, bool) for on in values):  # a mask, as NNI 1 wrote it
        values = [index for index, on in enumerate(values) if on]
    names = mutable.names if isinstance(mutable, LayerChoice) else mutable.choose_from
    chosen = []
    for entry in values:
        index = names.index(entry) if isinstance(entry, str) and entry and entry in names else entry
        if type(index) is not int or not 0 <= index < len(mutable):
            raise UserError(f"{mutable.key} cannot choose {shown(entry)}: its candidates are {_few(mutable.labels)}")
        chosen.append(index)
    if len(set(chosen)) != len(chosen):
        raise UserError(f"{mutable.key} chooses the same candidate twice: {shown(value)}")
    if isinstance(mutable, LayerChoice) and not chosen:
        raise UserError(f"{mutable.key} chooses nothing: its candidates are {_few(mutable.labels)}")
    if isinstance(mutable, InputChoice) and mutable.n_chosen not in (None, len(chosen)):
        raise UserError(f"{mutable.key} takes {mutable.n_chosen} of its inputs, not {len(chosen)}")
    return sorted(chosen)


def _fixed(mutable: LayerChoice | InputChoice, chosen: list[int]) -> nn.Module:
    if isinstance(mutable, InputChoice):
        return FixedInputChoice(mutable, chosen)
    if len(chosen) == 1 and not mutable.return_mask and mutable.reduction != "none":
        return mutable[chosen[0]]
    return FixedLayerChoice(mutable, chosen)


class _Fixed(nn.Module):
    mask: Tensor

    def __init__(self, mutable: LayerChoice | InputChoice, chosen: list[int]) -> None:
        super().__init__()
        self.reduction = mutable.reduction
        self.return_mask = mutable.return_mask
        self.register_buffer("mask", mask_of(torch.tensor(chosen, dtype=torch.long), len(mutable)), persistent=False)

    def _reduced(self, outputs: list[Any]) -> Any:
        output = reduce(outputs, self.reduction)
        return (output, self.mask) if self.return_mask else output


class FixedLayerChoice(_Fixed):
    """What a layer choice becomes where it was more than one layer, or its surroundings want a mask or a list."""

    def __init__(self, mutable: LayerChoice, chosen: list[int]) -> None:
        super().__init__(mutable, chosen)
        self.candidates = nn.ModuleList(mutable[index] for index in chosen)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._reduced([candidate(*args, **kwargs) for candidate in self.candidates])


class FixedInputChoice(_Fixed):
    """What an input choice becomes."""

    def __init__(self, mutable: InputChoice, chosen: list[int]) -> None:
        super().__init__(mutable, chosen)
        self.key = mutable.key
        self.choose_from = mutable.choose_from
        self.chosen = chosen

    def forward(self, optional_inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        inputs = pick_inputs(self.key, self.choose_from, optional_inputs)
        return self._reduced([inputs[index] for index in self.chosen])


def _few(items: Sequence, limit: int = 8) -> str:
    first = ", ".join(map(shown, items[:limit]))
    return f"[{first}{', ...' if len(items) > limit else ''}]"
