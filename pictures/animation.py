"""An animated GIF of a search's cells over the epochs.

The layout is fixed; the widths of edges show their strengths.
"""

from __future__ import annotations

import io
from typing import Any

import graphviz
from PIL import Image

from architectures import Architecture, cell_of
from pictures import drawing
from pictures.drawing import RelaxedEdge
from pictures.history import History, strongest

DPI = 64  # 970 pixels of width for the cells of DARTS
SECONDS = 0.4  # per epoch; less if there are many epochs; two seconds more for the last one
LONGEST = 12.0  # seconds, of the whole animation


def animation(run: History) -> bytes | None:
    """The GIF, or None for a run without architectures, such as a training."""
    pages = [drawing.stacked(graphs, DPI, gap=0) for graphs in graphs_of(run)]
    if not pages:
        return None
    size = max(page.width for page in pages), max(page.height for page in pages)
    frames = []
    for page in pages:
        frame = Image.new("RGB", size, "white")
        frame.paste(page)
        frames.append(frame.quantize(64, dither=Image.Dither.NONE))
    pace = round(1000 * min(SECONDS, LONGEST / len(frames)))
    durations = [pace] * (len(frames) - 1) + [pace + 2000]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return stream.getvalue()


def graphs_of(run: History) -> list[list[graphviz.Digraph]]:
    """For every epoch, its graphs from top to bottom: of all edges if alphas are known, else of the architecture."""
    relaxed = [relaxed_edges(architecture, row) for row, architecture in run.found]
    strengths = [edge.strength for cells in relaxed for edges in cells.values() for edge in edges]
    low, high = min(strengths, default=0.0), max(strengths, default=0.0)
    epochs = []
    for (row, architecture), cells in zip(run.found, relaxed, strict=True):
        graphs = []
        for name, edges in cells.items():
            scaled = [edge._replace(strength=(edge.strength - low) / ((high - low) or 1)) for edge in edges]
            caption = drawing.title(name, run.caption_at(row))
            graphs.append(drawing.cell(architecture.cells[name], caption, relaxed=scaled))
        epochs.append(graphs or list(drawing.graphs(architecture, run.caption_at(row)).values()))
    return epochs


def relaxed_edges(architecture: Architecture, row: dict[str, Any]) -> dict[str, list[RelaxedEdge]]:
    """{cell: its edges} in an epoch. Strengths are softmaxed alphas, multiplied by the edge's beta if there is one.

    Empty if there are no alphas, or if they are not those of edges between nodes.
    """
    found: dict[str, list[RelaxedEdge]] = {name: [] for name in architecture.cells}
    chosen = architecture.chosen
    for key, weights in row.get("alphas", {}).items():
        ends = architecture.ends(key)
        if ends is None or cell_of(key) not in found:
            return {}
        # `none` is possible in spaces whose architectures contain every edge.
        operation = "none" if chosen.get(key) == "none" else strongest(weights)
        strength = weights.get(operation, 0.0) * row.get("betas", {}).get(key, 1.0)
        found[cell_of(key)].append(RelaxedEdge(*ends, operation, strength, key in chosen))
    return found if all(found.values()) else {}
