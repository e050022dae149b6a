"""The remedies in searches of any space: what they change, that runs go on to the bit, what does not go together."""

import copy
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gradients import ETA, EXACT, direct_gradient, relative_error, sgd
from scripts import arguments_of, assert_same, at, result, rows_of, run, said, signal_oneself, succeed
from steps import arguments as of_search
from torch import nn

import remedies
import train_search
from architect import Architect
from architectures import load_space, networks
from architectures.cells import Cells, names
from experiment.errors import UserError
from genotypes import PRIMITIVES
from model_search import MixedOp, derive_cell
from nas.mutables import LayerChoice
from nas.mutators import DartsMutator
from nas.relaxation import Gumbel, Sigmoid
from nas.search_model import SearchModel
from nas.spaces.nasbench201 import NASBench201Network
from nas.strategies import Gdas
from nas.supernet import Supernet, above_threshold, limit_skips
from speed import layers, recomputation

CPU = torch.device("cpu")
OWN = f"{Path(__file__).parent.parent / 'examples' / 'small_space.py'}:Net"


def batch(seed, size=4, side=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, side, side, generator=generator), torch.randint(0, 3, (size,), generator=generator)


def supernet(relaxation=None, **options):
    torch.manual_seed(0)
    network = Supernet(4, 3, 3, nn.CrossEntropyLoss(), relaxation, **options)
    with torch.no_grad():
        for parameter in network.arch_parameters():
            parameter.normal_()
    return network


def everything():
    return supernet(Sigmoid(1, 0.7), partial_channels=2, zero_one_weight=2.0)


def takes_fewer_channels(model, plain):
    """Edges are weighed, too: in a node that several lead to, by betas that learn."""
    parameters, before = (sum(weight.numel() for weight in one.weight_parameters()) for one in (model, plain))
    assert parameters < 0.75 * before
    betas = model.betas_by_edge()
    assert betas.keys() == model.alphas_by_edge().keys()
    for node in (["0_3", "1_3", "2_3"], ["normal_n3_p0", "normal_n3_p1", "normal_n3_p2"], ["first"], ["second"]):
        assert node[0] not in betas or sum(betas[edge] for edge in node) == pytest.approx(1)
    learn = {bool(parameter.grad.any()) for name, parameter in model.named_parameters() if "betas" in name}
    assert learn == {"first" not in betas}  # there, every node has one edge


def adds_a_skip(model, plain):
    x, _ = batch(3)
    before = model.eval()(x)
    model.relaxation.auxiliary_weight.zero_()
    assert not torch.allclose(model(x), before)


def perturbs_the_weight_step(model, plain):
    x, _ = batch(3)
    perturbed, again = model.train()(x), model(x)
    assert torch.equal(perturbed, again)
    model.relaxation.before_alphas()
    assert not torch.allclose(model(x), perturbed)


def draws_weights(model, plain):
    """In every pass, in evaluation too; edges have no weights of their own."""
    x, _ = batch(3)
    lines = model.alpha_lines()
    assert not torch.allclose(model.eval()(x), model(x))
    assert model.alpha_lines() == lines  # of the alphas, not of what was drawn
    assert not model.betas_by_edge()


def gates(model, plain):
    """In the spaces with a candidate `none`, that is chosen where all others are below the threshold."""
    for weights in model.alphas_by_edge().values():
        assert weights.pop("none", 0.3) == pytest.approx(0.3)
        assert list(weights.values()) == pytest.approx([0.5] * len(weights), abs=0.1)  # no softmax: alphas began at 0
    x, y = batch(3)
    logits = model(x)
    assert model.criterion(logits, y) == F.cross_entropy(logits, y) + 10 * model.criterion.zero_one()
    with torch.no_grad():
        for alphas in model.arch_parameters():
            alphas.fill_(-1)
    if "0_1" in model.alphas_by_edge():
        assert set(model.export().values()) == {"none"}


def runs_one_candidate(model, plain):
    ran = []
    for edge in model.modules():
        candidates = edge._ops if isinstance(edge, MixedOp) else edge if isinstance(edge, LayerChoice) else ()
        for candidate in candidates:
            candidate.register_forward_hook(lambda *_, edge=edge: ran.append(edge))
    model.train()(batch(3)[0])
    assert ran
    assert len(set(ran)) == len(ran) == sum(isinstance(module, MixedOp | LayerChoice) for module in model.modules())


