"""What the benchmark's own searches compute, in float64. Ours has no biases before BatchNorm, which change nothing."""

from types import SimpleNamespace

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import close
from steps import arguments
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import remedies
import speed
import train_search
import utils
from architectures import networks
from nas import steps
from nas.mutators import DartsMutator, apply_fixed_architecture
from nas.relaxation import Gumbel
from nas.spaces.nasbench201 import Cell201, NASBench201Cell, NASBench201Network, from_string, to_string

GOLDEN = golden.load("nasbench201_search.json")
DRNAS = golden.load("drnas.json")["nb201"]
PRESET = remedies.PRESETS["nasbench201"]

pytestmark = pytest.mark.usefixtures("double")


# ---- How the benchmark's networks were filled, and how its numbers are grouped


def batch(case, number, size=None):
    return golden.batch(case["arch_seed"] + number, size or case["batch"], case["num_classes"], case["size"])


def searched(case, strategy="darts", unrolled=False, way="plain", **given):
    """(search model, what learns its alphas, arguments) by the preset, filled; `way`: plain, or fast as in a search."""
    tracked = f"track_running_stats={case.get('track_running_stats', True)}"
    args = arguments(
        **PRESET
        | {"arch_learning_rate": 3e-4, "strategy": strategy, "unrolled": unrolled, "space_arg": tracked}
        | {"init_channels": case["C"], "layers": case["N"], "epochs": GOLDEN["settings"]["GDAS"]["epochs"]}
        | given
    )
    model, architect = train_search.build(args, case["num_classes"], nn.CrossEntropyLoss(), torch.device("cpu"))
    if way == "fast":
        speed.apply(model, torch.device("cpu"))
    golden.fill_by_shape(model.network)
    if strategy != "random":
        set_alphas(model.arch_parameters(), 0.5, case["arch_seed"])
    return model, architect, args


@torch.no_grad()
def set_alphas(alphas, scale, seed):
    rows = torch.as_tensor(scale * np.random.RandomState(seed).randn(6, 5))
    for alpha, row in zip(alphas, rows, strict=True):
        alpha.copy_(row)


def grouped(network, values):
    """Norms of {name: tensor} by the benchmark's groups: stem, cells.k, lastact, classifier."""
    groups = {}
    for name, tensor in values.items():
        part, rest = name.removeprefix("network.").split(".", 1)
        group = {"stem": "stem", "norm": "lastact", "classifier": "classifier"}.get(
            part
        ) or f"cells.{rest.split('.')[0]}"
        groups.setdefault(group, []).append(tensor.detach().flatten())
    return {group: torch.cat(tensors).norm() for group, tensors in groups.items()}


def close_groups(found, expected, tolerance):
    found = {group: norm for group, norm in found.items() if norm > 0 or group in expected}
    assert found.keys() == expected.keys()
    for group, norm in expected.items():
        close(found[group], norm, tolerance)


def gradients(network):
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


def check_statistics(network, expected, tolerance=1e-8):
    for kind, name in (("means", "running_mean"), ("variances", "running_var")):
        found = {key: value for key, value in network.state_dict().items() if key.endswith(name)}
        close_groups(grouped(network, found), expected[kind], tolerance)


def draws(monkeypatch, seed):
    """GDAS draws its noise from here on from one generator: an edge's five numbers at a time."""
    r = np.random.RandomState(seed)
    monkeypatch.setattr(
        torch.Tensor, "exponential_", lambda like, *_: like.copy_(torch.as_tensor(r.exponential(size=like.shape)))
    )


def stacked(gradient_of):
    return torch.stack([alpha.grad for alpha in gradient_of.arch_parameters()])


def found(model):
    return to_string(model.export())


# ---- One pass


