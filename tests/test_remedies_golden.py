"""What the authors' code of the remedies computes, in float64 (tests/golden/)."""

from functools import partial
from types import SimpleNamespace

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import check_steps, close
from gradients import ARGS
from torch import nn

import genotypes
import model_search
from architectures.cells import Cells
from genotypes import CELLS
from model import NetworkCIFAR
from nas import relaxation, supernet
from nas.edges import Edge
from nas.relaxation import (
    Adversarial,
    Dirichlet,
    Gumbel,
    Perturbed,
    Relaxation,
    Sigmoid,
    concentration,
    divergence,
    onto_simplex,
)
from nas.strategies import Darts, Drnas
from nas.supernet import Supernet

PC, MINUS, FAIR, SMOOTH, GDAS, DR = (
    golden.load(f"{name}.json") for name in ("pc_darts", "darts_minus", "fair_darts", "sdarts", "gdas", "drnas")
)
WITHOUT_NONE = genotypes.PRIMITIVES[1:]
pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def candidates(monkeypatch):
    """Replaces the candidates: some authors leave `none` out, or have another order."""

    def replace(operations):
        for module in (model_search, supernet):
            monkeypatch.setattr(module, "PRIMITIVES", operations)

    return replace


@pytest.fixture
def drawn(monkeypatch):
    """Replaces a method of tensors that draws random numbers by a function of their shape."""
    return lambda method, draw: monkeypatch.setattr(
        torch.Tensor, method, lambda like, *_: torch.as_tensor(draw(like.shape))
    )


def lists(genotype):
    return {cell: [list(edge) for edge in getattr(genotype, cell)] for cell in CELLS}


def filled(case, **remedies):
    network = Supernet(case["C"], case["num_classes"], case["layers"], nn.CrossEntropyLoss(), **remedies)
    golden.fill(network)
    golden.fill_alphas(network, case["arch_seed"])
    return network


def check_gradients(module, expected, theirs=str, least=0):
    """The norms of the weights' gradients, by their names; those below `least` are left out."""
    grads = {theirs(name): parameter.grad for name, parameter in module.named_parameters() if "alphas" not in name}
    norms = {name: grad.norm() for name, grad in grads.items() if grad is not None and grad.norm() >= least}
    expected = {name: norm for name, norm in expected.items() if norm >= least}
    assert norms.keys() == expected.keys()
    close(torch.stack(list(norms.values())), [expected[name] for name in norms], 1e-8)


def check_pass(network, case):
    """A pass in training mode with its gradients."""
    x, y = golden.batch_of(case, 1)
    logits = network(x)
    loss = F.cross_entropy(logits, y) if "loss_parts" not in case else network.criterion(logits, y)
    loss.backward()
    close(logits, case["train_logits"], 1e-8)
    close(loss, case["train_loss"], 1e-8)
    gradients = case["arch_grads"] if "arch_grads" in case else case["arch_grad"]
    for alpha, gradient in zip(network.arch_parameters(), gradients, strict=True):
        close(alpha.grad, gradient, 1e-8)


def check_search(case, make):
    """A pass in training mode, one in evaluation mode, and the names."""
    network = make()
    golden.check_names(network, case)
    assert sum(weight.numel() for weight in network.weight_parameters()) == case["params"]
    check_pass(network, case)
    gradients = [weight.grad.norm() for weight in network.weight_parameters() if weight.grad is not None]
    close(torch.stack(gradients).norm(), case["weight_grad_norm"], 1e-8)
    with torch.no_grad():
        close(make().eval()(golden.batch_of(case, 1)[0]), case["eval_logits"], 1e-8)


@pytest.mark.parametrize("case", PC["search"], ids=lambda case: f"C{case['C']}-layers{case['layers']}")
def test_pc_darts_search(case):
    def make():
        return filled(case, partial_channels=case["K"])

    check_search(case, make)
    network = make()
    assert lists(network.genotype()) == {cell: case["genotype"][cell] for cell in CELLS}
    for weights, cell in zip(network.edge_weights(), CELLS, strict=True):
        close(weights, case["edge_weights"][cell], 1e-12)


