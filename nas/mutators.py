"""Mutators, which decide for the choices of a model (`nas/mutables.py`), and `apply_fixed_architecture`.

To write a mutator, define a class with two methods, `sample_search` and `sample_final`; see docs/search_spaces.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from architectures import Architecture, cell_of, unmasked
from experiment.errors import UserError, shown
from model_search import weighted_sum
from nas.edges import surround
from nas.mutables import Choice, InputChoice, LayerChoice, Mutable
from nas.relaxation import Relaxation, edge_weights
from operations import Zero

Decisions = dict[str, Tensor]
Choices = dict[str, Any]
Space = dict[str, list[Mutable]]


def find_space(model: nn.Module) -> Space:
    """{key: the mutables of `model` that share it}, in the order of construction; scopes come after what they contain.

    Raises:
        UserError: a choice is inside another choice, two choices with the same key have different candidates, or
            `choose_from` contains a key that no mutable has.
    """
    space: Space = {}
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, choice: Choice | None) -> None:
        if module in seen:
            return
        seen.add(module)
        if isinstance(module, Mutable) and choice is not None:
            raise UserError(f"{module.key} is inside a candidate of {choice.key}: choices cannot be nested")
        for child in module.children():
            walk(child, module if isinstance(module, Choice) else choice)
        if isinstance(module, Mutable):
            space.setdefault(module.key, []).append(module)

    walk(model, None)
    for key, (first, *others) in space.items():
        if any(_question(other) != _question(first) for other in others):
            raise UserError(f"mutables share the key {key!r}, and so one decision, but differ in what they choose from")
        unknown = set(first.choose_from) - {InputChoice.NO_KEY, *space} if isinstance(first, InputChoice) else ()
        if unknown:
            raise UserError(
                f"{key} chooses from {shown(min(unknown))}, which is not a key of this space: "
                "name the choice or the scope that the input comes from, or InputChoice.NO_KEY"
            )
    return space


def _question(mutable: Mutable) -> list[Any]:
    """Everything about a mutable that a decision depends on."""
    return [getattr(mutable, name, None) for name in ("names", "choose_from", "n_chosen")]


class Mutator(nn.Module):
    """Decides for every choice of `model`. Mutator and model do not contain each other's parameters.

    A decision is a mask over the candidates, a tensor (candidates,). It is boolean, or it holds weights that multiply
    the outputs of the candidates. Candidates with a zero do not run. Of two mutators of a model, the one decides that
    was reset last. `mutables`, `layer_choices` and `input_choices` are those of the space, one for each key.
    """

    differentiable = False  # whether the decisions are functions of parameters: they are made again for every pass
    dense = False  # whether all candidates with a weight run: a pass does not wait for the GPU to look for zeros

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._space = find_space(model)
        self.mutables = [shared[0] for shared in self._space.values()]
        self.layer_choices = [mutable for mutable in self.mutables if isinstance(mutable, LayerChoice)]
        self.input_choices = [mutable for mutable in self.mutables if isinstance(mutable, InputChoice)]
        self._choices: dict[str, Choice] = {
            mutable.key: mutable for mutable in self.mutables if isinstance(mutable, Choice)
        }
        self._decisions: Decisions = {}

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
        """Sets the decisions, {key: mask}, one for every choice."""
        self._decisions = self._checked(decisions)
        weights = {key for key, mask in self._decisions.items() if self.dense and mask.is_floating_point()}
        chosen = positions({key: mask for key, mask in self._decisions.items() if key not in weights})
        for key, mask in self._decisions.items():
            for choice in self._space[key]:
                assert isinstance(choice, Choice)
                choice.mask, choice.chosen = mask, _not_zero(choice) if key in weights else chosen[key]

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

    def _checked(self, decisions: Decisions) -> Decisions:
        choices = self._choices
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
        architecture: Choices = {}
        for key, chosen in positions(self._checked(decisions)).items():
            labels = [self._choices[key].labels[index] for index in chosen]
            architecture[key] = labels[0] if len(labels) == 1 else labels
        return architecture


def positions(masks: Decisions) -> dict[str, list[int]]:
    """{key: positions where the mask is not zero}. All masks on a device are read at once, since each reading waits for
    it."""
    found: dict[str, list[int]] = {key: [] for key in masks}
    for device in {mask.device for mask in masks.values()}:
        on_device = {key: mask != 0 for key, mask in masks.items() if mask.device == device}
        read = torch.cat(list(on_device.values())).cpu().split([len(mask) for mask in on_device.values()])
        found |= {key: mask.nonzero()[:, 0].tolist() for key, mask in zip(on_device, read, strict=True)}
    return found


def _not_zero(choice: Choice) -> list[int]:
    """The positions of the candidates that add to a weighted sum."""
    if not isinstance(choice, LayerChoice) or choice.reduction != "sum":
        return list(range(len(choice)))
    return [index for index, candidate in enumerate(choice) if not isinstance(candidate, Zero)]


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


def mask_of(chosen: Tensor | list[int], length: int) -> Tensor:
    """(length,) booleans, True at the indices `chosen`."""
    chosen = torch.as_tensor(chosen, dtype=torch.long)
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
        self.alphas = nn.ParameterDict()
        for choice in self.layer_choices:
            alphas = nn.Parameter(1e-3 * torch.randn(len(choice) + (self.relaxation.none and choice.nothing)))
            self.alphas[_parameter_name(choice.key)] = self.relaxation.prepare(alphas, choice.names)
        self.betas: nn.Parameter | None = None
        self._nodes: list[list[str]] = []

    def weigh_edges(self, ends: Callable[[str], tuple[str, str] | None]) -> None:
        """Gives edges weights: `betas`, softmaxed over the layer choices that lead into one node.

        These are the layer choices that one input choice chooses from, or that have the same head by `ends`, which is
        that of the `Architecture`. One that leads alone has weight 1.
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
        everything = {mutable.key: torch.ones(len(mutable), dtype=torch.bool) for mutable in self.input_choices}
        return everything | self._of_candidates(self.relaxation.mixed(list(self.alphas.values())))

    def decide(self, decisions: Decisions) -> None:
        super().decide(decisions)
        of_edges = self.edge_weights()
        for choice in itertools.chain.from_iterable(self._space.values()):
            if not isinstance(choice, LayerChoice):
                continue
            mask, choice.edge = self._decisions[choice.key], None
            if hasattr(choice, "auxiliary_op"):  # by `nas.edges.equip_choices`
                alone = None if choice.parts == 1 else mask.new_ones(())  # partial channels without edge normalisation
                choice.edge = partial(_edge, choice, self.relaxation.columns(mask, of_edges.get(choice.key, alone)))
            elif self.relaxation.scalars and mask.is_floating_point():
                choice.edge = partial(_sampled_edge, choice, mask)

    def _of_candidates(self, weights: list[Tensor]) -> Decisions:
        return {choice.key: weight[: len(choice)] for choice, weight in zip(self.layer_choices, weights, strict=True)}

    @torch.no_grad()
    def sample_final(self) -> Decisions:
        weights = self._of_candidates(self.relaxation(list(self.alphas.values())))
        decisions = {key: mask_of(weight.argmax().view(1), len(weight)) for key, weight in weights.items()}
        of_edges = self.edge_weights()
        strength = {key: (weight.max() * of_edges.get(key, 1.0)).item() for key, weight in weights.items()}
        taken = set()
        for mutable in self.input_choices:
            strengths = [strength.get(label, 0.0) for label in mutable.choose_from]
            ranked = sorted(range(len(mutable)), key=strengths.__getitem__, reverse=True)[: mutable.n_chosen]
            decisions[mutable.key] = mask_of(ranked, len(mutable))
            taken |= {mutable.choose_from[index] for index in ranked}
        offered = {label for mutable in self.input_choices for label in mutable.choose_from}
        return decisions | {key: torch.zeros_like(decisions[key]) for key in weights if key in offered - taken}


