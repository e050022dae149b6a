"""The remedies in searches: what they leave alone, that runs go on to the bit, what does not go together, how they are computed fast."""

import copy
import json
import os
import re
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from gradients import ETA, EXACT, direct_gradient, relative_error, sgd
from scripts import assert_same, log_lines, result, run, said
from torch import nn

import experiment.run
import train_search
from architect import Architect
from cells import Cells, names
from genotypes import PRIMITIVES
from model_search import MixedOp, Network, derive_cell
from nas.mutables import LayerChoice
from nas.mutators import DartsMutator
from nas.remedies import recipes
from nas.remedies.cells import above_threshold, limit_skips
from nas.remedies.edges import edge
from nas.remedies.sampling import Gdas, GdasMutator, OneOperation, SampledNetwork
from nas.remedies.supernet import Supernet
from nas.search_model import SearchModel
from nas.spaces.nasbench201 import NASBench201Network
from speed import compilation, convolutions, recomputation

SEARCH = ["train_search", "--init_channels", "2", "--layers", "3", "--epochs", "2", "--batch_size", "8", "--compile", "no"]
PC, SMOOTH = ["--partial_channels", "2", "--arch_warmup", "1", "--max_skips", "1"], ["--perturb", "random", "--auxiliary_skip", "0.5"]
RUNS = {
    "pc-darts, sdarts, darts-": PC + SMOOTH,
    "fair-darts": ["--gate", "sigmoid", "--zero_one_weight", "10", "--gate_threshold", "0.5", "--arch_learning_rate", "0.1"],
    "gdas": ["--strategy", "gdas", "--arch_warmup", "1", "--max_skips", "0"],
    "gdas on nasbench201": ["--strategy", "gdas", "--space", "nasbench201"],
}
SMALL = ["--image_size", "8"]
ALL = {"partial_channels": 2, "auxiliary_skip": 0.7, "gate": "sigmoid", "zero_one_weight": 2.0}


def supernet(**options):
    torch.manual_seed(0)
    network = Supernet(4, 3, 3, nn.CrossEntropyLoss(), **options)
    with torch.no_grad():
        for parameter in network.arch_parameters():
            parameter.normal_()
    return network


def batch(seed, size=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 3, (size,), generator=generator)


# ---- Runs


@pytest.mark.parametrize("name", RUNS)
def test_searched_killed_resumed_and_trained(name, images, tmp_path, script):
    command = [*SEARCH, *RUNS[name]]

    def kill():
        original = experiment.run.Run.complete_step

        def complete_step(self):
            original(self)
            if (self.progress.epoch, self.progress.step) == (1, 1):
                os.kill(os.getpid(), signal.SIGKILL)

        experiment.run.Run.complete_step = complete_step

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, output = run(command, images, *SMALL, "--run_dir", whole)
    assert status == 0, output
    status, _ = run(command, images, *SMALL, "--run_dir", killed, "--checkpoint_minutes", "0", prepare=kill)
    assert status == -signal.SIGKILL
    status, output = run(SEARCH[:1], images, *SMALL, "--resume", killed)
    assert status == 0, output
    assert "checkpoint.pt: epoch 1, step 1" in output
    assert_same(result(killed), result(whole))

    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    matrices = [line for line in (whole / "log.txt").read_text().split(" epoch ") if "tensor([[" in line]  # of the epochs' beginnings
    if "--space" not in RUNS[name]:
        before, after = (re.findall(r"\d\.\d+e?-?\d*", part.partition("tensor(")[2].partition(")")[0]) for part in matrices)
        assert (before == after) == ("--arch_warmup" in RUNS[name])
    assert rows[0]["alphas"] != rows[1]["alphas"]
    assert_told(name, rows)
    command = said(log_lines(killed), "train what was found: ")
    tiny = ["--init_channels", "2", "--layers", "3", "--batch_size", "8", "--fast_dev_run"]
    status, output = run(["train", *command[2:]], images, *SMALL, *tiny, "--run_dir", tmp_path / "trained")
    assert status == 0, output
    assert (whole / "normal.png").exists() or "nasbench201" in name
    if "pc-darts" not in name:  # the others' pictures are of what DARTS' are
        return
    status, _, error = script("visualize", whole, "--report")
    assert (status, error) == (0, "")
    assert {"alphas.png", "operations.png", "cells.gif", "report.html"} <= {path.name for path in whole.iterdir()}
    told = "with --partial_channels 2, --auxiliary_skip 0.5, --max_skips 1, --perturb random, --arch_warmup 1, space darts"
    assert told in (whole / "report.html").read_text()