def check_pass(case, model):
    x, y = batch(case, 1)
    network = model.network
    biases = case.get("of_which_convolution_biases", 0)
    assert sum(map(torch.numel, network.parameters())) == case["parameters"] - biases
    logits = model.train()(x)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    close(logits, case["train_logits"], 1e-8)
    close(loss, case["train_loss"], 1e-8)
    if case["alphas"]:
        close(stacked(model), case["arch_grad"], 1e-8)
    close_groups(grouped(network, gradients(network)), case["weight_grad_norms_grouped"], 1e-8)
    for index, edges in case["convolution_grad_norms"].items():
        for edge, expected in zip(network.layers[int(index)].edges.values(), edges, strict=True):
            for kind, norm in zip(("conv_1x1", "conv_3x3"), expected, strict=True):
                gradient = edge[kind].op[1].weight.grad
                assert (gradient is None) == (norm is None)
                if norm is not None:
                    close(gradient.norm(), norm, 1e-8)
    check_statistics(network, case["statistics_after_train_forward"])
    without = sum(weight.numel() for weight in network.parameters() if weight.grad is None)
    assert without == case.get("weights_without_gradient", 0)


ways = pytest.mark.parametrize("way", ["plain", "fast"])


def each(name):
    return pytest.mark.parametrize("case", GOLDEN[name], ids=lambda case: str(case.get("arch_seed", case.get("seed"))))


@each("darts")
@ways
def test_the_supernet(case, way):
    model, _, _ = searched(case, way=way)
    assert found(model) == case["genotype"]
    check_pass(case, model)
    model, _, _ = searched(case, way=way)
    with torch.no_grad():
        close(model.eval()(batch(case, 1)[0]), case["eval_logits"], 1e-8)


@each("cell")
@pytest.mark.parametrize("kind", ["darts", "fixed"])
def test_a_cell(case, kind):
    r = np.random.RandomState(case["seed"])
    x, d = (torch.as_tensor(r.randn(2, case["C"], case["size"], case["size"])) for _ in range(2))
    x.requires_grad_()
    cell, expected = NASBench201Cell(case["C"], case["C"], 1, "sum"), case[kind]
    golden.fill_by_shape(cell)
    if kind == "fixed":
        output = apply_fixed_architecture(cell, from_string(case["arch"]))(x)
    else:
        mutator = DartsMutator(cell)
        set_alphas(mutator.parameters(), 0.5, case["seed"])
        mutator.reset()
        output = cell(x)
    (output * d).sum().backward()
    close(output.square().sum((0, 2, 3)), expected["output_channel_sums_of_squares"], 1e-8)
    close(output.flatten()[:8], expected["output_first8"], 1e-8)
    close(x.grad.square().sum((0, 2, 3)).sqrt(), expected["x_grad_channel_norms"], 1e-8)
    if kind == "darts":
        close(torch.stack([alpha.grad for alpha in mutator.parameters()]), expected["arch_grad"], 1e-8)


@each("gdas")
@ways
def test_a_sample_of_gdas(case, way, monkeypatch):
    model, _, _ = searched(case, "gdas", way=way)
    model.relaxation.temperature.fill_(case["tau"])
    draws(monkeypatch, case["noise_seed"])
    check_pass(case, model)
    drawn = model.mutator._decisions
    chosen = {key: model.mutator.layer_choices[0].names[weights.argmax()] for key, weights in drawn.items()}
    assert to_string(chosen) == case["sampled"]
    fresh, _, _ = searched(case, "gdas", way=way)
    with torch.no_grad():  # here, an evaluation runs the likeliest candidates; theirs samples
        fresh.mutator.decide({key: weights.detach() for key, weights in drawn.items()})
        close(fresh.network.eval()(batch(case, 1)[0]), case["eval_logits_same_draw"], 1e-8)
    assert found(fresh) == case["genotype"]


def test_without_the_scalars_the_gradient_of_gdas_is_another(monkeypatch):
    for case in GOLDEN["gdas"]:
        seen = []
        for scalars in ("1", "0"):
            model, _, _ = searched(case, "gdas", strategy_arg=f"scalars={scalars}")
            model.relaxation.temperature.fill_(case["tau"])
            draws(monkeypatch, case["noise_seed"])
            x, y = batch(case, 1)
            F.cross_entropy(model(x), y).backward()
            seen.append(stacked(model))
        close(seen[0], case["arch_grad"], 1e-8)
        assert 0.4 < (seen[0] - seen[1]).norm() / seen[0].norm() < 1.1


@each("random")
def test_a_random_cell(case):
    model, _, _ = searched(case, "random")
    decide(model, case["arch"])
    check_pass(case, model)
    model, _, _ = searched(case, "random")
    decide(model, case["arch"])
    with torch.no_grad():
        close(model.eval()(batch(case, 1)[0]), case["eval_logits"], 1e-8)


