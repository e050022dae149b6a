"""Architectures as graphs: cells, a network of ENAS's macro space, or a table of choices; every operation in a colour of its own.

Graphviz's `dot` draws them where it is installed, the program of the package graphviz-pure everywhere else.
"""

from __future__ import annotations

import colorsys
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import graphviz

from experiment import files
from experiment.errors import UserError, shorten, shown
from nas.architecture import TITLES, Architecture, Cell

# After the palette of Okabe and Ito, darkened until the contrast with white, as text or as ground, is at least 4.5, and so far apart in
# lightness that those who see no red or no green can tell them from each other.
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
# With the operations of other spaces, in the colours of those that these spaces lack.
COLOURS = OPERATION_COLOURS | {
    "tanh": OPERATION_COLOURS["sep_conv_3x3"],
    "relu": OPERATION_COLOURS["max_pool_3x3"],
    "sigmoid": OPERATION_COLOURS["dil_conv_3x3"],
    "identity": OPERATION_COLOURS["skip_connect"],
    "conv_1x1": OPERATION_COLOURS["sep_conv_7x7"],
    "conv_3x3": OPERATION_COLOURS["dil_conv_3x3"],
    "conv_5x5": OPERATION_COLOURS["dil_conv_5x5"],
}

# What a picture can show, and Graphviz lays out within seconds: rows of a table, edges of a macro network.
MOST_ROWS, MOST_EDGES = 200, 300

FORMATS = ("png", "pdf", "svg")
INSTALL = "run `pip install graphviz-pure`, or install Graphviz (https://graphviz.org)"
SIGNATURE = b"drawn by visualize.py of DARTS"


def colour(operation: str) -> str:
    """The colour of an operation. One that nobody chose is made from the name, with a contrast to white of at least 4.5."""
    if operation in COLOURS:
        return COLOURS[operation]
    number = zlib.crc32(operation.encode(errors="replace"))
    hue, saturation, lightness = number % 360 / 360, 0.5 + number // 360 % 4 / 10, 0.45
    while 1.05 / (_luminance(rgb := colorsys.hls_to_rgb(hue, lightness, saturation)) + 0.05) < 4.6:  # 4.5, and room for rounding
        lightness -= 0.01
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in rgb)


def _luminance(rgb: Sequence[float]) -> float:
    """Relative luminance (WCAG 2.1)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def cell(cell: Cell, caption: str, first_node: int = 0) -> graphviz.Digraph:
    """One cell as a graph.

    Args:
        cell: what to draw.
        caption: the line under it.
        first_node: the number of the first intermediate node: 0, as in the paper's Figures 4 and 5, or 2, as in genotypes and NNI's keys.
    """
    graph = _graph(caption)
    _nodes(graph, cell.nodes, first_node)
    for index, edge in enumerate(cell.edges):
        _edge(graph, f"edge{index}", edge.operation, edge.tail, edge.head)
    _plain_edges(graph, cell)
    return graph


def _plain_edges(graph: graphviz.Digraph, cell: Cell) -> None:
    """The edges without an operation: those to the output, and those that are given."""
    output = list(cell.nodes)[-1]
    for tail, head in (*cell.fixed, *((name, output) for name in cell.concat)):
        graph.edge(tail, head, color="#8C8C8C", penwidth="1.2")


def _nodes(graph: graphviz.Digraph, nodes: dict[str, str], first_node: int = 0) -> None:
    for name, kind in nodes.items():
        label = str(int(name) + first_node) if kind == "node" and first_node else None
        graph.node(name, label, **{"input": _INPUT, "node": _NODE, "output": _OUTPUT}[kind])


_INPUT = {"fillcolor": "#D9EAD9", "height": "0.42", "margin": "0.08,0.03"}
_NODE = {"fillcolor": "#DCE9F5", "height": "0.6"}
_OUTPUT = {"fillcolor": "#FBF0CF", "height": "0.42", "margin": "0.08,0.03"}


def _graph(caption: str) -> graphviz.Digraph:
    # Arial's metrics are built into graphviz-pure, and known to every other renderer.
    graph = graphviz.Digraph(
        graph_attr={
            "rankdir": "LR",
            "nodesep": "0.2",
            "ranksep": "0.55",
            "pad": "0.1",
            "margin": "0",
            "fontname": "Arial",
            "fontsize": "15",
        },
        node_attr={"shape": "box", "style": "filled,rounded", "color": "#404040", "fontname": "Arial", "fontsize": "15", "width": "0.5"},
        edge_attr={"penwidth": "1.6", "arrowsize": "0.7"},
    )
    graph.attr(label="\n" + _plain(" ".join(caption.split())))
    return graph


def _plain(text: str) -> str:
    """A stranger's text as a label: itself, no escape sequence of DOT, without control characters, which no format has a place for."""
    return graphviz.escape("".join(character if character.isprintable() else "?" for character in text))


