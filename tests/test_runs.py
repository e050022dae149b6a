"""Pictures of runs: read back, animated, as curves, beside each other, on one page; folders that are wrong."""

import html
import io
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from runs import losses, macro_run, nasbench201_run, search_run, some_genotype, training_run, write_run
from scripts import arguments_of, edit

import genotypes
from architectures import Architecture
from architectures.cells import Cells
from experiment import metrics
from experiment.errors import UserError
from nas.spaces.enas import Macro, Micro
from nas.spaces.nasbench201 import Cell201
from pictures import animation, compare, curves, drawing, history, report

# ---- Reading a run


def test_a_last_line_that_is_cut_off_is_left_out(tmp_path, capsys):
    folder = search_run(tmp_path / "run", epochs=3)
    content = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(content[:-40])
    assert len(history.read(folder).epochs) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "incomplete line" in error


def test_a_diverged_run_with_edges_of_any_name_can_be_looked_at(tmp_path):
    alphas = {"normal_nX_p0": {"a": 0.5, "b": 0.5}, "normal_n999_p999": {"a": 0.5}, "reduce_n2_p7": {"0": 0.5}}
    diverged = {"valid_loss": math.nan, "eigenvalue": math.inf, "skips_normal": 1e100, "alphas": alphas}
    run = history.read(write_run(tmp_path, [losses(epoch, "valid") | diverged for epoch in range(2)]))
    assert all(graph.source for graphs in animation.graphs_of(run) for graph in graphs)
    assert all(curves.save(figure) for figure in curves.pictures(run).values())
    assert report.of_run(run, {})
    assert compare.table([run])


def damaged(folder, name, content):
    search_run(folder, epochs=2)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metrics.jsonl", b"", "no complete epoch"),
        ("metrics.jsonl", b"\xff\xfe\n{}\n", "line 1"),
        ("metrics.jsonl", b'{"epoch": 0, "alphas": {"a": {"b": 1}}}\n{"epoch": 1, "alphas": {}}\n', "does not follow"),
        ("metrics.jsonl", b'{"epoch": 0, "valid_acc": "high"}\n{"epoch": 1}\n', "line 1.*valid_acc"),
        ("config.json", b"{", r"run/config\.json is damaged or was edited"),
        ("config.json", b'{"stage": "search", "arguments": 1}', r"run/config\.json is damaged.*arguments"),
    ],
)
def test_a_damaged_run_is_a_users_error(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words):
        history.read(damaged(tmp_path / "run", name, content))


def test_what_is_no_run_ends_in_one_line_and_leaves_nothing(refused, tmp_path):
    search_run(tmp_path / "run", epochs=1)
    (tmp_path / "empty").mkdir()
    training_run(tmp_path / "trained", Cells.read("DARTS_V2").genotype)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "metrics.jsonl").write_text('{"epoch": 0}\n')
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in (
        ("run empty", "empty is not the folder of a run"),
        ("run DARTS_V2", "DARTS_V2 is not the folder of a run"),
        ("half", "cannot read half/config.json"),
        ("empty --report", "nothing to report on"),
        ("DARTS_V2 --report", "nothing to report on"),
        ("run --report --format svg", "--report embeds PNG"),
        ("run --report --benchmark x.csv", "leave --report out"),
        ("run trained --benchmark x.csv", "trained: only a search has a path"),
    ):
        assert words in refused("visualize", *arguments.split())
    assert sorted(tmp_path.rglob("*")) == before


# ---- Questions to architectures


def test_skip_connections_of_every_kind_of_architecture():
    genotype = some_genotype(random.Random(0))
    assert Cells(genotype).skips() == {
        cell: sum(name == "skip_connect" for name, _ in getattr(genotype, cell)) for cell in ("normal", "reduce")
    }
    assert Cell201({"0_1": "skip_connect", "0_2": "none", "1_2": "skip_connect"}).skips() == {"": 2}
    macro = {"LayerChoice1": 0, "LayerChoice2": 5, "InputChoice3": ["layer_0"], "LayerChoice4": 2}
    assert Macro(macro | {"InputChoice5": ["layer_0", "layer_1"]}).skips() == {"": 3}
    micro = dict(zip(("x_op", "x_input", "y_op", "y_input"), (4, 0, 0, 0), strict=True))
    assert Micro({f"normal_node_0_{key}": value for key, value in micro.items()}).skips() == {"normal": 1}


def test_distance_counts_edges():
    cells = genotypes.DARTS_V2
    one, normal = Cells(cells), list(cells.normal)
    assert one.distance(one) == 0
    assert one.distance(Cells(cells._replace(normal=[normal[1], normal[0], *normal[2:]]))) == 0
    assert one.distance(Cells(cells._replace(normal=[*normal[:3], ("none", 0), *normal[4:]]))) == 1
    assert one.distance(Cells.read("NASNet")) is None  # five nodes
    assert Architecture({"a": 1, "b": [2]}).distance(Architecture({"a": 1, "b": [3]})) == 1
    assert Architecture({"a": 1}).distance(Architecture({"b": 1})) is None


