"""The protocol: what runs when, what is selected, what the numbers are; a kill changes none of them."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pytest
import runs
import scripts
from scipy import stats

import data
import genotypes
from architectures import load_space
from architectures.cells import Cells
from pictures import protocol as page
from protocol import results, workers
from protocol.plan import METHODS, PRESETS, Job, Plan, configured
from remedies import check


class ForkedProcess:
    """In place of `subprocess.Popen`: the script in a child that shares the modules already loaded."""

    def __init__(self, command, **options):
        os.environ["OMP_NUM_THREADS"] = "1"
        self._child, self._reader = scripts.start_plain([Path(command[1]).stem, *command[2:]])
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
        scripts.load("train_search"), data.load(data.Options("digits", "", 32))  # imported once for all runs

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
        del method["search_hours"], method["selection_hours"]
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The arguments of a protocol of tiny networks."""
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text('{"common": {"init_channels": 2}, "search": {"nodes": 1}}')
    return ["--preset", "smoke", "--config", path, "--methods", "first,random"]


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The folder of a protocol that ran to its end, and what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    return folder, finished(*small, "--out", folder)


def test_from_searches_to_the_table(whole):
    folder, output = whole
    found = table(folder)
    first, other = found["methods"]["first"], found["methods"]["random"]
    assert [search["seed"] for search in first["searches"]] == [0, 1]
    best = max(first["searches"], key=lambda search: search["selection_acc"])
    assert first["selected"] == best["seed"]
    assert other["searches"] == []
    ours, others = (
        [Cells.read(str(run)).json for run in folder.glob(f"{name}/train-*")] for name in ("first", "random")
    )
    assert ours == [best["genotype"]] * 2
    assert others[0] != others[1]
    for method in (first, other):
        accuracies = [training["test_acc"] for training in method["trainings"]]
        assert method["test_acc"]["n"] == len(accuracies) == 2
        assert method["test_acc"]["mean"] == pytest.approx(sum(accuracies) / 2)
        assert method["parameters"] > 0
    assert [comparison["methods"] for comparison in found["comparisons"]] == [["first", "random"]]
    for words in ("| DARTS, first order ", "done: first/search-0, in ", "; 0 runs are left"):
        assert words in output
    content = (folder / "report.html").read_text()
    assert content.count("<img") == 3
    assert "all runs are done. No run failed." in content


