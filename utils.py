"""Device, threads and seeds of a run; optimizers; accuracy, meters and evaluation; the size of a network."""

from __future__ import annotations

import argparse
import math
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiment import distributed, errors
from experiment.errors import UserError
from experiment.run import most_threads


def begin(args: argparse.Namespace) -> torch.device:
    """Seeds all random numbers and selects the device, by a run's arguments."""
    device = select_device(args.gpu, args.tf32)
    seed_everything(args.seed, args.deterministic)
    return device


def select_device(gpu: int, tf32: bool = False) -> torch.device:
    """CUDA device `gpu`, or the CPU for -1; also the CPU, with one warning on standard error, where CUDA is absent.

    Of several processes on a machine, the first takes `gpu`, and the others those that follow. `tf32`: whether GPUs
    round the factors of float32 products and convolutions to TF32's 10 bits.
    """
    # These set the newer `fp32_precision`, too; setting only that makes the reading of these an error, and compilers
    # read them.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if gpu < 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        errors.warn(f"--gpu {gpu} asked for, but CUDA is not available here: running on the CPU (--gpu -1 says so)")
        return torch.device("cpu")
    gpu += distributed.local_rank()
    if gpu >= torch.cuda.device_count():
        raise UserError(f"--gpu {gpu}: this machine's GPUs are 0 to {torch.cuda.device_count() - 1}")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and torch. With `deterministic`, CUDA only uses kernels that repeat their results."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
        torch.use_deterministic_algorithms(True)


# Below, a second thread saves nothing: a small network is thousands of tiny operations, and in each, every thread waits
# for the last. On a busy machine, whose other programs push threads aside, two threads took 3 times as long as one
# (benchmarks/README.md).
MULTIPLY_ADDS_OF_A_THREAD = 1e9


def set_threads(args: argparse.Namespace, multiply_adds: float, device: torch.device) -> None:
    """On a CPU, sets the number of threads: `args.threads`, or what so many multiply-adds of a batch are worth.

    It depends on the arguments and the number of cores alone, because another number rounds sums differently.
    """
    most = most_threads()  # asked before the first change
    if device.type == "cpu":
        enough = max(1, math.ceil(multiply_adds / distributed.world_size() / MULTIPLY_ADDS_OF_A_THREAD))
        torch.set_num_threads(args.threads or min(most, enough))


# ---- Optimizers and forward passes


def optimizer(
    kind: Callable[..., torch.optim.Optimizer], parameters: Sequence[Tensor], **options: Any
) -> torch.optim.Optimizer:
    """`kind(parameters, **options)`; on a GPU, with a step of few kernels that does not wait and can be captured.

    A loaded state keeps the arguments of the optimizer that it is loaded into, also if it was saved on another device.
    """
    if any(parameter.is_cuda for parameter in parameters):
        options |= {} if kind is torch.optim.ASGD else {"fused": True}  # which it lacks
        options |= {} if kind is torch.optim.SGD else {"capturable": True}
    made = kind(parameters, **options)
    made.register_load_state_dict_pre_hook(_keep_arguments)
    return made


