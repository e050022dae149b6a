"""`--benchmark` and `--rank`: what a search found, looked up in a table of true accuracies."""

import itertools
import json
import re
from pathlib import Path

import pytest
from scripts import refused, result, rows_of, succeed

from architectures import load_space
from architectures.cells import Cells
from genotypes import DARTS_V2
from nas.benchmark import Benchmark
from nas.ranking import kendall_tau
from protocol import results

OPERATIONS = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
SEARCH = ["train_search", "--space", "nasbench201", "--init_channels", "2", "--layers", "1", "--batch_size", "8"]
TINY = ["--epochs", "2", "--image_size", "8", "--compile", "no"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """All cells of NAS-Bench-201, with made accuracies: they count convolutions and poolings of 3x3, and `none`."""
    lines = ["architecture,cifar10,cifar100"]
    for a, b, c, d, e, f in itertools.product(OPERATIONS, repeat=6):
        text = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
        lines.append(f"{text},{50 + 7 * text.count('3x3')}.25,{text.count('none')}")
    path = tmp_path_factory.mktemp("table") / "made.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_search_reports_what_the_table_says(images, table, tmp_path):
    plain, judged = tmp_path / "plain", tmp_path / "judged"
    for folder, more in ((plain, []), (judged, ["--benchmark", table, "--rank", "5"])):
        output = succeed(SEARCH, images, *TINY, *more, "--run_dir", folder)

    rows, space = rows_of(judged), load_space("nasbench201")
    for row in rows:
        text = space.of_epoch(row).text
        assert row["true"] == {"cifar10": 50.25 + 7 * text.count("3x3"), "cifar100": text.count("none")}
        assert (row["true_acc"], row["true_optimum"]) == (row["true"]["cifar10"], 92.25)
        better = sum(2**n * 3 ** (6 - n) * [1, 6, 15, 20, 15, 6, 1][n] for n in range(text.count("3x3") + 1, 7))
        assert row["true_rank"] == 1 + better
    assert [row["true_best"] for row in rows] == [rows[0]["true_acc"], max(row["true_acc"] for row in rows)]
    place = f"(rank {rows[-1]['true_rank']:,} of 15,625, optimum 92.25%)"
    assert f"found {text}, {rows[-1]['true_acc']:.2f}% on cifar10 {place}" in output

    ranking = json.loads((judged / "ranking.json").read_text())
    assert len({row["architecture"] for row in ranking}) == 5
    assert all(row["true_acc"] == 50.25 + 7 * row["architecture"].count("3x3") for row in ranking)
    tau = kendall_tau([row["supernet_acc"] for row in ranking], [row["true_acc"] for row in ranking])
    assert f"Kendall's tau {tau:.3f}" in output
    assert (judged / "ranking.png").exists()

    for row in rows:  # the table has no influence
        for name in ("true", "true_acc", "true_rank", "true_best", "true_optimum"):
            del row[name]
    (judged / "ranking.json").unlink()
    (before, weights, *_), (_, judged_weights, *_) = result(plain), result(judged)
    assert [row["alphas"] for row in rows] == [row["alphas"] for row in before]
    assert str(judged_weights) == str(weights)

    # A search without the table is ranked later.
    succeed(SEARCH[:1], images, "--resume", plain, "--benchmark", table, "--rank", "3", *TINY[2:4])
    assert len(json.loads((plain / "ranking.json").read_text())) == 3


def test_pictures_of_runs_among_all_cells(images, table, tmp_path, script):
    for seed in ("1", "2"):
        folder = tmp_path / seed
        succeed(SEARCH, images, *TINY, "--seed", seed, "--benchmark", table, "--run_dir", folder)
    status, output, _ = script("visualize", "--benchmark", table, tmp_path / "1", tmp_path / "2", "--format", "svg")
    assert (status, output) == (0, "landscape.svg\n")
    drawn = (tmp_path / "landscape.svg").read_text()
    assert all(word in drawn for word in ("15,625 architectures on cifar10", "true accuracy, %", "optimum, 92.25%"))
    assert script("visualize", tmp_path / "1", "--report")[0] == 0
    assert (tmp_path / "1" / "true_accuracy.png").exists()
    assert "True accuracy</h2>" in (tmp_path / "1" / "report.html").read_text()


def test_methods_are_compared_by_the_table(table, tmp_path, script):
    """Without a training; each with its path over the epochs."""
    small = {"init_channels": 2, "batch_size": 8, "fast_dev_run": True}
    tiny = {"common": {"dataset": "digits", "image_size": 32}, "search": small}
    (tmp_path / "tiny.json").write_text(json.dumps(tiny))
    command = ["reproduce", "--preset", "nasbench201", "--config", "tiny.json", "--out", "out", "--seeds", "1"]
    status, output, errors = script(*command, "--methods", "first,drnas", "--benchmark", table)
    assert status == 0, output + errors
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    space, rows = load_space("nasbench201"), [re.split(r" *\| *", line)[1:-1] for line in output.splitlines()]
    for name, title in (("first", "DARTS, first order"), ("drnas", "DrNAS")):
        text = space.read(str(tmp_path / "out" / name / "search-0")).text
        accuracy = 50.25 + 7 * text.count("3x3")
        [search] = found["methods"][name]["searches"]
        assert search["true"] == {"cifar10": accuracy, "cifar100": text.count("none")}
        assert (search["path"], search["skips"]) == ([accuracy], text.count("skip_connect"))
        row = [title, "1", f"{accuracy:.2f}", f"{text.count('none'):.2f}", f"{92.25 - accuracy:.2f}"]
        assert row in [cells[:5] for cells in rows]
    assert ["All 15,625 cells", "", "67.05 ± 8.40", "1.20 ± 0.98", "25.20", "", ""] in rows
    assert ["Highest in each column", "", "92.25", "6.00", "0.00", "", ""] in rows
    assert "What was found, epoch by epoch" in (tmp_path / "out" / "report.html").read_text()


def test_the_table_names_what_short_trainings_have_selected():
    searches = [
        {"seed": seed, "true": {"cifar10": accuracy}, "skips": 2 * seed, "hours": 0.5}
        for seed, accuracy in enumerate((90.0, 92.0))
    ]
    method = {"title": "Mine", "searches": searches, "selected": 1, "selection_hours": 0.1}
    truth = {"dataset": "cifar10", "architectures": 3, "optimum": {"cifar10": 93.0}}
    truth |= {"mean": {"cifar10": 80.0}, "std": {"cifar10": 10.0}}
    [section] = results.tables({"methods": {"mine": method}, "benchmark": truth, "comparisons": []})
    assert section.rows[:2] == [
        ["Mine", "2", "91.00 ± 1.41", "2.00", "1.0", "0.50"],
        ["the best one in a short training", "1", "92.00", "1.00", "2.0", "0.50"],
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "needs a column `architecture` and one of percent for each data set"),
        ("cell,cifar10\n|none~0|,10\n", "needs a column `architecture` and one of percent"),
        ("architecture,cifar10\n|none~0|\n", "is not a number"),
        ("architecture,cifar10\n|none~0|,nan\n", "is not a number"),
        ("architecture,cifar10\n|none~0|,9\n|none~0|,8\n", "has several rows for |none~0|"),
        ("architecture,cifar10\n|none~0|,10\n", "; it has, for example, |none~0|"),
    ],
)
def test_a_wrong_table_is_one_line(content, words, images, tmp_path):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_text(content)
    line = refused(SEARCH, images, *TINY, "--benchmark", path, "--run_dir", tmp_path / "run")
    assert re.search(f"error: .*{re.escape(str(path))}.*{re.escape(words)}", line)
    assert not (tmp_path / "run").exists()


