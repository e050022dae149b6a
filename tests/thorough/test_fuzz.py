"""Files and texts from strangers: whatever they hold, a parser returns something valid, or raises a `UserError` of one
line. Inputs are derived from valid ones, so that they get past the first check; the same ones in every run.
"""

import copy
import io
import itertools
import json
import pickle
import random
import sys
import warnings
from collections import OrderedDict

import golden
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import genotypes
import train
from architectures.cells import CHOICES, OPERATIONS, Cells, check, names
from experiment.errors import UserError
from experiment.weights import load_weights
from nas.mutables import InputChoice, LayerChoice
from nas.mutators import apply_fixed_architecture
from nas.spaces import nasbench201
from pictures import drawing, history
from visualize import read_any


def fuzz(count, **strategies):
    """`count` inputs, not kept on disk, and no time limit for one: timing never decides a test."""

    def decorate(test):
        health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
        options = {"derandomize": True, "database": None, "deadline": None, "phases": (Phase.generate, Phase.shrink)}
        test = settings(max_examples=count, suppress_health_check=health, **options)(test)
        return given(**strategies)(test)

    return decorate


def only_user_errors(parse, *arguments):
    """What `parse` returns; None for a `UserError`. Anything else that it raises fails the test."""
    try:
        return parse(*arguments)
    except UserError as error:
        message = str(error)
    assert 0 < len(message) < 5000
    return None


# Texts: words that mean something here among those that do not.
WORDS = [*names(), *OPERATIONS, *CHOICES, *genotypes.Genotype._fields, "normal/op_2_0", "normal_n2_switch", ""]
TEXT = st.one_of(st.sampled_from(WORDS), st.text(max_size=8), st.characters())
INTEGERS = st.one_of(st.integers(-2, 7), st.integers(), st.sampled_from([10**4000]))
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(), TEXT)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=4
)
SEEDS = st.integers(0, 2**32)


def edited(documents, seed, value):
    """One of these objects with up to three of its parts, at any depth, replaced by `value`, taken out or doubled."""
    rng = random.Random(seed)
    document = copy.deepcopy(rng.choice(documents))
    for _ in range(rng.randrange(4)):
        place, inside = None, document
        while isinstance(inside, dict | list) and inside and (place is None or rng.random() < 0.7):
            place, key = inside, rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            inside = place[key]
        if place is None:
            break
        action = rng.randrange(4)
        if action < 2:
            place[key] = copy.deepcopy(value)
        elif action == 2:
            del place[key]
        elif isinstance(place, dict):
            place[rng.choice([*WORDS, str(value)[:9]])] = copy.deepcopy(inside)
        else:
            place.append(copy.deepcopy(inside))
    return document


def damage(content, seed):
    """`content`, bytes, with a few of them changed, taken out or doubled, or cut off; sometimes as it was."""
    rng, content = random.Random(seed), bytearray(content)
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        start, action = rng.randrange(len(content) + 1), rng.randrange(4)
        stop = min(len(content), start + rng.choice([1, 1, 4, 64]))
        if action == 0:
            content[start:stop] = rng.randbytes(stop - start)
        elif action == 1:
            del content[start:stop]
        elif action == 2:
            content[start:start] = content[start:stop]
        elif rng.random() < 0.2:
            del content[start:]
    return bytes(content)


# ---- Files of JSON: what reads them, and what holds for all that it returns


def assert_builds(architecture):
    genotype = architecture.genotype
    assert Cells.of(architecture.json) == architecture
    assert check(*genotype) == genotype
    assert Cells.read(repr(genotype)).genotype == genotype


def assert_draws(architecture):
    """The graphs alone: what the program that draws them refuses is tested elsewhere."""
    assert all(graph.source for graph in drawing.graphs(architecture).values())
    assert architecture.skips()


def fix(path):
    """A network with a choice of each kind, fixed."""
    choices = {
        "layer": LayerChoice([nn.Identity(), nn.ReLU()], key="layer"),
        "named": LayerChoice(OrderedDict(small=nn.Identity(), large=nn.ReLU()), key="named"),
        "two": InputChoice(choose_from=["layer", "named", ""], n_chosen=2, key="two"),
        "any": InputChoice(n_candidates=2, key="any"),
    }
    return apply_fixed_architecture(nn.ModuleDict(choices), path)


def assert_fixed(model):
    """Two inputs as they must be, and no layer beside the chosen ones."""
    assert len(model["two"].chosen) == 2
    left = [module for module in model.modules() if isinstance(module, LayerChoice)]
    assert all(len(list(module.children())) == len(module.chosen) for module in left)


def read_metrics(path):
    """Of a run of two epochs, whose first row is in the file."""
    (path.parent / "config.json").write_text('{"stage": "search", "arguments": {"seed": 2}}')
    rows = path.read_bytes() + b"\n" + json.dumps(ROW | {"epoch": 1}).encode() + b"\n"
    (path.parent / "metrics.jsonl").write_bytes(rows)
    return history.read(path.parent)


