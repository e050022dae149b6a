"""The stages as a user runs them: search, train, test; what they write, what they say, and what they refuse."""

import itertools
import json
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gradients import ARGS
from scripts import check_measured, log_lines, rows_of, said, save_image, start_plain, without_times

import genotypes
import model_search
from architect import Architect
from architectures.cells import Cells
from benchmarks.hypergradient import make_smooth
from experiment import cli, errors
from experiment.run import Run
from experiment.weights import load_weights
from model import NetworkCIFAR

ROOT = Path(__file__).parent.parent
TINY = ["--dataset", "digits", "--gpu", "-1", "--init_channels", "2", "--layers", "3"]
SMALL_IMAGES = ["--dataset", "folder", "--image_size", "8", "--workers", "0", "--batch_size", "8", *TINY[2:]]
ONE_CELL = ["--nodes", "1", "--layers", "1"]  # the fastest search


def test_search_then_train_then_test(done, tmp_path):
    out = done("train_search", *TINY, "--fast_dev_run", "--unrolled", "--batch_size", "8", "--run_dir", "search")
    folder = tmp_path / "search"
    expected = {"log.txt", "config.json", "metrics.jsonl", "genotype.json", "architecture.json", "nni.json", ".lock"}
    expected = {"log.txt", "config.json", "metrics.jsonl", "genotype.json", "architecture.json", "nni.json", ".lock"}
    expected |= {"weights.pt", "checkpoint.pt", "checkpoint.prev.pt", "normal.png", "reduction.png"}
    [events] = folder.glob("events.out.tfevents.*")
    assert {path.name for path in folder.iterdir()} == expected | {events.name}
    lines = log_lines(folder)
    assert lines == without_times("\n".join(out))
    genotype = Cells.read("search").genotype
    [metrics] = rows_of(folder)
    assert metrics["genotype"] == Cells(genotype).json
    for words in "genotype = Genotype(", f"valid_acc {metrics['valid_acc']:f} (supernet)", "tensor([[0.12", "train 0":
        assert any(line.startswith(words) for line in lines), words
    config = json.loads((folder / "config.json").read_text())
    assert config["arguments"]["unrolled"] is True
    assert config["arguments"]["arch_learning_rate"] == 3e-4
    assert config["versions"]["torch"] == torch.__version__

    command = said(lines, "train what was found: ")
    assert command[:2] == ["python", "train.py"]
    assert shlex.split(config["next"]["train what was found"]) == command
    out = done("train", *command[2:], *TINY, "--fast_dev_run", "--batch_size", "8", "--run_dir", "eval")
    assert Cells.read("eval").genotype == genotype
    for words in ("(the auxiliary head left out)", "(test set)", "--fast_dev_run only tries whether everything runs"):
        assert words in "\n".join(out)

    command = said(log_lines(tmp_path / "eval"), "test the weights again: ")
    assert command[:2] == ["python", "test.py"]
    assert any(re.fullmatch(r"test_acc \d+\.\d{6}", line) for line in done("test", *command[2:]))


@pytest.mark.parametrize(
    ("nodes", "layers", "flags"),
    [
        (1, 1, ["--unrolled", "--hvp", "exact", "--eigenvalue_every", "1"]),
        (5, 2, ["--partial_channels", "2", "--auxiliary_skip", "--max_skips", "1", "--recompute"]),
        (2, 3, ["--strategy", "random"]),
    ],
)
def test_any_number_of_nodes_and_cells(script, done, tmp_path, images, monkeypatch, nodes, layers, flags):
    """A search that stops and goes on, its files, pictures, and the training of what it has found."""
    small = [*SMALL_IMAGES, "--data", images, "--layers", layers]
    search, complete = [*small, "--nodes", nodes, *flags, "--epochs", "2", "--run_dir", "search"], Run.complete_epoch
    with monkeypatch.context() as patched:
        patched.setattr(Run, "complete_epoch", lambda run, row: complete(run, row) or sys.exit(143))
        assert script("train_search", *search)[0] == 143
    status, out, err = script("train_search", "--resume", "search")
    assert (status, err) == (0, "")
    assert ("the normal cell is not searched" in out) == (layers < 3)
    found = Cells.read("search")
    ends = list(range(2, nodes + 2))
    assert [list(concat) for concat in found.genotype[1::2]] == [ends, ends]
    assert [found.distance(Cells.read(f"search/{form}.json")) for form in ("nni", "architecture")] == [0, 0]
    assert {len(row["alphas"]) for row in rows_of("search")} == {0 if "random" in flags else 2 * sum(ends)}
    assert script("visualize", "search", "--report")[::2] == (0, "")
    command = said(log_lines(tmp_path / "search"), "train what was found: ")
    done("train", *command[2:], *small, "--fast_dev_run", "--run_dir", "eval")
    assert script("test", "eval", "--gpu", "-1")[0] == 0


