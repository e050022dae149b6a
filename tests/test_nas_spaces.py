"""The known spaces: equal to the paper's network, and in the forms that others read."""

import json

import golden
import pytest
import torch
import torch.nn.functional as F

import utils
from architectures.cells import Cells, names
from experiment.errors import UserError
from genotypes import PRIMITIVES
from model import NetworkCIFAR
from model_search import Network
from nas.mutators import DartsMutator, RandomMutator, apply_fixed_architecture
from nas.search_model import SearchModel
from nas.spaces import nasbench201
from nas.spaces.darts import DartsCell, DartsNetwork
from nas.spaces.enas import ENASMacroGeneralModel, ENASMicroLayer, ENASMicroNetwork
from nas.spaces.nasbench201 import Cell201, NASBench201Network
from visualize import read_any

KNOWN = names()
DEFAULT_GENOTYPES = [
    name for name in KNOWN if name not in ("NASNet", "AmoebaNet") and not name.startswith("FAIR_DARTS")
]


@pytest.mark.usefixtures("double")
def test_the_space_of_darts_is_the_paper_s():
    """Weights and alphas copied over, the same logits, gradients and genotype."""
    paper, network = Network(2, 10, 3, torch.nn.CrossEntropyLoss()), DartsNetwork(2, 3)
    golden.fill(paper)
    golden.fill_alphas(paper, 7)
    space = SearchModel(network, DartsMutator(network))
    # Both have the stem, then per cell the preprocessing and the edges in the same order.
    ours, theirs = (
        [value for key, value in model.state_dict().items() if not golden.is_ours(key)] for model in (network, paper)
    )
    for own, other in zip(ours, theirs, strict=True):
        own.copy_(other)
    with torch.no_grad():
        for kind, alphas in (("normal", paper.alphas_normal), ("reduce", paper.alphas_reduce)):
            edges = [f"{kind}_n{node}_p{source}" for node in range(2, 6) for source in range(node)]
            for edge, row in zip(edges, alphas, strict=True):
                assert PRIMITIVES[0] == "none"
                space.mutator.choices[edge].copy_(torch.cat([row[1:], row[:1]]))

    x, y = golden.batch(8, 2, image_size=8)
    expected, actual = paper(x), space(x)
    assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)
    F.cross_entropy(expected, y).backward()
    F.cross_entropy(actual, y).backward()
    assert torch.allclose(space.mutator.choices["reduce_n5_p4"].grad.roll(1), paper.alphas_reduce.grad[-1], rtol=1e-9)
    assert Cells.of(space.export()).distance(Cells(paper.genotype())) == 0
    assert torch.allclose(space.eval()(x), paper.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DEFAULT_GENOTYPES)
def test_genotypes_convert_to_architectures_and_back(name):
    cells = Cells(KNOWN[name])
    assert Cells.of(cells.choices).distance(cells) == 0
    assert Cells.of(Cells.of(cells.choices).genotype._asdict()).choices == cells.choices


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("DARTS_V2", {"normal_n2_p0": "conv"}, "normal_n2_p0 is 'conv': known are maxpool"),
        ("DARTS_V2", {"normal_n2_switch": ["normal_n2_p0", "normal_n3_p0"]}, "normal_n2_switch must name two"),
        ("DARTS_V2", {"surplus": 1}, "surplus"),
        ("NASNet", {}, "concatenates|takes one node twice"),
        ("AmoebaNet", {}, "concatenates"),
    ],
)
def test_what_is_not_in_the_darts_space(name, change, message):
    with pytest.raises(UserError, match=message):
        Cells.of(Cells(KNOWN[name]).choices | change)


ARCHITECTURE = {
    "0_1": "conv_3x3",
    "0_2": "none",
    "1_2": "skip_connect",
    "0_3": "avg_pool_3x3",
    "1_3": "conv_1x1",
    "2_3": "conv_3x3",
}
STRING = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"