def _edge(choice: LayerChoice, weights: Tensor, x: Tensor) -> Tensor:
    """The output of a choice that a remedy has made an edge; `weights` as for `nas.edges.surround`."""
    output = surround(choice, lambda part, of_candidates: weighted_sum(part, choice, of_candidates), x, weights)
    return output / len(choice) if choice.reduction == "mean" else output


def _sampled_edge(choice: LayerChoice, weights: Tensor, x: Tensor) -> Tensor:
    """The output of a choice, plus the weights of the candidates that do not run: 0, with a gradient; see
    `nas.strategies.Gdas`."""
    return choice.combined(lambda index: choice[index](x)) + (weights.sum() - weights[weights.argmax()])


def _parameter_name(key: str) -> str:
    """The key of a choice as a valid name of a parameter: without dots, and not the name of an attribute."""
    name = key.replace(".", "/")
    return f"{name}/" if not name or hasattr(nn.ParameterDict(), name) else name


def apply_fixed_architecture(model: nn.Module, architecture: Mapping[str, Any] | str | Path) -> nn.Module:
    """Decides all choices of `model` for good, and removes the other candidates.

    A layer choice may have chosen nothing, `[]`; its output is then None. If no input choice chooses a layer choice,
    NNI 2.0 exports it as `[]` or as a random candidate. Such a candidate stays in the network and is computed, as in
    NNI.

    Args:
        model: a space; changed in place.
        architecture: the result of `Mutator.export`, of NNI too, or a JSON file of it: {key: a name or an index, or a
            list of these}.

    Returns:
        The model, or the chosen layer if the model itself is a choice.
    """
    if isinstance(architecture, str | Path):
        architecture = Architecture.read(str(architecture)).choices  # as written, whatever the keys
    chosen = chosen_in(model, architecture)  # before anything changes
    fixed: dict[nn.Module, nn.Module] = {choice: _fixed(choice, indices) for choice, indices in chosen.items()}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in fixed:
                parent._modules[name] = fixed[child]
    return fixed.get(model, model)


