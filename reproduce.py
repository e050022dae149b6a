"""The paper's protocol as one command: searches, selection, trainings, and a table of the results with intervals.

    python reproduce.py --preset smoke --out runs/smoke                   # everything once, tiny: minutes on a CPU
    python reproduce.py --preset digits --out runs/digits --jobs 2
    python reproduce.py --preset small --data cifar10-jpeg --jobs 2       # CIFAR-10 at a scale for two CPU cores
    python reproduce.py --preset nasbench201 --benchmark nasbench201.csv --data cifar10-jpeg --jobs 2    # no trainings
    python reproduce.py --preset paper --gpus 0,1,2,3                     # the full protocol

After every run that ends, prints its time and the number of runs that are left, and writes `results.json`, `table.md`,
`report.html` into `--out`. The same command continues after an interruption. docs/protocol.md describes
the protocol.
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
from pathlib import Path

import filelock
import msgspec

from architectures.cells import Cells
from experiment import files
from experiment.errors import UserError
from nas.benchmark import Benchmark
from pictures import protocol as pictures
from protocol import results, workers
from protocol.plan import PRESETS, STAGES, Plan, configured


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(
        description="Search, select and train by the paper's protocol, with several seeds, into one table."
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="paper", help="methods, sizes and numbers of runs (docs/protocol.md)"
    )
    parser.add_argument(
        "--out", type=cli.path, help="write all runs and results to this folder; None: to protocol-<preset>"
    )
    parser.add_argument(
        "--methods", help="run these methods, such as first,second,DARTS_V2 (docs/protocol.md); None: the preset's"
    )
    parser.add_argument("--seeds", type=cli.positive_int, help="number of searches for each method; None: the preset's")
    parser.add_argument(
        "--trainings", type=cli.positive_int, help="number of trainings for each method; None: the preset's"
    )
    parser.add_argument(
        "--data",
        type=cli.path,
        default="../data",
        help="read images from this folder; small and nasbench201 need train/<class>/ and test/<class>/ in it",
    )
    parser.add_argument(
        "--config",
        help="read flags for the stages, and your own methods, from this JSON file",
    )
    parser.add_argument(
        "--gpus",
        type=gpu_numbers,
        default=[],
        help="run one job at a time on each of these GPUs, such as 0,1; without it, on the CPU",
    )
    parser.add_argument(
        "--jobs", type=cli.positive_int, default=1, help="run this many jobs at a time on the CPU; they share its cores"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run the jobs on this Ray cluster; local: start one on this machine"
    )
    parser.add_argument(
        "--benchmark",
        type=cli.path,
        metavar="FILE.csv",
        help="judge what was found by the true accuracies in this table (docs/nasbench201.md)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print all command lines and run nothing")
    parser.add_argument(
        "--collect",
        action="store_true",
        help="select architectures and write the results of the runs so far; run nothing",
    )
    return parser.parse_args()


def gpu_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    args = parse_arguments()
    plan = make_plan(args)
    table = None if args.benchmark is None else Benchmark(args.benchmark, str(plan.protocol.common.get("dataset")))
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
        keep_protocol(plan, args.preset)
        if plan.protocol.images_per_class is not None:
            copy_images(plan, Path(args.data), plan.protocol.images_per_class)
        if args.collect:
            list(plan.ready())  # selects
        else:
            work(plan, args, table)
        print(write_results(plan, args.preset, table))
    if plan.failed:
        sys.exit(1)


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan of these arguments."""
    out = Path(args.out or f"protocol-{args.preset}").absolute()
    try:
        given = msgspec.json.decode(Path(args.config).read_bytes()) if args.config is not None else {}
        protocol = configured(args.preset, given)
    except OSError as error:
        raise UserError(f"cannot read --config {args.config}: {error.strerror or error}") from None
    except msgspec.MsgspecError as error:
        raise UserError(f"--config {args.config}: {error}") from None
    protocol.seeds, protocol.trainings = args.seeds or protocol.seeds, args.trainings or protocol.trainings
    protocol.common["data"] = args.data if protocol.images_per_class is None else str(out / "images")
    names = args.methods.split(",") if args.methods else [*protocol.compare, *protocol.methods]
    methods = tuple(dict.fromkeys(name if name in protocol.methods else Cells.canonical(name) for name in names))
    for method in methods:
        protocol.method(method)
    return Plan(protocol, methods, out)


