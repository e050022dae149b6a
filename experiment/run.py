"""The folder of one run: log, configuration, metrics, architecture, weights and checkpoints; stopping and resuming."""

from __future__ import annotations

import argparse
import copy
import functools
import io
import json
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import filelock
import msgspec
import numpy as np
import torch
import torchvision
from torch import nn

from experiment import cli, console, distributed, files
from experiment.errors import UserError, printable, shorten
from genotypes import PRIMITIVES

# Signals that stop a run: from a scheduler, from Ctrl-C, and when the terminal is closed (not on Windows).
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


@dataclass
class Progress:
    """`step` training steps of epoch `epoch` are done, in `seconds`, and `metrics` of all complete epochs."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)


Callback = Callable[[int, dict[str, Any]], Any]  # (epoch, its metrics)


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
    continues, and the previous version of the file stays. If it is still missing at the end, a `UserError` says so.

    Args:
        stage: a key of `cli.SCRIPTS`; the first part of the name of a new folder without `args.run_dir`.
        callbacks: called after every complete epoch, in the first process only.
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
        self.device, self.args = device, args
        self.closing = ExitStack()  # closed when the run ends, for any reason
        self.closing.callback(torch.set_num_threads, most_threads())
        self.before_saving: Callable[[], None] = lambda: None  # raises if the state is not worth saving
        self._stage, self._callbacks = stage, callbacks
        self._parts: dict[str, Any] = {}
        self._unwritten: set[str] = set()
        self._signal = 0  # the one that was received
        self._writes = distributed.rank() == 0
        self._log_file: TextIO | None = None
        if self._writes:
            try:
                with self.closing:  # already, if the folder cannot be used
                    self._open({"stage": stage, "arguments": vars(args), **(record or {}), **_provenance(device)})
                    self.closing = self.closing.pop_all()
            except filelock.Timeout:
                raise UserError(f"{self.folder} is in use by another process: wait for it, or stop it") from None
            except OSError as error:
                raise UserError(f"cannot use the run's folder {self.folder}: {error.strerror or error}") from None

    def _open(self, config: dict[str, Any]) -> None:
        while self.args.run_dir is None and self.folder.exists():  # of a run that began in the same second
            self.folder = Path(f"{self.folder}-2")
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in filter(Path.is_symlink, self.folder.iterdir()):
            raise UserError(
                f"{path} is a link, and a run writes only in its folder: put a copy of the file in its place"
            )
        lock = filelock.FileLock(self.folder / ".lock")  # the system releases it when the process ends
        lock.acquire(timeout=0)
        self.closing.callback(lock.release)
        if self.args.resume is None:
            if any(map(_holds_something, self.folder.iterdir())):
                what_to_do = "--resume it, or name another --run_dir"
                raise UserError(f"{self.folder} is not empty, and a run is never overwritten: {what_to_do}")
            self.write_json("config.json", config)  # first: from here on, the run can be resumed
            if self._unwritten:
                raise UserError(
                    f"cannot write {self.folder / 'config.json'}: make room on its disk, or name another --run_dir"
                )
        self._log_file = open(self.folder / "log.txt", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        if self.args.resume is None:
            self.log("args = %s", self.args)

    def log(self, message: str, *values: Any) -> None:
        """Prints a line and writes it to the log; `values` replace its %-placeholders."""
        if not self._writes:
            return
        text = time.strftime("%m/%d %I:%M:%S %p ") + (message % values if values else message)
        text = "\n".join(map(printable, text.split("\n")))
        console.show(text)
        if self._log_file is not None:
            with suppress(OSError):  # on a full disk
                self._log_file.write(text + "\n")

    def log_each(self, *lines: object) -> None:
        """Logs each of `lines` on a separate line."""
        for line in lines:
            self.log("%s", line)

    def propose(self, commands: dict[str, str]) -> None:
        """Logs what the user can do next, {purpose: command}, and records it in config.json."""
        self.log_each(*(f"{purpose}: {command}" for purpose, command in commands.items()))
        if self._writes:
            self.write_json("config.json", cli.read_config(self.folder) | {"next": commands})

    def reporter(self, label: str, every: int, batches: int) -> Callable[[int, object], None]:
        """As `console.reporter`; a signal stops the run."""
        log = console.reporter(label, every, batches, partial(self.log, "%s"))

        def report(step: int, meters: object) -> None:
            log(step, meters)
            self._stop_if_asked()  # without a checkpoint: it was saved after the last training step

        return report

    def write_json(self, name: str, content: Any) -> None:
        """Writes `content` to the file `name`."""
        self._write(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_weights(self, model: nn.Module, name: str = "weights.pt") -> None:
        """Writes the weights to the file `name`."""
        if self._writes:
            self._write(name, _saved(model.state_dict()))

    # ---- Resuming and stopping

    def restore(self, **parts: Any) -> Progress:
        """Registers the `parts` of checkpoints, and for a resumed run loads the latest checkpoint into them.

        From here on, SIGTERM, Ctrl-C and SIGHUP end the run after its next step, with status 143, 130 and 129, and a
        line that says how to continue. The same signal again ends the process at once, with the last checkpoint. A run
        outside of the main thread takes no signals.

        Raises:
            UserError: neither the latest checkpoint nor the previous one can be read, or they belong to another model.
        """
        self._parts = parts
        if self.args.resume is not None:
            content = distributed.broadcast(self._load_checkpoint() if self._writes else b"")
            if content and not self._writes:
                self._take(content)
            self._keep_threads()
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            for number in STOPPING:
                if (before := signal.getsignal(number)) != signal.SIG_IGN:  # nohup makes SIGHUP ignored
                    signal.signal(number, self._interrupt)
                    self.closing.callback(signal.signal, number, before or signal.SIG_DFL)
        self._started = self._saved = time.monotonic()
        return self.progress

    def complete_step(self) -> None:
        """Counts a training step. Saves if `args.checkpoint_minutes` have passed; after a signal, saves and ends."""
        self.progress.step += 1
        self._stop_if_asked(self.save)
        if time.monotonic() - self._saved >= 60 * self.args.checkpoint_minutes:
            self.save()

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
            "random": random_states(self.device),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }
        self._write("checkpoint.pt", _saved(state), previous="checkpoint.prev.pt")

    def complete_epoch(self, metrics: dict[str, Any]) -> None:
        """Adds the epoch's `metrics` and duration to `metrics.jsonl`, saves a checkpoint, and calls the callbacks."""
        progress = self.progress
        seconds = progress.seconds + time.monotonic() - self._started
        progress.metrics.append({"epoch": progress.epoch, **metrics, "seconds": seconds})
        self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in progress.metrics).encode())
        progress.epoch, progress.step = progress.epoch + 1, 0
        self._started, progress.seconds = time.monotonic(), 0.0
        self.save()
        for callback in self._callbacks if self._writes else ():
            callback(progress.epoch - 1, copy.deepcopy(progress.metrics[-1]))
        self._stop_if_asked()

    def __enter__(self) -> Run:
        self.closing.enter_context(distributed.others())
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self.closing.__exit__(kind, *error)
        if self._log_file is not None:
            with suppress(OSError):
                self._log_file.close()
        if kind is None and self._unwritten:
            names = ", ".join(sorted(self._unwritten))
            raise UserError(f"the run is complete, but could not write {names} in {self.folder}: see the log")

    def _stop_if_asked(self, save: Callable[[], None] = lambda: None) -> None:
        """Ends the run after a signal to any of the processes, all of them after the same step. Calls `save` before."""
        if number := distributed.largest(self._signal):
            save()
            resume = cli.resume_command(self._stage, self.args, self.folder)
            self.log("stopped by %s; go on with: %s", signal.Signals(number).name, resume)
            sys.exit(128 + number)

    def _interrupt(self, number: int, frame: object) -> None:
        self._signal = number
        if distributed.world_size() > 1:  # torchrun repeats signals, and kills processes that do not end
            return
        signal.signal(number, signal.SIG_IGN)  # for a moment: `timeout` signals the process and then its group
        time.sleep(0.5)
        signal.signal(number, signal.SIG_DFL)

    def _keep_threads(self) -> None:
        """Sets the number of threads with which the run began: sums are split among them, and another number rounds
        differently."""
        config, now = cli.read_config(self.folder), torch.get_num_threads()
        threads = config.get("threads", now)
        comparable = self.device.type == "cpu" and config.get("processes") == distributed.world_size()
        if not comparable or threads == now:
            return
        if self.args.threads is None and threads <= (os.cpu_count() or 1):
            torch.set_num_threads(threads)
            words = "going on with %d threads, as the run began: with %d, results would differ in their last digits"
        else:
            words = "warning: the run began with %s threads: with %d, results differ in their last digits"
        self.log(words, threads, now)

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
        try:
            # torch.load does not verify the checksums that torch.save writes.
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"{damaged} is damaged")
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            state = msgspec.convert(saved, _Checkpoint)
            for name, part in self._parts.items():
                part.load_state_dict(state.parts[name])
            set_random_states(state.random, self.device)
        except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):  # not an error of the file
            raise
        except Exception as error:  # a damaged file may raise almost anything
            raise ValueError(f"it is damaged, or of another run: {error!r}") from None
        self.progress = state.progress

    def _write(self, name: str, content: bytes | memoryview, previous: str | None = None) -> None:
        if not self._writes:
            return
        path = self.folder / name
        try:
            files.write({path: content}, previous=None if previous is None else self.folder / previous)
        except OSError as error:
            self._unwritten.add(name)
            self.log("cannot write %s (%s): the file before it stays; going on", path, error.strerror or error)
        else:
            self._unwritten.discard(name)