def _keep_arguments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    return {"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]}


def advance(scheduler: torch.optim.lr_scheduler.LRScheduler, epochs: int = 1) -> None:
    """Moves the learning rate on by `epochs`."""
    with warnings.catch_warnings():  # of a resumed run, which has taken no optimizer step before
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step")
        for _ in range(epochs):
            scheduler.step()


def forward(model: Callable[[Tensor], Any], x: Tensor, amp: bool = False) -> tuple[Tensor, Tensor | None]:
    """The logits of `model`, (B, classes), and of its auxiliary head, or None if no head runs.

    With `amp`, the network computes in bfloat16 where PyTorch's autocast does; the logits are float32 again, as the
    loss needs them.
    """
    # Without the cache of converted weights: each is used once, and a CUDA graph must not hold one from before.
    with torch.autocast(x.device.type, torch.bfloat16, enabled=amp, cache_enabled=False):
        output = model(x)
    logits, auxiliary = output if isinstance(output, tuple) else (output, None)
    if amp:
        return logits.float(), None if auxiliary is None else auxiliary.float()
    return logits, auxiliary


@contextmanager
def constant(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Makes `parameters` constants for a while: a forward pass records nothing for their gradients.

    Without this, compiled code would compute their gradients even if nobody asks for them.
    """
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in zip(parameters, before, strict=True):
            parameter.requires_grad_(requires_grad)


# ---- Measuring


def accuracy(logits: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[Tensor]:
    """Per k the percentage of images, logits (B, classes), whose class is among the k most likely, or among all."""
    k_max = min(max(topk), logits.size(1))
    correct = logits.topk(k_max, dim=1).indices.eq(target[:, None])  # (B, k_max)
    return [correct[:, :k].any(dim=1).double().mean() * 100 for k in topk]


class AverageMeter:
    """A running average over images. Values may be tensors on any device: only reading it waits for them."""

    def __init__(self) -> None:
        self.sum: Tensor | float = 0.0
        self.count = 0

    def update(self, value: Tensor | float, n: int) -> None:
        """Adds the average `value` of `n` images."""
        self.sum = self.sum + (value.detach().double() if isinstance(value, Tensor) else value) * n
        self.count += n

    @property
    def avg(self) -> float:
        return float(self.sum) / self.count


class Meters:
    """Loss, accuracies and the auxiliary head's loss of an epoch, and the log's words about them.

    After `evaluate`, `confusion` holds how often images of class i were taken for class j, int64 (classes, classes).
    """

    confusion: Tensor

    def __init__(self) -> None:
        self._classes = 0  # of the last batch
        self.reset()

    def reset(self) -> None:
        self.loss, self.top1, self.top5, self.auxiliary = AverageMeter(), AverageMeter(), AverageMeter(), AverageMeter()

    def update(self, loss: Tensor, logits: Tensor, target: Tensor, *auxiliary_loss: Tensor) -> None:
        """Adds a batch, or this process's share of one; the meters of all processes show the whole."""
        n, self._classes = logits.shape
        losses = [each.detach().double() for each in (loss, *auxiliary_loss)]
        values = distributed.mean(torch.stack([*accuracy(logits.detach(), target, topk=(1, 5)), *losses]), n)
        n = distributed.total(n)
        for meter, value in zip((self.top1, self.top5, self.loss, self.auxiliary), values, strict=False):
            meter.update(value, n)

    def metered(self, step: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, Tensor]]:
        """`step`, a training step, with what it returns added to these meters, and only its loss and norm returned."""

        def metered(x: Tensor, y: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
            loss, logits, norm, *auxiliary_loss = step(x, y, *others)
            self.update(loss, logits, y, *auxiliary_loss)
            return loss, norm

        return metered

    def state_dict(self) -> dict[str, tuple[float, int]]:
        meters = {name: meter for name, meter in vars(self).items() if isinstance(meter, AverageMeter)}
        return {name: (float(meter.sum), meter.count) for name, meter in meters.items()}

    def load_state_dict(self, state_dict: dict[str, tuple[float, int]]) -> None:
        for name, (total, count) in state_dict.items():
            meter = getattr(self, name)
            meter.sum, meter.count = total, count

    def brief(self) -> str:
        """For the progress bar."""
        return f"loss {self.loss.avg:.3f}, acc {self.top1.avg:.1f}%"

    def __str__(self) -> str:
        words = f"loss {self.loss.avg:.3f} top1 {self.top1.avg:.1f}"
        if self._classes > 5:  # else every class is among the five most likely
            words += f" top5 {self.top5.avg:.1f}"
        if self.auxiliary.count:
            words += f" auxiliary loss {self.auxiliary.avg:.3f}"
        return words


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    criterion: Callable[[Tensor, Tensor], Tensor],
    report: Callable[[int, Meters], None] = lambda step, meters: None,
) -> Meters:
    """Loss and accuracy of `model` in evaluation mode over `batches` of (images, classes); `report` is called after
    every batch.

    Never in autocast: a network trained in it is measured as test.py will. Processes with a share of each batch all get
    those of the whole.
    """
    model.eval()
    meters = Meters()
    confusion: Tensor | None = None
    for step, (x, y) in enumerate(batches):
        logits, _ = forward(model, x)
        meters.update(criterion(logits, y), logits, y)
        if confusion is None:
            confusion = torch.zeros(logits.size(1), logits.size(1), dtype=torch.int64, device=y.device)
        confusion.index_put_((y, logits.argmax(dim=1)), torch.ones_like(y), accumulate=True)
        report(step, meters)
    if confusion is not None:
        meters.confusion = distributed.summed(confusion)
    return meters


def count_parameters_in_MB(model: nn.Module) -> float:
    """Millions of parameters, the auxiliary head left out, as the paper counts."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "auxiliary" not in name) / 1e6


def count_multiply_adds(model: nn.Module, image_size: int, channels: int = 3) -> float:
    """Millions of multiply-adds of convolutions and linear layers for one image, the papers' "FLOPs".

    As in evaluation, which does not run the auxiliary head.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, channels, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    model.train(training)
    return counter.get_total_flops() / 2 / 1e6
