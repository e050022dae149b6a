"""Plots of runs over their epochs: loss and accuracy, a heat map of the alphas, the strongest operations.

Operations have the same colours as in the drawings of cells.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from architectures import TITLES, cell_of, load_space
from architectures.cells import edge_of
from experiment.errors import printable, shorten
from pictures.drawing import COLOURS, colour
from pictures.history import History, strongest

# Okabe and Ito's palette, without its yellow, which is too light for lines on white.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES, MARKERS = ("-", "--", "-."), "os^Dvpx"
INK = "#222222"
LEVEL: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": ":"}
styled = matplotlib.rc_context(
    {
        "text.color": INK,
        "axes.edgecolor": "#888888",
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "grid.color": "#DDDDDD",
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
    }
)
"""Decorates what makes or saves a figure."""

MOST_CLASSES = 40  # in a picture
PHASES = {"train": "training", "valid": "validation", "test": "test set"}


@styled
def save(figure: Figure, format: str = "png") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=format, dpi=130)
    return stream.getvalue()


def subplots(title: str, count: int, columns: int = 2, legend_rows: int = 0) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, in rows of `columns`."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.2 * columns, 0.4 + 3.0 * rows + 0.25 * legend_rows), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.axis("off")
    return figure, panels[:count]


BEYOND = 0.5  # percent behind the optimum at which the scale of `near_optimum` ends


def near_optimum(axes: Axes, axis: str, optimum: float) -> None:
    """Makes an axis of accuracies logarithmic in the distance from the optimum, where most that is found lies."""
    end = optimum + BEYOND
    scale = (lambda x: -np.log(np.maximum(end - x, 1e-9)), lambda x: end - np.exp(-x))
    getattr(axes, f"set_{axis}scale")("function", functions=scale)
    ticks = [round(optimum - far, 1) for far in (80, 40, 20, 10, 5, 2, 1, 0) if far < optimum]
    getattr(axes, f"set_{axis}ticks")(ticks)


def pictures(run: History) -> dict[str, Figure]:
    """{name: figure}: all figures for which the run has data."""
    drawn = {"curves": curves(run), "confusion": confusion(run), "alphas": alphas(run), "operations": operations(run)}
    drawn["true_accuracy"] = true_accuracy(run)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def curves(run: History) -> Figure | None:
    """Loss and accuracy, or perplexity, over the epochs; None if neither was recorded."""
    styles = zip(PHASES.items(), LINES, DASHES, strict=False)
    lines = [
        (run, phase, {"label": label, "color": colour, "linestyle": dashes})
        for (phase, label), colour, dashes in styles
        if run.series(f"{phase}_loss")[0]
    ]
    return _loss_and_accuracy(run.caption, lines, legend_rows=1) if lines else None


def compare_curves(runs: Sequence[History], names: Sequence[str]) -> Figure:
    """Loss and accuracy of several runs, one colour each: solid lines for validation or test, dashed for training."""
    lines: list[tuple[History, str, dict[str, Any]]] = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        colour, marker = LINES[index % len(LINES)], MARKERS[index % len(MARKERS)]
        valid, test = (len(run.series(f"{phase}_loss")[0]) for phase in ("valid", "test"))
        held_out = "valid" if valid > test else "test"
        lines.append((run, "train", {"color": colour, "linestyle": "--", "linewidth": 1.0}))
        lines.append((run, held_out, {"color": colour, "label": name, "marker": marker, "markevery": 5}))
    title = f"{len(runs)} runs: solid validation or test, dashed training"
    return _loss_and_accuracy(title, lines, legend_rows=(len(runs) + 1) // 2)


@styled
def _loss_and_accuracy(title: str, lines: Sequence[tuple[History, str, dict[str, Any]]], legend_rows: int) -> Figure:
    """A line for each (run, phase, style)."""
    of_text = all(run.series("train_ppl")[0] for run, _, _ in lines)
    measures = {"loss": "loss", **({"ppl": "perplexity"} if of_text else {"acc": "accuracy, %"})}
    figure, panels = subplots(title, 2, legend_rows=legend_rows)
    for axes, (measure, heading) in zip(panels, measures.items(), strict=True):
        for run, phase, style in lines:
            _line(axes, *run.series(f"{phase}_{measure}"), **style)
        _over_epochs(axes, heading)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def true_accuracy(run: History) -> Figure | None:
    """True accuracy of the architecture and accuracy of the supernet over the epochs; None without a benchmark."""
    epochs, true = run.series("true_acc")
    if not epochs:
        return None
    figure, [axes] = subplots(run.caption, 1)
    axes.plot(epochs, true, color=LINES[0], marker="o", markersize=3, label="true accuracy of the architecture")
    axes.plot(*run.series("valid_acc"), color=LINES[1], linestyle="--", label="validation accuracy of the supernet")
    axes.axhline(run.epochs[-1]["true_optimum"], **LEVEL, label="optimum")
    near_optimum(axes, "y", run.epochs[-1]["true_optimum"])
    axes.set(xlabel="epoch", ylabel="accuracy, %", ylim=(0, run.epochs[-1]["true_optimum"] + 0.1))
    axes.locator_params(axis="x", integer=True)
    figure.legend(loc="outside lower center")
    return figure


@styled
def confusion(run: History) -> Figure | None:
    """The confusion matrix of the test set in percent; None if it was not recorded, or has more than `MOST_CLASSES`
    classes.
    """
    classes = run.epochs[-1].get("confusion", {})
    if not 0 < len(classes) <= MOST_CLASSES:
        return None
    shares = [[100 * row.get(other, 0) / sum(row.values()) for other in classes] for row in classes.values()]
    labels = [printable(shorten(name, 24)).replace("$", r"\$") for name in classes]
    figure, [axes] = subplots(f"{run.caption}: {len(classes)} classes", 1)
    figure.set_size_inches(3 + 0.3 * max(8, len(classes)), 2 + 0.3 * max(8, len(classes)))
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=100), label="images of a class, %")
    axes.set_xticks(range(len(classes)), labels, rotation=90)
    axes.set_yticks(range(len(classes)), labels)
    axes.set(xlabel="taken for", ylabel="class")
    axes.grid(visible=False)
    for (y, x), share in np.ndenumerate(shares):
        if share >= 0.5:
            ink = "white" if share > 50 else INK
            axes.text(x, y, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=7)
    return figure


@styled
def operations(run: History) -> Figure | None:
    """How many edges each operation is strongest on, skip connections, entropy of the alphas, and the eigenvalue if it
    was measured.

    None for a run without architectures.
    """
    rows = [row for row in run.epochs if row.get("alphas")]
    cells = [cell for cell in TITLES if rows and any(cell_of(edge) == cell for edge in rows[0]["alphas"])]
    skips, entropies, eigenvalue = _by_cell(run, "skips"), _by_cell(run, "entropy"), run.series("eigenvalue")
    if not skips and not rows:
        return None
    count = len(cells) + bool(skips) + bool(entropies) + bool(eigenvalue[0])
    figure, panels = subplots(run.caption, count, legend_rows=2)
    rest = iter(panels)
    patches: dict[str, Any] = {}
    for cell in cells:
        patches |= _strongest(next(rest), cell, rows)
    if skips:
        axes = next(rest)
        _lines(axes, skips, "skip connections in the architecture")
        axes.locator_params(axis="y", integer=True)
        if "normal" in skips:
            axes.axhline(2.5, **LEVEL, label="too many in a normal cell")
        axes.set_ylim(-0.2, max(4, *(max(values) for _, values in skips.values())) + 1.6)
        axes.legend(loc="upper left", ncols=2, fontsize=8)
    if entropies:
        axes, most = next(rest), max(math.log(len(weights)) for weights in rows[-1]["alphas"].values())
        _lines(axes, entropies, "entropy of an edge's alphas, nats")
        axes.axhline(most, **LEVEL, label="all operations equal")
        axes.set_ylim(0, 1.06 * most)  # the whole range: a curve near the upper end means that nothing is decided
        axes.legend(loc="lower left")
    if eigenvalue[0]:
        axes = next(rest)
        _line(axes, *eigenvalue, color=LINES[0])
        _over_epochs(axes, "dominant eigenvalue of the alphas' Hessian")
    if patches:
        names = sorted(patches, key=_order)
        figure.legend([patches[name] for name in names], names, loc="outside lower center", ncols=4)
    return figure


def _by_cell(run: History, key: str) -> dict[str, tuple[list[int], list[float]]]:
    series = {cell: run.series(f"{key}_{cell}" if cell else key) for cell in TITLES}
    return {cell: found for cell, found in series.items() if found[0]}


def _strongest(axes: Axes, cell: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Draws on how many edges of the cell each operation is strongest. Returns {operation: patch for the legend}."""
    found = [[strongest(weights) for edge, weights in row["alphas"].items() if cell_of(edge) == cell] for row in rows]
    names = sorted({name for epoch in found for name in epoch}, key=_order)
    edges = [row["epoch"] + 0.5 for row in rows] + [rows[-1]["epoch"] + 1.5]  # of the columns
    counts = [[epoch.count(name) for epoch in [*found, found[-1]]] for name in names]
    patches = axes.stackplot(edges, counts, colors=[colour(name) for name in names], step="post", linewidth=0)
    _over_epochs(axes, f"{TITLES[cell]}: edges on which an operation is strongest")
    axes.margins(0)
    axes.grid(visible=False)
    axes.locator_params(axis="y", integer=True)
    return dict(zip(names, patches, strict=True))


