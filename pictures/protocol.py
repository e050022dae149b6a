"""The page about the results of a protocol: accuracies with intervals, supernet against selection accuracy, cost, cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pictures import curves, drawing, report
from pictures.curves import INK, LINES
from pictures.report import Section, embedded
from registry import load_space

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, Any]


def accuracies(results: Results) -> Figure | None:
    """Each training as a point, with mean and 95% interval, in a row for each method; None if there are no trainings yet."""
    methods = [method for method in results["methods"].values() if method["trainings"]]
    if not methods:
        return None
    with curves.style():
        figure, [axes] = curves.subplots("Test accuracy of every training; mean and 95% interval", 1)
        figure.set_size_inches(8, 1.2 + 0.45 * len(methods))
        for row, method in enumerate(methods):
            values = [training["test_acc"] for training in method["trainings"]]
            axes.scatter(values, [row] * len(values), s=22, color=LINES[0], alpha=0.45, linewidths=0)
            summary = method["test_acc"]
            axes.errorbar([summary["mean"]], [row], xerr=summary["ci95"], fmt="D", color=INK, markersize=5, capsize=4, linewidth=1.4)
        axes.set_yticks(range(len(methods)), [method["title"] for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlabel("test accuracy, %")
    return figure


def scatter(results: Results) -> Figure | None:
    """Supernet accuracy against selection accuracy, and search cost against final accuracy; None if there is no data."""
    methods = list(results["methods"].values())
    selected = [method for method in methods if any(search["selection_acc"] is not None for search in method["searches"])]
    costed = [method for method in methods if method["search_hours"] and method["trainings"]]
    if not selected and not costed:
        return None
    with curves.style():
        figure, panels = curves.subplots("", 2, legend_rows=(len(methods) + 1) // 2)
        colours = {method["title"]: LINES[index % len(LINES)] for index, method in enumerate(methods)}
        markers = {method["title"]: "os^Dvpx"[index % 7] for index, method in enumerate(methods)}
        for method in selected:
            points = [
                (search["valid_acc"], search["selection_acc"]) for search in method["searches"] if search["selection_acc"] is not None
            ]
            panels[0].scatter(
                *zip(*points, strict=True), color=colours[method["title"]], marker=markers[method["title"]], label=method["title"]
            )
        correlation = results["rank_correlation"]
        note = f": rank correlation {correlation['spearman']:+.2f}, n = {correlation['n']}" if correlation else ""
        panels[0].set_title(f"Supernet and cell{note}")
        panels[0].set_xlabel("supernet, validation accuracy, %")
        panels[0].set_ylabel("short training, held-out accuracy, %")
        for method in costed:
            style = {"color": colours[method["title"]], "marker": markers[method["title"]], "label": method["title"]}
            accuracy = method["test_acc"]
            panels[1].errorbar([method["search_hours"]], [accuracy["mean"]], yerr=accuracy["ci95"], capsize=3, linestyle="", **style)
        panels[1].set_title("Cost of the searches against final accuracy")
        panels[1].set_xlabel("device hours")
        panels[1].set_ylabel("test accuracy, %")
        handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return figure


def cells(method: Results) -> bytes | None:
    """The architecture that the method has selected, with its cells below each other, as a PNG; None if there is none."""
    for search in method["searches"]:
        if search["seed"] == method["selected"] and search["genotype"] is not None:
            architecture = load_space(search["space"]).of(search["genotype"])
            graphs = drawing.graphs(architecture, f"{method['title']}, seed {search['seed']}").values()
            return drawing.joined([drawing.render(graph, "png", dpi=90) for graph in graphs])
    return None


def page(results: Results, tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]], state: str) -> bytes:
    """The page: the first table, the plots, the other tables, and the cells.

    Args:
        tables: (heading, columns, rows) of each.
        state: a sentence about the progress of the protocol.
    """
    first, *others = [Section(heading, columns=columns, rows=rows) for heading, columns, rows in tables if rows]
    plots = (("Accuracy of every training", accuracies(results)), ("Search and result", scatter(results)))
    drawn = [Section(heading, picture=embedded(curves.save(figure))) for heading, figure in plots if figure is not None]
    found = ((method["title"], cells(method)) for method in results["methods"].values())
    selected = [Section(f"{title}: the selected cells", picture=embedded(picture)) for title, picture in found if picture]
    return report.page(f"Protocol {results['preset']}", state, [first, *drawn, *others, *selected])
