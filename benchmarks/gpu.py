"""Measures everything that needs a GPU, with one command of at most 25 minutes.

    python benchmarks/gpu.py --out gpu --data cifar10-jpeg.tar.xz   # or a folder with train/<class>/ and test/<class>/
    python benchmarks/gpu.py --out /tmp/gpu --device cpu --tiny          # the same code on a CPU, in a minute or two

Writes `report.md` and `report.json` into the folder. Each part runs in a separate process, so a part that fails only
leaves out its own row. In this order: whether captured steps equal eager ones; time, memory, synchronisations and
operators of steps, the most important steps first; a whole first-order search; epochs of DARTS_V2 until the time is
over. If the command is run again, it skips parts whose results are in the folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import runpy
import statistics
import sys
import tarfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch
import turns
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import genotypes
import model_search
import speed
import train
import train_search
import utils
from architect import Architect
from experiment import cli, errors
from model import NetworkCIFAR
from speed import capture

KINDS = ("first order", "second order", "training")
PRECISIONS = ("float32", "bfloat16", "tf32")
WAYS = ("eager", "captured", "compiled and captured", "compiled")
TOLERANCE = 1e-9  # of captured steps in float64: the largest difference, relative to the tensor's largest value
EQUAL_STEPS = 20  # 3 with --tiny
SETTINGS = Namespace(
    hvp="finite_difference", momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3,
    grad_clip=5, auxiliary_weight=0.4, learning_rate=2**-5,
)  # fmt: skip

Result = dict[str, Any]


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description="Measure on a GPU all that only a GPU can tell.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, and of the runs")
    parser.add_argument(
        "--data", type=Path, help="CIFAR-10 as images: a folder or an archive of train/ and test/; None: digits"
    )
    parser.add_argument("--minutes", type=cli.positive_float, default=25, help="in all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny networks, few steps, nothing compiled: to test this command"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.deadline = time.monotonic() + 0.95 * 60 * args.minutes  # a part that is stopped may take a while to end
    args.out.mkdir(parents=True, exist_ok=True)
    part = partial(do, args)
    part("machine", machine)
    for kind in KINDS:
        part(f"equality, {kind}", partial(equality, kind))
    until = args.deadline - 0.55 * 60 * args.minutes  # the rest is for the search and the training
    for kind, precision, way in all_steps(args.tiny):
        part(f"step, {kind}, {precision}, {way}", partial(measure, kind, precision, way), until)
    part("images", unpack)
    part("search", search, args.deadline - 0.2 * 60 * args.minutes, grace=60)
    part("training", training, grace=60)
    print(f"{args.out / 'report.md'} is written")


def all_steps(tiny: bool) -> list[tuple[str, str, str]]:
    """(kind, precision, way) of every step, the most important first, because the time may not suffice for all.

    `KINDS`, `PRECISIONS` and `WAYS` are each sorted by importance.
    """
    choices = (KINDS, PRECISIONS, WAYS) if not tiny else (KINDS, ("bfloat16",), ("captured",))
    places = sorted(itertools.product(*(range(len(choice)) for choice in choices)), key=sum)
    return [(choices[0][kind], choices[1][precision], choices[2][way]) for kind, precision, way in places]


def do(
    args: argparse.Namespace,
    name: str,
    function: Callable[[argparse.Namespace], Result],
    until: float | None = None,
    grace: float = 0,
) -> None:
    """Runs a part in a separate process, unless its result exists already or the time is over, and rewrites the report.

    Args:
        function: the part. Its argument's `seconds` is the time that it has.
        until: when its time is over; None: at the deadline.
        grace: seconds that a part has to end by itself when its time is over. Then it is killed.
    """
    file = args.out / f"{name}.json".replace(", ", "-").replace(" ", "_")
    seconds = (until or args.deadline) - time.monotonic()
    if not file.exists() and seconds > 0:
        # Forked, so that nothing is imported again; this process itself never touches the GPU, which a fork would not
        # survive.
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        args.seconds = seconds
        process = context.Process(target=_work, args=(theirs, function, args))
        process.start()
        theirs.close()
        result: Result = {"error": f"stopped after {seconds:.0f} s"}
        try:
            if ours.poll(seconds + grace):
                result = ours.recv()
        except EOFError:
            process.join()
            result = {"error": f"its process ended with status {process.exitcode}"}
        process.join(1)
        process.kill()
        file.write_text(json.dumps({"part": name, **result}) + "\n")
        print(f"{name}: {describe(result)}", flush=True)
    results = [
        json.loads(path.read_text())
        for path in sorted(args.out.glob("*.json"), key=os.path.getmtime)
        if path.name != "report.json"
    ]
    (args.out / "report.json").write_text(json.dumps(results, indent=2) + "\n")
    (args.out / "report.md").write_text(report(results))


def _work(pipe: Any, function: Callable[[argparse.Namespace], Result], args: argparse.Namespace) -> None:
    try:
        result = function(args)
    except Exception as error:
        result = {"error": errors.shorten(f"{type(error).__name__}: {' '.join(str(error).split())}", 400)}
    pipe.send(result)
    pipe.close()
    os._exit(0)


def report(results: list[Result]) -> str:
    """The results as Markdown."""
    lines = ["# Measured by benchmarks/gpu.py", ""]
    columns = ["seconds", "peak_mib", "waits", "operators", "kernels"]
    rows = [result for result in results if result["part"].startswith("step, ")]
    for result in results:
        if result not in rows:
            lines.append(f"- {result['part']}: {describe(result)}")
    lines += ["", f"| step | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for row in rows:
        cells = [row["error"]] if "error" in row else [_number(row[column]) for column in columns]
        lines.append(f"| {row['part'].removeprefix('step, ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def describe(result: Result) -> str:
    return ", ".join(f"{key} {_number(value)}" for key, value in result.items() if key not in ("part", "all_seconds"))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- Parts


def machine(args: argparse.Namespace) -> Result:
    return {"machine": turns.machine(args.device, torch.get_num_threads()), "date": time.strftime("%Y-%m-%d")}


def make(
    kind: str,
    args: argparse.Namespace,
    *,
    captured: bool,
    compiled: bool = False,
    amp: bool = False,
    small: bool = False,
) -> Any:
    """(the model, its step without arguments) of this kind, on random images; `small`: a network for comparisons in
    float64.
    """
    torch.manual_seed(0)
    settings = Namespace(**vars(SETTINGS), amp=amp, unrolled=kind == "second order")
    channels, layers, batch_size = (16, 8, 64) if kind != "training" else (36, 20, 96)
    if small or args.tiny:
        channels, layers, batch_size = (8, 5, 16) if not args.tiny else (2, 3, 4)
    size = 8 if args.tiny else 32
    criterion, device = nn.CrossEntropyLoss(), torch.device(args.device)
    batches = [[torch.randn(batch_size, 3, size, size), torch.randint(10, (batch_size,))] for _ in range(2)]
    inputs = [tensor.to(device) for batch in (batches[:1] if kind == "training" else batches) for tensor in batch]
    model: Any
    if kind == "training":
        model = NetworkCIFAR(channels, 10, layers, True, genotypes.DARTS_V2).to(device)
        model.drop_path_prob = 0.25
        weights = list(model.parameters())
    else:
        model = model_search.Network(channels, 10, layers, criterion).to(device)
        weights = model.weight_parameters()
    model.train()
    speed.apply(model, device, amp, batch_size if compiled else None)
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    optimizer = utils.optimizer(torch.optim.SGD, weights, lr=rate, momentum=momentum, weight_decay=decay)
    if kind == "training":
        step, parts = train.training_step(model, criterion, optimizer, settings), [optimizer]
    else:
        architect = Architect(model, settings)
        step = train_search.search_step(model, architect, criterion, optimizer, settings)  # type: ignore[arg-type]
        parts = [optimizer, architect]  # type: ignore[list-item]
    if captured:
        step = capture.CapturedStep(step, model, parts, batch_size)
    return model, partial(step, *inputs)


def equality(kind: str, args: argparse.Namespace) -> Result:
    """The largest difference that capturing makes, after 20 steps in float64."""
    torch.set_default_dtype(torch.float64)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    states, steps = [], 3 if args.tiny else EQUAL_STEPS
    for captured in (False, True):
        model, step = make(kind, args, captured=captured, small=True)
        for _ in range(steps):
            step()
        states.append([tensor.double().cpu() for tensor in model.state_dict().values()])
    difference = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in zip(*states, strict=True))
    return {"steps": steps, "difference": difference, "tolerance": TOLERANCE, "equal": difference <= TOLERANCE}


def measure(kind: str, precision: str, way: str, args: argparse.Namespace) -> Result:
    """Median seconds of a step, peak memory in MiB, times that it waits for the GPU, its operators and its kernels."""
    utils.select_device(0 if args.device == "cuda" else -1, tf32=precision == "tf32")
    torch.backends.cudnn.benchmark = True
    cuda = args.device == "cuda"
    before = turns._resident_peak()
    _, step = make(kind, args, captured="captured" in way, compiled="compiled" in way, amp=precision == "bfloat16")
    seconds = []
    warm_ups, steps = (1, 2) if args.tiny else (3, 10)
    for _ in range(warm_ups + steps):
        turns._synchronize(args.device)
        start = time.perf_counter()
        step()
        turns._synchronize(args.device)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / turns.MEBIBYTE if cuda else turns._resident_peak() - before
    result = {"seconds": statistics.median(seconds[warm_ups:]), "peak_mib": peak, "all_seconds": seconds}
    result |= {"waits": _waits(step) if cuda else None, "kernels": _kernels(step) if cuda else None}
    return result | {"operators": None if "compiled" in way else _operators(step)}


def _waits(step: Callable[[], Any]) -> int:
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _kernels(step: Callable[[], Any]) -> int:
    with torch.profiler.profile() as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events() or [])


class _Counter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def _operators(step: Callable[[], Any]) -> int:
    with _Counter() as counter:
        step()
    return counter.count


def unpack(args: argparse.Namespace) -> Result:
    """Where the images are, as arguments of the scripts."""
    if args.data is None:
        return {"arguments": ["--dataset", "digits"], "images": "digits"}
    root = args.data
    if root.is_file():
        root = args.out / "images"
        with tarfile.open(args.data) as archive:
            archive.extractall(root, filter="data")
    found = next(
        (path for path in (root, *sorted(root.iterdir())) if (path / "train").is_dir() and (path / "test").is_dir()),
        None,
    )
    if found is None:
        raise errors.UserError(f"{args.data} holds no folders train and test")
    return {"arguments": ["--dataset", "folder", "--data", str(found), "--image_size", "32"], "images": args.data.name}


def search(args: argparse.Namespace) -> Result:
    """A whole search, of as many epochs, at most the paper's 50, as there is time for by the measured step."""
    epochs = 1
    if not args.tiny:
        step = _result(args, "step-first_order-float32-captured") or _result(args, "step-first_order-float32-eager")
        epochs = max(1, min(50, int(args.seconds / (1.3 * 390 * step["seconds"])))) if step else 10
    size = ["--init_channels", "2", "--layers", "3", "--batch_size", "8", "--fast_dev_run"] if args.tiny else []
    return _run("train_search.py", args, ["--epochs", str(epochs), *size], "valid_acc")


