"""Pictures of runs: read back, animated, as curves, beside each other, on one page; and every way in which a folder can be wrong."""

import io
import json
import math
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from runs import losses, macro_run, nasbench201_run, search_run, some_genotype, training_run, write_run

import genotypes
import visualize
from architecture import Architecture
from cells import Cells
from experiment import metrics
from experiment.errors import UserError
from nas.spaces.enas import Macro, Micro
from nas.spaces.nasbench201 import Cell201
from pictures import animation, compare, curves, drawing, history, report

SCRIPT = Path(visualize.__file__)


def run_script(*arguments, cwd):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


# ---- Reading a run


def test_reading_a_run(tmp_path):
    run = history.read(search_run(tmp_path / "a run", epochs=2))
    assert (run.name, run.caption) == ("a run", "a run, epoch 2 of 2, seed 7")
    assert run.series("valid_acc") == ([1, 2], [80.0, 81.0])
    assert run.series("test_acc") == ([], [])
    assert run.architecture == Cells.of_epoch(run.epochs[-1])


def test_the_caption_of_an_architecture_from_before(tmp_path):
    folder = search_run(tmp_path / "run", epochs=4)
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[1])
    (folder / "genotype.json").write_text(json.dumps(row["genotype"]))
    assert history.read(folder).architecture_caption == "run, epoch 2 of 4, seed 7"


def test_a_last_line_that_is_cut_off_is_left_out(tmp_path, capsys):
    folder = search_run(tmp_path / "run", epochs=3)
    content = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(content[:-40])
    assert len(history.read(folder).epochs) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "incomplete line" in error


def damaged(folder, name, content):
    search_run(folder, epochs=2)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.jsonl", b"", "no complete epoch"),
        ("metrics.jsonl", b'{"epoch": 0', "no complete epoch"),
        ("metrics.jsonl", b"\xff\xfe\n{}\n", "line 1"),
        ("metrics.jsonl", b'[1]\n{"epoch": 1}\n', "line 1.*not an object"),
        ("metrics.jsonl", b'{"epoch": "0"}\n{"epoch": 1}\n', "line 1"),
        ("metrics.jsonl", b'{"epoch": 0, "alphas": [[0.1]]}\n{"epoch": 1}\n', "line 1.*alphas"),
        ("metrics.jsonl", b'{"epoch": 0, "alphas": {"a": {"b": "c"}}}\n{"epoch": 1}\n', "line 1.*not a number"),
        ("metrics.jsonl", b'{"epoch": 0, "alphas": {"a": {"b": 1}}, "betas": {"b": 1}}\n{"epoch": 1}\n', "line 1.*betas"),
        ("metrics.jsonl", b'{"epoch": 0, "alphas": {"a": {"b": 1}}, "betas": {"a": "c"}}\n{"epoch": 1}\n', "line 1.*a beta is not"),
        (
            "metrics.jsonl",
            b'{"epoch": 0, "alphas": {"a": {"b": 1}}}\n{"epoch": 1, "alphas": {"a": {"b": 1}}, "betas": {"a": 1}}\n',
            "line 2.*its betas are of other edges",
        ),
        ("config.json", b"{", "not hold JSON"),
        ("config.json", b"[]", "lacks the arguments"),
        ("config.json", b'{"arguments": 1}', "lacks the arguments"),
    ],
)
def test_a_damaged_run_is_a_users_error(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words):
        history.read(damaged(tmp_path / "run", name, content))