def assert_told(name, rows):
    """What an epoch's metrics tell of a remedy."""
    assert ("betas" in rows[0]) == ("pc-darts" in name)
    for row in rows:
        for cell in ("normal", "reduce"):
            betas = [value for edge, value in row.get("betas", {}).items() if edge.startswith(f"{cell}_n3_")]
            assert not betas or (len(betas) == 3 and sum(betas) == pytest.approx(1))
    if "gdas" in name:
        assert [row["temperature"] for row in rows] == pytest.approx([10, 0.1])
    if "sdarts" in name:
        assert [row["perturbation"] for row in rows] == pytest.approx([0.03, 0.165])
        assert [row["auxiliary_weight"] for row in rows] == pytest.approx([0.5, 0.25])
    if "pc-darts" in name:
        assert all(row["skips_normal"] <= 1 for row in rows)
    if name == "gdas":
        assert all(row["skips_normal"] == 0 for row in rows)


# ---- The command line


def arguments(script, *given):
    tiny = ["--dataset", "digits", "--gpu", "-1", "--init_channels", "4", "--layers", "3", "--fast_dev_run", "--run_dir", "run"]
    return script("train_search", *tiny, *given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--partial_channels 4 --space nasbench201", "--partial_channels: only for --space darts with --strategy darts, not nasbench201"),
        ("--perturb random --strategy gdas", "--perturb: only for --space darts with --strategy darts, not darts with gdas"),
        ("--partial_channels 3", "--partial_channels 3 does not divide --init_channels 4"),
        ("--max_skips 2 --strategy random", "--max_skips"),
        ("--max_skips 2 --strategy gdas --space nasbench201", "--max_skips needs --space darts, and --strategy darts or gdas"),
        ("--arch_warmup 2 --strategy enas", "--arch_warmup needs a strategy with alphas: --strategy enas has none"),
        ("--arch_warmup 50", "--arch_warmup 50 leaves none of the 50 epochs for the alphas: lower it"),
        ("--arch_warmup 5 --capture", "--capture repeats one step, but --arch_warmup changes it"),
        ("--gate sigmoid --perturb random", "--perturb needs softmaxed alphas"),
        ("--zero_one_weight 1", "add --gate sigmoid"),
        ("--gate_threshold 0.5", "add --gate sigmoid"),
        ("--gate sigmoid --gate_threshold 0.5 --max_skips 1", "--max_skips and --gate_threshold cannot be combined"),
        ("--strategy gdas --unrolled", "--unrolled and --hvp do not work with --strategy gdas"),
        ("--strategy gdas --eigenvalue_every 1", "--eigenvalue_every and --early_stop do not work with --strategy gdas"),
        ("--preset gdas --unrolled", "--unrolled and --hvp do not work with --strategy gdas"),
        ("--preset pc-darts --epochs 10", "--arch_warmup 15 leaves none of the 10 epochs for the alphas: lower it"),
    ],
)
def test_what_does_not_go_together_is_said_before_the_run_begins(given, words, script, tmp_path):
    status, _, error = arguments(script, *given.split())
    assert (status, error.count("\n")) == (2, 1), error
    assert words in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", recipes.PRESETS)
def test_presets_are_in_the_config_and_give_way_to_what_is_given(preset, script, tmp_path, monkeypatch):
    train_search = __import__("train_search")
    recipe = recipes.PRESETS[preset]
    monkeypatch.setattr("sys.argv", ["train_search.py", "--preset", preset])
    args = vars(train_search.parse_arguments())
    assert recipe.items() <= args.items()
    assert args["preset"] == preset
    monkeypatch.setattr("sys.argv", ["train_search.py"])
    defaults = vars(train_search.parse_arguments())
    for name, value in recipe.items():
        other = 8 if defaults[name] is None else defaults[name]
        monkeypatch.setattr("sys.argv", ["train_search.py", f"--{name}={other}", "--preset", preset])
        assert vars(train_search.parse_arguments())[name] == other != value