# ---- The animation


def test_a_frame_shows_what_the_alphas_say(tmp_path):
    run = history.read(search_run(tmp_path / "run", epochs=2))
    for row in run.epochs:
        architecture = Cells.of_epoch(row)
        for cell, edges in zip(("normal", "reduce"), animation.relaxed_edges(architecture, row).values(), strict=True):
            assert len(edges) == 14
            for edge in edges:
                source = {"c_{k-2}": 0, "c_{k-1}": 1}[edge.tail] if "c_" in edge.tail else int(edge.tail) + 2
                node = int(edge.head) + 2
                weights = dict(row["alphas"][genotypes.edge_key(cell, node, source)])
                del weights["none"]
                assert (edge.operation, edge.strength) == max(weights.items(), key=lambda item: item[1])
                pair = getattr(architecture.genotype, cell)[2 * node - 4 : 2 * node - 2]
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
def test_a_run_has_the_pictures_of_what_it_recorded(tmp_path, make, expected):
    figures = curves.pictures(history.read(make(tmp_path / "run", epochs=3)))
    assert set(figures) == expected
    for figure in figures.values():
        assert "run, epoch 3 of 3, seed 7" in figure.get_suptitle()


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
            assert block[row, epoch].tolist() == pytest.approx(
                [1 - share * (1 - channel) for channel in to_rgb(drawing.COLOURS[name])]
            )


def test_every_class_has_a_row_in_the_picture(tmp_path):
    names = ["a $x_ b$", "\x1b[31m\udcff" + "y" * 300, "oak"]
    row = losses(0, "test") | metrics.of_classes([[3, 1, 0], [0, 4, 0], [5, 5, 0]], names)
    run = history.read(write_run(tmp_path / "run", [row], "eval"))
    figure = curves.pictures(run)["confusion"]
    matrix = figure.axes[0]
    assert matrix.images[0].get_array().tolist() == [[75, 25, 0], [0, 100, 0], [50, 50, 0]]
    labels = [label.get_text() for label in matrix.get_yticklabels()]
    assert labels[0] == r"a \$x_ b\$"
    assert labels[1].startswith(r"\x1b[31m\udcffy")
    assert len(labels[1]) < 50
    assert "Accuracy by class" in report.of_run(run, {"confusion.png": curves.save(figure)})


def test_a_run_that_measured_the_test_set_once_is_compared_by_its_held_out_images(tmp_path):
    rows = [losses(epoch, "valid") for epoch in range(3)]
    rows[-1] |= {"test_loss": 9.0, "test_acc": 1.0}
    run = history.read(write_run(tmp_path / "run", rows, "eval"))
    loss, _ = curves.compare_curves([run], ["run"]).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [
        run.series(f"{phase}_loss")[1] for phase in ("train", "valid")
    ]
    loss, _ = curves.curves(run).axes
    assert [len(line.get_xdata()) for line in loss.lines] == [3, 3, 1]


def test_numbers_of_operations_get_their_names(tmp_path):
    alphas = {"LayerChoice1": {"0": 0.5, "5": 0.3, "none": 0.2}}
    run = history.read(
        write_run(tmp_path / "run", [losses(0, "valid") | {"alphas": alphas, "architecture": {}}], space="enas_macro")
    )
    assert run.epochs[0]["alphas"] == {"LayerChoice1": {"conv_3x3": 0.5, "max_pool_3x3": 0.3, "none": 0.2}}


# ---- Side by side


def test_the_table(tmp_path):
    v1, v2 = genotypes.DARTS_V1, genotypes.DARTS_V2
    paths = [
        training_run(tmp_path / "a" / "run", v2, init_channels=36, layers=20),
        training_run(tmp_path / "b" / "run", v1, init_channels=4, layers=3),
        nasbench201_run(tmp_path / "c"),
    ]
    one, two, three = compare.table([history.read(path) for path in paths])
    assert [row["run"] for row in (one, two, three)] == ["a/run", "b/run", "c"]
    assert [row["distance"] for row in (one, two, three)] == ["0", str(Cells(v1).distance(Cells(v2))), "-"]
    assert [row["skips"] for row in (one, two)] == ["2 + 3", "3 + 3"]
    assert three["skips"] == str(history.read(paths[2]).architecture.skips()[""])
    assert one["params, M"] == "3.349"  # as the original prints
    assert (one["test acc, %"], one["valid acc, %"], three["valid acc, %"]) == ("81.00", "-", "81.00")
    assert float(three["params, M"]) > 0


def test_code_that_only_a_folder_names_is_not_run_to_compare_it(tmp_path):
    (tmp_path / "space.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w').close()")
    rows = [losses(0, "valid") | {"alphas": {}, "architecture": {"a": 1}}]
    run = history.read(write_run(tmp_path / "run", rows, space=f"{tmp_path / 'space.py'}:Net"))
    assert compare.size(run) == (None, None)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("wrong", [{"image_size": 10**30}, {"layers": "4"}, {"space": "elsewhere"}])
