"""The paper's protocol as one command: searches, selection, trainings, and a table of the results with intervals.

    python reproduce.py --preset smoke --out runs/smoke --yes             # everything once, tiny: minutes on a CPU
    python reproduce.py --preset digits --out runs/digits --jobs 2
    python reproduce.py --preset small --data cifar10-jpeg --jobs 2       # CIFAR-10 at a scale for two CPU cores
    python reproduce.py --preset paper --gpus 0,1,2,3                     # the full protocol

First prints a plan with the time and the disk space that it will take. After every run that ends, writes `results.json`, `table.md`,
`table.tex` and `report.html` into `--out`. The same command continues after an interruption. docs/protocol.md describes the protocol.
"""

from __future__ import annotations

from experiment import cli

if __name__ == "__main__":
    cli.end_on_ctrl_c()  # before the imports that take seconds

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

import data
from cells import Cells
from experiment import errors, files
from experiment.errors import UserError
from pictures import protocol as pictures
from protocol import results, workers
from protocol.plan import PRESETS, Job, Plan, configured, run_of


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Search, select and train by the paper's protocol, with several seeds, into one table.")
    parser.add_argument("--preset", choices=PRESETS, default="paper", help="sizes and numbers of runs")
    parser.add_argument("--out", type=cli.path, help="folder for all runs and results; None: protocol-<preset>")
    parser.add_argument("--methods", help="separated by commas; None: those of the preset")
    parser.add_argument("--seeds", type=cli.positive_int, help="searches for each method; None: the preset's")
    parser.add_argument("--trainings", type=cli.positive_int, help="trainings of each selected architecture; None: the preset's")
    parser.add_argument(
        "--data", type=cli.path, default="../data", help="folder of the images; for --preset small: with train/<class>/ and test/<class>/"
    )
    parser.add_argument("--config", help="a JSON file, or with PyYAML a YAML file, with flags for the stages and your own methods")
    parser.add_argument("--gpus", help="numbers of GPUs, separated by commas, a job on each; None: the CPU")
    parser.add_argument("--jobs", type=cli.positive_int, default=1, help="runs at a time on the CPU; they share its cores")
    parser.add_argument("--ray", metavar="ADDRESS", help="run the jobs by Ray; local starts a cluster on this machine")
    parser.add_argument("--yes", action="store_true", help="begin without asking")
    parser.add_argument("--dry_run", action="store_true", help="print all command lines and run nothing")
    parser.add_argument("--collect", action="store_true", help="select architectures and write the results of the runs so far; run nothing")
    args = parser.parse_args()
    try:
        args.gpus = [int(number) for number in args.gpus.split(",")] if args.gpus else []
    except ValueError:
        raise UserError(f"--gpus {args.gpus}: give numbers, separated by commas") from None
    return args


