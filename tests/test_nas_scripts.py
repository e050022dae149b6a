"""Every space by every strategy, as a user runs them: search, train, test, draw; and what is refused."""

import json
import os
import shlex
import signal
from pathlib import Path

import pytest
import torch
from scripts import said

import experiment.run
from architectures import load_space
from experiment.loop import MEASURED
from nas.loading import constructor_arguments
from nas.spaces import nasbench201
from nas.spaces.enas import Macro, Micro
from pictures import drawing

EXAMPLE = Path(__file__).parent.parent / "examples" / "small_space.py"
SPACES = {
    "darts": ["--init_channels", "2", "--layers", "3", "--nodes", "1"],
    "enas_micro": ["--init_channels", "2", "--layers", "3"],
    "enas_macro": ["--init_channels", "2", "--layers", "4"],
    "nasbench201": ["--init_channels", "2", "--layers", "1"],
    f"{EXAMPLE}:Net": ["--init_channels", "2"],
}
PICTURES = {"darts": {"normal.png", "reduction.png"}, "enas_micro": {"normal.png", "reduction.png"}}


@pytest.fixture
def tiny(images):
    """The arguments of a short run on small images."""
    folder = ["--dataset", "folder", "--data", images, "--image_size", "16", "--workers", "0"]
    return [*folder, "--gpu", "-1", "--batch_size", "8", "--fast_dev_run"]


PAIRS = [(space, strategy) for space in SPACES for strategy in ("darts --unrolled", "enas")] + [
    ("nasbench201", "random")
]


@pytest.mark.parametrize(("space", "strategy"), PAIRS, ids=lambda name: name.rpartition("/")[2])
def test_every_pair_searches_and_what_it_finds_trains(script, tmp_path, tiny, space, strategy):
    arguments = [*tiny, "--space", space, *SPACES[space]]
    status, out, error = script("train_search", *arguments, "--run_dir", "run", "--strategy", *strategy.split())
    assert (status, error) == (0, "")
    folder = tmp_path / "run"
    architecture = json.loads((folder / "architecture.json").read_text())
    [metrics] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics["architecture"] == architecture
    assert (folder / "nni.json").exists() == (space == "darts")
    assert bool(metrics["alphas"]) == strategy.startswith("darts")
    assert {path.name for path in folder.glob("*.png")} == PICTURES.get(space, {"architecture.png"})
    if space == "darts":
        assert load_space(space).read("run").choices == architecture
        names = torch.load(folder / "weights.pt", weights_only=True).keys()
        assert ("alphas_normal" in names) == ("darts" in strategy)  # the paper's own network
    if space == "nasbench201":
        assert nasbench201.from_string(nasbench201.to_string(architecture)) == architecture

    if strategy == "enas":  # what follows depends on the space alone
        command = said(out.splitlines(), "train what was found: ")
        assert command[:4] == ["python", "train.py", "--arch", str(tmp_path / "run")]
        sizes = [word for word in SPACES[space] if word not in ("--nodes", "1")] if space == "darts" else SPACES[space]
        arguments = [*command[2:], *tiny, *sizes, "--run_dir", "trained"]
        status, out, error = script("train", *arguments)
        assert (status, error) == (0, "")
        [row] = [json.loads(line) for line in (tmp_path / "trained" / "metrics.jsonl").read_text().splitlines()]
        assert ("drop_path_prob" in row) == (space in ("darts", "enas_micro"))
        status, out, error = script("test", *said(out.splitlines(), "test the weights again: ")[2:])
        assert (status, error) == (0, "")
        assert "test_acc" in out
        status, out, error = script("visualize", "trained")
        assert (status, error) == (0, "")


def test_nni_s_example_of_choices(script, tmp_path, tiny):
    space = ["--space", f"{EXAMPLE.parent / 'mnist_choices.py'}:Net", "--channels", "1"]
    status, out, error = script("train_search", *tiny, *space, "--strategy", "enas", "--run_dir", "run")
    assert (status, error) == (0, "")
    status, _, error = script("train", *said(out.splitlines(), "train what was found: ")[2:], *tiny)
    assert (status, error) == (0, "")
    status, _, error = script("train_search", *tiny, *space)
    assert status == 2
    assert "cannot be added" in error
    assert len(error.splitlines()) == 1


