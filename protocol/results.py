"""The results of a protocol: means, deviations, intervals and comparisons of methods, as JSON and as tables."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from pictures import compare
from pictures.history import History
from protocol.plan import Job, Plan, run_of
from registry import load_space

Results = dict[str, Any]


def collect(plan: Plan, preset: str) -> Results:
    """The results so far.

    `{"preset", "methods": {name: {"title", "searches": [{"seed", "valid_acc", "hours", "space", "genotype", "selection_acc"}],
    "selected": seed, "trainings": [{"seed", "test_acc", "hours"}], "test_acc": {"mean", "std", "n", "ci95"}, "parameters",
    "multiply_adds", "search_hours", "selection_hours"}}, "comparisons": [{"methods": [a, b], "difference", "ci95", "n", "p"}],
    "rank_correlation", "failed": [job]}`; accuracies in percent, parameters and multiply-adds in millions.
    """
    methods = {name: _method(plan, name) for name in plan.methods}
    pairs = [pair for pair in itertools.combinations(methods, 2) if all(methods[name]["trainings"] for name in pair)]
    compared = [compare_methods(pair, [methods[name]["trainings"] for name in pair]) for pair in pairs]
    return {
        "preset": preset,
        "methods": methods,
        "comparisons": [comparison for comparison in compared if comparison["n"] > 1],
        "rank_correlation": _rank_correlation([search for method in methods.values() for search in method["searches"]]),
        "failed": sorted(plan.failed),
    }


def _method(plan: Plan, name: str) -> Results:
    selections = {job.index: run for job, run in _runs(plan.selections(name))}
    searches = []
    for job, run in _runs(plan.searches(name)):
        architecture = run.architecture
        searches.append(
            {
                "seed": job.index,
                "valid_acc": run.epochs[-1]["valid_acc"],
                "hours": hours(run),
                "space": run.space,
                "genotype": architecture.json if architecture is not None else None,
                "selection_acc": selections[job.index].epochs[-1]["valid_acc"] if job.index in selections else None,
            }
        )
    trained = _runs(plan.trainings(name))
    trainings = [{"seed": job.index, "test_acc": run.epochs[-1]["test_acc"], "hours": hours(run)} for job, run in trained]
    sizes = [compare.size(run, trusted=True) for _, run in trained]  # reproduce.py has run their code
    return {
        "title": plan.protocol.method(name).title,
        "searches": searches,
        "selected": plan.selected(name),
        "trainings": trainings,
        "test_acc": summary([training["test_acc"] for training in trainings]),
        "parameters": _mean([size[0] for size in sizes]),
        "multiply_adds": _mean([size[1] for size in sizes]),
        "search_hours": math.fsum(search["hours"] for search in searches),
        "selection_hours": math.fsum(hours(run) for run in selections.values()),
    }


def _runs(jobs: Sequence[Job]) -> list[tuple[Job, History]]:
    found = ((job, run_of(job)) for job in jobs)
    return [(job, run) for job, run in found if run is not None]


def hours(run: History) -> float:
    """Device hours of a run, without interruptions."""
    return math.fsum(row.get("seconds", 0.0) for row in run.epochs) / 3600


def summary(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation, and half the width of the 95% confidence interval (Student's t); None with too few values."""
    n = len(values)
    if n < 2:
        return {"mean": values[0] if values else None, "std": None, "n": n, "ci95": None}
    std = statistics.stdev(values)
    return {"mean": statistics.fmean(values), "std": std, "n": n, "ci95": _t95(n) * std / math.sqrt(n)}


def _t95(n: int) -> float:
    from scipy import stats  # imported here because it takes a second

    return float(stats.t.ppf(0.975, n - 1))