def test_the_benchmark_s_string_there_and_back(tmp_path):
    assert nasbench201.to_string(ARCHITECTURE) == STRING
    assert nasbench201.from_string(STRING) == ARCHITECTURE
    for text in (STRING, f"Structure(4 nodes with {STRING})", json.dumps({"arch": STRING})):
        (tmp_path / "found.txt").write_text(text)
        assert Cell201.read(str(tmp_path / "found.txt")).choices == ARCHITECTURE
    assert Cell201.read(STRING).choices == read_any(STRING).choices == ARCHITECTURE
    for text in ("nonsense", STRING.replace("none", "conv"), STRING.replace("~1", "~7", 1), STRING[1:]):
        with pytest.raises(UserError, match="is not a name of NAS-Bench-201"):
            nasbench201.from_string(text)
    for change in ({"0_1": "conv"}, {"0_1": 1}, {"0_4": "none"}):
        with pytest.raises(UserError, match="is not of NAS-Bench-201"):
            nasbench201.to_string(ARCHITECTURE | change)
    [cell] = Cell201(ARCHITECTURE).cells.values()
    assert cell.edges == [(key, *key.split("_"), operation) for key, operation in ARCHITECTURE.items()]


@pytest.mark.parametrize("reduction", [False, True])
def test_a_micro_layer_passes_on_its_input_in_its_own_size(reduction):
    layer = ENASMicroLayer(2, 4, 4, 4, reduction)
    RandomMutator(layer).reset()
    pp, p = torch.randn(2, 2, 4, 8, 8)
    previous, output = layer(pp, p)
    size = 4 if reduction else 8
    assert previous.shape == output.shape == (2, 4, size, size)
    assert torch.equal(previous, p) == (not reduction)


def test_networks_have_the_published_sizes():
    """Choices as the papers count them: ENAS's macro space has 6^12 * 2^66 networks, NAS-Bench-201 has 5^6 cells."""
    with torch.device("meta"):  # shapes only
        networks = ENASMacroGeneralModel(), ENASMicroNetwork(), NASBench201Network(), DartsNetwork()
    macro, micro, cell, darts = map(RandomMutator, networks)
    assert [len(choice) for choice in macro.layer_choices] == [6] * 12
    assert [len(choice) for choice in macro.input_choices] == list(range(1, 12))
    assert [len(choice) for choice in micro.layer_choices] == [5] * 20
    assert len(micro.input_choices) == 20
    assert [len(choice) for choice in cell.layer_choices] == [5] * 6
    assert not cell.input_choices
    assert [len(choice) for choice in darts.layer_choices] == [7] * 28
    assert [choice.n_chosen for choice in darts.input_choices] == [2] * 8


def test_a_network_fixed_to_cells_computes_no_more_than_theirs():
    choices, cells = Cells(KNOWN["DARTS_V2"]).choices, NetworkCIFAR(4, 10, 3, False, KNOWN["DARTS_V2"])
    assert choices["normal_n3_p2"] == []
    fixed, kept = (
        utils.count_multiply_adds(apply_fixed_architecture(DartsNetwork(4, 3), choices | more), 16)
        for more in ({}, {"normal_n3_p2": "sepconv3x3"})
    )
    assert fixed == utils.count_multiply_adds(cells, 16) < kept  # what is chosen is computed, as in NNI


@pytest.mark.parametrize(
    "build", [lambda: DartsNetwork(4, 3), lambda: ENASMicroNetwork(3, 2, 4)], ids=["darts", "enas_micro"]
)
def test_cells_drop_paths_in_training(build):
    torch.manual_seed(0)
    export = RandomMutator(build()).export()
    network = apply_fixed_architecture(build(), export)
    x = torch.randn(4, 3, 8, 8)
    assert network.drop_path_prob == 0
    for probability in (0, torch.tensor(0.5), 0.5):  # a captured step has a tensor
        network.drop_path_prob = probability
        assert torch.equal(network(x), network(x)) == (probability == 0)
    network.eval()
    assert torch.equal(network(x), network(x))


def test_drop_path_leaves_identities_alone():
    choices = Cells(KNOWN["DARTS_V2"]).choices
    cell = DartsCell(4, 2, 2, 2, False, False)
    apply_fixed_architecture(cell, {key: chosen for key, chosen in choices.items() if key.startswith("normal")})
    states = [torch.rand(2, 2, 4, 4)] * 5
    assert choices["normal_n5_switch"] == ["normal_n5_p0", "normal_n5_p2"]
    assert choices["normal_n5_p0"] == "skipconnect"
    assert torch.equal(cell.nodes[3](states, 1 - 1e-6), states[0])  # the other edge is dropped


def test_a_short_macro_network_has_no_reduction():
    for layers, reductions in ((1, 0), (2, 0), (3, 2)):
        network = ENASMacroGeneralModel(layers, 4)
        assert (len(network.layers), len(network.reductions)) == (layers, reductions)
