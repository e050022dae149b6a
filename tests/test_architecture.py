"""The one type for what a search finds: every form read once, and what it is asked."""

import json
from pathlib import Path

import golden
import pytest

from architectures import Architecture
from architectures.cells import Cells, to_nni
from experiment.errors import UserError
from genotypes import DARTS_V1, DARTS_V2, AmoebaNet

ROOT = Path(__file__).parent.parent


def test_every_form_of_one_architecture_is_the_same(tmp_path):
    (tmp_path / "genotype.json").write_text(json.dumps(Cells(DARTS_V1).json))
    (tmp_path / "choices.json").write_text(json.dumps(Cells(DARTS_V1).choices))
    one = Cells.read("DARTS_V1")
    for form in (repr(DARTS_V1), str(one), str(tmp_path), str(tmp_path / "genotype.json")):
        assert Cells.read(form) == one
    assert Cells.read(repr(DARTS_V1._replace(normal_concat=range(2, 6)))) == one
    assert Cells.read("DARTS_V2") != one
    assert Cells.read(str(tmp_path / "choices.json")).distance(one) == 0  # the edges of a node in another order
    assert Cells.of(one.json) == Cells.of_epoch({"genotype": one.json, "architecture": one.choices}) == one
    assert str(one) == f"genotype = {DARTS_V1}"


def test_nni_s_dictionary_there_and_back(tmp_path):
    for name, cells in golden.load("nni_tutorial_cells.json").items():
        if name in ("basic", "full"):
            genotype = Cells.of({key: [value] if "input" in key else value for key, value in cells.items()}).genotype
            assert Cells.of(cells).genotype == genotype
            assert to_nni(genotype) == cells
            assert list(to_nni(genotype)) == list(cells)
    files = Cells(DARTS_V2).files()
    assert list(files) == ["architecture.json", "genotype.json", "nni.json"]
    (tmp_path / "nni.json").write_text(json.dumps(files["nni.json"]))
    assert Cells.read(str(tmp_path / "nni.json")).genotype == DARTS_V2
    assert list(Cells(DARTS_V2).record()) == ["architecture", "genotype"]
    with pytest.raises(UserError, match=r"concatenates \[4, 5, 6\]"):
        to_nni(AmoebaNet)


def test_an_edge_that_no_node_uses_has_chosen_nothing():
    choices = Cells(DARTS_V2).choices
    unused = [key for key, chosen in choices.items() if chosen == []]
    assert len(unused) == 12
    assert not {"normal_n3_p0", "normal_n3_p1"} & set(unused)
    for form in (
        choices,
        choices | dict.fromkeys(unused, "maxpool"),
        choices | {"normal_n3_p1": [choices["normal_n3_p1"]]},
    ):
        assert Cells.of(form).distance(Cells(DARTS_V2)) == 0
    with pytest.raises(UserError, match=r"normal_n3_p1 is \[\]: known are"):
        Cells.of(choices | {"normal_n3_p1": []})


def test_a_space_of_one_s_own_may_call_its_choices_as_it_likes(tmp_path):
    choices = {"normal": "conv", "reduce": [0, 2]}
    (tmp_path / "architecture.json").write_text(json.dumps(choices))
    for form in (tmp_path, tmp_path / "architecture.json"):
        found = Architecture.read(str(form))
        assert (found.choices, found.json, found.files()) == (choices, choices, {"architecture.json": choices})
        assert (found.cells, found.skips(), found.chosen) == ({}, {"": 0}, {"normal": "conv", "reduce": "[0, 2]"})
        with pytest.raises(UserError, match="must be an object with"):
            Cells.read(str(form))
    assert Architecture.recorded(tmp_path) == found
    assert Architecture.recorded(tmp_path / "nowhere") is None