def test_what_is_no_run_ends_in_one_line_and_leaves_nothing(tmp_path):
    search_run(tmp_path / "run", epochs=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "metrics.jsonl").write_text('{"epoch": 0}\n')
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in (
        (["run", "empty"], "empty is not the folder of a run"),
        (["run", "DARTS_V2"], "DARTS_V2 is not a folder"),
        (["half"], "cannot read half/config.json"),
        (["empty", "--report"], "nothing to report on"),
        (["DARTS_V2", "--report"], "nothing to report on"),
        (["run", "--report", "--format", "svg"], "--report embeds PNG"),
    ):
        done = run_script(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert words in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


# ---- Questions to architectures


def test_skip_connections_of_every_kind_of_architecture():
    rng = random.Random(0)
    genotype = some_genotype(rng)
    assert Cells(genotype).skips() == {
        cell: sum(name == "skip_connect" for name, _ in getattr(genotype, cell)) for cell in ("normal", "reduce")
    }
    assert Cell201({"0_1": "skip_connect", "0_2": "none", "1_2": "skip_connect"}).skips() == {"": 2}
    macro = {"LayerChoice1": 0, "LayerChoice2": 5, "InputChoice3": ["layer_0"], "LayerChoice4": 2, "InputChoice5": ["layer_0", "layer_1"]}
    assert Macro(macro).skips() == {"": 3}
    micro = {f"normal_node_0_{side}_{what}": value for side, skip in (("x", 4), ("y", 0)) for what, value in (("op", skip), ("input", 0))}
    assert Micro(micro).skips() == {"normal": 1}


def test_distance_counts_edges():
    cells = genotypes.DARTS_V2
    one = Cells(cells)
    normal = list(cells.normal)
    assert one.distance(one) == 0
    swapped = cells._replace(normal=[normal[1], normal[0], *normal[2:]])
    assert one.distance(Cells(swapped)) == 0
    normal[3] = ("none", 0)
    assert one.distance(Cells(cells._replace(normal=normal))) == 1
    assert one.distance(Cells.read("NASNet")) is None  # five nodes
    assert Architecture({"a": 1, "b": [2]}).distance(Architecture({"a": 1, "b": [3]})) == 1
    assert Architecture({"a": 1}).distance(Architecture({"b": 1})) is None
    assert one.distance(Architecture({"a": 1})) is None


# ---- The animation


def positions(graph):
    """{label: places} of all texts in the graph's picture, and the picture's size."""
    svg = drawing.render(graph, "svg").decode()
    places = re.findall(r'<text[^>]* x="([^"]+)" y="([^"]+)"', svg)
    return sorted(places), re.search(r"viewBox=\"[^\"]+\"", svg).group()


def test_all_frames_have_one_layout(tmp_path):
    run = history.read(search_run(tmp_path / "run", epochs=4))
    drawn = [positions(normal) for normal, _ in animation._graphs(run)]
    assert len(drawn[0][0]) == 7 + 14 + 1  # nodes, edges, caption
    assert all(frame == drawn[0] for frame in drawn)


def test_a_frame_shows_what_the_alphas_say(tmp_path):
    run = history.read(search_run(tmp_path / "run", epochs=2))
    weakest, strongest = animation.strength_range(run)
    everything = [max(w for name, w in edge.items() if name != "none") for row in run.epochs for edge in row["alphas"].values()]
    assert (weakest, strongest) == (min(everything), max(everything))
    for row in run.epochs:
        architecture = Cells.of_epoch(row)
        genotype = architecture.genotype
        cells = animation.relaxed_cells(architecture, row["alphas"])
        for (_, edges), cell, chosen in zip(cells.values(), ("normal", "reduce"), (genotype.normal, genotype.reduce), strict=True):
            assert len(edges) == 14
            for edge in edges:
                source = {"c_{k-2}": 0, "c_{k-1}": 1}.get(edge.tail) if edge.tail.startswith("c_") else int(edge.tail) + 2
                node = int(edge.head) + 2
                weights = row["alphas"][genotypes.edge_key(cell, node, source)]
                assert edge.strength == weights[edge.operation] == max(w for name, w in weights.items() if name != "none")
                pair = chosen[2 * node - 4 : 2 * node - 2]
                assert edge.chosen == (source in {source for _, source in pair})


@pytest.mark.parametrize("make", [search_run, nasbench201_run, macro_run])
def test_an_animation_has_a_frame_for_every_epoch(tmp_path, make):
    content = animation.animation(history.read(make(tmp_path / "run", epochs=3)))
    with Image.open(io.BytesIO(content)) as moving:
        durations = []
        for frame in range(moving.n_frames):
            moving.seek(frame)
            durations.append(moving.info["duration"])
        assert moving.info["loop"] == 0
    # Frames that are alike are stored once, for as long as all of them: the macro network's differ by their caption.
    assert durations == [400, 400, 2400]


@pytest.mark.parametrize(("epochs", "expected"), [(1, [0]), (7, list(range(7))), (8, [1, 3, 5, 7]), (20, [1, 4, 7, 10, 13, 16, 19])])
def test_long_runs_are_thinned_out_evenly(tmp_path, epochs, expected):
    rows, stride = history.History(tmp_path, {}, [{"epoch": epoch} for epoch in range(epochs)]).thinned(7)
    assert [row["epoch"] for row in rows] == expected
    assert stride == (expected[1] - expected[0] if len(expected) > 1 else 1)


def test_a_long_run_has_no_more_frames_bars_and_cells_than_a_picture_can_show(tmp_path):
    run = history.read(search_run(tmp_path / "run", epochs=601))
    assert len(animation._graphs(run)) == 55  # every 11th of 601
    bars = curves.operations(run).axes[0]
    assert {len(container) for container in bars.containers} == {101}  # every 6th
    assert bars.get_title("left") == "normal cell: edges on which an operation is strongest, every 6 epochs"
    assert bars.containers[0][-1].get_x() + 3 == 601
    heat_map = next(axes for axes in curves.alphas(run).axes if axes.images)
    assert heat_map.images[0].get_array().shape == (8, 201, 3)  # every 3rd
    assert heat_map.images[0].get_extent()[:2] == [-0.5, 602.5]


def test_a_training_has_no_animation(tmp_path):
    assert animation.animation(history.read(training_run(tmp_path / "run", genotypes.DARTS_V2))) is None


# ---- Curves


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (search_run, {"curves", "alphas", "operations"}),
        (nasbench201_run, {"curves", "alphas", "operations"}),
        (macro_run, {"curves", "operations"}),
        (lambda folder, epochs: training_run(folder, genotypes.DARTS_V2, epochs), {"curves"}),
    ],
)
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_has_the_pictures_of_what_it_recorded(tmp_path, make, expected, epochs, recwarn):
    figures = curves.pictures(history.read(make(tmp_path / "run", epochs=epochs)))
    assert set(figures) == expected
    for figure in figures.values():
        assert f"run, epoch {epochs} of {epochs}, seed 7" in figure.get_suptitle()
        assert curves.save(figure) == curves.save(figure)
    assert not list(recwarn)


