"""A self-contained HTML page about one or several runs: embedded pictures, no scripts, no links."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from experiment.errors import duration
from pictures.history import History

CELL = 0.46  # scale of the pictures of cells, the same for all
PICTURES = {  # {file name: (heading, explanation, scale)}
    "normal.png": ("Normal cell", "", CELL),
    "reduction.png": ("Reduction cell", "", CELL),
    "recurrent.png": ("Recurrent cell", "", CELL),
    "architecture.png": ("Architecture", "", CELL),
    "cells.gif": (
        "Over the epochs",
        "Wider lines are stronger edges. Filled labels are in the architecture of that epoch.",
        1,
    ),
    "alphas.png": (
        "Alphas of every edge",
        "Each row is an operation; epochs go from left to right. A stronger colour is a larger softmaxed alpha.",
        0.75,
    ),
    "operations.png": (
        "Strongest operations and convergence",
        "Many skip connections in the normal cell, or a growing dominant eigenvalue, indicate a collapse (Zela et al. "
        "2020).",
        0.75,
    ),
    "curves.png": ("Loss and accuracy, or perplexity", "The loss of the network, without the auxiliary head.", 0.75),
    "true_accuracy.png": (
        "True accuracy",
        "Of the architecture of each epoch, from the benchmark's table, beside the accuracy that the supernet shows.",
        0.75,
    ),
    "confusion.png": (
        "Accuracy by class",
        "Each row is a class of the test set: how its images were classified.",
        0.75,
    ),
    "cells.png": ("Final architectures", "", 0.75),
}
TABLE = (
    "Distance: number of edges, with their operations, that differ from those of the first run. "
    "Parameters and multiply-adds, in millions: of the network that is trained."
)


class Picture(NamedTuple):
    source: str  # its content as a URL
    width: int  # on the page, in pixels


@dataclass
class Section:
    """A part of a page, with a heading: a note, a picture, a table and commands, each if it is given."""

    heading: str
    note: str = ""
    picture: Picture | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    commands: Sequence[tuple[str, str]] = ()  # (purpose, command)
    folded: bool = False


def page(title: str, summary: str, sections: Sequence[Section], figures: Sequence[tuple[str, str]] = ()) -> str:
    """The page. `figures`: (name, value) of the numbers at its top."""
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(title=title, summary=summary, sections=sections, figures=figures)


def embedded(picture: bytes, scale: float = 0.75) -> Picture:
    """A PNG or GIF for a `Section`; its width is that in pixels times `scale`."""
    image = Image.open(io.BytesIO(picture))
    kind = str(image.format).lower()
    return Picture(f"data:image/{kind};base64,{base64.b64encode(picture).decode()}", round(image.width * scale))


def of_run(run: History, pictures: dict[str, bytes]) -> str:
    """The page about one run. `pictures`: {file name: picture}, in the order of the page."""
    config, commands = run.config, run.config.get("next", {})
    numbers = [{key: value for key, value in row.items() if isinstance(value, int | float)} for row in run.epochs]
    figures = [(key.replace("_", " "), _short(value)) for key, value in numbers[-1].items() if key != "epoch"]
    figures.append(("time", duration(sum(row.get("seconds", 0) for row in run.epochs))))
    columns = list(dict.fromkeys(key for row in numbers for key in row))
    epochs = [[_short(row.get(key, "")) for key in columns] for row in numbers]
    provenance = {
        "command": shlex.join(["python", *config.get("command", [])]),
        "commit": config.get("commit") or "outside of a repository",
        "versions": ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items()),
        "GPU": config.get("gpu") or "none",
        "CPU threads": str(config.get("threads", "?")),
    }
    sections = [
        *_pictures(pictures),
        Section(
            "Test it" if run.trains else "Train what was found",
            note="" if commands else "The run is not complete yet. Its log will end with the command.",
            commands=[(purpose.capitalize(), command) for purpose, command in commands.items()],
        ),
        Section("What ran", rows=list(provenance.items())),
        Section("All arguments", rows=[(name, str(value)) for name, value in run.arguments.items()], folded=True),
        Section("All epochs", columns=columns, rows=epochs, folded=True),
    ]
    return page(run.name, run.caption, sections, figures)


def of_runs(runs: Sequence[History], table: Sequence[dict[str, str]], pictures: dict[str, bytes]) -> str:
    """The page that compares several runs."""
    rows = [list(row.values()) for row in table]
    sections = [Section("Results", note=TABLE, columns=list(table[0]), rows=rows), *_pictures(pictures)]
    return page(f"{len(runs)} runs side by side", "; ".join(run.caption for run in runs), sections)


def _pictures(pictures: dict[str, bytes]) -> Iterator[Section]:
    for name, content in pictures.items():
        heading, note, scale = PICTURES[name]
        yield Section(heading, note, embedded(content, scale))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
