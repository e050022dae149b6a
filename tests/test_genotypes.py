"""Known cells, the forms in which a genotype can be read, and what is refused."""

import json

import golden
import pytest
import torch

import genotypes
from experiment.errors import UserError
from genotypes import DARTS_V2, PRIMITIVES, Genotype
from model import NetworkCIFAR
from model_search import Network, derive_cell
from nas.architecture import Architecture, check
from operations import OPS

NNI = golden.load("nni_tutorial_cells.json")


def test_known_cells():
    for name, cells in golden.load("genotypes.json").items():
        assert Architecture(genotypes.KNOWN[name]).json == cells
    assert Architecture.of(NNI["basic"]).genotype == genotypes.NNI_BASIC
    assert Architecture.of(NNI["full"]).genotype == genotypes.NNI_FULL
    assert Architecture.read("DARTS").genotype is DARTS_V2
    for genotype in genotypes.KNOWN.values():
        assert check(*genotype) == genotype


def test_operations_that_a_genotype_may_name_are_those_that_exist():
    assert set(genotypes.OPERATIONS) == set(OPS)


@pytest.mark.parametrize("genotype", genotypes.KNOWN.values(), ids=genotypes.KNOWN)
def test_every_known_cell_builds_and_runs(genotype):
    model = NetworkCIFAR(2, 7, 3, True, genotype)
    logits, auxiliary = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == auxiliary.shape == (2, 7)


def test_all_forms_of_one_genotype(tmp_path):
    (tmp_path / "genotype.json").write_text(json.dumps(Architecture(DARTS_V2).json))
    (tmp_path / "nni.json").write_text(json.dumps(NNI["full"]))
    logged = repr(DARTS_V2._replace(normal_concat=range(2, 6)))
    positional = f"Genotype({', '.join(repr(list(field)) for field in DARTS_V2)})"
    for form in ("DARTS_V2", str(tmp_path / "genotype.json"), str(tmp_path), repr(DARTS_V2), logged, positional):
        assert Architecture.read(form).genotype == DARTS_V2
    assert Architecture.read(f"12/31 01:02:03 AM genotype = {logged}\n").genotype == DARTS_V2
    assert Architecture.read(str(tmp_path / "nni.json")).genotype == genotypes.NNI_FULL
    nested = {key: [value] if "input" in key else value for key, value in NNI["full"].items()}
    assert Architecture.of(nested).genotype == genotypes.NNI_FULL


@pytest.mark.parametrize("edges", [[("none", 0), ("skip_connect", 1)], [("none", 0), ("none", 1), ("skip_connect", 0), ("none", 2)]])
def test_a_cell_may_have_none_on_the_way(edges):
    """As long as something reaches the output."""
    outputs = range(2, len(edges) // 2 + 2)
    assert check(edges, list(outputs), edges, list(outputs)).normal == edges


def edit(**fields):
    return json.dumps(Architecture(DARTS_V2._replace(**fields)).json)


def long_choices(nodes):
    """An architecture of the space of DARTS, with so many nodes in the normal cell."""
    choices = {f"normal_n{node}_p{source}": "maxpool" for node in range(2, nodes + 2) for source in (0, 1)}
    return choices | {f"normal_n{node}_switch": [f"normal_n{node}_p0", f"normal_n{node}_p1"] for node in range(2, nodes + 2)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "does not hold JSON"),
        ("[1]", "must be an object"),
        ("{}", "missing"),
        (edit(normal=[("conv_9x9", 0), ("skip_connect", 1)], normal_concat=[2]), "conv_9x9"),
        (edit(normal=[("skip_connect", 0), ("skip_connect", 2)], normal_concat=[2]), "node 2 can only take nodes 0 to 1"),
        (edit(normal=[("skip_connect", 0), ("skip_connect", True)], normal_concat=[2]), "takes node True"),
        (edit(reduce=DARTS_V2.reduce[:7]), "even"),
        (edit(reduce=[], reduce_concat=[]), "list of pairs"),
        (edit(normal_concat=[2, 6]), "nodes from 2 to 5"),
        (edit(normal_concat=[2, 2]), "twice"),
        (edit(normal_concat=[]), "must list nodes"),
        (json.dumps({**NNI["full"], "normal/op_7_0": "skip_connect"}), "normal/op_7_0"),
        (json.dumps({key: value for key, value in NNI["full"].items() if key != "normal/input_3_0"}), "takes node None"),
        ("[" * 100_000, "does not hold JSON"),
        (edit(normal=[("skip_connect", 0)] * 66), "the normal cell has 66 edges: it can have 64, two for each of 32 nodes"),
        (edit(reduce=[("sep_conv_3x3", 0)] * 10**6), "the reduce cell has 1000000 edges"),
        (json.dumps(long_choices(33)), "the normal cell has more nodes than a cell can have, 32"),
        (edit(normal=[("none", 0), ("none", 1)] * 4), "the normal cell's output is always 0"),
        (edit(reduce=[("none", 0), ("none", 1), ("skip_connect", 2), ("skip_connect", 2)], reduce_concat=[3]), "the reduce cell's output"),
        (edit(reduce=[("none", 0), ("none", 1), ("skip_connect", 0), ("none", 2)], reduce_concat=[2]), "the reduce cell's output"),
    ],
)
def test_bad_files(tmp_path, text, words):
    path = tmp_path / "arch.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        Architecture.read(str(path), "darts")


