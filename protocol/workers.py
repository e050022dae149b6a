"""Runs jobs. Each job is a command line in a separate process, on this machine or, with Ray, on several.

A job that fails is repeated once. A job that was interrupted is resumed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, Protocol

import filelock

from experiment.errors import UserError, printable, shorten
from protocol.plan import Job, Plan, run_of

ROOT = Path(__file__).resolve().parent.parent
TRIES = 2


class Workers(Protocol):
    """Runs jobs, at most `slots` at a time."""

    slots: int

    def submit(self, job: Job) -> Any:
        """Starts the job and returns a handle."""

    def wait(self, handles: Sequence[Any]) -> dict[Any, str]:
        """Waits until at least one job has ended. Returns {handle: reason of the failure, or an empty string}."""


def run(plan: Plan, workers: Workers, tell: Callable[[str], None], changed: Callable[[], None]) -> None:
    """Runs all jobs of the plan. Calls `changed` after every run that ends, and `tell` with lines for the terminal."""
    tried: dict[str, int] = {}
    running: dict[Any, Job] = {}
    while True:
        busy = {job.name for job in running.values()}
        for job in plan.ready():
            if job.name not in busy and len(running) < workers.slots:
                tell(f"begins: {job.name}")
                running[workers.submit(job)] = job
        if not running:
            return
        for handle, reason in workers.wait(list(running)).items():
            job = running.pop(handle)
            tried[job.name] = tried.get(job.name, 0) + 1
            if not reason and run_of(job) is None:
                reason = f"{job.folder} does not hold a complete run"
            if not reason:
                tell(f"done: {job.name}")
            elif tried[job.name] < TRIES:
                tell(f"failed, is repeated: {job.name} ({reason})")
            else:
                tell(f"failed twice: {job.name} ({reason})")
                plan.failed.add(job.name)
            changed()


def execute(job: Job, gpu: int, threads: int | None, started: Callable[[Popen], None] = lambda process: None) -> str:
    """Runs the job's command. Returns the reason of its failure in one line, or an empty string."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    if job.folder.exists():
        # A process that an earlier protocol started may still be running: wait until it releases the folder.
        with filelock.FileLock(job.folder / ".lock"):
            pass
    script, *arguments = job.command(gpu)
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    process = Popen(
        [sys.executable, str(ROOT / script), *arguments], env=environment, stdout=DEVNULL, stderr=PIPE, text=True,
        errors="replace",
    )  # fmt: skip
    started(process)
    _, errors = process.communicate()
    if process.returncode == 0:
        return ""
    lines = errors.strip().splitlines()
    return shorten(printable(lines[-1]), 300) if lines else f"exit status {process.returncode}"


class LocalWorkers:
    """Processes on this machine: one per GPU in `gpus`, or `jobs` processes that share the cores of the CPU."""

    def __init__(self, gpus: Sequence[int], jobs: int) -> None:
        self._devices: SimpleQueue[int] = SimpleQueue()
        for gpu in gpus or [-1] * jobs:
            self._devices.put(gpu)
        self.slots = len(gpus) or jobs
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = None if gpus else max(1, cores // jobs)
        self._pool = ThreadPoolExecutor(self.slots)
        self._processes: set[Popen] = set()

    def submit(self, job: Job) -> Future[str]:
        return self._pool.submit(self._run, job)

    def wait(self, handles: Sequence[Future[str]]) -> dict[Future[str], str]:
        done, _ = wait(handles, return_when=FIRST_COMPLETED)
        return {handle: handle.result() for handle in done}

    def _run(self, job: Job) -> str:
        device = self._devices.get()
        try:
            return execute(job, device, self._threads, self._processes.add)
        finally:
            self._devices.put(device)

    def stop(self, number: int) -> None:
        """Sends a signal to every running process, and waits until all have saved a checkpoint and ended."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def local(gpus: Sequence[int], jobs: int):
    """`LocalWorkers` whose processes end with this one. After SIGTERM and Ctrl-C, each saves a checkpoint."""
    workers = LocalWorkers(gpus, jobs)

    def end(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield workers
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        workers.stop(signal.SIGTERM)


class RayWorkers:
    """Tasks of a Ray cluster, one per job. Every node needs this code and the run folders at the same paths.

    If a node is lost, Ray restarts its tasks on other nodes, and the runs continue from their last checkpoints.
    """

    def __init__(self, address: str, gpu: bool, threads: int) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--ray needs Ray: pip install -r requirements-cluster.txt") from None
        self._ray = ray
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        try:
            ray.init(
                address=None if address == "local" else address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--ray {address}: {' '.join(str(error).split())}") from None
        needs: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": threads}
        self._task = ray.remote(**needs, max_retries=5)(execute)
        self._gpu, self._threads = gpu, threads
        self.slots = 1000  # Ray queues tasks

    def submit(self, job: Job) -> Any:
        # A task sees only its own GPU, as number 0.
        return self._task.remote(job, 0 if self._gpu else -1, None if self._gpu else self._threads)

    def wait(self, handles: Sequence[Any]) -> dict[Any, str]:
        done, _ = self._ray.wait(list(handles), num_returns=1)
        results = {}
        for handle in done:
            try:
                results[handle] = self._ray.get(handle)
            except self._ray.exceptions.RayError as error:
                results[handle] = shorten(printable(" ".join(str(error).split())), 300)
        return results
