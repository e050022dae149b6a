"""Arguments and error handling that all commands share.

A user's mistake ends in one line on standard error, with exit status 2.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, Required, TypedDict

import msgspec

from experiment import files
from experiment.errors import UserError, shorten, shown, warn
from genotypes import PRIMITIVES

SEVERAL_GPUS = "torchrun --nproc_per_node=2 ..."

# What a flag of another code, or of another stage, is called here.
MEANT = {
    "--gpus": SEVERAL_GPUS,
    "--label_smooth": "--label_smoothing",
    "--learning_rate": "--lr",
    "--lr": "--learning_rate",
    "--multigpu": SEVERAL_GPUS,
    "--num_workers": "--workers",
    "--set": "--dataset",
    "--tmp_data_dir": "--data",
} | {
    flag: f"{script} {flag}"
    for script, flags in {
        "train.py": "--arch --auxiliary --auxiliary_weight --init_from --valid_portion",
        "train_search.py": "--arch_learning_rate --strategy --train_portion --unrolled",
    }.items()
    for flag in flags.split()
}

# Arguments that may change when a run is resumed.
MAY_CHANGE = {"resume", "run_dir", "data", "gpu", "workers", "threads", "data_on_device", "benchmark"}
MAY_CHANGE |= {"rank", "compile", "recompute", "capture", "report_freq", "checkpoint_minutes"}

CODE = ("space", "strategy")  # arguments that may name a class in a file, `file.py:Class`, whose code is then run

SCRIPTS = {
    "search": "train_search.py",
    "eval": "train.py",
    "rnn-search": "rnn/train_search.py",
    "rnn-eval": "rnn/train.py",
}

NETWORKS = ("cifar", "imagenet")  # of the cells of DARTS


# ---- A command and its end


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`. A `UserError` becomes one line on standard error and exit status 2; any other exception
    its traceback, one line and status 1. If the reader of standard output goes away (`| head`), the status is 141, as
    if by SIGPIPE, without a message.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be valid text
    name = os.path.basename(sys.argv[0])
    try:
        try:
            main()
        except UserError as error:
            print(f"{name}: error: {error}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:
            raise
        except Exception as error:
            traceback.print_exc()
            print(f"{name}: error: {_unforeseen(error)}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print(f"{name}: stopped by Ctrl-C", file=sys.stderr)
            sys.exit(130)
        finally:
            sys.stdout.flush()  # now: an error at interpreter exit would print a traceback
    except BrokenPipeError:
        discard_output()
        sys.exit(141)


def _unforeseen(error: Exception) -> str:
    """The message for an unexpected error."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    # Recognised by their messages: PyTorch uses one class for many errors, and this file does not import torch.
    no_memory = ("MemoryError", "out of memory", "can't allocate memory", "ALLOC_FAILED")
    if any(words in reason for words in no_memory):
        what = "not enough memory; a smaller --batch_size or --image_size, or --amp on a GPU, needs less"
    elif str(error).startswith("DataLoader "):
        what = "a process that decodes images has died or hangs; if memory is short, lower --workers, to 0 for none"
    else:
        what = "an unforeseen error; please report it, unless this machine is at fault"
    return f"{what} ({shorten(reason, 300)})"


def end_on_ctrl_c() -> None:
    """From here on, Ctrl-C ends the process without a message, until a run installs its own handler.

    To be called first in a script: during the imports, which take seconds, an interrupt would print a long traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored (a shell's `&`)
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def discard_output() -> None:
    """Redirects standard output to /dev/null, because its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- Reading the arguments


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors (without the usage), with defaults in its help, and without abbreviations."""

    presets: Mapping[str, Mapping[str, Any]] = {}  # {value of --preset: {argument: its default then}}

    def __init__(self, **kwargs) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **kwargs)
        self.rare = self.add_argument_group("rarely needed")

    def format_help(self) -> str:
        self._action_groups.sort(key=lambda group: group is self.rare)  # the last one
        return super().format_help()

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        self.set_defaults(**self.presets.get(str(_given(args, "preset")["preset"]), {}))
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {shlex.join(unknown)}{''.join(map(self._meant, unknown))}")
        return parsed

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Makes `values` the defaults, after the checks of the command line. None and False are left out."""
        for action in self._actions:
            value = values.get(action.dest)
            if value is None or value is False:
                continue
            try:
                if value is True and action.const is not None:
                    value = action.const
                elif action.nargs == 0:
                    raise argparse.ArgumentError(action, f"{shown(value)} is not true or false")
                else:
                    value = self._get_value(action, str(value))
                    self._check_value(action, value)
            except argparse.ArgumentError as error:
                self.error(str(error))
            self.set_defaults(**{action.dest: value})

    def _meant(self, text: str) -> str:
        flag = text.partition("=")[0]
        meant = MEANT.get(flag, "--" + flag[2:].replace("-", "_"))
        known = meant in self._option_string_actions or not meant.startswith("--")
        return f"; for {flag}, use {meant}" if known else ""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the arguments)")