def test_the_heat_map_shows_the_alphas_in_the_operations_colours(tmp_path):
    run = history.read(search_run(tmp_path / "run", epochs=3))
    weights = [weight for row in run.epochs for edge in row["alphas"].values() for weight in edge.values()]
    low, high = min(weights), max(weights)
    blocks = {axes.get_title("left"): axes for axes in curves.alphas(run).axes if axes.images}
    assert len(blocks) == 28
    axes = blocks["reduction: c_{k-1} \N{RIGHTWARDS ARROW} 3"]
    block = axes.images[0].get_array()
    names = sorted(genotypes.PRIMITIVES, key=list(drawing.COLOURS).index)
    assert block.shape == (8, 3, 3)
    for row, name in enumerate(names):
        for epoch in range(3):
            share = (run.epochs[epoch]["alphas"]["reduce_n5_p1"][name] - low) / (high - low)
            assert block[row, epoch].tolist() == pytest.approx([1 - share * (1 - channel) for channel in to_rgb(drawing.COLOURS[name])])


def test_bars_count_the_strongest_operations(tmp_path):
    run = history.read(search_run(tmp_path / "run", epochs=2))
    axes = curves.operations(run).axes[0]
    for container in axes.containers:
        for epoch, bar in enumerate(container):
            name = next(name for name, colour in drawing.COLOURS.items() if to_rgb(colour) == bar.get_facecolor()[:3])
            edges = [edge for key, edge in run.epochs[epoch]["alphas"].items() if key.startswith("normal")]
            assert bar.get_height() == sum(animation.strongest(edge)[0] == name for edge in edges)


def test_the_entropy_is_drawn_from_0_to_that_of_equal_operations(tmp_path):
    """A search that has decided nothing does not look like one that has."""
    for make, operations in ((search_run, 8), (nasbench201_run, 5)):
        run = history.read(make(tmp_path / make.__name__, epochs=3))
        [axes] = [axes for axes in curves.operations(run).axes if axes.get_title("left").startswith("entropy")]
        low, high = axes.get_ylim()
        assert low == 0
        assert math.log(operations) < high < 1.1 * math.log(operations)
        [line] = [line for line in axes.lines if line.get_label() == "all operations equal"]
        assert list(line.get_ydata()) == [pytest.approx(math.log(operations))] * 2