NNI = golden.load("nni_tutorial_cells.json")
CELLS = [Cells(genotypes.NASNet).json, Cells(genotypes.DARTS_V2).json, NNI["full"], Cells(genotypes.DARTS_V2).choices]
KEYS = itertools.product(("normal", "reduce"), range(2), ("x_op", "x_input", "y_op", "y_input"))
MICRO = {f"{kind}_node_{node}_{key}": 0 for kind, node, key in KEYS}
MACRO = {"LayerChoice1": 5, "LayerChoice2": 0, "InputChoice3": [], "LayerChoice4": 3}
MACRO["InputChoice5"] = ["layer_0", "layer_1"]
CELL = dict.fromkeys(["0_1", "0_2", "1_2", "0_3", "1_3", "2_3"], "none")
ARCHITECTURES = [
    {"layer": 1, "named": "small", "two": ["layer", "named"], "any": []},
    {"layer": [0, 1], "named": [True, False], "two": [True, False, True], "any": [False, True]},
]
ARGUMENTS = {"dataset": "digits", "seed": 2, "auxiliary": True, "run_dir": None, "checkpoint_minutes": 10.0}
ROW = {"epoch": 0, "lr": 0.1, "valid_acc": 50.0, "seconds": 1.5}
ROW["alphas"] = {"normal_n2_p0": {"none": 0.5, "skip_connect": 0.5}}

FILES = {  # {name: (valid contents, what reads them, what checks the result)}
    "genotype.json": (CELLS, lambda path: Cells.read(str(path)), assert_builds),
    "architecture.json": (ARCHITECTURES, fix, assert_fixed),
    "drawn.json": ([MICRO, MACRO, CELL, *CELLS], lambda path: read_any(str(path)), assert_draws),
    "config.json": ([{"stage": "eval", "arguments": ARGUMENTS}], lambda path: train.parse_arguments(), vars),
    "row.json": ([ROW], read_metrics, lambda run: run.caption),
}


@pytest.mark.parametrize("name", FILES)
@fuzz(1000, seed=SEEDS, value=JSON)
def test_files_of_json(name, seed, value, tmp_path, monkeypatch, capsys):
    """Sometimes deeper than any reader goes."""
    contents, parse, check_found = FILES[name]
    content = value if seed % 10 == 0 else edited(contents, seed, value)
    deep = seed % 50 == 0
    (tmp_path / name).write_bytes(b"[" * 100_000 if deep else damage(json.dumps(content).encode(), seed))
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", str(tmp_path)])
    found = only_user_errors(parse, tmp_path / name)
    assert capsys.readouterr().out == ""
    if found is not None:
        check_found(found)


# ---- Texts


GENOTYPE = repr(genotypes.DARTS_V2)
VALUES = [repr(value) for value in (*genotypes.DARTS_V2, *genotypes.NASNet)]
HOSTILE = [f"[('skip_connect', {'0x' + 'f' * 5000}), ('none', 0)]", "open('/')", "*[1]", "**{}", "-" * 5000 + "1"]
HOSTILE += ["(" * 300 + ")" * 300, "[" * 5000, "1 if 1 else 2", "f'{1}'", "range(9, -9)", "0x10", "1e999", "''", "None"]


def literal(seed, text):
    """`Genotype(...)` with arguments that are Python, nearly."""
    rng = random.Random(seed)
    written = GENOTYPE
    for _ in range(rng.randrange(3)):
        written = written.replace(rng.choice(VALUES), rng.choice([*HOSTILE, *VALUES, text]), 1)
    if rng.random() < 0.3:
        written = written.replace(rng.choice([f"{name}=" for name in genotypes.Genotype._fields]), "", 1)
    return damage(written.encode(), seed).decode(errors="replace") if rng.random() < 0.5 else written


@fuzz(800, seed=SEEDS, text=st.text())
def test_genotypes_in_texts(seed, text):
    for written in (text, literal(seed, text)):
        if (architecture := only_user_errors(Cells.read, written)) is not None:
            assert_builds(architecture)


NAMES = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"


@fuzz(500, seed=SEEDS, text=st.text())
def test_names_of_nas_bench_201(seed, text):
    for name in (damage(NAMES.encode(), seed).decode(errors="replace"), text):
        architecture = only_user_errors(nasbench201.from_string, name)
        assert architecture is None or nasbench201.to_string(architecture) == name.strip()


# ---- Weights


def saved(**form):
    file = io.BytesIO()
    torch.save(nn.BatchNorm1d(3).state_dict(), file, **form)
    return file.getvalue()


SAVED = [saved(), saved(_use_new_zipfile_serialization=False), pickle.dumps({"weight": [1.0]})]


@fuzz(500, seed=SEEDS, content=st.sampled_from(SAVED))
def test_damaged_weights(seed, content, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(damage(content, seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about formats of old
        only_user_errors(load_weights, nn.BatchNorm1d(3), str(path))