def compare_methods(names: Sequence[str], trainings: Sequence[Sequence[dict[str, Any]]]) -> Results:
    """The mean difference between the accuracies of two methods, over trainings with the same seed, and its 95% interval.

    `p` is the p-value of the two-sided paired t-test.
    """
    ours, theirs = ({training["seed"]: training["test_acc"] for training in each} for each in trainings)
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    found = summary(differences)
    p = None
    if len(differences) > 1 and any(difference != differences[0] for difference in differences):
        from scipy import stats

        p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return {"methods": list(names), "difference": found["mean"], "ci95": found["ci95"], "n": found["n"], "p": p}


def _rank_correlation(searches: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Spearman's rank correlation between the accuracies of supernets and of the short trainings of their architectures."""
    pairs = [(search["valid_acc"], search["selection_acc"]) for search in searches if search["selection_acc"] is not None]
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return None
    from scipy import stats

    found = stats.spearmanr(*zip(*pairs, strict=True))
    return {"spearman": float(found.statistic), "p": float(found.pvalue), "n": len(pairs)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


# ---- Tables


COLUMNS = ("method", "test accuracy, %", "95% interval", "n", "params, M", "mult-adds, M", "search, device hours")


def rows(results: Results) -> list[list[str]]:
    """The cells of the table, one row per method."""
    table = []
    for method in results["methods"].values():
        accuracy = method["test_acc"]
        mean, std, ci95 = (_number(accuracy[key], ".2f") for key in ("mean", "std", "ci95"))
        table.append(
            [
                method["title"],
                f"{mean} ± {std}" if accuracy["std"] is not None else mean,
                f"± {ci95}" if accuracy["ci95"] is not None else "-",
                str(accuracy["n"]),
                _number(method["parameters"], ".3f"),
                _number(method["multiply_adds"], ".1f"),
                _number(method["search_hours"] or None, ".2f"),
            ]
        )
    return table


def comparison_rows(results: Results) -> list[list[str]]:
    """The cells of the table of comparisons: methods, difference with interval, number of pairs, p."""
    titles = {name: method["title"] for name, method in results["methods"].items()}
    return [
        [
            f"{titles[comparison['methods'][0]]} - {titles[comparison['methods'][1]]}",
            f"{comparison['difference']:+.2f} ± {_number(comparison['ci95'], '.2f')}",
            str(comparison["n"]),
            "< 0.001" if comparison["p"] is not None and comparison["p"] < 0.001 else _number(comparison["p"], ".3f"),
        ]
        for comparison in results["comparisons"]
    ]


COMPARISON_COLUMNS = ("methods", "difference in accuracy, 95% interval", "pairs", "p")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def markdown(results: Results) -> bytes:
    """Both tables as Markdown."""
    parts = [_markdown(COLUMNS, rows(results))]
    if results["comparisons"]:
        parts.append(_markdown(COMPARISON_COLUMNS, comparison_rows(results)))
    if results["failed"]:
        parts.append(f"Failed: {', '.join(results['failed'])}.\n")
    return "\n".join(parts).encode()


def _markdown(head: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *[[cell.replace("|", "\\|") for cell in line] for line in table]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_TEX = str.maketrans(
    {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$", "{": r"\{", "}": r"\}", "$": r"\$", "\\": r"\textbackslash{}"}
)


def tex(results: Results) -> bytes:
    """The first table as LaTeX. It needs the package booktabs."""
    lines = [" & ".join(cell.translate(_TEX) for cell in line) + r" \\" for line in (COLUMNS, *rows(results))]
    head, *body = lines
    return "\n".join([r"\begin{tabular}{lrrrrrr}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]).encode()


def distances(results: Results, name: str) -> list[tuple[int, int, int | None]]:
    """(seed, seed, distance) for every pair of architectures that the searches of a method have found."""
    searches = [search for search in results["methods"][name]["searches"] if search["genotype"]]
    found = [(search["seed"], load_space(search["space"]).of(search["genotype"])) for search in searches]
    return [(a, b, one.distance(other)) for (a, one), (b, other) in itertools.combinations(found, 2)]
