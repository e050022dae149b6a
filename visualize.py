"""Cells as pictures: both cells of a genotype, drawn left to right, with every operation in a colour of its own.

    python visualize.py DARTS_V2
    python visualize.py search-EXP/ --format pdf
    python visualize.py "Genotype(normal=[('sep_conv_3x3', 0), ...], ...)" --out pictures/

Writes normal.png and reduction.png, prints their paths, and takes about a second. Graphviz's `dot` draws them where it is installed, the
program of the package graphviz-pure everywhere else. A picture of that name which this program did not draw is never overwritten.
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

import graphviz

import cli
import genotypes
from cli import UserError
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
    graph.attr(label=graphviz.escape("\n" + " ".join(caption.split())))
    inputs, nodes = ["c_{k-2}", "c_{k-1}"], [str(node) for node in range(len(edges) // 2)]
    for name in inputs:
        graph.node(name, fillcolor="#D9EAD9", height="0.42", margin="0.08,0.03")
    for name in nodes:
        graph.node(name, fillcolor="#DCE9F5", height="0.6")
    graph.node("c_{k}", fillcolor="#FBF0CF", height="0.42", margin="0.08,0.03")

    # An edge's label is a node in the middle of it: Graphviz then leaves it room, so that labels meet neither each other nor foreign edges.
    names = inputs + nodes
    for edge, (operation, node) in enumerate(edges):
        colour = OPERATION_COLOURS[operation]
        label = {"label": operation, "fontsize": "13", "fontcolor": "white", "height": "0.28", "margin": "0.09,0.02"}
        graph.node(f"edge{edge}", color=colour, fillcolor=colour, **label)
        graph.edge(names[node], f"edge{edge}:w", color=colour, dir="none")
        graph.edge(f"edge{edge}:e", nodes[edge // 2], color=colour)
    for node in concat:
        graph.edge(names[node], "c_{k}", color="#8C8C8C", penwidth="1.2")
    return graph


def draw(genotype: Genotype, folder: str | Path, format: str = "png", caption: str = "") -> list[Path]:
    """Draws both cells of `genotype`.

    Args:
        genotype: what to draw.
        folder: where normal.FORMAT and reduction.FORMAT go; made if it is missing.
        format: one of `FORMATS`.
        caption: what the pictures show, such as the run's name, epoch and seed.

    Returns:
        The paths of the normal and the reduction cell's picture.

    Raises:
        UserError: nothing that draws is installed, it fails, or a file is in the way; no picture is written then.
    """
    if format not in FORMATS:
        raise UserError(f"unknown picture format {format!r}: choose one of {', '.join(FORMATS)}")
    cells = {"normal": (genotype.normal, genotype.normal_concat), "reduction": (genotype.reduce, genotype.reduce_concat)}
    pictures = {}
    for name, (edges, concat) in cells.items():
        title = f"{caption}: {name} cell" if caption else f"{name} cell"
        pictures[Path(folder) / f"{name}.{format}"] = _sign(_render(cell(edges, concat, title).source, format), format)
    try:
        for path in pictures:
            if path.exists() and SIGNATURE not in path.read_bytes():
                raise UserError(f"{path} exists and is not one of our pictures: move it away, or choose another folder")
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path, picture in pictures.items():
            path.write_bytes(picture)
    except OSError as error:
        raise UserError(f"cannot write the pictures to {folder}: {error.strerror or error}") from None
    return list(pictures)


def _render(source: str, format: str) -> bytes:
    """The picture that the program in the place of `dot` makes of `source`, DOT's language."""
    # A virtual environment's programs are not on PATH where its Python is called by its full path.
    beside_python = os.path.dirname(sys.executable)
    dot = shutil.which("dot")
    program = dot or shutil.which("graphviz-pure") or shutil.which("graphviz-pure", path=beside_python)
    if program is None:
        raise UserError(f"no program that draws graphs is installed: {INSTALL}")
    if format == "pdf" and not dot:  # graphviz-pure knows no PDF
        return _pdf(_render(source, "svg"))
    resolution = ["-Gdpi=150"] if format == "png" else []
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
    comment = b"<!-- %s -->\n" if format == "svg" else b"%% %s\n"
    return picture + comment % SIGNATURE


def _name_and_folder(arch: str) -> tuple[str, str]:
    """What the pictures of `arch`, which `genotypes.read` has accepted, are called and where they go, if the command line does not say."""
    if arch in genotypes.KNOWN:
        return arch, "."
    if "Genotype(" in arch:
        return "", "."
    path = Path(arch).resolve()
    return (path.parent if path.name == "genotype.json" else path).name, arch if path.is_dir() else "."


def main() -> None:
    parser = cli.Parser(description="Draw both cells of a genotype.")
    parser.add_argument("arch", help=f"one of {', '.join(genotypes.KNOWN)}, a JSON file, a run's folder, or Genotype(...)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the pictures")
    parser.add_argument("--out", default="", help="folder for the pictures; if empty, the run's folder or else the current one")
    parser.add_argument("--caption", default="", help="what the pictures show; if empty, the name in arch")
    args = parser.parse_args()

    genotype = genotypes.read(args.arch)
    name, folder = _name_and_folder(args.arch)
    for path in draw(genotype, args.out or folder, args.format, args.caption or name):
        print(path)


if __name__ == "__main__":
    cli.run(main)