def test_cells_of_one_s_own_space_are_ranked(images, tmp_path):
    """By a table as a spreadsheet writes it, in which JSON is spelt in another way."""
    table = tmp_path / "made.csv"
    cells = [{"skip": skip, "second": b, "first": a} for a in (0, 1) for b in (0, 1) for skip in (0, [])]
    rows = ['"' + json.dumps(cell).replace('"', '""') + f'",{number}' for number, cell in enumerate(cells)]
    table.write_text("\r\n".join(["architecture,percent", *rows, ""]), encoding="utf-8-sig", newline="")
    example = Path(__file__).parent.parent / "examples" / "small_space.py"
    given = ["--space", f"{example}:Net", "--batch_size", "8", "--fast_dev_run", "--benchmark", table, "--rank", "9"]
    succeed(["train_search", *given], images, *TINY[2:], "--run_dir", tmp_path / "run")
    ranking = json.loads((tmp_path / "run" / "ranking.json").read_text())
    assert sorted(row["true_acc"] for row in ranking) == list(range(8))


def test_what_ranking_needs(images):
    assert "--rank compares the supernet with a table: add --benchmark" in refused(SEARCH, images, "--rank", "5")
    other = ["--rank", "5", "--benchmark", "x.csv", "--space", "darts"]
    assert "--rank needs a space of layer choices" in refused(SEARCH, images, *other)


def test_the_column_is_that_of_the_data_set(table):
    assert Benchmark(str(table), "cifar100").optimum == 6
    assert Benchmark(str(table), "folder").optimum == 92.25


@pytest.mark.parametrize("concat", [range(2, 6), [2, 3, 4, 5]])
def test_cells_of_darts_are_found_however_they_are_written(concat, tmp_path):
    genotype = DARTS_V2._replace(normal_concat=concat)
    (tmp_path / "made.csv").write_text(f'architecture,cifar10\n"{genotype}",97.24\n')
    table = Benchmark(str(tmp_path / "made.csv"), "cifar10")
    assert all(table.of(cells)["cifar10"] == 97.24 for cells in (Cells(genotype), Cells.of(Cells(genotype).json)))


def test_kendall_tau():
    assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert kendall_tau([1, 1], [1, 2]) == 0
