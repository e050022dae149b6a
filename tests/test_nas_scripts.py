"""Every space by every strategy, as a user runs them: search, train, test, draw; and what is refused."""

import json
import shlex
import signal
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from scripts import arguments_of, assert_same, at, result, rows_of, said, signal_oneself

import experiment.run
from architectures import load_space, networks
from nas.loading import constructor_arguments
from nas.spaces import nasbench201
from nas.spaces.enas import Macro, Micro
from pictures import drawing

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = f"{EXAMPLES / 'small_space.py'}:Net"
SPACES = {
    "darts": ["--init_channels", "2", "--layers", "3", "--nodes", "1"],
    "enas_micro": ["--init_channels", "2", "--layers", "3"],
    "enas_macro": ["--init_channels", "2", "--layers", "4"],
    "nasbench201": ["--init_channels", "2", "--layers", "1"],
    SMALL: ["--init_channels", "2"],
}
PICTURES = {"darts": {"normal.png", "reduction.png"}, "enas_micro": {"normal.png", "reduction.png"}}


@pytest.fixture
def data(images):
    """The arguments for small images."""
    return ["--dataset", "folder", "--data", images, "--image_size", "16", "--workers", "0", "--gpu", "-1"]


@pytest.fixture
def tiny(data):
    """The arguments of a short run."""
    return [*data, "--batch_size", "8", "--fast_dev_run"]


PAIRS = [(space, strategy) for space in SPACES for strategy in ("darts --unrolled", "enas")] + [
    ("nasbench201", "random")
]


@pytest.mark.parametrize(("space", "strategy"), PAIRS, ids=lambda name: name.rpartition("/")[2])
def test_every_pair_searches_and_what_it_finds_trains(done, tmp_path, tiny, space, strategy):
    arguments = [*tiny, "--space", space, *SPACES[space]]
    out = done("train_search", *arguments, "--run_dir", "run", "--strategy", *strategy.split())
    folder = tmp_path / "run"
    architecture = json.loads((folder / "architecture.json").read_text())
    [metrics] = rows_of(folder)
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
        command = said(out, "train what was found: ")
        assert command[:4] == ["python", "train.py", "--arch", str(folder)]
        sizes = [word for word in SPACES[space] if word not in ("--nodes", "1")] if space == "darts" else SPACES[space]
        out = done("train", *command[2:], *tiny, *sizes, "--run_dir", "trained")
        [row] = rows_of("trained")
        assert ("drop_path_prob" in row) == (space in ("darts", "enas_micro"))
        assert any("test_acc" in line for line in done("test", *said(out, "test the weights again: ")[2:]))
        done("visualize", "trained")


def test_nni_s_example_of_choices(done, refused, tiny):
    """Its candidates differ in shape, and so are not for DARTS."""
    space = ["--space", f"{EXAMPLES / 'mnist_choices.py'}:Net", "--channels", "1"]
    assert "cannot be added" in refused("train_search", *tiny, *space)
    out = done("train_search", *tiny, *space, "--strategy", "enas", "--run_dir", "run")
    done("train", *said(out, "train what was found: ")[2:], *tiny)


def test_arguments_of_spaces_and_strategies(done, refused, tmp_path, tiny):
    """From the command line to the constructors, to the commands that follow, and into a run that goes on."""
    sizes = ["--init_channels", "2", "--layers", "2"]
    space = ["--space", "enas_macro", *sizes, "--space_arg", "dropout_rate=0.25"]
    strategy = ["--strategy", "enas", "--strategy_arg", "lstm_num_layers=2", "--strategy_arg", "tanh_constant=None"]
    out = done("train_search", *tiny, *space, *strategy, "--run_dir", "run")
    assert arguments_of("run")["strategy_arg"] == "lstm_num_layers=2 tanh_constant=None"
    assert "mutator.lstm.1.weight_hh" in torch.load(tmp_path / "run" / "weights.pt", weights_only=True)
    command = said(out, "train what was found: ")
    assert command[command.index("--space_arg") + 1] == "dropout_rate=0.25"
    error = refused("train_search", "--resume", "run", "--space_arg", "dropout_rate=0.5")
    assert "--space_arg was dropout_rate=0.25, not dropout_rate=0.5" in error
    done("train_search", "--resume", "run", "--space_arg", "dropout_rate=0.25")
    done("train", *command[2:], *tiny, *sizes, "--run_dir", "trained")


def test_arguments_get_the_types_of_their_annotations():
    """Without one that can be evaluated, an argument has the type of its default."""

    class Net:
        def __init__(self, flag: bool = True, length: "int | None" = 4, rate: "float" = 0.5, word: str = "", untyped=2):
            pass

    class Other:
        def __init__(self, number: "Nowhere" = 2):  # noqa: F821
            pass

    given = {"flag": "false", "length": "None", "rate": "1e-3", "word": "3", "untyped": "7", "number": "3"}
    expected = [{"flag": False, "length": None, "rate": 1e-3, "word": "3", "untyped": 7}, {"number": 3}]
    assert constructor_arguments("--space_arg", given, (Net, Other), ()) == expected


@pytest.mark.parametrize(
    ("space", "sizes"),
    list(zip(SPACES, [(16, 8), (20, 6), (24, 12), (16, 5), (16, None)], strict=True)),
)
def test_sizes_that_are_not_given_are_the_space_s_own(space, sizes):
    args = Namespace(space=space, init_channels=None, layers=None)
    networks.set_sizes(args, init_channels=16, layers=8)
    assert (args.init_channels, args.layers) == sizes


