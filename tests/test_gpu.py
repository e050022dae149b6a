"""What is made ready for a GPU, as far as a CPU shows it."""

from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import data
import genotypes
import train
import train_search
import utils
from nas import search

CPU = torch.device("cpu")
SIZE, CLASSES, BATCH = 8, 5, 4


class NoWaiting(TorchDispatchMode):
    """Refuses, while `refusing`, what makes the CPU wait for a GPU: reading a number, and tensors sized by the content of another."""

    refusing = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.refusing and function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))

    def after_the_first(self, batches):
        """The batches; refuses from the second step to the last."""
        for batch in batches:
            yield batch
            self.refusing = True
        self.refusing = False


@pytest.fixture
def one_kernel(monkeypatch):
    """Optimizers that step in one kernel, as on a GPU: PyTorch's others read their step's number, which they keep on the CPU."""
    for name in ("Adam", "SGD"):
        monkeypatch.setattr(torch.optim, name, partial(getattr(torch.optim, name), fused=True))


def images():
    generator = torch.Generator().manual_seed(0)
    part = data.MemoryImages(
        torch.randint(256, (24, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8), torch.arange(24, dtype=torch.long) % CLASSES
    )
    names = tuple(f"class {number}" for number in range(CLASSES))
    return data.ImageData("random", part, part, names, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), SIZE, flip=True)


def arguments(**given):
    defaults = {
        "space": "darts",
        "strategy": "darts",
        "unrolled": False,
        "hvp": "finite_difference",
        "eigenvalue_every": 0,
        "early_stop": None,
        "init_channels": 2,
        "layers": 3,
        "amp": False,
        "momentum": 0.9,
        "weight_decay": 3e-4,
        "arch_learning_rate": 3e-2,
        "arch_weight_decay": 1e-3,
        "grad_clip": 5,
        "auxiliary": True,
        "auxiliary_weight": 0.4,
        "report_freq": 1000,
    }
    return Namespace(**defaults | given)


def run():
    return SimpleNamespace(progress=SimpleNamespace(epoch=0, step=0), log=lambda *values: [str(v) for v in values], complete_step=lambda: 0)


def batches(maker, **options):
    return maker(images(), batch_size=BATCH, cutout_length=2, seed=0, workers=0, device=CPU, **options)


@pytest.mark.parametrize(
    "given",
    [{}, {"unrolled": True}, {"space": "nasbench201"}, {"space": "enas_micro", "init_channels": 4}],
    ids=["first order", "second order", "nasbench201", "enas_micro"],
)
def test_the_steps_of_a_search_wait_for_nothing(given, one_kernel):
    args = arguments(**given)
    model, architect = search.build(args, CLASSES, nn.CrossEntropyLoss(), CPU)
    optimizer = utils.optimizer(torch.optim.SGD, model.weight_parameters(), lr=0.025, momentum=0.9)
    train_batches, alpha_batches, _ = batches(data.search_batches, train_portion=0.5)
    with NoWaiting() as mode:
        pairs = mode.after_the_first(zip(train_batches, alpha_batches, strict=True))
        train_search.train(pairs, model, architect, nn.CrossEntropyLoss(), optimizer, 0.025, utils.Meters(), args, run())


def test_the_steps_of_a_training_wait_for_nothing(one_kernel):
    args = arguments()
    model = search.build_discrete(args, CLASSES, genotypes.DARTS_V2)
    model.drop_path_prob = 0.2
    optimizer = utils.optimizer(torch.optim.SGD, list(model.parameters()), lr=0.025, momentum=0.9)
    with NoWaiting() as mode:
        steps = mode.after_the_first(batches(data.train_batches))
        train.train(steps, model, nn.CrossEntropyLoss(), optimizer, 0.025, utils.Meters(), args, run())
