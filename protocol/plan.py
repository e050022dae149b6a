"""The plan of a protocol: methods, presets, and the jobs that are left, according to the run folders.

The protocol (docs/protocol.md): a method searches with several seeds. Each architecture is trained for a short while on
part of the training images. The one with the highest accuracy on the other training images is selected, and trained
from scratch several times. Only these last trainings use the test set.
"""

from __future__ import annotations

import functools
import json
import random
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

import collapse
import genotypes
import remedies
from architectures import Architecture, load_space
from architectures.cells import Cells
from experiment import cli, files
from experiment.errors import UserError, shorten
from pictures import history
from pictures.history import History

STAGES = {"search": "train_search.py", "select": "train.py", "train": "train.py"}
Flags = dict[str, bool | int | float | str]


class Method(msgspec.Struct, forbid_unknown_fields=True):
    """A way to find an architecture: by searches with the flags `search`, or `arch` itself."""

    title: str = ""
    search: Flags | None = None
    arch: str = ""  # a name, a file, or `random` for a new random architecture in each training
    train: Flags = {}
    warm_up: float = 0.0  # share of the epochs in which the alphas rest; applies where the protocol sets the epochs

    def __post_init__(self) -> None:
        if (self.search is None) != bool(self.arch):
            raise ValueError("a method needs either search, its flags, or arch, an architecture")


METHODS = {
    "first": Method("DARTS, first order", {}),
    "second": Method("DARTS, second order", {"unrolled": True}),
    "exact": Method("DARTS, second order, exact", {"unrolled": True, "hvp": "exact"}),
    "warm-up": Method("DARTS, first order, with a warm-up", {"arch_warmup": 15}, warm_up=0.3),
    "pc-darts": Method("PC-DARTS", {"preset": "pc-darts"}, warm_up=0.3),
    "drnas": Method("DrNAS", {"preset": "drnas"}),
    "gdas": Method("GDAS", {"preset": "gdas"}),
    "sdarts-rs": Method("SDARTS-RS", {"preset": "sdarts-rs"}),
    "sdarts-adv": Method("SDARTS-ADV", {"preset": "sdarts-adv"}),
    "darts-minus": Method("DARTS-", {"preset": "darts-minus"}),
    "fair-darts": Method("FairDARTS", {"preset": "fair-darts"}),
    "random_search": Method("Random search with shared weights", {"strategy": "random"}),
    "random": Method("Random architectures, no search", arch="random"),
}

Name = Annotated[str, msgspec.Meta(pattern=r"^[\w-]+$")]  # also of a folder


class Protocol(msgspec.Struct, forbid_unknown_fields=True):
    """A preset, or one that a configuration file has changed."""

    seeds: Annotated[int, msgspec.Meta(ge=1)]  # searches of a method
    trainings: Annotated[int, msgspec.Meta(ge=0)]  # of what a method has selected; 0: the architectures are the result
    compare: list[str]  # names of methods
    common: Flags  # of all runs
    search: Flags = {}  # of train_search.py
    select: Flags = {}  # of train.py, for short trainings
    train: Flags = {}  # of train.py
    methods: dict[Name, Method] = {}  # in addition to `METHODS`
    images_per_class: tuple[int, int] | None = None  # of CIFAR-10, to train and to test on; None: all

    def method(self, name: str) -> Method:
        """The method of this name: from `methods`, from `METHODS`, or a published cell."""
        known = METHODS | self.methods
        if name in Cells.names() and name not in known:
            return Method(name, arch=name)
        if name not in known:
            raise UserError(
                f"unknown method {shorten(name)}: {', '.join(known)}, a published cell, or one of a --config file"
            )
        return known[name]