def _holds_something(path: Path) -> bool:
    """Whether a file is anything other than what a run leaves if it is killed at the very beginning."""
    return path.name != ".lock" and path.suffix != ".tmp" and not (path.name == "log.txt" and path.stat().st_size == 0)


@dataclass
class _Checkpoint:
    """The content of `checkpoint.pt`."""

    progress: Progress
    random: dict[str, Any]
    parts: dict[str, Any]


def _saved(content: Any) -> memoryview:
    """The bytes that `torch.save` writes. Later errors are then errors of the disk, not of a device."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getbuffer()


def random_states(device: torch.device) -> dict[str, Any]:
    state = np.random.get_state()
    assert isinstance(state, tuple)  # NumPy's default generator, which nothing here replaces
    kind, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],  # of the GPU of this process
    }


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Sets all random states; CUDA's only if they come from a GPU and `device` is one."""
    kind, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    for state in states["cuda"] if device.type == "cuda" else ():
        torch.cuda.set_rng_state(state, device)


@functools.cache  # runs change it
def most_threads() -> int:
    """The number of threads that PyTorch computes with by default: OMP_NUM_THREADS, or the number of cores."""
    return torch.get_num_threads()


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that compute."""
    libraries = {"torch": torch, "torchvision": torchvision, "numpy": np}
    return {"python": platform.python_version(), **{name: str(lib.__version__) for name, lib in libraries.items()}}


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
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty=+",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
