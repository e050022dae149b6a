"""Pictures of architectures and of runs.

    python visualize.py DARTS_V2
    python visualize.py rnn.DARTS_V2
    python visualize.py search-EXP/genotype.json --format pdf
    python visualize.py "Genotype(normal=[('sep_conv_3x3', 0), ...], ...)" --out pictures/
    python visualize.py search-EXP/               # everything that the run's folder tells
    python visualize.py search-EXP/ --report      # and all of it on one page, report.html
    python visualize.py search-A/ search-B/       # side by side, into the current folder

An architecture becomes normal.png and reduction.png, recurrent.png, or architecture.png where there are no such cells. A run has, besides,
cells.gif (the cells over the epochs), alphas.png (the softmaxed alphas of every edge), operations.png (which operations win, and whether
the search has settled) and curves.png (loss, and accuracy or perplexity), each where the run has what it shows. Several runs become
curves.png, cells.png and a table, which is printed and written to comparison.md. Prints the paths, and takes a second for an architecture,
half a minute for a run of 50 epochs. A file of that name which this program did not write is never overwritten.
"""

from __future__ import annotations

from experiment import cli, errors

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

from pathlib import Path

from experiment.errors import UserError
from nas.architecture import Architecture, canonical, names
from pictures import animation, compare, curves, drawing, history, report
from pictures.history import History


def _name_and_folder(arch: str) -> tuple[str, str]:
    """What the pictures of `arch`, an accepted architecture, are called and where they go, if the command line does not say."""
    if arch in names():
        return arch, "."
    if "Genotype(" in arch:
        return "", "."
    path = Path(arch).resolve()
    return (path.parent if path.name in ("genotype.json", "architecture.json") else path).name, arch if path.is_dir() else "."


def picture_architecture(architecture: Architecture, caption: str, format: str) -> dict[str, bytes]:
    """{file's name: picture}. All of these raise `UserError` where nothing that draws is installed, or a run's files are damaged."""
    return {f"{name}.{format}": drawing.render(graph, format) for name, graph in drawing.graphs(architecture, caption).items()}


def picture_run(run: History, format: str) -> dict[str, bytes]:
    """{file's name: picture} of all that a run has to show."""
    pictures = {}
    if (architecture := run.architecture) is not None:
        pictures = picture_architecture(architecture, run.architecture_caption, format)
    if (moving := animation.animation(run)) is not None:
        pictures["cells.gif"] = moving
    return pictures | {f"{name}.{format}": curves.save(figure, format) for name, figure in curves.pictures(run).items()}


def picture_runs(runs: list[History], format: str) -> dict[str, bytes]:
    """{file's name: picture} of several runs side by side."""
    pictures = {f"curves.{format}": curves.save(curves.compare_curves(runs, compare.names(runs)), format)}
    if (cells := compare.cells(runs)) is not None:
        pictures["cells.png"] = cells
    return pictures


def main() -> None:
    parser = cli.Parser(description="Draw an architecture, all that a run tells, or several runs side by side.")
    parser.add_argument(
        "what", nargs="+", type=canonical, help=f"one of {', '.join(names())}, a JSON file, Genotype(...), or runs' folders"
    )
    parser.add_argument("--format", choices=drawing.FORMATS, default="png", help="of the pictures that do not move")
    parser.add_argument("--report", action="store_true", help="of runs: everything on one page that needs nothing else, report.html")
    parser.add_argument("--out", default="", help="folder for the pictures; if empty, the one run's folder or else the current one")
    parser.add_argument("--caption", default="", help="of an architecture that is no run's; if empty, the name in arch")
    args = parser.parse_args()
    if args.report and args.format != "png":
        raise UserError("--report embeds PNG: leave --format out")

    if len(args.what) > 1:
        runs = [history.read(folder) for folder in args.what]
        files, folder = picture_runs(runs, args.format), "."
        table = compare.table(runs)
        page = report.of_runs(runs, table, files) if args.report else None
        files["comparison.md"] = compare.markdown(table)
        print(compare.text(table))
    elif history.is_run(args.what[0]):
        run = history.read(args.what[0])
        files, folder = picture_run(run, args.format), args.what[0]
        page = report.of_run(run, files) if args.report else None
    elif args.report:
        raise UserError(f"{args.what[0]} is not the folder of a run: there is nothing to report on")
    else:
        architecture, page = Architecture.read(args.what[0]), None
        name, folder = _name_and_folder(args.what[0])
        files = picture_architecture(architecture, args.caption or name, args.format)
    if page is not None:
        files["report.html"] = page
    for path in drawing.write(files, args.out or folder):
        print(errors.printable(str(path)))


if __name__ == "__main__":
    cli.run(main)
