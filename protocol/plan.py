"""The plan of a protocol: methods, presets, and the jobs that are left, according to the run folders.

The protocol (docs/protocol.md): a method searches with several seeds. Each architecture is trained for a short while on part of the
training images. The one with the highest accuracy on the other training images is selected, and trained from scratch several times. Only
these last trainings use the test set.
"""

from __future__ import annotations

import json
import random
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import collapse
import genotypes
from architecture import Architecture
from cells import Cells
from experiment import files
from experiment.errors import UserError, shorten, shown
from pictures import history
from pictures.history import History
from registry import load_space

STAGES = {"search": "train_search.py", "select": "train.py", "train": "train.py"}
Flags = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A way to find an architecture. `search` holds the flags of its searches, or is None if the method does not search.

    In the second case, `arch` is trained: a name, a file, or `random` for a new random architecture in each training.
    `warm_up` is the share of a search's epochs in which the alphas rest; it applies where the protocol sets the number of epochs.
    """

    title: str
    search: Flags | None = None
    arch: str = ""
    train: Flags = field(default_factory=dict)
    warm_up: float = 0.0


METHODS = {
    "first": Method("DARTS, first order", {}),
    "second": Method("DARTS, second order", {"unrolled": True}),
    "exact": Method("DARTS, second order, exact", {"unrolled": True, "hvp": "exact"}),
    "warm-up": Method("DARTS, first order, with a warm-up", {"arch_warmup": 15}, warm_up=0.3),
    "pc-darts": Method("PC-DARTS", {"preset": "pc-darts"}, warm_up=0.3),
    "gdas": Method("GDAS", {"preset": "gdas"}),
    "sdarts-rs": Method("SDARTS-RS", {"preset": "sdarts-rs"}),
    "darts-minus": Method("DARTS-", {"preset": "darts-minus"}),
    "fair-darts": Method("FairDARTS", {"preset": "fair-darts"}),
    "random_search": Method("Random search with shared weights", {"strategy": "random"}),
    "random": Method("Random architectures, no search", arch="random"),
    **{name: Method(name, arch=name) for name in ("DARTS_V1", "DARTS_V2", "NASNet", "AmoebaNet")},
}


@dataclass(frozen=True)
class Protocol:
    """Numbers of runs, and flags: `common` for all runs, `search` for `train_search.py`, `select` and `train` for `train.py`."""

    methods: tuple[str, ...]
    seeds: int
    trainings: int
    common: Flags
    search: Flags
    select: Flags
    train: Flags
    images_per_class: tuple[int, int] | None = None  # of CIFAR-10, to train and to test on; None: all
    own: dict[str, Method] = field(default_factory=dict)

    def method(self, name: str) -> Method:
        """The method `name`: from the configuration file, from `METHODS`, or a published cell. Raises `UserError` if it is unknown."""
        if name in self.own:
            return self.own[name]
        if name in METHODS:
            return METHODS[name]
        if name in Cells.names():
            return Method(name, arch=name)
        raise UserError(f"unknown method {shorten(name)}: {', '.join([*METHODS, *self.own])}, a published cell, or one of a --config file")


_TRIAL = {"auxiliary": True, "cutout": True}
_DIGITS = {"dataset": "digits"}
PRESETS = {
    "paper": Protocol(
        methods=("first", "second", "exact", "random_search", "random", "DARTS_V1", "DARTS_V2"), seeds=4, trainings=10,
        common={"dataset": "cifar10"}, search={}, select={**_TRIAL, "epochs": 100, "valid_portion": 0.1}, train=_TRIAL,
    ),
    "small": Protocol(
        methods=("first", "second", "exact", "random_search", "random", "DARTS_V2"), seeds=4, trainings=6,
        common={"dataset": "folder", "image_size": 16, "workers": 0},
        search={"init_channels": 4, "layers": 4, "epochs": 10, "batch_size": 64, "learning_rate": 0.05, "arch_learning_rate": 6e-3},
        select={"init_channels": 6, "layers": 5, "epochs": 8, "batch_size": 64, "valid_portion": 0.2, "learning_rate": 0.05},
        train={"init_channels": 6, "layers": 5, "epochs": 20, "batch_size": 64, "learning_rate": 0.05},
        images_per_class=(200, 100),
    ),
    "digits": Protocol(
        methods=("first", "second", "exact", "random_search", "random", "DARTS_V2"), seeds=2, trainings=3,
        common={**_DIGITS, "workers": 0},
        search={"init_channels": 4, "layers": 3, "epochs": 4, "batch_size": 32, "learning_rate": 0.025, "arch_learning_rate": 1e-2},
        select={"init_channels": 6, "layers": 5, "epochs": 4, "batch_size": 64, "valid_portion": 0.2, "learning_rate": 0.05},
        train={"init_channels": 6, "layers": 5, "epochs": 10, "batch_size": 64, "learning_rate": 0.05},
    ),
    "smoke": Protocol(
        methods=("first", "random", "DARTS_V2"), seeds=2, trainings=2,
        common={**_DIGITS, "workers": 0, "fast_dev_run": True, "init_channels": 4, "layers": 3, "batch_size": 8},
        search={}, select={"valid_portion": 0.2}, train={},
    ),
}  # fmt: skip


def configured(preset: Protocol, content: Any, name: str) -> Protocol:
    """`preset`, changed by the decoded `content` of the configuration file `name`.

    `{"seeds": 4, "trainings": 10, "common": {flag: value}, "search": {...}, "select": {...}, "train": {...},
    "methods": {name: {"title": ..., "search": {...}, "train": {...}} or {"title": ..., "arch": ...}}}`; all keys are optional.

    Raises:
        UserError: the content is not valid.
    """
    if not isinstance(content, dict):
        raise UserError(f"--config {name} must hold an object")
    known = {"seeds", "trainings", "methods", "common", "search", "select", "train"}
    if unknown := [key for key in content if key not in known]:
        raise UserError(f"--config {name}: unknown {', '.join(map(shown, unknown))}; known are {', '.join(sorted(known))}")
    changed = vars(preset).copy()
    for key in ("seeds", "trainings"):
        if key in content:
            if type(content[key]) is not int or content[key] < 1:
                raise UserError(f"--config {name}: {key} must be a whole number of at least 1, not {shown(content[key])}")
            changed[key] = content[key]
    for key in ("common", "search", "select", "train"):
        changed[key] = changed[key] | _flags(content.get(key, {}), f"--config {name}: {key}")
    methods = content.get("methods", {})
    if not isinstance(methods, dict) or not all(isinstance(key, str) and isinstance(method, dict) for key, method in methods.items()):
        raise UserError(f"--config {name}: methods must be {{name: {{...}}}}")
    for key, method in methods.items():
        if unknown := [field for field in method if field not in ("title", "search", "train", "arch")]:
            raise UserError(f"--config {name}: method {shown(key)} has an unknown {shown(unknown[0])}")
        if ("search" in method) == ("arch" in method):
            raise UserError(f"--config {name}: method {shown(key)} needs either search, its flags, or arch, an architecture")
        if not key.replace("-", "").replace("_", "").isalnum():
            raise UserError(f"--config {name}: the method's name {shown(key)} is also a folder's: letters, digits, - and _ only")
        where = f"--config {name}: {key}"
        search = _flags(method["search"], where) if "search" in method else None
        train = _flags(method.get("train", {}), where)
        changed["own"] = changed["own"] | {key: Method(str(method.get("title", key)), search, str(method.get("arch", "")), train)}
        if key not in changed["methods"]:
            changed["methods"] = (*changed["methods"], key)
    return Protocol(**changed)


def _flags(value: Any, where: str) -> Flags:
    if not isinstance(value, dict) or not all(isinstance(key, str) and isinstance(flag, str | int | float) for key, flag in value.items()):
        raise UserError(f"{where}: flags must be {{flag: number, text, true or false}}")
    for name in value:
        if not name.replace("_", "").isalnum() or name in ("run_dir", "resume", "gpu", "seed"):
            raise UserError(f"{where}: {shown(name)} is not a flag that can be set here")
    return value


@dataclass(frozen=True)
class Job:
    """A run: one command line that begins or resumes it."""

    method: str
    stage: str
    index: int
    folder: Path
    flags: Flags = field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.method}/{self.stage}-{self.index}"

    def command(self, gpu: int) -> list[str]:
        """The command line without `python`. If the run has begun, it resumes it."""
        if (self.folder / "config.json").exists():
            code = [
                text for name in ("space", "strategy") if ":" in str(self.flags.get(name, "")) for text in (f"--{name}", self.flags[name])
            ]
            return [STAGES[self.stage], "--resume", str(self.folder), "--gpu", str(gpu), *code]
        texts = [text for name, value in self.flags.items() if value is not False for text in _texts(name, value)]
        return [STAGES[self.stage], *texts, "--run_dir", str(self.folder), "--gpu", str(gpu)]


def _texts(name: str, value: Any) -> list[str]:
    return [f"--{name}"] if value is True else [f"--{name}", str(value)]


@dataclass
class Plan:
    """The jobs of a protocol in the folder `out`. Their state is read from the run folders at every call."""

    protocol: Protocol
    methods: tuple[str, ...]
    out: Path
    failed: set[str] = field(default_factory=set)  # names of jobs that failed twice

    def searches(self, method: str) -> list[Job]:
        """One search for each seed; empty for a method without a search."""
        own = self.protocol.method(method)
        if own.search is None:
            return []
        flags = {**self.protocol.common, **self.protocol.search, **own.search}
        if own.warm_up and "epochs" in flags:
            flags["arch_warmup"] = int(own.warm_up * flags["epochs"])
        return [self._job(method, "search", seed, {**flags, "seed": seed}) for seed in range(self.protocol.seeds)]

    def selections(self, method: str) -> list[Job]:
        """A short training of the architecture of each complete search; empty if there are fewer than two."""
        found = [job for job in self.searches(method) if run_of(job) is not None]
        if len(found) < 2:
            return []
        flags = {**self.protocol.common, **self.protocol.select, **self._training(method)}
        return [self._job(method, "select", job.index, {**flags, "arch": str(job.folder), "seed": 0}) for job in found]

    def trainings(self, method: str) -> list[Job]:
        """The trainings that measure the method's accuracy."""
        flags = {**self.protocol.common, **self.protocol.train, **self._training(method)}
        archs = [self._arch(method, index) for index in range(self.protocol.trainings)]
        return [self._job(method, "train", index, {**flags, "arch": arch, "seed": index}) for index, arch in enumerate(archs)]

    def selected(self, method: str) -> int | None:
        """The seed of the search whose architecture is trained; None if it is not known yet.

        With several searches, it is the one with the highest accuracy on held-out training images in the last epoch of its short training.
        """
        searches = [job for job in self.searches(method) if run_of(job) is not None]
        if len(searches) == 1:
            return searches[0].index
        runs = {job.index: run_of(job) for job in self.selections(method)}
        scores = {index: run.epochs[-1]["valid_acc"] for index, run in runs.items() if run is not None}
        return max(scores, key=lambda index: scores[index]) if scores else None

    def ready(self) -> Iterator[Job]:
        """All jobs that can run now and are not over."""
        for method in self.methods:
            for jobs in (self.searches(method), self.selections(method)):
                if left := [job for job in jobs if not self.is_over(job)]:
                    yield from left
                    break
            else:
                if self._select(method):
                    yield from (job for job in self.trainings(method) if not self.is_over(job))

    def all_jobs(self) -> list[Job]:
        """All jobs, in order. Assumes that every search succeeds."""
        jobs = []
        for method in self.methods:
            searches = self.searches(method)
            flags = {**self.protocol.common, **self.protocol.select, **self._training(method)}
            trials = [self._job(method, "select", job.index, {**flags, "arch": str(job.folder), "seed": 0}) for job in searches]
            jobs += [*searches, *(trials if len(trials) > 1 else []), *self.trainings(method)]
        return jobs

    def is_over(self, job: Job) -> bool:
        """Whether the job is complete or has failed permanently."""
        return job.name in self.failed or run_of(job) is not None

    def _select(self, method: str) -> bool:
        """Writes the architectures that the trainings read. Returns whether there are any yet."""
        own = self.protocol.method(method)
        if own.search is None:
            for index in range(self.protocol.trainings if own.arch == "random" else 0):
                self._write(Path(self._arch(method, index)), _random_architecture(self.protocol, own, index))
            return True
        seed = self.selected(method)
        if seed is None:
            return False
        [search] = [job for job in self.searches(method) if job.index == seed]
        architecture = load_space(_space(search.flags)).recorded(search.folder)
        assert architecture is not None  # the search is complete
        self._write(self.out / method / "selected.json", architecture)
        return True

    def _write(self, path: Path, architecture: Architecture) -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write({path: (json.dumps(architecture.json, indent=2) + "\n").encode()})

    def _arch(self, method: str, index: int) -> str:
        own = self.protocol.method(method)
        if own.search is not None:
            return str(self.out / method / "selected.json")
        return str(self.out / method / f"random-{index}.json") if own.arch == "random" else own.arch

    def _training(self, method: str) -> Flags:
        own = self.protocol.method(method)
        searched = {} if own.search is None else {**self.protocol.search, **own.search}
        passed_on = [name for name in searched if name in ("space", "space_arg") and name not in self.protocol.train]
        return {**{name: searched[name] for name in passed_on}, **own.train}

    def _job(self, method: str, stage: str, index: int, flags: Mapping[str, Any]) -> Job:
        return Job(method, stage, index, self.out / method / f"{stage}-{index}", dict(flags))


