"""Several processes that learn as one, on the GPUs of one machine or of several.

    torchrun --nproc_per_node=4 train_search.py --unrolled --batch_size 64          # 16 images of every batch for each of 4 GPUs

Every process holds the whole network and computes on its share of each batch; what it computes is then made that of the whole batch, by
`mean` for losses and by `average` for their gradients. All processes step alike, so their weights and alphas stay equal, to the bit. A
process on its own is no group: every function here then gives back what it got, at no cost.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import filelock
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiment.errors import UserError

# How long processes wait for each other: to begin with, while some still load images, and then within every step. On GPUs, one of them
# may compile for minutes.
PATIENCE = timedelta(minutes=30)
TIMEOUT = timedelta(seconds=50)
GPU_TIMEOUT = timedelta(minutes=10)


def join(device: torch.device) -> None:
    """Makes the processes that torchrun started a group: NCCL on GPUs, gloo on CPUs. Without torchrun's environment, does nothing.

    To be called when the images are loaded: it waits for the slowest, but from then on a process that is silent for `TIMEOUT`, on GPUs
    `GPU_TIMEOUT`, ends all.

    Raises:
        UserError: not all processes have come.
    """
    if not _started_together() or dist.is_initialized():  # a program may make several runs
        return
    with _others():
        store, rank, world_size = next(dist.rendezvous("env://", timeout=PATIENCE))
        # torchrun keeps one store for all its restarts: without a name for each, a process would call those of the attempt before.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        store.set(f"here/{rank}", "")
        store.wait([f"here/{other}" for other in range(world_size)], PATIENCE)
        # Small things that live on the CPU go through gloo, whatever the device.
        backend, timeout = ("cpu:gloo,cuda:nccl", GPU_TIMEOUT) if device.type == "cuda" else ("gloo", TIMEOUT)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    atexit.register(dist.destroy_process_group)


def rank() -> int:
    """This process's number: process 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its machine, known before `join`."""
    return int(os.environ.get("LOCAL_RANK", 0))


def share(count: int) -> slice:
    """This process's part of a batch of `count`: the shares are contiguous, in the order of the processes, and differ by one at most."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """One after the other, the processes of a machine do what two must not do at once; needs no `join`. `lock`: a file to be made.

    Where nothing can be written, there is nothing to keep apart.
    """
    if _started_together():
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
        if os.access(lock.parent, os.W_OK):
            with filelock.FileLock(lock):
                yield
            return
    yield


def _started_together() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


# ---- Made that of the whole batch


def mean(value: Tensor, count: int) -> Tensor:
    """The mean over the images of all processes, of which `value`, of any shape, is the mean over this one's `count`.

    Differentiable, as often as need be: every process differentiates the same number, so its gradient by this process's copy of a parameter
    is what the copy contributes, times the number of processes. `average` makes it the gradient by the parameter.
    """
    if not dist.is_initialized():
        return value
    sums = _Sum.apply(torch.cat([(value * count).reshape(-1), value.new_full((1,), count)]))
    return sums[:-1].view_as(value) / sums[-1]


def average(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean over the processes of each of these tensors, by one all-reduce for all; differentiable in the same sense as `mean`."""
    if not dist.is_initialized() or not tensors:
        return list(tensors)
    flat = _Sum.apply(torch.cat([tensor.reshape(-1) for tensor in tensors])) / world_size()
    return [part.view_as(tensor) for part, tensor in zip(flat.split([tensor.numel() for tensor in tensors]), tensors, strict=True)]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """`average` of the gradients of those parameters that have one."""
    gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    for (parameter, _), gradient in zip(gradients, average([gradient for _, gradient in gradients]), strict=True):
        parameter.grad = gradient