def test_what_is_done_is_not_done_again_and_another_protocol_is_refused(whole, small, script, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole[0], folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    status, out, _ = script("reproduce", *small, "--out", folder)
    assert (status, "begins" in out) == (0, False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    first = {"title": "DARTS, first order", "search": {"arch_warmup": 1}}
    other = {
        "common": {"init_channels": 2},
        "search": {"nodes": 1},
        "train": {"epochs": 3},
        "methods": {"first": first},
    }
    Path("other.json").write_text(json.dumps(other))
    status, _, error = script("reproduce", *small, "--out", folder, "--config", "other.json")
    assert status == 2
    assert "another protocol, which differs in train, first" in error


def test_paths_are_those_of_the_folder_that_it_is_called_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cells.json").write_text(json.dumps(Cells(genotypes.DARTS_V1).json))
    Path("own.json").write_text('{"methods": {"mine": {"arch": "cells.json"}}}')
    finished("--preset", "smoke", "--methods", "mine", "--config", "own.json", "--trainings", "1", "--out", "out")
    found = table(tmp_path / "out")["methods"]["mine"]
    assert (found["title"], found["test_acc"]["n"]) == ("mine", 1)


@pytest.mark.parametrize("seed", range(int(os.environ.get("KILLS", 1))))
def test_killed_at_random_moments(whole, small, tmp_path, seed):
    """Killed twice, its runs with it or not: the same table."""
    draw, folder = random.Random(seed), tmp_path / "out"
    for with_runs in (True, False):
        child, reader = reproduce(*small, "--out", folder)
        threading.Timer(draw.uniform(0.3, 5), kill, [child, with_runs]).start()
        status, _ = scripts.finish(child, reader)
        assert status in (-signal.SIGKILL, 0)
    finished(*small, "--out", folder)
    assert table(folder) == table(whole[0])


def kill(process, with_runs):
    children = " ".join(path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children"))
    for pid in [process, *(map(int, children.split()) if with_runs else ())]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_signal_lets_every_run_save(tmp_path, no_waiting):
    """Runs of days end within seconds, with a checkpoint."""
    (tmp_path / "long.json").write_text(
        '{"common": {"fast_dev_run": false, "init_channels": 2}, "train": {"epochs": 100000}}'
    )
    long = ["--preset", "smoke", "--config", tmp_path / "long.json", "--methods", "random", "--trainings", "1"]
    child, reader = reproduce(*long, "--out", tmp_path / "out")
    while not list((tmp_path / "out").rglob("metrics.jsonl")):
        time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    status, output = scripts.finish(child, reader)
    assert status == 128 + signal.SIGTERM, output
    assert list((tmp_path / "out").rglob("checkpoint.pt"))


def test_a_lost_node_costs_no_result(whole, small, tmp_path):
    """Two nodes of a Ray cluster on this machine, one of which is killed while it works."""
    pytest.importorskip("ray", reason="needs pip install -r requirements-cluster.txt")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node, folder = cluster.add_node(num_cpus=1), tmp_path / "out"
        options = [*small, "--methods", "random", "--out", folder, "--ray", cluster.address]
        command = [sys.executable, "reproduce.py", *map(str, options)]
        process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True)
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

PUBLISHED = ["DARTS_V2/train-0", "DARTS_V2/train-1"]


def plan(folder, **changes):
    two_epochs = {"common": {"fast_dev_run": False, "epochs": 2}}
    return Plan(configured("smoke", two_epochs, changes), ("first", "DARTS_V2"), folder)


def ready(plan):
    return [job.name for job in plan.ready()]


def search(folder, index):
    return runs.search_run(folder / "first" / f"search-{index}", epochs=2, seed=index)


def trial(folder, index, accuracy):
    rows = [runs.losses(epoch, "valid") | {"valid_acc": accuracy, "test_acc": 10.0} for epoch in range(2)]
    runs.write_run(folder / "first" / f"select-{index}", rows, "eval")


def test_stages_follow_each_other(tmp_path):
    todo = plan(tmp_path)
    assert ready(todo) == ["first/search-0", "first/search-1", *PUBLISHED]
    search(tmp_path, 0)
    assert ready(todo) == ["first/search-1", *PUBLISHED]
    search(tmp_path, 1)
    assert ready(todo) == ["first/select-0", "first/select-1", *PUBLISHED]
    trial(tmp_path, 0, 50.0)
    trial(tmp_path, 1, 60.0)
    assert ready(todo) == ["first/train-0", "first/train-1", *PUBLISHED]
    assert todo.selected("first") == 1
    found = json.loads((tmp_path / "first" / "search-1" / "genotype.json").read_text())
    assert json.loads((tmp_path / "first" / "selected.json").read_text()) == found


def test_without_trainings_what_is_found_is_the_result(tmp_path):
    todo = plan(tmp_path, trainings=0)
    assert ready(todo) == ["first/search-0", "first/search-1"]
    for index, accuracy in enumerate((50.0, 60.0)):
        search(tmp_path, index), trial(tmp_path, index, accuracy)
    assert (ready(todo), todo.left(), todo.selected("first")) == ([], 0, 1)
    assert (tmp_path / "first" / "selected.json").exists()
    assert len(results.collect(todo, "smoke")["methods"]["first"]["searches"]) == 2
    todo.protocol.select = {}  # without short trainings, nothing is selected
    assert (ready(todo), todo.left(), todo.selected("first")) == ([], 0, None)


def test_what_failed_for_good_is_left_out(tmp_path):
    todo = plan(tmp_path)
    search(tmp_path, 0)
    todo.failed.add("first/search-1")
    assert ready(todo) == ["first/train-0", "first/train-1", *PUBLISHED]
    assert todo.selected("first") == 0


def test_a_run_that_is_not_complete_goes_on(tmp_path):
    """A space in a file is named again: a run's folder names no code to run."""
    run = search(tmp_path, 0)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    job = Job("mine", "search", 0, run, {"space": "my.py:Net", "unrolled": True, "seed": 3, "cutout": False})
    assert job.run() is None
    assert job.command(3) == f"train_search.py --resume {run} --space my.py:Net --gpu 3".split()
    (run / "config.json").unlink()
    begin = f"train_search.py --space my.py:Net --unrolled --seed 3 --run_dir {run} --gpu -1"
    assert job.command(-1) == begin.split()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_search_of_every_method_is_a_command_that_the_script_accepts(tmp_path, monkeypatch, preset):
    train_search = scripts.load("train_search")
    todo = Plan(configured(preset), tuple(METHODS), tmp_path)
    given = {}
    for method in METHODS:
        for job in todo.searches(method)[:1]:
            monkeypatch.setattr(sys, "argv", job.command(-1))
            given[method] = train_search.parse_arguments()
            check(given[method])
    assert given["pc-darts"].partial_channels == 4
    for method in ("pc-darts", "warm-up"):
        assert given[method].arch_warmup == int(0.3 * given[method].epochs)


def test_what_a_search_finds_is_trained_in_its_space(tmp_path):
    """So are random ones; the published cells are not."""
    for searched in ({"space": "nasbench201", "space_arg": "reduction=mean"}, {"preset": "nasbench201"}):
        made = plan(tmp_path, search=searched, train={"space_arg": "track_running_stats=1"})
        made.methods = ("first", "DARTS_V2", "random")
        jobs = [job for job in made.all_jobs() if job.stage != "search"]
        assert [job.flags.get("space") for job in jobs] == ["nasbench201"] * 4 + [None] * 2 + ["nasbench201"] * 2
        assert [job.flags.get("space_arg") for job in jobs][:2] == [searched.get("space_arg")] * 2
        assert "random/train-0" in ready(made)
        assert load_space("nasbench201").read(jobs[-1].flags["arch"]).text.startswith("|")


def test_random_cells_are_as_large_as_those_that_are_searched(tmp_path):
    made = plan(tmp_path, search={"nodes": 6})
    made.methods = ("random",)
    assert ready(made)
    assert len(load_space("darts").read(str(tmp_path / "random" / "random-0.json")).genotype.normal) == 12


@pytest.mark.parametrize(
    ("reason", "words"), [("no room", "no room"), ("", "{}/first/search-0 does not hold a complete run")]
)
def test_a_failed_run_is_tried_again_once(tmp_path, reason, words, no_waiting, capsys):
    todo, given = plan(tmp_path), []

    def submit(job):
        given.append(job.name)
        ended = Future()
        ended.set_result(reason)
        return ended

    workers.run(todo, submit, 2, lambda: None)
    assert sorted(given) == sorted(2 * ["first/search-0", "first/search-1", *PUBLISHED])
    assert f"failed twice: first/search-0 ({words.format(tmp_path)})" in capsys.readouterr().out.splitlines()
    assert results.collect(todo, "smoke")["failed"] == sorted(set(given))


# ---- The command


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("[]", "--config mine.json: Expected `object`"),
        ('{"seed": 3}', "--config mine.json: Object contains unknown field `seed`"),
        ('{"methods": {"mine": {}}}', "needs either search"),
        ('{"methods": {"../mine": {"arch": "DARTS_V1"}}}', r"matching regex '^[\\w-]+$'"),
        (["--methods", "firts"], "unknown method firts"),
        (["--config", "nowhere.json"], "cannot read --config nowhere.json"),
        (["--preset", "small", "--data", "nowhere"], "lacks train/<class>/"),
        (["--gpus", "a"], "--gpus: invalid gpu_numbers value: 'a'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(refused, given, words):
    """In the arguments, or in a configuration."""
    if isinstance(given, str):
        Path("mine.json").write_text(given)
        given = ["--config", "mine.json", "--dry_run"]
    assert words in refused("reproduce", *given)


def test_a_dry_run_prints_every_command(script):
    methods = "second,random,DARTS_V2,darts-v2"  # the last one is given twice, and runs once
    status, out, _ = script("reproduce", "--preset", "paper", "--methods", methods, "--dry_run", "--out", "out")
    commands = [line for line in out.splitlines() if not line.startswith("#")]
    assert (status, len(commands)) == (0, 4 + 4 + 10 + 10 + 10)
    data, folder = Path.cwd().parent / "data", Path.cwd() / "out/second/search-0"
    first = f"python train_search.py --dataset cifar10 --data {data} --unrolled --seed 0 --run_dir {folder} --gpu 0"
    assert commands[0] == first
    assert not Path("out").exists()


def test_a_subset_of_the_images_is_copied_and_used(script, tmp_path):
    for part, label in itertools.product(("train", "test"), ("ant", "bee")):
        (tmp_path / "all" / part / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "all" / part / label / f"{number}.png").touch()
    Path("few.json").write_text('{"images_per_class": [2, 1]}')
    arguments = ["--preset", "small", "--methods", "first", "--data", "all", "--config", "few.json", "--out", "out"]
    status, out, _ = script("reproduce", *arguments, "--dry_run")
    first, *lines = out.splitlines()
    assert (status, first) == (0, "# first, --collect, which copies the images")
    assert all(f"--data {tmp_path}/out/images" in line for line in lines if line.startswith("python"))
    assert script("reproduce", *arguments, "--collect")[0] == 0
    copied = {f"{path.parent.parent.name}/{path.name}" for path in (tmp_path / "out" / "images").rglob("*.png")}
    assert copied == {"test/0.png", "train/0.png", "train/1.png"}


# ---- The numbers


def test_intervals_are_student_s():
    values = [97.1, 97.3, 97.0, 97.4]
    found = results.summary(values)
    interval = stats.t.interval(0.95, 3, loc=found["mean"], scale=stats.sem(values))
    assert (found["mean"] - found["ci95"], found["mean"] + found["ci95"]) == pytest.approx(interval)
    assert found["std"] == pytest.approx(stats.tstd(values))
    assert results.summary([97.0]) == {"mean": 97.0, "std": None, "n": 1, "ci95": None}
    assert results.summary([]) == {"mean": None, "std": None, "n": 0, "ci95": None}


def test_methods_are_compared_by_the_trainings_of_one_seed():
    ours = [{"seed": 0, "test_acc": 91.0}, {"seed": 1, "test_acc": 93.0}, {"seed": 2, "test_acc": 92.0}]
    theirs = [{"seed": 2, "test_acc": 91.5}, {"seed": 0, "test_acc": 90.0}]
    found = results.compare_methods(("a", "b"), (ours, theirs))
    assert (found["difference"], found["n"]) == (0.75, 2)
    assert found["p"] == pytest.approx(stats.ttest_rel([91.0, 92.0], [90.0, 91.5]).pvalue)


@pytest.mark.parametrize(("p", "text"), [(0.0, "< 0.001"), (0.041, "0.041"), (None, "-")])
def test_tables_show_names_as_they_are_and_no_small_p_value_as_zero(p, text):
    method = {"test_acc": results.summary([90.0, 91.0]), "parameters": 1.0, "multiply_adds": None, "search_hours": 0.0}
    comparison = {"methods": ["a", "b"], "difference": 1.0, "ci95": 0.5, "n": 3, "p": p}
    methods = {"a": method | {"title": "a_b & 50% | x"}, "b": method | {"title": "B"}}
    found = {"methods": methods, "comparisons": [comparison], "failed": ["b/train-1"], "benchmark": None}
    lines = results.markdown(found)
    assert re.search(r"\| a_b & 50% \\\| x \| +90.50 ± 0.71 \| +± 6.35 \| +2 \| +1.000 \| +- \| +- \|", lines)
    assert re.search(rf"\| a_b & 50% \\\| x - B \| +\+1.00 ± 0.50 \| +3 \| +{text} \|", lines)
    assert lines.endswith("Failed: b/train-1.\n")


def test_the_choices_of_one_s_own_space_may_have_any_keys():
    search = {"seed": 0, "space": "mine.py:Net", "genotype": {"normal": 1, "reduce": 0}}
    assert page.cells({"title": "mine", "searches": [search], "selected": 0}) is not None