def test_arguments_of_spaces_and_strategies(script, tmp_path, tiny):
    """From the command line to the constructors, to the commands that follow, and into a run that goes on."""
    space = ["--space", "enas_macro", "--init_channels", "2", "--layers", "2", "--space_arg", "dropout_rate=0.25"]
    strategy = ["--strategy", "enas", "--strategy_arg", "lstm_num_layers=2", "--strategy_arg", "tanh_constant=None"]
    status, out, error = script("train_search", *tiny, *space, *strategy, "--run_dir", "run")
    assert (status, error) == (0, "")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["arguments"]
    assert config["strategy_arg"] == "lstm_num_layers=2 tanh_constant=None"
    weights = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)
    assert "mutator.lstm.1.weight_hh" in weights
    command = said(out.splitlines(), "train what was found: ")
    assert command[command.index("--space_arg") + 1] == "dropout_rate=0.25"
    status, _, error = script("train_search", "--resume", "run", "--space_arg", "dropout_rate=0.5")
    assert status == 2
    assert "--space_arg was dropout_rate=0.25, not dropout_rate=0.5" in error
    status, _, error = script("train_search", "--resume", "run", "--space_arg", "dropout_rate=0.25")
    assert (status, error) == (0, "")
    status, out, error = script(
        "train", *command[2:], *tiny, "--init_channels", "2", "--layers", "2", "--run_dir", "trained"
    )
    assert (status, error) == (0, "")
    [row] = [json.loads(line) for line in (tmp_path / "trained" / "metrics.jsonl").read_text().splitlines()]
    assert "drop_path_prob" not in row  # this space has no drop path


@pytest.mark.parametrize("annotation", ["Nowhere", "(("])
def test_arguments_get_the_types_of_their_annotations(annotation):
    """Without one that can be evaluated, an argument has the type of its default."""

    class Net:
        def __init__(self, flag: bool = True, length: "int | None" = 4, rate: "float" = 0.5, word: str = "", untyped=2):
            pass

    class Other:
        def __init__(self, number=2, what=None):
            pass

    Other.__init__.__annotations__["what"] = annotation
    given = {"flag": "false", "length": "None", "rate": "1e-3", "word": "3", "untyped": "7", "number": "3"}
    expected = [{"flag": False, "length": None, "rate": 1e-3, "word": "3", "untyped": 7}, {"number": 3}]
    assert constructor_arguments("--space_arg", given, (Net, Other), ()) == expected


@pytest.mark.parametrize(
    ("space", "sizes"),
    [
        ("darts", (16, 8)),
        ("enas_micro", (20, 6)),
        ("enas_macro", (24, 12)),
        ("nasbench201", (16, 5)),
        (f"{EXAMPLE}:Net", (16, None)),
    ],
)
def test_sizes_that_are_not_given_are_the_space_s_own(space, sizes):
    from argparse import Namespace

    from architectures import networks

    args = Namespace(space=space, init_channels=None, layers=None)
    networks.set_sizes(args, init_channels=16, layers=8)
    assert (args.init_channels, args.layers) == sizes