@pytest.mark.parametrize("kind", ["first_order", "second_order", "warmup"])
def test_pc_darts_steps(kind):
    case = PC["search"][0]  # the other holds no steps
    network = filled(case, partial_channels=case["K"])
    args = SimpleNamespace(**vars(ARGS) | {"arch_learning_rate": 6e-4})
    second, warmup = kind == "second_order", 15 if kind == "warmup" else 0
    check_steps(case, network, Darts(network, args), case[kind], 0.1, second, 1e-6 if second else 1e-8, warmup)


@pytest.mark.parametrize("case", PC["mixed_op"], ids=lambda case: f"C{case['C']}-stride{case['stride']}-K{case['K']}")
def test_an_edge_of_partial_channels(case):
    edge = Edge(case["C"], case["stride"], case["K"])
    golden.fill(edge)
    r = np.random.RandomState(case["seed"])
    x = torch.as_tensor(r.randn(case["batch"], case["C"], case["size"], case["size"])).requires_grad_()
    weights = torch.softmax(torch.as_tensor(r.randn(8)), 0).requires_grad_()
    out = edge(x, torch.cat([weights, torch.ones(1)]))  # the weight of the edge is 1
    (out * torch.as_tensor(r.randn(*out.shape))).sum().backward()
    close(out.sum((0, 2, 3)), case["output_channel_sums"], 1e-8)
    close(out.norm(), case["output_norm"], 1e-8)
    close(x.grad.square().sum((0, 2, 3)).sqrt(), case["x_grad_channel_norms"], 1e-8)
    close(weights.grad, case["w_grad"], 1e-8)
    check_gradients(edge, case["weight_grad_norms"])


def test_pc_darts_genotypes():
    network = Supernet(4, 10, 3, nn.CrossEntropyLoss(), partial_channels=4)
    for case in PC["genotypes"]:
        golden.fill_alphas(network, case["seed"], case["scale"])
        assert lists(network.genotype()) == {cell: case[cell] for cell in CELLS}
    with torch.no_grad():
        for parameter in network.arch_parameters():
            parameter.zero_()
    assert lists(network.genotype())["normal"] == PC["genotype_of_all_zeros"]["normal"]


def test_pc_darts_size():
    case = PC["supernets"][0]  # the other's stem is that for ImageNet
    sizes = case["C"], case["num_classes"], case["layers"], nn.CrossEntropyLoss()
    with torch.device("meta"):
        network = Supernet(*sizes, partial_channels=case["K"])
    golden.check_names(network, case)
    parameters = sum(weight.numel() for weight in network.weight_parameters()) / 1e6
    assert parameters == pytest.approx(case["params_M"], abs=1e-9)


def test_the_published_cells_of_pc_darts():
    for name, cell in PC["published_genotypes"].items():
        assert Cells(golden.cell(name)).json == cell


def test_darts_minus():
    [case] = [case for case in MINUS["search"] if case["space"] == "s5"]

    def make():
        network = filled(case, relaxation=Relaxation(50, auxiliary_skip=1.0))
        network.relaxation.auxiliary_weight.fill_(case["beta"])
        return network

    check_search(case, make)
    network = make()
    assert lists(network.genotype())["normal"] == case["genotype"]["normal"]
    check_steps(case, network, Darts(network, ARGS), case["first_order"], 0.025)


SCHEDULES = {
    "SDARTS": (partial(Perturbed, 50), "radius", SMOOTH["epsilon_of_epochs_0_to_49"]),
    "GDAS": (partial(Gumbel, 250), "temperature", GDAS["tau_of_epochs"]),
}
for case in MINUS["beta_schedule"]:
    decay = case["decay"] or "none", case["T_start"], case["T_stop"]
    make = partial(Relaxation, case["T_max"], float(case["base"]), decay)
    SCHEDULES[f"DARTS-, {decay}"] = make, "auxiliary_weight", case["beta_of_epochs_0_to_49"]
SCHEDULES["DARTS-, which never decays"] = (
    partial(Relaxation, 3, 0.5, ("linear", 9, None)),
    "auxiliary_weight",
    [0.5] * 3,
)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule(name):
    make, value, expected = SCHEDULES[name]
    relaxation, found = make(), []
    for epoch in range(len(expected)):
        relaxation.begin_epoch(epoch)
        found.append(getattr(relaxation, value).item())
    close(found, expected, 1e-12)


