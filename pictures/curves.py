"""Plots of runs over their epochs: loss and accuracy, a heat map of the alphas, the strongest operations.

Operations have the same colours as in the drawings of cells.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from architecture import TITLES, Alphas, Architecture, cell_of
from cells import edge_of
from experiment import errors
from pictures import history
from pictures.animation import strongest
from pictures.drawing import COLOURS, colour
from pictures.history import History
from registry import load_space

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, without its yellow, which is too light for lines on white.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")
INK, GRID = "#222222", "#DDDDDD"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "darts",  # the same picture again has the same bytes
}
MOST_CLASSES = 40  # in a picture
MOST_BARS, MOST_COLUMNS = 120, 240  # in a panel of bars and in a heat map; longer runs are thinned out
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
            for index, phase in enumerate(measured):
                _line(axes, *run.series(f"{phase}_{measure}"), label=PHASES[phase], color=LINES[index], linestyle=DASHES[index])
            _finish(axes, title)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def compare_curves(runs: Sequence[History], names: Sequence[str]) -> Figure:
    """Loss and accuracy of several runs, one colour each: solid lines for validation or test, dashed lines for training."""
    with style():
        figure, panels = subplots(f"{len(runs)} runs: solid validation or test, dashed training", 2, legend_rows=(len(runs) + 1) // 2)
        for axes, (measure, title) in zip(panels, _measures(runs), strict=True):
            for index, (run, name) in enumerate(zip(runs, names, strict=True)):
                line = LINES[index % len(LINES)]
                _line(axes, *run.series(f"train_{measure}"), color=line, linestyle="--", linewidth=1.1, label="_")
                held_out = max(("test", "valid"), key=lambda phase: len(run.series(f"{phase}_loss")[0]))
                marker = "os^Dvpx"[index // len(LINES) % 7] if len(runs) > len(LINES) else None
                _line(axes, *run.series(f"{held_out}_{measure}"), color=line, label=name, marker=marker, markevery=5)
            _finish(axes, title)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def confusion(run: History) -> Figure | None:
    """The accuracy of every class, and the confusion matrix; None if they were not recorded.

    Shows the `MOST_CLASSES` classes with the lowest accuracy.
    """
    row = run.epochs[-1]
    counts = row.get("confusion", {})
    if not counts:
        return None
    import numpy as np

    worst = sorted(counts, key=lambda name: row["class_acc"][name])[:MOST_CLASSES]
    classes = [name for name in counts if name in worst]  # in the original order
    shares = np.array([[100 * counts[name].get(other, 0) / sum(counts[name].values()) for other in classes] for name in classes])
    labels = [errors.printable(errors.shorten(name, 24)).replace("$", r"\$") for name in classes]
    few, side = len(classes) <= 20, 1.2 + 0.22 * max(8, len(classes))
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2.2 + 2 * side, 1.0 + side), layout="constrained")
        of = f"the {len(classes)} least accurate of {len(counts)} classes" if len(classes) < len(counts) else f"{len(classes)} classes"
        figure.suptitle(f"{run.caption}: {of} on the test set", x=0.01, ha="left", fontsize=11)
        bars, matrix = figure.subplots(1, 2, width_ratios=(1, 1.25))
        bars.barh(range(len(classes)), shares.diagonal(), color=LINES[0])
        for index, share in enumerate(shares.diagonal()):
            inside = share > 50
            bars.text(
                share, index, f" {share:.0f}% ", va="center", ha="right" if inside else "left", color="white" if inside else INK, fontsize=7
            )
        bars.set(xlim=(0, 100), ylim=(len(classes) - 0.5, -0.5), xlabel="accuracy, %")
        bars.grid(visible=False, axis="y")
        bars.set_axisbelow(True)
        matrix.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        matrix.grid(visible=False)
        matrix.set_xlabel("taken for")
        for axes in (bars, matrix):
            axes.set_yticks(range(len(classes)), labels, fontsize=8 if few else 6)
        matrix.set_xticks(range(len(classes)), labels, rotation=90, fontsize=8 if few else 6)
        matrix.set_title("images of a class, %")
        bars.set_title("right")
        if few:
            for (y, x), share in np.ndenumerate(shares):
                if share >= 0.5:
                    matrix.text(x, y, f"{share:.0f}", ha="center", va="center", color="white" if share > 50 else INK, fontsize=7)
    return figure


def _measures(runs: Sequence[History]) -> list[tuple[str, str]]:
    """(key, title) of the two panels: loss, and perplexity for language models or else accuracy."""
    of_text = all(run.series("train_ppl")[0] for run in runs)
    return [("loss", "loss"), ("ppl", "perplexity") if of_text else ("acc", "accuracy, %")]


def operations(run: History) -> Figure | None:
    """How many edges each operation is strongest on, skip connections, entropy of the alphas, and the eigenvalue if it was measured.

    None for a run without architectures.
    """
    shown_epochs, stride = run.thinned(MOST_BARS)
    rows = [(row["epoch"] + 1, history.named_alphas(run, row)) for row in shown_epochs if row.get("alphas")]
    skips = {cell: run.series(f"skips_{cell}" if cell else "skips") for cell in TITLES}
    skips = {cell: series for cell, series in skips.items() if series[0]}
    if not skips and not rows:
        return None
    cells = [cell for cell in TITLES if rows and any(cell_of(edge) == cell for edge in rows[0][1])]
    entropies = {cell: run.series(f"entropy_{cell}" if cell else "entropy") for cell in cells}
    eigenvalue = run.series("eigenvalue")
    with style():
        figure, panels = subplots(run.caption, len(cells) + bool(skips) + bool(cells) + bool(eigenvalue[0]), legend_rows=1)
        shown: dict[str, Any] = {}
        for axes, cell in zip(panels, cells, strict=False):
            shown |= _strongest(axes, cell, rows, stride)
        if skips:
            _skips(panels[len(cells)], skips)
        if cells:
            axes, most = panels[len(cells) + bool(skips)], max(math.log(len(weights)) for weights in rows[-1][1].values())
            for index, (cell, series) in enumerate(entropies.items()):
                _line(axes, *series, label=TITLES[cell], color=LINES[index], linestyle=DASHES[index])
            _finish(axes, "entropy of an edge's alphas, nats")
            axes.axhline(most, color=INK, linewidth=1, linestyle=(0, (1, 2)), label="all operations equal")
            axes.set_ylim(0, 1.06 * most)  # the whole range: a curve near the upper end means that nothing is decided
            axes.legend(loc="lower left")
        if eigenvalue[0]:
            _line(panels[-1], *eigenvalue, color=LINES[0])
            _finish(panels[-1], "dominant eigenvalue of the alphas' Hessian")
        if shown:
            names = sorted(shown, key=_order)
            figure.legend([shown[name] for name in names], names, loc="outside lower center", ncols=min(8, len(names)), handlelength=1)
    return figure


def _skips(axes: Axes, skips: dict[str, tuple[list[int], list[float]]]) -> None:
    """Plots the number of skip connections in every cell."""
    for index, (cell, series) in enumerate(skips.items()):
        axes.step(*series, where="mid", label=TITLES[cell], color=LINES[index], linestyle=DASHES[index])
        if len(series[0]) == 1:
            axes.plot(*series, "o", color=LINES[index])
    _finish(axes, "skip connections in the architecture")
    axes.locator_params(axis="y", integer=True)
    if "normal" in skips:
        axes.axhline(2.5, color=INK, linewidth=1, linestyle=(0, (1, 2)), label="too many in a normal cell")
    axes.set_ylim(-0.2, max(4, *(max(values) for _, values in skips.values())) + 1.6)
    axes.legend(loc="upper left", ncols=2, fontsize=8)


def _strongest(axes: Axes, cell: str, rows: list[tuple[int, Alphas]], stride: int) -> dict[str, Any]:
    """Draws bars: on how many edges each operation is strongest, every `stride` epochs. Returns {operation: patch for the legend}."""
    counts: dict[str, list[int]] = {}
    for index, (_, alphas) in enumerate(rows):
        for edge, weights in alphas.items():
            if cell_of(edge) == cell:
                counts.setdefault(strongest(weights)[0], [0] * len(rows))[index] += 1
    bottom, patches = [0] * len(rows), {}
    outline: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.5} if len(rows) <= 60 else {}
    for name in sorted(counts, key=_order):
        bars = axes.bar([epoch for epoch, _ in rows], counts[name], stride, bottom, color=colour(name), **outline)
        bottom = [low + count for low, count in zip(bottom, counts[name], strict=True)]
        patches[name] = bars[0]
    _finish(axes, f"{TITLES[cell]}: edges on which an operation is strongest{_every(stride)}")
    axes.grid(visible=False)
    axes.set_ylim(0, max(bottom))
    axes.locator_params(axis="y", integer=True)
    return patches


def alphas(run: History) -> Figure | None:
    """A heat map for every edge, with a row for every operation and for the beta. A larger softmaxed alpha has a stronger colour.

    In a cell of DARTS, the edges into a node are in one row, and edges of the final architecture have a frame. None without alphas.
    """
    shown, stride = run.thinned(MOST_COLUMNS)
    rows = [(row, history.with_betas(history.named_alphas(run, row), row)) for row in shown if row.get("alphas")]
    if not rows:
        return None
    import numpy as np
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    edges = {edge: [alphas[edge] for _, alphas in rows if edge in alphas] for edge in rows[-1][1]}
    weights = [weight for series in edges.values() for operations in series for weight in operations.values()]
    low, high = min(weights), max(weights)
    span = high - low or 1.0
    space = load_space(run.space)
    architecture = space.of_epoch(rows[-1][0])
    chosen = architecture.chosen if architecture is not None else {}
    places, columns = _places(list(edges))
    tall = max(len(series[0]) for series in edges.values())
    n_rows = 1 + max(row for row, _ in places.values())
    with style():
        figure = Figure(figsize=(1.6 + 1.9 * columns, 1.2 + n_rows * (0.14 * tall + 0.36)), layout="constrained")
        betas = ", and betas (edge)" if rows[-1][0].get("betas") else ""
        figure.suptitle(f"{run.caption}: softmaxed alphas{betas}", x=0.01, ha="left", fontsize=11)
        grid = figure.subplots(n_rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for edge, series in edges.items():
            row, column = places[edge]
            axes = grid[row][column]
            axes.axis("on")
            names = sorted(series[-1], key=_order)
            block = np.empty((len(names), len(series), 3))
            for index, name in enumerate(names):
                share = (np.array([operations[name] for operations in series]) - low)[:, None] / span
                block[index] = 1 - share * (1 - np.array(to_rgb(colour(name))))
            first, last = rows[0][0]["epoch"] + 1 - stride / 2, rows[-1][0]["epoch"] + 1 + stride / 2
            axes.imshow(block, aspect="auto", interpolation="nearest", extent=(first, last, len(names) - 0.5, -0.5))
            axes.set_title(_edge_name(space, edge), fontsize=9, fontweight="bold" if edge in chosen else "normal", pad=3)
            axes.grid(visible=False)
            axes.set_xticks(sorted({rows[0][0]["epoch"] + 1, rows[-1][0]["epoch"] + 1}))
            axes.tick_params(length=2, labelsize=7, pad=1)
            axes.set_yticks(range(len(names)))
            leftmost = column == 0 or not any(place == (row, column - 1) for place in places.values())
            axes.set_yticklabels(names if leftmost or names != sorted(next(iter(edges.values()))[-1], key=_order) else [])
            for label, name in zip(axes.get_yticklabels(), names, strict=False):
                label.set_color(colour(name))
            for spine in axes.spines.values():
                spine.set(visible=True, color=INK if edge in chosen else "#BBBBBB", linewidth=1.6 if edge in chosen else 0.6)
            if edge in chosen and chosen[edge] in names:
                corner = first, names.index(chosen[edge]) - 0.5
                axes.add_patch(Rectangle(corner, last - first, 1, fill=False, edgecolor=INK, linewidth=1.6))
        figure.supxlabel(
            f"epochs{_every(stride)}; white {low:.3f}, full colour {high:.3f}; bold and framed: in the architecture", fontsize=9
        )
    return figure


def _every(stride: int) -> str:
    return f", every {stride} epochs" if stride > 1 else ""


def _places(edges: list[str]) -> tuple[dict[str, tuple[int, int]], int]:
    """({edge: (row, column)}, columns). In cells, every node has a row, and every source a column; other edges are in order."""
    known = {edge: place for edge in edges if (place := edge_of(edge)) is not None}
    if len(known) == len(edges):
        nodes = sorted({(cell, node) for cell, node, _ in known.values()})
        sources = sorted({source for _, _, source in known.values()})
        return {edge: (nodes.index((cell, node)), sources.index(source)) for edge, (cell, node, source) in known.items()}, len(sources)
    columns = min(4, len(edges))
    return {edge: divmod(index, columns) for index, edge in enumerate(edges)}, columns


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


def subplots(title: str, count: int, legend_rows: int = 0) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = 2 if count > 1 else 1
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
