"""The one type for what a search finds: every form read once, and what it is asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.errors import UserError
from genotypes import DARTS_V1, DARTS_V2, NASNet, edge_key, edge_of
from nas.architecture import Architecture, cell_of, edge_ends

ROOT = Path(__file__).parent.parent


def test_every_form_of_one_architecture_is_the_same(tmp_path):
    (tmp_path / "genotype.json").write_text(json.dumps(Architecture(DARTS_V1).json))
    (tmp_path / "choices.json").write_text(json.dumps(Architecture(DARTS_V1).choices))
    one = Architecture.read("DARTS_V1")
    for form in (repr(DARTS_V1), str(one), str(tmp_path), str(tmp_path / "genotype.json")):
        assert Architecture.read(form) == one
    assert Architecture.read(repr(DARTS_V1._replace(normal_concat=range(2, 6)))) == one
    assert Architecture.read("DARTS_V2") != one
    assert Architecture.read(str(tmp_path / "choices.json")).distance(one) == 0  # the edges of a node in another order
    assert Architecture.of(one.json) == Architecture.of_epoch({"genotype": one.json, "architecture": one.choices}) == one
    assert str(one) == f"genotype = {DARTS_V1}"


def test_a_space_of_one_s_own_may_call_its_choices_as_it_likes(tmp_path):
    choices = {"normal": "conv", "reduce": [0, 2]}
    (tmp_path / "architecture.json").write_text(json.dumps(choices))
    for form in (tmp_path, tmp_path / "architecture.json"):
        found = Architecture.read(str(form), "my_space.py:Net")
        assert (found.choices, found.json, found.files()) == (choices, choices, {"architecture.json": choices})
        assert (found.cells, found.layers, found.skips(), found.chosen) == ({}, [], {"": 0}, {"normal": "conv", "reduce": "[0, 2]"})
        with pytest.raises(UserError, match="missing"):
            Architecture.read(str(form), "darts")
    assert Architecture.recorded(tmp_path, "my_space.py:Net") == found
    assert Architecture.recorded(tmp_path / "nowhere", "my_space.py:Net") is None
    with pytest.raises(UserError, match="not of the cells of DARTS"):
        found.genotype  # noqa: B018


def test_the_edges_of_a_cell():
    cell = Architecture(NASNet).cells["normal"]
    assert list(cell.nodes.items())[1:3] == [("c_{k-1}", "input"), ("0", "node")]
    assert list(cell.nodes)[-1] == "c_{k}"
    assert cell.edges[0] == ("normal_n2_p1", "c_{k-1}", "0", "sep_conv_5x5")
    assert cell.concat == ["0", "1", "2", "3", "4"]
    assert Architecture(DARTS_V2).chosen["reduce_n5_p2"] == "skip_connect"


def test_keys_of_edges_are_read_as_they_are_made():
    for cell, node, source in (("normal", 2, 0), ("reduce", 12, 11)):
        assert edge_of(edge_key(cell, node, source)) == (cell, node, source)
    assert edge_ends("reduce_n5_p1") == ("c_{k-1}", "3")
    assert edge_ends("1_3") == ("1", "3")
    for key in ("normal_n2_switch", "normal_node_0_x_op", "other_n2_p0", "normal_n2_p0\n", "normal_n²_p0", "3_1", ""):
        assert edge_of(key) is edge_ends(key) is None
    assert [cell_of(key) for key in ("normal_node_0_x_op", "reduce_n2_p0", "normally_n2", "0_1")] == ["normal", "reduce", "", ""]


def test_pictures_of_an_architecture_need_no_torch(tmp_path):
    code = "import sys, visualize; sys.argv[1:] = ['DARTS_V2', '--format', 'svg']; visualize.main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
