"""Compares ways to compute the same step. Each runs in a separate process; the processes take turns on one machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from experiment import cli
from experiment.errors import UserError

MEBIBYTE = 2**20


def add_arguments(parser: cli.Parser, steps: int) -> None:
    """The arguments that all comparisons have; `steps` is the default of `--steps`."""
    parser.add_argument("--steps", type=cli.positive_int, default=steps, help="measured, after one that is not")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=cli.positive_int, default=2, help="on the CPU")
    parser.add_argument("--json", type=cli.output_file, help="file to write the figures to")


def compare(
    makers: Mapping[str, Callable[[], Callable[[], None]]],
    steps: int,
    device: str,
    threads: int,
    preloaded: Mapping[str, str] | None = None,
) -> dict[str, dict[str, float]]:
    """Seconds per step (the median of `steps`, after one that is not counted) and peak memory in MiB, by name.

    Args:
        makers: for each way a function that a process can be sent, which builds what it needs and returns its step.
        device: "cpu" or "cuda".
        threads: each process's threads on the CPU; the other process sleeps in the meantime.
        preloaded: {way: a library that its process loads before all others, with `LD_PRELOAD`}.

    The peak on the CPU is what the process's resident memory grew by since before the network was built; on a GPU what
    PyTorch allocated.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, maker in makers.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, maker, device, threads), daemon=True)
        with mock.patch.dict(os.environ, {"LD_PRELOAD": preloaded[name]} if preloaded and name in preloaded else {}):
            process.start()
        theirs.close()
        workers[name] = (process, ours)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(1 + steps):
        for name, (_, pipe) in workers.items():
            pipe.send("step")
            seconds[name].append(pipe.recv())
    results = {}
    for name, (process, pipe) in workers.items():
        pipe.send("stop")
        results[name] = {
            "seconds": statistics.median(seconds[name][1:]),
            "peak_mib": pipe.recv(),
            "all_seconds": seconds[name],
        }
        process.join()
    return results


def _work(pipe: Any, maker: Callable[[], Callable[[], None]], device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    before = _resident_peak()
    step = maker()
    while pipe.recv() == "step":
        _synchronize(device)
        start = time.perf_counter()
        step()
        _synchronize(device)
        pipe.send(time.perf_counter() - start)
    pipe.send(torch.cuda.max_memory_allocated() / MEBIBYTE if device == "cuda" else _resident_peak() - before)


def _resident_peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MEBIBYTE if sys.platform == "darwin" else 1024)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def machine(device: str, threads: int) -> str:
    """A description of the machine. Raises `UserError` if the device does not exist."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; leave it out to measure on the CPU")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {threads} threads"
    return f"{name}, PyTorch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def header(ways: Iterable[str]) -> str:
    """The table's first two lines; the first of the `ways` is what the others are compared with."""
    first, *others = ways
    columns = ["step", "batch", f"{first} s", f"{first} MiB"]
    columns += [f"{way} {column}" for way in others for column in ("s", "times as fast", "memory")]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def row(step: str, batch: int, results: dict[str, dict[str, float]]) -> str:
    """A line of the table: of the first way seconds and MiB, of the others how many times as fast, and their share of
    its memory.
    """
    first, *others = results.values()
    cells = [step, str(batch), f"{first['seconds']:.2f}", f"{first['peak_mib']:.0f}"]
    for other in others:
        cells += [
            f"{other['seconds']:.2f}",
            f"{first['seconds'] / other['seconds']:.2f}",
            f"{other['peak_mib'] / first['peak_mib']:.2f}",
        ]
    return f"| {' | '.join(cells)} |"


def save(path: str | None, content: Any) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(content, indent=2) + "\n")
