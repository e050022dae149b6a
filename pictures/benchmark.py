"""Pictures of a tabular benchmark: the landscape of all architectures with the paths of searches, and a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from pictures.curves import BEYOND, INK, LINES, MARKERS, near_optimum, styled, subplots
from pictures.history import History

if TYPE_CHECKING:
    from nas.benchmark import Benchmark


@styled
def landscape(table: Benchmark, runs: Sequence[History], names: Sequence[str]) -> Figure:
    """The histogram of all true accuracies, and below it the path of each run: its architecture after every epoch."""
    figure, [above, below] = subplots(f"{len(table):,} architectures on {table.dataset}, and what was found", 2, 1)
    values = np.array([row[table.dataset] for row in table.accuracies.values()])
    beyond = table.optimum + BEYOND
    bins = beyond - np.geomspace(beyond - values.min() + 1, 0.4, 120)
    above.hist(values, bins=bins.tolist(), color="#999999")
    above.set(ylabel="architectures")
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        path = [(table.of(found)[table.dataset], row["epoch"] + 1) for row, found in run.found]
        colour, marker = LINES[index % len(LINES)], MARKERS[index % len(MARKERS)]
        below.plot(*zip(*path, strict=True), label=name, color=colour, marker=marker, markersize=4, linewidth=1)
    for axes in (above, below):
        axes.axvline(table.optimum, color=INK, linestyle=":", linewidth=1)
        near_optimum(axes, "x", table.optimum)
        axes.set_xlim(bins[0], bins[-1])
    below.locator_params(axis="y", integer=True)
    below.set(xlabel=f"true accuracy, %; dotted: the optimum, {table.optimum:.2f}%", ylabel="epoch")
    below.invert_yaxis()
    below.legend(loc="upper left")
    return figure


@styled
def ranking(rows: Sequence[dict[str, Any]], tau: float, dataset: str) -> Figure:
    """The supernet's accuracy of architectures against their true one."""
    figure, [axes] = subplots(f"{len(rows)} random architectures: Kendall's tau {tau:.3f}", 1)
    axes.scatter(
        [row["true_acc"] for row in rows], [row["supernet_acc"] for row in rows], s=12, color=LINES[0], alpha=0.6
    )
    axes.set(xlabel=f"true accuracy on {dataset}, %", ylabel="accuracy in the supernet, %")
    return figure
