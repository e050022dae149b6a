"""Draws architectures as graphs of their cells, or as a table of choices. Every operation has its own colour.

Uses Graphviz's `dot` if it is installed, otherwise the program of the package graphviz-pure.
"""

from __future__ import annotations

import colorsys
import io
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import graphviz

from architectures import TITLES, Architecture, Cell, Edge
from experiment import files
from experiment.errors import UserError, shorten

if TYPE_CHECKING:
    from PIL.Image import Image

    from experiment.run import Run

# Based on the palette of Okabe and Ito, darkened until the contrast with white is at least 4.5. The colours differ in
# lightness, so that people with a red-green colour deficiency can distinguish them.
OPERATION_COLOURS = {
    "none": "#767676",
    "max_pool_3x3": "#952F00",
    "avg_pool_3x3": "#946B00",
    "skip_connect": "#1A1A1A",
    "sep_conv_3x3": "#0072B2",
    "sep_conv_5x5": "#004488",
    "dil_conv_3x3": "#00664B",
    "dil_conv_5x5": "#A0186F",
    "sep_conv_7x7": "#2A0A6E",
    "conv_7x1_1x7": "#6A4BE0",
}
# Operations of other spaces have the colours of operations that these spaces lack.
COLOURS = OPERATION_COLOURS | {
    "tanh": OPERATION_COLOURS["sep_conv_3x3"],
    "relu": OPERATION_COLOURS["max_pool_3x3"],
    "sigmoid": OPERATION_COLOURS["dil_conv_3x3"],
    "identity": OPERATION_COLOURS["skip_connect"],
    "conv_1x1": OPERATION_COLOURS["sep_conv_7x7"],
    "conv_3x3": OPERATION_COLOURS["dil_conv_3x3"],
    "conv_5x5": OPERATION_COLOURS["dil_conv_5x5"],
}

FORMATS = ("png", "pdf", "svg")
INSTALL = "run `pip install graphviz-pure`, or install Graphviz (https://graphviz.org)"


def colour(operation: str) -> str:
    """The colour of an operation. Operations outside of `COLOURS` get a dark colour; its hue depends on the name."""
    if operation in COLOURS:
        return COLOURS[operation]
    hue = zlib.crc32(operation.encode(errors="replace")) % 360 / 360
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in colorsys.hls_to_rgb(hue, 0.26, 0.7))


# ---- Graphs

_KINDS = {
    "input": {"fillcolor": "#D9EAD9", "height": "0.42", "margin": "0.08,0.03"},
    "node": {"fillcolor": "#DCE9F5", "height": "0.6"},
    "output": {"fillcolor": "#FBF0CF", "height": "0.42", "margin": "0.08,0.03"},
}


class RelaxedEdge(NamedTuple):
    """An edge of the continuous relaxation, drawn with its strongest operation."""

    tail: str
    head: str
    operation: str
    strength: float  # from 0 (the weakest edge of the run) to 1 (the strongest): its width
    chosen: bool  # whether it is part of the architecture: others are pale


def cell(
    cell: Cell, caption: str, first_node: int = 0, relaxed: Sequence[RelaxedEdge] | None = None
) -> graphviz.Digraph:
    """A graph of one cell, with `caption` below it.

    Args:
        first_node: the number of node 2 of the genotype in the picture: 0, as in DARTS, Figures 4 and 5, or 2, as in
            NNI's dictionary.
        relaxed: drawn in place of the cell's edges. The layout depends only on their ends and their order, so that the
            graphs of several epochs can be animated.
    """
    graph = _graph(caption)
    for name, kind in cell.nodes.items():
        graph.node(name, str(int(name) + first_node) if kind == "node" else name, **_KINDS[kind])
    edges: Sequence[Edge | RelaxedEdge] = cell.edges if relaxed is None else relaxed
    for index, edge in enumerate(edges):
        full = colour(edge.operation)
        box, line = {"color": full, "fillcolor": full, "fontcolor": "white", "margin": "0.09,0.02"}, {"color": full}
        if isinstance(edge, RelaxedEdge):
            box |= {"width": "1.3", "margin": "0", "fixedsize": "true"}
            line["penwidth"] = f"{1 + 6 * edge.strength:.2f}"
            if not edge.chosen:
                box |= {"color": _pale(full, 0.3), "fillcolor": "white", "fontcolor": _pale(full, 0.75)}
                line["color"] = _pale(full, 0.3)
        # The operation is a node in the middle: so Graphviz keeps labels apart from each other and from other edges.
        graph.node(f"edge{index}", _label(edge.operation), fontsize="13", height="0.28", **box)
        graph.edge(edge.tail, f"edge{index}:w", dir="none", **line)
        graph.edge(f"edge{index}:e", edge.head, **line)
    output = list(cell.nodes)[-1]
    for tail, head in (*cell.fixed, *((name, output) for name in cell.concat)):
        graph.edge(tail, head, color="#8C8C8C", penwidth="1.2")
    return graph


def table(choices: dict[str, Any], caption: str) -> graphviz.Digraph:
    """A row for every choice and what was chosen, in the order of the file."""
    graph = _graph(caption)
    for number, (key, entry) in reversed(list(enumerate(choices.items()))):  # Graphviz begins at the bottom
        text = ", ".join(map(str, entry if isinstance(entry, list) else [entry]))
        graph.node(f"key{number}", _label(key), **_KINDS["input"])
        graph.node(f"chosen{number}", _label(text or "nothing"), **_KINDS["output"])
        graph.edge(f"key{number}", f"chosen{number}")
    return graph


