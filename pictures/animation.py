"""An animated GIF of a search's cells over the epochs. The layout is fixed; the widths of edges show their strengths."""

from __future__ import annotations

import io

import graphviz

from architecture import Alphas, Architecture, Cell, cell_of
from pictures import drawing, history
from pictures.drawing import RelaxedEdge
from pictures.history import History
from registry import load_space

DPI = 64  # 970 pixels of width for the cells of DARTS
SECONDS = 0.4  # per epoch; less if there are many epochs; two seconds more for the last one
LONGEST = 12.0  # seconds, of the whole animation
MOST_FRAMES = 60  # of a longer run, only every n-th epoch is shown


def animation(run: History) -> bytes | None:
    """The GIF, or None for a run without architectures, such as a training.

    Raises:
        UserError: the pictures cannot be drawn.
    """
    from PIL import Image

    frames = [[Image.open(io.BytesIO(drawing.render(graph, "png", DPI))) for graph in graphs] for graphs in _graphs(run)]
    if not frames:
        return None
    width = max(picture.width for pictures in frames for picture in pictures)
    heights = [max(picture.height for picture in column) for column in zip(*frames, strict=True)]
    pages = []
    for pictures in frames:
        page = Image.new("RGB", (width, sum(heights)), "white")
        for index, picture in enumerate(pictures):
            page.paste(picture.convert("RGB"), ((width - picture.width) // 2, sum(heights[:index])))
        pages.append(page.quantize(64, dither=Image.Dither.NONE))
    pace = round(1000 * min(SECONDS, LONGEST / len(pages)))
    durations = [pace] * (len(pages) - 1) + [pace + 2000]
    stream = io.BytesIO()
    pages[0].save(stream, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=True)
    return stream.getvalue()


def _graphs(run: History) -> list[list[graphviz.Digraph]]:
    """For every epoch that is shown, its graphs from top to bottom."""
    weakest, strongest = strength_range(run)
    epochs = []
    for row in run.thinned(MOST_FRAMES)[0]:
        architecture, alphas = load_space(run.space).of_epoch(row), history.named_alphas(run, row)
        if architecture is None:
            continue
        caption = run.caption_at(row)

        def strength(value: float) -> float:
            return (value - weakest) / (strongest - weakest) if strongest > weakest else 0.0

        cells = relaxed_cells(architecture, alphas, row.get("betas"))
        epochs.append(
            [
                drawing.relaxed(cell, [edge._replace(strength=strength(edge.strength)) for edge in edges], drawing.title(name, caption))
                for name, (cell, edges) in cells.items()
            ]
            or list(drawing.graphs(architecture, caption).values())
        )
    return epochs


def strength_range(run: History) -> tuple[float, float]:
    """The smallest and the largest strength of an edge in the whole run. They correspond to the thinnest and the widest line."""
    cells = [relaxed_cells(load_space(run.space).of_epoch(row), history.named_alphas(run, row), row.get("betas")) for row in run.epochs]
    strengths = [edge.strength for epoch in cells for _, edges in epoch.values() for edge in edges]
    return min(strengths, default=0.0), max(strengths, default=0.0)


def relaxed_cells(
    architecture: Architecture | None, alphas: Alphas, betas: dict[str, float] | None = None
) -> dict[str, tuple[Cell, list[RelaxedEdge]]]:
    """{name: (cell, edges)} for `drawing.relaxed`. Strengths are softmaxed alphas, multiplied by the edge's beta if there is one.

    Empty for strategies without alphas, and for spaces other than DARTS and NAS-Bench-201.
    """
    if architecture is None:
        return {}
    relaxed = {}
    for name, cell in architecture.cells.items():
        chosen = {edge.key: edge.operation for edge in cell.edges}
        edges = []
        for key, weights in alphas.items():
            if cell_of(key) != name:
                continue
            if (ends := architecture.ends(key)) is None:
                return {}
            operation, strength = strongest(weights)
            if chosen.get(key) == "none":  # possible in spaces whose architectures contain every edge
                operation, strength = "none", weights.get("none", 0.0)
            if betas:
                strength *= betas[key]
            edges.append(RelaxedEdge(*ends, operation, strength, key in chosen))
        if not edges:
            return {}
        relaxed[name] = cell, edges
    return relaxed


def strongest(weights: dict[str, float]) -> tuple[str, float]:
    """(operation, weight) of the strongest operation other than `none`, as in a derived cell (DARTS, section 2.4)."""
    return max(((operation, weight) for operation, weight in weights.items() if operation != "none"), key=lambda pair: pair[1])