def _edge(graph: graphviz.Digraph, name: str, operation: str, tail: str, head: str) -> None:
    """An edge with an operation on it.

    Its label is a node in the middle of it: Graphviz then leaves it room, so that labels meet neither each other nor foreign edges.
    """
    _operation(graph, name, operation)
    graph.edge(tail, f"{name}:w", color=colour(operation), dir="none")
    graph.edge(f"{name}:e", head, color=colour(operation))


class RelaxedEdge(NamedTuple):
    """An edge of the continuous relaxation, drawn with the operation that is the strongest on it."""

    tail: str
    head: str
    operation: str
    strength: float  # from 0, the weakest of the run, to 1, the strongest
    chosen: bool  # is part of the architecture


def relaxed(cell: Cell, edges: Sequence[RelaxedEdge], caption: str) -> graphviz.Digraph:
    """All edges of a cell with their strengths as widths; pale those that the architecture leaves out.

    The graphs of one cell have one layout, whatever operations and strengths: pictures of them make an animation.

    Args:
        cell: for its nodes and the edges that have no operation.
        edges: in the same order for every picture of the cell.
        caption: the line under the picture.
    """
    graph = _graph(caption)
    _nodes(graph, cell.nodes)
    for index, (tail, head, operation, strength, chosen) in enumerate(edges):
        full, pale = colour(operation), _mix(colour(operation), 0.3)
        style = {"fillcolor": full, "fontcolor": "white"} if chosen else {"fillcolor": "white", "fontcolor": _mix(full, 0.75)}
        line = {"color": full if chosen else pale, "penwidth": f"{1 + 6 * strength:.2f}"}
        size = {"fontsize": "13", "height": "0.28", "width": "1.3", "fixedsize": "true", "margin": "0"}  # one size, so one layout
        graph.node(f"edge{index}", label=_label(operation), color=line["color"], **style, **size)
        graph.edge(tail, f"edge{index}:w", dir="none", **line)
        graph.edge(f"edge{index}:e", head, **line)
    _plain_edges(graph, cell)
    return graph


def _mix(colour: str, share: float) -> str:
    """`share` of the colour, the rest white."""
    return "#" + "".join(f"{round(255 + share * (int(colour[start : start + 2], 16) - 255)):02X}" for start in (1, 3, 5))


def _operation(graph: graphviz.Digraph, name: str, operation: str) -> None:
    fill = colour(operation)
    style = {"color": fill, "fillcolor": fill, "fontsize": "13", "fontcolor": "white", "height": "0.28", "margin": "0.09,0.02"}
    graph.node(name, label=_label(operation), **style)


def _label(operation: str) -> str:
    return _plain(shorten(operation))


def network(architecture: Architecture, caption: str) -> graphviz.Digraph:
    """An architecture that is not made of cells as one graph: a network of ENAS's macro space, or else a table of its choices."""
    graph = _graph(caption)
    if (layers := architecture.layers) and sum(1 + len(skips) for _, skips in layers) <= MOST_EDGES:
        _macro(graph, layers)
    else:
        _table(graph, architecture.choices)
    return graph


