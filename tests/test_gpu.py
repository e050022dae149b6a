"""What is made ready for a GPU, as far as a CPU shows it."""

import os
import subprocess
import sys
import time
from copy import deepcopy
from itertools import islice
from pathlib import Path

import pytest
import torch
from steps import BATCH, CLASSES, CPU, REMEDIES, SIZE, arguments, learn, take_epoch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import data
import genotypes
import rnn.architect
import rnn.sequences
import rnn.train_search
import train
import train_search
import utils
from architectures import networks
from architectures.cells import Cells
from image_files import files
from rnn.model import Dropouts
from rnn.model_search import RNNModelSearch
from speed import capture

META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, as a GPU does; numbers, (), may be on the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        devices = {
            value.device
            for value in pytree.tree_leaves((args, kwargs))
            if isinstance(value, torch.Tensor) and value.dim()
        }
        assert len(devices) <= 1 or function is torch.ops.aten.copy_.default, f"{function} mixes {devices}"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def meta_run(monkeypatch):
    """A run on `meta`, whose tensors have no values: reading one raises, wherever a GPU would be waited for."""
    autocast = torch.autocast  # `meta` has none
    monkeypatch.setattr(torch, "autocast", lambda kind, *others, **options: autocast("cpu", *others, **options))
    with OneDevice():
        yield


def batches(maker, device=CPU, images_on=CPU):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    part = data.MemoryImages(images.to(images_on), torch.arange(24, dtype=torch.long, device=images_on) % CLASSES)
    noise = data.ImageData("noise", part, part, tuple("abcde"), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), SIZE, flip=True)
    return maker(noise, data.Options(batch_size=BATCH, cutout=True, cutout_length=2, workers=0), device)


SEARCHES = {
    "first order": {},
    "second order": {"unrolled": True},
    "exact": {"unrolled": True, "hvp": "exact"},
    "bfloat16": {"unrolled": True, "amp": True},
    "remedies": REMEDIES,
    "sigmoids": {"gate": "sigmoid", "zero_one_weight": 1.0},
    "remedies on nasbench201": {"space": "nasbench201", "layers": 1, **REMEDIES},
    "enas_micro": {"space": "enas_micro", "init_channels": 4, "space_arg": "num_nodes=1"},
    "random": {"strategy": "random"},
}


@pytest.mark.parametrize("given", SEARCHES.values(), ids=SEARCHES)
def test_the_steps_of_a_search_read_nothing_and_mix_no_devices(given, meta_run):
    args = arguments(nodes=1, **given)
    model, architect = train_search.build(args, CLASSES, nn.CrossEntropyLoss(), META)
    optimizer = utils.optimizer(torch.optim.SGD, model.weight_parameters(), lr=0.025, momentum=0.9)
    train_batches, alpha_batches, _ = batches(data.search_batches, META, META)
    architect.begin_epoch(0)
    pairs = islice(zip(train_batches, alpha_batches, strict=True), 2)  # SGD has a momentum in the second
    step = train_search.search_step(model, architect, nn.CrossEntropyLoss(), optimizer, args)
    take_epoch(model, ((*pair, *drawn) for pair, drawn in pairs), step)


@pytest.mark.parametrize(("amp", "images_on"), [(False, CPU), (True, META)])
def test_the_steps_of_a_training_read_nothing_and_mix_no_devices(amp, images_on, meta_run):
    args = arguments(amp=amp)
    model = networks.build_discrete(args, CLASSES, Cells.of(genotypes.DARTS_V2)).to(META)
    model.drop_path_prob = 0.2
    optimizer = utils.optimizer(torch.optim.SGD, list(model.parameters()), lr=0.025, momentum=0.9)
    step = train.training_step(model, nn.CrossEntropyLoss(label_smoothing=0.1), optimizer, args)
    take_epoch(model, islice(batches(data.train_batches, META, images_on), 2), step)
    utils.evaluate(model, islice(batches(data.train_batches, META, images_on), 1), nn.CrossEntropyLoss())


