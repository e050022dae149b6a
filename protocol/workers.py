"""Runs jobs. Each job is a command line in a separate process, on this machine or, with Ray, on several.

A job that fails is repeated once. A job that was interrupted is resumed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from subprocess import DEVNULL, PIPE, Popen

import filelock

from experiment.errors import UserError, duration, printable, shorten
from protocol.plan import Job, Plan

ROOT = Path(__file__).resolve().parent.parent

Submit = Callable[[Job], "Future[str]"]  # starts a job; the result is what `execute` returns


def run(plan: Plan, submit: Submit, slots: int, changed: Callable[[], object]) -> None:
    """Runs all jobs of the plan, at most `slots` at a time. Calls `changed` after every run that ends."""
    failed_once: set[str] = set()
    running: dict[Future[str], tuple[Job, float]] = {}
    while True:
        busy = {job.name for job, _ in running.values()}
        for job in sorted(plan.ready(), key=lambda job: job.index):  # of every method one before the second of any
            if job.name not in busy and len(running) < slots:
                _tell(f"begins: {job.name}")
                running[submit(job)] = job, time.monotonic()
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job, begun = running.pop(future)
            reason = str(future.exception() or future.result())
            if not reason and job.run() is None:
                reason = f"{job.folder} does not hold a complete run"
            if not reason:
                _tell(f"done: {job.name}, in {duration(time.monotonic() - begun)}; {plan.left()} runs are left")
            elif job.name not in failed_once:
                _tell(f"failed, is repeated: {job.name} ({shorten(reason, 300)})")
                failed_once.add(job.name)
            else:
                _tell(f"failed twice: {job.name} ({shorten(reason, 300)})")
                plan.failed.add(job.name)
            changed()


def _tell(line: str) -> None:
    print(printable(" ".join(line.split())), flush=True)


def execute(job: Job, gpu: int, threads: int | None, processes: set[Popen] | None = None) -> str:
    """Runs the job's command. Returns the reason of its failure in one line, or an empty string.

    While the process runs, it is in `processes`.
    """
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    if job.folder.exists():
        # A process that an earlier protocol started may still be running: wait until it releases the folder.
        with filelock.FileLock(job.folder / ".lock"):
            pass
    script, *arguments = job.command(gpu)
    command = [sys.executable, str(ROOT / script), *arguments]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    # In a group of its own: Ctrl-C in a terminal reaches this process alone, which then sends each job one signal.
    process = Popen(command, env=environment, stdout=DEVNULL, stderr=PIPE, text=True, errors="replace", process_group=0)
    if processes is not None:
        processes.add(process)
    _, errors = process.communicate()
    lines = errors.strip().splitlines()
    return (lines[-1] if lines else f"exit status {process.returncode}") if process.returncode else ""


@contextmanager
def local(gpus: Sequence[int], jobs: int) -> Iterator[Submit]:
    """Processes on this machine: one per GPU in `gpus`, or `jobs` processes that share the cores of the CPU.

    They end with this process. After SIGTERM and Ctrl-C, each saves a checkpoint.
    """
    devices: SimpleQueue[int] = SimpleQueue()
    for gpu in gpus or [-1] * jobs:
        devices.put(gpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = None if gpus else max(1, cores // jobs)
    processes: set[Popen] = set()
    pool = ThreadPoolExecutor(devices.qsize())

    def work(job: Job) -> str:
        device = devices.get()
        try:
            return execute(job, device, threads, processes)
        finally:
            devices.put(device)

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda job: pool.submit(work, job)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        pool.shutdown(cancel_futures=True)


def on_cluster(address: str, gpu: bool, threads: int) -> Submit:
    """Tasks of a Ray cluster, one per job. Every node needs this code and the run folders at the same paths.

    If a node is lost, Ray restarts its tasks on other nodes, and the runs continue from their last checkpoints.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: pip install -r requirements-cluster.txt") from None
    try:
        ray.init(
            address=None if address == "local" else address,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--ray {address}: {error}") from None
    task = ray.remote(**({"num_gpus": 1} if gpu else {"num_cpus": threads}), max_retries=5)(execute)
    # A task sees only its own GPU, as number 0.
    return lambda job: task.remote(job, 0 if gpu else -1, None if gpu else threads).future()