def _macro(graph: graphviz.Digraph, layers: list[tuple[str, list[int]]]) -> None:
    """A chain; `layer_i` means the input of layer i, so what is added comes from the layer before that."""
    names = ["stem", *(f"layer{layer}" for layer in range(len(layers)))]
    graph.node("stem", **_INPUT)
    for layer, (branch, skips) in enumerate(layers):
        _operation(graph, names[layer + 1], branch)
        graph.edge(names[layer], names[layer + 1], weight="10")
        for source in skips:
            graph.edge(names[source], names[layer + 1], color="#8C8C8C", penwidth="1.2")
    graph.node("classifier", **_OUTPUT)
    graph.edge(names[-1], "classifier", weight="10")


def _table(graph: graphviz.Digraph, architecture: dict[str, Any]) -> None:
    """Every choice beside what was chosen, in the order of the file; of very many, the first."""
    graph.attr(rankdir="TB", ranksep="0.15")
    entries = list(architecture.items())
    if (more := len(entries) - MOST_ROWS) > 0:
        entries[MOST_ROWS:] = [("...", f"{more} more")]
    for row, (key, entry) in enumerate(entries):
        chosen = entry if isinstance(entry, list) else [entry]
        text = ", ".join(shorten(name) if isinstance(name, str) else shown(name) for name in chosen)
        with graph.subgraph() as cells:
            cells.attr(rank="same")
            cells.node(f"key{row}", label=_plain(shorten(key)), **_INPUT)
            cells.node(f"chosen{row}", label=_plain(shorten(text) or "nothing"), **_OUTPUT)
            cells.edge(f"key{row}", f"chosen{row}")
        if row:  # one row below the other
            graph.edge(f"key{row - 1}", f"key{row}", style="invis")
            graph.edge(f"chosen{row - 1}", f"chosen{row}", style="invis")


def graphs(architecture: Architecture, caption: str = "") -> dict[str, graphviz.Digraph]:
    """{name: graph}: `normal` and `reduction` for such cells, `architecture` for anything else."""
    cells = architecture.cells if len(architecture.json) <= MOST_ROWS else {}
    drawn = {TITLES[name].removesuffix(" cell"): cell(graph, title(name, caption)) for name, graph in cells.items()}
    return drawn or {"architecture": network(architecture, caption)}


def previews(architecture: Architecture, caption: str) -> dict[str, bytes]:
    """Small pictures of an architecture, {name: PNG}, without a file."""
    return {name: render(graph, "png", dpi=75) for name, graph in graphs(architecture, caption).items()}


def both(architecture: Architecture, caption: str = "") -> bytes:
    """The normal and the reduction cell of DARTS side by side, a PNG; nodes by their numbers in genotypes and in NNI's keys, from 2 on.

    Raises:
        UserError: the architecture has no such cells, nothing that draws is installed, or it fails.
    """
    cells = Architecture(architecture.genotype).cells
    return joined([render(cell(graph, title(name, caption), first_node=2)) for name, graph in cells.items()], side_by_side=True)


def joined(pictures: Sequence[bytes], side_by_side: bool = False, gap: int = 30) -> bytes:
    """These PNGs as one, below each other or side by side."""
    from PIL import Image

    images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    widths, heights = [image.width for image in images], [image.height for image in images]
    if side_by_side:
        size = sum(widths) + gap * (len(images) + 1), max(heights) + 2 * gap
    else:
        size = max(widths) + 2 * gap, sum(heights) + gap * (len(images) + 1)
    page = Image.new("RGB", size, "white")
    left = top = gap
    for image in images:
        page.paste(image, (left, top))
        left, top = (left + image.width + gap, top) if side_by_side else (left, top + image.height + gap)
    stream = io.BytesIO()
    page.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def title(cell: str, caption: str) -> str:
    """The caption of a picture of this cell, `normal` or `reduce`; of "", a cell of which there is one kind, the caption itself."""
    return ": ".join(filter(None, [caption, cell and TITLES[cell]]))


def draw(architecture: Architecture, folder: str | Path, format: str = "png", caption: str = "") -> list[Path]:
    """Draws an architecture.

    Args:
        architecture: what to draw.
        folder: where normal.FORMAT and reduction.FORMAT, or architecture.FORMAT go; made if it is missing.
        format: one of `FORMATS`.
        caption: what the pictures show, such as the run's name, epoch and seed.

    Returns:
        The paths of the pictures.

    Raises:
        UserError: nothing that draws is installed, it fails, or a file is in the way; no picture is written then.
    """
    if format not in FORMATS:
        raise UserError(f"unknown picture format {format!r}: choose one of {', '.join(FORMATS)}")
    return write({f"{name}.{format}": render(graph, format) for name, graph in graphs(architecture, caption).items()}, folder)


