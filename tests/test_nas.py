"""Choices, mutators and fixed architectures: the interface, what is decided, and every error."""

import copy
import json
import re
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from experiment.errors import UserError
from nas.controller import EnasMutator
from nas.mutables import InputChoice, LayerChoice, MutableScope
from nas.mutators import DartsMutator, Mutator, RandomMutator, apply_fixed_architecture
from nas.search_model import SearchModel
from nas.strategies import Enas, Random


class Times(nn.Module):
    """Multiplies by a weight, and counts how often."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.factor * x


def layers(key="choice", factors=(2, 3, 5), **options):
    return LayerChoice([Times(factor) for factor in factors], key=key, **options)


class Told(Mutator):
    """Decides as it is told; the same in the end."""

    def __init__(self, model, **decisions):
        super().__init__(model)
        self.told = {key: torch.as_tensor(mask) for key, mask in decisions.items()}
        self.reset()

    def sample_search(self):
        return self.told

    sample_final = sample_search


class Named(MutableScope):
    """Its input, which a choice can call by the key."""

    def forward(self, x):
        return x


class Space(nn.Module):
    """Two choices of one key, one of layers with names, inputs of two kinds."""

    def __init__(self):
        super().__init__()
        self.a, self.b = layers("layer"), layers("layer")
        self.c = LayerChoice(OrderedDict(seven=Times(7), eleven=Times(11)), key="named")
        self.x = Named("x")
        self.two = InputChoice(choose_from=["layer", "named", "x"], n_chosen=2, key="two")
        self.any = InputChoice(n_candidates=3, key="any")

    def forward(self, x):
        inputs = {"x": self.x(x), "layer": self.b(self.a(x)), "named": self.c(x)}
        two, some = self.two(inputs), self.any(list(inputs.values()))
        return two if some is None else two + 100 * some


BITS = {"layer": [False, True, False], "named": [True, False], "two": [True, False, True], "any": [False, True, True]}
ARCHITECTURE = {"layer": 1, "named": "seven", "two": ["layer", "x"], "any": [1, 2]}
ONE = torch.ones(1, 1)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_layer_choice_counts_and_finds_its_candidates():
    modules = [Times(factor) for factor in range(4)]
    choice = LayerChoice(modules)
    assert len(choice) == 4
    assert list(choice) == modules
    assert choice[1] is choice["1"] is modules[1]
    assert choice[-1] is modules[3]
    assert set(choice.state_dict()) == {f"{index}.factor" for index in range(4)}


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("sum", [[7.0]]), ("mean", [[3.5]]), ("concat", [[2.0, 5.0]]), ("none", [[[2.0]], [[5.0]]])],
)
def test_what_is_chosen_is_reduced(reduction, expected):
    """By a mutator, with masks of both kinds, and in a fixed architecture, which is free of the rest."""

    def listed(output):
        return [part.tolist() for part in output] if reduction == "none" else output.tolist()

    choice, inputs = layers(reduction=reduction), InputChoice(3, reduction=reduction, key="choice")
    for mask in (torch.tensor([True, False, True]), torch.tensor([1.0, 0.0, 1.0])):
        Told(choice, choice=mask), Told(inputs, choice=mask)
        assert listed(choice(ONE)) == listed(inputs([2 * ONE, 3 * ONE, 5 * ONE])) == expected
    assert [candidate.calls for candidate in choice] == [2, 0, 2]
    fixed = apply_fixed_architecture(layers(reduction=reduction), {"choice": [0, 2]})
    assert listed(fixed(ONE)) == expected
    assert parameters(fixed) == 2

    exported = json.loads(json.dumps(Told(choice, choice=[False, False, False]).export()))
    assert exported == {"choice": []}
    fixed = apply_fixed_architecture(layers(reduction=reduction), exported)
    assert choice(ONE) == fixed(ONE) == ([] if reduction == "none" else None)
    assert parameters(fixed) == 0


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: layers("lonely")(ONE), "lonely is not decided: apply a mutator to the model and call its reset"),
        (lambda: RandomMutator(LayerChoice([nn.Sequential(layers("in"))], key="out")), "in is inside"),
        (lambda: RandomMutator(nn.ModuleList([layers("key"), layers("key", (1, 2))])), "share the key 'key'"),
        (lambda: Told(Space(), **BITS | {"layer": [True, False]}), r"by a mask of shape \(2,\), for 3"),
        (lambda: Told(Space(), layer=[True, False, False]), r"missing \['any', 'named', 'two'\]"),
        (lambda: layers(reduction="max"), "unknown reduction 'max'"),
        (lambda: InputChoice(), "give n_candidates or choose_from"),
        (lambda: InputChoice(2, n_chosen=3), "cannot choose 3 of 2"),
        (lambda: RandomMutator(InputChoice(choose_from=["a"], key="key")), "key chooses from 'a', which is not a key"),
        (lambda: InputChoice(2)([ONE]), "chooses from 2 inputs, and was given 1"),
        (lambda: InputChoice(choose_from=["a", "b"])({"a": ONE}), r"its inputs lack \['b'\]"),
    ],
)
def test_mistakes(mistake, message):
    with pytest.raises(UserError, match=message):
        mistake()


# Mutators


def test_alphas_are_saved_by_their_keys():
    """Whatever the keys are: nothing about them has to suit PyTorch."""

    def model():
        keys = ("1", "0", "a.b", "half", "")
        return nn.ModuleList(LayerChoice([Times(2)] * (2 + index), key=key) for index, key in enumerate(keys))

    first, second = DartsMutator(model()), DartsMutator(model())
    state = first.state_dict()  # which is the mutator's own
    assert list(state) == ["alphas.1", "alphas.0", "alphas.a/b", "alphas.half/", "alphas./"]
    second.load_state_dict(state)
    assert all(torch.equal(first.choices[key], second.choices[key]) for key in first.choices)


def test_random_decisions_are_uniform():
    torch.manual_seed(0)
    mutator = RandomMutator(Space())
    draws = [mutator.export() for _ in range(3000)]
    for key, probabilities in {
        "layer": dict.fromkeys(["0", "1", "2"], 1 / 3),
        "named": dict.fromkeys(["'seven'", "'eleven'"], 1 / 2),
        "two": dict.fromkeys(["['layer', 'named']", "['layer', 'x']", "['named', 'x']"], 1 / 3),
        "any": dict.fromkeys(["[]", "0", "1", "2", "[0, 1]", "[0, 2]", "[1, 2]", "[0, 1, 2]"], 1 / 8),
    }.items():
        counts = Counter(repr(draw[key]) for draw in draws)
        assert set(counts) == set(probabilities)
        for value, probability in probabilities.items():
            deviation = (3000 * probability * (1 - probability)) ** 0.5
            assert abs(counts[value] - 3000 * probability) < 4.5 * deviation


def test_darts_relaxes_layers_and_chooses_the_strongest_inputs():
    model = Space()
    mutator = DartsMutator(model)
    given = {"layer": torch.tensor([0.0, 1.0, 2.0, 5.0]), "named": torch.tensor([3.0, 1.0, 0.0])}  # `none` last
    with torch.no_grad():
        for key, alphas in mutator.choices.items():
            alphas.copy_(given[key])
    mutator.reset()
    layer, named = given["layer"].softmax(0), given["named"].softmax(0)
    a, c = 2 * layer[0] + 3 * layer[1] + 5 * layer[2], 7 * named[0] + 11 * named[1]  # none adds nothing
    output = model(ONE)
    assert output.item() == pytest.approx(101 * (1 + a * a + c).item())
    output.backward()
    assert all(alpha.grad.abs().min() > 0 for alpha in mutator.parameters())
    # none, though the strongest, is never chosen; x, which no layer choice stands behind, is weaker than the weakest.
    assert mutator.export() == {"layer": 2, "named": "seven", "two": ["layer", "named"], "any": [0, 1, 2]}


@pytest.mark.parametrize("strategy", [DartsMutator, EnasMutator, RandomMutator])
def test_what_any_mutator_exports_can_be_fixed(strategy):
    torch.manual_seed(1)
    labels = {"layer": [0, 1, 2], "named": ["seven", "eleven"], "two": ["layer", "named", "x"], "any": [0, 1, 2]}
    for _ in range(10):
        model = Space()
        mutator = strategy(model)
        mutator.reset()
        assert model(ONE).isfinite()
        architecture = mutator.export()
        assert len(mutator.status()["layer"]) == 3
        fixed = apply_fixed_architecture(Space(), json.loads(json.dumps(architecture)))
        listed = {key: value if isinstance(value, list) else [value] for key, value in architecture.items()}
        Told(model, **{key: [label in listed[key] for label in labels[key]] for key in labels})
        assert fixed(ONE).item() == model(ONE).item()


# ENAS


class Chain(nn.Module):
    """Two layer choices, inputs with and without a number."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers("first", factors=(0, 1)), layers("second", factors=(0, 1))
        self.one = InputChoice(choose_from=["first", "second", InputChoice.NO_KEY], n_chosen=1, key="one")
        self.any = InputChoice(choose_from=["first", "second"], key="any")


