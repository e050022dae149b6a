"""Architectures: known cells, the forms in which one can be read, what it is asked, and what is refused."""

import json

import golden
import pytest
import torch

import genotypes
from architectures import Architecture, published
from architectures.cells import Cells, check, names, to_nni
from experiment.errors import UserError
from genotypes import DARTS_V1, DARTS_V2, PRIMITIVES, AmoebaNet
from model import NetworkCIFAR
from model_search import derive_cell
from rnn import genotypes as rnn
from rnn.genotypes import RecurrentCell

NNI = golden.load("nni_tutorial_cells.json")


def test_known_cells():
    for name, cells in golden.load("genotypes.json").items():
        assert Cells(names()[name]).json == cells
    assert Cells.read("DARTS").genotype == DARTS_V2
    for genotype in names().values():
        assert check(*genotype) == genotype


@pytest.mark.parametrize("genotype", names().values(), ids=names())
def test_every_known_cell_builds_and_runs(genotype):
    model = NetworkCIFAR(2, 7, 3, True, genotype)
    logits, auxiliary = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == auxiliary.shape == (2, 7)


def test_every_form_of_one_architecture_is_the_same(tmp_path):
    (tmp_path / "genotype.json").write_text(json.dumps(Cells(DARTS_V1).json))
    (tmp_path / "choices.json").write_text(json.dumps(Cells(DARTS_V1).choices))
    one = Cells.read("DARTS_V1")
    assert str(one) == f"genotype = {DARTS_V1}"
    for form in (repr(DARTS_V1), str(one), str(tmp_path), str(tmp_path / "genotype.json")):
        assert Cells.read(form) == one
    assert Cells.read("DARTS_V2") != one
    assert Cells.read(str(tmp_path / "choices.json")).distance(one) == 0  # the edges of a node in another order
    assert Cells.of(one.json) == Cells.of_epoch({"genotype": one.json, "architecture": one.choices}) == one


def test_nni_s_dictionary_there_and_back():
    for name, known in (("basic", published.NNI_BASIC), ("full", published.NNI_FULL)):
        cells = NNI[name]
        assert Cells.of({key: [value] if "input" in key else value for key, value in cells.items()}).genotype == known
        assert Cells.of(cells).genotype == known
        assert list(to_nni(known).items()) == list(cells.items())
    files = Cells(DARTS_V2).files()
    assert list(files) == ["architecture.json", "genotype.json", "nni.json"]
    assert Cells.of(files["nni.json"]).genotype == DARTS_V2
    with pytest.raises(UserError, match=r"concatenates \[4, 5, 6\]"):
        to_nni(AmoebaNet)


def test_an_edge_that_no_node_uses_has_chosen_nothing():
    unused = [key for key, chosen in CHOICES.items() if chosen == []]
    assert len(unused) == 12
    assert not {"normal_n3_p0", "normal_n3_p1"} & set(unused)
    for change in ({}, dict.fromkeys(unused, "maxpool"), {"normal_n3_p1": [CHOICES["normal_n3_p1"]]}):
        assert Cells.of(CHOICES | change).distance(Cells(DARTS_V2)) == 0
    with pytest.raises(UserError, match=r"normal_n3_p1 is \[\]: known are"):
        Cells.of(CHOICES | {"normal_n3_p1": []})


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


# ---- What other codes write


def per_node(edges):
    return [list(edges[index : index + 2]) for index in range(0, len(edges), 2)]