FILES = {
    "broken.py": "import nowhere_to_be_found",
    "plain.py": "from torch import nn\nclass Net(nn.Module): pass",
    "other.json": '{"first": 0}',
    "searched/config.json": '{"stage": "search", "arguments": {"space": "nasbench201"}}',
    "trained/config.json": '{"stage": "eval", "arguments": {"space": "darts"}}',
}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train_search", ["--space", "dart"], "unknown space 'dart': darts, enas_micro, enas_macro, nasbench201; or"),
        ("train_search", ["--strategy", "evolution"], "unknown strategy 'evolution': darts, drnas, gdas, enas, random"),
        ("train_search", ["--space", "absent.py:Net"], "absent.py cannot be imported: FileNotFoundError"),
        (
            "train_search",
            ["--space", "broken.py:Net"],
            "broken.py cannot be imported: ModuleNotFoundError: No module named",
        ),
        ("train_search", ["--space", "plain.py:Net"], "plain.py:Net holds no choices: there is nothing to search"),
        ("train_search", ["--space", f"{EXAMPLE}:Net", "--layers", "3"], "unexpected keyword argument 'layers'"),
        ("train_search", ["--space", "enas_macro", "--init_channels", "3"], "3 channels: an even number is needed"),
        (
            "train_search",
            ["--space", "enas_macro", "--space_arg", "rate=1"],
            "unknown --space_arg 'rate': known are dropout_rate",
        ),
        (
            "train_search",
            ["--space", "enas_macro", "--space_arg", "dropout_rate=x"],
            "--space_arg dropout_rate=x: dropout_rate is float",
        ),
        (
            "train_search",
            ["--space", "enas_micro", "--strategy", "enas", "--strategy_arg", "depth=1"],
            "known are baseline_decay, branch_bias, candidates, entropy_weight, learning_rate, lstm_num_layers",
        ),
        ("train_search", ["--strategy_arg", "lstm_size=1"], "unknown --strategy_arg 'lstm_size': known are none"),
        ("train_search", ["--space_arg", "n_nodes=2"], "unknown --space_arg 'n_nodes': known are none"),
        ("train", ["--space_arg", "n_nodes=2"], "--space_arg n_nodes=2 needs another --space"),
        ("train_search", ["--strategy", "enas", "--unrolled"], "--unrolled needs alphas, and --strategy enas has none"),
        (
            "train",
            ["--space", "nasbench201", "--arch", "other.json"],
            "this architecture belongs to another space: missing keys ['0_1'",
        ),
        ("train", ["--arch", "searched"], "searched is a run in another space: add --space nasbench201"),
        (
            "train",
            ["--space", "nasbench201", "--arch", "trained"],
            "trained is a run in another space: add --space darts",
        ),
        ("train", ["--space", "nasbench201", "--arch", "absent.json"], "cannot read the architecture absent.json"),
        (
            "train",
            ["--space", f"{EXAMPLE}:Net", "--arch", "other.json", "--auxiliary"],
            "--auxiliary needs --space darts",
        ),
        ("train", ["--space", "nowhere", "--arch", "other.json"], "unknown space 'nowhere'"),
        ("train_search", ["--space", "enas_macro", "--space_arg", "dropout_rate"], "'dropout_rate' is not name=value"),
        ("train_search", ["--strategy", "plain.py:Net"], "plain.py has no class Net that is a Strategy"),
    ],
)
def test_mistakes_are_one_line(script, tmp_path, name, arguments, message):
    for file, content in FILES.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    if name != "visualize":
        arguments = ["--dataset", "digits", "--gpu", "-1", *arguments]
    status, out, error = script(name, *arguments)
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert out == ""


# A strategy of one's own

STRATEGY = f"""
import sys
from pathlib import Path
sys.path.append({str(EXAMPLE.parent)!r})
import evolution
Path(__file__).with_name("imported").touch()

class Small(evolution.Evolution):
    size = contestants = 2

"""