def run_of(job: Job) -> History | None:
    """The job's run if it is complete, else None."""
    if not history.is_run(job.folder):
        return None
    try:
        run = history.read(job.folder)
    except UserError:  # no epoch is complete, or a file is damaged: the run itself will report it
        return None
    arguments = run.arguments
    epochs = 1 if arguments.get("fast_dev_run") else arguments.get("epochs")
    stopped = arguments.get("early_stop") and collapse.stop_at(run.epochs) is not None
    return run if stopped or len(run.epochs) == epochs else None


def _space(flags: Mapping[str, Any]) -> str:
    return str(flags.get("space", "darts"))


def _random_architecture(protocol: Protocol, method: Method, seed: int) -> Architecture:
    """A random architecture of the method's space, with equal probabilities for every choice."""
    flags = {**protocol.common, **protocol.train, **method.train}
    if _space(flags) == "darts":
        return Cells(_random_cells(random.Random(seed), int(protocol.search.get("nodes", 4))))
    import torch

    import networks
    from nas.mutators import RandomMutator

    args = Namespace(
        space=_space(flags), init_channels=None, layers=None, channels=flags.get("channels", 3), space_arg=flags.get("space_arg")
    )
    networks.set_sizes(args, init_channels=36, layers=20)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mutator = RandomMutator(networks.build_network(args, num_classes=10))
        mutator.reset()
        return load_space(args.space).of(mutator.current())


def _random_cells(draw: random.Random, nodes: int) -> genotypes.Genotype:
    """Random cells: for every node two different inputs, each with a random operation."""
    operations = [name for name in genotypes.PRIMITIVES if name != "none"]
    cells = [
        [(draw.choice(operations), source) for node in range(nodes) for source in sorted(draw.sample(range(2 + node), 2))] for _ in range(2)
    ]
    return genotypes.Genotype(cells[0], range(2, nodes + 2), cells[1], range(2, nodes + 2))
