"""The protocol: what runs when, what is selected, what the numbers are; and that a kill at any moment changes none of them."""

import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import runs
import scripts
from numpy.random import default_rng
from PIL import Image
from scipy import stats

import genotypes
from cells import Cells
from experiment.errors import UserError
from protocol import results, workers
from protocol.plan import METHODS, PRESETS, Job, Plan, _random_architecture, configured, run_of

SMALL = ["--preset", "smoke", "--methods", "first,random", "--trainings", "2", "--yes"]
SMALLEST = [*SMALL, "--methods", "random"]


class ForkedProcess:
    """In place of `subprocess.Popen`: the script in a child, in the folder `cwd`, that shares the modules already loaded."""

    def __init__(self, command, cwd=None, **options):
        os.environ["OMP_NUM_THREADS"] = "1"
        self._child, self._reader = scripts.start_plain([Path(command[1]).stem, *command[2:]], lambda: os.chdir(cwd or "."))
        self.returncode = None

    def communicate(self):
        self.returncode, output = scripts.finish(self._child, self._reader)
        return "", output

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        os.kill(self._child, number)


def reproduce(*arguments):
    """`reproduce.py` in a child whose runs are its children: (child, reader)."""

    def prepare():
        workers.Popen = ForkedProcess

    return scripts.start_plain(["reproduce", *map(str, arguments)], prepare=prepare)


def finished(*arguments):
    status, output = scripts.finish(*reproduce(*arguments))
    assert status == 0, output
    return output


def table(folder):
    """The results without times."""
    found = json.loads((folder / "results.json").read_text())
    for method in found["methods"].values():
        for run in (*method["searches"], *method["trainings"]):
            assert run.pop("hours") > 0
        for key in ("search_hours", "selection_hours"):
            method.pop(key)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a protocol that ran to its end, and what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    return folder, finished(*SMALL, "--out", folder)