def test_a_strategy_of_one_s_own_goes_on_where_it_stopped(script, tmp_path, images, monkeypatch):
    (tmp_path / "mine.py").write_text(STRATEGY)
    code = ["--space", f"{EXAMPLE}:Net", "--strategy", "mine.py:Small"]
    data = ["--dataset", "folder", "--data", images, "--image_size", "16", "--gpu", "-1", "--workers", "0"]
    command = [*data, *code, "--init_channels", "2", "--batch_size", "4", "--epochs", "3"]
    status, _, error = script("train_search", *command, "--run_dir", "whole")
    assert (status, error) == (0, "")

    complete_step = experiment.run.Run.complete_step

    def stop(run):
        if (run.progress.epoch, run.progress.step) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        complete_step(run)

    with monkeypatch.context() as patched:
        patched.setattr(experiment.run.Run, "complete_step", stop)
        status, out, error = script("train_search", *command, "--run_dir", "half")
    assert (status, error) == (128 + signal.SIGTERM, "")
    assert said(out.splitlines(), "go on with: ") == [
        "python",
        "train_search.py",
        "--resume",
        str(tmp_path / "half"),
        *code,
    ]

    (tmp_path / "imported").unlink()
    for named in ([], code[:2], [*code[:2], "--strategy", "other.py:Small"]):  # a folder may be untrusted
        status, out, error = script("train_search", "--resume", "half", *named)
        assert (status, out, error.count("\n")) == (2, "", 1)
        assert f"if you trust that file, add {shlex.join(code[2:] if named else code[:2])}" in error
        assert not (tmp_path / "imported").exists()
    status, out, error = script("train_search", "--resume", "half", *code)
    assert (status, error) == (0, "")
    assert f"going on from {tmp_path}/half/checkpoint.pt: epoch 1, step 2" in out

    metrics = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "half")
    ]
    for whole, half in zip(*metrics, strict=True):
        assert {key: whole[key] for key in whole.keys() - MEASURED} == {
            key: half[key] for key in half.keys() - MEASURED
        }
    weights = [torch.load(tmp_path / run / "weights.pt", weights_only=True) for run in ("whole", "half")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_example_of_a_strategy_searches_another_space(script, tmp_path, tiny):
    strategy, space = f"{EXAMPLE.parent / 'evolution.py'}:Evolution", "nasbench201"
    status, _, error = script(
        "train_search", *tiny, "--space", space, *SPACES[space], "--run_dir", "run", "--strategy", strategy
    )
    assert (status, error) == (0, "")


# Pictures


def test_a_cell_of_nas_bench_201_is_drawn_as_its_graph():
    architecture = nasbench201.from_string(
        "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|nor_conv_3x3~2|"
    )
    source = drawing.graphs(nasbench201.Cell201(architecture), "a cell")["architecture"].source
    assert 'label="\na cell"' in source
    for index, (key, operation) in enumerate(architecture.items()):
        tail, head = key.split("_")
        assert f"edge{index} [label={operation} " in source
        assert f"{tail} -> edge{index}:w" in source
        assert f"edge{index}:e -> {head} " in source


def test_a_macro_network_is_drawn_as_a_chain_with_skips():
    architecture = {
        "LayerChoice1": 5,
        "LayerChoice2": 0,
        "InputChoice3": [],
        "LayerChoice4": 3,
        "InputChoice5": ["layer_0", "layer_1"],
    }
    source = drawing.graphs(Macro(architecture), "a network")["architecture"].source
    for layer, branch in enumerate(["max_pool_3x3", "conv_3x3", "sep_conv_5x5"]):
        assert f"edge{layer} [label={branch} " in source
    arrows = [line.split(" [")[0].strip() for line in source.splitlines() if "->" in line]
    # layer_0 and layer_1 are the inputs of layers 0 and 1: the stem's output and layer 0's.
    assert sorted(arrows) == sorted(
        [
            *("stem -> edge0:w", "edge0:e -> 0", "0 -> edge1:w", "edge1:e -> 1", "1 -> edge2:w", "edge2:e -> 2"),
            *("stem -> 2", "0 -> 2", "2 -> classifier"),
        ]
    )


def test_micro_cells_are_drawn_as_cells():
    node = {"x_input": 0, "x_op": 0, "y_input": 1, "y_op": 4}
    architecture = {
        f"{kind}_node_{i}_{key}": value
        for kind in ("normal", "reduce")
        for i in range(2)
        for key, value in node.items()
    }
    architecture["normal_node_1_x_input"] = 2
    cells = Micro(architecture).cells
    assert cells["normal"].edges == [
        ("normal_node_0_x_op", "c_{k-2}", "0", "sep_conv_3x3"),
        ("normal_node_0_y_op", "c_{k-1}", "0", "skip_connect"),
        ("normal_node_1_x_op", "0", "1", "sep_conv_3x3"),
        ("normal_node_1_y_op", "c_{k-1}", "1", "skip_connect"),
    ]
    assert cells["normal"].concat == ["1"]
    assert cells["reduce"].concat == ["0", "1"]
    assert Micro(architecture | {"normal_node_1_x_input": 3}).cells == {}


def test_any_other_space_is_drawn_as_a_table():
    source = drawing.table({"first": 1, "a:b": ["x", "y"], "skip": []}, "a space").source
    for label in ("first", "1", '"a:b"', '"x, y"', "skip", "nothing"):
        assert f"label={label} " in source or f"[label={label}" in source
    assert source.count("->") == 3