def as_triples(edges):
    return [(operation, index // 2 + 2, source) for index, (operation, source) in enumerate(edges)]


NESTED = DARTS_V2._replace(normal=per_node(DARTS_V2.normal), reduce=per_node(DARTS_V2.reduce))
TRIPLES = DARTS_V2._replace(normal=as_triples(DARTS_V2.normal), reduce=as_triples(DARTS_V2.reduce))
CHOICES = Cells(DARTS_V2).choices


def numbered(chosen, candidates):
    return [candidates.index(name) for name in (chosen if isinstance(chosen, list) else [chosen])]


def mask(chosen, candidates):
    return [index in numbered(chosen, candidates) for index in range(len(candidates))]


def of_nni_1(form):
    """The choices of DARTS_V2 with indices or masks in place of names, candidates in NNI's order."""
    operations = ["maxpool", "avgpool", "skipconnect", "sepconv3x3", "sepconv5x5", "dilconv3x3", "dilconv5x5"]
    inputs = {
        f"{cell}_n{node}_switch": [f"{cell}_n{node}_p{i}" for i in range(node)]
        for cell in ("normal", "reduce")
        for node in range(6)
    }
    return {key: form(chosen, inputs.get(key, operations)) for key, chosen in CHOICES.items()}


LOG = f"epoch 0 genotype = {genotypes.DARTS_V1}\nepoch 1 genotype = {DARTS_V2!r} (valid_acc 87.2)\n12/31 01:02 AM lr\n"
FOREIGN = {
    "positional": f"Genotype({', '.join(repr(list(field)) for field in DARTS_V2)})",
    "ranges": repr(DARTS_V2._replace(normal_concat=range(2, 6))),
    "nested": repr(NESTED),
    "triples": repr(TRIPLES),
    "NumPy": repr(DARTS_V2).replace("0)", "np.int64(0))").replace("[2, 3, 4, 5]", "list(range(np.int64(2), 6))"),
    "dictionary": repr(DARTS_V2._replace(normal_concat=range(2, 6))._asdict()),
    "assigned dictionary": f"found = {DARTS_V2._asdict()}  # epoch 49",
    "text behind": f"{DARTS_V2!r}.  Epoch 01:02",
    "log": LOG,
    "UTF-16": LOG.encode("utf-16"),  # as PowerShell's > writes
    "NNI 1, indices": json.dumps(of_nni_1(numbered)),
    "NNI 1, masks": json.dumps(of_nni_1(mask)),
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_what_other_codes_write_is_read_as_it_is_meant(tmp_path, text):
    (tmp_path / "found.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = Cells.read(str(tmp_path / "found.txt"))
    assert found.distance(Cells(DARTS_V2)) == 0
    if isinstance(text, str) and not text.startswith("found"):
        assert Cells.read(text) == found


def test_nodes_with_fewer_than_two_edges(tmp_path):
    """As FairDARTS writes its cells."""
    normal = "[('sep_conv_3x3', 2, 0), ('sep_conv_5x5', 2, 1), ('max_pool_3x3', 4, 0), ('sep_conv_3x3', 5, 0)]"
    reduce = Cells(published.FAIR_DARTS_A).json["reduce"]
    found = Cells.read(
        f"Genotype(normal={normal}, normal_concat=range(2, 6), reduce={reduce}, reduce_concat=range(2, 6))"
    )
    assert found == Cells(published.FAIR_DARTS_A)


def test_nodes_with_more_than_two_edges():
    nodes = [[("skip_connect", 1)], [], [("sep_conv_3x3", 1), ("skip_connect", 1), ("max_pool_3x3", 2)]]
    triples = [(operation, node, source) for node, edges in enumerate(nodes, 2) for operation, source in edges]
    found, foreign = (
        Cells.read(repr(DARTS_V2._replace(normal=edges, normal_concat=[2, 3, 4]))) for edges in (nodes, triples)
    )
    assert [edge for edge in foreign.genotype.normal if edge[0] != "none"] == triples
    assert found.genotype.normal_concat == foreign.genotype.normal_concat == [2, 4]
    assert Cells.read(json.dumps(found.json)) == found
    assert Cells.read(str(found)) == found
    assert found.chosen["normal_n2_p1"] == foreign.chosen["normal_n4_p1"] == "skip_connect"
    dense = Cells(DARTS_V2._replace(normal=[("skip_connect", 2, source) for source in (0, 1, 1)], normal_concat=[2]))
    assert dense.files().keys() == {"genotype.json"}
    with pytest.raises(UserError, match="two edges each; this one has 3 edges"):
        dense.choices  # noqa: B018


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (repr(DARTS_V2)[:-1], "a bracket, a quote or a comma is missing"),
        (repr(DARTS_V2).replace("'", "\N{RIGHT SINGLE QUOTATION MARK}"), "quotes are not straight"),
        (repr(DARTS_V2).replace("'", ""), "names in quotes, numbers, lists"),
        (repr(TRIPLES._replace(normal=[("skip_connect", 0, 0)])), "to a node before 2"),
    ],
)
def test_broken_texts_end_in_one_plain_sentence(text, words):
    with pytest.raises(UserError, match=words) as raised:
        Cells.read(text)
    assert not any(jargon in str(raised.value) for jargon in ("ast.", "0x", "literal", "leading zeros"))


@pytest.mark.parametrize("module", [genotypes, rnn], ids=["genotypes", "rnn"])
def test_a_genotype_of_one_s_own_is_a_name(monkeypatch, module):
    """As if `MY_NET = Genotype(...)` had been pasted at the end of the file."""
    space = RecurrentCell if module is rnn else Cells
    monkeypatch.setattr(module, "MY_NET", module.DARTS_V1._replace(), raising=False)
    assert space.read("my-net") == space(module.DARTS_V1)
    assert "MY_NET" in space.names()
    pasted = module.Genotype(*([] for _ in module.Genotype._fields))
    monkeypatch.setattr(module, "MY_NET", pasted)
    with pytest.raises(UserError, match="cell"):
        space.read("MY_NET")


@pytest.mark.parametrize(
    "edges", [[("none", 0), ("skip_connect", 1)], [("none", 0), ("none", 1), ("skip_connect", 0), ("none", 2)]]
)
def test_a_cell_may_have_none_on_the_way(edges):
    """As long as something reaches the output."""
    outputs = range(2, len(edges) // 2 + 2)
    assert check(edges, list(outputs), edges, list(outputs)).normal == edges


def edit(**fields):
    return json.dumps(Cells(DARTS_V2._replace(**fields)).json)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "does not hold JSON"),
        ("[1]", "must be an object"),
        ("{}", "must be an object with normal, normal_concat"),
        (edit(normal=["skip_connect", 0]), "a cell must be a list of pairs"),
        (edit(normal=[("conv_9x9", 0), ("skip_connect", 1)], normal_concat=[2]), "conv_9x9"),
        (edit(normal=[("skip_connect", 0), ("skip_connect", 2)], normal_concat=[2]), "node 2 takes one of 0 to 1"),
        (edit(reduce=DARTS_V2.reduce[:7]), "the reduce cell has 7 edges: it needs two for each node"),
        (edit(normal_concat=[2, 6]), "nodes from 2 to 5"),
        (edit(normal_concat=[2, 2]), "each at most once"),
        (json.dumps({**NNI["full"], "normal/op_7_0": "skip_connect"}), "normal/op_7_0"),
        ("[" * 100_000, "does not hold JSON"),
        (edit(normal=[("none", 0), ("none", 1)] * 4), "the normal cell's output is always 0"),
    ],
)
def test_bad_files(tmp_path, text, words):
    path = tmp_path / "arch.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        Cells.read(str(path))


