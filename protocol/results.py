"""The results of a protocol: means, deviations, intervals and comparisons of methods, as JSON and as tables."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nas.benchmark import Benchmark
from pictures import compare, history
from pictures.history import History
from pictures.report import Section
from protocol.plan import Job, Plan

Results = dict[str, Any]


def collect(plan: Plan, preset: str, table: Benchmark | None = None) -> Results:
    """The results so far, with `table` also the true accuracies of what was searched.

    `{"preset", "methods": {name: {"title", "searches": [{"seed", "valid_acc", "hours", "space", "genotype",
    "selection_acc"}], "selected": seed, "trainings": [{"seed", "test_acc", "hours"}], "test_acc": {"mean", "std", "n",
    "ci95"}, "parameters", "multiply_adds", "search_hours", "selection_hours"}}, "comparisons": [{"methods": [a, b],
    "difference", "ci95", "n", "p"}], "rank_correlation", "failed": [job]}`; accuracies in percent, parameters and
    multiply-adds in millions, hours of a device without interruptions.

    With a table, each search also has `true`, {data set: accuracy}, `skips`, and `path`, the accuracy on the table's
    data set of every epoch's architecture; `benchmark` is {"dataset", "architectures", "optimum", "mean" and "std":
    {data set: accuracy}}.
    """
    methods = {name: _method(plan, name, table) for name in plan.methods}
    compared = [
        compare_methods(pair, [methods[name]["trainings"] for name in pair])
        for pair in itertools.combinations(methods, 2)
    ]
    return {
        "preset": preset,
        "methods": methods,
        "comparisons": [comparison for comparison in compared if comparison["n"] > 1],
        "rank_correlation": _rank_correlation([search for method in methods.values() for search in method["searches"]]),
        "failed": sorted(plan.failed),
        "benchmark": None if table is None else _landscape(table),
    }


def _landscape(table: Benchmark) -> Results:
    columns = {name: [row[name] for row in table.accuracies.values()] for name in table.datasets}
    return {
        "dataset": table.dataset,
        "architectures": len(table),
        "optimum": {name: max(values) for name, values in columns.items()},
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "std": {name: statistics.stdev(values) for name, values in columns.items()},
    }


def _truth(run: History, table: Benchmark | None) -> Results:
    """What the table says about a search."""
    found = run.architecture
    if table is None or found is None:
        return {}
    path = [table.of(each)[table.dataset] for _, each in run.found]
    return {"true": table.of(found), "skips": sum(found.skips().values()), "path": path}


def _method(plan: Plan, name: str, table: Benchmark | None) -> Results:
    searched = _runs(plan.searches(name))
    tried = _runs(plan.selections(name, plan.found(name)))
    trained = _runs(plan.trainings(name))
    searches = [
        {
            "seed": seed,
            "valid_acc": run.epochs[-1]["valid_acc"],
            "hours": _hours(run),
            "space": run.space,
            "genotype": None if run.architecture is None else run.architecture.json,
            "selection_acc": tried[seed].epochs[-1]["valid_acc"] if seed in tried else None,
            **_truth(run, table),
        }
        for seed, run in searched.items()
    ]
    trainings = [
        {"seed": seed, "test_acc": run.epochs[-1]["test_acc"], "hours": _hours(run)} for seed, run in trained.items()
    ]
    sizes = [_size(run.folder) for run in trained.values()]
    return {
        "title": plan.protocol.method(name).title,
        "searches": searches,
        "selected": plan.selected(name),
        "trainings": trainings,
        "test_acc": summary([training["test_acc"] for training in trainings]),
        "parameters": _mean(size[0] for size in sizes),
        "multiply_adds": _mean(size[1] for size in sizes),
        "search_hours": math.fsum(map(_hours, searched.values())),
        "selection_hours": math.fsum(map(_hours, tried.values())),
    }


def _runs(jobs: Sequence[Job]) -> dict[int, History]:
    """{seed: run} of the jobs that are complete."""
    return {job.index: run for job in jobs if (run := job.run()) is not None}


def _hours(run: History) -> float:
    return math.fsum(row.get("seconds", 0.0) for row in run.epochs) / 3600


@functools.cache
def _size(folder: Path) -> tuple[float | None, float | None]:
    return compare.size(history.read(folder))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, and half the width of the 95% confidence interval (Student's t); None with too
    few values.
    """
    from scipy import stats  # imported here because it takes a second

    n = len(values)
    std = statistics.stdev(values) if n > 1 else None
    ci95 = None if std is None else float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return {"mean": _mean(values), "std": std, "n": n, "ci95": ci95}