@styled
def alphas(run: History) -> Figure | None:
    """A heat map for every edge, with a row for every operation and for the beta. A larger softmaxed alpha has a
    stronger colour.

    In a cell of DARTS, the edges into a node are in one row, and edges of the final architecture have a frame. None
    without alphas.
    """
    rows = [row for row in run.epochs if row.get("alphas")]
    if not rows:
        return None
    betas = "betas" in rows[-1]
    epochs = [
        {edge: weights | ({"edge": row["betas"][edge]} if betas else {}) for edge, weights in row["alphas"].items()}
        for row in rows
    ]
    space = load_space(run.space)
    architecture = space.of_epoch(rows[-1])
    chosen = {} if architecture is None else architecture.chosen
    weights = [weight for edges in epochs for operations in edges.values() for weight in operations.values()]
    low, high = min(weights), max(weights)
    first, last = rows[0]["epoch"] + 1, rows[-1]["epoch"] + 1
    places = _places(list(epochs[-1]))
    height, width = (1 + max(axis) for axis in zip(*places.values(), strict=True))
    tall = max(map(len, epochs[-1].values()))
    figure, panels = subplots(f"{run.caption}: softmaxed alphas", height * width, width)
    figure.set_size_inches(1.6 + 1.9 * width, 1.2 + height * (0.14 * tall + 0.36))
    for axes in panels:
        axes.axis("off")
    labelled: list[str] = []
    for edge, (row, column) in places.items():
        axes, names = panels[row * width + column], sorted(epochs[-1][edge], key=_order)
        shares = np.array([[edges[edge][name] for edges in epochs] for name in names])[:, :, None]
        colours = np.array([to_rgb(colour(name)) for name in names])[:, None]
        extent = (first - 0.5, last + 0.5, len(names) - 0.5, -0.5)
        axes.axis("on")
        picture = 1 - (shares - low) / ((high - low) or 1) * (1 - colours)
        axes.imshow(picture, aspect="auto", interpolation="nearest", extent=extent)
        ends, cell = space.ends(edge), cell_of(edge)
        heading = edge if ends is None else " \N{RIGHTWARDS ARROW} ".join(ends)
        if ends is not None and cell:
            heading = f"{TITLES[cell].removesuffix(' cell')}: {heading}"
        axes.set_title(heading, fontsize=9, fontweight="bold" if edge in chosen else "normal", pad=3)
        axes.grid(visible=False)
        axes.tick_params(length=2, labelsize=7, pad=1)
        axes.set_xticks(sorted({first, last}))
        axes.set_yticks(range(len(names)), names if column == 0 or names != labelled else [""] * len(names))
        labelled = names
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            label.set_color(colour(name))
        frame = {"color": INK, "linewidth": 1.6} if edge in chosen else {"color": "#BBBBBB", "linewidth": 0.6}
        axes.spines[:].set(visible=True, **frame)
        if chosen.get(edge) in names:
            at = names.index(chosen[edge])
            axes.axhspan(at - 0.5, at + 0.5, fill=False, edgecolor=INK, linewidth=1.6)
    note = f"epochs; white {low:.3f}, full colour {high:.3f}; bold and framed: in the architecture"
    figure.supxlabel(note + "; edge: beta" * betas, fontsize=9)
    return figure


