"""What all command lines share. A user's mistake ends in one line on standard error, with exit status 2 and without a traceback."""

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
from typing import Any, NoReturn

from experiment import files
from experiment.errors import UserError, shorten, shown, warn
from genotypes import PRIMITIVES

SEVERAL_GPUS = "torchrun --nproc_per_node=2 ..."

# What a flag of another code, or of another stage, is called here.
MEANT = {
    "--label_smooth": "--label_smoothing",
    "--learning_rate": "--lr",
    "--lr": "--learning_rate",
    "--num_workers": "--workers",
    "--set": "--dataset",
    "--tmp_data_dir": "--data",
    **dict.fromkeys(["--gpus", "--multigpu"], SEVERAL_GPUS),
    **{flag: f"train.py {flag}" for flag in ("--arch", "--auxiliary", "--auxiliary_weight", "--init_from", "--valid_portion")},
    **{flag: f"train_search.py {flag}" for flag in ("--arch_learning_rate", "--strategy", "--train_portion", "--unrolled")},
}


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` with one-line errors (without the usage), with defaults in its help, and without abbreviations."""

    presets: Mapping[str, Mapping[str, Any]] = {}
    """Defaults that `--preset` changes: {value of --preset: {argument: default}}."""

    def __init__(self, **kwargs) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **kwargs)

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        if self.presets:
            chooser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
            chooser.add_argument("--preset", nargs="?")
            preset = chooser.parse_known_args(args)[0].preset
            self.set_defaults(**self.presets.get(preset, {}))
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {shlex.join(unknown)}{''.join(map(self._meant, unknown))}")
        return parsed

    def _meant(self, text: str) -> str:
        flag = text.partition("=")[0]
        meant = MEANT.get(flag, "--" + flag[2:].replace("-", "_"))
        known = meant in self._option_string_actions or not meant.startswith("--")
        return f"; for {flag}, use {meant}" if known else ""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the arguments)")


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a `UserError` becomes one line on standard error and exit status 2.

    Any other exception becomes its traceback and one line, and exit status 1.

    If the reader of standard output goes away (`| head`), the script ends without a message, with status 141, as if by SIGPIPE.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be valid text
    try:
        try:
            main()
        except UserError as error:
            message = " ".join(str(error).split())
            print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:
            raise
        except Exception as error:
            traceback.print_exc()
            print(f"{os.path.basename(sys.argv[0])}: error: {_unforeseen(error)}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print(f"{os.path.basename(sys.argv[0])}: stopped by Ctrl-C", file=sys.stderr)
            sys.exit(130)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # now: an error at interpreter exit would print a traceback
    except BrokenPipeError:
        discard_output()
        sys.exit(141)


def _unforeseen(error: Exception) -> str:
    """The message for an unexpected error."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    # Recognised by their messages: PyTorch uses one class for many errors, and this file does not import torch.
    if isinstance(error, MemoryError) or "out of memory" in reason or "can't allocate memory" in reason or "ALLOC_FAILED" in reason:
        what = "not enough memory; a smaller --batch_size or --image_size, or --amp on a GPU, needs less"
    elif str(error).startswith(("CUDA error:", "CUDA driver error:", "cuDNN error:", "NCCL error")):
        what = "the GPU or its driver has failed; if this happens again, try --gpu -1 or another GPU"
    elif str(error).startswith("DataLoader "):
        what = "a process that decodes images has died or hangs; lower --workers if memory is short; --workers 0 starts none"
    else:
        what = "this is a bug in the program; please report it"
    return f"{what} ({shorten(reason, 300)})"


def end_on_ctrl_c() -> None:
    """From here on, Ctrl-C ends the process without a message, until a run installs its own handler.

    To be called first in a script: importing torch takes seconds, and an interrupt during the imports, or in the processes that decode
    images before the run begins, would print a long traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored (a shell's `&`) or has another handler
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def discard_output() -> None:
    """Redirects standard output to /dev/null, because its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Arguments that may change when a run is resumed.
MAY_CHANGE = {
    "resume",
    "run_dir",
    "data",
    "gpu",
    "workers",
    "threads",
    "data_on_device",
    "compile",
    "recompute",
    "capture",
    "report_freq",
    "checkpoint_minutes",
    "init_from",
}

SCRIPTS = {"search": "train_search.py", "eval": "train.py", "rnn-search": "rnn/train_search.py", "rnn-eval": "rnn/train.py"}


def parse(parser: argparse.ArgumentParser, stage: str, arguments: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """The arguments of the command line; with `--resume`, those of the resumed run, with `run_dir` set to its folder.

    If torchrun restarts a command after a process has died, the run in `--run_dir` is resumed.

    A space or a strategy in a file is code, and a run's folder may be untrusted: `--resume` runs this code only if the command line names
    it too.

    Args:
        parser: a parser with the arguments of `add_run_arguments`.
        stage: `search` or `eval`, as recorded in the run's config.json.
        arguments: {name: value} of a call from Python, instead of the command line. None and False mean that an argument is not given.

    Raises:
        UserError: the run does not exist or belongs to the other stage, a changed argument would change the result, or code would run that
            the command line does not name.
        TypeError: `parser` does not know one of `arguments`.
    """
    if arguments is not None and (unknown := arguments.keys() - (known := vars(parser.parse_args([])).keys())):
        raise TypeError(f"unknown argument {', '.join(sorted(unknown))}: known are {', '.join(sorted(known))}")
    given = sys.argv[1:] if arguments is None else _flags(_given(arguments))
    args = parser.parse_args(given)
    if getattr(args, "capture", False) and (args.recompute or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise UserError("--capture cannot be combined with --recompute or with several processes: leave one of them out")
    resume = args.resume
    if resume is None and args.run_dir is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        raise UserError("torchrun's --max_restarts needs --run_dir, to know the run that goes on")
    if resume is None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and (Path(args.run_dir) / "config.json").exists():
        resume = args.run_dir
    if resume is None:
        return args
    if args.run_dir is not None and Path(args.run_dir).resolve() != Path(resume).resolve():
        raise UserError(f"--resume {resume} goes on in that folder: leave out --run_dir {args.run_dir}")
    recorded = _recorded(resume, stage, known=vars(args))
    # Parsed again, to check them: the file may be untrusted.
    texts = _flags(recorded)
    before, merged = parser.parse_args(texts), parser.parse_args([*texts, *given])
    for name in CODE:
        file = getattr(before, name, "")
        if runs_code(file) and getattr(args, name, "") != file:
            raise UserError(
                f"--resume {resume} would run the code of {shorten(file)}, which its config.json names: "
                f"if you trust that file, add {shlex.join([f'--{name}', file])}"
            )
    changed = [name for name, value in vars(merged).items() if value != getattr(before, name) and name not in MAY_CHANGE]
    if changed:
        differences = ", ".join(f"--{name} was {getattr(before, name)}, not {getattr(merged, name)}" for name in changed)
        weights = f"; with its weights: --init_from {resume}/weights.pt" if "init_from" in vars(args) else ""
        raise UserError(
            f"--resume {resume} continues a run with its own arguments, but {differences}: "
            f"leave out what differs, or begin a new run without --resume{weights}"
        )
    merged.resume = merged.run_dir = resume
    return merged


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None and value is not False}


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """The command line with these arguments."""
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in arguments.items()]


def check_learning_rates(args: argparse.Namespace) -> None:
    """Raises `UserError` if the learning rate would rise."""
    if args.learning_rate_min > args.learning_rate:
        raise UserError(f"--learning_rate_min {args.learning_rate_min} is above --learning_rate {args.learning_rate}: lower it")


def _recorded(folder: str, stage: str, known: Collection[str]) -> dict[str, Any]:
    """The arguments in the config.json of the run in `folder`, except None and False: strings, numbers and True."""
    try:
        config = read_config(folder)
    except OSError as error:
        raise UserError(f"--resume {folder}: cannot read its config.json ({error.strerror or error})") from None
    except ValueError as error:
        raise UserError(f"--resume {folder}: its config.json is not that of a run: {error}") from None
    if config.get("stage") != stage:
        raise UserError(f"{folder} is a run of another script: its stage is {shown(config.get('stage'))}, this one's is {stage!r}")
    if stage == "search" and config["arguments"].get("space") == "darts" and config.get("primitives", PRIMITIVES) != PRIMITIVES:
        raise UserError(
            f"--resume {folder}: it searches among {shown(config['primitives'], 1000)}, but PRIMITIVES in genotypes.py has changed: "
            "restore it, or begin a new search"
        )
    recorded = _given(config["arguments"])
    for name, value in recorded.items():
        if name not in known:
            raise UserError(f"--resume {folder}: its config.json holds an argument that this version does not know, {shown(name)}")
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"--resume {folder}: its config.json is not that of a run: {name} is {shown(value)}")
    return recorded


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of the run in `folder`. Its `arguments` are numbers, strings, True, False and None.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not the config.json of a run. The message says why.
    """
    try:
        config = files.parse_json((Path(folder) / "config.json").read_bytes())
    except ValueError as error:
        raise ValueError(f"it does not hold JSON ({error})") from None
    arguments = config.get("arguments") if isinstance(config, dict) else None
    if not isinstance(arguments, dict):
        raise ValueError("it lacks the arguments")
    for name, value in arguments.items():
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{shorten(name)} is {shown(value)}")
    if not isinstance(config.get("command", []), list):
        raise ValueError("its command is not a list")
    classes = config.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not a list of names")
    commands = config.get("next", {})
    if not isinstance(commands, dict) or not all(isinstance(command, str) for command in commands.values()):
        raise ValueError("its next commands are not {purpose: command}")
    return config


# The arguments that may name a class in a file, `file.py:Class`. The code of this file is run.
CODE = ("space", "strategy")


def runs_code(value: str) -> bool:
    """Whether this value of an argument in `CODE` names a file."""
    return ":" in value


def resume_command(stage: str, args: argparse.Namespace, folder: str | Path) -> str:
    """The command that resumes the run in `folder`. It names a space or a strategy in a file again (see `parse`)."""
    code = [text for name in CODE if runs_code(value := getattr(args, name, "")) for text in (f"--{name}", value)]
    script = Path(sys.argv[0])
    if not script.match(SCRIPTS[stage]):  # a user's program that calls `search` or `train`
        script = Path(__file__).parent.parent / SCRIPTS[stage]
    of_package = (script.parent / "__init__.py").exists()
    program = ["-m", f"{script.parent.name}.{script.stem}"] if of_package else [str(script)]
    return shlex.join(["python", *program, "--resume", str(folder), *code])


def _number(kind: type, accepted: Callable[[float], bool], description: str) -> Callable[[str], float]:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {description}") from None
        if not accepted(value):  # also refuses nan: every comparison with it is false
            raise argparse.ArgumentTypeError(f"{shorten(text)} is not {description}")
        return value

    return parse


_MOST = 2**31 - 1  # more than any run needs, and the limit of the libraries below
positive_int = _number(int, lambda n: 1 <= n <= _MOST, f"a whole number of at least 1 and at most {_MOST}")
non_negative_int = _number(int, lambda n: 0 <= n <= _MOST, f"a whole number of at least 0 and at most {_MOST}")
seed = _number(int, lambda n: 0 <= n < 2**32, f"a whole number of at least 0 and at most {2**32 - 1}")
device_number = _number(int, lambda n: -1 <= n <= _MOST, f"a GPU's number, or -1 for the CPU (for several GPUs, use {SEVERAL_GPUS})")
image_size = _number(int, lambda n: 8 <= n <= 4096 and n % 8 == 0, "a multiple of 8, from 8 to 4096")
positive_float = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")
non_negative_float = _number(float, lambda x: 0 <= x < float("inf"), "a number of at least 0")
probability = _number(float, lambda x: 0 <= x < 1, "a number from 0 up to, but not including, 1")
proportion = _number(float, lambda x: 0 < x < 1, "a number between 0 and 1")


def add_space_argument(group: Any, option: str, what: str) -> None:
    """Adds `--space_arg name=value` or `--strategy_arg name=value`. All values are kept as one string, which the option also accepts."""
    group.add_argument(option, action=_Assignments, metavar="NAME=VALUE", help=f"an argument of the {what}'s constructor; may be repeated")


NETWORKS = ("cifar", "imagenet")  # of the cells of DARTS


# What the authors trained on ImageNet, and with which images; the recipe is train.py's.
IMAGENET: dict[str, Any] = {
    "network": "imagenet",
    "init_channels": 48,
    "layers": 14,
    "dataset": "imagenet",
    "data": "../data/imagenet",
    "image_size": 224,
    "centre_crop": 0.875,  # images resized to 256, of which 224 are cut out
    "batch_size": 128,
}


def add_network_arguments(parser: Parser, group: Any, preset: Mapping[str, Any]) -> None:
    """`--network` and what goes with larger images: the same for training and testing. `preset`: the defaults of `--preset imagenet`."""
    parser.presets = {"imagenet": preset}
    group.add_argument("--preset", choices=parser.presets, help="the authors' settings for ImageNet; other arguments override them")
    group.add_argument(
        "--network",
        choices=["auto", *NETWORKS],
        default="auto",
        help="of --space darts, around the cells; imagenet: behind a stem that divides height and width by 8; auto: by the images' size",
    )
    group.add_argument(
        "--centre_crop",
        type=_number(float, lambda x: 0.1 <= x <= 1, "a number from 0.1 to 1"),
        default=1.0,
        help="for --dataset folder and imagenet: the share of an image's shorter side that is kept, in its middle",
    )


def color_jitter(text: str) -> str:
    """Brightness, contrast, saturation and hue of torchvision's ColorJitter, as `jitter` reads them."""
    try:
        *values, hue = jitter(text)
        accepted = len(values) == 3 and all(0 <= value < float("inf") for value in values) and 0 <= hue <= 0.5
    except ValueError:
        accepted = False
    if not accepted:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not four numbers of at least 0, 0.4,0.4,0.4,0.2, the last of at most 0.5")
    return text


def jitter(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


# The argument type of a path that is recorded, so that it also holds for a command in another folder.
path = os.path.abspath


def output_file(text: str) -> str:
    """An argument type: the name of a file that can be created. A wrong name is then reported before the work, not after it."""
    if os.path.isdir(text) or not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, or its folder does not exist")
    return text


def add_data_arguments(parser: argparse.ArgumentParser, datasets: Sequence[str]) -> None:
    """Adds the arguments that select the images, the same for every stage."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        choices=datasets,
        default=datasets[0],
        help="digits needs no download; folder reads your own images; imagenet reads any number of them, and keeps none in memory",
    )
    group.add_argument(
        "--data",
        type=path,
        default="../data",
        help="the folder of CIFAR or MNIST (downloaded if absent), or of train/<class>/ and test/<class>/ or val/<class>/; imagenet: val",
    )
    group.add_argument("--image_size", type=image_size, default=32, help="for --dataset folder and imagenet: a multiple of 8")
    group.add_argument("--channels", type=int, choices=[1, 3], default=3, help="of the images and of the network; 1: grey")
    group.add_argument(
        "--skip_bad_images",
        action="store_true",
        help="for --dataset folder and imagenet: leave out images that cannot be decoded, and report their number",
    )
    group.add_argument(
        "--workers",
        type=non_negative_int,
        action=_AtMostCores,
        default=2,
        help="processes that decode images, at most the number of cores; does not change results",
    )


def add_weights_arguments(parser: argparse.ArgumentParser, epochs: int, batch_size: int, learning_rate_min: float) -> Any:
    """Adds the arguments for training weights, the same for both stages but for these defaults. Returns their group."""
    group = parser.add_argument_group("weights")
    group.add_argument("--epochs", type=positive_int, default=epochs, help="passes over the training images")
    group.add_argument("--batch_size", type=positive_int, default=batch_size, help="images in a step; in a search, of each half")
    group.add_argument("--learning_rate", type=positive_float, default=0.025, help="learning rate in the first epoch")
    group.add_argument(
        "--learning_rate_min",
        type=non_negative_float,
        default=learning_rate_min,
        help="learning rate at the end of the cosine schedule",
    )
    group.add_argument("--momentum", type=probability, default=0.9, help="momentum of SGD")
    group.add_argument("--weight_decay", type=non_negative_float, default=3e-4, help="weight decay of all weights")
    group.add_argument("--grad_clip", type=positive_float, default=5.0, help="clip the gradient to this norm")
    group.add_argument("--cutout", action="store_true", help="cut a square out of every image")
    group.add_argument("--cutout_length", type=positive_int, default=16, help="side of that square in pixels")
    return group


def add_device_arguments(parser: argparse.ArgumentParser, images: bool = True) -> None:
    """Adds the arguments for the device, and with `images` for where they are kept, the same for every stage."""
    group = parser.add_argument_group("device")
    group.add_argument("--gpu", type=device_number, default=0, help="number of the CUDA device; -1 for the CPU")
    group.add_argument(
        "--threads",
        type=positive_int,
        action=_AtMostCores,
        help="threads of a CPU; None: one for every 1e9 multiply-adds of a batch, at most OMP_NUM_THREADS or the cores",
    )
    if images:
        group.add_argument(
            "--data_on_device", choices=["auto", "yes", "no"], default="auto", help="keep decoded images in the GPU's memory"
        )


def add_speed_arguments(parser: argparse.ArgumentParser, images: bool = True) -> None:
    """Adds the arguments for speed and memory of training, the same for both stages. Some need `images`."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--compile", choices=["auto", "yes", "no"], default="auto", help="compile the network; auto: if the run is long enough to pay off"
    )
    group.add_argument("--tf32", action="store_true", help="on a GPU, use TF32: round the factors of float32 products to 10 bits; faster")
    if not images:
        return
    group.add_argument("--recompute", action="store_true", help="recompute activations in the backward pass: less memory, more time")
    group.add_argument("--capture", action="store_true", help="on a GPU, repeat a step as one CUDA graph; one process only")
    group.add_argument("--amp", action="store_true", help="train in bfloat16 autocast; faster on a GPU, less precise")


def add_run_arguments(parser: argparse.ArgumentParser, images: bool = True) -> None:
    """Adds the arguments for device, speed, run folder and log, the same for both stages. Some need `images`."""
    add_device_arguments(parser, images)
    add_speed_arguments(parser, images)
    group = parser.add_argument_group("run")
    group.add_argument("--save", default="EXP", help="part of the name of the run's default folder")
    group.add_argument("--run_dir", type=path, help="the run's folder, instead of the default one")
    group.add_argument("--resume", type=path, metavar="RUN_DIR", help="continue this run, with its arguments")
    group.add_argument("--checkpoint_minutes", type=non_negative_float, default=10, help="minutes between two checkpoints within an epoch")
    group.add_argument("--report_freq", type=positive_int, default=50, help="steps between two lines of the log")
    if images:
        group.add_argument("--sync_bn", action="store_true", help="with several processes: BatchNorm over the whole batch, not each share")
    group.add_argument("--deterministic", action="store_true", help="on CUDA, use only deterministic kernels; slower")
    group.add_argument("--fast_dev_run", action="store_true", help="one epoch of two batches each of training and validation")


def accept_unread(parser: argparse.ArgumentParser, *flags: str, nargs: int = 1) -> None:
    """Accepts flags of the original that have no effect here, with `nargs` values. A warning is printed; the original's commands work."""
    for flag in flags:
        parser.add_argument(flag, action=_Unread, nargs=nargs, help=argparse.SUPPRESS, default=argparse.SUPPRESS)


class _AtMostCores(argparse.Action):
    """Limits a number of processes or threads to that of the cores. More would only wait for each other, or cannot be started."""

    warned = False  # the command line of a resumed run is parsed twice

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if values > cores and not self.warned:
            warn(f"{option_string} {values} is more than the number of cores: {cores} are used")
            self.warned = True
        setattr(namespace, self.dest, min(values, cores))


class _Assignments(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        given = assignments(getattr(namespace, self.dest) or "")
        for text in shlex.split(values):
            name, equals, value = text.partition("=")
            if not equals or not name.isidentifier():
                parser.error(f"argument {option_string}: {shown(text)} is not name=value")
            given[name] = value
        setattr(namespace, self.dest, shlex.join(f"{name}={value}" for name, value in sorted(given.items())))


def assignments(text: str) -> dict[str, str]:
    """{name: value} of the string that `--space_arg` or `--strategy_arg` has collected."""
    return {name: value for name, _, value in (part.partition("=") for part in shlex.split(text))}


class _Unread(argparse.Action):
    warned = False  # the command line of a resumed run is parsed twice

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if not self.warned:
            warn(f"{option_string} has no effect here")
        self.warned = True