@pytest.mark.parametrize("unrolled", [False, True])
def test_the_steps_of_a_recurrent_search_read_nothing_and_mix_no_devices(unrolled, meta_run):
    rates = {"lr": 1.0, "arch_lr": 1e-3, "arch_wdecay": 1e-3, "wdecay": 1e-6, "clip": 1.0, "alpha": 1.0, "beta": 1.0}
    args = arguments(unrolled=unrolled, bptt=3, faithful=True, **rates)
    with META:
        model, words = RNNModelSearch(7, 4, Dropouts(0.1, 0.1, 0.1, 0.1, 0.1)), torch.zeros(40, 2, dtype=torch.long)
    architect = rnn.architect.learner(model, args)
    place = rnn.sequences.Place(*(model.init_hidden(2) for _ in range(2)))
    optimizer = torch.optim.SGD(model.weight_parameters(), args.lr, weight_decay=args.wdecay)
    pieces = islice(rnn.sequences.pieces(words, place, args.bptt), 2)
    step = rnn.train_search.search_step(words, model, architect, optimizer, place, rnn.sequences.Meters(), args)
    for piece in pieces:
        step(*piece)


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_one_step_on_an_alpha_changes_the_logits_under_autocast(space):
    """Rounded to bfloat16, the weights of the alphas are the same after it."""
    torch.manual_seed(0)
    args = arguments(space=space, amp=True, arch_learning_rate=3e-5)
    model, architect = train_search.build(args, CLASSES, nn.CrossEntropyLoss(), CPU)
    x, y = next(iter(batches(data.train_batches)))
    model.train()
    with torch.no_grad():
        before, _ = utils.forward(model, x, amp=True)
        again, _ = utils.forward(model, x, amp=True)
    assert torch.equal(before, again)
    architect.step(None, None, x, y, 0.025, None, unrolled=False)
    with torch.no_grad():
        after, _ = utils.forward(model, x, amp=True)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_one_choice(tf32):
    """By the older and by the newer of PyTorch's names, neither of which may raise."""
    utils.select_device(-1, tf32)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    newer = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    assert [precision == "tf32" for precision in newer] == [tf32, tf32]
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.Adam, {}), (torch.optim.SGD, {"momentum": 0.9})])
def test_a_run_saved_on_a_gpu_goes_on_on_a_cpu(kind, options):
    """Its optimizer steps as on the CPU, whatever the saved one says of a GPU."""
    weights = [nn.Parameter(torch.linspace(0, 1, 5)) for _ in range(2)]
    optimizers = [utils.optimizer(kind, [weight], lr=0.1, **options) for weight in weights]
    before = optimizers[1].state_dict()["param_groups"]
    for step in range(4):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = weight.detach().sin()
            optimizer.step()
        if step == 1:
            state = deepcopy(optimizers[1].state_dict())
            state["param_groups"] = [group | {"fused": True, "capturable": True, "lr": 5.0} for group in before]
            optimizers[1].load_state_dict(state)
    assert torch.equal(*weights)
    assert optimizers[1].state_dict()["param_groups"] == before


def test_workers_are_not_forked_where_cuda_runs(monkeypatch):
    assert files._start_method(1) is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert files._start_method(1) == "forkserver"
    assert files._start_method(0) is None


KILLED = """
import multiprocessing
import sys
import data
from image_files import files, folders
if __name__ == "__main__":
    files._start_method = lambda workers: "forkserver" if workers else None
    folders.IN_MEMORY_BYTES = 0
    options = data.Options("folder", sys.argv[1], 8, workers=1, batch_size=2)
    loader = data.train_batches(data.load(options), options, "cpu")
    batches = iter(loader)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    sys.stdin.read()
"""


def test_workers_of_a_forkserver_end_with_a_killed_run(images, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py"), str(images)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        worker = int(process.stdout.readline())
        process.kill()
    end = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end, "the worker lives on"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("unrolled", "given"),
    [(False, {}), (True, {}), (False, REMEDIES), (None, {})],
    ids=["first order", "second order", "remedies", "training"],
)
def test_captured_steps_are_equal_to_ordinary_ones(unrolled, given, double):
    """But for the graph itself: warming up, restoring, static inputs, numbers as tensors, a smaller batch."""
    ordinary, captured = (learn(4, unrolled, captured=captured, nodes=1, **given) for captured in (False, True))
    torch.testing.assert_close(captured, ordinary, rtol=1e-12, atol=1e-12)


def test_a_step_that_cannot_be_captured_goes_on_without(monkeypatch, capsys, double):
    def broken(run, warm_up, model):
        run()
        raise RuntimeError("no graph today")

    monkeypatch.setattr(capture, "no_graph", broken)
    ours, theirs = (learn(3, False, captured=captured, nodes=1) for captured in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "no graph today" in told
