"""Architectures as graphs: both cells of a genotype, or a network of a space of `nas/`, every operation in a colour of its own.

Graphviz's `dot` draws them where it is installed, the program of the package graphviz-pure everywhere else.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import graphviz

import files
import untrusted
from cli import UserError, shorten, shown
from genotypes import Genotype

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
    "conv_1x1": OPERATION_COLOURS["sep_conv_7x7"],
    "conv_3x3": OPERATION_COLOURS["dil_conv_3x3"],
    "conv_5x5": OPERATION_COLOURS["dil_conv_5x5"],
}

# What the numbers in the architectures of nas/spaces/enas.py stand for.
MICRO_OPERATIONS = ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "skip_connect")
MACRO_BRANCHES = ("conv_3x3", "sep_conv_3x3", "conv_5x5", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")

NASBENCH201_EDGES = {"0_1", "0_2", "1_2", "0_3", "1_3", "2_3"}

# What a picture can show, and Graphviz lays out within seconds: rows of a table, edges of a macro network.
MOST_ROWS, MOST_EDGES = 200, 300

FORMATS = ("png", "pdf", "svg")
INSTALL = "run `pip install graphviz-pure`, or install Graphviz (https://graphviz.org)"
SIGNATURE = b"drawn by visualize.py of DARTS"


def cell(edges: Sequence[tuple[str, int]], concat: Sequence[int], caption: str) -> graphviz.Digraph:
    """One cell as a graph: inputs, nodes 0 to n - 1, output; node i of the pictures is node i + 2 of the genotype (DARTS, Figures 4 and 5).

    Args:
        edges: (operation, input node) pairs, two for each intermediate node, as in `Genotype.normal`.
        concat: the nodes whose outputs are concatenated into the cell's own, as in `Genotype.normal_concat`.
        caption: the line under the picture.
    """
    graph = _graph(caption)
    inputs, nodes = ["c_{k-2}", "c_{k-1}"], [str(node) for node in range(len(edges) // 2)]
    for name in inputs:
        graph.node(name, **_INPUT)
    for name in nodes:
        graph.node(name, **_NODE)
    graph.node("c_{k}", **_OUTPUT)
    names = inputs + nodes
    for edge, (operation, node) in enumerate(edges):
        _edge(graph, f"edge{edge}", operation, names[node], nodes[edge // 2])
    for node in concat:
        graph.edge(names[node], "c_{k}", color="#8C8C8C", penwidth="1.2")
    return graph


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
    graph.edge(tail, f"{name}:w", color=COLOURS[operation], dir="none")
    graph.edge(f"{name}:e", head, color=COLOURS[operation])


class Edge(NamedTuple):
    """An edge of the continuous relaxation, drawn with the operation that is the strongest on it."""

    tail: str
    head: str
    operation: str
    strength: float  # from 0, the weakest of the run, to 1, the strongest
    chosen: bool  # is part of the architecture


def relaxed(nodes: dict[str, Literal["input", "node", "output"]], edges: Sequence[Edge], caption: str) -> graphviz.Digraph:
    """All edges of a cell with their strengths as widths; pale those that the architecture leaves out.

    The graphs of one cell have one layout, whatever operations and strengths: pictures of them make an animation.

    Args:
        nodes: what each node is, in order. All of kind "node" lead to an "output" that no edge leads to.
        edges: in the same order for every picture of the cell.
        caption: the line under the picture.
    """
    graph = _graph(caption)
    for name, kind in nodes.items():
        graph.node(name, **{"input": _INPUT, "node": _NODE, "output": _OUTPUT}[kind])
    for index, (tail, head, operation, strength, chosen) in enumerate(edges):
        colour = COLOURS.get(operation, "#404040")
        pale = _mix(colour, 0.3)
        style = {"fillcolor": colour, "fontcolor": "white"} if chosen else {"fillcolor": "white", "fontcolor": _mix(colour, 0.75)}
        line = {"color": colour if chosen else pale, "penwidth": f"{1 + 6 * strength:.2f}"}
        size = {"fontsize": "13", "height": "0.28", "width": "1.3", "fixedsize": "true", "margin": "0"}  # one size, so one layout
        graph.node(f"edge{index}", label=_plain(operation), color=line["color"], **style, **size)
        graph.edge(tail, f"edge{index}:w", dir="none", **line)
        graph.edge(f"edge{index}:e", head, **line)
    heads = {edge.head for edge in edges}
    for output in (name for name, kind in nodes.items() if kind == "output" and name not in heads):
        for name in (name for name, kind in nodes.items() if kind == "node"):
            graph.edge(name, output, color="#8C8C8C", penwidth="1.2")
    return graph


def _mix(colour: str, share: float) -> str:
    """`share` of the colour, the rest white."""
    return "#" + "".join(f"{round(255 + share * (int(colour[start : start + 2], 16) - 255)):02X}" for start in (1, 3, 5))


def _operation(graph: graphviz.Digraph, name: str, operation: str) -> None:
    colour = COLOURS[operation]
    graph.node(name, label=operation, color=colour, fillcolor=colour, fontsize="13", fontcolor="white", height="0.28", margin="0.09,0.02")


def micro_cells(architecture: dict[str, Any]) -> dict[str, tuple[list[tuple[str, int]], list[int]]]:
    """The cells of an architecture of ENAS's micro space, {name: (edges, concat)} as for `cell`; empty if it is not one."""
    cells = {}
    remaining = dict(architecture)
    for name, kind in (("normal", "normal"), ("reduction", "reduce")):
        edges: list[tuple[str, int]] = []
        while (node := f"{kind}_node_{len(edges) // 2}_{'xy'[len(edges) % 2]}") + "_op" in remaining:
            operation, source = remaining.pop(f"{node}_op"), remaining.pop(f"{node}_input", None)
            if not _is_index(operation, len(MICRO_OPERATIONS)) or not _is_index(source, len(edges) // 2 + 2):
                return {}
            edges.append((MICRO_OPERATIONS[operation], source))
        if len(edges) % 2:
            return {}
        if edges:
            used = {source for _, source in edges}
            cells[name] = (edges, [node for node in range(len(edges) // 2 + 2) if node not in used])
    return {} if remaining else cells


def network(architecture: dict[str, Any], caption: str) -> graphviz.Digraph:
    """An architecture of a space of `nas/` as one graph: a cell of NAS-Bench-201, a network of ENAS's macro space, or else a table.

    Args:
        architecture: {key: what was chosen}, as `nas.mutators.Mutator.export` gives it.
        caption: the line under the picture.
    """
    graph = _graph(caption)
    if set(architecture) == NASBENCH201_EDGES and all(_is_operation(chosen) for chosen in architecture.values()):
        _nasbench201(graph, architecture)
    elif (layers := macro_layers(architecture)) and sum(1 + len(skips) for _, skips in layers) <= MOST_EDGES:
        _macro(graph, layers)
    else:
        _table(graph, architecture)
    return graph


def _is_index(chosen: Any, length: int) -> bool:
    return type(chosen) is int and 0 <= chosen < length


def _is_operation(chosen: Any) -> bool:
    return isinstance(chosen, str) and chosen in COLOURS


def _nasbench201(graph: graphviz.Digraph, architecture: dict[str, str]) -> None:
    for node, style in (("0", _INPUT), ("1", _NODE), ("2", _NODE), ("3", _OUTPUT)):
        graph.node(node, **style)
    for key, operation in architecture.items():
        _edge(graph, f"edge{key}", operation, *key.split("_"))


def macro_layers(architecture: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """(branch, layers that are added) of every layer of ENAS's macro space; empty if this is not one of its architectures."""
    values = [chosen if isinstance(chosen, list) else [chosen] for chosen in architecture.values()]
    branches, skips = values[:1] + values[1::2], [[], *values[2::2]]
    labels = {f"layer_{layer}": layer for layer in range(len(branches))}
    known = all(len(branch) == 1 and _is_index(branch[0], len(MACRO_BRANCHES)) for branch in branches)
    earlier = all(isinstance(label, str) and labels.get(label, layer) < layer for layer, chosen in enumerate(skips) for label in chosen)
    if len(branches) != len(skips) or len(branches) < 3 or not known or not earlier:
        return []
    return [(MACRO_BRANCHES[branch[0]], [labels[label] for label in chosen]) for branch, chosen in zip(branches, skips, strict=True)]


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


def graphs(architecture: Genotype | dict[str, Any], caption: str = "") -> dict[str, graphviz.Digraph]:
    """{name: graph}: `normal` and `reduction` for cells, `architecture` for anything else."""
    if isinstance(architecture, Genotype):
        normal, reduction = (architecture.normal, architecture.normal_concat), (architecture.reduce, architecture.reduce_concat)
        cells: dict[str, Any] = {"normal": normal, "reduction": reduction}
    else:
        cells = micro_cells(architecture) if len(architecture) <= MOST_ROWS else {}
    drawn = {name: cell(edges, concat, f"{caption}: {name} cell" if caption else f"{name} cell") for name, (edges, concat) in cells.items()}
    return drawn or {"architecture": network(architecture, caption)}  # type: ignore[arg-type]  # a genotype has cells


def draw(architecture: Genotype | dict[str, Any], folder: str | Path, format: str = "png", caption: str = "") -> list[Path]:
    """Draws both cells of a genotype, or an architecture of a space of `nas/`.

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
            if os.path.lexists(path) and (path.is_symlink() or SIGNATURE not in untrusted.read(path)):
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