class _Sum(torch.autograd.Function):
    """The sum over the processes. Each process's sum depends on every process's term, so a term's gradient is the sum of all of theirs."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        with _others():
            dist.all_reduce(x)
        return x

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is kept: the sum is linear."""

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return _Sum.apply(tangent)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, of any sizes; on CPUs, too, and differentiable twice, which torch's own is not.

    It has the parameters, buffers and `state_dict()` keys of `nn.BatchNorm2d`. Where there is no group, or a batch's own statistics are not
    wanted, it is one.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any batch of channels: (B, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:
        own_statistics = not self.training and self.running_mean is not None
        if own_statistics or not dist.is_initialized():
            return super().forward(input)
        mean, var, count = self.statistics(input)
        if self.training and self.track_running_stats:
            self._advance(mean.detach(), (var * count / (count - 1)).detach())
        scale = torch.rsqrt(var + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        shape = [-1] + [1] * (input.dim() - 2)  # of a channel's numbers, beside (B, C, ...)
        return torch.addcmul(shift.view(shape), input, scale.view(shape)).to(input.dtype)

    def statistics(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and (biased) variance of each channel over all processes, (C,), and the number of values that they are of."""
        pixels = [dim for dim in range(input.dim()) if dim != 1]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        var, mean = torch.var_mean(x, pixels, correction=0)
        mine = torch.cat([mean, var, mean.new_full((1,), x.numel() / x.size(1))])
        # A sum to which every process gives another row is a table of what each has. (Sums of squares, instead, would lose digits.)
        my_row = torch.arange(world_size(), device=x.device) == rank()
        table = _Sum.apply(my_row[:, None] * mine)
        means, vars, counts = table.split([x.size(1), x.size(1), 1], dim=1)  # (processes, C), (processes, C), (processes, 1)
        part = counts / counts.sum()
        mean = (part * means).sum(0)
        return mean, (part * (vars + (means - mean).square())).sum(0), counts.sum()

    @torch.no_grad()
    def _advance(self, mean: Tensor, var: Tensor) -> None:
        """Moves the running statistics, as `nn.BatchNorm2d` does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.to(mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum)


def convert(model: nn.Module) -> None:
    """Makes every BatchNorm of `model` a `SyncBatchNorm`, in place: its parameters stay the same objects, which optimizers hold already."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm


# ---- Agreed upon


def total(number: int) -> int:
    """The sum over the processes."""
    return _reduced(number, dist.ReduceOp.SUM)


def summed(counts: Tensor) -> Tensor:
    """The sum of these over the processes."""
    if not dist.is_initialized():
        return counts
    counts = counts.clone()
    with _others():
        dist.all_reduce(counts, dist.ReduceOp.SUM)
    return counts


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    return _reduced(number, dist.ReduceOp.MAX)


def _reduced(number: int, operation: dist.ReduceOp.RedOpType) -> int:
    if not dist.is_initialized():
        return number
    tensor = torch.tensor([number])
    with _others():
        dist.all_reduce(tensor, operation)
    return int(tensor)


def broadcast(content: bytes) -> bytes:
    """Process 0's `content`; that of the others is not read."""
    if not dist.is_initialized():
        return content
    received = torch.empty(largest(len(content) if rank() == 0 else 0), dtype=torch.uint8)
    if rank() == 0 and content:
        received.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    _broadcast(received)
    return received.numpy().tobytes()


def synchronize(model: nn.Module) -> None:
    """At the end of an epoch: gives all processes the same running statistics, the mean of theirs, and checks that all else is the same.

    Raises:
        UserError: a parameter of one process differs from process 0's, in any bit.
    """
    if not dist.is_initialized():
        return
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    for buffer, value in zip(statistics, average(statistics), strict=True):
        buffer.copy_(value)
    mine = [parameter.detach().reshape(-1).view(torch.uint8) for parameter in model.parameters()]
    first = torch.cat(mine)
    _broadcast(first)
    pairs = zip(mine, first.split([len(part) for part in mine]), strict=True)
    if number := largest(max((number for number, pair in enumerate(pairs, 1) if not torch.equal(*pair)), default=0)):
        name = [name for name, _ in model.named_parameters()][number - 1]
        raise UserError(f"{name} is not the same on all processes: do they run the same code, libraries and kind of device?")


def take_over(model: nn.Module) -> None:
    """Gives all processes the weights and statistics of process 0."""
    if dist.is_initialized():
        for tensor in model.state_dict().values():
            _broadcast(tensor)


def same_random_numbers(device: torch.device) -> None:
    """Every process's next random numbers, on the CPU and on `device`, are those of process 0: what they draw is decided together."""
    if not dist.is_initialized():
        return
    state = torch.get_rng_state()
    _broadcast(state)
    torch.set_rng_state(state)
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
        _broadcast(state)
        torch.cuda.set_rng_state(state, device)


def own_random_numbers() -> None:
    """Every process draws other random numbers, for images of its own; process 0 goes on with those it has."""
    if rank() > 0:
        torch.manual_seed(int(torch.randint(2**62, ())) + rank())


def _broadcast(tensor: Tensor) -> None:
    with _others():
        dist.broadcast(tensor, src=0)


@contextmanager
def _others() -> Iterator[None]:
    """What torch raises when another process is gone, or silent for too long, in words. An error of this one's own GPU is let through."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        raise UserError(
            "another process of this run has ended or does not answer, so this one stops, too: "
            f"see what the other said, then go on with --resume ({' '.join(str(error).split())[:200]})"
        ) from None
