"""Compares runs: a table of their results, and a picture of their final cells."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence

import graphviz

from experiment import cli
from experiment.errors import printable
from pictures import drawing
from pictures.history import History

UNKNOWN = "-"


def names(runs: Sequence[History]) -> list[str]:
    """The names of the folders; if two are equal, the paths of all from the folder that they share."""
    folders = [run.folder.resolve() for run in runs]
    distinct = len({folder.name for folder in folders}) == len(folders)
    shared = os.path.commonpath(folders)
    return [folder.name if distinct else os.path.relpath(folder, shared) for folder in folders]


def table(runs: Sequence[History]) -> list[dict[str, str]]:
    """A row for each run. Distances are to the first run."""
    first = runs[0].architecture
    of_text = any(run.series("train_ppl")[0] for run in runs)
    columns = [(f"{phase} acc, %", f"{phase}_acc") for phase in ("train", "valid", "test")]
    columns += [(f"{phase} ppl", f"{phase}_ppl") for phase in ("train", "valid") if of_text]
    rows = []
    for run, name in zip(runs, names(runs), strict=True):
        architecture = run.architecture
        skips = {} if architecture is None else architecture.skips()
        distance = None if architecture is None or first is None else architecture.distance(first)
        parameters, multiply_adds = size(run)
        rows.append(
            {
                "run": name,
                "space": run.space,
                "dataset": str(run.arguments.get("dataset", UNKNOWN)),
                "seed": str(run.arguments.get("seed", UNKNOWN)),
                "epochs": str(len(run.epochs)),
                "distance": number(distance, "d"),
                "skips": " + ".join(map(str, skips.values())) or UNKNOWN,
                "params, M": number(parameters, ".3f"),
                "mult-adds, M": number(multiply_adds, ".1f"),
                **{title: number(next(reversed(run.series(key)[1]), None), ".2f") for title, key in columns},
            }
        )
    return rows


def number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)


def size(run: History) -> tuple[float | None, float | None]:
    """Millions of parameters, and of multiply-adds per image. For a search, of the network that the paper would train.

    Both are None if they are unknown, as in a space in a file: building its network runs the file, and only the run's
    folder names it.
    """
    import torch

    import utils
    from architectures import networks

    given = {name: run.arguments.get(name) for name in ("space_arg", "init_channels", "layers", "network")}
    channels, pixels = 1 if run.arguments.get("channels") == 1 else 3, run.arguments.get("image_size")
    args = Namespace(**given, space=run.space, channels=channels, image_size=pixels, auxiliary=False)
    if not run.trains:
        args.init_channels = args.layers = None
        args.network = "imagenet" if run.arguments.get("stem") == "imagenet" else "auto"
    if run.architecture is None or cli.runs_code(args.space):
        return None, None
    try:
        networks.set_sizes(args)
        networks.choose_network(args)
        with torch.device("meta"):  # shapes only
            model = networks.build_discrete(args, len(run.config["classes"]), run.architecture)
            return utils.count_parameters_in_MB(model), utils.count_multiply_adds(model, args.image_size, args.channels)
    except Exception:  # a folder may say anything, and a size is only a cell of a table
        return None, None


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, which is also read in a terminal."""
    lines = [[printable(cell).replace("|", r"\|") for cell in line] for line in (columns, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    padded = ([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])] for first, *others in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def cells(runs: Sequence[History]) -> bytes | None:
    """The final architectures as one PNG, from top to bottom, first the normal cells of all runs; None if there are
    none.
    """
    kinds: dict[str, list[graphviz.Digraph]] = {}
    for run, name in zip(runs, names(runs), strict=True):
        if (architecture := run.architecture) is not None:
            for kind, graph in drawing.graphs(architecture, name).items():
                kinds.setdefault(kind, []).append(graph)
    graphs = [graph for same in kinds.values() for graph in same]
    return drawing.png(drawing.stacked(graphs, dpi=90)) if graphs else None