def chosen_in(model: nn.Module, architecture: Mapping[str, Any]) -> dict[Choice, list[int]]:
    """{choice of `model`: the positions of its candidates that `architecture` names}.

    Raises:
        UserError: it is an architecture of another space.
    """
    shared = itertools.chain.from_iterable(find_space(model).values())
    choices = [mutable for mutable in shared if isinstance(mutable, Choice)]
    keys = {choice.key for choice in choices}
    missing, unknown = sorted(keys - set(architecture)), sorted(map(str, set(architecture) - keys))
    if missing or unknown:
        raise UserError(
            f"this architecture belongs to another space: missing keys {shown(missing)}, unknown keys {shown(unknown)}"
        )
    return {choice: _positions_of(choice, architecture[choice.key]) for choice in choices}


def _positions_of(choice: Choice, value: Any) -> list[int]:
    """The positions of the candidates that `value`, an entry of an architecture, names."""
    names = choice.choose_from if isinstance(choice, InputChoice) else list(map(str, choice.labels))
    chosen = []
    for entry in unmasked(value if isinstance(value, list) else [value], len(choice)):
        index = names.index(entry) if isinstance(entry, str) and names.count(entry) == 1 else entry
        if type(index) is not int or not 0 <= index < len(choice):
            raise UserError(f"{choice.key} cannot choose {shown(entry)}: its candidates are {shown(choice.labels)}")
        chosen.append(index)
    if len(set(chosen)) != len(chosen):
        raise UserError(f"{choice.key} chooses the same candidate twice: {shown(value)}")
    if isinstance(choice, InputChoice) and choice.n_chosen not in (None, len(chosen)):
        raise UserError(f"{choice.key} takes {choice.n_chosen} of its inputs, not {len(chosen)}")
    return sorted(chosen)


def _fixed(choice: Choice, chosen: list[int]) -> nn.Module:
    """The choice without its other candidates, or its only layer."""
    choice.mask, choice.chosen = mask_of(chosen, len(choice)), chosen
    if not isinstance(choice, LayerChoice):
        return choice
    if len(chosen) == 1 and choice.reduction != "none":
        return choice[chosen[0]]
    for index, name in enumerate(choice.names):
        if index not in chosen:
            delattr(choice, name)
    return choice
