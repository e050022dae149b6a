"""What the authors' code of the remedies computes, in float64
(tests/golden/{pc_darts,darts_minus,fair_darts,sdarts,gdas,drnas}.json).
"""

from functools import partial
from types import SimpleNamespace

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import close
from torch import nn

import genotypes
import model_search
from architectures.cells import Cells, names
from genotypes import CELLS
from model import NetworkCIFAR, NetworkImageNet
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
ARGS = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3)

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def without_none(monkeypatch):
    """Some authors leave `none` out."""
    for module in (model_search, supernet):
        monkeypatch.setattr(module, "PRIMITIVES", WITHOUT_NONE)


def filled(case, **remedies):
    network = Supernet(case["C"], case["num_classes"], case["layers"], nn.CrossEntropyLoss(), **remedies)
    golden.fill(network)
    golden.fill_alphas(network, case["arch_seed"])
    return network


def batch(case, number):
    return golden.batch(case["arch_seed"] + number, case["batch"], case["num_classes"], case["size"])


def check_search(case, make):
    """A pass in training mode with its gradients, one in evaluation mode, and the names."""
    network, (x, y) = make(), batch(case, 1)
    shapes = golden.keys_shapes(network)
    assert (len(shapes), golden.sha256(shapes)) == (case["keys"], case["keys_shapes_sha256"])
    assert sum(weight.numel() for weight in network.weight_parameters()) == case["params"]
    logits = network(x)
    loss = F.cross_entropy(logits, y) if "loss_parts" not in case else network.criterion(logits, y)
    close(logits, case["train_logits"], 1e-8)
    close(loss, case["train_loss"], 1e-8)
    loss.backward()
    for alpha, gradient in zip(network.arch_parameters(), case["arch_grads"], strict=True):
        close(alpha.grad, gradient, 1e-8)
    gradients = [weight.grad.norm() for weight in network.weight_parameters() if weight.grad is not None]
    close(torch.stack(gradients).norm(), case["weight_grad_norm"], 1e-8)
    network = make().eval()
    with torch.no_grad():
        close(network(x), case["eval_logits"], 1e-8)


def check_steps(case, network, architect, expected, lr, unrolled=False, tolerance=1e-8, warmup=0, clip=5, draw=None):
    """Steps of both levels, one an epoch. `draw`, if given, sets the draws of the last evaluation."""
    weights = network.weight_parameters()
    optimizer = torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=3e-4)
    for number, row in enumerate(expected["steps"]):
        train, valid = batch(case, 10 + number), batch(case, 100 + number)
        architect.begin_epoch(row.get("epoch", 0))
        if row.get("epoch", 0) >= warmup:
            architect.step(*train, *valid, lr, optimizer, unrolled)
        for alpha, gradient in zip(network.arch_parameters(), row.get("arch_grad", ()), strict="arch_grad" in row):
            close(alpha.grad, gradient, tolerance)
        if "noise_seed" in row:
            close(network.relaxation.radius, row["epsilon"], 1e-12)
            close(torch.stack(network.mixing_weights()), row["perturbed"], 1e-8)
        optimizer.zero_grad()
        logits = network(train[0])
        loss = F.cross_entropy(logits, train[1]) if "arch_zero_one" not in row else network.criterion(logits, train[1])
        loss.backward(inputs=weights)
        norm = nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        for found, name in ((loss, "loss"), (norm, "grad_norm")):
            close(
                found,
                row[name] if name in row else row[{"loss": "train_loss", "grad_norm": "clip_norm"}[name]],
                tolerance,
            )
    for alpha, values in zip(network.arch_parameters(), expected["final_arch"], strict=True):
        close(alpha, values, tolerance)
    if "final_norms" in expected:
        state = network.state_dict()
        norms = {name: state[name].norm() for name in golden.keys_shapes(network)}
        assert norms.keys() == expected["final_norms"].keys()
        close(torch.stack(list(norms.values())), [expected["final_norms"][name] for name in norms], tolerance)
    architect.settle([])
    if draw is not None:
        draw()
    with torch.no_grad():
        close(network.eval()(batch(case, 999)[0]), expected["final_eval_logits"], tolerance)


