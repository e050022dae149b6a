"""The pictures of cells: their edges, their formats, who draws them, and what happens when nobody can."""

import errno
import json
import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from architectures import Architecture
from architectures.cells import OPERATIONS, Cells, names
from experiment.errors import UserError
from genotypes import triples
from pictures import drawing

KNOWN = names()
V2 = Cells(KNOWN["DARTS_V2"])
MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-1.", "svg": b"<?xml "}


def drawn(source: str) -> tuple[Counter, Counter]:
    """The (input, operation, output) and the (node, output) edges in a picture's DOT source."""
    labels = dict(re.findall(r"^\s*(edge\d+) \[.*?label=(\w+)", source, re.MULTILINE))
    arrows = re.findall(r'^\s*("[^"]+"|\w+)(?::\w)? -> ("[^"]+"|\w+)(?::\w)? \[', source, re.MULTILINE)
    arrows = [(tail.strip('"'), head.strip('"')) for tail, head in arrows]
    assert len(arrows) == source.count("->")
    into = {head: tail for tail, head in arrows if head in labels}
    assert set(into) == set(labels)
    operations = Counter((into[tail], labels[tail], head) for tail, head in arrows if tail in labels)
    assert sum(operations.values()) == len(labels)
    return operations, Counter((tail, head) for tail, head in arrows if tail not in labels and head not in labels)


def texts(svg: Path) -> Counter:
    return Counter("".join(text.itertext()) for text in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text"))


def fake_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def without_dot(monkeypatch, tmp_path_factory):
    """Nothing is on PATH: graphviz-pure must be found beside Python."""
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))


DENSE = V2.genotype._replace(
    normal_concat=[2], normal=[("skip_connect", 2, 0), ("sep_conv_3x3", 2, 0), ("max_pool_3x3", 2, 1), ("none", 3, 0)]
)


@pytest.mark.parametrize("genotype", [*KNOWN.values(), DENSE], ids=[*KNOWN, "more edges"])
def test_picture_has_exactly_the_genotypes_edges(genotype):
    expected = zip((genotype.normal, genotype.reduce), (genotype.normal_concat, genotype.reduce_concat), strict=True)
    for (edges, concat), cell in zip(expected, Cells(genotype).cells.values(), strict=True):
        names = ["c_{k-2}", "c_{k-1}", "0", "1", "2", "3", "4"]
        operations, outputs = drawn(drawing.cell(cell, "").source)
        assert operations == Counter((names[source], name, names[node]) for name, node, source in triples(edges))
        assert outputs == Counter((names[node], "c_{k}") for node in concat)


def test_both_cells_on_one_picture_have_the_numbers_of_genotypes():
    for cell in V2.cells.values():
        source = drawing.cell(cell, "", first_node=2).source
        labels = re.findall(r"^\t(\d) \[label=(\d)", source, re.MULTILINE)
        assert labels == [("0", "2"), ("1", "3"), ("2", "4"), ("3", "5")]
    assert drawing.both(V2).startswith(MAGIC["png"])
    with pytest.raises(UserError, match="no cells"):
        drawing.both(Architecture({"conv": 1}))


def test_every_operation_has_a_colour_of_its_own():
    assert list(drawing.OPERATION_COLOURS) == OPERATIONS
    assert len(set(drawing.OPERATION_COLOURS.values())) == len(OPERATIONS)
    assert len({drawing.colour(f"operation{number}") for number in range(200)}) > 100  # that nobody chose


@pytest.mark.parametrize("format", drawing.FORMATS)
def test_every_format_is_written_and_written_again(tmp_path, format, without_dot, capfd):
    for genotype in (KNOWN["NASNet"], KNOWN["DARTS_V2"]):
        paths = drawing.draw(Cells(genotype), tmp_path / "new" / "folder", format, caption="run 1, epoch 50, seed 2")
        assert paths == [tmp_path / "new" / "folder" / f"{name}.{format}" for name in ("normal", "reduction")]
        assert all(path.read_bytes().startswith(MAGIC[format]) for path in paths)
    assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(paths)
    assert capfd.readouterr() == ("", "")


