"""Everything that the original code computes, in float64 (tests/golden/darts_cnn.json); sizes of published networks."""

import golden
import pytest
import torch
from golden import close
from gradients import ARGS

import genotypes
import model_search
from architect import Architect
from architectures.cells import Cells
from model import NetworkCIFAR, NetworkImageNet
from speed import layers, recomputation

GOLDEN = golden.load("darts_cnn.json")
SIZES = [case for name in ("darts_cnn", "pc_darts", "fair_darts") for case in golden.load(f"{name}.json")["sizes"]]
WAYS = {
    "plain": lambda network: None,
    "channels_last": lambda network: layers.set_memory_format(network, torch.device("cpu")),
    "recomputed": recomputation.recompute,
}
searches = pytest.mark.parametrize("case", GOLDEN["search"], ids=lambda case: f"C{case['C']}-layers{case['layers']}")
pytestmark = pytest.mark.usefixtures("double")


def search_network(case, way):
    network = model_search.Network(case["C"], case["num_classes"], case["layers"], torch.nn.CrossEntropyLoss())
    golden.fill(network)
    golden.fill_alphas(network, case["alpha_seed"])
    WAYS[way](network)
    return network


@pytest.mark.parametrize("way", WAYS)
@searches
def test_search_logits_and_genotype(case, way):
    x, _ = golden.batch_of(case, 1)
    network = search_network(case, way)
    assert repr(network.genotype()) == case["genotype"]
    with torch.no_grad():
        close(network(x), case["train_logits"], 1e-8)
        close(search_network(case, way).eval()(x), case["eval_logits"], 1e-8)


@pytest.mark.parametrize("way", WAYS)
@searches
@pytest.mark.parametrize(("order", "tolerance"), [("first_order", 1e-8), ("second_order", 1e-6)])
def test_three_search_steps(case, way, order, tolerance):
    network = search_network(case, way)
    architect = Architect(network, ARGS)
    golden.check_steps(case, network, architect, case[order], 0.025, order == "second_order", tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", GOLDEN["discrete"], ids=lambda case: f"{case['arch']}-{case['imagenet']}")
def test_discrete_network(case, way):
    network = NetworkCIFAR(case["C"], case["num_classes"], case["layers"], True, golden.cell(case["arch"]))
    WAYS[way](network)
    golden.check_discrete(case, network)


@pytest.mark.parametrize("case", SIZES, ids=lambda case: f"{case['arch']}-{case.get('imagenet')}")
def test_sizes_and_names(case):
    build, classes = (NetworkImageNet, 1000) if case.get("imagenet") else (NetworkCIFAR, 10)
    with torch.device("meta"):
        network = build(case["C"], classes, case["layers"], case.get("auxiliary", False), golden.cell(case["arch"]))
    if "keys" in case:
        golden.check_names(network, case)
    millions = sum(p.numel() for name, p in network.named_parameters() if "auxiliary" not in name) / 1e6
    assert millions == pytest.approx(case["params_M_without_auxiliary"], abs=1e-9)


def test_names_of_searched_and_small_networks():
    case = GOLDEN["search_network_keys"]
    with torch.device("meta"):
        network = model_search.Network(case["C"], 10, case["layers"], torch.nn.CrossEntropyLoss())
        small = model_search.Network(2, 10, 3, torch.nn.CrossEntropyLoss())
        discrete = NetworkCIFAR(4, 10, 5, True, genotypes.DARTS_V2)
    golden.check_names(network, case)
    assert golden.keys_shapes(small) == case["keys_shapes_of_C2_layers3"]
    assert golden.keys_shapes(discrete) == GOLDEN["keys_shapes_of_DARTS_V2_C4_layers5"]
    millions = sum(weight.numel() for weight in network.weight_parameters()) / 1e6
    assert millions == pytest.approx(case["params_M"], abs=1e-9)


@pytest.mark.parametrize("case", GOLDEN["genotypes"], ids=lambda case: f"seed{case['seed']}")
def test_genotypes_derived_from_alphas(case):
    network = model_search.Network(2, 10, 3, torch.nn.CrossEntropyLoss())
    golden.fill_alphas(network, case["seed"], scale=1.0)
    assert Cells(network.genotype()).json == {field: case[field] for field in genotypes.Genotype._fields}