# ---- PC-DARTS


@pytest.mark.parametrize("case", PC["search"], ids=lambda case: f"C{case['C']}-layers{case['layers']}")
def test_pc_darts_search(case):
    def make():
        return filled(case, partial_channels=case["K"])

    check_search(case, make)
    network = make()
    assert network.genotype() == Cells.of(case["genotype"]).genotype._replace(
        normal_concat=range(2, 6), reduce_concat=range(2, 6)
    )
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
    norms = {name: parameter.grad.norm() for name, parameter in edge.named_parameters()}
    assert norms.keys() == case["weight_grad_norms"].keys()
    close(torch.stack(list(norms.values())), list(case["weight_grad_norms"].values()), 1e-8)


def test_pc_darts_genotypes():
    network = Supernet(4, 10, 3, nn.CrossEntropyLoss(), partial_channels=4)
    for case in PC["genotypes"]:
        golden.fill_alphas(network, case["seed"], case["scale"])
        assert {cell: [list(edge) for edge in getattr(network.genotype(), cell)] for cell in CELLS} == {
            cell: case[cell] for cell in CELLS
        }
    with torch.no_grad():
        for parameter in network.arch_parameters():
            parameter.zero_()
    assert [list(edge) for edge in network.genotype().normal] == PC["genotype_of_all_zeros"]["normal"]


def test_pc_darts_size():
    case = PC["supernets"][0]  # the other's stem is that for ImageNet
    with torch.device("meta"):
        network = Supernet(
            case["C"], case["num_classes"], case["layers"], nn.CrossEntropyLoss(), partial_channels=case["K"]
        )
    shapes = golden.keys_shapes(network)
    assert (len(shapes), golden.sha256(shapes)) == (case["keys"], case["keys_shapes_sha256"])
    assert sum(weight.numel() for weight in network.weight_parameters()) / 1e6 == pytest.approx(
        case["params_M"], abs=1e-9
    )


KNOWN = {"PC_DARTS_cifar": "PC_DARTS_CIFAR", "PC_DARTS_image": "PC_DARTS_IMAGENET"}


def test_the_published_cells_of_pc_darts():
    for name, cell in PC["published_genotypes"].items():
        assert Cells(names()[KNOWN[name]]).json == cell


@pytest.mark.parametrize("case", PC["sizes"], ids=lambda case: case["arch"])
def test_the_published_networks_of_pc_darts(case):
    build = NetworkImageNet if case["imagenet"] else NetworkCIFAR
    with torch.device("meta"):
        network = build(
            case["C"], 1000 if case["imagenet"] else 10, case["layers"], case["auxiliary"], names()[KNOWN[case["arch"]]]
        )
    shapes = golden.keys_shapes(network)
    assert (len(shapes), golden.sha256(shapes)) == (case["keys"], case["keys_shapes_sha256"])


# ---- DARTS-


@pytest.mark.parametrize(
    "case", [case for case in MINUS["search"] if case["space"] == "s5"], ids=lambda case: case["space"]
)
def test_darts_minus(case):
    def make():
        network = filled(case, relaxation=Relaxation(50, auxiliary_skip=1.0))
        network.relaxation.auxiliary_weight.fill_(case["beta"])
        return network

    check_search(case, make)
    assert repr(make().genotype().normal) == repr([tuple(edge) for edge in case["genotype"]["normal"]])
    network = make()
    check_steps(case, network, Darts(network, ARGS), case["first_order"], 0.025)