def keep_protocol(plan: Plan, preset: str) -> None:
    """Writes the protocol to its folder. Raises `UserError` if the folder holds another protocol."""
    path = plan.out / "protocol.json"
    methods = {name: plan.protocol.method(name) for name in plan.methods}
    protocol = msgspec.structs.replace(plan.protocol, methods=methods)
    now = {"preset": preset, **msgspec.json.decode(msgspec.json.encode(protocol))}
    del now["common"]["data"]  # may have moved
    if path.exists():
        before = json.loads(path.read_bytes())
        fixed = ("preset", "common", "search", "select", "train", "images_per_class")
        changed = [key for key in fixed if before.get(key) != now[key]]
        known = before.get("methods", {})
        changed += [name for name, method in now["methods"].items() if known.get(name, method) != method]
        now["methods"] = known | now["methods"]
        if changed:
            differs = f"another protocol, which differs in {', '.join(changed)}"
            raise UserError(f"{plan.out} holds the runs of {differs}: name another --out")
    files.write({path: (json.dumps(now, indent=2) + "\n").encode()})


def copy_images(plan: Plan, source: Path, counts: tuple[int, int]) -> None:
    """Copies the first images of each class, by name, from `source`: so many to train and to test on."""
    for part, count in zip(("train", "test"), counts, strict=True):
        classes = [path for path in (source / part).glob("*") if path.is_dir()]
        if not classes:
            wanted = "a folder of CIFAR-10 as images (docs/protocol.md makes one)"
            raise UserError(f"--data {source} lacks {part}/<class>/: name {wanted}")
        for folder in classes:
            target = plan.out / "images" / part / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[:count]:
                if not (target / image.name).exists():
                    shutil.copyfile(image, target / image.name)


def print_commands(plan: Plan) -> None:
    """Prints all command lines, stage by stage. Those of one stage may run in parallel."""
    if plan.protocol.images_per_class is not None:
        print("# first, --collect, which copies the images")
    titles = ("searches", "short trainings, after the searches", "trainings, after --collect")
    for stage, title in zip(STAGES, titles, strict=True):
        print(f"# {title}")
        for job in plan.all_jobs():
            if job.stage == stage:
                print(shlex.join(["python", *job.command(0)]))


def work(plan: Plan, args: argparse.Namespace, table: Benchmark | None) -> None:
    """Runs the jobs that are left."""

    def changed() -> None:
        write_results(plan, args.preset, table)

    if args.ray is not None:
        workers.run(plan, workers.on_cluster(args.ray, bool(args.gpus), args.jobs), 1000, changed)  # Ray queues tasks
        return
    with workers.local(args.gpus, args.jobs) as submit:
        workers.run(plan, submit, len(args.gpus) or args.jobs, changed)


def write_results(plan: Plan, preset: str, table: Benchmark | None) -> str:
    """Writes results, tables and page; returns the tables as Markdown."""
    found, left = results.collect(plan, preset, table), plan.left()
    tables = results.markdown(found)
    state = f"{left} runs are still to do" if left else "all runs are done"
    state += f". {', '.join(found['failed']) or 'No run'} failed."
    contents = {
        "results.json": json.dumps(found, indent=2) + "\n",
        "table.md": tables,
        "report.html": pictures.page(found, results.tables(found), state),
    }
    files.write({plan.out / name: content.encode() for name, content in contents.items()})
    return tables


if __name__ == "__main__":
    cli.run(main)
