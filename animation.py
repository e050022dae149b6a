"""The cells of a search over its epochs, as an animated GIF: edges by strength, in one layout, so that only what changes moves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import graphviz

import drawing
import history
import metrics
from cli import UserError
from drawing import Edge
from genotypes import Genotype
from history import Alphas, History

DPI = 64  # 970 pixels of width for the cells of DARTS
SECONDS = 0.4  # of an epoch; less where there are many, and two seconds more for the last one
LONGEST = 12.0  # seconds, of the whole animation
MOST_FRAMES = 60  # in that time; of a longer run, every second or third epoch and so on


def animation(run: History) -> bytes | None:
    """The GIF; None for a run without architectures, such as a training.

    Raises:
        UserError: the pictures cannot be drawn, or the metrics are damaged.
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
    """For every epoch that is shown, the graphs that stand below each other."""
    weakest, strongest = strength_range(run)
    epochs = []
    for row in run.thinned(MOST_FRAMES)[0]:
        architecture, alphas = history.recorded_architecture(row), history.named_alphas(run, row)
        if architecture is None:
            continue
        caption = run.caption_at(row)

        def strength(value: float) -> float:
            return (value - weakest) / (strongest - weakest) if strongest > weakest else 0.0

        cells = relaxed_cells(architecture, alphas)
        epochs.append(
            [
                drawing.relaxed(nodes, [edge._replace(strength=strength(edge.strength)) for edge in edges], f"{caption}{name}")
                for name, (nodes, edges) in cells.items()
            ]
            or list(drawing.graphs(architecture, caption).values())
        )
    if len({len(graphs) for graphs in epochs}) > 1:
        raise UserError(f"{run.folder / 'metrics.jsonl'} holds architectures of several spaces")
    return epochs


def strength_range(run: History) -> tuple[float, float]:
    """The weakest and the strongest edge of the whole run, by its strongest operation; widths of lines stand for what is between."""
    cells = [relaxed_cells(history.recorded_architecture(row), history.named_alphas(run, row)) for row in run.epochs]
    strengths = [edge.strength for epoch in cells for _, edges in epoch.values() for edge in edges]
    return min(strengths, default=0.0), max(strengths, default=0.0)


def relaxed_cells(architecture: Genotype | dict[str, Any] | None, alphas: Alphas) -> dict[str, tuple[dict[str, Any], list[Edge]]]:
    """{what follows the caption: (nodes, edges) as for `drawing.relaxed`}, strengths being softmaxed alphas.

    Known are the cells of DARTS and NAS-Bench-201; empty for others, and for strategies without alphas.
    """
    if architecture is None or not alphas:
        return {}
    if isinstance(architecture, Genotype):
        return {
            f": {name} cell": _darts_cell(edges, {edge: weights for edge, weights in alphas.items() if history.cell_of(edge) == cell})
            for name, cell, edges in (("normal", "normal", architecture.normal), ("reduction", "reduce", architecture.reduce))
        }
    if set(architecture) == set(alphas) == drawing.NASBENCH201_EDGES and all(isinstance(name, str) for name in architecture.values()):
        nodes = {"0": "input", "1": "node", "2": "node", "3": "output"}
        edges = []
        for key, weights in alphas.items():
            tail, head = key.split("_")
            edges.append(Edge(tail, head, architecture[key], weights.get(architecture[key], 0.0), True))
        return {"": (nodes, edges)}
    return {}


def _darts_cell(chosen: Sequence[tuple[str, int]], alphas: Alphas) -> tuple[dict[str, Any], list[Edge]]:
    names = ["c_{k-2}", "c_{k-1}", *(str(node) for node in range(len(chosen) // 2))]
    sources = {(index // 2 + 2, source) for index, (_, source) in enumerate(chosen)}
    edges = []
    for key, weights in alphas.items():
        match = metrics.EDGE.fullmatch(key)
        assert match is not None  # `metrics.check` has seen to it
        node, source = int(match[2]), int(match[3])
        operation, strength = strongest(weights)
        edges.append(Edge(names[source], names[node], operation, strength, (node, source) in sources))
    kinds = {name: "input" if name.startswith("c_") else "node" for name in names}
    return {**kinds, "c_{k}": "output"}, edges


def strongest(weights: dict[str, float]) -> tuple[str, float]:
    """(operation, weight) of the strongest operation other than `none`, as a derived cell has it (DARTS, section 2.4)."""
    return max(((operation, weight) for operation, weight in weights.items() if operation != "none"), key=lambda pair: pair[1])