def compare_methods(names: Sequence[str], trainings: Sequence[Sequence[dict[str, Any]]]) -> Results:
    """The mean difference between the accuracies of two methods, over trainings with the same seed, and its 95%
    interval.

    `p` is the p-value of the two-sided paired t-test; None if all differences are equal.
    """
    from scipy import stats

    ours, theirs = ({training["seed"]: training["test_acc"] for training in each} for each in trainings)
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    found = summary(differences)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue) if len(set(differences)) > 1 else None
    return {"methods": list(names), "difference": found["mean"], "ci95": found["ci95"], "n": found["n"], "p": p}


def _rank_correlation(searches: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Spearman's rank correlation between the accuracies of supernets and of the short trainings of their
    architectures.
    """
    from scipy import stats

    pairs = [
        (search["valid_acc"], search["selection_acc"]) for search in searches if search["selection_acc"] is not None
    ]
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return None
    found = stats.spearmanr(*zip(*pairs, strict=True))
    return {"spearman": float(found.statistic), "p": float(found.pvalue), "n": len(pairs)}


# ---- Tables


def tables(results: Results) -> list[Section]:
    """The methods, and their comparisons."""
    methods = results["methods"]
    columns = ("method", "test accuracy, %", "95% interval", "n", "params, M", "mult-adds, M", "search, device hours")
    compared = ("methods", "difference in accuracy, 95% interval", "pairs", "p")
    if results["benchmark"] is not None:
        return [_judged(results)]
    rows = [_row(method) for method in methods.values()]
    pairs = [_comparison(methods, row) for row in results["comparisons"]]
    return [
        Section("Methods", columns=columns, rows=rows),
        Section("Paired comparisons, by the trainings' seeds", columns=compared, rows=pairs),
    ]


def _judged(results: Results) -> Section:
    """The true accuracies of what the methods have found, beside those of random cells and the best one."""
    truth = results["benchmark"]
    names = list(truth["optimum"])
    columns = ["method", "searches", *(f"{name}, %" for name in names), "regret, %", "skips", "device hours a search"]
    rows = []
    for method in results["methods"].values():
        if method["searches"]:
            rows.append(_judged_row(method["title"], method["searches"], truth))
        if method["selection_hours"]:
            best = [search for search in method["searches"] if search["seed"] == method["selected"]]
            rows.append(_judged_row("the best one in a short training", best, truth))
    mean = [_deviating(truth["mean"][name], truth["std"][name]) for name in names]
    regret = truth["optimum"][truth["dataset"]] - truth["mean"][truth["dataset"]]
    rows.append([f"All {truth['architectures']:,} cells", "", *mean, f"{regret:.2f}", "", ""])
    rows.append(["Highest in each column", "", *(f"{truth['optimum'][name]:.2f}" for name in names), "0.00", "", ""])
    return Section("True accuracies of what was found", columns=columns, rows=rows)


def _judged_row(title: str, searches: Sequence[Results], truth: Results) -> list[str]:
    """Means over these searches."""
    found = {name: summary([search["true"][name] for search in searches]) for name in truth["optimum"]}
    cells = [_deviating(accuracy["mean"], accuracy["std"]) for accuracy in found.values()]
    regret = truth["optimum"][truth["dataset"]] - found[truth["dataset"]]["mean"]
    skips, hours = (_mean(search[key] for search in searches) for key in ("skips", "hours"))
    return [title, str(len(searches)), *cells, f"{regret:.2f}", f"{skips:.1f}", f"{hours:.2f}"]


def _deviating(mean: float | None, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _row(method: Results) -> list[str]:
    accuracy = method["test_acc"]
    mean, std, ci95 = (compare.number(accuracy[key], ".2f") for key in ("mean", "std", "ci95"))
    return [
        method["title"],
        mean if accuracy["std"] is None else f"{mean} ± {std}",
        ci95 if accuracy["ci95"] is None else f"± {ci95}",
        str(accuracy["n"]),
        compare.number(method["parameters"], ".3f"),
        compare.number(method["multiply_adds"], ".1f"),
        compare.number(method["search_hours"] or None, ".2f"),
    ]


def _comparison(methods: Results, comparison: Results) -> list[str]:
    ours, theirs = (methods[name]["title"] for name in comparison["methods"])
    p = comparison["p"]
    return [
        f"{ours} - {theirs}",
        f"{comparison['difference']:+.2f} ± {comparison['ci95']:.2f}",
        str(comparison["n"]),
        "< 0.001" if p is not None and p < 0.001 else compare.number(p, ".3f"),
    ]


def markdown(results: Results) -> str:
    """The tables as Markdown."""
    parts = [compare.markdown(table.columns, table.rows) for table in tables(results) if table.rows]
    return "\n".join([*parts, *([f"Failed: {', '.join(results['failed'])}.\n"] if results["failed"] else [])])