class Signed(nn.Module):
    """Of positive images, the second candidate takes all for class 1, the first for class 0."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.choice = layers(factors=(-1, 1))

    def forward(self, x):
        score = self.choice(x.mean((1, 2, 3)) + 0 * self.norm(x).mean((1, 2, 3)))
        return torch.stack([-score, score], dim=1)


IMAGES, CLASSES = 1 + torch.rand(8, 1, 4, 4), torch.ones(8, dtype=torch.long)


def searched(network, strategy, mutator=None, **options):
    """(search model, strategy)."""
    torch.manual_seed(0)
    model = SearchModel(network, mutator or strategy.mutator(network))
    return model, strategy(model, None, **options)


def share(mutator, is_wanted, draws=150):
    return sum(is_wanted(mutator.export()) for _ in range(draws)) / draws


def test_the_controller_learns_inputs_from_each_other():
    """A reward for an agreement, which no choice can reach alone."""
    network = Chain()
    model, architect = searched(network, Enas, EnasMutator(network, tanh_constant=2.5), learning_rate=1e-2)
    for _ in range(300):
        model.mutator.reset()
        architect.learn(float(model.export()["first"] == model.export()["second"]))
    assert share(model.mutator, lambda found: found["first"] == found["second"]) > 0.9


def test_the_controller_learns_from_the_accuracy_of_what_it_samples():
    model, architect = searched(Signed(), Enas, learning_rate=3e-3)
    for _ in range(100):
        architect.step(None, None, IMAGES, CLASSES, 0.0, None, unrolled=False)
    assert share(model.mutator, lambda found: found == {"choice": 1}) > 0.85
    assert [candidate.factor.item() for candidate in model.network.choice] == [-1, 1]  # no weight step


@pytest.mark.parametrize("strategy", [Random, Enas])
def test_the_most_accurate_of_some_samples_is_found(strategy):
    model, architect = searched(Signed(), strategy)
    architect.candidates = 40  # each is the better one with probability 1/2: that all are the other does not happen
    chosen = set()
    for _ in range(20):
        architect.step(None, None, IMAGES, CLASSES, 0.0, None, unrolled=False)
        chosen.add(model.export()["choice"])
        architect.settle([(IMAGES, CLASSES)])
        assert model.export() == {"choice": 1}
        assert model.training
    assert chosen == {0, 1}


def test_batch_norm_of_one_architecture_at_a_time_keeps_no_running_statistics():
    model, _ = searched(Signed(), Random)
    expected = model.train().network.norm(IMAGES)
    assert torch.equal(model.eval().network.norm(IMAGES), expected)
    assert not [name for name, _ in model.named_buffers() if "norm" in name]


def test_log_probability_and_entropy_are_those_of_the_sample():
    """Each architecture's frequency is the exponential of its log probability; these sum to one."""
    torch.manual_seed(0)
    mutator = EnasMutator(Chain(), tanh_constant=None)
    with torch.no_grad():
        for parameter in mutator.parameters():
            parameter.mul_(12)
    seen, counts = {}, Counter()
    for _ in range(900):
        mutator.reset()
        key = json.dumps(mutator.current())
        counts[key] += 1
        seen[key] = mutator.sample_log_prob.exp().item()
    assert sum(seen.values()) == pytest.approx(1, abs=0.02)
    assert max(seen.values()) > 3 * min(seen.values())
    for key, probability in seen.items():
        assert abs(counts[key] - 900 * probability) < 5 * (900 * probability * (1 - probability)) ** 0.5 + 1