def training(args: argparse.Namespace) -> Result:
    """Epochs of DARTS_V2 by the paper's recipe, until the time is up."""
    size = ["--init_channels", "2", "--layers", "3", "--batch_size", "8", "--fast_dev_run"] if args.tiny else []
    return _run("train.py", args, ["--arch", "DARTS_V2", "--auxiliary", "--cutout", *size], "test_acc")


def _run(script: str, args: argparse.Namespace, arguments: list[str], accuracy: str) -> Result:
    """Runs a script, or goes on with it, until it ends or the time is up; what its folder says then."""
    images, folder = _result(args, "images"), args.out / Path(script).stem
    captured = _result(args, f"equality-{'first_order' if script == 'train_search.py' else 'training'}").get(
        "equal", False
    )
    arguments = [
        *images["arguments"],
        *arguments,
        *["--capture"][:captured],
        "--gpu",
        "0" if args.device == "cuda" else "-1",
    ]
    arguments += ["--workers", "2" if args.tiny else "8", *(["--compile", "no"] if args.tiny else [])]
    resumed = (folder / "config.json").exists()
    sys.argv = [script, "--resume", str(folder)] if resumed else [script, *arguments, "--run_dir", str(folder)]
    stop = multiprocessing.get_context("fork").Process(
        target=_stop_later, args=(os.getpid(), args.seconds), daemon=True
    )
    stop.start()
    status: Any = 0
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as ended:
        status = ended.code
    stop.kill()
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    result = {
        "command": " ".join(sys.argv),
        "images": images["images"],
        "captured": captured,
        "status": status,
        "epochs": len(rows),
    }
    if rows:
        result |= {
            accuracy: rows[-1][accuracy],
            "seconds of an epoch": statistics.median(row["seconds"] for row in rows),
        }
        result |= {"seconds of a step": rows[-1]["seconds_per_step"], "genotype": rows[-1].get("genotype")}
    return result


def _stop_later(process: int, seconds: float) -> None:
    """Asks a run to save and end, as Ctrl-C does."""
    time.sleep(seconds)
    os.kill(process, 15)


def _result(args: argparse.Namespace, name: str) -> Result:
    file = args.out / f"{name}.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    return {} if "error" in result else result


if __name__ == "__main__":
    cli.run(main)