REMEDIES = {
    "pc-darts": ({"partial_channels": 2}, takes_fewer_channels),
    "darts-minus": ({"auxiliary_skip": 1.0}, adds_a_skip),
    "sdarts-rs": ({"perturb": "random"}, perturbs_the_weight_step),
    "sdarts-adv": ({"perturb": "adversarial"}, perturbs_the_weight_step),
    "drnas": ({"strategy": "drnas", "partial_channels": 2}, draws_weights),
    "fair-darts": ({"gate": "sigmoid", "zero_one_weight": 10.0, "gate_threshold": 0.3}, gates),
    "gdas": ({"strategy": "gdas"}, runs_one_candidate),
}
SPACES = {"darts": {"nodes": 2}, "nasbench201": {"layers": 1}, OWN: {"layers": None, "gate_threshold": 0.0}}


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.rpartition("/")[2])
@pytest.mark.parametrize("remedy", REMEDIES)
def test_every_remedy_works_on_every_space(remedy, space):
    given, assert_works = REMEDIES[remedy]
    torch.manual_seed(0)
    sizes = {"space": space, "init_channels": 8, **SPACES[space]}
    plain, _ = train_search.build(of_search(**sizes), 3, nn.CrossEntropyLoss(), CPU)
    args = of_search(**given | sizes, epochs=2)
    model, architect = train_search.build(args, 3, nn.CrossEntropyLoss(), CPU)
    optimizer = torch.optim.SGD(model.weight_parameters(), 0.025, momentum=0.9)
    step = train_search.search_step(model, architect, F.cross_entropy, optimizer, args)
    before = copy.deepcopy(model.state_dict())
    architect.begin_epoch(0)
    for seed in (1, 2):
        assert all(value.isfinite().all() for value in step(*batch(seed), *batch(10 + seed)))
    after = model.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in after if "alphas" in name)
    weights = [name for name in after if "alphas" not in name and "classifier" not in name]
    assert any(not torch.equal(after[name], before[name]) for name in weights)
    assert_works(model, plain)
    if isinstance(model, SearchModel):  # what was found is an architecture of the space
        found = load_space(space).of(model.export())
        networks.build_discrete(of_search(**sizes, auxiliary=False), 3, found)(batch(3)[0])
    else:
        assert set(Cells.of(model.export()).cells) == {"normal", "reduce"}