def test_convolutions_of_reduction_layers_start_with_a_bias():
    class Layer(nn.Module):
        def __init__(self, reduction):
            super().__init__()
            self.reduction = reduction
            candidates = [nn.Conv2d(2, 2, 3), nn.MaxPool2d(3), nn.Conv2d(2, 2, 1)]
            self.choice = LayerChoice(candidates, key=f"choice_{reduction}")

    mutator = EnasMutator(nn.ModuleList([Layer(True), Layer(False)]), branch_bias=0.25)
    with torch.no_grad():
        for parameter in mutator.parameters():
            parameter.zero_()
    torch.manual_seed(0)
    expected = torch.tensor([0.25, -0.25, -0.25]).softmax(0)[0].item()
    assert share(mutator, lambda found: found["choice_True"] == 0, 800) == pytest.approx(expected, abs=0.06)
    assert share(mutator, lambda found: found["choice_False"] == 0, 800) == pytest.approx(1 / 3, abs=0.06)


# Fixed architectures


@pytest.mark.parametrize("form", ["dictionary", "file", "masks"])
def test_a_fixed_architecture_computes_what_the_mutator_did(form, tmp_path):
    model, space = Space(), Space()
    mutator = Told(space, **BITS)
    # `any` lists indices, as its candidates have no names; a single choice is no list.
    assert json.loads(json.dumps(mutator.export())) == mutator.current() == ARCHITECTURE
    assert mutator.status() == BITS
    architecture = {"dictionary": ARCHITECTURE, "file": tmp_path / "architecture.json", "masks": BITS}[form]
    (tmp_path / "architecture.json").write_text(json.dumps(ARCHITECTURE))
    before = parameters(model)
    fixed = apply_fixed_architecture(model, architecture)
    assert fixed is model
    assert fixed(ONE).item() == space(ONE).item() == 3 * 3 + 1 + 100 * (3 * 3 + 7)
    assert (before, parameters(fixed)) == (8, 3)  # the rest is free
    assert list(fixed.state_dict()) == ["a.factor", "b.factor", "c.factor"]
    copy.deepcopy(fixed)(ONE)


