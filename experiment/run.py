"""The folder of one run: log, configuration, metrics, architecture, weights and checkpoints.

Also stopping and resuming a run.
"""

from __future__ import annotations

import argparse
import copy
import functools
import io
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import filelock
import msgspec
import numpy as np
import torch
import torchvision
from torch import nn

from experiment import checkpoint, cli, distributed, files
from experiment.console import Console, Lines, reporter
from experiment.errors import UserError, shorten
from genotypes import PRIMITIVES

# Signals that stop a run: from a scheduler, from Ctrl-C, and when the terminal is closed (not on Windows).
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


@dataclass
class Progress:
    """`step` training steps of epoch `epoch` are done, in `seconds`, and `metrics` of all complete epochs."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)  # one object per complete epoch


Callback = Callable[[int, dict[str, Any]], Any]  # (epoch, its metrics)


class Stateful(Protocol):
    """An object whose state a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Run:
    """The folder of one run. It is new or empty, or with `args.resume` that of a run to continue.

    | file | holds |
    |---|---|
    | `log.txt` | what was printed |
    | `config.json` | arguments; classes, mean and deviation of the images; versions; proposed commands |
    | `metrics.jsonl` | one JSON object per epoch |
    | `architecture.json`, `genotype.json`, `nni.json` | the latest architecture; the last two for cells only |
    | `weights.pt` | the latest weights, a plain `state_dict()` |
    | `best.pt` | the weights of the best epoch, if one is chosen |
    | `checkpoint.pt` | everything that is needed to resume; `checkpoint.prev.pt` is the previous one |

    With several processes, only the first writes and prints. All of them resume from its checkpoint.

    To be used in a `with` statement. If a file cannot be written, for example because the disk is full, the run
    continues: the log says so, and the previous version of the file stays. If the file is still missing at the end, a
    `UserError` says so.

    Args:
        stage: `search` or `eval`; the first part of the name of a new folder without `args.run_dir`.
        args: the arguments to record. `run_dir`, `save`, `resume` and `checkpoint_minutes` are read here.
        device: the device of the run.
        callbacks: functions to call after every complete epoch, with its number and its row of `metrics.jsonl`; in the
            first process only.
        record: what else to record in `config.json`.

    Raises:
        UserError: the folder is not empty, cannot be created, or is in use by another process.
    """

    def __init__(
        self,
        stage: str,
        args: argparse.Namespace,
        device: torch.device,
        callbacks: Sequence[Callback] = (),
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(args.run_dir or f"{stage}-{args.save}-{time.strftime('%Y%m%d-%H%M%S')}")
        self.progress = Progress()
        self.device = device
        self.closing = ExitStack()  # closed when the run ends, for any reason
        self.closing.callback(torch.set_num_threads, most_threads())
        self.before_saving: Callable[[], None] = lambda: None  # raises if the state is not worth saving
        self.args = args
        self._stage, self._callbacks = stage, callbacks
        self._resumed = args.resume is not None
        self._parts: dict[str, Stateful] = {}
        self._unwritten: set[str] = set()
        self._signal: int | None = None
        self._interval = 60 * args.checkpoint_minutes
        # Not from logging's registry: two runs in one process must not write into each other's log.
        self._logger = logging.Logger("darts", logging.INFO)
        self._writes = distributed.rank() == 0
        if not self._writes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in filter(Path.is_symlink, self.folder.iterdir()):
                raise UserError(
                    f"{path} is a link, and a run writes only in its folder: put a copy of the file in its place"
                )
            lock = filelock.FileLock(self.folder / ".lock")  # the system releases it when the process ends
            lock.acquire(timeout=0)
            self.closing.callback(lock.release)
            if not self._resumed and any(map(_holds_something, self.folder.iterdir())):
                raise UserError(
                    f"{self.folder} is not empty, and a run is never overwritten: --resume it, or name another "
                    f"--run_dir"
                )
            if not self._resumed:  # first: from here on, the run can be resumed
                self.write_json(
                    "config.json", {"stage": stage, "arguments": vars(args), **(record or {}), **_provenance(device)}
                )
                if self._unwritten:
                    raise UserError(
                        f"cannot write {self.folder / 'config.json'}: make room on its disk, or name another --run_dir"
                    )
            log_file = _LogFile(self.folder / "log.txt", encoding="utf-8")
        except filelock.Timeout:
            raise UserError(f"{self.folder} is in use by another process: wait for it, or stop it") from None
        except OSError as error:
            raise UserError(f"cannot use the run's folder {self.folder}: {error.strerror or error}") from None
        for handler in (Console(), log_file):
            handler.setFormatter(Lines("%(asctime)s %(message)s", datefmt="%m/%d %I:%M:%S %p"))
            self._logger.addHandler(handler)
            self.closing.callback(handler.close)
        if not self._resumed:
            self.log("args = %s", args)

    def log(self, message: str, *values: Any) -> None:
        """Prints a line and writes it to the log; `values` replace its %-placeholders."""
        if self._writes:
            self._logger.info(message, *values)

    def log_each(self, *lines: object) -> None:
        """Logs each of `lines` on a separate line."""
        for line in lines:
            self.log("%s", line)

    def propose(self, commands: dict[str, str]) -> None:
        """Logs what the user can do next, {purpose: command}, and records it in config.json."""
        for purpose, command in commands.items():
            self.log("%s: %s", purpose, command)
        if self._writes:
            self.write_json("config.json", cli.read_config(self.folder) | {"next": commands})

    def reporter(self, label: str, every: int, batches: int) -> Callable[[int, object], None]:
        """Returns a function like that of `progress.reporter`, which also stops the run after a signal."""
        log = reporter(label, every, batches, partial(self.log, "%s"))

        def report(step: int, meters: object) -> None:
            log(step, meters)
            self._stop(self._asked_to_stop())  # without a checkpoint: it was saved after the last training step

        return report

    def write_json(self, name: str, content: Any) -> None:
        """Writes `content` to the file `name`."""
        if self._writes:
            self._write(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_weights(self, model: nn.Module, name: str = "weights.pt") -> None:
        """Writes the weights to the file `name`."""
        if self._writes:
            self._write(name, checkpoint.saved(model.state_dict()))

    # ---- Resuming and stopping

    def restore(self, **parts: Stateful) -> Progress:
        """Registers the `parts` of checkpoints, and for a resumed run loads the latest checkpoint into them.

        A checkpoint also holds the progress and the random states. From here on, SIGTERM, Ctrl-C and SIGHUP end the run
        after its next step, with status 143, 130 and 129, and a line that says how to continue. The same signal again
        ends the process immediately; the last checkpoint is kept. A run outside of the main thread takes no signals.

        Args:
            parts: {name: object}, in addition to the progress and the random states.

        Returns:
            `self.progress`, which the loop updates.

        Raises:
            UserError: neither the latest checkpoint nor the previous one can be read, or they belong to another model.
        """
        self._parts = parts
        content = distributed.broadcast(self._load_checkpoint() if self._resumed and self._writes else b"")
        if content and not self._writes:
            self._take(content)
        if self._resumed:
            self._keep_threads()
        self._take_signals()
        self._started = self._saved = time.monotonic()
        return self.progress

    def complete_step(self) -> None:
        """Counts a training step. Saves if `args.checkpoint_minutes` have passed; after a signal, saves and ends."""
        self.progress.step += 1
        number = self._asked_to_stop()
        if number or time.monotonic() - self._saved >= self._interval:
            self.save()
        self._stop(number)

    def save(self) -> None:
        """Saves `checkpoint.pt`. The previous one becomes `checkpoint.prev.pt`."""
        if not self._writes:
            return
        self.before_saving()
        now = time.monotonic()
        self.progress.seconds += now - self._started
        self._started = self._saved = now
        state = {
            "progress": asdict(self.progress),
            "random": checkpoint.random_states(self.device),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }
        self._write("checkpoint.pt", checkpoint.saved(state), previous="checkpoint.prev.pt")

    def complete_epoch(self, metrics: dict[str, Any]) -> None:
        """Adds the epoch's `metrics` and duration to `metrics.jsonl`, saves a checkpoint, and calls the callbacks."""
        seconds = self.progress.seconds + time.monotonic() - self._started
        progress = self.progress
        progress.metrics.append({"epoch": progress.epoch, **metrics, "seconds": seconds})
        if self._writes:
            self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in progress.metrics).encode())
        progress.epoch, progress.step = progress.epoch + 1, 0
        self._started, progress.seconds = time.monotonic(), 0.0
        self.save()
        for callback in self._callbacks if self._writes else ():
            callback(progress.epoch - 1, copy.deepcopy(progress.metrics[-1]))
        self._stop(self._asked_to_stop())

    def __enter__(self) -> Run:
        self.closing.enter_context(distributed.others())
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self.closing.__exit__(kind, *error)
        if kind is None and self._unwritten:
            raise UserError(
                f"the run is complete, but could not write {', '.join(sorted(self._unwritten))} in {self.folder}: see "
                f"the log"
            )

    def _asked_to_stop(self) -> int:
        """The number of the signal that was received, or 0.

        If one process received it, all processes stop after the same step.
        """
        return distributed.largest(self._signal or 0)

    def _stop(self, number: int) -> None:
        if number:
            self.log(
                "stopped by %s; go on with: %s",
                signal.Signals(number).name,
                cli.resume_command(self._stage, self.args, self.folder),
            )
            sys.exit(128 + number)

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():  # Python allows it only there
            return
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup makes SIGHUP ignored
                self.closing.callback(signal.signal, number, signal.signal(number, self._interrupt) or signal.SIG_DFL)

    def _interrupt(self, number: int, frame: object) -> None:
        self._signal = number
        if distributed.world_size() > 1:  # torchrun repeats signals, and kills processes that do not end
            return
        signal.signal(number, signal.SIG_IGN)  # for a moment: `timeout` signals the process and then its group
        time.sleep(0.5)
        signal.signal(number, signal.SIG_DFL)

    def _keep_threads(self) -> None:
        """Sets the number of threads with which the run began.

        Sums are split among threads, so another number rounds differently.
        """
        config = cli.read_config(self.folder)
        threads, now = config.get("threads"), torch.get_num_threads()
        comparable = self.device.type == "cpu" and config.get("processes") == distributed.world_size()
        if not comparable or threads in (None, now):
            return
        if self.args.threads is None and threads <= (os.cpu_count() or 1):
            torch.set_num_threads(threads)
            self.log(
                "going on with %d threads, as the run began: with %d, results would differ in their last digits",
                threads,
                now,
            )
        else:
            self.log(
                "warning: the run began with %s threads: with %d, results differ in their last digits", threads, now
            )

    def _load_checkpoint(self) -> bytes:
        """Loads the newest usable checkpoint, and returns the content of its file; empty if there is none yet."""
        found = [path for path in (self.folder / "checkpoint.pt", self.folder / "checkpoint.prev.pt") if path.exists()]
        if not found:
            self.log("no checkpoint yet: from the beginning")
            return b""
        reason = ""
        for path in found:
            try:
                content = path.read_bytes()
                self._take(content)
            except (OSError, ValueError) as error:
                reason = shorten(" ".join(str(error).split()), 200)
                self.log("%s cannot be used: %s", path, reason)
                continue
            self.log("going on from %s: epoch %d, step %d", path, self.progress.epoch, self.progress.step)
            return content
        raise UserError(f"no checkpoint in {self.folder} can be used ({reason}): start again with another --run_dir")

    def _take(self, content: bytes) -> None:
        """Restores the state in this checkpoint. Raises `ValueError` if it is damaged or belongs to another run."""
        state = _read_checkpoint(content)
        try:
            for name, part in self._parts.items():
                saved = state.parts[name]
                if isinstance(part, torch.optim.Optimizer):
                    checkpoint.load_optimizer(part, saved)
                else:
                    part.load_state_dict(saved)
            checkpoint.set_random_states(state.random, self.device)
        except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):  # not an error of the file
            raise
        except Exception as error:  # of many types
            raise ValueError(f"it does not fit this run: {error!r}") from None
        self.progress = state.progress

    def _write(self, name: str, content: bytes | memoryview, previous: str | None = None) -> None:
        try:
            files.write({self.folder / name: content}, previous=None if previous is None else self.folder / previous)
        except OSError as error:
            self._unwritten.add(name)
            self.log(
                "cannot write %s (%s): the file before it stays; going on", self.folder / name, error.strerror or error
            )
        else:
            self._unwritten.discard(name)