_COMPARED = ["first", "second", "exact", "random_search", "random", "DARTS_V2"]
_TRIAL = {"auxiliary": True, "cutout": True}
_FAIR = {"gate": "sigmoid", "zero_one_weight": 10.0, "arch_learning_rate": 3e-3, "arch_beta1": 0.9}
_SMALL = {"init_channels": 6, "layers": 5, "batch_size": 64, "learning_rate": 0.05}
_OF_NASBENCH201 = {
    "common": {"dataset": "folder", "image_size": 16, "workers": 0, "compile": "no"},
    "search": {
        "preset": "nasbench201",
        "init_channels": 8,
        "layers": 1,
        "epochs": 20,
        "arch_learning_rate": 7.5e-4,
        "report_freq": 100,
    },
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "seeds": 4,
        "trainings": 10,
        "compare": [*_COMPARED[:5], "DARTS_V1", "DARTS_V2"],
        "common": {"dataset": "cifar10"},
        "select": {**_TRIAL, "epochs": 100, "valid_portion": 0.1},
        "train": _TRIAL,
    },
    "small": {
        "seeds": 4,
        "trainings": 6,
        "compare": _COMPARED,
        "common": {"dataset": "folder", "image_size": 16, "workers": 0},
        "search": {**_SMALL, "init_channels": 4, "layers": 4, "epochs": 10, "arch_learning_rate": 6e-3},
        "select": {**_SMALL, "epochs": 8, "valid_portion": 0.2},
        "train": {**_SMALL, "epochs": 20},
        "images_per_class": (200, 100),
    },
    "digits": {
        "seeds": 2,
        "trainings": 3,
        "compare": _COMPARED,
        "common": {"dataset": "digits", "workers": 0},
        "search": {
            "init_channels": 4,
            "layers": 3,
            "epochs": 4,
            "batch_size": 32,
            "learning_rate": 0.025,
            "arch_learning_rate": 1e-2,
        },
        "select": {**_SMALL, "epochs": 4, "valid_portion": 0.2},
        "train": {**_SMALL, "epochs": 10},
    },
    "nasbench201": {  # docs/nasbench201.md
        "seeds": 4,
        "trainings": 0,
        "compare": [],
        **_OF_NASBENCH201,
        "methods": {
            "first": {"title": "DARTS, first order", "search": {}},
            "drnas": {"title": "DrNAS", "search": {"strategy": "drnas"}},
            "gdas": {"title": "GDAS", "search": {"strategy": "gdas"}},
            "random_search": {
                "title": "Random search with shared weights",
                "search": {"strategy": "random", "strategy_arg": "candidates=100"},
            },
            "warm-up": {"title": "DARTS, first order, with a warm-up", "search": {}, "warm_up": 0.3},
            "second": {"title": "DARTS, second order", "search": {"unrolled": True}},
            "pc-darts": {"title": "PC-DARTS", "search": {"partial_channels": 4}, "warm_up": 0.3},
            "darts-minus": {"title": "DARTS-", "search": {"auxiliary_skip": 1.0}},
            "sdarts-rs": {"title": "SDARTS-RS", "search": {"perturb": "random"}},
            "fair-darts": {"title": "FairDARTS", "search": _FAIR},
            "enas": {"title": "ENAS", "search": {"strategy": "enas"}},
            "eigenvalue": {"title": "DARTS, stopped by the eigenvalue", "search": {"early_stop": "eigenvalue"}},
            "exact": {"title": "DARTS, second order, exact", "search": {"unrolled": True, "hvp": "exact"}},
            "sdarts-adv": {"title": "SDARTS-ADV", "search": {"perturb": "adversarial"}},
        },
    },
    "nasbench201-hour": {  # docs/nasbench201.md
        "seeds": 4,
        "trainings": 0,
        "compare": [],
        **_OF_NASBENCH201,
        "select": {
            "init_channels": 16,
            "layers": 1,
            "epochs": 12,
            "batch_size": 128,
            "learning_rate": 0.1,
            "weight_decay": 5e-4,
            "valid_portion": 0.1,
        },
        "methods": {"sdarts-rs": {"title": "SDARTS-RS", "search": {"perturb": "random"}}},
    },
    "smoke": {
        "seeds": 2,
        "trainings": 2,
        "compare": ["first", "random", "DARTS_V2"],
        "common": {
            "dataset": "digits",
            "workers": 0,
            "fast_dev_run": True,
            "init_channels": 4,
            "layers": 3,
            "batch_size": 8,
        },
        "select": {"valid_portion": 0.2},
    },
}