def test_what_fits_no_network_costs_only_a_cell_of_the_table(wrong, tmp_path):
    training = training_run(tmp_path, genotypes.DARTS_V2, init_channels=4, layers=3)
    edit(training / "config.json", arguments=arguments_of(training) | wrong)
    [row] = compare.table([history.read(training)])
    assert (row["epochs"], row["params, M"], row["mult-adds, M"]) == ("2", "-", "-")


def test_runs_of_different_spaces_are_compared(done, tmp_path):
    for name, make in (("one", search_run), ("two", nasbench201_run), ("three", macro_run)):
        make(tmp_path / name)
    out = done("visualize", "one", "two", "three", "--report")
    assert out[-4:] == ["curves.png", "cells.png", "comparison.md", "report.html"]
    assert set((tmp_path / "comparison.md").read_text().splitlines()) <= set(out)
    assert any(re.match(r"\| three +\| +enas_macro \|", line) for line in out)
    with Image.open(tmp_path / "cells.png") as picture:
        assert 500 < picture.width < 1500  # below each other: they fit on a page


def test_names_are_shown_as_they_are(script, tmp_path):
    """In a terminal and in Markdown: no control sequence, and no column too many."""
    names = ["[a](b)|*c*`d`", "\x1b[31mred\n\u202e_"]
    head, line, *rows = compare.markdown(["run", "number"], [[name, "1"] for name in names]).splitlines()
    assert [len(row) for row in (line, *rows)] == [len(head)] * 3
    escaped = [r"[a](b)\|*c*`d`", r"\x1b[31mred\n\u202e_"]
    for row, name in zip(rows, escaped, strict=True):
        assert row.startswith(f"| {name} ")
    _, out, _ = script("visualize", "DARTS_V2", "--out", names[1], "--format", "svg")
    assert out.splitlines() == [rf"\x1b[31mred\n\u202e_/{name}.svg" for name in ("normal", "reduction")]


# ---- The page


def test_the_page_needs_nothing_but_itself_and_says_what_ran_and_what_to_do(done, tmp_path):
    folder = search_run(tmp_path / "<b>run & co")
    ours = "python train.py --arch '<b>run & co' --auxiliary"
    edit(folder / "config.json", next={"train what was found": ours, "by the paper's recipe": "python b.py"})
    names = "normal.png reduction.png cells.gif curves.png alphas.png operations.png report.html"
    assert done("visualize", folder, "--report") == [str(folder / name) for name in names.split()]
    content = (folder / "report.html").read_text()
    tags, text = re.findall(r"<(\w+)", content), html.unescape(re.sub(r"<[^>]*>", "", content))
    assert tags.count("img") == 6
    sources = re.findall(r'\b(?:src|href|srcset|data)="(.*?)"', content)
    assert all(source.startswith(("data:image/png;base64,", "data:image/gif;base64,")) for source in sources)
    assert not {"script", "link", "iframe", "b"} & set(tags)
    assert "url(" not in content
    assert "@import" not in content
    for words in ("<b>run & co", "Train what was found:", ours, "By the paper's recipe:", "python b.py"):
        assert words in text
    for words in ("python a.py --seed 7", "c0ffee", "valid acc", "seed 7"):
        assert words in text


def test_a_run_that_goes_on_is_reported_without_a_command(tmp_path):
    run = history.read(search_run(tmp_path / "run", epochs=1))
    assert "not complete yet" in report.of_run(run, {})


@pytest.mark.parametrize(("format", "make"), [("svg", nasbench201_run), ("pdf", macro_run)])
def test_other_formats(done, tmp_path, format, make):
    make(tmp_path / "run", epochs=1)
    done("visualize", "run", "--format", format, "--out", "out")
    names = ["architecture", "curves", "operations"] + (["alphas"] if make is nasbench201_run else [])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"{name}.{format}" for name in names),
        "cells.gif",
    }


DRAWN_WITHOUT = {"torch", "matplotlib", "PIL", "tensorboard", "tqdm"}
SEARCHES = {"architect", "nas.building", "nas.strategies", "nas.spaces.enas", "nas.spaces.nasbench201"}


def test_scripts_load_only_what_they_need(tmp_path):
    """No torch to draw an architecture, no search to test a network."""
    root = Path(__file__).parent.parent
    code = f"""import sys; sys.path.insert(0, {str(root)!r}); sys.argv = ["visualize.py", "DARTS_V2", "--format", "svg"]
import visualize; visualize.main(); assert not {DRAWN_WITHOUT} & set(sys.modules)
import test; assert not {SEARCHES} & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["normal.svg", "reduction.svg"], "")
    assert len(list(tmp_path.iterdir())) == 2
