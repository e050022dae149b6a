"""Everything that the original code computes, in float64 (tests/golden/darts_cnn.json)."""

import golden
import pytest
import torch
import torch.nn.functional as F
from golden import close
from gradients import ARGS

import genotypes
import model_search
from architect import Architect
from architectures.cells import Cells, names
from model import NetworkCIFAR, NetworkImageNet
from speed import layers, recomputation

GOLDEN = golden.load("darts_cnn.json")
WAYS = {
    "plain": lambda network: None,
    "channels_last": lambda network: layers.set_memory_format(network, torch.device("cpu")),
    "recomputed": recomputation.recompute,
}
pytestmark = pytest.mark.usefixtures("double")


def search_network(case, way):
    network = model_search.Network(case["C"], case["num_classes"], case["layers"], torch.nn.CrossEntropyLoss())
    golden.fill(network)
    golden.fill_alphas(network, case["alpha_seed"])
    WAYS[way](network)
    return network


def check_norms(norms, expected, tolerance):
    assert norms.keys() == expected.keys()
    for name, norm in expected.items():
        close(norms[name], norm, tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", GOLDEN["search"], ids=lambda case: f"C{case['C']}-layers{case['layers']}")
def test_search_logits_and_genotype(case, way):
    x, _ = golden.batch(case["alpha_seed"] + 1, case["batch"])
    network = search_network(case, way)
    assert repr(network.genotype()) == case["genotype"]
    with torch.no_grad():
        close(network(x), case["train_logits"], 1e-8)
        close(search_network(case, way).eval()(x), case["eval_logits"], 1e-8)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", GOLDEN["search"], ids=lambda case: f"C{case['C']}-layers{case['layers']}")
@pytest.mark.parametrize(("order", "tolerance"), [("first_order", 1e-8), ("second_order", 1e-6)])
def test_three_search_steps(case, way, order, tolerance):
    network = search_network(case, way)
    seed, expected = case["alpha_seed"], case[order]
    weights = network.weight_parameters()
    optimizer = torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
    architect = Architect(network, ARGS)
    for step, row in enumerate(expected["steps"]):
        train, valid = golden.batch(seed + 10 + step, case["batch"]), golden.batch(seed + 100 + step, case["batch"])
        architect.step(*train, *valid, 0.025, optimizer, order == "second_order")
        if "alpha_grad" in row:
            for alpha, gradient in zip(network.arch_parameters(), row["alpha_grad"], strict=True):
                close(alpha.grad, gradient, tolerance)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(train[0]), train[1])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 5)
        optimizer.step()
        close(loss, row["loss"], tolerance)
        close(norm, row["grad_norm"], tolerance)

    for alpha, values in zip(network.arch_parameters(), expected["final_alphas"], strict=True):
        close(alpha, values, tolerance)
    names, state = golden.keys_shapes(network), network.state_dict()
    check_norms({name: state[name].norm() for name in names}, expected["final_norms"], tolerance)
    with torch.no_grad():
        close(network.eval()(golden.batch(seed + 999, case["batch"])[0]), expected["final_eval_logits"], tolerance)


@pytest.mark.parametrize("case", GOLDEN["discrete"], ids=lambda case: f"{case['arch']}-{case['imagenet']}")
def test_discrete_network(case):
    network = NetworkCIFAR(case["C"], case["num_classes"], case["layers"], True, names()[case["arch"]])
    golden.fill(network)
    x, y = golden.batch(case["seed"], case["batch"], case["num_classes"])
    with torch.no_grad():
        logits, auxiliary = network.eval()(x)
    assert auxiliary is None
    close(logits[:2], case["eval_logits"], 1e-8)

    golden.fill(network)
    logits, auxiliary = network.train()(x)
    main_loss = F.cross_entropy(logits, y)
    loss = main_loss + 0.4 * F.cross_entropy(auxiliary, y)
    loss.backward()
    close(main_loss, case["main_loss"], 1e-8)
    close(loss, case["train_loss"], 1e-8)
    norms = {name: parameter.grad.norm() for name, parameter in network.named_parameters()}
    check_norms(norms, case["grad_norms"], 1e-8)


@pytest.mark.parametrize(
    "case", GOLDEN["sizes"], ids=lambda case: f"{case['arch']}-{'imagenet' if case['imagenet'] else 'cifar'}"
)
def test_sizes_and_names(case):
    build, classes = (NetworkImageNet, 1000) if case["imagenet"] else (NetworkCIFAR, 10)
    with torch.device("meta"):
        network = build(case["C"], classes, case["layers"], case["auxiliary"], names()[case["arch"]])
    golden.check_names(network, case)
    millions = sum(p.numel() for name, p in network.named_parameters() if "auxiliary" not in name) / 1e6
    assert millions == pytest.approx(case["params_M_without_auxiliary"], abs=1e-9)


def test_search_network_names():
    case = GOLDEN["search_network_keys"]
    with torch.device("meta"):
        network = model_search.Network(case["C"], 10, case["layers"], torch.nn.CrossEntropyLoss())
        small = model_search.Network(2, 10, 3, torch.nn.CrossEntropyLoss())
    golden.check_names(network, case)
    assert golden.keys_shapes(small) == case["keys_shapes_of_C2_layers3"]
    assert sum(weight.numel() for weight in network.weight_parameters()) / 1e6 == pytest.approx(
        case["params_M"], abs=1e-9
    )


def test_names_of_the_small_discrete_network():
    with torch.device("meta"):
        network = NetworkCIFAR(4, 10, 5, True, genotypes.DARTS_V2)
    assert golden.keys_shapes(network) == GOLDEN["keys_shapes_of_DARTS_V2_C4_layers5"]


@pytest.mark.parametrize("case", GOLDEN["genotypes"], ids=lambda case: f"seed{case['seed']}")
def test_genotypes_derived_from_alphas(case):
    network = model_search.Network(2, 10, 3, torch.nn.CrossEntropyLoss())
    golden.fill_alphas(network, case["seed"], scale=1.0)
    assert Cells(network.genotype()).json == {field: case[field] for field in genotypes.Genotype._fields}