def _given(texts: Sequence[str] | None, *names: str) -> dict[str, str | None]:
    """{name: value} of these options on a command line, unchecked; None for those that are not on it."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="?")
    return vars(parser.parse_known_args(texts)[0])


def parse(parser: Parser, stage: str, arguments: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """The arguments of the command line; with `--resume`, those of the resumed run, with `run_dir` set to its folder.

    If torchrun restarts a command after a process has died, the run in `--run_dir` is resumed.

    Args:
        parser: a parser with the arguments of `add_run_arguments`.
        stage: a key of `SCRIPTS`.
        arguments: {name: value} of a call from Python, instead of the command line; None and False: not given.

    Raises:
        UserError: the run does not exist or belongs to another stage, a changed argument would change the result, or
            code would run that the command line does not name.
        TypeError: `parser` does not know one of `arguments`.
    """
    known = {action.dest for action in parser._actions if action.default is not argparse.SUPPRESS}
    if unknown := (arguments or {}).keys() - known:
        raise TypeError(f"unknown argument {', '.join(sorted(unknown))}: known are {', '.join(sorted(known))}")
    texts = sys.argv[1:] if arguments is None else []
    given = _given(texts, "resume", "run_dir", *CODE) if arguments is None else arguments
    resume, run_dir = given.get("resume"), given.get("run_dir")
    if resume is None and run_dir is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        raise UserError("torchrun's --max_restarts needs --run_dir, to know the run that goes on")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if resume is None and run_dir is not None and restarted and Path(run_dir, "config.json").exists():
        resume = run_dir
    before: dict[str, Any] | None = None
    if resume is None:
        parser.set_defaults(**parser.presets.get(str(given.get("preset")), {}))
    else:
        resume = path(resume)
        if run_dir is not None and path(run_dir) != resume:
            raise UserError(f"--resume {resume} goes on in that folder: leave out --run_dir {run_dir}")
        parser.presets = {}  # their values are recorded
        parser.set_values(_recorded(resume, stage, known, given))
        before = vars(parser.parse_args([]))
    parser.set_values(arguments or {})
    args = parser.parse_args(texts)
    if before is not None:
        if changed := [name for name, value in vars(args).items() if value != before[name] and name not in MAY_CHANGE]:
            differences = ", ".join(f"--{name} was {before[name]}, not {getattr(args, name)}" for name in changed)
            weights = f"; with its weights: --init_from {resume}/weights.pt" if "init_from" in known else ""
            raise UserError(
                f"--resume {resume} continues a run with its own arguments, but {differences}: "
                f"leave out what differs, or begin a new run without --resume{weights}"
            )
        args.resume = args.run_dir = resume
    if getattr(args, "capture", False) and (args.recompute or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise UserError(
            "--capture cannot be combined with --recompute or with several processes: leave one of them out"
        )
    if "learning_rate_min" in args and args.learning_rate_min > args.learning_rate:
        what = f"--learning_rate_min {args.learning_rate_min} is above --learning_rate {args.learning_rate}"
        raise UserError(f"{what}: lower it")
    if getattr(args, "recompute", False) and args.space != "darts":
        raise UserError(f"--recompute needs the cells of --space darts, not {args.space}: leave it out")
    return args


# ---- The arguments of a run that is there


class Config(TypedDict, total=False):
    """The content of a run's config.json."""

    stage: Required[str]
    arguments: Required[dict[str, str | int | float | bool | None]]
    classes: list[str]
    mean: list[float]
    std: list[float]
    command: list[str]
    commit: str | None
    primitives: list[str]
    versions: dict[str, str]
    gpu: str | None
    threads: Annotated[int, msgspec.Meta(ge=1)]
    processes: int
    next: dict[str, str]  # the commands that the run proposes, {purpose: command}


def read_config(folder: str | Path) -> Config:
    """The config.json of the run in `folder`. Raises `UserError` like `files.read_json`."""
    return files.read_json(Path(folder) / "config.json", Config)