def _places(edges: list[str]) -> dict[str, tuple[int, int]]:
    """{edge: (row, column)}. In cells, every node has a row, and every source a column; other edges are in order."""
    known = {edge: place for edge in edges if (place := edge_of(edge)) is not None}
    if len(known) < len(edges):
        return {edge: divmod(index, 4) for index, edge in enumerate(edges)}
    nodes = sorted({(cell, node) for cell, node, _ in known.values()})
    sources = sorted({source for _, _, source in known.values()})
    return {edge: (nodes.index((cell, node)), sources.index(source)) for edge, (cell, node, source) in known.items()}


def _order(operation: str) -> tuple[int, str]:
    names = list(COLOURS)
    return (names.index(operation) if operation in names else len(names), operation)


def _lines(axes: Axes, series: dict[str, tuple[list[int], list[float]]], title: str) -> None:
    """Plots a line for every cell."""
    for (cell, points), line, dashes in zip(series.items(), LINES, DASHES, strict=False):
        _line(axes, *points, label=TITLES[cell], color=line, linestyle=dashes)
    _over_epochs(axes, title)


def _line(axes: Axes, epochs: Sequence[int], values: Sequence[float], **style: Any) -> None:
    axes.plot(epochs, values, **style | ({"marker": "o"} if len(epochs) == 1 else {}))


def _over_epochs(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    axes.margins(x=0.02)