def test_trained_weights_test_as_they_did_when_trained(done, tmp_path, images, double, monkeypatch):
    """On images of noise, so that most changes of the network show. Also from another folder."""
    shutil.copytree(images / "train", tmp_path / "images" / "train")
    noise = np.random.default_rng(1).integers(0, 256, (2, 100, 8, 8, 3), dtype=np.uint8)
    for label, pictures in zip(("dark", "light"), noise, strict=True):
        for number, pixels in enumerate(pictures):
            save_image(tmp_path / "images" / "test" / label / f"{number}.png", pixels)
    arguments = [*SMALL_IMAGES, "--data", "images", "--arch", "DARTS_V1", "--epochs", "2", "--drop_path_prob", "0.3"]
    out = done("train", *arguments, "--run_dir", "eval")
    metrics = rows_of("eval")
    assert [row["drop_path_prob"] for row in metrics] == [0.0, pytest.approx(0.15)]
    assert [row["lr"] for row in metrics] == [pytest.approx(0.025), pytest.approx(0.0125)]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    command = said(out, "test the weights again: ")
    check_measured(done("test", *command[2:], "--batch_size", "160", "--workers", "0"), metrics[-1])
    assert 0 < metrics[-1]["test_acc"] < 100
    done("export", "../eval", "--format", "torch")
    done("train", "--resume", "../eval")