@pytest.mark.parametrize("case", FAIR["search"], ids=lambda case: case["loss_parts"]["kind"])
def test_fair_darts(case, candidates):
    candidates(WITHOUT_NONE)
    l2 = case["loss_parts"]["kind"] == "l2"

    def make():
        network = filled(case, relaxation=Sigmoid(), zero_one_weight=case["loss_parts"]["weight"])
        if not l2:  # which is no option here: that loss alone is the authors' other one
            network.criterion.zero_one = lambda: -(torch.cat(network.arch_parameters()).sigmoid() - 0.5).abs().mean()
        return network

    check_search(case, make)
    if l2:
        close(make().criterion.zero_one(), case["loss_parts"]["zero_one"], 1e-8)
        network = make()
        args = SimpleNamespace(**vars(ARGS) | {"arch_learning_rate": 3e-3, "arch_beta1": 0.9})
        check_steps(case, network, Darts(network, args), case["steps"], 0.005)


def triples(genotype, cell):
    """[operation, node, source] of the edges that are not `none`."""
    return [list(edge) for edge in genotypes.triples(getattr(genotype, cell)) if edge[0] != "none"]


@pytest.mark.parametrize("case", FAIR["genotypes"], ids=lambda case: str(case["seed"]))
def test_fair_darts_genotypes(case, candidates):
    candidates(WITHOUT_NONE)
    for rule, threshold in (("darts", 0.0), ("threshold_sparse", 0.85), ("threshold_edge", 0.85)):
        gate_rule = "edge" if rule == "threshold_edge" else "node"
        network = Supernet(2, 10, 3, nn.CrossEntropyLoss(), Sigmoid(threshold=threshold), gate_rule=gate_rule)
        golden.fill_alphas(network, case["seed"], case["scale"])
        genotype = network.genotype()
        if rule == "darts":
            assert lists(genotype) == case[rule]
            continue
        for cell in CELLS:
            nodes = {node for _, node, _ in case[rule][cell]}
            # The authors' network ignores what comes from a node without edges; here the genotype leaves it out.
            assert triples(genotype, cell) == [edge for edge in case[rule][cell] if edge[2] in nodes | {0, 1}]
            assert set(getattr(genotype, f"{cell}_concat")) == nodes


@pytest.mark.parametrize("name", FAIR["published_genotypes"])
def test_the_published_cells_of_fair_darts(name):
    genotype = golden.cell(name)
    for cell in CELLS:
        edges = FAIR["published_genotypes"][name][cell]
        nodes = {node for _, node, _ in edges}
        assert triples(genotype, cell) == [edge for edge in edges if edge[2] in nodes | {0, 1}]
        assert set(getattr(genotype, f"{cell}_concat")) == nodes