def decide(model, text):
    model.mutator.decide(decisions(model, text))


def decisions(model, text):
    chosen = from_string(text)
    return {
        choice.key: torch.tensor([name == chosen[choice.key] for name in choice.names])
        for choice in model.mutator.layer_choices
    }


# ---- Steps


def check_steps(case, model, architect, args, tolerance=1e-8):
    """The steps of `train_search.py`; what it clips is seen in its gradients before the optimizer."""
    lr = case["lr"]
    network = model.network
    args.grad_clip = case.get("gradient_clip", 5)
    optimizer = torch.optim.SGD(
        model.weight_parameters(), lr, momentum=0.9, weight_decay=args.weight_decay, nesterov=args.nesterov == "yes"
    )
    step = steps.search_step(model, architect, nn.CrossEntropyLoss(), optimizer, args)
    for number, row in enumerate(case["steps"]):
        loss, _, norm = step(*batch(case, 10 + number), *batch(case, 100 + number))
        close(loss, row["train_loss"], tolerance)
        expected_norm = row["clip_norm" if args.clip_alphas == "yes" else "weight_grad_norm"]
        close(norm, expected_norm, tolerance)
        clipped = min(1, args.grad_clip / (expected_norm + 1e-6))
        expected = {group: clipped * value for group, value in row["grad_norms_grouped"].items()}
        close_groups(grouped(network, gradients(network)), expected, tolerance)
        if "arch_grad" in row:
            close(stacked(model), row["arch_grad"], tolerance)
    close_groups(grouped(network, dict(network.named_parameters())), case["final_weight_norms_grouped"], tolerance)
    check_statistics(network, case["final_statistics_grouped"], tolerance)
    if "final_arch" in case:
        close(torch.stack([alpha.detach() for alpha in model.arch_parameters()]), case["final_arch"], tolerance)
        assert found(model) == case["final_genotype"]


@each("darts_v1")
@ways
def test_steps_of_the_first_order(case, way):
    model, architect, args = searched(case, way=way)
    check_steps(case, model, architect, args)
    with torch.no_grad():
        close(model.eval()(batch(case, 999)[0]), case["final_eval_logits"], 1e-8)


@each("darts_v2")
@ways
def test_steps_of_the_second_order(case, way):
    model, architect, args = searched(case, unrolled=True, way=way)
    check_steps(case, model, architect, args, 1e-6)
    with torch.no_grad():
        close(model.eval()(batch(case, 999)[0]), case["final_eval_logits"], 1e-6)


@each("gdas_steps")
@ways
def test_steps_of_gdas(case, way, monkeypatch):
    model, architect, args = searched(case, "gdas", way=way)
    model.relaxation.temperature.fill_(case["tau"])
    draws(monkeypatch, case["noise_seed"])
    check_steps(case, model, architect, args)
    draws(monkeypatch, case["noise_seed"] + 1)
    with torch.no_grad():
        model.mutator.reset()  # still in training mode: samples
        close(model.network.eval()(batch(case, 999)[0]), case["final_eval_logits"], 1e-8)


@each("random_steps")
def test_steps_of_random_search_and_its_selection(case, monkeypatch):
    model, strategy, args = searched(case, "random")
    archs = iter(case["archs"])
    monkeypatch.setattr(model.mutator, "sample_search", lambda: decisions(model, next(archs)))
    check_steps(case, model, strategy, args)
    decide(model, case["archs"][0])
    with torch.no_grad():
        close(model.eval()(batch(case, 999)[0]), case["final_eval_logits_of_first_arch"], 1e-8)
    candidates = iter(case["candidates"])
    monkeypatch.setattr(model.mutator, "sample_final", lambda: decisions(model, next(candidates)))
    accuracies, score = [], strategy.score
    monkeypatch.setattr(strategy, "score", lambda *batch: accuracies.append(result := score(*batch)) or result)
    strategy.candidates = len(case["candidates"])
    strategy.settle([batch(case, 500 + k, case["valid_batch"]) for k in range(2)])
    assert [100 * accuracy for accuracy, _ in accuracies] == case["selection"]["accuracies"]
    assert found(model) == case["selection"]["best"]