def test_learning_rate_of_the_search_and_xi(script, images, monkeypatch):
    seen = []

    def step(self, x, y, x_valid, y_valid, eta, optimizer, unrolled):
        seen.append((eta, optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(Architect, "step", step)
    script("train_search", *SMALL_IMAGES, "--data", images, *ONE_CELL, "--epochs", "3", "--run_dir", "run")
    cosine = [0.001 + (0.025 - 0.001) * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in (0, 0, 1, 1, 2, 2)]
    assert all(eta == lr for eta, lr in seen)
    assert [eta for eta, _ in seen] == pytest.approx(cosine, rel=1e-12)


def test_bad_images_are_logged_by_every_stage_and_names_give_the_terminal_no_orders(done, refused, tmp_path, images):
    shutil.copytree(images, tmp_path / "images")
    for part in ("train", "test"):
        (tmp_path / "images" / part / "dark" / "\x1b]0;title\x07\x9b31m.png").write_bytes(b"")
    folder = shlex.split("--dataset folder --data images --image_size 16 --skip_bad_images --gpu -1")
    sizes = ["--fast_dev_run", "--batch_size", "4", "--workers", "0", *TINY[4:]]
    out = done("train_search", *folder, *sizes, *ONE_CELL, "--run_dir", "search")
    out += done("train", *said(out, "train what was found: ")[2:], *sizes, "--run_dir", "eval")
    tested = "\n".join(done("test", *said(out, "test the weights again: ")[2:]))
    name = r"dark/\x1b]0;title\x07\x9b31m.png: "
    words = f"skipped 2 of 42 images, which cannot be decoded: {tmp_path}/images/train/{name}"
    logs = [(tmp_path / run / "log.txt").read_text() for run in ("search", "eval")]
    for text, times in (("\n".join(out), 2), (logs[0], 1), (logs[1], 1)):
        assert text.count(words) == times
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert tested.count(f"skipped 1 of 9 images, which cannot be decoded: {tmp_path}/images/test/{name}") == 1
    torch.save({"\x1b[2J": torch.zeros(1)}, tmp_path / "weights.pt")
    assert r"only in the file: \x1b[2J" in refused("test", *TINY, "--model_path", "weights.pt")


def test_messages_are_one_line_that_can_be_printed(capsys):
    assert str(errors.UserError("a\n\tb \x1b \u2028 \x9b é 雪")) == r"a b \x1b \x9b é 雪"
    assert str(pickle.loads(pickle.dumps(errors.UserError("\x1b\\")))) == "\\x1b\\"
    errors.warn("\x1b[31m")
    assert capsys.readouterr().err == "warning: \\x1b[31m\n"
    with pytest.raises(errors.UserError, match=r"^\\x1b\[31m \(--help lists the arguments\)$"):
        cli.Parser(prog="script").error("\x1b[31m")


def test_default_folders_also_if_two_runs_begin_at_once_and_what_is_warned_of(script, monkeypatch, tmp_path):
    """A flag that the original never read; a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-120000")
    for _ in range(2):
        flags = "--gpu 0 --fast_dev_run --batch_size 8 --save NAME --model_path saved_models"
        status, _, err = script("train", *TINY, *flags.split())
        assert status == 0
        first, second = sorted(err.splitlines())
        assert "CUDA is not available" in first
        assert second == "warning: --model_path has no effect here"
    assert {path.name for path in tmp_path.iterdir()} == {f"eval-NAME-20260101-120000{end}" for end in ("", "-2")}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train --batch_size 0", "--batch_size"),
        (f"train --seed {2**32}", "--seed.*at most 4294967295"),
        (f"train_search --epochs {'9' * 5000}", r"--epochs.*9\.\.\. is not a whole number"),
        ("train --learning_rate nan", "--learning_rate"),
        ("train --batch_size 100000", "1437.*batch of 100000"),
        ("train --image_size 2147483640", "multiple of 8, from 8 to 4096"),
        ("train --valid_portion 1e-6", r"--valid_portion 1e-06 of 1437 training images holds out 0"),
        ("train --init_from missing.pt", r"missing\.pt: No such file"),
        ("train_search --batch_size 719", "718 of 1437"),
        ("train_search --hvp exact", "--hvp exact needs the second order: add --unrolled"),
        ("train_search --learning_rate_min 0.03", r"--learning_rate_min 0\.03 is above --learning_rate 0\.025"),
        ("train_search --gpu 0,1", r"torchrun --nproc_per_node=2"),
        ("train_search --multigpu", r"for --multigpu, use torchrun --nproc_per_node=2"),
        ("train_search --auxiliary", r"for --auxiliary, use train\.py --auxiliary"),
        ("train --lr 1", "arguments: --lr 1; for --lr, use --learning_rate "),
        ("train --unrolled", r"for --unrolled, use train_search\.py --unrolled"),
        ("train_search --learning_rate=0.1 --set=cifar100", "arguments: --set=cifar100; for --set, use --dataset "),
        ("train --batch-size 8", "for --batch-size, use --batch_size "),
        ("train --pre imagenet", r"arguments: --pre imagenet \(--help"),
        ("predict run image.png --set", r"arguments: --set \(--help"),
        ("train_search --nodes 3 --space enas_micro", "--nodes needs --space darts: enas_micro"),
        ("train_search --layers 2 --strategy random", "2 cells: at least 3 are needed"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_and_leaves_nothing(refused, tmp_path, command, words):
    name, *arguments = command.split()
    others = TINY if name != "predict" else []
    others = [*others, "--fast_dev_run", "--run_dir", "run"] if name.startswith("train") else others
    assert re.search(words, refused(name, *others, *arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_ends_the_process_without_a_traceback():
    done = subprocess.run([sys.executable, ROOT / "visualize.py", "nonsense"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"visualize\.py: error: unknown architecture nonsense.*\n", done.stderr)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("a fault"), "an unforeseen error; "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "not enough memory.*--amp"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
    ],
)
def test_what_nobody_foresaw_is_a_traceback_and_one_line(error, words, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit, match="1"):
        cli.run(main)
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "Traceback (most recent call last):")
    assert re.search(f"raise error\n.*error: {words}.*{type(error).__name__}[^\n]*\n$", err, re.DOTALL)


def test_ctrl_c_while_modules_are_imported_ends_without_a_word(tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    ends_without_a_word([ROOT / "train_search.py"], tmp_path, b"importing")


def test_ctrl_c_while_a_run_is_set_up_ends_without_a_word(tmp_path):
    """With two processes that decode images."""
    code = f"""
import runpy, sys, time
sys.path.insert(0, {str(ROOT)!r})
def slow(path, *how):
    print("decoding", flush=True)
    time.sleep(60)
from experiment import cli
from image_files import files
cli.end_on_ctrl_c()
files.decode = slow
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""
    for part, label in itertools.product(("train", "test"), ("a", "b")):
        (tmp_path / part / label).mkdir(parents=True)
        for number in range(300):
            (tmp_path / part / label / f"{number}.png").touch()
    command = ["-c", code, "--dataset", "folder", "--data", tmp_path, "--workers", "2", "--gpu", "-1"]
    ends_without_a_word(command, tmp_path, b"decoding")


def ends_without_a_word(command, folder, words):
    """Ctrl-C, which a terminal sends to the whole group of processes, when these words have been printed."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    output = b""
    while words not in output:
        read = os.read(process.stdout.fileno(), 1000)
        assert read, process.communicate()[1]
        output += read
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == -signal.SIGINT


def unread(folder, name, *arguments):
    """(exit status, standard error) of a script whose standard output nobody reads."""

    def prepare():
        os.chdir(folder)
        os.dup2(os.open(folder / "stderr", os.O_CREAT | os.O_WRONLY), 2)

    child, reader = start_plain([name, *arguments], prepare)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (folder / "stderr").read_text()


def test_a_run_whose_reader_goes_away_goes_on(images, tmp_path):
    """As with `| head -1`: its log has every line."""
    command = ["train", *SMALL_IMAGES, "--data", images, "--fast_dev_run", "--run_dir", tmp_path / "run"]
    assert unread(tmp_path, *command) == (0, "")
    assert said(log_lines(tmp_path / "run"), "test the weights again: ")[:2] == ["python", "test.py"]


def test_what_is_only_printed_ends_without_a_word_when_nobody_reads(tmp_path):
    assert unread(tmp_path, "visualize", "DARTS_V2", "--format", "svg") == (141, "")
    assert (tmp_path / "reduction.svg").exists()


def test_importing_anything_does_nothing(tmp_path):
    modules = [path.stem for path in ROOT.glob("*.py")]
    assert "train_search" in modules
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", code, "--bad-flag"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# ---- Weights


def network(C=2):
    return NetworkCIFAR(C, 10, 3, True, genotypes.DARTS_V2)


class Pickler2018(pickle.Pickler):
    """Writes tensors as PyTorch 0.3 did on a GPU: by `_rebuild_tensor`, with storages of the type `torch.cuda`."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = {}

    def reducer_override(self, value):
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        key = str(len(self.storages))
        self.storages[key] = value
        storage = SimpleNamespace(key=key, count=value.numel())
        return torch._utils._rebuild_tensor, (storage, 0, tuple(value.shape), value.stride())

    def persistent_id(self, value):
        storage = isinstance(value, SimpleNamespace)
        return ("storage", torch.cuda.FloatStorage, value.key, "cuda:0", value.count, None) if storage else None


def save_as_in_2018(content, path):
    """Four pickles (magic number, version, machine, content), then the storages' names, lengths and numbers."""
    with open(path, "wb") as file:
        machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        for header in (0x1950A86A20F9469CFC6C, 1001, machine):
            pickle.dump(header, file, protocol=2)
        pickler = Pickler2018(file)
        pickler.dump(content)
        pickle.dump(list(pickler.storages), file, protocol=2)
        for tensor in pickler.storages.values():
            file.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())


COUNTERS = dict.fromkeys(["total_ops", "stem.0.total_params"], torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "save", "words"),
    [
        (dict, save_as_in_2018, ""),
        (lambda weights: {"model": weights}, torch.save, "read its model"),
        (
            lambda weights: {f"module._orig_mod.{key}": value for key, value in (weights | COUNTERS).items()},
            torch.save,
            "left out total_ops, total_params; removed the prefix module._orig_mod.",
        ),
    ],
    ids=["of 2018", "model", "prefix and counters"],
)
def test_weights_as_others_save_them(tmp_path, change, save, words):
    """The authors' files come from PyTorch 0.3, before BatchNorm counted its batches."""
    weights = {
        key: torch.rand_like(value)
        for key, value in network().state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    save(change(weights), tmp_path / "weights.pt")
    model, said = network(), []
    load_weights(model, str(tmp_path / "weights.pt"), say=said.append)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert bool(said) == bool(words)
    assert words in "".join(said)


def test_what_others_saved_is_tested_and_the_output_says_what_was_read(done, images):
    arguments = [*SMALL_IMAGES, "--data", images, "--auxiliary", "--model_path", "checkpoint.pt"]
    weights = NetworkCIFAR(2, 2, 3, True, genotypes.DARTS_V2).state_dict()
    torch.save({"epoch": 3, "state_dict": weights}, "checkpoint.pt")
    assert any(line.endswith("checkpoint.pt: read its state_dict of epoch 3") for line in done("test", *arguments))


def test_a_whole_module_is_not_read_and_converts_as_documented(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(network(), "model.pt")
    with pytest.raises(
        errors.UserError, match=r"a whole module: unpickling model\.NetworkCIFAR may run any code.*docs/faq\.md"
    ):
        load_weights(network(), "model.pt")
    lines = re.search(r"(    import torch\n\n(    .*\n)+)", (ROOT / "docs" / "faq.md").read_text())[1]
    exec(textwrap.dedent(lines), {})
    load_weights(network(), "weights.pt")


def test_weights_of_another_network_are_named(tmp_path):
    without = NetworkCIFAR(2, 10, 3, False, genotypes.DARTS_V2)
    for saved, model, words in (
        (network(4), network(), r"stem\.0\.weight is 12x3x3x3 in the file, 6x3x3x3 here"),
        (without, network(), r"leave out --auxiliary.*auxiliary_head"),
        (network(), without, r"add --auxiliary.*auxiliary_head"),
    ):
        torch.save(saved.state_dict(), tmp_path / "weights.pt")
        with pytest.raises(errors.UserError, match=words):
            load_weights(model, str(tmp_path / "weights.pt"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_holds_no_weights_is_refused_and_runs_no_code(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"stem.0.weight": Bomb(trap)}, tmp_path / "bomb.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Bomb(trap)))
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"progress": {}, "random": {}, "parts": {}}, tmp_path / "checkpoint.pt")
    names = ["bomb.pt", "pickle.pt", "truncated.pt", "empty.pt", "list.pt"]
    others = [("checkpoint.pt", r"is a checkpoint.*weights\.pt beside it"), ("", r"is a folder: name its weights\.pt")]
    for name, words in [*zip(names, names, strict=True), *others]:
        with pytest.raises(errors.UserError, match=words):
            load_weights(network(), str(tmp_path / name))
    assert not trap.exists()


def test_in_autocast_networks_learn_and_all_that_is_kept_is_float32(done, tmp_path, images):
    arguments = [*SMALL_IMAGES, "--data", images, "--fast_dev_run", "--amp"]
    for order in ([], ["--unrolled"], ["--unrolled", "--hvp", "exact"]):
        folder = "-".join(["search", *order])
        done("train_search", *arguments, *ONE_CELL, *order, "--run_dir", folder)
    done("train", *arguments, "--arch", "search", "--auxiliary", "--run_dir", "train")
    for folder in ("search", "train"):
        weights = torch.load(tmp_path / folder / "weights.pt", weights_only=True)
        assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("unrolled", "hvp"), [(False, "exact"), (True, "exact"), (True, "finite_difference")])
def test_autocast_changes_the_alphas_gradient_by_its_roundings_only(unrolled, hvp):
    """Autocast rounds the results of convolutions and of the classifier to bfloat16, by at most eps / 2.

    The longest path has 29 of them: in each of 3 cells 1 of preprocessing and for each of 2 nodes 4 of a separable
    convolution; the stem's and the classifier. A gradient passes each of them forward and backward.
    """
    gradients = []
    for amp in (False, True):
        torch.manual_seed(0)
        network = model_search.Network(4, 10, 3, torch.nn.CrossEntropyLoss(), steps=2, multiplier=2)
        make_smooth(network)  # at a kink, a rounding may change the gradient by any amount
        architect = Architect(network, SimpleNamespace(**vars(ARGS), hvp=hvp, amp=amp))
        x, y = torch.randn(2, 16, 3, 16, 16), torch.randint(10, (2, 16))
        optimizer = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9)
        # A long virtual step: most of the second order is its Hessian-vector product, which would be lost in autocast.
        architect.step(x[0], y[0], x[1], y[1], 1.0, optimizer, unrolled)
        gradients.append(torch.cat([alpha.grad.flatten() for alpha in network.arch_parameters()]))
    plain, rounded = gradients
    assert plain.dtype == rounded.dtype == torch.float32
    assert 0 < (rounded - plain).norm() / plain.norm() < 2 * 29 * torch.finfo(torch.bfloat16).eps / 2