@pytest.mark.parametrize(
    "text",
    [
        "Genotype(",
        "Genotype()",
        "Genotype(normal=[], normal=[], reduce=[], reduce_concat=[])",
        "Genotype(*[1, 2, 3, 4])",
        "Genotype(**{'normal': []})",
        "Genotype(normal=open('/etc/passwd').read(), normal_concat=[2], reduce=[], reduce_concat=[])",
        "Genotype(normal=[], normal_concat=range(10**9), reduce=[], reduce_concat=[])",
        "Genotype(normal=[], normal_concat=range(2, 10**30), reduce=[], reduce_concat=[])",
        "Genotype(1, 2, 3, 4)",
        "Genotype(" + "(" * 100_000,
        "__import__('os').system('true') or Genotype(1, 2, 3, 4)",
    ],
    ids=range(11),
)
def test_bad_literals(text):
    with pytest.raises(UserError):
        Architecture.read(text, "darts")


def test_a_literal_is_never_evaluated(tmp_path):
    trap = tmp_path / "trap"
    with pytest.raises(UserError):
        Architecture.read(f"Genotype(normal=[open({str(trap)!r}, 'w')], normal_concat=[2], reduce=[], reduce_concat=[])", "darts")
    assert not trap.exists()


def test_unknown_names_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"unknown architecture DARTS_V3.*DARTS_V2"):
        Architecture.read("DARTS_V3", "darts")
    with pytest.raises(UserError, match="No such file"):
        Architecture.read(str(tmp_path / "missing.json"), "darts")
    with pytest.raises(UserError, match=r"cannot read.*No such file"):
        Architecture.read(str(tmp_path), "darts")
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="does not hold JSON"):
        Architecture.read(str(tmp_path / "binary.json"), "darts")


# ---- From alphas to a cell


def weights(*strengths):
    """Softmaxed alphas of edges, each a dictionary of the operations that stand out."""
    return [[edge.get(primitive, 0.01) for primitive in PRIMITIVES] for edge in strengths]


def test_none_is_never_chosen_but_weakens_its_edge():
    edges = weights(
        {"none": 0.9, "sep_conv_3x3": 0.05}, {"dil_conv_3x3": 0.3}, {}, {"max_pool_3x3": 0.2}, {"none": 0.8, "skip_connect": 0.1}
    )
    assert derive_cell(edges, steps=2) == [("dil_conv_3x3", 1), ("sep_conv_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2)]


def test_ties_go_to_the_earlier_edge_and_operation():
    assert derive_cell(weights({}, {}, {}, {}, {}), steps=2) == [("max_pool_3x3", 0), ("max_pool_3x3", 1)] * 2
    edges = weights({"sep_conv_5x5": 0.4, "sep_conv_3x3": 0.4}, {"skip_connect": 0.4})
    assert derive_cell(edges, steps=1) == [("sep_conv_3x3", 0), ("skip_connect", 1)]


def test_the_softmax_of_a_strong_none_changes_which_edges_win():
    network = Network(2, 10, 3, torch.nn.CrossEntropyLoss(), steps=2, multiplier=2)
    with torch.no_grad():
        network.alphas_normal.zero_()
        network.alphas_normal[2:, PRIMITIVES.index("sep_conv_3x3")] = torch.tensor([3.0, 2.0, 1.0])
        assert network.genotype().normal[2:] == [("sep_conv_3x3", 0), ("sep_conv_3x3", 1)]
        network.alphas_normal[2, PRIMITIVES.index("none")] = 5.0
        assert network.genotype().normal[2:] == [("sep_conv_3x3", 1), ("sep_conv_3x3", 2)]
    assert isinstance(network.genotype(), Genotype)
    assert network.genotype().normal_concat == range(2, 4)


def test_an_edge_that_is_chosen_twice_is_refused():
    """The space has a node take two inputs, of which one is not two."""
    choices = Architecture(genotypes.DARTS_V2).choices
    choices["normal_n3_switch"] = ["normal_n3_p1", "normal_n3_p1"]
    with pytest.raises(UserError, match="normal_n3_switch must name two of normal_n3_p0, normal_n3_p1, normal_n3_p2, not "):
        Architecture.of(choices, "darts")
