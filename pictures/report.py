"""A self-contained HTML page about one or several runs: embedded pictures, no scripts, nothing loaded from the network."""

from __future__ import annotations

import base64
import shlex
import struct
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from experiment import errors
from nas.remedies import recipes
from pictures.history import History

TITLES = {
    "normal.png": "Normal cell",
    "reduction.png": "Reduction cell",
    "recurrent.png": "Recurrent cell",
    "architecture.png": "Architecture",
    "cells.gif": "Over the epochs",
    "alphas.png": "Alphas of every edge",
    "operations.png": "Strongest operations and convergence",
    "curves.png": "Loss and accuracy, or perplexity",
    "confusion.png": "Accuracy by class",
    "cells.png": "Final architectures",
}
CELLS = ("normal.png", "reduction.png", "recurrent.png", "architecture.png")
EXPLANATIONS = {
    "curves.png": "The loss of the network, without the auxiliary head.",
    "confusion.png": "Each row is a class of the test set: how its images were classified.",
    "cells.gif": "Wider lines are stronger edges. Filled labels are in the architecture of that epoch. Long runs show only some epochs.",
    "alphas.png": "Each row is an operation; epochs go from left to right. A stronger colour is a larger softmaxed alpha.",
    "operations.png": "Many skip connections in the normal cell, or a growing dominant eigenvalue, indicate a collapse (Zela et al. 2020).",
}
TABLE = (
    "Distance: number of edges, with their operations, that differ from those of the first run. "
    "Parameters and multiply-adds, in millions: of the network that is trained."
)
FIGURES = {  # key: (title, format)
    "test_acc": ("test accuracy", "{:.2f}%"),
    "valid_acc": ("validation accuracy", "{:.2f}%"),
    "test_top5": ("test accuracy, top 5", "{:.2f}%"),
    "train_acc": ("training accuracy", "{:.2f}%"),
    "valid_ppl": ("validation perplexity", "{:.2f}"),
    "train_ppl": ("training perplexity", "{:.2f}"),
    "skips_normal": ("skip connections, normal", "{:.0f}"),
    "skips_reduce": ("skip connections, reduction", "{:.0f}"),
    "skips": ("skip connections", "{:.0f}"),
    "eigenvalue": ("dominant eigenvalue", "{:.3g}"),
    "seconds_per_step": ("seconds per step", "{:.3g}"),
    "memory_mb": ("peak memory", "{:,.0f} MB"),
}
COLUMNS = ["epoch", "lr", *(f"{phase}_{measure}" for phase in ("train", "valid", "test") for measure in ("loss", "acc", "ppl"))]
COLUMNS += [name + cell for name in ("entropy", "skips") for cell in ("", "_normal", "_reduce")]
COLUMNS += ["auxiliary_weight", "perturbation", "temperature", "eigenvalue", "seconds_per_step", "memory_mb", "seconds"]

STYLE = """
:root { color-scheme: light dark; --ground: #f6f6f4; --card: #ffffff; --ink: #1c1c1c; --soft: #5a5a5a; --line: #dcdcd8; --accent: #004488 }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --card: #202327; --ink: #eceae6; --soft: #a9a9a4; --line: #383c41; --accent: #8ec5f0 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1rem 4rem }
h1 { margin: 0; font-size: 1.8rem; line-height: 1.2; overflow-wrap: anywhere }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.2rem }
p.note { margin-top: .8rem }
p { margin: .3rem 0 .8rem; color: var(--soft) }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0 }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem }
.figures dt { font-size: .8rem; color: var(--soft) }
.figures dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums }
.picture, .scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px }
.picture { background: #ffffff; padding: .5rem }  /* the colours of operations are made for white */
.picture img { display: block; max-width: 100%; height: auto; margin: 0 auto }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; margin: 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .9rem/1.5 ui-monospace, monospace; color: var(--accent) }
table { border-collapse: collapse; width: 100%; background: var(--card); font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { color: var(--soft); font-weight: 600 }
th:first-child, td:first-child, .facts td { text-align: left }
.facts td:first-child { width: 1% }
.facts td + td { white-space: normal; overflow-wrap: anywhere }
.runs th { white-space: normal }
.runs td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem }
tr:last-child td { border-bottom: 0 }
summary { cursor: pointer; margin: 1rem 0 .5rem; color: var(--accent) }
"""