def test_a_layer_that_stands_in_two_places_stays_one():
    choice = layers()
    model = apply_fixed_architecture(nn.Sequential(choice, nn.ModuleDict({"again": choice})), {"choice": 1})
    assert model[0] is model[1]["again"]
    assert model[0].factor.item() == 3


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"layer": 1}, r"missing keys \['any', 'named', 'two'\], unknown keys \[\]"),
        (ARCHITECTURE | {"more": 1}, r"missing keys \[\], unknown keys \['more'\]"),
        (ARCHITECTURE | {"layer": 3}, r"layer cannot choose 3: its candidates are \[0, 1, 2\]"),
        (ARCHITECTURE | {"layer": True}, "layer cannot choose True"),
        (ARCHITECTURE | {"any": ""}, "any cannot choose ''"),  # three candidates have no key
        (ARCHITECTURE | {"layer": [1, 1]}, "layer chooses the same candidate twice"),
        (ARCHITECTURE | {"two": "x"}, "two takes 2 of its inputs, not 1"),
    ],
)
def test_bad_architectures(architecture, message):
    model = Space()
    with pytest.raises(UserError, match=message):
        apply_fixed_architecture(model, architecture)
    assert isinstance(model.a, LayerChoice)  # untouched
    assert parameters(model) == 8


def test_the_documentation_runs():
    text = (Path(__file__).parent.parent / "docs" / "search_spaces.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {"__name__": "documentation"})