def write(pictures: dict[str, bytes], folder: str | Path) -> list[Path]:
    """Writes files that can be told from foreign ones afterwards, {name: content}, into `folder`, made if it is missing.

    All are written beside before the first takes its place: who is interrupted leaves none that is cut off and would be in the way.

    Raises:
        UserError: a file that is not ours is in the way, or the folder cannot be written to.
    """
    signed = {Path(folder) / name: _sign(content, name.rpartition(".")[2]) for name, content in pictures.items()}
    try:
        for path in signed:
            if os.path.lexists(path) and (path.is_symlink() or SIGNATURE not in files.read(path)):
                raise UserError(f"{path} exists and is not one of our pictures: move it away, or choose another folder")
        Path(folder).mkdir(parents=True, exist_ok=True)
        files.write(signed, suffix=f".{os.getpid()}.tmp")
    except OSError as error:
        raise UserError(f"cannot write the pictures to {folder}: {error.strerror or error}") from None
    return list(signed)


def render(graph: graphviz.Digraph, format: str = "png", dpi: int = 150) -> bytes:
    """The picture of a graph; `dpi`, of a PNG, makes it larger.

    Raises:
        UserError: nothing that draws is installed, or it fails.
    """
    return _render(graph.source, format, dpi)


def _render(source: str, format: str, dpi: int = 150) -> bytes:
    """The picture that the program in the place of `dot` makes of `source`, DOT's language."""
    # A virtual environment's programs are not on PATH where its Python is called by its full path.
    beside_python = os.path.dirname(sys.executable)
    dot = shutil.which("dot")
    program = dot or shutil.which("graphviz-pure") or shutil.which("graphviz-pure", path=beside_python)
    if program is None:
        raise UserError(f"no program that draws graphs is installed: {INSTALL}")
    if format == "pdf" and not dot:  # graphviz-pure knows no PDF
        return _pdf(_render(source, "svg"))
    resolution = [f"-Gdpi={dpi}"] if format == "png" else []
    try:
        done = subprocess.run([program, f"-T{format}", *resolution], input=source.encode(errors="replace"), capture_output=True)
    except OSError as error:
        raise UserError(f"cannot run {program} ({error.strerror}): {INSTALL}") from None
    if done.returncode or not done.stdout:
        reason = " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
        raise UserError(f"{program} cannot draw this as {format} ({reason}): {INSTALL}")
    return done.stdout


def _pdf(svg: bytes) -> bytes:
    """The same picture as PDF: vectors, and text in the Helvetica of every PDF reader, which is as wide as Arial."""
    import fpdf
    from fpdf.svg import SVGObject

    text = re.sub(r"<title>.*?</title>", "", svg.decode())  # what a browser shows on hovering has no place in a PDF
    try:
        text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise UserError(f"PDF's own fonts lack {text[error.start]!r}: leave it out of the caption, or draw svg") from None
    drawing = SVGObject(text)
    document = fpdf.FPDF(unit="pt", format=(drawing.width, drawing.height))  # type: ignore[arg-type]  # never a percentage here
    document.add_page()
    document.set_font("Helvetica")
    drawing.draw_to_page(document)
    return bytes(document.output())


def _sign(picture: bytes, format: str) -> bytes:
    """`picture` with `SIGNATURE` as a comment of its format, by which a later drawing knows that it may replace the file."""
    if format == "png":
        chunk = b"tEXtComment\0" + SIGNATURE
        end = len(picture) - 12  # the last chunk, IEND, is 12 bytes long
        return picture[:end] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + picture[end:]
    if format == "gif":
        return picture[:-1] + b"\x21\xfe" + bytes([len(SIGNATURE)]) + SIGNATURE + b"\0" + picture[-1:]  # before the trailer
    return picture + (b"%% %s\n" if format == "pdf" else b"<!-- %s -->\n") % SIGNATURE
