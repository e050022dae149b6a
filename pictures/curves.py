"""Plots of runs over their epochs: loss and accuracy, a heat map of the alphas, the strongest operations.

Operations have the same colours as in the drawings of cells.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from architectures import TITLES, Architecture, cell_of, load_space
from architectures.cells import edge_of
from experiment import errors
from pictures import history
from pictures.animation import strongest
from pictures.drawing import COLOURS, colour
from pictures.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, without its yellow, which is too light for lines on white.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES, MARKERS = ("-", "--", "-.", ":"), "os^Dvpx"
INK = "#222222"
STYLE = {
    "text.color": INK,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#DDDDDD",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "darts",  # the same picture again has the same bytes
}
MOST_CLASSES = 40  # in a picture
PHASES = {"train": "training", "valid": "validation", "test": "test set"}


def save(figure: Figure, format: str = "png") -> bytes:
    """The figure in this format. The same figure always gives the same bytes."""
    stream = io.BytesIO()
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[format]
    with style():
        figure.savefig(stream, format=format, dpi=130, facecolor="white", metadata=metadata)
    return stream.getvalue()


def pictures(run: History) -> dict[str, Figure]:
    """{name: figure}: all figures for which the run has data."""
    drawn = {"curves": curves(run), "confusion": confusion(run), "alphas": alphas(run), "operations": operations(run)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def curves(run: History) -> Figure | None:
    """Loss and accuracy, or perplexity, over the epochs; None if neither was recorded."""
    measured = [phase for phase in PHASES if run.series(f"{phase}_loss")[0]]
    if not measured:
        return None
    with style():
        figure, panels = subplots(run.caption, 2, legend_rows=1)
        for axes, (measure, title) in zip(panels, _measures([run]), strict=True):
            for phase, line, dashes in zip(measured, LINES, DASHES, strict=False):
                _line(axes, *run.series(f"{phase}_{measure}"), label=PHASES[phase], color=line, linestyle=dashes)
            _finish(axes, title)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def compare_curves(runs: Sequence[History], names: Sequence[str]) -> Figure:
    """Loss and accuracy of several runs, one colour each: solid lines for validation or test, dashed lines for
    training.
    """
    with style():
        figure, panels = subplots(
            f"{len(runs)} runs: solid validation or test, dashed training", 2, legend_rows=(len(runs) + 1) // 2
        )
        for axes, (measure, title) in zip(panels, _measures(runs), strict=True):
            for index, (run, name) in enumerate(zip(runs, names, strict=True)):
                line = LINES[index % len(LINES)]
                _line(axes, *run.series(f"train_{measure}"), color=line, linestyle="--", linewidth=1.0, label="_")
                held_out = max(("test", "valid"), key=lambda phase: len(run.series(f"{phase}_loss")[0]))
                marker = MARKERS[index % len(MARKERS)]
                _line(axes, *run.series(f"{held_out}_{measure}"), color=line, label=name, marker=marker, markevery=5)
            _finish(axes, title)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _measures(runs: Sequence[History]) -> list[tuple[str, str]]:
    """(key, title) of the two panels: loss, and perplexity for language models or else accuracy."""
    of_text = all(run.series("train_ppl")[0] for run in runs)
    return [("loss", "loss"), ("ppl", "perplexity") if of_text else ("acc", "accuracy, %")]


def confusion(run: History) -> Figure | None:
    """The confusion matrix of the test set in percent; None if it was not recorded, or has more than `MOST_CLASSES`
    classes.
    """
    classes = run.epochs[-1].get("confusion", {})
    if not 0 < len(classes) <= MOST_CLASSES:
        return None
    shares = [[100 * row.get(other, 0) / sum(row.values()) for other in classes] for row in classes.values()]
    labels = [errors.printable(errors.shorten(name, 24)).replace("$", r"\$") for name in classes]
    with style():
        figure, [axes] = subplots(f"{run.caption}: {len(classes)} classes", 1)
        figure.set_size_inches(3 + 0.3 * max(8, len(classes)), 2 + 0.3 * max(8, len(classes)))
        figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=100), label="images of a class, %")
        axes.set(
            xticks=range(len(classes)),
            yticks=range(len(classes)),
            yticklabels=labels,
            xlabel="taken for",
            ylabel="class",
        )
        axes.set_xticklabels(labels, rotation=90)
        axes.grid(visible=False)
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                if share >= 0.5:
                    axes.text(
                        x, y, f"{share:.0f}", ha="center", va="center", color="white" if share > 50 else INK, fontsize=7
                    )
    return figure


def operations(run: History) -> Figure | None:
    """How many edges each operation is strongest on, skip connections, entropy of the alphas, and the eigenvalue if it
    was measured.

    None for a run without architectures.
    """
    rows = [row for row in run.epochs if row.get("alphas")]
    cells = [cell for cell in TITLES if rows and any(cell_of(edge) == cell for edge in rows[0]["alphas"])]
    skips, entropies = (
        {cell: run.series(f"{key}_{cell}" if cell else key) for cell in TITLES} for key in ("skips", "entropy")
    )
    skips, entropies = ({cell: series for cell, series in kind.items() if series[0]} for kind in (skips, entropies))
    eigenvalue = run.series("eigenvalue")
    if not skips and not rows:
        return None
    with style():
        figure, panels = subplots(
            run.caption, len(cells) + bool(skips) + bool(entropies) + bool(eigenvalue[0]), legend_rows=2
        )
        rest = iter(panels)
        patches: dict[str, Any] = {}
        for cell in cells:
            patches |= _strongest(next(rest), cell, run, rows)
        if skips:
            axes = next(rest)
            _cells(axes, skips, "skip connections in the architecture")
            axes.locator_params(axis="y", integer=True)
            if "normal" in skips:
                _level(axes, 2.5, "too many in a normal cell")
            axes.set_ylim(-0.2, max(4, *(max(values) for _, values in skips.values())) + 1.6)
            axes.legend(loc="upper left", ncols=2, fontsize=8)
        if entropies:
            axes, most = next(rest), max(math.log(len(weights)) for weights in rows[-1]["alphas"].values())
            _cells(axes, entropies, "entropy of an edge's alphas, nats")
            _level(axes, most, "all operations equal")
            axes.set_ylim(0, 1.06 * most)  # the whole range: a curve near the upper end means that nothing is decided
            axes.legend(loc="lower left")
        if eigenvalue[0]:
            axes = next(rest)
            _line(axes, *eigenvalue, color=LINES[0])
            _finish(axes, "dominant eigenvalue of the alphas' Hessian")
        if patches:
            names = sorted(patches, key=_order)
            figure.legend([patches[name] for name in names], names, loc="outside lower center", ncols=4)
    return figure


def _cells(axes: Axes, series: dict[str, tuple[list[int], list[float]]], title: str) -> None:
    """Plots a line for every cell."""
    for (cell, points), line, dashes in zip(series.items(), LINES, DASHES, strict=False):
        _line(axes, *points, label=TITLES[cell], color=line, linestyle=dashes)
    _finish(axes, title)


def _level(axes: Axes, height: float, label: str) -> None:
    axes.axhline(height, color=INK, linewidth=1, linestyle=":", label=label)


def _strongest(axes: Axes, cell: str, run: History, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Draws on how many edges of the cell each operation is strongest. Returns {operation: patch for the legend}."""
    found = [
        [strongest(weights) for edge, weights in history.named_alphas(run, row).items() if cell_of(edge) == cell]
        for row in rows
    ]
    names = sorted({name for epoch in found for name in epoch}, key=_order)
    edges = [row["epoch"] + 0.5 for row in rows] + [rows[-1]["epoch"] + 1.5]  # of the columns
    counts = [[epoch.count(name) for epoch in [*found, found[-1]]] for name in names]
    patches = axes.stackplot(edges, counts, colors=[colour(name) for name in names], step="post", linewidth=0)
    _finish(axes, f"{TITLES[cell]}: edges on which an operation is strongest")
    axes.margins(0)
    axes.grid(visible=False)
    axes.locator_params(axis="y", integer=True)
    return dict(zip(names, patches, strict=True))