def main() -> None:
    args = parse_arguments()
    plan = make_plan(args)
    if args.dry_run:
        print_commands(plan)
        return
    plan.out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(plan.out / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{plan.out} is in use by another process: wait for it, or stop it") from None
    with lock:
        keep_protocol(plan, args)
        if plan.protocol.images_per_class is not None:
            copy_images(plan, Path(args.data))
        if args.collect:
            list(plan.ready())  # selects
        else:
            if not args.yes:
                ask(plan, args)
            work(plan, args)
        print(write_results(plan, args.preset))
    if plan.failed:
        sys.exit(1)


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan of these arguments.

    Raises:
        UserError: an unknown method, or a configuration file that cannot be read or is not valid.
    """
    protocol = PRESETS[args.preset]
    if args.config is not None:
        protocol = configured(protocol, read_config(args.config), args.config)
    counts = {name: getattr(args, name) for name in ("seeds", "trainings") if getattr(args, name) is not None}
    out = Path(args.out or f"protocol-{args.preset}").absolute()
    images = args.data if protocol.images_per_class is None else str(out / "images")
    protocol = replace(protocol, **counts, common={**protocol.common, "data": images})
    given = args.methods.split(",") if args.methods else protocol.methods
    methods = tuple(dict.fromkeys(name if name in protocol.own else Cells.canonical(name) for name in given))
    for method in methods:
        protocol.method(method)
    return Plan(protocol, methods, out)


def read_config(path: str) -> Any:
    """The decoded content of a JSON or YAML file."""
    try:
        content = Path(path).read_bytes()
        if not path.endswith((".yaml", ".yml")):
            return files.parse_json(content)
        try:
            import yaml  # type: ignore[import-untyped]
        except ImportError:
            raise UserError(f"--config {path} needs PyYAML (pip install pyyaml); a JSON file does not") from None
        try:
            return yaml.safe_load(content)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror or error}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--config {path}: {error}") from None


def keep_protocol(plan: Plan, args: argparse.Namespace) -> None:
    """Writes the protocol to its folder. Raises `UserError` if the folder holds another protocol."""
    path = plan.out / "protocol.json"
    recorded = {"preset": args.preset, **{key: value for key, value in vars(plan.protocol).items() if key not in ("methods", "own")}}
    recorded["common"] = {key: value for key, value in plan.protocol.common.items() if key != "data"}  # may have moved
    recorded["own"] = {name: vars(method) for name, method in plan.protocol.own.items()}
    now = json.loads(json.dumps(recorded))
    if not path.exists():
        files.write({path: (json.dumps(now, indent=2) + "\n").encode()})
        return
    try:
        before = files.parse_json(path.read_bytes())
        if not isinstance(before, dict):
            raise ValueError("it does not hold an object")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): name another --out") from None
    growing = ("seeds", "trainings", "own")  # may differ from before
    changed = [key for key in now if key not in growing and before.get(key) != now[key]]
    if changed:
        raise UserError(f"{plan.out} holds the runs of another protocol, which differs in {', '.join(changed)}: name another --out")
    files.write({path: (json.dumps(now, indent=2) + "\n").encode()})


def copy_images(plan: Plan, source: Path) -> None:
    """Copies the plan's subset of the images in `source` to its folder: the first images of each class, by name."""
    assert plan.protocol.images_per_class is not None
    target = plan.out / "images"
    for part, count in zip(("train", "test"), plan.protocol.images_per_class, strict=True):
        classes = sorted(path for path in (source / part).glob("*") if path.is_dir())
        if not classes:
            raise UserError(f"--data {source} lacks {part}/<class>/: name a folder of CIFAR-10 as images (docs/protocol.md makes one)")
        for folder in classes:
            (target / part / folder.name).mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[:count]:
                copy = target / part / folder.name / image.name
                if not copy.exists():
                    shutil.copyfile(image, copy)


def print_commands(plan: Plan) -> None:
    """Prints all command lines in an order in which they can run. Those of one stage may run in parallel."""
    jobs = plan.all_jobs()
    if plan.protocol.images_per_class is not None:
        print("# first, --collect, which copies the images")
    for stage, title in (
        ("search", "searches"),
        ("select", "short trainings, after the searches"),
        ("train", "trainings, after --collect"),
    ):
        print(f"# {title}")
        for job in jobs:
            if job.stage == stage:
                print(shlex.join(["python", *job.command(0)]))


def ask(plan: Plan, args: argparse.Namespace) -> None:
    """Prints what is left to run, with an estimate of time and disk space, and asks whether to begin."""
    left = [job for job in plan.all_jobs() if run_of(job) is None]
    if not left:
        return
    for method in plan.methods:
        counts = {stage: sum(job.method == method and job.stage == stage for job in left) for stage in ("search", "select", "train")}
        planned = f"{counts['search']} searches, {counts['select']} short trainings, {counts['train']} trainings"
        print(f"{plan.protocol.method(method).title}: {planned}")
    print("measuring a few steps of each kind of run ...", flush=True)
    slots = len(args.gpus) or args.jobs
    seconds, size = estimate(plan, left, args)
    print(f"{len(left)} runs: about {errors.duration(seconds / slots)} with {slots} at a time, and {size / 1e6:,.0f} MB on the disk")
    if not sys.stdin.isatty():
        raise UserError("add --yes to begin: there is no terminal to ask")
    if input("Begin? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("not begun")


def estimate(plan: Plan, jobs: list[Job], args: argparse.Namespace) -> tuple[float, float]:
    """(seconds, bytes) that these jobs will take, measured on two steps and two batches of evaluation of the first job of each kind."""
    images = data.load(data.Options.of(argparse.Namespace(**plan.protocol.common)))
    with workers.local(args.gpus[:1], args.jobs) as pool:
        return _measured(jobs, images, pool)


def _measured(jobs: list[Job], images: data.ImageData, pool: workers.LocalWorkers) -> tuple[float, float]:
    kinds: dict[tuple[str, str], tuple[float, float]] = {}
    total = [0.0, 0.0]
    for job in jobs:
        kind = (job.method if job.stage == "search" else "", job.stage)
        if kind not in kinds:
            with tempfile.TemporaryDirectory() as folder:
                arch = {} if job.stage == "search" else {"arch": job.flags["arch"] if job.flags["arch"] in Cells.names() else "DARTS_V2"}
                probe = replace(job, folder=Path(folder) / "probe", flags={**job.flags, **arch, "fast_dev_run": True})
                handle = pool.submit(probe)
                if reason := pool.wait([handle])[handle]:
                    raise UserError(f"{job.name} does not run: {reason}")
                run = run_of(probe)
                assert run is not None  # the command succeeded
                size = float(sum(path.stat().st_size for path in probe.folder.rglob("*") if path.is_file()))
            [row] = run.epochs
            arguments = run.arguments
            batch = arguments["batch_size"]
            count, measured = len(images.train), len(images.test)
            if job.stage == "search":
                count, measured = int(count * arguments["train_portion"]), count - int(count * arguments["train_portion"])
            steps, evaluations = max(1, count // batch), max(1, measured // batch)
            evaluation = max(0.0, row["seconds"] - 2 * row["seconds_per_step"]) / 2
            epochs = 1 if job.flags.get("fast_dev_run") else arguments["epochs"]
            if job.flags.get("fast_dev_run"):
                steps = evaluations = 2
            kinds[kind] = epochs * (steps * row["seconds_per_step"] + evaluations * evaluation), size
        total = [sum(pair) for pair in zip(total, kinds[kind], strict=True)]
    return total[0], total[1]


def work(plan: Plan, args: argparse.Namespace) -> None:
    """Runs the jobs that are left."""

    def changed() -> None:
        write_results(plan, args.preset)

    def tell(line: str) -> None:
        print(errors.printable(line), flush=True)

    if args.ray is not None:
        workers.run(plan, workers.RayWorkers(args.ray, bool(args.gpus), max(1, args.jobs)), tell, changed)
        return
    with workers.local(args.gpus, args.jobs) as pool:
        workers.run(plan, pool, tell, changed)


def write_results(plan: Plan, preset: str) -> str:
    """Writes results, tables and page; returns the table as Markdown."""
    found = results.collect(plan, preset)
    left = sum(not plan.is_over(job) for job in plan.all_jobs())
    state = f"{left} runs are still to do" if left else "all runs are done"
    tables = [
        ("Methods", results.COLUMNS, results.rows(found)),
        ("Paired comparisons, by the trainings' seeds", results.COMPARISON_COLUMNS, results.comparison_rows(found)),
        ("Distances between the cells of two seeds", ("method", "seeds", "edges that differ"), distance_rows(found)),
    ]
    contents = {
        "results.json": (json.dumps(found, indent=2) + "\n").encode(),
        "table.md": results.markdown(found),
        "table.tex": results.tex(found),
        "report.html": pictures.page(found, tables, f"{state}. {', '.join(found['failed']) or 'No run'} failed."),
    }
    files.write({plan.out / name: content for name, content in contents.items()})
    return contents["table.md"].decode()


def distance_rows(found: results.Results) -> list[list[str]]:
    return [
        [method["title"], f"{a} and {b}", "-" if distance is None else str(distance)]
        for name, method in found["methods"].items()
        for a, b, distance in results.distances(found, name)
    ]


if __name__ == "__main__":
    cli.run(main)