def test_a_preset_s_run_goes_on_with_what_was_given(script, images, tmp_path):
    given = ["--preset", "darts-minus", "--auxiliary_skip", "0", "--batch_size", "8", "--arch_beta1", "0.4"]
    status, output = run([*SEARCH[:5], *given, "--fast_dev_run"], images, *SMALL, "--run_dir", tmp_path / "run")
    assert status == 0, output
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["arguments"]
    assert (recorded["preset"], recorded["auxiliary_skip"], recorded["batch_size"], recorded["arch_beta1"]) == ("darts-minus", 0.0, 8, 0.4)
    status, _, error = script("train_search", "--resume", "run")
    assert (status, error) == (0, "")
    status, _, error = script("train_search", "--resume", "run", "--auxiliary_skip", "1")
    assert status == 2
    assert "--auxiliary_skip was 0.0, not 1.0" in error


# ---- What is computed


def test_without_remedies_it_is_darts():
    torch.manual_seed(0)
    network, plain = Supernet(4, 3, 3, nn.CrossEntropyLoss()), Network(4, 3, 3, nn.CrossEntropyLoss())
    plain.load_state_dict(network.state_dict())
    x, _ = batch(0)
    assert torch.equal(network(x), plain(x))
    assert network.genotype() == plain.genotype()
    assert network.alphas_by_edge() == plain.alphas_by_edge()
    assert edge() is MixedOp


def test_the_exact_second_order_of_a_supernet_with_all_remedies(double):
    """The zero-one loss does not know the weights: its gradient is added as it is."""
    network, train, valid = supernet(**ALL), batch(1), batch(2)
    optimizer = sgd(network, train)
    expected = list(direct_gradient(network, train, valid, optimizer))
    more = torch.autograd.grad(2.0 * network.criterion.zero_one(), network.arch_parameters()[:2])
    expected[:2] = [gradient + part for gradient, part in zip(expected, more, strict=False)]
    Architect(network, EXACT).step(*train, *valid, ETA, optimizer, True)
    assert relative_error([alpha.grad for alpha in network.arch_parameters()], expected) < 1e-8