def drnas(name):
    cases = [case for case in DRNAS[name] if case["species"] == "dirichlet" and "keep" not in case]
    # Its code counts the alphas' gradient of the training loss in what it clips, which matters only where it clips.
    cases = [case for case in cases if case.get("grad_clip", 5) == 5]
    return pytest.mark.parametrize("case", cases, ids=lambda case: str(case["arch_seed"]))


def searched_by_drnas(case, way):
    """As `searched`, by the settings of DrNAS' code."""
    kl = case["reg_scale"] if case.get("reg_type") == "kl" else 0.0
    given = {"weights_first": "no", "clip_alphas": "no", "nesterov": "no", "weight_decay": 3e-4}
    given |= {"arch_weight_decay": 0.0 if kl else 1e-3, "strategy_arg": f"kl={kl}", "partial_channels": case["k"]}
    return searched(case, "drnas", way=way, **given)


@drnas("search")
@ways
def test_the_supernet_of_drnas(case, way, monkeypatch):
    model, _, _ = searched_by_drnas(case, way)
    assert found(model) == case["genotype"]
    golden.draw(case, monkeypatch)
    check_pass(case, model)
    model, _, _ = searched_by_drnas(case, way)
    golden.draw(case, monkeypatch)
    with torch.no_grad():
        close(model.eval()(batch(case, 1)[0]), case["eval_logits"], 1e-8)


@drnas("steps")
@ways
def test_steps_of_drnas(case, way, monkeypatch):
    model, architect, args = searched_by_drnas(case, way)
    golden.draw(case, monkeypatch)
    check_steps(case, model, architect, args)
    golden.draw(case, monkeypatch, 1)
    with torch.no_grad():
        close(model.eval()(batch(case, 999)[0]), case["final_eval_logits"], 1e-8)


@pytest.mark.parametrize("name", ["DARTS", "GDAS", "RANDOM"])
def test_the_learning_rate(name):
    expected = GOLDEN["lr_of_epochs"][name]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.025)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(expected), eta_min=0.001)
    rates = []
    for _ in expected:
        rates.append(optimizer.param_groups[0]["lr"])
        utils.advance(scheduler)
    close(rates, expected, 1e-8)


def test_the_temperature_of_gdas():
    gumbel, seen = Gumbel(250), []
    for epoch in range(250):
        gumbel.begin_epoch(epoch)
        seen.append(gumbel.temperature.item())
    close(seen, GOLDEN["tau_of_epochs"], 1e-8)


REMEDIES = {
    "softmax": {},
    "exact": {"unrolled": True, "hvp": "exact"},
    "sdarts-rs": {"perturb": "random"},
    "fair-darts": {"gate": "sigmoid", "zero_one_weight": 10.0, "gate_threshold": 0.3},
    "drnas": {"strategy": "drnas"},
    "darts-minus": {"auxiliary_skip": 1.0},
    "pc-darts": {"partial_channels": 2},
    "running statistics": {"space_arg": "track_running_stats=1"},
    "nni": {"space_arg": "reduction=mean"},
}


@pytest.mark.parametrize("remedy", REMEDIES)
def test_fast_steps_with_remedies_are_the_plain_ones(remedy):
    states = []
    for way in ("plain", "fast"):
        torch.manual_seed(0)
        args = arguments(**PRESET | {"unrolled": False, "init_channels": 4, "layers": 1} | REMEDIES[remedy])
        model, architect = train_search.build(args, 5, nn.CrossEntropyLoss(), torch.device("cpu"))
        if way == "fast":
            speed.apply(model, torch.device("cpu"))
        optimizer = torch.optim.SGD(model.weight_parameters(), 0.025, momentum=0.9, nesterov=True)
        step = steps.search_step(model, architect, nn.CrossEntropyLoss(), optimizer, args)
        architect.begin_epoch(0)
        for number in range(2):
            step(*golden.batch(number, 4, 5, 8), *golden.batch(10 + number, 4, 5, 8))
        states.append(model.state_dict() | gradients(model))
    torch.testing.assert_close(*states, rtol=1e-9, atol=1e-9)