FILES = {
    "broken.py": "import nowhere_to_be_found",
    "plain.py": "from torch import nn\nclass Net(nn.Module): pass",
    "other.json": '{"first": 0}',
    "searched/config.json": '{"stage": "search", "arguments": {"space": "nasbench201"}}',
}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train_search --space dart", "unknown space 'dart': darts, enas_micro, enas_macro, nasbench201; or"),
        ("train_search --strategy evolution", "unknown strategy 'evolution': darts, drnas, gdas, enas, random; or"),
        ("train_search --space broken.py:Net", "broken.py cannot be imported: ModuleNotFoundError: No module named"),
        ("train_search --space plain.py:Net", "plain.py:Net holds no choices: there is nothing to search"),
        ("train_search --strategy plain.py:Net", "plain.py has no class Net that is a Strategy"),
        (f"train_search --space {SMALL} --layers 3", "unexpected keyword argument 'layers'"),
        (f"train_search --space {SMALL} --channels 1", "--channels 1 needs a network that takes in_channels"),
        ("train_search --space enas_macro --init_channels 3", "3 channels: an even number is needed"),
        ("train_search --space enas_macro --space_arg rate=1", "unknown --space_arg 'rate': known are dropout_rate"),
        ("train_search --space enas_macro --space_arg dropout_rate=x", "dropout_rate=x: dropout_rate is float"),
        ("train_search --space enas_macro --space_arg dropout_rate", "'dropout_rate' is not name=value"),
        ("train_search --space enas_macro --space_arg note=it's", "No closing quotation"),
        ("train_search --space enas_micro --strategy enas --strategy_arg depth=1", "known are baseline_decay, branch_"),
        ("train_search --strategy_arg lstm_size=1", "unknown --strategy_arg 'lstm_size': known are none"),
        ("train_search --strategy enas --unrolled", "--unrolled needs alphas, and --strategy enas has none"),
        ("train --space_arg n_nodes=2", "--space_arg n_nodes=2 needs another --space"),
        ("train --space nasbench201 --arch other.json", "belongs to another space: missing keys ['0_1'"),
        ("train --space nasbench201 --arch absent.json", "cannot read the architecture absent.json"),
        ("train --arch searched", "searched is a run in another space: add --space nasbench201"),
        (f"train --space {SMALL} --arch other.json --auxiliary", "--auxiliary needs --space darts"),
    ],
)
def test_mistakes_are_one_line(refused, tmp_path, command, message):
    for file, content in FILES.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    assert message in refused(*command.split(), "--dataset", "digits", "--gpu", "-1")


STRATEGY = f"""
import sys
from pathlib import Path
sys.path.append({str(EXAMPLES)!r})
import evolution
Path(__file__).with_name("imported").touch()

class Small(evolution.Evolution):
    size = contestants = 2

"""


def test_a_strategy_of_one_s_own_goes_on_where_it_stopped(script, done, refused, tmp_path, data, monkeypatch):
    (tmp_path / "my strategy.py").write_text(STRATEGY)
    code = ["--space", SMALL, "--strategy", "my strategy.py:Small"]
    command = [*data, *code, "--init_channels", "2", "--batch_size", "4", "--epochs", "3"]
    done("train_search", *command, "--run_dir", "whole")

    with monkeypatch.context() as patched:
        patched.setattr(experiment.run.Run, "complete_step", experiment.run.Run.complete_step)  # restored afterwards
        at(1, 2, signal_oneself(signal.SIGTERM))()
        status, out, error = script("train_search", *command, "--run_dir", "half")
    assert (status, error) == (128 + signal.SIGTERM, "")
    again = ["python", "train_search.py", "--resume", str(tmp_path / "half"), *code]
    assert said(out.splitlines(), "go on with: ") == again

    (tmp_path / "imported").unlink()
    for named in ([], code[:2], [*code[:2], "--strategy", "other.py:Small"]):  # a folder may be untrusted
        error = refused("train_search", "--resume", "half", *named)
        assert f"if you trust that file, add {shlex.join(code[2:] if named else code[:2])}" in error
        assert not (tmp_path / "imported").exists()
    out = done("train_search", "--resume", "half", *code)
    assert any(f"going on from {tmp_path}/half/checkpoint.pt: epoch 1, step 2" in line for line in out)
    assert_same(result(tmp_path / "half"), result(tmp_path / "whole"))


def test_a_macro_network_is_a_chain_with_skips():
    choices = {"LayerChoice1": 5, "LayerChoice2": 0, "InputChoice3": [], "LayerChoice4": 3}
    [network] = Macro(choices | {"InputChoice5": ["layer_0", "layer_1"]}).cells.values()
    assert network.edges == [
        ("LayerChoice1", "stem", "0", "max_pool_3x3"),
        ("LayerChoice2", "0", "1", "conv_3x3"),
        ("LayerChoice4", "1", "2", "sep_conv_5x5"),
    ]
    # layer_0 and layer_1 are the inputs of layers 0 and 1: the stem's output and layer 0's.
    assert network.fixed == [("stem", "2"), ("0", "2")]
    assert network.concat == ["2"]
    assert "stem -> 2" in drawing.cell(network, "").source
    for unknown in ({"InputChoice5": ["layer_2"]}, {"InputChoice5": [], "LayerChoice4": 6}, {}):
        assert Macro(choices | unknown).cells == {}


def test_the_cells_of_micro_networks():
    node = {"x_input": 0, "x_op": 0, "y_input": 1, "y_op": 4}
    names = [f"{kind}_node_{number}" for kind in ("normal", "reduce") for number in range(2)]
    architecture = {f"{name}_{key}": value for name in names for key, value in node.items()}
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