@pytest.mark.parametrize("form", ["pairs", "triples"])
@pytest.mark.parametrize("case", FAIR["discrete"], ids=lambda case: case["arch"])
def test_a_discrete_network_of_fair_darts(case, form):
    """Names differ: theirs are by node and input."""
    genotype = golden.cell(case["arch"])
    if form == "triples":
        genotype = genotype._replace(**{cell: triples(genotype, cell) for cell in CELLS})
    network = NetworkCIFAR(case["C"], 10, case["layers"], True, genotype)

    def theirs(key):
        parts = key.split(".")
        if parts[2:3] != ["_ops"]:
            return key
        reduction = int(parts[1]) in (case["layers"] // 3, 2 * case["layers"] // 3)
        edges = [edge[1:] for edge in genotypes.triples(genotype.reduce if reduction else genotype.normal)]
        index = int(parts[3])
        return ".".join([*parts[:3], *map(str, edges[index]), str(edges[:index].count(edges[index])), *parts[4:]])

    golden.check_discrete(case, network, theirs)


@pytest.mark.parametrize("case", SMOOTH["search"], ids=lambda case: case["perturb"])
def test_smooth_darts(case, candidates, drawn):
    candidates(case["ops"])
    seeds = iter([row["noise_seed"] for row in case["steps"]])
    relaxation = {"random": Perturbed, "pgd_linf": Adversarial}[case["perturb"]](50)
    draws = relaxation.before_weights

    def before_weights(train_loss):
        r = np.random.RandomState(next(seeds))
        drawn("uniform_", lambda shape: r.uniform(-1, 1, shape))
        draws(train_loss)

    relaxation.before_weights = before_weights
    network = filled(case, relaxation=relaxation)
    check_steps(case, network, Darts(network, ARGS), case, 0.025)
    assert lists(network.genotype())["normal"] == case["genotype"]["normal"]


@pytest.mark.parametrize("case", SMOOTH["clip"], ids=lambda case: f"{case['ops']} operations")
def test_perturbed_weights_are_weights(case):
    values = torch.as_tensor(np.random.RandomState(case["seed"]).uniform(-0.6, 0.5, (14, case["ops"])))
    close(onto_simplex(values), case["result"], 1e-12)


@pytest.mark.parametrize("case", GDAS["sampler"], ids=lambda case: str(case["seed"]))
def test_gdas_sampler(case, drawn):
    r = np.random.RandomState(case["seed"])
    shape = (case["rows"], case["ops"])
    alphas = torch.as_tensor(0.5 * r.randn(*shape)).requires_grad_()
    exponential, weights = torch.as_tensor(r.exponential(size=shape)), torch.as_tensor(r.randn(*shape))
    drawn("exponential_", lambda shape: exponential)
    one_hot = relaxation.sample(alphas, torch.tensor(case["tau"]))
    assert one_hot.argmax(1).tolist() == case["index"]
    (one_hot * weights).sum().backward()
    close(alphas.grad, case["alpha_grad"], 1e-8)


THEIRS = {  # in their order
    "none": "none",
    "skip_connect": "skip_connect",
    "sep_conv_3x3": "dua_sepc_3x3",
    "sep_conv_5x5": "dua_sepc_5x5",
    "dil_conv_3x3": "dil_sepc_3x3",
    "dil_conv_5x5": "dil_sepc_5x5",
    "avg_pool_3x3": "avg_pool_3x3",
    "max_pool_3x3": "max_pool_3x3",
}


def test_a_network_of_gdas(candidates, drawn):
    """Theirs has no BatchNorm after pooling, one before the global pooling, and biases that BatchNorm takes away."""
    candidates(list(THEIRS))
    [case] = [case for case in GDAS["networks"] if case["network"] == "nasnet"]
    network = Supernet(case["C"], case["num_classes"], 3 * case["N"], nn.CrossEntropyLoss(), Gumbel())
    for edge in (edge for cell in network.cells for edge in cell._ops):
        edge._ops[6], edge._ops[7] = edge._ops[6][0], edge._ops[7][0]
    network.global_pooling = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU(), network.global_pooling)
    edges = [f"{node}<-{source}" for node in range(4) for source in range(2 + node)]

    def theirs(key):
        key = key.replace("global_pooling.0", "lastact.0")
        parts = key.split(".")
        if parts[2:3] == ["_ops"]:
            tail, operation = parts[6:], int(parts[5])
            if operation in (2, 3):  # a separable convolution is two of theirs
                half, index = divmod(int(tail[1]), 4)
                tail = ["op_" + "ab"[half], "op", str(index), *tail[2:]]
            parts = [*parts[:2], "edges", edges[int(parts[3])], "_ops", str(operation), *tail]
        return ".".join(parts).replace("conv_1.", "convs.0.").replace("conv_2.", "convs.1.")

    ours = {theirs(key): shape for key, shape in golden.keys_shapes(network).items()}
    assert ours == {key: shape for key, shape in case["keys_shapes"].items() if key in ours}
    golden.fill(network, theirs)
    golden.fill_alphas(network, case["arch_seed"])
    network.relaxation.temperature.fill_(case["tau"])
    r = np.random.RandomState(case["noise_seed"])
    drawn("exponential_", lambda shape: r.exponential(size=shape))
    check_pass(network, case)
    check_gradients(network, case["weight_grad_norms"], theirs, 1e-12)