@pytest.mark.parametrize("case", MINUS["beta_schedule"], ids=lambda case: f"{case['decay']} from {case['T_start']}")
def test_the_auxiliary_weight_decays(case):
    decay = case["decay"] or "none", case["T_start"], case["T_stop"]
    decaying, found = Relaxation(case["T_max"], float(case["base"]), decay), []
    for epoch in range(50):
        decaying.begin_epoch(epoch)
        found.append(decaying.auxiliary_weight.item())
    close(found, case["beta_of_epochs_0_to_49"], 1e-12)


# ---- FairDARTS


@pytest.mark.parametrize("case", FAIR["search"], ids=lambda case: case["loss_parts"]["kind"])
def test_fair_darts(case, without_none):
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


@pytest.mark.parametrize("case", FAIR["genotypes"], ids=lambda case: str(case["seed"]))
def test_fair_darts_genotypes(case, without_none):
    network = Supernet(2, 10, 3, nn.CrossEntropyLoss(), Sigmoid())
    golden.fill_alphas(network, case["seed"], case["scale"])
    sparse = Supernet(2, 10, 3, nn.CrossEntropyLoss(), Sigmoid(threshold=0.85))
    golden.fill_alphas(sparse, case["seed"], case["scale"])
    for cell in CELLS:
        assert [list(edge) for edge in getattr(network.genotype(), cell)] == case["darts"][cell]
        edges = getattr(sparse.genotype(), cell)
        found = [[name, 2 + index // 2, source] for index, (name, source) in enumerate(edges) if name != "none"]
        nodes = {2, 3, 4, 5} & {node for _, node, _ in case["threshold_sparse"][cell]}
        # The authors' network ignores what comes from a node without edges; here the genotype leaves it out.
        assert found == [edge for edge in case["threshold_sparse"][cell] if edge[2] in nodes | {0, 1}]


@pytest.mark.parametrize("name", FAIR["published_genotypes"])
def test_the_published_cells_of_fair_darts(name):
    genotype = names()[name.replace("FairDARTS_", "FAIR_DARTS_").upper()]
    for cell in CELLS:
        edges = FAIR["published_genotypes"][name][cell]
        nodes = {node for _, node, _ in edges}
        found = [
            [operation, 2 + index // 2, source] for index, (operation, source) in enumerate(getattr(genotype, cell))
        ]
        assert [edge for edge in found if edge[0] != "none"] == [edge for edge in edges if edge[2] in nodes | {0, 1}]
        assert set(getattr(genotype, f"{cell}_concat")) == nodes
    [size] = [case for case in FAIR["sizes"] if case["arch"] == name]
    with torch.device("meta"):
        network = NetworkCIFAR(size["C"], 10, size["layers"], False, genotype)
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert parameters == pytest.approx(size["params_M_without_auxiliary"], abs=1e-6)


@pytest.mark.parametrize("case", FAIR["discrete"], ids=lambda case: case["arch"])
def test_a_discrete_network_of_fair_darts(case):
    """Names differ: theirs are by node and input."""
    genotype = names()[case["arch"].replace("FairDARTS_", "FAIR_DARTS_").upper()]
    network = NetworkCIFAR(case["C"], 10, case["layers"], True, genotype)

    def theirs(key):
        parts = key.split(".")
        if parts[2:3] != ["_ops"]:
            return key
        reduction = int(parts[1]) in (case["layers"] // 3, 2 * case["layers"] // 3)
        index, edges = int(parts[3]), genotype.reduce if reduction else genotype.normal
        before = sum(source == edges[index][1] for _, source in edges[2 * (index // 2) : index])
        return ".".join([*parts[:3], str(2 + index // 2), str(edges[index][1]), str(before), *parts[4:]])

    golden.fill(network, theirs)
    x, y = golden.batch(case["seed"], case["batch"], 10)
    with torch.no_grad():
        close(network.eval()(x)[0][:2], case["eval_logits"], 1e-8)
    golden.fill(network, theirs)
    logits, auxiliary = network.train()(x)
    main = F.cross_entropy(logits, y)
    loss = main + 0.4 * F.cross_entropy(auxiliary, y)
    close(main, case["main_loss"], 1e-8)
    close(loss, case["train_loss"], 1e-8)
    loss.backward()
    norms = {
        theirs(name): parameter.grad.norm()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    assert norms.keys() == case["grad_norms"].keys()
    close(torch.stack(list(norms.values())), [case["grad_norms"][name] for name in norms], 1e-8)


# ---- SDARTS


@pytest.mark.parametrize("case", SMOOTH["search"], ids=lambda case: case["perturb"])
def test_smooth_darts(case, monkeypatch):
    for module in (model_search, supernet):
        monkeypatch.setattr(module, "PRIMITIVES", case["ops"])
    seeds = iter([row["noise_seed"] for row in case["steps"]])
    relaxation = {"random": Perturbed, "pgd_linf": Adversarial}[case["perturb"]](50)
    draws = relaxation.before_weights

    def before_weights(train_loss):
        r = np.random.RandomState(next(seeds))
        monkeypatch.setattr(torch.Tensor, "uniform_", lambda like, *_: torch.as_tensor(r.uniform(-1, 1, like.shape)))
        draws(train_loss)

    relaxation.before_weights = before_weights
    network = filled(case, relaxation=relaxation)
    check_steps(case, network, Darts(network, ARGS), case, 0.025)
    assert [list(edge) for edge in network.genotype().normal] == case["genotype"]["normal"]


@pytest.mark.parametrize("case", SMOOTH["clip"], ids=lambda case: f"{case['ops']} operations")
def test_perturbed_weights_are_weights(case):
    values = torch.as_tensor(np.random.RandomState(case["seed"]).uniform(-0.6, 0.5, (14, case["ops"])))
    close(onto_simplex(values), case["result"], 1e-12)


def test_the_radius_grows():
    perturbed, found = Perturbed(50), []
    for epoch in range(50):
        perturbed.begin_epoch(epoch)
        found.append(perturbed.radius.item())
    close(found, SMOOTH["epsilon_of_epochs_0_to_49"], 1e-12)


# ---- GDAS


@pytest.mark.parametrize("case", GDAS["sampler"], ids=lambda case: str(case["seed"]))
def test_gdas_sampler(case, monkeypatch):
    r = np.random.RandomState(case["seed"])
    shape = (case["rows"], case["ops"])
    alphas = torch.as_tensor(0.5 * r.randn(*shape)).requires_grad_()
    exponential, weights = torch.as_tensor(r.exponential(size=shape)), torch.as_tensor(r.randn(*shape))
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda like: exponential)
    drawn = relaxation.sample(alphas, torch.tensor(case["tau"]))
    assert drawn.argmax(1).tolist() == case["index"]
    (drawn * weights).sum().backward()
    close(alphas.grad, case["alpha_grad"], 1e-8)


def test_gdas_temperature():
    gumbel, found = Gumbel(250), []
    for epoch in range(250):
        gumbel.begin_epoch(epoch)
        found.append(gumbel.temperature.item())
    close(found, GDAS["tau_of_epochs"], 1e-12)


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


@pytest.fixture
def their_order(monkeypatch):
    for module in (model_search, supernet):
        monkeypatch.setattr(module, "PRIMITIVES", list(THEIRS))


def test_a_network_of_gdas(their_order, monkeypatch):
    """Their network has no BatchNorm after pooling, one before the global pooling, and biases that the next BatchNorm
    takes away again.
    """
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
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda like: torch.as_tensor(r.exponential(size=like.shape)))
    x, y = batch(case, 1)
    logits = network(x)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    close(logits, case["train_logits"], 1e-8)
    close(loss, case["train_loss"], 1e-8)
    for alphas, gradient in zip(network.arch_parameters(), case["arch_grads"], strict=True):
        close(alphas.grad, gradient, 1e-8)
    expected = {name: norm for name, norm in case["weight_grad_norms"].items() if norm > 1e-12}
    norms = {
        theirs(name): parameter.grad.norm()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    norms = {name: norm for name, norm in norms.items() if "alphas" not in name and norm > 1e-12}
    assert norms.keys() == expected.keys()
    close(torch.stack(list(norms.values())), [expected[name] for name in norms], 1e-8)


@pytest.mark.parametrize("case", GDAS["genotypes"], ids=lambda case: str(case["seed"]))
def test_gdas_genotypes(case, their_order):
    """Theirs may take both operations of a node from one input; here a node takes two inputs."""
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


def draw(case, monkeypatch, more=0):
    """Sets what the next passes draw: the samples themselves, or the seed of PyTorch's. Their gradient is PyTorch's."""
    if "manual_seed" in case:
        torch.manual_seed(case["manual_seed"] + more)
        return
    r = np.random.RandomState(case["draw_seed"] + more)

    def sample(concentrations):
        drawn = torch.as_tensor(r.exponential(size=concentrations.shape))
        return drawn / drawn.sum(-1, keepdim=True)

    monkeypatch.setattr(torch, "_sample_dirichlet", sample)


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
    draw(case, monkeypatch)
    alphas = rows(case)
    [weights] = Dirichlet().mixed([alphas])
    close(weights, case["mixing"], 1e-8)
    upstream = np.random.RandomState(case["upstream_seed"]).randn(case["rows"], case["ops"])
    close(torch.autograd.grad((weights * torch.as_tensor(upstream)).sum(), alphas)[0], case["arch_grad"], 1e-8)


@pytest.fixture
def drnas_space(monkeypatch):
    for module in (model_search, supernet):
        monkeypatch.setattr(module, "PRIMITIVES", DR["operations"]["darts"])


def drnas_network(case):
    network = Supernet(
        case["C"],
        case["num_classes"],
        case["layers"],
        nn.CrossEntropyLoss(),
        Dirichlet(),
        partial_channels=case["k"],
    )
    fill_by_shape(network)
    golden.fill_alphas(network, case["arch_seed"])
    return network


def fill_by_shape(network):
    for name, tensor in network.state_dict().items():
        if golden.is_ours(name):
            continue
        values = torch.cos(0.7 * torch.arange(tensor.numel()) + tensor.dim()).view(tensor.shape)
        if tensor.dim() > 1:
            values *= (2 / tensor[0].numel()) ** 0.5
        else:
            values = name.endswith(("weight", "running_var")) + 0.1 * values
        tensor.copy_(values)


@pytest.mark.parametrize(
    "case",
    [case for case in DR["darts"]["search"] if case["space"] == "cifar" and "keep" not in case],
    ids=lambda case: str(case["arch_seed"]),
)
def test_a_network_of_drnas(case, drnas_space, monkeypatch):
    network, (x, y) = drnas_network(case), batch(case, 1)
    draw(case, monkeypatch)
    assert sum(weight.numel() for weight in network.weight_parameters()) == case["parameters"]
    logits = network(x)
    close(logits, case["train_logits"], 1e-8)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    close(loss, case["train_loss"], 1e-8)
    close(torch.stack([alphas.grad for alphas in network.arch_parameters()]), case["arch_grad"], 1e-8)
    assert str(network.genotype()) == case["genotype"]


@pytest.mark.parametrize(
    "case", [case for case in DR["darts"]["steps"] if case["space"] == "cifar"], ids=lambda case: str(case["arch_seed"])
)
def test_steps_of_drnas(case, drnas_space, monkeypatch):
    network = drnas_network(case)
    kl = case["reg_scale"] if case["reg_type"] == "kl" else 0.0
    args = {"arch_learning_rate": case["arch_lr"], "arch_weight_decay": 0.0 if kl else case["reg_scale"]}
    architect = Drnas(network, SimpleNamespace(**vars(ARGS) | args), kl)
    draw(case, monkeypatch)
    last = partial(draw, case, monkeypatch, 1)
    check_steps(case, network, architect, case, case["lr"], clip=case["grad_clip"], draw=last)