@pytest.mark.parametrize("way", [recomputation.recompute, lambda network: convolutions.set_memory_format(network, torch.device("cpu"))])
@pytest.mark.parametrize("kind", ["gdas", "all"])
def test_fast_supernets_compute_the_same(kind, way, double):
    if kind == "gdas":
        torch.manual_seed(0)
        network = SampledNetwork(4, 3, 3, nn.CrossEntropyLoss())
    else:
        network = supernet(**ALL)
    fast, (x, y) = copy.deepcopy(network), batch(1)
    way(fast)
    gradients = []
    for one in (network, fast):
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(F.cross_entropy(one(x), y), list(one.parameters()), allow_unused=True))
    for left, right in zip(*gradients, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_edges_are_compiled_whole(stride):
    made = edge(partial_channels=2, auxiliary_skip=True)(4, stride)
    x, weights = torch.randn(2, 4, 8, 8), torch.rand(len(PRIMITIVES) + 2)
    compiled = torch.compile(type(made).forward, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(made, x, weights), made(x, weights))
    assert list(compilation.outermost(nn.Sequential(made, nn.Identity()))) == [made]


def test_of_what_is_drawn_the_operations_are_compiled():
    torch.manual_seed(0)
    regions = list(compilation.outermost(SampledNetwork(4, 3, 3, nn.CrossEntropyLoss())))
    assert regions
    assert not any(isinstance(region, OneOperation) for region in regions)


def test_noise_is_for_the_weights_in_training_alone():
    network, (x, _) = supernet(), batch(1)
    network.eval()
    plain = network(x)
    network.draw_noise()
    assert all(noise.abs().max() <= network.radius for noise in network.noise)
    assert torch.equal(network(x), plain)
    assert not torch.equal(torch.stack(network.train().mixing_weights()), torch.stack(network.relaxed()))
    for weights in network.mixing_weights():
        torch.testing.assert_close(weights.sum(1), torch.ones(14))


def test_an_edge_of_gdas_runs_one_operation():
    torch.manual_seed(0)
    network, (x, y) = SampledNetwork(4, 3, 3, nn.CrossEntropyLoss()), batch(1)
    ran = []
    for cell in network.cells:
        for index, mixed in enumerate(cell._ops):
            for number, operation in enumerate(mixed._ops):
                operation.register_forward_hook(lambda *_, key=(cell.reduction, index, number): ran.append(key))
    F.cross_entropy(network(x), y).backward()
    assert len(ran) == 3 * 14
    assert len({key for key in ran if key[0]}) == 14  # both reduction cells run the same
    assert all(alphas.grad.abs().sum() > 0 for alphas in network.arch_parameters())
    weights = [drawn.weight.item() for kind in network.mixing_weights() for drawn in kind]
    assert weights == pytest.approx([1.0] * 28)


def test_gdas_in_evaluation_runs_the_likeliest():
    torch.manual_seed(0)
    network = SampledNetwork(4, 3, 3, nn.CrossEntropyLoss()).eval()
    for alphas, kind in zip(network.arch_parameters(), network.mixing_weights(), strict=True):
        assert [drawn.operation for drawn in kind] == alphas.argmax(1).tolist()
    space = NASBench201Network(channels=2, cells=1, num_classes=3)
    model = SearchModel(space, GdasMutator(space)).eval()
    model(batch(1)[0])
    for key, alpha in model.mutator.choices.items():
        assert model.mutator.chosen(model.mutator._by_key[key]) == [alpha.argmax().item()]


def test_gdas_may_sample_an_operation_without_weights():
    """The loss then depends on no weight at all."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.choice = LayerChoice([nn.Conv2d(3, 3, 3, padding=1), nn.AvgPool2d(3, 1, 1)], key="choice")

        def forward(self, x):
            return self.choice(x).mean((2, 3))

    torch.manual_seed(0)
    small = Small()
    model = SearchModel(small, GdasMutator(small))
    args = SimpleNamespace(
        epochs=1, momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3, amp=False, unrolled=False, grad_clip=5
    )
    weights, ran = model.weight_parameters(), set()
    optimizer = torch.optim.SGD(weights, 0.025, momentum=0.9)
    step = train_search.search_step(model, Gdas(model, args), F.cross_entropy, optimizer, args)
    for _ in range(8):
        step(*batch(1), *batch(2))
        ran.add(any(weight.grad is not None for weight in weights))
    assert ran == {True, False}


def test_alphas_of_gdas_are_of_the_candidates_alone():
    for kind, extra in ((GdasMutator, 0), (DartsMutator, 1)):
        space = NASBench201Network(channels=2, cells=1, num_classes=3)
        mutator = kind(space)
        assert [len(alpha) for alpha in mutator.alphas.values()] == [5 + extra] * 6
        for weights in SearchModel(space, mutator).alphas_by_edge().values():
            assert sum(weights.values()) == pytest.approx(1)


# ---- Cells


def cell(*strengths):
    """Alphas' rows in which these operations have these weights."""
    return [[row.get(primitive, 0.01) for primitive in PRIMITIVES] for row in strengths]


def test_at_most_so_many_skips():
    weights = cell(
        {"skip_connect": 0.9, "sep_conv_3x3": 0.2},
        {"skip_connect": 0.8, "sep_conv_5x5": 0.5},
        {"skip_connect": 0.3, "dil_conv_3x3": 0.1},
        {"max_pool_3x3": 0.25},
        {"max_pool_3x3": 0.2},
    )
    before = [list(row) for row in weights]
    cells = [derive_cell(limit_skips(weights, 2, most), 2) for most in (3, 2, 1, 0)]
    assert cells[0] == [("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("max_pool_3x3", 1)]
    assert cells[1] == [("skip_connect", 0), ("skip_connect", 1), ("max_pool_3x3", 1), ("max_pool_3x3", 2)]
    assert cells[2] == [("skip_connect", 0), ("sep_conv_5x5", 1), ("max_pool_3x3", 1), ("max_pool_3x3", 2)]
    assert cells[3] == [("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("max_pool_3x3", 1), ("max_pool_3x3", 2)]
    assert weights == before


def test_below_a_threshold_an_edge_is_none():
    weights = cell({"sep_conv_3x3": 0.9}, {"sep_conv_3x3": 0.5}, {}, {}, {"skip_connect": 0.9})
    edges = [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("skip_connect", 2), ("sep_conv_3x3", 0)]
    kept = [("sep_conv_3x3", 0), ("none", 1), ("skip_connect", 2), ("none", 0)]
    assert above_threshold(edges, [2, 3], weights, 0.6) == (kept, [2, 3])
    weights[0][PRIMITIVES.index("sep_conv_3x3")] = 0.5  # nothing leads to node 2, and so nothing to node 3
    assert above_threshold(edges, [2, 3], weights, 0.6) == (edges, [2, 3])


def test_a_cell_without_all_edges_has_no_choices():
    assert set(Cells(names()["FAIR_DARTS_A"]).files()) == {"genotype.json"}
    assert set(Cells(names()["PC_DARTS_CIFAR"]).files()) == {"genotype.json", "architecture.json", "nni.json"}