def test_a_compiled_cell_is_the_cell(monkeypatch):
    """By a compiler that changes nothing, but counts."""
    case, compiled = GOLDEN["darts"][0], []

    def compile(function, **options):
        return lambda *given: compiled.append(function.__qualname__) or function(*given)

    monkeypatch.setattr(torch, "compile", compile)
    model, _, _ = searched(case)
    speed.apply(model, torch.device("cpu"), compiled_for=case["batch"])
    close(model(batch(case, 1)[0]), case["train_logits"], 1e-8)
    assert compiled.count("MergedCell.mix") == 3
    compiled.clear()
    model, _, _ = searched(case, auxiliary_skip=1.0)  # a remedy wraps the edges, so their operations are compiled
    model(batch(case, 1)[0])
    speed.apply(model, torch.device("cpu"), compiled_for=case["batch"])
    model(batch(case, 1)[0])
    assert compiled.count("_Sequence.forward") > 3 * 6 * 2


# ---- What is found


def test_genotypes():
    network = NASBench201Network(2, 1)
    mutator = DartsMutator(network)
    for case in GOLDEN["genotypes"]:
        set_alphas(mutator.parameters(), 1, case["seed"])
        assert to_string(mutator.export()) == case["arch"]
    set_alphas(mutator.parameters(), 0, 0)
    assert to_string(mutator.export()) == GOLDEN["genotype_of_all_zeros"]


def test_the_log_names_a_cell_as_the_benchmark_does(tmp_path):
    """Where it is not given by indices or masks."""
    assert "2" in str(Cell201({"0_1": 2, "0_2": [True, False, False, False, False]}))
    text = GOLDEN["final"][1]["arch"]
    log = tmp_path / "log.txt"
    log.write_text(f"{Cell201.read(text)}\n")
    assert log.read_text() == f"architecture = {text}\n"
    assert Cell201.read(str(log)) == Cell201.read(text)


def discrete(case, classes, **sizes):
    args = SimpleNamespace(space="nasbench201", auxiliary=False, channels=3, space_arg=None, **sizes)
    return networks.build_discrete(args, classes, Cell201.read(case["arch"]))


@each("final")
def test_the_network_of_a_found_cell(case):
    network = discrete(case, case["num_classes"], init_channels=case["C"], layers=case["N"])
    x, y = golden.batch(case["seed"], case["batch"], case["num_classes"], case["size"])
    golden.fill_by_shape(network)
    speed.apply(network, torch.device("cpu"))
    assert sum(map(torch.numel, network.parameters())) == case["parameters"]
    logits = network.train()(x)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    close(logits, case["train_logits"], 1e-8)
    close(loss, case["train_loss"], 1e-8)
    close_groups(grouped(network, gradients(network)), case["grad_norms_grouped"], 1e-8)
    check_statistics(network, case["statistics_after_train_forward"])
    golden.fill_by_shape(network)
    with torch.no_grad():
        close(network.eval()(x), case["eval_logits"], 1e-8)


IMAGES = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet16-120": (120, 16)}


@pytest.mark.parametrize("images", IMAGES)
@each("final")
def test_full_sizes(case, images):
    classes, size = IMAGES[images]
    with torch.device("meta"):
        check_size(discrete(case, classes, init_channels=None, layers=None), classes, size, case["full_size"][images])


@pytest.mark.parametrize("images", GOLDEN["full_size_supernets"]["DARTS-V1"])
def test_the_full_supernet(images):
    classes, size = IMAGES[images]
    expected = dict(GOLDEN["full_size_supernets"]["DARTS-V1"][images])
    expected["parameters"] -= expected["of_which_convolution_biases"]
    with torch.device("meta"):
        network = NASBench201Network(num_classes=classes)
        mutator = DartsMutator(network)
        mutator.reset()
        biases = sum(12 * 5 * 16 * 2**stage * (size >> stage) ** 2 for stage in range(3)) / 1e6
        expected["multiply_adds_millions"] -= biases
        check_size(network, classes, size, expected)
    assert sum(map(torch.numel, mutator.parameters())) == expected["alphas"]
    statistics = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert {norm.affine for norm in statistics} == {True, False}


def check_size(network, classes, size, expected):
    assert sum(map(torch.numel, network.parameters())) == expected["parameters"]
    bias = classes / 1e6  # which the benchmark counts as multiply-adds, too
    assert utils.count_multiply_adds(network, size) + bias == pytest.approx(expected["multiply_adds_millions"], 1e-12)
