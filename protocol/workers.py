"""Running jobs: each is an ordinary command line in a process of its own, on this machine or, by Ray, on several.

A job that fails is tried again once. A job that was interrupted goes on: its command resumes the run.
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
from protocol.plan import Job, Plan

ROOT = Path(__file__).resolve().parent.parent
TRIES = 2


class Workers(Protocol):
    """Where jobs run: `slots` at a time."""

    slots: int

    def submit(self, job: Job) -> Any:
        """Starts the job; a handle of it."""

    def wait(self, handles: Sequence[Any]) -> dict[Any, str]:
        """Waits until at least one has ended: {handle: why it failed, or nothing}."""


def run(plan: Plan, workers: Workers, tell: Callable[[str], None], changed: Callable[[], None]) -> None:
    """Does everything that the plan asks for; `changed` is called after every run that ends."""
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
            if not reason:
                tell(f"done: {job.name}")
            elif tried[job.name] < TRIES:
                tell(f"failed, and is tried again: {job.name} ({reason})")
            else:
                tell(f"failed for good: {job.name} ({reason})")
                plan.failed.add(job.name)
            changed()


def execute(job: Job, gpu: int, threads: int | None, started: Callable[[Popen], None] = lambda process: None) -> str:
    """Runs the job's command to its end. Why it failed, in one line; nothing if it did not."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    if job.folder.exists():
        # What an earlier protocol started and could not stop may still be working: the folder is its until it ends.
        with filelock.FileLock(job.folder / ".lock"):
            pass
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    process = Popen(
        [sys.executable, *job.command(gpu)], cwd=ROOT, env=environment, stdout=DEVNULL, stderr=PIPE, text=True,
        errors="replace",
    )  # fmt: skip
    started(process)
    _, errors = process.communicate()
    if process.returncode == 0:
        return ""
    lines = errors.strip().splitlines()
    return shorten(printable(lines[-1]), 300) if lines else f"exit status {process.returncode}"


class LocalWorkers:
    """Processes on this machine: one for each of `gpus`, or on the CPU `jobs` that share its cores."""

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
        """Passes a signal on to every process that still runs, and waits for all of them: each saves a checkpoint."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def local(gpus: Sequence[int], jobs: int):
    """`LocalWorkers` that end with this process: SIGTERM and Ctrl-C let each save a checkpoint."""
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
    """Tasks of a Ray cluster, one for each job. Every node needs this code and the runs' folders at the same paths.

    A lost node costs a run's steps since its last checkpoint: Ray starts the task again elsewhere, and the run goes on.
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
        self._task = ray.remote(**needs, max_retries=5)(_task)
        self._gpu, self._threads = gpu, threads
        self.slots = 1000  # Ray queues what does not fit

    def submit(self, job: Job) -> Any:
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


def _task(job: Job, gpu: int, threads: int | None) -> str:
    """As Ray runs it. It sees only its own GPU, which is therefore number 0."""
    return execute(job, gpu, threads)