def test_svg_shows_the_operations_and_the_caption_literally(tmp_path, without_dot):
    caption = r'<b>sök & "run" \N\l'
    normal, reduction = drawing.draw(Cells(KNOWN["NASNet"]), tmp_path, "svg", caption)
    expected = Counter(operation for operation, _ in KNOWN["NASNet"].normal)
    assert {text: count for text, count in texts(normal).items() if text in OPERATIONS} == expected
    assert texts(normal)[f"{caption}: normal cell"] == 1
    assert texts(reduction)[f"{caption}: reduction cell"] == 1


def test_dot_is_preferred_and_gets_the_format(tmp_path, monkeypatch):
    for name in ("dot", "graphviz-pure"):
        fake_program(tmp_path / "bin", name, f'echo "{name} $*"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert all(path.read_bytes().startswith(b"dot -Tpdf") for path in drawing.draw(V2, tmp_path, "pdf"))
    (tmp_path / "bin" / "dot").unlink()
    assert all(path.read_bytes().startswith(b"graphviz-pure -Tsvg") for path in drawing.draw(V2, tmp_path, "svg"))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "no program that draws graphs is installed: run `pip install graphviz-pure`"),
        ("echo no fonts >&2; exit 1", r"cannot draw this as png \(no fonts\).*pip install graphviz-pure"),
        ("echo half; exit 1", "exit status 1"),
        ("exit 0", "cannot draw this as png"),
    ],
)
def test_a_renderer_that_is_missing_or_fails_is_a_users_error(tmp_path, monkeypatch, without_dot, script, words):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    if script:
        fake_program(tmp_path / "bin", "dot", script)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match=words):
        drawing.draw(V2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_old_pictures_and_nothing_else(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    drawing.write({"normal.png": b"old"}, tmp_path)
    monkeypatch.setattr(drawing.files.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write the pictures.*No space"):
        drawing.write({"normal.png": b"new", "reduction.png": b"new"}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"normal.png": b"old"}


def test_the_command_draws_names_texts_files_and_runs(done, tmp_path):
    (tmp_path / "search-7").mkdir()
    (tmp_path / "search-7" / "genotype.json").write_text(json.dumps(Cells(KNOWN["NASNet"]).json))
    for arguments, folder, caption in (
        (["darts-v2"], ".", "DARTS_V2"),
        (["search-7"], "search-7", "search-7"),
        (["search-7/genotype.json", "--out", "a/b"], "a/b", "search-7"),
        ([repr(KNOWN["DARTS_V1"]), "--caption", "epoch 50", "--out", "c"], "c", "epoch 50"),
    ):
        paths = [str(Path(folder) / f"{name}.svg") for name in ("normal", "reduction")]
        assert done("visualize", *arguments, "--format", "svg") == paths
        assert f"{caption}: normal cell" in texts(tmp_path / paths[0])


def test_users_mistakes_end_in_one_line(refused, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for arguments, words in (
        ("DARTS_V2 --format gif", "gif.*png"),
        ("broken.json", "broken.json.*JSON"),
        ("missing.json", "missing.json"),
        ("Genotype(1,2)", "normal_concat"),
        ("DARTS_V2 --out broken.json/below", "broken.json/below"),
    ):
        assert re.search(words, refused("visualize", *arguments.split()))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.json"]


def test_odd_texts_are_drawn(tmp_path):
    odd = {"a\0b": "\t\x1b\udfff", "": "", "\\N": "\\G\\", "<b>": '&amp; "', "x" * 10**5: ["y" * 10**5]}
    [path] = drawing.draw(Architecture(odd), tmp_path, "svg", caption="a\0\x1b\n\\N")
    assert {"a?b", "???", "\\N", "\\G\\", "<b>", '& "', "x" * 117 + "...", "a?? \\N"} <= set(texts(path))