def _holds_something(path: Path) -> bool:
    """Whether a file is anything other than what a run leaves if it is killed at the very beginning."""
    return path.name != ".lock" and path.suffix != ".tmp" and not (path.name == "log.txt" and path.stat().st_size == 0)


class _LogFile(logging.FileHandler):
    """A log file. On a full disk, lines are dropped without a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@dataclass
class _Checkpoint:
    """The content of `checkpoint.pt`."""

    progress: Progress
    random: dict[str, Any]
    parts: dict[str, Any]


def _read_checkpoint(content: bytes) -> _Checkpoint:
    """The content of a checkpoint, on the CPU. Raises `ValueError` if it is damaged."""
    try:  # a damaged file may raise almost anything
        # torch.load does not verify the checksums that torch.save writes.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"{damaged} is damaged")
        return msgspec.convert(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), _Checkpoint)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


@functools.cache  # runs change it
def most_threads() -> int:
    """The number of threads that PyTorch computes with by default: OMP_NUM_THREADS, or the number of cores."""
    return torch.get_num_threads()


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that compute."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


def _provenance(device: torch.device) -> dict[str, Any]:
    return {
        "command": sys.argv,
        "commit": _commit(),
        "primitives": PRIMITIVES,
        "versions": versions(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }


def _commit() -> str | None:
    """The commit of this code, followed by "+" if files were changed; None outside a git checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