def test_from_searches_to_the_table(whole):
    folder, output = whole
    found = table(folder)
    first, other = found["methods"]["first"], found["methods"]["random"]
    assert [search["seed"] for search in first["searches"]] == [0, 1]
    best = max(first["searches"], key=lambda search: search["selection_acc"])
    assert first["selected"] == best["seed"]
    assert json.loads((folder / "first" / "selected.json").read_text()) == best["genotype"]
    for index in (0, 1):
        trained = json.loads((folder / "first" / f"train-{index}" / "genotype.json").read_text())
        assert trained == best["genotype"]
    assert other["searches"] == []
    drawn = [json.loads((folder / "random" / f"train-{index}" / "genotype.json").read_text()) for index in (0, 1)]
    assert drawn[0] != drawn[1]
    for method in (first, other):
        accuracies = [training["test_acc"] for training in method["trainings"]]
        assert method["test_acc"]["n"] == len(accuracies) == 2
        assert method["test_acc"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert method["parameters"] > 0
    assert [comparison["methods"] for comparison in found["comparisons"]] == [["first", "random"]]
    assert "| DARTS, first order |" in output
    assert r"\toprule" in (folder / "table.tex").read_text()
    page = (folder / "report.html").read_text()
    assert page.count("<img") == 3
    assert "all runs are done. No run failed." in page


def test_what_is_done_is_not_done_again(whole, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole[0], folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    assert "begins" not in finished(*SMALL, "--out", folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert finished(*SMALL, "--out", folder, "--trainings", "3").count("begins: ") == 2


def test_paths_are_those_of_the_folder_that_it_is_called_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cells.json").write_text(json.dumps(Cells(genotypes.DARTS_V1).json))
    Path("own.json").write_text('{"methods": {"mine": {"arch": "cells.json"}}}')
    own = ["--methods", "mine", "--config", "own.json", "--trainings", "1", "--out", "out"]
    assert finished(*SMALL, *own).count("begins: ") == 1
    assert table(tmp_path / "out")["methods"]["mine"]["test_acc"]["n"] == 1


@pytest.mark.parametrize("seed", range(int(os.environ.get("KILLS", 1))))
def test_killed_at_random_moments(whole, tmp_path, seed):
    """Killed twice, its runs with it or not: the same table."""
    draw, folder = random.Random(seed), tmp_path / "out"
    for with_runs in (True, False):
        child, reader = reproduce(*SMALL, "--out", folder)
        threading.Timer(draw.uniform(0.3, 5), kill, [child, with_runs]).start()
        status, _ = scripts.finish(child, reader)
        assert status in (-signal.SIGKILL, 0)
    finished(*SMALL, "--out", folder)
    assert table(folder) == table(whole[0])


def runs_of(process):
    return [int(pid) for path in Path(f"/proc/{process}/task").glob("*/children") for pid in path.read_text().split()]


def kill(process, with_runs):
    for pid in [process, *runs_of(process)] if with_runs else [process]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_signal_lets_every_run_save(tmp_path):
    child, reader = reproduce(*SMALLEST, "--out", tmp_path / "out")
    while not list((tmp_path / "out").rglob("config.json")):
        time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    status, output = scripts.finish(child, reader)
    assert status == 128 + signal.SIGTERM, output
    finished(*SMALLEST, "--out", tmp_path / "out")


def test_a_signal_ends_the_run_that_is_measured_for_the_plan(tmp_path):
    child, reader = reproduce(*SMALL[:-1], "--out", tmp_path / "out")
    while not (measured := runs_of(child)):
        time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    status, output = scripts.finish(child, reader)
    assert status == 128 + signal.SIGTERM, output
    with pytest.raises(ProcessLookupError):
        os.kill(measured[0], 0)


def test_a_lost_node_costs_no_result(whole, tmp_path):
    """Two nodes of a Ray cluster on this machine, one of which is killed while it works."""
    pytest.importorskip("ray", reason="needs pip install -r requirements-cluster.txt")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node, folder = cluster.add_node(num_cpus=1), tmp_path / "out"
        command = [sys.executable, "reproduce.py", *SMALLEST, "--out", folder, "--ray", cluster.address]
        process = subprocess.Popen(list(map(str, command)), cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True)
        while len(list(folder.rglob("config.json"))) < 2:  # one on each node
            assert process.poll() is None
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)
        output, _ = process.communicate()
        assert process.returncode == 0, output
    finally:
        cluster.shutdown()
    assert table(folder)["methods"]["random"] == table(whole[0])["methods"]["random"]


# ---- The plan


def plan(tmp_path, **changes):
    protocol = configured(PRESETS["smoke"], {"common": {"fast_dev_run": False, "epochs": 2}, **changes}, "test")
    return Plan(protocol, ("first", "DARTS_V2"), tmp_path)


def names(jobs):
    return [job.name for job in jobs]


def search(tmp_path, method, index):
    return runs.search_run(tmp_path / method / f"search-{index}", epochs=2, seed=index)


def trial(tmp_path, method, index, accuracy, stage="select"):
    rows = [runs.losses(epoch, "valid") | {"valid_acc": accuracy, "test_acc": 10.0} for epoch in range(2)]
    return runs.write_run(tmp_path / method / f"{stage}-{index}", rows, "eval")


def test_stages_follow_each_other(tmp_path):
    todo = plan(tmp_path)
    trainings = ["DARTS_V2/train-0", "DARTS_V2/train-1"]
    assert names(todo.ready()) == ["first/search-0", "first/search-1", *trainings]
    search(tmp_path, "first", 0)
    assert names(todo.ready()) == ["first/search-1", *trainings]
    search(tmp_path, "first", 1)
    assert names(todo.ready()) == ["first/select-0", "first/select-1", *trainings]
    trial(tmp_path, "first", 0, 50.0)
    trial(tmp_path, "first", 1, 60.0)
    assert names(todo.ready()) == ["first/train-0", "first/train-1", *trainings]
    assert todo.selected("first") == 1
    found = json.loads((tmp_path / "first" / "search-1" / "genotype.json").read_text())
    assert json.loads((tmp_path / "first" / "selected.json").read_text()) == found


@pytest.mark.parametrize("preset", PRESETS)
def test_every_search_of_every_method_is_a_command_that_the_script_accepts(tmp_path, monkeypatch, preset):
    train_search = scripts.load("train_search")
    todo = Plan(PRESETS[preset], tuple(METHODS), tmp_path)
    jobs = [todo.searches(method)[0] for method in METHODS if METHODS[method].search is not None]
    given = {}
    for job in jobs:
        monkeypatch.setattr(sys, "argv", job.command(-1))
        given[job.method] = train_search.parse_arguments()
        train_search.set_sizes(given[job.method], init_channels=16, layers=8)
        train_search.check(given[job.method])
    assert given["pc-darts"].partial_channels == 4
    for method in ("pc-darts", "warm-up"):
        assert given[method].arch_warmup == int(0.3 * given[method].epochs)


def test_a_run_that_is_not_complete_goes_on(tmp_path):
    todo = plan(tmp_path)
    folder = search(tmp_path, "first", 0)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])
    [job, *_] = todo.ready()
    assert run_of(job) is None
    assert job.command(3) == ["train_search.py", "--resume", str(folder), "--gpu", "3"]


