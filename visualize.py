"""Pictures of architectures and of runs.

    python visualize.py DARTS_V2
    python visualize.py rnn.DARTS_V2
    python visualize.py search-EXP/genotype.json --format pdf
    python visualize.py "Genotype(normal=[('sep_conv_3x3', 0), ...], ...)" --out pictures/
    python visualize.py search-EXP/               # all pictures of a run
    python visualize.py search-EXP/ --report      # and all of them on one page, report.html
    python visualize.py search-A/ search-B/       # side by side, into the current folder
    python visualize.py --benchmark nasbench201.csv search-A/ search-B/    # their paths among all architectures

An architecture is drawn as normal.png and reduction.png, as recurrent.png, or, if it does not consist of such cells, as
architecture.png. A run also has cells.gif (the cells over the epochs), alphas.png (the softmaxed alphas of every edge),
operations.png (which operations win, and whether the search has converged), curves.png (loss, and accuracy or
perplexity), true_accuracy.png and confusion.png, if it recorded these values. Several runs give curves.png, cells.png
and a table, which is printed and written to comparison.md.

Prints the paths. Takes a second for an architecture, and half a minute for a run of 50 epochs. Replaces pictures of the
same names.
"""

from __future__ import annotations

from experiment import cli, errors

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import os
from pathlib import Path

from architectures import SPACES, Architecture, load_space
from experiment.errors import UserError
from nas.benchmark import Benchmark
from pictures import drawing, history
from pictures.history import History


def names() -> list[str]:
    """All published cells; those of the recurrent cell begin with `rnn.`."""
    return [*load_space("darts").names(), *(f"rnn.{name}" for name in load_space("rnn").names())]


def canonical(arch: str) -> str:
    """See `Architecture.canonical`, for all of `names`."""
    prefix = "rnn." if arch.startswith("rnn.") else ""
    return prefix + load_space("rnn" if prefix else "darts").canonical(arch.removeprefix(prefix))


def read_any(arch: str) -> Architecture:
    """The architecture that `arch` names (one of `names`, or as for `Architecture.read`), in the space that recognises
    it.

    Raises:
        UserError: it is not an architecture.
    """
    if (arch := canonical(arch)) in names():
        return load_space("rnn" if arch.startswith("rnn.") else "darts").read(arch.removeprefix("rnn."))
    failures = []
    for space in map(load_space, ("darts", "rnn", *SPACES)):  # those that need no torch first
        try:
            content = space.content(arch)
        except UserError as error:
            failures.append(error)
            continue
        if space.recognises(content):
            return space.of(content)
    if failures:
        raise failures[0]
    return Architecture.of(content)


def picture_run(run: History, format: str = "png") -> dict[str, bytes]:
    """{file name: picture}: all pictures of a run."""
    from pictures import animation, curves  # here: drawing an architecture needs no matplotlib

    pictures = {}
    if (architecture := run.architecture) is not None:
        pictures = drawing.pictures(architecture, format, run.name)
    if (moving := animation.animation(run)) is not None:
        pictures["cells.gif"] = moving
    return pictures | {f"{name}.{format}": curves.save(figure, format) for name, figure in curves.pictures(run).items()}


def picture_runs(runs: list[History], format: str = "png") -> dict[str, bytes]:
    """{file name: picture}: several runs side by side."""
    from pictures import compare, curves

    pictures = {f"curves.{format}": curves.save(curves.compare_curves(runs, compare.names(runs)), format)}
    if (cells := compare.cells(runs)) is not None:
        pictures["cells.png"] = cells
    return pictures


def main() -> None:
    parser = cli.Parser(description="Draw an architecture, a run, or several runs side by side.")
    parser.add_argument(
        "what",
        nargs="+",
        type=canonical,
        help=f"an architecture: one of {', '.join(names())}, a JSON file, or Genotype(...); or folders of runs",
    )
    parser.add_argument(
        "--format", choices=drawing.FORMATS, default="png", help="format of the pictures, except cells.gif"
    )
    parser.add_argument(
        "--report", action="store_true", help="also write report.html, a self-contained page about the runs"
    )
    parser.add_argument(
        "--out",
        default="",
        help="write pictures to this folder; if empty, to the folder of a single run, or else to the current one",
    )
    parser.add_argument(
        "--caption", default="", help="caption for an architecture that is not a run's; if empty, its name"
    )
    parser.add_argument(
        "--benchmark",
        type=cli.path,
        metavar="FILE.csv",
        help="draw the true accuracies in this table, and the paths of searches in it (docs/nasbench201.md)",
    )
    args = parser.parse_args()
    if args.report and args.benchmark is not None:
        raise UserError("--benchmark draws one picture: leave --report out")
    if args.report and args.format != "png":
        raise UserError("--report embeds PNG: leave --format out")
    first, folder = args.what[0], "."
    if args.benchmark is not None:
        pictures = of_benchmark(args.benchmark, [history.read(name) for name in args.what], args.format)
    elif len(args.what) > 1 or history.is_run(first):
        folder = first if len(args.what) == 1 else "."
        pictures = of_runs([history.read(name) for name in args.what], args.format, args.report)
    elif args.report:
        raise UserError(f"{first} is not the folder of a run: there is nothing to report on")
    else:
        architecture, caption = read_any(first), args.caption
        if first in names():
            caption = caption or first
        elif os.path.lexists(first):  # else it is a text
            path, folder = Path(first).resolve(), first if os.path.isdir(first) else "."
            caption = caption or (path.parent if path.name in ("genotype.json", "architecture.json") else path).name
        pictures = drawing.pictures(architecture, args.format, caption)
    for written in drawing.write(pictures, args.out or folder):
        print(errors.printable(str(written)))


def of_runs(runs: list[History], format: str, with_report: bool) -> dict[str, bytes]:
    """{file name: content}: all that is written about one run or several. Prints the table of several."""
    from pictures import compare, report

    if len(runs) == 1:
        pictures = picture_run(runs[0], format)
        return pictures | ({"report.html": report.of_run(runs[0], pictures).encode()} if with_report else {})
    pictures, table = picture_runs(runs, format), compare.table(runs)
    page = {"report.html": report.of_runs(runs, table, pictures).encode()} if with_report else {}
    text = compare.markdown(list(table[0]), [list(row.values()) for row in table])
    print(text)
    return pictures | {"comparison.md": text.encode()} | page


def of_benchmark(path: str, runs: list[History], format: str) -> dict[str, bytes]:
    """{file name: picture} of the landscape of a benchmark, with the paths of the runs."""
    from pictures import benchmark, compare, curves

    if others := [run.name for run in runs if not run.found]:
        raise UserError(f"{', '.join(others)}: only a search has a path among architectures: leave it out")
    table = Benchmark(path, str(runs[0].arguments.get("dataset")))
    return {f"landscape.{format}": curves.save(benchmark.landscape(table, runs, compare.names(runs)), format)}


if __name__ == "__main__":
    cli.run(main)