def test_nothing_in_a_text_is_evaluated(tmp_path):
    trap = tmp_path / "trap"
    with pytest.raises(UserError):
        Cells.read(f"Genotype(normal=[open({str(trap)!r}, 'w')], normal_concat=[2], reduce=[], reduce_concat=[])")
    assert not trap.exists()


def test_unreadable_files(tmp_path):
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    for name, words in (
        ("missing.json", "No such file"),
        ("", "cannot read.*No such file"),
        ("binary.json", "does not hold JSON"),
    ):
        with pytest.raises(UserError, match=words):
            Cells.read(str(tmp_path / name))


def test_ties_go_to_the_earlier_edge_and_operation():
    def weights(*strengths):
        """Softmaxed alphas of edges, each a dictionary of the operations that stand out."""
        return [[edge.get(primitive, 0.01) for primitive in PRIMITIVES] for edge in strengths]

    assert derive_cell(weights({}, {}, {}, {}, {}), steps=2) == [("max_pool_3x3", 0), ("max_pool_3x3", 1)] * 2
    edges = weights({"sep_conv_5x5": 0.4, "sep_conv_3x3": 0.4}, {"skip_connect": 0.4})
    assert derive_cell(edges, steps=1) == [("sep_conv_3x3", 0), ("skip_connect", 1)]