def test_what_a_search_finds_is_trained_in_its_space(tmp_path):
    jobs = plan(tmp_path, search={"space": "nasbench201", "space_arg": "cells=2"}).all_jobs()
    assert [job.flags.get("space") for job in jobs] == ["nasbench201"] * 6 + [None] * 2  # the last two train published cells
    assert [job.flags.get("space_arg") for job in jobs] == ["cells=2"] * 6 + [None] * 2
    jobs = plan(tmp_path, search={"space": "nasbench201", "space_arg": "cells=2"}, train={"space_arg": "cells=5"}).all_jobs()
    assert [job.flags.get("space_arg") for job in jobs if job.stage == "train"] == ["cells=5"] * 4


def test_what_failed_for_good_is_left_out(tmp_path):
    todo = plan(tmp_path)
    search(tmp_path, "first", 0)
    todo.failed.add("first/search-1")
    assert names(todo.ready())[:2] == ["first/train-0", "first/train-1"]
    assert todo.selected("first") == 0
    todo.failed.add("first/search-0")
    shutil.rmtree(tmp_path / "first")
    assert names(todo.ready()) == ["DARTS_V2/train-0", "DARTS_V2/train-1"]


def test_a_space_in_a_file_is_named_again_where_a_run_goes_on(tmp_path):
    job = Job("mine", "search", 0, tmp_path / "run", {"space": "my.py:Net", "unrolled": True, "seed": 3, "cutout": False})
    expected = ["train_search.py", "--space", "my.py:Net", "--unrolled", "--seed", "3", "--run_dir", str(tmp_path / "run"), "--gpu", "-1"]
    assert job.command(-1) == expected
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    assert job.command(-1) == ["train_search.py", "--resume", str(tmp_path / "run"), "--gpu", "-1", "--space", "my.py:Net"]


class Failing:
    """Workers whose jobs end with this `reason`, and leave nothing."""

    slots = 2

    def __init__(self, reason):
        self.given, self.reason = [], reason

    def submit(self, job):
        self.given.append(job.name)
        return job

    def wait(self, handles):
        return dict.fromkeys(handles, self.reason)