def graphs(architecture: Architecture, caption: str = "") -> dict[str, graphviz.Digraph]:
    """{name: graph}: `normal` and `reduction`, `recurrent`, or `architecture` if there are no such cells."""
    if not (cells := architecture.cells):
        return {"architecture": table(architecture.choices, caption)}
    return {TITLES[name].removesuffix(" cell"): cell(graph, title(name, caption)) for name, graph in cells.items()}


def title(cell: str, caption: str) -> str:
    """The caption with the title of the cell, `normal` or `reduce`; for "", the only cell, the caption alone."""
    return ": ".join(filter(None, [caption, cell and TITLES[cell]]))


def _graph(caption: str) -> graphviz.Digraph:
    # The metrics of this font are built into graphviz-pure and known to all other renderers.
    font = {"fontname": "Arial", "fontsize": "15"}
    return graphviz.Digraph(
        graph_attr={"rankdir": "LR", "nodesep": "0.2", "ranksep": "0.55", "pad": "0.1", "margin": "0", **font}
        | {"label": "\n" + _label(" ".join(caption.split()))},
        node_attr={"shape": "box", "style": "filled,rounded", "color": "#404040", "width": "0.5", **font},
        edge_attr={"penwidth": "1.6", "arrowsize": "0.7"},
    )


def _label(text: str) -> str:
    """Untrusted text as a label: DOT's escape sequences are escaped, and control characters replaced."""
    return graphviz.escape("".join(character if character.isprintable() else "?" for character in shorten(text)))


def _pale(colour: str, share: float) -> str:
    """`colour` mixed with white; `share` is the part of the colour."""
    channels = bytes.fromhex(colour[1:])
    return "#" + "".join(f"{round(255 + share * (channel - 255)):02X}" for channel in channels)


# ---- Pictures


def pictures(architecture: Architecture, format: str, caption: str) -> dict[str, bytes]:
    """{file name: picture} of an architecture, with `caption` below."""
    return {f"{name}.{format}": render(graph, format) for name, graph in graphs(architecture, caption).items()}


def previews(architecture: Architecture, caption: str) -> dict[str, bytes]:
    """Small pictures of an architecture, {name: PNG}; writes no file."""
    return {name: render(graph, dpi=75) for name, graph in graphs(architecture, caption).items()}


def both(architecture: Architecture) -> bytes:
    """Both cells of DARTS below each other, as PNG. Nodes have their numbers in genotypes and in NNI's dictionary."""
    if not (cells := architecture.cells):
        raise UserError("this architecture has no cells to draw")
    return png(stacked([cell(graph, TITLES[name], first_node=2) for name, graph in cells.items()]))


def stacked(graphs: Iterable[graphviz.Digraph], dpi: int = 150, gap: int = 30) -> Image:
    """One image of these graphs, from top to bottom, with `gap` pixels around each."""
    from PIL import Image

    images = [Image.open(io.BytesIO(render(graph, dpi=dpi))) for graph in graphs]
    width = max(image.width for image in images)
    page = Image.new("RGB", (width + 2 * gap, sum(image.height + gap for image in images) + gap), "white")
    top = gap
    for image in images:
        page.paste(image, (gap + (width - image.width) // 2, top))
        top += image.height + gap
    return page


def png(image: Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def render(graph: graphviz.Digraph, format: str = "png", dpi: int = 150) -> bytes:
    """A picture of a graph; `dpi` is the resolution of a PNG.

    Raises:
        UserError: no program for drawing is installed, or it fails.
    """
    # The programs of a virtual environment are not on PATH if its Python is called by its full path.
    dot, beside_python = shutil.which("dot"), os.path.dirname(sys.executable)
    program = dot or shutil.which("graphviz-pure") or shutil.which("graphviz-pure", path=beside_python)
    if program is None:
        raise UserError(f"no program that draws graphs is installed: {INSTALL}")
    if format == "pdf" and not dot:  # graphviz-pure cannot write PDF
        stream = io.BytesIO()
        stacked([graph], dpi=300, gap=0).save(stream, "PDF", resolution=300)
        return stream.getvalue()
    command = [program, f"-T{format}", *([f"-Gdpi={dpi}"] if format == "png" else [])]
    done = subprocess.run(command, input=graph.source.encode(errors="replace"), capture_output=True)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace") or f"exit status {done.returncode}"
        raise UserError(f"{program} cannot draw this as {format} ({reason.strip()}): {INSTALL}")
    return done.stdout


# ---- Files


def draw(architecture: Architecture, folder: str | Path, format: str = "png", caption: str = "") -> list[Path]:
    """Draws an architecture into `folder`, which is created if it is missing. Returns the pictures' paths."""
    return write(pictures(architecture, format, caption), folder)


def draw_result(architecture: Architecture, run: Run, epoch: int) -> None:
    """Draws what a search has found in its folder, and logs the pictures.

    The search is complete, with or without them.
    """
    from experiment import distributed  # imports torch, which drawing does not need

    if distributed.rank() > 0:
        return
    try:
        pictures = draw(architecture, run.folder, caption=f"{run.folder.name}, epoch {epoch}, seed {run.args.seed}")
        run.log("pictures: %s", ", ".join(map(str, pictures)))
    except Exception as error:
        run.log("no pictures: %s", error if isinstance(error, UserError) else repr(error))


def write(pictures: dict[str, bytes], folder: str | Path) -> list[Path]:
    """Writes pictures, {name: content}, into `folder`, which is created if it is missing. Returns their paths.

    Raises:
        UserError: a picture cannot be written. The old ones stay then.
    """
    contents = {Path(folder) / name: content for name, content in pictures.items()}
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        files.write(contents, suffix=f".{os.getpid()}.tmp")
    except OSError as error:
        raise UserError(f"cannot write the pictures to {folder}: {error.strerror or error}") from None
    return list(contents)
