"""The page about the results of a protocol: accuracies with intervals, supernet against selection accuracy, cost,
cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from architectures import load_space
from pictures import curves, drawing, report
from pictures.curves import INK, LINES
from pictures.report import Section, embedded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, Any]


def accuracies(results: Results) -> Figure | None:
    """Each training as a point, with mean and 95% interval, in a row for each method; None if there are no trainings
    yet.
    """
    methods = [method for method in results["methods"].values() if method["trainings"]]
    if not methods:
        return None
    with curves.style():
        figure, [axes] = curves.subplots("Test accuracy of every training; mean and 95% interval", 1)
        figure.set_size_inches(8, 1.2 + 0.45 * len(methods))
        for row, method in enumerate(methods):
            values, summary = [training["test_acc"] for training in method["trainings"]], method["test_acc"]
            axes.scatter(values, [row] * len(values), color=LINES[0], alpha=0.45)
            axes.errorbar(summary["mean"], row, xerr=summary["ci95"], fmt="D", color=INK, markersize=5, capsize=4)
        axes.set_yticks(range(len(methods)), [method["title"] for method in methods])
        axes.invert_yaxis()
        axes.set_xlabel("test accuracy, %")
    return figure


def scatter(results: Results) -> Figure | None:
    """Supernet accuracy against selection accuracy, and search cost against final accuracy; None if nothing was
    searched.
    """
    methods = [method for method in results["methods"].values() if method["searches"]]
    if not methods:
        return None
    with curves.style():
        figure, [supernets, costs] = curves.subplots("", 2, legend_rows=(len(methods) + 1) // 2)
        for index, method in enumerate(methods):
            style: dict[str, Any] = {
                "color": LINES[index % len(LINES)],
                "marker": curves.MARKERS[index % len(curves.MARKERS)],
            }
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


def cells(method: Results) -> bytes | None:
    """A PNG of the architecture that the method has selected, its cells below each other; None if there is none."""
    for search in method["searches"]:
        if search["seed"] == method["selected"] and search["genotype"] is not None:
            architecture = load_space(search["space"]).of(search["genotype"])
            graphs = drawing.graphs(architecture, f"{method['title']}, seed {search['seed']}").values()
            return drawing.joined([drawing.render(graph, "png", dpi=90) for graph in graphs])
    return None


def page(results: Results, tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]], state: str) -> str:
    """The page: the first table, the plots, the other tables, and the cells.

    Args:
        tables: (heading, columns, rows) of each.
        state: a sentence about the progress of the protocol.
    """
    first, *others = [Section(heading, columns=columns, rows=rows) for heading, columns, rows in tables if rows]
    plots = (("Accuracy of every training", accuracies(results)), ("Search and result", scatter(results)))
    drawn = [Section(heading, picture=embedded(curves.save(figure))) for heading, figure in plots if figure is not None]
    found = ((method["title"], cells(method)) for method in results["methods"].values())
    selected = [
        Section(f"{title}: the selected cells", picture=embedded(picture)) for title, picture in found if picture
    ]
    return report.page(f"Protocol {results['preset']}", state, [first, *drawn, *others, *selected])