def test_the_chosen_operation_s_frame_has_no_operation_s_colour(tmp_path):
    run = history.read(search_run(tmp_path / "run", epochs=3))
    frames = [patch for axes in curves.alphas(run).axes for patch in axes.patches]
    assert len(frames) == 2 * 8 - sum(operation == "none" for edges in cells_of(run) for operation, _ in edges)
    assert {frame.get_edgecolor()[:3] for frame in frames} == {to_rgb(curves.INK)}
    assert curves.INK not in drawing.COLOURS.values()


def cells_of(run):
    return run.architecture.genotype.normal, run.architecture.genotype.reduce


def with_classes(folder, counts, names):
    """A training whose last epoch tells of every class."""
    training_run(folder, genotypes.DARTS_V2)
    first, last = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    last |= metrics.of_classes(counts, names)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first, last)))
    return history.read(folder)


def test_every_class_has_a_row_in_the_picture(tmp_path, recwarn):
    names = ["a $x_ b$", "\x1b[31m\udcff" + "y" * 300, "oak"]
    run = with_classes(tmp_path / "run", [[3, 1, 0], [0, 4, 0], [5, 5, 0]], names)
    figure = curves.pictures(run)["confusion"]
    bars, matrix = figure.axes
    assert matrix.images[0].get_array().tolist() == [[75, 25, 0], [0, 100, 0], [50, 50, 0]]
    assert [bar.get_width() for bar in bars.patches] == [75, 100, 0]
    labels = [label.get_text() for label in matrix.get_yticklabels()]
    assert labels[0] == r"a \$x_ b\$"
    assert labels[1].startswith(r"\x1b[31m\udcffy")
    assert len(labels[1]) < 50
    assert curves.save(figure) == curves.save(figure)
    assert not list(recwarn)
    assert b"Accuracy by class" in report.of_run(run, {"confusion.png": curves.save(figure)})


def test_of_very_many_classes_the_worst_are_shown(tmp_path):
    count = curves.MOST_CLASSES + 5
    counts = [[10 if other == index else index % 7 if other == 0 else 0 for other in range(count)] for index in range(count)]
    run = with_classes(tmp_path / "run", counts, [f"class {index}" for index in range(count)])
    figure = curves.confusion(run)
    assert f"the {count - 5} least accurate of {count} classes" in figure.get_suptitle()
    left_out = {f"class {index}" for index in range(count)} - {label.get_text() for label in figure.axes[1].get_yticklabels()}
    right = run.epochs[-1]["class_acc"]
    assert {right[name] for name in left_out} == {100.0}
    assert len(left_out) == 5
    curves.save(figure)


def test_a_run_that_measured_the_test_set_once_is_compared_by_its_held_out_images(tmp_path):
    rows = [losses(epoch, "valid") for epoch in range(3)]
    rows[-1] |= {"test_loss": 9.0, "test_acc": 1.0}
    run = history.read(write_run(tmp_path / "run", rows, "eval"))
    loss, _ = curves.compare_curves([run], ["run"]).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [run.series(f"{phase}_loss")[1] for phase in ("train", "valid")]
    loss, _ = curves.curves(run).axes
    assert [len(line.get_xdata()) for line in loss.lines] == [3, 3, 1]


def test_numbers_of_operations_get_their_names(tmp_path):
    alphas = {"LayerChoice1": {"0": 0.5, "5": 0.3, "none": 0.2}}
    run = history.read(write_run(tmp_path / "run", [losses(0, "valid") | {"alphas": alphas, "architecture": {}}], space="enas_macro"))
    assert history.named_alphas(run, run.epochs[0]) == {"LayerChoice1": {"conv_3x3": 0.5, "max_pool_3x3": 0.3, "none": 0.2}}


# ---- Side by side


def test_the_table(tmp_path):
    v1, v2 = genotypes.DARTS_V1, genotypes.DARTS_V2
    paths = [
        training_run(tmp_path / "a" / "run", v2, init_channels=36, layers=20),
        training_run(tmp_path / "b" / "run", v1, init_channels=4, layers=3),
        nasbench201_run(tmp_path / "c"),
    ]
    one, two, three = compare.table([history.read(path) for path in paths])
    assert [row["run"] for row in (one, two, three)] == [str(paths[0]), str(paths[1]), "c"]
    assert [row["distance"] for row in (one, two, three)] == ["0", str(Cells(v1).distance(Cells(v2))), "-"]
    assert [row["skips"] for row in (one, two, three)] == ["2 + 3", "3 + 3", str(history.read(paths[2]).architecture.skips()[""])]
    assert one["params, M"] == "3.349"  # as the original prints
    assert one["test acc, %"] == "81.00"
    assert one["valid acc, %"] == "-"
    assert three["valid acc, %"] == "81.00"
    assert float(three["params, M"]) > 0


