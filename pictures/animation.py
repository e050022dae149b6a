"""An animated GIF of a search's cells over the epochs.

The layout is fixed; the widths of edges show their strengths.
"""

from __future__ import annotations

import io

import graphviz

from architectures import Alphas, Architecture, Cell, cell_of, load_space
from pictures import drawing, history
from pictures.drawing import RelaxedEdge
from pictures.history import History

DPI = 64  # 970 pixels of width for the cells of DARTS
SECONDS = 0.4  # per epoch; less if there are many epochs; two seconds more for the last one
LONGEST = 12.0  # seconds, of the whole animation


def animation(run: History) -> bytes | None:
    """The GIF, or None for a run without architectures, such as a training.

    Raises:
        UserError: the pictures cannot be drawn.
    """
    from PIL import Image

    frames = [drawing.stacked([drawing.render(graph, "png", DPI) for graph in graphs]) for graphs in graphs_of(run)]
    if not frames:
        return None
    pages = []
    for frame in frames:
        page = Image.new("RGB", (max(frame.width for frame in frames), max(frame.height for frame in frames)), "white")
        page.paste(frame)
        pages.append(page.quantize(64, dither=Image.Dither.NONE))
    pace = round(1000 * min(SECONDS, LONGEST / len(pages)))
    durations = [pace] * (len(pages) - 1) + [pace + 2000]
    stream = io.BytesIO()
    pages[0].save(stream, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0, optimize=True)
    return stream.getvalue()


def graphs_of(run: History) -> list[list[graphviz.Digraph]]:
    """For every epoch, its graphs from top to bottom."""
    space = load_space(run.space)
    found = [(row, architecture) for row in run.epochs if (architecture := space.of_epoch(row)) is not None]
    cells = [
        relaxed_cells(architecture, history.named_alphas(run, row), row.get("betas", {})) for row, architecture in found
    ]
    strengths = [edge.strength for epoch in cells for _, edges in epoch.values() for edge in edges]
    weakest, widest = min(strengths, default=0.0), max(strengths, default=0.0)
    epochs = []
    for (row, architecture), relaxed in zip(found, cells, strict=True):
        caption = run.caption_at(row)
        graphs = []
        for name, (cell, edges) in relaxed.items():
            scaled = [edge._replace(strength=(edge.strength - weakest) / ((widest - weakest) or 1)) for edge in edges]
            graphs.append(drawing.relaxed(cell, scaled, drawing.title(name, caption)))
        epochs.append(graphs or list(drawing.graphs(architecture, caption).values()))
    return epochs


def relaxed_cells(
    architecture: Architecture, alphas: Alphas, betas: dict[str, float]
) -> dict[str, tuple[Cell, list[RelaxedEdge]]]:
    """{name: (cell, edges)} for `drawing.relaxed`. Strengths are softmaxed alphas, multiplied by the edge's beta if
    there is one.

    Empty for strategies without alphas, and for spaces other than DARTS and NAS-Bench-201.
    """
    relaxed: dict[str, tuple[Cell, list[RelaxedEdge]]] = {}
    for name, cell in architecture.cells.items():
        chosen = {edge.key: edge.operation for edge in cell.edges}
        edges = []
        for key, weights in alphas.items():
            if cell_of(key) != name:
                continue
            if (ends := architecture.ends(key)) is None:
                return {}
            # `none` is possible in spaces whose architectures contain every edge
            operation = "none" if chosen.get(key) == "none" else strongest(weights)
            strength = weights.get(operation, 0.0) * betas.get(key, 1.0)
            edges.append(RelaxedEdge(*ends, operation, strength, key in chosen))
        if not edges:
            return {}
        relaxed[name] = cell, edges
    return relaxed


def strongest(weights: dict[str, float]) -> str:
    """The strongest operation other than `none`, as in a derived cell (DARTS, section 2.4)."""
    return max((operation for operation in weights if operation != "none"), key=lambda operation: weights[operation])