def configured(preset: str, *changes: Any) -> Protocol:
    """The preset `preset` with the `changes`, in order. Each is the decoded content of a configuration file
    (docs/protocol.md).

    Raises:
        msgspec.ValidationError: a change is not valid.
    """
    protocol = msgspec.convert(functools.reduce(_merged, changes, PRESETS[preset]), Protocol)
    for name, method in protocol.methods.items():
        method.title = method.title or name
    return protocol


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


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
        begun = (self.folder / "config.json").exists()
        words = [STAGES[self.stage], *(["--resume", str(self.folder)] if begun else [])]
        for name, value in self.flags.items():
            if begun and (name not in cli.CODE or not cli.runs_code(str(value))):
                continue  # a run knows its flags, but runs no code that the command does not name
            words += [] if value is False else [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return [*words, *([] if begun else ["--run_dir", str(self.folder)]), "--gpu", str(gpu)]

    def run(self) -> History | None:
        """The job's run if it is complete, else None."""
        if not history.is_run(self.folder):
            return None
        try:
            run = history.read(self.folder)
        except UserError:  # no epoch is complete, or a file is damaged: the run itself will report it
            return None
        arguments = run.arguments
        epochs = 1 if arguments.get("fast_dev_run") else arguments.get("epochs")
        stopped = arguments.get("early_stop") and collapse.stop_at(run.epochs) is not None
        return run if stopped or len(run.epochs) == epochs else None


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
            flags["arch_warmup"] = int(own.warm_up * float(flags["epochs"]))
        return [self._job(method, "search", seed, {**flags, "seed": seed}) for seed in range(self.protocol.seeds)]

    def found(self, method: str) -> list[Job]:
        """The searches that are complete."""
        return [job for job in self.searches(method) if job.run() is not None]

    def selections(self, method: str, searches: list[Job]) -> list[Job]:
        """A short training of what each of these searches finds; none where there is nothing to select."""
        if len(searches) < 2 or not (self.protocol.trainings or self.protocol.select):
            return []
        flags = {**self._flags(method, "select"), "seed": 0}
        return [self._job(method, "select", job.index, {**flags, "arch": str(job.folder)}) for job in searches]

    def trainings(self, method: str) -> list[Job]:
        """The trainings that measure the method's accuracy."""
        flags = self._flags(method, "train")
        archs = [self._arch(method, index) for index in range(self.protocol.trainings)]
        return [
            self._job(method, "train", index, {**flags, "arch": arch, "seed": index})
            for index, arch in enumerate(archs)
        ]

    def selected(self, method: str) -> int | None:
        """The seed of the search whose architecture is trained; None if it is not known yet.

        With several searches, it is the one with the highest accuracy on held-out training images in the last epoch of
        its short training.
        """
        searches = self.found(method)
        if len(searches) == 1:
            return searches[0].index
        runs = {job.index: job.run() for job in self.selections(method, searches)}
        scores = {index: run.epochs[-1]["valid_acc"] for index, run in runs.items() if run is not None}
        return max(scores, key=lambda index: scores[index]) if scores else None

    def ready(self) -> Iterator[Job]:
        """All jobs that can run now and are not over: of each method, those of one stage."""
        for method in self.methods:
            left = self._left(self.searches(method)) or self._left(self.selections(method, self.found(method)))
            if not left and self._write_architectures(method):
                left = self._left(self.trainings(method))
            yield from left

    def all_jobs(self) -> list[Job]:
        """All jobs, in order. Assumes that every search succeeds."""
        jobs = []
        for method in self.methods:
            searches = self.searches(method)
            jobs += [*searches, *self.selections(method, searches), *self.trainings(method)]
        return jobs

    def left(self) -> int:
        """The number of jobs that are not over."""
        return len(self._left(self.all_jobs()))

    def _left(self, jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if job.name not in self.failed and job.run() is None]

    def _write_architectures(self, method: str) -> bool:
        """Writes the architectures that the trainings read. Returns whether they are known yet."""
        own = self.protocol.method(method)
        selected = [job for job in self.found(method) if job.index == self.selected(method)]
        if own.search is not None and not selected:
            return False
        for index in range(max(self.protocol.trainings, len(selected))):
            path = Path(self._arch(method, index))
            if path.exists() or (own.search is None and own.arch != "random"):
                continue
            run = selected[0].run() if selected else None
            architecture = self._random_architecture(method, index) if run is None else run.architecture
            assert architecture is not None  # the search is complete
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write({path: (json.dumps(architecture.json, indent=2) + "\n").encode()})
        return True

    def _arch(self, method: str, index: int) -> str:
        """`--arch` of a training."""
        own = self.protocol.method(method)
        if own.search is not None:
            return str(self.out / method / "selected.json")
        return str(self.out / method / f"random-{index}.json") if own.arch == "random" else own.arch

    def _flags(self, method: str, stage: str) -> Flags:
        """The flags of a training, in the space that the method searches, or random architectures are drawn from."""
        own = self.protocol.method(method)
        searched: Flags = {}
        if own.search is not None or own.arch == "random":
            searched = self.protocol.search | (own.search or {})
        searched = remedies.PRESETS.get(str(searched.get("preset")), {}) | searched
        space = {name: value for name, value in searched.items() if name in ("space", "space_arg")}
        return {**self.protocol.common, **space, **getattr(self.protocol, stage), **own.train}

    def _random_architecture(self, method: str, seed: int) -> Architecture:
        """A random architecture of the method's space, with equal probabilities for every choice."""
        flags = self._flags(method, "train")
        space = str(flags.get("space", "darts"))
        if space == "darts":
            draw, nodes = random.Random(seed), int(self.protocol.search.get("nodes", 4))
            concat = range(2, nodes + 2)
            return Cells(genotypes.Genotype(_random_edges(draw, nodes), concat, _random_edges(draw, nodes), concat))
        import torch

        from nas.loading import build_network
        from nas.mutators import RandomMutator

        args = Namespace(space=space, init_channels=None, layers=flags.get("layers"), space_arg=flags.get("space_arg"))
        args.channels = flags.get("channels", 3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return load_space(space).of(RandomMutator(build_network(args, num_classes=10)).export())

    def _job(self, method: str, stage: str, index: int, flags: Flags) -> Job:
        return Job(method, stage, index, self.out / method / f"{stage}-{index}", flags)


def _random_edges(draw: random.Random, nodes: int) -> list[tuple[str, int]]:
    """The edges of a random cell: for every node two different inputs, each with a random operation."""
    operations = [name for name in genotypes.PRIMITIVES if name != "none"]
    return [
        (draw.choice(operations), source) for node in range(nodes) for source in sorted(draw.sample(range(2 + node), 2))
    ]