def test_sizes_are_those_of_the_network_itself(tmp_path):
    import utils
    from model import NetworkCIFAR

    v2 = genotypes.DARTS_V2
    [row] = compare.table([history.read(training_run(tmp_path / "run", v2, init_channels=4, layers=3))])
    network = NetworkCIFAR(4, 10, 3, True, v2)
    assert row["params, M"] == f"{utils.count_parameters_in_MB(network):.3f}"
    assert row["mult-adds, M"] == f"{utils.count_multiply_adds(network, 32):.1f}"


def test_code_that_only_a_folder_names_is_not_run_to_compare_it(tmp_path):
    (tmp_path / "space.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w').close()")
    rows = [losses(0, "valid") | {"alphas": {}, "architecture": {"a": 1}}]
    run = history.read(write_run(tmp_path / "run", rows, space=f"{tmp_path / 'space.py'}:Net"))
    assert compare.size(run) == (None, None)
    assert not (tmp_path / "it ran").exists()
    assert compare.size(run, trusted=True) == (None, None)
    assert (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"image_size": value} for value in (0, -5, True, 1, 3, "32", None, 2**31, 10**30)),
        *({"layers": value} for value in ("4", 2.5)),
        *({"init_channels": value} for value in ("4", 0, -1, 2.5, 10**9)),
        {"network": "imagenet", "image_size": 16},
        {"space": "elsewhere"},
    ],
)
def test_what_fits_no_network_costs_only_a_cell_of_the_table(wrong, tmp_path):
    training = training_run(tmp_path, genotypes.DARTS_V2, init_channels=4, layers=3)
    config = json.loads((training / "config.json").read_text())
    config["arguments"] |= wrong
    (training / "config.json").write_text(json.dumps(config))
    [row] = compare.table([history.read(training)])
    assert (row["epochs"], row["params, M"], row["mult-adds, M"]) == ("2", "-", "-")