def of_run(run: History, pictures: dict[str, bytes]) -> bytes:
    """The page about one run. `pictures`: {file name: picture}, in the order of the page."""
    last = run.epochs[-1]
    figures = [(title, form.format(last[key])) for key, (title, form) in FIGURES.items() if isinstance(last.get(key), int | float)]
    figures.append(("time", errors.duration(sum(row.get("seconds", 0) for row in run.epochs))))
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        f"<p>{escape(_what(run))}</p>",
        '<dl class="figures">' + "".join(f"<div><dt>{escape(t)}</dt><dd>{escape(v)}</dd></div>" for t, v in figures) + "</dl>",
        *_pictures(run.caption, pictures),
        *_command(run),
        "<h2>What ran</h2>",
        _facts({"command": shlex.join(["python", *map(str, run.config.get("command", []))]), **_provenance(run)}),
        f"<details><summary>All arguments</summary>{_facts(run.arguments)}</details>",
        f"<details><summary>All epochs</summary>{_epochs(run)}</details>",
    ]
    return html_page(run.name, parts)


def of_runs(runs: Sequence[History], table: Sequence[dict[str, str]], pictures: dict[str, bytes]) -> bytes:
    """The page that compares several runs."""
    parts = [
        f"<h1>{len(runs)} runs side by side</h1>",
        f"<p>{escape('; '.join(run.caption for run in runs))}</p>",
        html_table(list(table[0]), [list(row.values()) for row in table], "runs"),
        f'<p class="note">{escape(TABLE)}</p>',
        *_pictures("", pictures),
    ]
    return html_page(f"{len(runs)} runs", parts)


def _what(run: History) -> str:
    arguments = run.arguments
    if run.trains:
        what = "Training of a found network"
    elif arguments.get("strategy", "darts") == "darts":
        what = f"Search with DARTS, {'second' if arguments.get('unrolled') else 'first'} order"
    else:
        what = f"Search by {arguments['strategy']}"
    if remedies := recipes.given(arguments):
        what += " with " + ", ".join(f"--{name} {value}" for name, value in remedies.items())
    on = "the CPU" if arguments.get("gpu") == -1 or not run.config.get("gpu") else run.config["gpu"]
    images = arguments.get("data") if arguments.get("dataset") in ("folder", "imagenet") else arguments.get("dataset", "?")
    epoch = run.caption.partition(", ")[2]
    return f"{what}, space {run.space}, on {images}, on {on}; {epoch}."


def _provenance(run: History) -> dict[str, Any]:
    versions = run.config.get("versions", {})
    return {
        "commit": run.config.get("commit") or "outside of a repository",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else versions,
        "GPU": run.config.get("gpu") or "none",
        "CPU threads": run.config.get("threads", "?"),
    }


def _command(run: History) -> Iterable[str]:
    """The commands that a complete run proposes."""
    found = run.config.get("next", {})
    yield f"<h2>{'Test it' if run.trains else 'Train what was found'}</h2>"
    if not found:
        yield "<p>The run is not complete yet. Its log will end with the command.</p>"
    for what, command in found.items():
        yield f"<p>{escape(what.capitalize())}:</p>" * (len(found) > 1) + f"<pre>{escape(command)}</pre>"


def _pictures(caption: str, pictures: dict[str, bytes]) -> Iterable[str]:
    for name, content in pictures.items():
        title = TITLES.get(name, name)
        # All cells have the same scale.
        scale = 0.46 if name in CELLS else 0.75 if name.endswith("png") else 1
        yield from html_picture(title, content, scale, EXPLANATIONS.get(name), f"{title}, {caption}" if caption else title)


def html_picture(
    title: str, content: bytes, scale: float = 0.75, explanation: str | None = None, alternative: str | None = None
) -> Iterable[str]:
    """A heading and a picture."""
    yield f"<h2>{escape(title)}</h2>"
    if explanation is not None:
        yield f"<p>{escape(explanation)}</p>"
    # On a phone, two thirds of the size, with horizontal scrolling, so that labels stay legible.
    width = _width(content) * scale
    style = f"width: {width:.0f}px; min-width: {min(width, max(240, 0.65 * width)):.0f}px"
    kind = "png" if content.startswith(b"\x89PNG") else "gif"
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    yield f'<div class="picture"><img alt="{escape(alternative or title, quote=True)}" style="{style}" src="{source}"></div>'


def _width(picture: bytes) -> int:
    """The width of a PNG or a GIF in pixels."""
    return struct.unpack(">I", picture[16:20])[0] if picture.startswith(b"\x89PNG") else struct.unpack("<H", picture[6:8])[0]


def _epochs(run: History) -> str:
    columns = [key for key in COLUMNS if any(isinstance(row.get(key), int | float) for row in run.epochs)]
    return html_table(columns, [[_short(row.get(key, "")) for key in columns] for row in run.epochs])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(facts: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in facts.items())
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "epochs") -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="scroll"><table class="{kind}">{line("th", head)}{"".join(line("td", row) for row in rows)}</table></div>'


def html_page(title: str, parts: Iterable[str]) -> bytes:
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    return (head + "\n".join(parts) + "\n</main>\n</body>\n</html>\n").encode()
