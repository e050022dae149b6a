"""What the command lines share: a user's mistake ends in one line on standard error and exit status 2, without a traceback."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn


class UserError(ValueError):
    """Something that the user can put right. The message says what is wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose errors are one line (the usage is a `--help` away) and whose help shows the defaults."""

    def __init__(self, **kwargs) -> None:
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help lists the arguments)\n")


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a `UserError` becomes one line on standard error and exit status 2.

    A reader of standard output that goes away (`| head`) ends it without a word, with status 141, as if by SIGPIPE.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold what is no text
    try:
        try:
            main()
        except UserError as error:
            message = " ".join(str(error).split())
            print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # now: what fails while Python ends is a traceback
    except BrokenPipeError:
        discard_output()
        sys.exit(141)


def discard_output() -> None:
    """Standard output leads nowhere from now on: nobody reads it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(message: str) -> None:
    """One line on standard error; from the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


def warn(message: str) -> None:
    """`tell` of something that is not as it should be."""
    tell(f"warning: {message}")


def shown(value: Any, limit: int = 120) -> str:
    """A stranger's value in a message: its `repr`, shortened; its type, where Python cannot write it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists in lists in lists
        text = f"a {type(value).__name__}"
    return shorten(text, limit)


def shorten(text: str, limit: int = 120) -> str:
    """A stranger's text in a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


# Arguments that may differ from those of the run that is resumed.
MAY_CHANGE = {
    "resume",
    "run_dir",
    "save",
    "data",
    "gpu",
    "workers",
    "data_on_device",
    "compile",
    "recompute",
    "capture",
    "report_freq",
    "checkpoint_minutes",
}

# Arguments of earlier versions that changed no result and are left out where a run is resumed.
RETIRED = {"engine"}


def parse(parser: argparse.ArgumentParser, stage: str) -> argparse.Namespace:
    """The command line's arguments; with `--resume`, those of the run that is resumed, which `run_dir` then names.

    Where torchrun starts a command again, after a process has died, it goes on with the run in `--run_dir`.

    Args:
        parser: with `add_run_arguments`.
        stage: `search` or `eval`, as recorded in the run's config.json.

    A space in a file is code, and a folder may be a stranger's: `--resume` runs it only if the command line names it, too.

    Raises:
        UserError: there is no such run, it is of the other stage, an argument differs that would change the result, or the code of a
            space would be run that the command line does not name.
    """
    args = parser.parse_args()
    if args.capture and (args.recompute or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise UserError("--capture goes neither with --recompute nor with several processes: leave one of them out")
    resume = args.resume
    if resume is None and args.run_dir is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        raise UserError("torchrun's --max_restarts needs --run_dir, to know the run that goes on")
    if resume is None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and (Path(args.run_dir) / "config.json").exists():
        resume = args.run_dir
    if resume is None:
        return args
    recorded = _recorded(resume, stage, known=vars(args))
    # Through the parser again, which checks them: the file may be a stranger's.
    texts = [f"--{name}" if value is True else f"--{name}={value}" for name, value in recorded.items()]
    before, merged = parser.parse_args(texts), parser.parse_args([*texts, *sys.argv[1:]])
    space = getattr(before, "space", "")
    if runs_code(space) and getattr(args, "space", "") != space:
        raise UserError(
            f"--resume {resume} would run the code of {shorten(space)}, which its config.json names: "
            f"if you trust that file, add {shlex.join(['--space', space])}"
        )
    changed = [name for name, value in vars(merged).items() if value != getattr(before, name) and name not in MAY_CHANGE]
    if changed:
        differences = ", ".join(f"--{name} was {getattr(before, name)}, not {getattr(merged, name)}" for name in changed)
        raise UserError(f"--resume {resume} goes on with the run's own arguments: {differences}")
    merged.resume = merged.run_dir = resume
    return merged


def _recorded(folder: str, stage: str, known: Collection[str]) -> dict[str, Any]:
    """The arguments in the config.json of the run in `folder`, but for those that were not given: strings, numbers and True."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        own, arguments = config["stage"], config["arguments"].items()
    except OSError as error:
        raise UserError(f"--resume {folder}: cannot read its config.json ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"--resume {folder}: its config.json is not one of a run") from None
    if own != stage:
        raise UserError(f"{folder} is a run of the other script: its stage is {shown(own)}, this one's is {stage!r}")
    recorded = {name: value for name, value in arguments if value is not None and value is not False and name not in RETIRED}
    for name, value in recorded.items():
        if name not in known:
            raise UserError(f"--resume {folder}: its config.json holds an argument that this version does not know, {shown(name)}")
        if not isinstance(value, bool | int | float | str) or (isinstance(value, str) and "\0" in value):
            raise UserError(f"--resume {folder}: its config.json is not one of a run: {name} is {shown(value)}")
    return recorded


def runs_code(space: str) -> bool:
    """Whether this `--space` names a file, whose code is run."""
    return ":" in space


def resume_command(args: argparse.Namespace, folder: str | Path) -> str:
    """The command that goes on with the run in `folder`; a space in a file is named again (see `parse`)."""
    space = ["--space", args.space] if runs_code(getattr(args, "space", "")) else []
    return shlex.join(["python", sys.argv[0], "--resume", str(folder), *space])


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


_MOST = 2**31 - 1  # more than any run has of anything, and what the libraries below can count
positive_int = _number(int, lambda n: 1 <= n <= _MOST, f"a whole number of at least 1 and at most {_MOST}")
non_negative_int = _number(int, lambda n: 0 <= n <= _MOST, f"a whole number of at least 0 and at most {_MOST}")
seed = _number(int, lambda n: 0 <= n < 2**32, f"a whole number of at least 0 and at most {2**32 - 1}")
cell_count = _number(int, lambda n: 3 <= n <= _MOST, "a number of cells of at least 3 (reduction cells stand at 1/3 and 2/3 of the depth)")
device_number = _number(int, lambda n: -1 <= n <= _MOST, "a GPU's number, or -1 for the CPU")
image_size = _number(int, lambda n: 8 <= n <= _MOST and n % 8 == 0, "a multiple of 8")
positive_float = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")
non_negative_float = _number(float, lambda x: 0 <= x < float("inf"), "a number of at least 0")
probability = _number(float, lambda x: 0 <= x < 1, "a number from 0 up to, but not including, 1")
proportion = _number(float, lambda x: 0 < x < 1, "a number between 0 and 1")


def output_file(text: str) -> str:
    """The name of a file that can be made, so that hours of work do not end in a wrong one."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, or in one that does not exist")
    return text


def add_data_arguments(parser: argparse.ArgumentParser, datasets: Sequence[str]) -> None:
    """Which images: the same for every stage."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=datasets, default=datasets[0], help="digits needs no download; folder reads your own images")
    group.add_argument(
        "--data", default="../data", help="the folder of CIFAR (downloaded if absent), or of train/<class>/ and test/<class>/"
    )
    group.add_argument("--image_size", type=image_size, default=32, help="for --dataset folder: a multiple of 8")
    group.add_argument(
        "--skip_bad_images",
        action="store_true",
        help="for --dataset folder: leave out, and count, what cannot be decoded",
    )
    group.add_argument("--workers", type=non_negative_int, default=2, help="processes that decode images; never changes a result")


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """What computes, and where the images are: the same for every stage."""
    group = parser.add_argument_group("device")
    group.add_argument("--gpu", type=device_number, default=0, help="number of the CUDA device; -1 for the CPU")
    group.add_argument("--data_on_device", choices=["auto", "yes", "no"], default="auto", help="keep decoded images in the GPU's memory")


def add_speed_arguments(parser: argparse.ArgumentParser) -> None:
    """How a network that learns is computed: the same for both stages that train."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--compile", choices=["auto", "yes", "no"], default="auto", help="compile the network; auto: where a long run earns it"
    )
    group.add_argument("--recompute", action="store_true", help="compute activations again in the backward pass: less memory, more time")
    group.add_argument("--capture", action="store_true", help="on a GPU, repeat a step as one CUDA graph; one process only")
    group.add_argument("--tf32", action="store_true", help="on a GPU, round the factors of float32 products to 10 bits; faster")
    group.add_argument("--amp", action="store_true", help="train the networks in bfloat16 autocast; faster on a GPU, other roundings")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The device, the run's folder and its log: the same for both stages that train."""
    add_device_arguments(parser)
    add_speed_arguments(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--save", default="EXP", help="name in the run's default folder")
    group.add_argument("--run_dir", help="the run's folder, exactly")
    group.add_argument("--resume", metavar="RUN_DIR", help="go on with this run, with its arguments")
    group.add_argument("--checkpoint_minutes", type=non_negative_float, default=10, help="between two checkpoints within an epoch")
    group.add_argument("--report_freq", type=positive_int, default=50, help="steps between two lines of the log")
    group.add_argument("--sync_bn", action="store_true", help="with several processes: BatchNorm over the whole batch, not each share")
    group.add_argument("--deterministic", action="store_true", help="on CUDA, only kernels that repeat their results; slower")
    group.add_argument("--fast_dev_run", action="store_true", help="one epoch of two batches each of training and validation")


def accept_unread(parser: argparse.ArgumentParser, *flags: str, nargs: int = 1) -> None:
    """Flags of the original with `nargs` values that change nothing: taken, with a warning, so that its commands still work."""
    for flag in flags:
        parser.add_argument(flag, action=_Unread, nargs=nargs, help=argparse.SUPPRESS, default=argparse.SUPPRESS)


class _Unread(argparse.Action):
    warned = False  # the command line of a run that goes on is parsed twice

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if not self.warned:
            warn(f"{option_string} has no effect here")
        self.warned = True