def test_the_size_of_a_search_is_that_of_the_training_that_the_paper_would_do(tmp_path):
    """On images of 96 pixels, `--network auto` takes the network for ImageNet."""
    import utils
    from model import NetworkImageNet

    folder = search_run(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["arguments"]["image_size"] = 96
    (folder / "config.json").write_text(json.dumps(config))
    run = history.read(folder)
    network = NetworkImageNet(36, 10, 20, False, run.architecture.genotype)
    assert compare.size(run) == (utils.count_parameters_in_MB(network), utils.count_multiply_adds(network, 96))


def test_a_space_that_is_gone_has_no_size(tmp_path):
    rows = [losses(0, "valid") | {"alphas": {}, "architecture": {"a": 1}}]
    [row] = compare.table([history.read(write_run(tmp_path / "run", rows, space="gone.py:Net"))])
    assert (row["params, M"], row["mult-adds, M"]) == ("-", "-")


def test_command_line_compares_runs_of_different_spaces(tmp_path):
    for name, make in (("one", search_run), ("two", nasbench201_run), ("three", macro_run)):
        make(tmp_path / name)
    done = run_script("one", "two", "three", "--report", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-4:] == ["curves.png", "cells.png", "comparison.md", "report.html"]
    assert re.search(r"^three +enas_macro", done.stdout, re.MULTILINE)
    assert "| two | nasbench201 |" in (tmp_path / "comparison.md").read_text()
    with Image.open(tmp_path / "cells.png") as picture:
        assert picture.width > 500


def test_cells_stand_below_each_other(tmp_path):
    """Beside each other, they would not fit on a page."""
    runs = [history.read(search_run(tmp_path / name, seed=seed)) for seed, name in enumerate(("one", "two"))]
    picture = Image.open(io.BytesIO(compare.cells(runs)))
    parts = [
        Image.open(io.BytesIO(drawing.render(graph, "png", dpi=90))) for run in runs for graph in drawing.graphs(run.architecture).values()
    ]
    assert picture.width < max(part.width for part in parts) + 100
    rows = (np.array(picture.convert("L")) < 255).any(axis=1)
    assert (np.diff(rows.astype(int)) == 1).sum() >= 4  # white between any two cells
    assert picture.height > sum(part.height for part in parts)


def test_names_are_shown_as_they_are(tmp_path, monkeypatch, capsys):
    """In a terminal and in Markdown: no control sequence, no HTML, no link."""
    names = ["<img src=x>", "[a](b)|*c*`d`", "\x1b[31mred\n\u202e_"]
    monkeypatch.chdir(tmp_path)
    for name in names:
        nasbench201_run(tmp_path / name, epochs=1)
    rows = compare.table([history.read(name) for name in names])
    assert compare.text(rows).split("\n")[3].startswith(r"\x1b[31mred\n\u202e_ ")
    lines = compare.markdown(rows).decode().splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| &lt;img src=x&gt; |")
    assert lines[3].startswith(r"| \[a\](b)\|\*c\*\`d\` |")
    assert lines[4].startswith(r"| \\x1b\[31mred\\n\\u202e\_ |")
    monkeypatch.setattr("sys.argv", ["visualize.py", "DARTS_V2", "--out", names[2], "--format", "svg"])
    visualize.main()
    assert capsys.readouterr().out.splitlines() == [rf"\x1b[31mred\n\u202e_/{name}.svg" for name in ("normal", "reduction")]


# ---- The page


class Page(HTMLParser):
    def __init__(self, content):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


def propose(folder, commands):
    """As a complete run does."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "next": commands}))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run with all its pictures and its page, by the command line."""
    folder = search_run(tmp_path_factory.mktemp("report") / "<b>run & co")
    propose(folder, {"train what was found": "python train.py --arch '<b>run & co' --auxiliary"})
    done = run_script(folder, "--report", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    names = ["normal.png", "reduction.png", "cells.gif", "curves.png", "alphas.png", "operations.png", "report.html"]
    assert done.stdout.splitlines() == [str(folder / name) for name in names]
    return folder


def test_the_page_needs_nothing_but_itself(reported):
    content = (reported / "report.html").read_text()
    page = Page(content)
    assert page.tags.count("img") == 6
    assert all(source.startswith(("data:image/png;base64,", "data:image/gif;base64,")) for source in page.sources)
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert "url(" not in content
    assert "@import" not in content


def test_the_page_says_what_ran_and_what_to_do(reported):
    text = Page((reported / "report.html").read_text()).text
    for words in ("<b>run & co", "python train.py --arch '<b>run & co' --auxiliary", "python a.py --seed 7", "c0ffee", "82.00%", "seed 7"):
        assert words in text, words


def test_both_commands_of_a_search_are_on_its_page(tmp_path):
    folder = search_run(tmp_path / "run", epochs=1)
    recipe = "by the paper's recipe, which takes days"
    propose(folder, {"train what was found": "python train.py --epochs 12", recipe: "python train.py --epochs 600"})
    text = Page(report.of_run(history.read(folder), {}).decode()).text
    for words in ("Train what was found:", "python train.py --epochs 12", "By the paper's recipe, which takes days:", "--epochs 600"):
        assert words in text


def test_a_run_that_goes_on_is_reported_without_a_command(tmp_path):
    run = history.read(search_run(tmp_path / "run", epochs=1))
    assert b"not complete yet" in report.of_run(run, {})


def test_pictures_are_written_again(reported, tmp_path):
    again = tmp_path / reported.name
    shutil.copytree(reported, again)
    before = {path.name: path.read_bytes() for path in again.iterdir()}
    done = run_script(again, "--report", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == before


@pytest.mark.parametrize("format", ["svg", "pdf"])
def test_other_formats(tmp_path, format):
    search_run(tmp_path / "run", epochs=2)
    done = run_script("run", "--format", format, "--out", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    names = {f"{name}.{format}" for name in ("normal", "reduction", "curves", "alphas", "operations")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"cells.gif"}


SEARCHES = {"architect", "nas.search", "nas.strategies", "nas.spaces.enas", "nas.spaces.nasbench201"}


@pytest.mark.parametrize(
    ("script", "unused"),
    [("visualize", {"torch", "matplotlib", "PIL", "fpdf", "tensorboard", "tqdm"}), ("test", SEARCHES)],
)
def test_importing_a_script_loads_only_what_it_needs(tmp_path, script, unused):
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import {script}; assert not {unused!r} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