@pytest.mark.parametrize("case", GDAS["genotypes"], ids=lambda case: str(case["seed"]))
def test_gdas_genotypes(case, candidates):
    """Theirs may take both operations of a node from one input; here a node takes two inputs."""
    candidates(list(THEIRS))
    network = Supernet(2, 10, 3, nn.CrossEntropyLoss(), Gumbel())
    golden.fill_alphas(network, case["seed"], 1.0)
    compared = 0
    for cell in CELLS:
        edges = getattr(network.genotype(), cell)
        for node, expected in enumerate(case[cell]):
            if expected[0][1] != expected[1][1]:
                assert [[THEIRS[name], source] for name, source in edges[2 * node : 2 * node + 2]] == expected
                compared += 1
    assert compared == 8 - case["nodes_with_both_ops_from_one_input"]


# ---- DrNAS


def test_drnas_concentration():
    alphas = torch.tensor(DR["concentration"]["alpha"], requires_grad=True)
    values = concentration(alphas)
    close(values, DR["concentration"]["concentration"], 1e-8)
    close(torch.autograd.grad(values.sum(), alphas)[0], DR["concentration"]["derivative"], 1e-8)


def rows(case):
    return torch.as_tensor(
        case["scale"] * np.random.RandomState(case["arch_seed"]).randn(case["rows"], case["ops"])
    ).requires_grad_()


@pytest.mark.parametrize("case", DR["kl"], ids=lambda case: str(case["arch_seed"]))
def test_drnas_divergence(case):
    alphas = rows(case)
    total = divergence(alphas)
    close(total, case["kl_sum"], 1e-8)
    close(torch.autograd.grad(total, alphas)[0], case["arch_grad_of_sum"], 1e-8)


@pytest.mark.parametrize(
    "case",
    [case for case in DR["mixing"] if case["species"] == "dirichlet" and "keep" not in case],
    ids=lambda case: str(case["arch_seed"]),
)
def test_drnas_samples(case, monkeypatch):
    golden.draw(case, monkeypatch)
    alphas = rows(case)
    [weights] = Dirichlet().mixed([alphas])
    close(weights, case["mixing"], 1e-8)
    upstream = np.random.RandomState(case["upstream_seed"]).randn(case["rows"], case["ops"])
    close(torch.autograd.grad((weights * torch.as_tensor(upstream)).sum(), alphas)[0], case["arch_grad"], 1e-8)


def drnas_network(case):
    sizes = case["C"], case["num_classes"], case["layers"], nn.CrossEntropyLoss()
    network = Supernet(*sizes, Dirichlet(), partial_channels=case["k"])
    golden.fill_by_shape(network)
    golden.fill_alphas(network, case["arch_seed"])
    return network


@pytest.mark.parametrize(
    "case",
    [case for case in DR["darts"]["search"] if case["space"] == "cifar" and "keep" not in case],
    ids=lambda case: str(case["arch_seed"]),
)
def test_a_network_of_drnas(case, candidates, monkeypatch):
    candidates(DR["operations"]["darts"])
    network = drnas_network(case)
    golden.draw(case, monkeypatch)
    assert sum(weight.numel() for weight in network.weight_parameters()) == case["parameters"]
    check_pass(network, case)
    assert str(network.genotype()) == case["genotype"]


@pytest.mark.parametrize(
    "case", [case for case in DR["darts"]["steps"] if case["space"] == "cifar"], ids=lambda case: str(case["arch_seed"])
)
def test_steps_of_drnas(case, candidates, monkeypatch):
    candidates(DR["operations"]["darts"])
    network = drnas_network(case)
    kl = case["reg_scale"] if case["reg_type"] == "kl" else 0.0
    args = {"arch_learning_rate": case["arch_lr"], "arch_weight_decay": 0.0 if kl else case["reg_scale"]}
    architect = Drnas(network, SimpleNamespace(**vars(ARGS) | args), kl)
    golden.draw(case, monkeypatch)
    last = partial(golden.draw, case, monkeypatch, 1)
    check_steps(case, network, architect, case, case["lr"], clip=case["grad_clip"], draw=last)