def alphas(run: History) -> Figure | None:
    """A heat map for every edge, with a row for every operation and for the beta. A larger softmaxed alpha has a
    stronger colour.

    In a cell of DARTS, the edges into a node are in one row, and edges of the final architecture have a frame. None
    without alphas.
    """
    rows = [row for row in run.epochs if row.get("alphas")]
    if not rows:
        return None
    import numpy as np
    from matplotlib.colors import to_rgb

    epochs = [history.with_betas(history.named_alphas(run, row), row) for row in rows]
    space = load_space(run.space)
    architecture = space.of_epoch(rows[-1])
    chosen = architecture.chosen if architecture is not None else {}
    weights = [weight for edges in epochs for operations in edges.values() for weight in operations.values()]
    low, high = min(weights), max(weights)
    first, last = rows[0]["epoch"] + 1, rows[-1]["epoch"] + 1
    places = _places(list(epochs[-1]))
    height, width = (1 + max(axis) for axis in zip(*places.values(), strict=True))
    tall = max(map(len, epochs[-1].values()))
    with style():
        figure, panels = subplots(f"{run.caption}: softmaxed alphas", height * width, width)
        figure.set_size_inches(1.6 + 1.9 * width, 1.2 + height * (0.14 * tall + 0.36))
        for axes in panels:
            axes.axis("off")
        named: list[str] = []
        for edge, (row, column) in places.items():
            axes, names = panels[row * width + column], sorted(epochs[-1][edge], key=_order)
            shares = np.array([[edges[edge][name] for edges in epochs] for name in names])[:, :, None]
            colours = np.array([to_rgb(colour(name)) for name in names])[:, None]
            picture = 1 - (shares - low) / ((high - low) or 1) * (1 - colours)
            axes.axis("on")
            axes.imshow(
                picture,
                aspect="auto",
                interpolation="nearest",
                extent=(first - 0.5, last + 0.5, len(names) - 0.5, -0.5),
            )
            axes.set_title(
                _edge_name(space, edge), fontsize=9, fontweight="bold" if edge in chosen else "normal", pad=3
            )
            axes.grid(visible=False)
            axes.tick_params(length=2, labelsize=7, pad=1)
            axes.set_xticks(sorted({first, last}))
            axes.set_yticks(range(len(names)), names if column == 0 or names != named else [""] * len(names))
            named = names
            for label, name in zip(axes.get_yticklabels(), names, strict=True):
                label.set_color(colour(name))
            axes.spines[:].set(
                visible=True, color=INK if edge in chosen else "#BBBBBB", linewidth=1.6 if edge in chosen else 0.6
            )
            if chosen.get(edge) in names:
                at = names.index(chosen[edge])
                axes.axhspan(at - 0.5, at + 0.5, fill=False, edgecolor=INK, linewidth=1.6)
        note = f"epochs; white {low:.3f}, full colour {high:.3f}; bold and framed: in the architecture"
        figure.supxlabel(note + ("; edge: beta" if rows[-1].get("betas") else ""), fontsize=9)
    return figure


