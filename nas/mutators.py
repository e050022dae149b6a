"""Mutators, which decide for the choices of a model (`nas/mutables.py`), and `apply_fixed_architecture`.

To write a mutator, define a class with two methods, `sample_search` and `sample_final`; see docs/search_spaces.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from architectures import Architecture, cell_of, unmasked
from experiment.errors import UserError, shown
from model_search import weighted_sum
from nas.edges import surround
from nas.mutables import Choice, InputChoice, LayerChoice, Mutable, pick_inputs, reduce
from nas.relaxation import Relaxation, edge_weights

Decisions = dict[str, Tensor]
Choices = dict[str, Any]


@dataclass
class SpaceNode:
    """A search space as a tree. Mutables are in the order of construction; those inside a scope are its children.

    The root has no mutable.
    """

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
        UserError: a choice is inside another choice, two choices with the same key have different candidates, or
            `choose_from` contains a key that no mutable has.
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
                raise UserError(f"{module.key} is inside a candidate of {choice.key}: choices cannot be nested")
            first = by_key.setdefault(module.key, module)
            if _question(first) != _question(module):
                raise UserError(
                    f"two mutables share the key {module.key!r}, and so one decision, but differ in what they choose "
                    f"from"
                )
            node.children.append(node := SpaceNode(module))
            choice = module if isinstance(module, Choice) else None
        for child in module.children():
            walk(child, node, choice)

    walk(model, root, None)
    for mutable in by_key.values():
        if isinstance(mutable, InputChoice) and (unknown := set(mutable.choose_from) - {InputChoice.NO_KEY, *by_key}):
            raise UserError(
                f"{mutable.key} chooses from {shown(min(unknown))}, which is not a key of this space: "
                "name the choice or the scope that the input comes from, or InputChoice.NO_KEY"
            )
    return root


def _question(mutable: Mutable) -> tuple:
    """Everything about a mutable that a decision depends on."""
    if isinstance(mutable, LayerChoice):
        return "layer", *mutable.names
    if isinstance(mutable, InputChoice):
        return "input", mutable.n_chosen, *mutable.choose_from
    return ("scope",)


class Mutator(nn.Module):
    """Decides for every choice of `model`. Mutator and model do not contain each other's parameters.

    A decision is a mask over the candidates, a tensor (candidates,). It is boolean, or it holds weights that multiply
    the outputs of the candidates. Candidates with a zero do not run.

    Args:
        model: any module with choices.

    Raises:
        UserError: see `find_space`; or the model already has a mutator.
    """

    model: nn.Module

    differentiable = False
    """Whether the decisions are differentiable functions of the mutator's parameters.

    They are then made again for every forward pass.
    """

    dense = False
    """Whether all candidates with a weight run, without a check for zeros.

    A forward pass then does not wait for the GPU.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["model"] = model  # bypasses `nn.Module.__setattr__`, which would register it as a submodule
        self._space = find_space(model)
        self._by_key: dict[str, Mutable] = {}
        for mutable in self._space:
            mutable.set_mutator(self)
            self._by_key.setdefault(mutable.key, mutable)
        self._decisions: Decisions = {}
        self._running: dict[str, list[int]] = {}

    @property
    def mutables(self) -> list[Mutable]:
        """The mutables of the space, including scopes, one for each key."""
        return list(self._by_key.values())

    @property
    def layer_choices(self) -> list[LayerChoice]:
        """The layer choices of the space, one for each key."""
        return [mutable for mutable in self.mutables if isinstance(mutable, LayerChoice)]

    @property
    def input_choices(self) -> list[InputChoice]:
        """The input choices of the space, one for each key."""
        return [mutable for mutable in self.mutables if isinstance(mutable, InputChoice)]

    def sample_search(self) -> Decisions:
        """{key: mask} for every choice: the decisions for the next step of the search."""
        raise NotImplementedError(f"{type(self).__name__} lacks sample_search()")

    def sample_final(self) -> Decisions:
        """{key: mask} for every choice: the architecture that the search has found."""
        raise NotImplementedError(f"{type(self).__name__} lacks sample_final()")

    def reset(self) -> None:
        """Makes new decisions. They hold for all forward passes until the next call."""
        self.decide(self.sample_search())

    def decide(self, decisions: Decisions) -> None:
        """Sets the decisions, {key: mask}.

        Raises:
            UserError: the decisions are not exactly one mask of the right length for each choice.
        """
        self._decisions = self._checked(decisions)
        self._running = {
            key: list(range(len(mask))) if self.dense and mask.is_floating_point() else mask.nonzero()[:, 0].tolist()
            for key, mask in self._decisions.items()
        }

    def export(self) -> Choices:
        """The final architecture, JSON-ready: {key: what was chosen}, a name, an index if there are no names, or a list
        of these.
        """
        return self._named(self.sample_final())

    def current(self) -> Choices:
        """The architecture of the current decisions, in the form of `export`."""
        return self._named(self._decisions)

    def status(self) -> dict[str, list]:
        """The current decisions: {key: mask as a list}."""
        return {key: mask.tolist() for key, mask in self._decisions.items()}

    def on_forward_layer_choice(self, mutable: LayerChoice, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the chosen candidates, reduced."""
        mask, chosen = self._decision(mutable)
        return reduce([_weighted(mutable[index](*args, **kwargs), mask, index) for index in chosen], mutable.reduction)

    def on_forward_input_choice(self, mutable: InputChoice, inputs: list[Any]) -> Any:
        """The chosen inputs, reduced."""
        mask, chosen = self._decision(mutable)
        return reduce([_weighted(inputs[index], mask, index) for index in chosen], mutable.reduction)

    def chosen(self, mutable: Choice) -> list[int]:
        """The candidates that run by the current decisions."""
        return self._decision(mutable)[1]

    def _decision(self, mutable: Choice) -> tuple[Tensor, list[int]]:
        if mutable.key not in self._decisions:
            raise UserError(f"there is no decision for {mutable.key} yet: call reset() on the mutator before the model")
        return self._decisions[mutable.key], self._running[mutable.key]

    def _choices(self) -> dict[str, Choice]:
        return {key: mutable for key, mutable in self._by_key.items() if isinstance(mutable, Choice)}

    def _checked(self, decisions: Decisions) -> Decisions:
        choices = self._choices()
        if decisions.keys() != choices.keys():
            missing, unknown = sorted(choices.keys() - decisions.keys()), sorted(decisions.keys() - choices.keys())
            raise UserError(f"{type(self).__name__} must decide for every choice: missing {missing}, unknown {unknown}")
        decisions = {key: torch.as_tensor(decisions[key]) for key in choices}
        for key, mask in decisions.items():
            if mask.shape != (len(choices[key]),):
                raise UserError(
                    f"{type(self).__name__} decides {key} by a mask of shape {tuple(mask.shape)}, for "
                    f"{len(choices[key])} candidates"
                )
        return decisions

    def _named(self, decisions: Decisions) -> Choices:
        architecture, choices = {}, self._choices()
        for key, mask in self._checked(decisions).items():
            chosen = [label for label, on in zip(choices[key].labels, mask.tolist(), strict=True) if on]
            architecture[key] = chosen[0] if len(chosen) == 1 else chosen
        return architecture


def _weighted(output: Any, mask: Tensor, index: int) -> Any:
    # Shape (1,), not (): under autocast, the product would be bfloat16 otherwise, and round small changes of the weight
    # away.
    return output if mask.dtype == torch.bool else mask[index : index + 1] * output


class RandomMutator(Mutator):
    """Decides at random: every candidate has the same probability.

    If any number of inputs may be chosen, each has probability 1/2.
    """

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
    """(length,) booleans, True at the indices `chosen`."""
    return torch.zeros(length, dtype=torch.bool, device=chosen.device).index_fill(0, chosen, True)


class DartsMutator(Mutator):
    """The continuous relaxation (DARTS, section 2.2) for any space: all candidates run, weighted by the softmax of
    their alphas.

    Every layer choice has an alpha for each candidate, and as the last one that of `none`, which takes part in the
    softmax but has no output.

    Input choices have no alphas. In the search, all inputs are used. In the final architecture, the `n_chosen`
    strongest inputs are chosen (section 2.4), or all if any number may be chosen. The strength of an input is the
    largest weight in the layer choice that `choose_from` names, or 0 if it does not come from a layer choice. Between
    equal strengths, the earlier input is chosen.

    If a layer choice could be chosen by input choices, and none of them does, it chooses nothing, as in NNI: its output
    is not used.

    Args:
        relaxation: maps the alphas to weights; None for the softmax. If it has no alpha of `none`, only the candidates
            have one.
    """

    differentiable = True

    def __init__(self, model: nn.Module, relaxation: Relaxation | None = None) -> None:
        super().__init__(model)
        self.relaxation = relaxation or Relaxation()
        self.dense = not self.relaxation.samples
        alphas = [
            (choice, nn.Parameter(1e-3 * torch.randn(len(choice) + (self.relaxation.none and choice.nothing))))
            for choice in self.layer_choices
        ]
        self.alphas = nn.ParameterDict(
            # A list of pairs: `ParameterDict` sorts the keys of a dictionary.
            [(_parameter_name(choice.key), self.relaxation.prepare(alpha, choice.names)) for choice, alpha in alphas]
        )
        self.betas: nn.Parameter | None = None
        self._nodes: list[list[str]] = []
        self._edge_weights: Decisions = {}

    def weigh_edges(self, ends: Callable[[str], tuple[str, str] | None]) -> None:
        """Gives edges weights: `betas`, softmaxed over the layer choices that lead into one node.

        These are the layer choices that one input choice chooses from, or that have the same head. One that leads alone
        has weight 1.

        Args:
            ends: (tail, head) of the edge of a key, or None, as `Architecture.ends`.
        """
        nodes: dict[str, list[str]] = {}
        chosen_by = {label: mutable.key for mutable in self.input_choices for label in mutable.choose_from}
        for key in self.choices:
            edge = ends(key)
            nodes.setdefault(chosen_by.get(key) or (f"{cell_of(key)} {edge[1]}" if edge else key), []).append(key)
        self._nodes = list(nodes.values())
        self.betas = nn.Parameter(1e-3 * torch.randn(len(self.choices)))

    def edge_weights(self) -> Decisions:
        """{key of a layer choice: weight of the edge, ()}; empty if edges have no weights."""
        if self.betas is None:
            return {}
        weights = edge_weights(self.betas, list(map(len, self._nodes)))
        return dict(zip(itertools.chain.from_iterable(self._nodes), weights.unbind(), strict=True))

    @property
    def choices(self) -> dict[str, nn.Parameter]:
        """{key of a layer choice: alphas, (candidates + none,)}."""
        return {mutable.key: alpha for mutable, alpha in zip(self.layer_choices, self.alphas.values(), strict=True)}

    def sample_search(self) -> Decisions:
        self._edge_weights = self.edge_weights()
        everything = {mutable.key: torch.ones(len(mutable), dtype=torch.bool) for mutable in self.input_choices}
        return everything | self._of_candidates(self.relaxation.mixed(list(self.alphas.values())))

    def _of_candidates(self, weights: list[Tensor]) -> Decisions:
        return {choice.key: weight[: len(choice)] for choice, weight in zip(self.layer_choices, weights, strict=True)}

    def on_forward_layer_choice(self, mutable: LayerChoice, *args: Any, **kwargs: Any) -> Any:
        mask, _ = self._decision(mutable)

        def mix(x: Tensor, weights: Tensor) -> Tensor:
            return weighted_sum(x, mutable, weights)

        if hasattr(mutable, "auxiliary_op"):  # by `nas.edges.equip_choices`
            alone = None if mutable.parts == 1 else mask.new_ones(())  # partial channels without edge normalisation
            of_edge = self._edge_weights.get(mutable.key, alone)
            output = surround(mutable, mix, args[0], self.relaxation.columns(mask, of_edge))
        elif (
            self.dense
            and mask.is_floating_point()
            and mutable.reduction in ("sum", "mean")
            and len(args) == 1
            and not kwargs
        ):
            try:
                output = mix(args[0], mask)
            except RuntimeError:
                return super().on_forward_layer_choice(mutable, *args)  # which says so if the shapes differ
        else:
            output = super().on_forward_layer_choice(mutable, *args, **kwargs)
            return output + (mask.sum() - mask[mask.argmax()]) if self.relaxation.scalars else output
        return output / len(mutable) if mutable.reduction == "mean" else output

    @torch.no_grad()
    def sample_final(self) -> Decisions:
        weights = self._of_candidates(self.relaxation(list(self.alphas.values())))
        decisions = {key: mask_of(weight.argmax().view(1), len(weight)) for key, weight in weights.items()}
        of_edges = self.edge_weights()
        strength = {key: (weight.max() * of_edges.get(key, 1.0)).item() for key, weight in weights.items()}
        for mutable in self.input_choices:
            strengths = [strength.get(label, 0.0) for label in mutable.choose_from]
            ranked = sorted(range(len(mutable)), key=strengths.__getitem__, reverse=True)
            decisions[mutable.key] = mask_of(torch.tensor(ranked[: mutable.n_chosen], dtype=torch.long), len(mutable))
        offered = {label for mutable in self.input_choices for label in mutable.choose_from}
        taken = {
            mutable.choose_from[index] for mutable in self.input_choices for index in decisions[mutable.key].nonzero()
        }
        return decisions | {key: torch.zeros_like(decisions[key]) for key in weights if key in offered - taken}


def _parameter_name(key: str) -> str:
    """The key of a choice as a valid name of a parameter: without dots, and not the name of an attribute."""
    name = key.replace(".", "/")
    return f"{name}/" if not name or hasattr(nn.ParameterDict(), name) else name


def apply_fixed_architecture(model: nn.Module, architecture: Mapping[str, Any] | str | Path) -> nn.Module:
    """Replaces every choice of `model` by what was chosen, and removes the other candidates.

    A layer choice may have chosen nothing, `[]`; its output is then None. If no input choice chooses a layer choice,
    NNI 2.0 exports it as `[]` or as a random candidate. Such a candidate stays in the network and is computed, as in
    NNI.

    Args:
        model: a space without a mutator; changed in place.
        architecture: the result of `Mutator.export`, of NNI too, or a JSON file of it: {key: a name or an index, or a
            list of these}.

    Returns:
        The model, or its replacement if the model itself is a choice.

    Raises:
        UserError: the file cannot be read, or the architecture is not one of this space.
    """
    if isinstance(architecture, str | Path):
        architecture = Architecture.read(str(architecture)).choices  # as written, whatever the keys
    if not isinstance(architecture, Mapping):
        raise UserError("an architecture must be a dictionary, {key of a choice: what was chosen}")
    space = list(find_space(model))
    choices = [mutable for mutable in space if isinstance(mutable, LayerChoice | InputChoice)]
    keys = {mutable.key for mutable in choices}
    missing, unknown = sorted(keys - set(architecture)), sorted(map(str, set(architecture) - keys))
    if missing or unknown:
        raise UserError(
            f"this architecture belongs to another space: missing keys {shown(missing)}, unknown keys {shown(unknown)}"
        )
    if any(mutable.has_mutator for mutable in space):
        raise UserError("a mutator already decides for this model: build the model again to fix its architecture")
    fixed: dict[nn.Module, nn.Module] = {
        mutable: _fixed(mutable, chosen_of(mutable, architecture[mutable.key])) for mutable in choices
    }
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in fixed:
                parent._modules[name] = fixed[child]
    return fixed.get(model, model)


def chosen_of(mutable: LayerChoice | InputChoice, value: Any) -> list[int]:
    """The indices of the candidates that `value`, an entry of an architecture, names."""
    values = unmasked(value if isinstance(value, list) else [value], len(mutable))
    names = mutable.names if isinstance(mutable, LayerChoice) else mutable.choose_from
    chosen = []
    for entry in values:
        index = names.index(entry) if isinstance(entry, str) and names.count(entry) == 1 else entry
        if type(index) is not int or not 0 <= index < len(mutable):
            raise UserError(f"{mutable.key} cannot choose {shown(entry)}: its candidates are {shown(mutable.labels)}")
        chosen.append(index)
    if len(set(chosen)) != len(chosen):
        raise UserError(f"{mutable.key} chooses the same candidate twice: {shown(value)}")
    if isinstance(mutable, InputChoice) and mutable.n_chosen not in (None, len(chosen)):
        raise UserError(f"{mutable.key} takes {mutable.n_chosen} of its inputs, not {len(chosen)}")
    return sorted(chosen)


def _fixed(mutable: LayerChoice | InputChoice, chosen: list[int]) -> nn.Module:
    if isinstance(mutable, InputChoice):
        return FixedInputChoice(mutable, chosen)
    if len(chosen) == 1 and mutable.reduction != "none":
        return mutable[chosen[0]]
    return FixedLayerChoice(mutable, chosen)


class FixedLayerChoice(nn.Module):
    """Replaces a layer choice if not exactly one layer was chosen, or if it returns a list."""

    def __init__(self, mutable: LayerChoice, chosen: list[int]) -> None:
        super().__init__()
        self.reduction = mutable.reduction
        self.candidates = nn.ModuleList(mutable[index] for index in chosen)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return reduce([candidate(*args, **kwargs) for candidate in self.candidates], self.reduction)


class FixedInputChoice(nn.Module):
    """Replaces an input choice."""

    def __init__(self, mutable: InputChoice, chosen: list[int]) -> None:
        super().__init__()
        self.key, self.choose_from, self.reduction = mutable.key, mutable.choose_from, mutable.reduction
        self.chosen = chosen

    def forward(self, optional_inputs: Sequence[Any] | Mapping[str, Any]) -> Any:
        inputs = pick_inputs(self.key, self.choose_from, optional_inputs)
        return reduce([inputs[index] for index in self.chosen], self.reduction)