def _recorded(folder: str, stage: str, known: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in the config.json of the run in `folder`.

    A space or a strategy in a file is code, and a run's folder may be untrusted: it is resumed only if this code is
    also `given`.
    """
    config = read_config(folder)
    if config["stage"] != stage:
        found = shown(config["stage"])
        raise UserError(f"{folder} is a run of another script: its stage is {found}, this one's is {stage!r}")
    recorded = config["arguments"]
    if stage == "search" and recorded.get("space") == "darts" and config.get("primitives", PRIMITIVES) != PRIMITIVES:
        raise UserError(f"--resume {folder}: PRIMITIVES in genotypes.py has changed: restore it, or begin a new search")
    if unknown := recorded.keys() - known:
        name = shown(min(unknown))
        raise UserError(f"--resume {folder}: its config.json holds an argument that this version does not know, {name}")
    for name in CODE:
        file = str(recorded.get(name))
        if runs_code(file) and given.get(name) != file:
            raise UserError(
                f"--resume {folder} would run the code of {shorten(file)}, which its config.json names: "
                f"if you trust that file, add {shlex.join([f'--{name}', file])}"
            )
    return recorded


def runs_code(value: str) -> bool:
    """Whether this value of an argument in `CODE` names a file."""
    return ":" in value


def resume_command(stage: str, args: argparse.Namespace, folder: str | Path) -> str:
    """The command that resumes the run in `folder`. It names a space or a strategy in a file again (see `parse`)."""
    code = [text for name in CODE if runs_code(value := getattr(args, name, "")) for text in (f"--{name}", value)]
    script = Path(sys.argv[0])
    if not script.match(SCRIPTS[stage]):  # a user's program that calls `search` or `train`
        script = Path(__file__).parent.parent / SCRIPTS[stage]
    program = ["-m", f"rnn.{script.stem}"] if stage.startswith("rnn") else [str(script)]
    return shlex.join(["python", *program, "--resume", str(folder), *code])


# ---- Types of arguments


def number(kind: type, accepted: Callable[[float], bool], description: str) -> Callable[[str], Any]:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {description}") from None
        if not accepted(value):  # also refuses nan: every comparison with it is false
            raise argparse.ArgumentTypeError(f"{shorten(text)} is not {description}")
        return value

    return parse


def _whole(least: int, most: int = 2**31 - 1) -> Callable[[str], Any]:  # the limit of the libraries below
    return number(int, lambda n: least <= n <= most, f"a whole number of at least {least} and at most {most}")


positive_int, non_negative_int, seed = _whole(1), _whole(0), _whole(0, 2**32 - 1)
device_number = number(
    int, lambda n: -1 <= n < 2**31, f"a GPU's number, or -1 for the CPU (for several GPUs, use {SEVERAL_GPUS})"
)
image_size = number(int, lambda n: 8 <= n <= 4096 and n % 8 == 0, "a multiple of 8, from 8 to 4096")
positive_float = number(float, lambda x: 0 < x < float("inf"), "a number above 0")
non_negative_float = number(float, lambda x: 0 <= x < float("inf"), "a number of at least 0")
probability = number(float, lambda x: 0 <= x < 1, "a number from 0 up to, but not including, 1")
proportion = number(float, lambda x: 0 < x < 1, "a number between 0 and 1")

# The type of a path that is recorded, so that it also holds for a command in another folder.
path = os.path.abspath


def output_file(text: str) -> str:
    """An argument type: the name of a file that can be created. A wrong one is reported before the work."""
    if os.path.isdir(text) or not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, or its folder does not exist")
    return text


def add_space_argument(group: Any, option: str, what: str) -> None:
    """Adds `--space_arg name=value` or `--strategy_arg name=value`. All values are kept as one string, which the option
    also accepts."""
    help = f"pass this argument to the {what}'s constructor; may be repeated"
    group.add_argument(option, action=_Assignments, metavar="NAME=VALUE", help=help)


class _Assignments(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        given = assignments(getattr(namespace, self.dest) or "") | assignments(values)
        setattr(namespace, self.dest, shlex.join(f"{name}={value}" for name, value in sorted(given.items())))


def assignments(text: str) -> dict[str, str]:
    """{name: value} of the string that `--space_arg` or `--strategy_arg` has collected."""
    try:
        parts = [part.partition("=") for part in shlex.split(text)]
    except ValueError as error:  # a quotation mark without a partner
        raise UserError(f"cannot read {shown(text)} of --space_arg or --strategy_arg: {error}") from None
    for name, equals, _ in parts:
        if not equals or not name.isidentifier():
            raise UserError(f"{shown(name)} is not name=value, which --space_arg and --strategy_arg take")
    return {name: value for name, _, value in parts}


def accept_unread(parser: argparse.ArgumentParser, *flags: str, nargs: int = 1) -> None:
    """Accepts flags of the original that have no effect here, with `nargs` values and a warning."""
    for flag in flags:
        parser.add_argument(flag, action=_Unread, nargs=nargs, help=argparse.SUPPRESS, default=argparse.SUPPRESS)


class _Unread(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        warn(f"{option_string} has no effect here")


# ---- Arguments of several commands


def add_data_arguments(parser: Parser, datasets: Sequence[str]) -> None:
    """Adds the arguments that select the images."""
    add = parser.add_argument_group("data").add_argument
    what = (
        "use these images; digits needs no download; folder and imagenet read your own, imagenet without keeping them "
        "in memory"
    )
    add("--dataset", choices=datasets, default=datasets[0], help=what)
    what = (
        "read images from this folder; CIFAR and MNIST are downloaded into it; folder needs train/<class>/ and "
        "test/<class>/ or val/<class>/ in it, imagenet train/<class>/ and val/<class>/"
    )
    add("--data", type=path, default="../data", help=what)
    what = "resize images to squares of this many pixels, a multiple of 8; for --dataset folder and imagenet"
    add("--image_size", type=image_size, default=32, help=what)
    add("--channels", type=int, choices=[1, 3], default=3, help="read images in grey (1) or in colour (3)")
    what = "decode images in this many processes; the results are the same"
    add("--workers", type=non_negative_int, default=2, help=what)


def add_weights_arguments(
    parser: argparse.ArgumentParser, epochs: int, batch_size: int, learning_rate_min: float
) -> Any:
    """Adds the arguments for training weights, with these defaults. Returns their group."""
    group = parser.add_argument_group("weights")
    add = group.add_argument
    add("--epochs", type=positive_int, default=epochs, help="train for this many passes over the training images")
    what = "images per step; a search takes this many from each half"
    add("--batch_size", type=positive_int, default=batch_size, help=what)
    add("--learning_rate", type=positive_float, default=0.025, help="learning rate in the first epoch")
    what = "learning rate at the end of the cosine schedule"
    add("--learning_rate_min", type=non_negative_float, default=learning_rate_min, help=what)
    add("--momentum", type=probability, default=0.9, help="momentum of SGD")
    add("--weight_decay", type=non_negative_float, default=3e-4, help="weight decay of SGD on all weights")
    add("--grad_clip", type=positive_float, default=5.0, help="clip the gradient to this norm")
    add("--cutout", action="store_true", help="cut a square out of every image")
    what = "side of the square that --cutout cuts out, in pixels"
    add("--cutout_length", type=positive_int, default=16, help=what)
    return group


def add_device_arguments(parser: Parser, images: bool = True) -> None:
    """Adds the arguments for the device; with `images` also those for images."""
    what = "compute on the CUDA device of this number; -1: on the CPU"
    parser.add_argument("--gpu", type=device_number, default=0, help=what)
    add = parser.rare.add_argument
    what = (
        "compute with this many threads on a CPU; None: one for every 1e9 multiply-adds of a batch, at most one for "
        "each core (or OMP_NUM_THREADS)"
    )
    add("--threads", type=positive_int, help=what)
    if images:
        what = "keep decoded images in the GPU's memory; auto: if they fit well"
        add("--data_on_device", choices=["auto", "yes", "no"], default="auto", help=what)
        what = "leave out images that cannot be decoded, and report their number; for --dataset folder and imagenet"
        add("--skip_bad_images", action="store_true", help=what)


def add_run_arguments(parser: Parser, images: bool = True) -> None:
    """Adds the arguments for device, speed, run folder and log; with `images` also those for images."""
    add_device_arguments(parser, images)
    add, add_rare = parser.add_argument_group("run").add_argument, parser.rare.add_argument
    what = "write to this folder, new or empty; None: a new one, named after --save and the time"
    add("--run_dir", type=path, help=what)
    what = "continue the run in this folder, with its arguments"
    add("--resume", type=path, metavar="RUN_DIR", help=what)
    what = "check that everything works: one epoch of two training and two validation batches"
    add("--fast_dev_run", action="store_true", help=what)
    what = "compile the network; auto: for runs of at least 1e13 multiply-adds, on a CPU only with mixed operations"
    add("--compile", choices=["auto", "yes", "no"], default="auto", help=what)
    if images:
        add("--amp", action="store_true", help="train in bfloat16 autocast: faster on a GPU, less precise")
        what = "recompute activations in the backward pass: less memory, more time"
        add_rare("--recompute", action="store_true", help=what)
        what = "run each step as one CUDA graph; needs a GPU and a single process"
        add_rare("--capture", action="store_true", help=what)
        what = "let BatchNorm use the whole batch, not each process's share of it"
        add_rare("--sync_bn", action="store_true", help=what)
    what = "round the factors of float32 products to 10 bits on a GPU: faster, less precise"
    add_rare("--tf32", action="store_true", help=what)
    add_rare("--deterministic", action="store_true", help="use only deterministic kernels on a GPU: slower")
    add_rare("--save", default="EXP", help="include this in the name of the run's default folder")
    add_rare("--report_freq", type=positive_int, default=50, help="write a line to the log every so many steps")
    what = "save a checkpoint every so many minutes within an epoch"
    add_rare("--checkpoint_minutes", type=non_negative_float, default=10, help=what)