def _places(edges: list[str]) -> dict[str, tuple[int, int]]:
    """{edge: (row, column)}. In cells, every node has a row, and every source a column; other edges are in order."""
    known = [place for edge in edges if (place := edge_of(edge)) is not None]
    if len(known) < len(edges):
        return {edge: divmod(index, 4) for index, edge in enumerate(edges)}
    nodes = sorted({(cell, node) for cell, node, _ in known})
    sources = sorted({source for _, _, source in known})
    return {
        edge: (nodes.index((cell, node)), sources.index(source))
        for edge, (cell, node, source) in zip(edges, known, strict=True)
    }


def _edge_name(space: type[Architecture], edge: str) -> str:
    ends, cell = space.ends(edge), cell_of(edge)
    if ends is None:
        return edge
    return f"{TITLES[cell].removesuffix(' cell')}: " * bool(cell) + f"{ends[0]} \N{RIGHTWARDS ARROW} {ends[1]}"


def _order(operation: str) -> tuple[int, str]:
    names = list(COLOURS)
    return (names.index(operation) if operation in names else len(names), operation)


def style():
    import matplotlib

    return matplotlib.rc_context(STYLE)


def subplots(title: str, count: int, columns: int = 2, legend_rows: int = 0) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, in rows of `columns`."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.2 * columns, 0.4 + 3.0 * rows + 0.25 * legend_rows), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.axis("off")
    return figure, panels[:count]


def _line(axes: Axes, epochs: Sequence[int], values: Sequence[float], **style: Any) -> None:
    if len(epochs) == 1:
        style["marker"] = "o"
    axes.plot(epochs, values, **style)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    axes.margins(x=0.02)