@pytest.mark.parametrize(("reason", "words"), [("no room", "no room"), ("", "{}/first/search-0 does not hold a complete run")])
def test_a_failed_run_is_tried_again_once(tmp_path, reason, words, no_waiting):
    todo, failing, lines = plan(tmp_path), Failing(reason), []
    workers.run(todo, failing, lines.append, lambda: None)
    assert sorted(failing.given) == sorted(2 * ["first/search-0", "first/search-1", "DARTS_V2/train-0", "DARTS_V2/train-1"])
    assert todo.failed == set(failing.given)
    assert f"failed twice: first/search-0 ({words.format(tmp_path)})" in lines
    assert results.collect(todo, "smoke")["failed"] == sorted(todo.failed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "must hold an object"),
        ({"seed": 3}, "unknown 'seed'"),
        ({"seeds": 0}, "at least 1"),
        ({"search": {"run_dir": "x"}}, "'run_dir' is not a flag that can be set here"),
        ({"search": {"epochs": [1]}}, "flags must be"),
        ({"search": {1: 2}}, "flags must be"),  # YAML has keys of other types
        ({"methods": {1: {"search": {}}}}, "methods must be"),
        ({"methods": {"mine": {}}}, "needs either search"),
        ({"methods": {"mine": {"search": {}, "arch": "DARTS_V1"}}}, "needs either search"),
        ({"methods": {"../mine": {"arch": "DARTS_V1"}}}, "letters, digits"),
        ({"methods": {"mine": {"arch": "DARTS_V1", "flags": {}}}}, "unknown 'flags'"),
    ],
)
def test_wrong_configurations_are_refused(content, words):
    with pytest.raises(UserError, match=words):
        configured(PRESETS["smoke"], content, "mine.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "firts"], "unknown method firts"),
        (["--config", "nowhere.json"], "cannot read --config nowhere.json"),
        (["--preset", "small", "--data", "nowhere", "--yes"], "lacks train/<class>/"),
        (["--preset", "smoke", "--yes", "--gpus", "a"], "--gpus a: give numbers"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(script, arguments, words):
    status, _, error = script("reproduce", *arguments)
    assert (status, error.count("\n")) == (2, 1)
    assert words in error


def test_without_a_terminal_it_asks_for_yes(script, monkeypatch):
    monkeypatch.setattr(workers, "Popen", ForkedProcess)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    status, out, error = script("reproduce", *SMALL[:-1], "--methods", "first", "--seeds", "1")
    assert (status, error.count("\n")) == (2, 1)
    assert "add --yes" in error
    assert "3 runs: about" in out


def test_a_method_given_twice_runs_once(script):
    status, out, _ = script("reproduce", "--preset", "smoke", "--methods", "DARTS_V2,darts-v2", "--dry_run", "--out", "out")
    assert status == 0
    assert sum(f"--run_dir {Path.cwd()}/out/DARTS_V2/train-0 " in line for line in out.splitlines()) == 1


def test_a_dry_run_prints_every_command(script):
    status, out, _ = script("reproduce", "--preset", "paper", "--methods", "second,random", "--dry_run", "--out", "out")
    commands = [line for line in out.splitlines() if not line.startswith("#")]
    assert status == 0
    assert len(commands) == 4 + 4 + 10 + 10
    data, folder = Path.cwd().parent / "data", Path.cwd() / "out/second/search-0"
    assert commands[0] == f"python train_search.py --dataset cifar10 --data {data} --unrolled --seed 0 --run_dir {folder} --gpu 0"
    assert not Path("out").exists()


def test_random_cells_are_as_large_as_those_that_are_searched():
    protocol = configured(PRESETS["smoke"], {"search": {"nodes": 6}}, "config.json")
    assert len(_random_architecture(protocol, METHODS["random"], 0).genotype.normal) == 12


def test_a_dry_run_names_the_subset_of_the_images(script):
    status, out, _ = script("reproduce", "--preset", "small", "--methods", "first", "--data", "all", "--dry_run", "--out", "out")
    first, *lines = out.splitlines()
    assert (status, first) == (0, "# first, --collect, which copies the images")
    assert all(f"--data {Path.cwd()}/out/images" in line for line in lines if line.startswith("python"))


def test_another_protocol_in_the_same_folder_is_refused(script, whole, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole[0], folder)
    Path("other.json").write_text('{"train": {"epochs": 3}}')
    status, _, error = script("reproduce", *SMALL, "--out", folder, "--config", "other.json")
    assert status == 2
    assert "another protocol, which differs in train" in error
    for content in ("", "[]", '{"preset"'):
        (folder / "protocol.json").write_text(content)
        status, _, error = script("reproduce", *SMALL, "--out", folder)
        assert (status, error.count("\n")) == (2, 1)
        assert "protocol.json" in error


def test_images_of_a_subset_are_the_first_of_each_class(tmp_path):
    import reproduce

    for part in ("train", "test"):
        for label in ("ant", "bee"):
            (tmp_path / "all" / part / label).mkdir(parents=True)
            for number in range(3):
                pixels = default_rng(number).integers(0, 255, (4, 4, 3), dtype="uint8")
                Image.fromarray(pixels).save(tmp_path / "all" / part / label / f"{number}.png")
    protocol = configured(PRESETS["small"], {}, "test")
    protocol = type(protocol)(**{**vars(protocol), "images_per_class": (2, 1)})
    reproduce.copy_images(Plan(protocol, (), tmp_path / "out"), tmp_path / "all")
    found = sorted(str(path.relative_to(tmp_path / "out" / "images")) for path in (tmp_path / "out" / "images").rglob("*.png"))
    assert found == sorted(f"{part}/{label}/{n}.png" for label in ("ant", "bee") for part, n in (("train", 0), ("train", 1), ("test", 0)))


# ---- The numbers


def test_intervals_are_student_s():
    values = [97.1, 97.3, 97.0, 97.4]
    found = results.summary(values)
    low, high = stats.t.interval(0.95, 3, loc=found["mean"], scale=stats.sem(values))
    assert found["mean"] - found["ci95"] == pytest.approx(low)
    assert found["mean"] + found["ci95"] == pytest.approx(high)
    assert found["std"] == pytest.approx(math.sqrt(sum((v - 97.2) ** 2 for v in values) / 3))
    assert results.summary([97.0]) == {"mean": 97.0, "std": None, "n": 1, "ci95": None}
    assert results.summary([]) == {"mean": None, "std": None, "n": 0, "ci95": None}


def test_methods_are_compared_by_the_trainings_of_one_seed():
    ours = [{"seed": 0, "test_acc": 91.0}, {"seed": 1, "test_acc": 93.0}, {"seed": 2, "test_acc": 92.0}]
    theirs = [{"seed": 2, "test_acc": 91.5}, {"seed": 0, "test_acc": 90.0}]
    found = results.compare_methods(("a", "b"), (ours, theirs))
    assert (found["difference"], found["n"]) == (0.75, 2)
    assert found["p"] == pytest.approx(stats.ttest_rel([91.0, 92.0], [90.0, 91.5]).pvalue)


def test_tables_show_text_as_it_is():
    method = {
        "title": "a_b & 50% | x", "test_acc": results.summary([90.0, 91.0]), "parameters": 1.0, "multiply_adds": None, "search_hours": 0.0,
    }  # fmt: skip
    found = {"methods": {"a": method}, "comparisons": [], "failed": []}
    assert r"a_b & 50% \| x | 90.50 ± 0.71 | ± 6.35 | 2 | 1.000 | - | - |" in results.markdown(found).decode()
    assert r"a\_b \& 50\% | x & 90.50 $\pm$ 0.71" in results.tex(found).decode()


def test_small_p_values_are_not_called_zero():
    titles = {"a": {"title": "A"}, "b": {"title": "B"}}
    values = ((0.0004, "< 0.001"), (0.0, "< 0.001"), (0.041, "0.041"), (None, "-"))
    for p, text in values:
        comparison = {"methods": ["a", "b"], "difference": 1.0, "ci95": 0.5, "n": 3, "p": p}
        assert results.comparison_rows({"methods": titles, "comparisons": [comparison]}) == [["A - B", "+1.00 ± 0.50", "3", text]]


def test_plots_come_after_the_first_table():
    from pictures import protocol as page

    method = {"title": "Mine", "searches": [], "selected": None, "search_hours": 0.0, "test_acc": results.summary([90.0])}
    method["trainings"] = [{"seed": 0, "test_acc": 90.0}]
    found = {"preset": "small", "methods": {"a": method}, "rank_correlation": None}
    content = page.page(found, [("One", ("a",), [["1"]]), ("Empty", ("b",), []), ("Two", ("c",), [["2"]])], "done").decode()
    places = [content.index(f">{heading}<") for heading in ("One", "Accuracy of every training", "Two")]
    assert places == sorted(places)
    assert ">Empty<" not in content


def test_the_selected_cells_fit_on_the_page():
    from pictures import protocol as page

    content = Cells(genotypes.DARTS_V2).json
    method = {"title": "DARTS, second order", "searches": [{"seed": 0, "space": "darts", "genotype": content}], "selected": 0}
    with Image.open(io.BytesIO(page.cells(method))) as picture:
        assert 0.75 * picture.width < 1100  # the page's scale, on a screen of 1200 pixels


def test_the_choices_of_one_s_own_space_may_have_any_keys():
    from pictures import protocol as page

    searches = [{"seed": seed, "space": "mine.py:Net", "genotype": {"normal": seed, "reduce": 0}} for seed in range(2)]
    method = {"title": "mine", "searches": searches, "selected": 0}
    assert results.distances({"methods": {"mine": method}}, "mine") == [(0, 1, 1)]
    assert page.cells(method) is not None
