"""The page about the results of a protocol: accuracies with intervals, supernet against selection accuracy, cost,
cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from architectures import load_space
from pictures import curves, drawing, report
from pictures.curves import INK, LINES, MARKERS, near_optimum, styled, subplots
from pictures.report import Section, embedded

Results = dict[str, Any]


@styled
def accuracies(results: Results) -> Figure | None:
    """Each training as a point, with mean and 95% interval, in a row for each method; None without trainings."""
    methods = [method for method in results["methods"].values() if method["trainings"]]
    if not methods:
        return None
    figure, [axes] = subplots("Test accuracy of every training; mean and 95% interval", 1)
    figure.set_size_inches(8, 1.2 + 0.45 * len(methods))
    for row, method in enumerate(methods):
        values, summary = [training["test_acc"] for training in method["trainings"]], method["test_acc"]
        axes.scatter(values, [row] * len(values), color=LINES[0], alpha=0.45)
        axes.errorbar(summary["mean"], row, xerr=summary["ci95"], fmt="D", color=INK, markersize=5, capsize=4)
    axes.set_yticks(range(len(methods)), [method["title"] for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)  # no row on the frame
    axes.set_xlabel("test accuracy, %")
    return figure


@styled
def scatter(results: Results) -> Figure | None:
    """Supernet accuracy against selection accuracy, and search cost against final accuracy; None without searches."""
    methods = [method for method in results["methods"].values() if method["searches"]]
    if not methods:
        return None
    figure, [supernets, costs] = subplots("", 2, legend_rows=(len(methods) + 1) // 2)
    for index, method in enumerate(methods):
        style: dict[str, Any] = {"color": LINES[index % len(LINES)], "marker": MARKERS[index % len(MARKERS)]}
        tried = [search for search in method["searches"] if search["selection_acc"] is not None]
        pairs = [[search[key] for search in tried] for key in ("valid_acc", "selection_acc")]
        supernets.plot(*pairs, linestyle="", label=method["title"], **style)
        if method["trainings"]:
            accuracy = method["test_acc"]
            costs.errorbar(method["search_hours"], accuracy["mean"], yerr=accuracy["ci95"], capsize=3, **style)
    correlation = results["rank_correlation"]
    note = f": rank correlation {correlation['spearman']:+.2f}, n = {correlation['n']}" if correlation else ""
    supernets.set(xlabel="supernet, validation accuracy, %", ylabel="short training, held-out accuracy, %")
    supernets.set_title(f"Supernet and cell{note}")
    costs.set(xlabel="device hours of the searches", ylabel="test accuracy, %")
    costs.set_title("Cost of the searches against final accuracy")
    figure.legend(*supernets.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def paths(results: Results) -> Figure | None:
    """For each method the true accuracy of the architecture of every epoch, one line for each search."""
    methods = [method for method in results["methods"].values() if any("path" in each for each in method["searches"])]
    if not methods:
        return None
    truth = results["benchmark"]
    levels = {"the best cell": ("optimum", ":"), "mean of all cells": ("mean", "--")}
    figure, panels = subplots(f"True accuracy on {truth['dataset']} after every epoch, %", len(methods), 4, 1)
    figure.set_size_inches(11, 0.8 + 2.1 * -(-len(methods) // 4))
    for axes, method in zip(panels, methods, strict=True):
        for search, colour in zip(method["searches"], itertools.cycle(LINES), strict=False):
            axes.plot(range(1, len(search["path"]) + 1), search["path"], color=colour, linewidth=1)
        for label, (key, dashes) in levels.items():
            axes.axhline(truth[key][truth["dataset"]], color=INK, linewidth=1, linestyle=dashes, label=label)
        axes.set_title(method["title"], fontsize=9)
        near_optimum(axes, "y", truth["optimum"][truth["dataset"]])
        axes.set_ylim(0, truth["optimum"][truth["dataset"]] + 0.1)
        axes.locator_params(axis="x", integer=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def cells(method: Results) -> bytes | None:
    """A PNG of the architecture that the method has selected, its cells below each other; None if there is none."""
    for search in method["searches"]:
        if search["seed"] == method["selected"] and search["genotype"] is not None:
            architecture = load_space(search["space"]).of(search["genotype"])
            graphs = drawing.graphs(architecture, f"{method['title']}, seed {search['seed']}")
            return drawing.png(drawing.stacked(graphs.values(), dpi=90))
    return None


def page(results: Results, tables: Sequence[Section], state: str) -> str:
    """The page: the first table, the plots, the other tables, and the cells. `state` says how far the protocol is."""
    plots = {"Accuracy of every training": accuracies(results), "Search and result": scatter(results)}
    if results["benchmark"] is not None:
        plots = {"What was found, epoch by epoch": paths(results)}
    drawn = {heading: curves.save(figure) for heading, figure in plots.items() if figure is not None}
    selected = {f"{method['title']}: the selected cells": cells(method) for method in results["methods"].values()}
    first, *others = [table for table in tables if table.rows]
    sections = [first, *_pictures(drawn), *others, *_pictures(selected)]
    return report.page(f"Protocol {results['preset']}", state, sections)


def _pictures(pictures: Mapping[str, bytes | None]) -> list[Section]:
    return [Section(heading, picture=embedded(picture)) for heading, picture in pictures.items() if picture]