class Odd(nn.Module):
    """A layer choice between these candidates, after a convolution from 3 to 4 channels."""

    def __init__(self, *candidates):
        super().__init__()
        self.stem, self.choice = nn.Conv2d(3, 4, 3, padding=1), LayerChoice(list(candidates), key="choice")

    def forward(self, x):
        return self.choice(self.stem(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("candidate", "flag", "words"),
    [
        (nn.Conv2d(4, 8, 1), "partial_channels", "needs choices that keep the number of channels, and choice does not"),
        (nn.Conv2d(4, 4, 1, stride=4), "auxiliary_skip", "keep or halve height and width, and choice does not"),
        (nn.PReLU(), "partial_channels", "candidate 0 of choice cannot have fewer channels: a PReLU has parameters"),
        (nn.Sequential(nn.Conv2d(4, 1, 1), nn.Conv2d(1, 4, 1)), "partial_channels", "have fewer channels: Conv2d(4, 1"),
    ],
)
def test_edges_that_a_remedy_cannot_wrap(candidate, flag, words, monkeypatch):
    monkeypatch.setattr("nas.building.build_network", lambda *_: Odd(candidate))
    with pytest.raises(UserError, match=re.escape(words)):
        train_search.build(of_search(space="odd.py:Odd", **{flag: 2}), 3, nn.CrossEntropyLoss(), CPU)


SEARCH = "train_search --init_channels 2 --layers 3 --epochs 2 --batch_size 8 --compile no"
SMALL = ["--image_size", "8"]
RUNS = {
    "pc-darts, sdarts, darts-": "--nodes 2 --partial_channels 2 --arch_warmup 1 --max_skips 1 --perturb random "
    "--auxiliary_skip 0.5",
    "gdas on nasbench201": "--strategy gdas --space nasbench201 --layers 1",
}


@pytest.mark.parametrize("name", RUNS)
def test_searched_killed_and_resumed(name, images, tmp_path):
    command = f"{SEARCH} {RUNS[name]}".split()

    whole, killed, kill = tmp_path / "whole", tmp_path / "killed", at(1, 2, signal_oneself(signal.SIGKILL))
    succeed(command, images, *SMALL, "--run_dir", whole)
    status, _ = run(command, images, *SMALL, "--run_dir", killed, "--checkpoint_minutes", "0", prepare=kill)
    assert status == -signal.SIGKILL
    output = succeed(["train_search"], images, *SMALL, "--resume", killed)
    assert "checkpoint.pt: epoch 1, step 1" in output
    assert_same(result(killed), result(whole))

    rows = rows_of(whole)
    assert rows[0]["alphas"] != rows[1]["alphas"]
    if "gdas" in name:
        assert [row["temperature"] for row in rows] == pytest.approx([10, 0.1])
    if "nasbench201" in name:
        return
    log = (whole / "log.txt").read_text().split(" epoch ")
    matrices = [part.partition("tensor(")[2].partition(")")[0] for part in log if "tensor([[" in part]
    before, after = (re.findall(r"\d\.\d+e?-?\d*", matrix) for matrix in matrices)  # as the epochs began
    assert before == after  # the alphas rested in epoch 0
    assert [row["perturbation"] for row in rows] == pytest.approx([0.03, 0.165])
    assert [row["auxiliary_weight"] for row in rows] == pytest.approx([0.5, 0.25])
    assert all(row["skips_normal"] <= 1 for row in rows)
    for row in rows:
        assert sum(value for edge, value in row["betas"].items() if edge.startswith("reduce_n3_")) == pytest.approx(1)


def test_a_preset_s_run_goes_on_with_what_was_given_and_its_cells_train(done, refused, images, tmp_path):
    data = ["--dataset", "folder", "--data", images, *SMALL, "--workers", "0", "--gpu", "-1"]
    tiny = "--init_channels 2 --layers 3 --batch_size 8 --fast_dev_run"
    given = f"{tiny} --nodes 2 --preset fair-darts --gate_threshold 0.5 --gate_rule edge --run_dir run"
    command = said(done("train_search", *data, *given.split()), "train what was found: ")
    recorded = arguments_of("run")
    assert recorded.items() > remedies.PRESETS["fair-darts"].items() - {("gate_threshold", 0.85), ("batch_size", 128)}
    assert (recorded["preset"], recorded["gate_threshold"], recorded["batch_size"]) == ("fair-darts", 0.5, 8)
    done("train_search", "--resume", "run")
    error = refused("train_search", "--resume", "run", "--gate_threshold", "0.85")
    assert "--gate_threshold was 0.5, not 0.85" in error
    done("train", *command[2:], *data, *tiny.split(), "--run_dir", "trained")
    cell = Cells.recorded("run").json["reduce"]
    assert max(Counter((node, source) for _, node, source in cell).values()) == 2  # operations on an edge
    assert Cells.recorded("trained") == Cells.recorded("run")
    trained = torch.load("trained/weights.pt", weights_only=True)
    learning = {index for index, (operation, *_) in enumerate(cell) if "conv" in operation}
    assert {int(name.split(".")[3]) for name in trained if name.startswith("cells.1._ops")} >= learning
    done("test", "trained")
    done("visualize", "run", "--report")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--partial_channels 4 --strategy random", "--partial_channels needs alphas, and --strategy random has none"),
        ("--perturb random --strategy gdas", "--perturb does not work with --strategy gdas, which samples operations"),
        ("--partial_channels 3", "--partial_channels 3 does not divide --init_channels 4"),
        ("--max_skips 2 --strategy gdas --space nasbench201", "--max_skips needs --space darts, whose cells it limits"),
        ("--arch_warmup 5 --capture", "--capture repeats one step, but --arch_warmup changes it"),
        ("--preset nasbench201 --capture", "--capture cannot count the gradient"),
        ("--space nasbench201 --recompute", "--recompute needs the cells of --space darts, not nasbench201"),
        ("--auxiliary_stop 1", "--auxiliary_stop needs --auxiliary_skip"),
        ("--gate sigmoid --perturb random", "--perturb needs softmaxed alphas"),
        ("--zero_one_weight 1", "add --gate sigmoid"),
        ("--gate sigmoid --gate_rule edge", "--gate_rule edge needs a threshold"),
        ("--gate sigmoid --gate_threshold 0.5 --max_skips 1", "--max_skips and --gate_threshold cannot be combined"),
        ("--strategy random --early_stop eigenvalue", "--strategy random has none"),
        ("--preset drnas --unrolled", "--unrolled compares losses, and --strategy drnas draws other weights"),
        ("--preset pc-darts --epochs 10", "--arch_warmup 15 leaves none of the 10 epochs for the alphas: lower it"),
    ],
)
def test_what_does_not_go_together_is_said_before_the_run_begins(given, words, refused, tmp_path):
    tiny = "--dataset digits --gpu -1 --init_channels 4 --layers 3 --fast_dev_run --run_dir run"
    assert words in refused("train_search", *f"{tiny} {given}".split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", remedies.PRESETS)
def test_presets_give_way_to_what_is_given(preset, monkeypatch):
    def parsed(*given):
        monkeypatch.setattr("sys.argv", ["train_search.py", *given])
        return vars(train_search.parse_arguments())

    recipe, defaults = remedies.PRESETS[preset], parsed()
    assert recipe.items() <= parsed("--preset", preset).items()
    for name, value in recipe.items():
        other = 8 if defaults[name] is None else defaults[name]
        assert parsed(f"--{name}={other}", "--preset", preset)[name] == other != value


def test_the_exact_second_order_of_a_supernet_with_all_remedies(double):
    """The zero-one loss does not know the weights: its gradient is added as it is."""
    network, train, valid = everything(), batch(1), batch(2)
    optimizer = sgd(network, train)
    expected = list(direct_gradient(network, train, valid, optimizer))
    more = torch.autograd.grad(2.0 * network.criterion.zero_one(), network.arch_parameters()[:2])
    expected[:2] = [gradient + part for gradient, part in zip(expected, more, strict=False)]
    Architect(network, EXACT).step(*train, *valid, ETA, optimizer, True)
    assert relative_error([alpha.grad for alpha in network.arch_parameters()], expected) < 1e-8


@pytest.mark.parametrize("way", [recomputation.recompute, lambda network: layers.set_memory_format(network, CPU)])
@pytest.mark.parametrize("build", [everything, lambda: supernet(Gumbel())], ids=["all", "gdas"])
def test_fast_supernets_compute_the_same(build, way, double):
    network, (x, y) = build(), batch(1)
    fast = copy.deepcopy(network)
    way(fast)
    gradients = []
    for one in (network, fast):
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(F.cross_entropy(one(x), y), list(one.parameters()), allow_unused=True))
    for left, right in zip(*gradients, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_gdas_may_sample_an_operation_without_weights():
    """The loss then depends on no weight at all."""
    small = Odd(nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1))
    small.stem.requires_grad_(False)
    model, args = SearchModel(small, DartsMutator(small, Gumbel())), of_search()
    weights, ran = [weight for weight in model.weight_parameters() if weight.requires_grad], set()
    model.weight_parameters = lambda: weights
    optimizer = torch.optim.SGD(weights, 0.025, momentum=0.9)
    step = train_search.search_step(model, Gdas(model, args), F.cross_entropy, optimizer, args)
    for _ in range(8):
        step(*batch(1), *batch(2))
        ran.add(any(weight.grad is not None for weight in weights))
    assert ran == {True, False}


def test_gdas_evaluates_its_likeliest_candidates():
    network = supernet(Gumbel()).eval()
    for alphas, kind in zip(network.arch_parameters(), network.mixing_weights(), strict=True):
        assert [drawn.operation for drawn in kind] == alphas.argmax(1).tolist()
    space = NASBench201Network(channels=2, cells=1, num_classes=3)
    model = SearchModel(space, DartsMutator(space, Gumbel())).eval()
    model(batch(1)[0])
    for choice in model.mutator.layer_choices:
        assert choice.chosen == [model.mutator.choices[choice.key].argmax().item()]


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


def test_where_a_threshold_leaves_no_edge_all_stay():
    edges = [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("skip_connect", 2), ("sep_conv_3x3", 0)]
    weights = cell({"sep_conv_3x3": 0.5}, {"sep_conv_3x3": 0.5}, {}, {}, {"skip_connect": 0.9})
    # Nothing leads to node 2, and so nothing to node 3.
    assert above_threshold(edges, [2, 3], weights, 0.6) == (edges, [2, 3])


def test_a_cell_without_all_edges_has_no_choices():
    assert set(Cells(names()["FAIR_DARTS_A"]).files()) == {"genotype.json"}
