"""Data-parallel training with several processes, on the GPUs of one or several machines.

    torchrun --nproc_per_node=4 train_search.py --unrolled --batch_size 64     # 16 images of a batch per GPU

Every process holds the whole network and computes on its share of each batch. `mean` combines losses, `average` and
`data_parallel` gradients, into those of the whole batch. All processes make the same steps, so their weights and alphas
stay bitwise equal. With a single process there is no process group, and every function here returns its input.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

import filelock
import torch
import torch.distributed as dist
from torch import Tensor, nn

from experiment.errors import UserError

# How long processes wait for each other: while some still load images or compile, and while the first one writes, draws
# and runs callbacks. A process that ends is noticed at once.
TIMEOUT = timedelta(minutes=30)


def join(device: torch.device) -> None:
    """Creates the process group of the processes that torchrun started: NCCL on GPUs, gloo on CPUs. Without torchrun,
    does nothing.

    Call it after the images are loaded. It waits for the slowest process. If a process does not answer for `TIMEOUT`,
    now or later, the others end with a `UserError`.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():  # a program may make several runs
        return
    with others():
        store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # torchrun may keep one store for all restarts: no process is to read keys of the attempt before.
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        # Small tensors on the CPU go through gloo, also in runs on GPUs.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)


def rank() -> int:
    """This process's rank. Process 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process's rank on its machine; available before `join`."""
    return int(os.environ.get("LOCAL_RANK", 0))


def share(count: int) -> slice:
    """This process's share of a batch of `count` images: contiguous, ordered by rank. Shares differ by one at most."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Lets the processes of a machine, also of different runs, run the body one after the other, by the file `lock`.

    Nothing can be written at the same time in a folder that is not writable: there is no lock.
    """
    with suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock) if os.access(lock.parent, os.W_OK) else nullcontext():
        yield


# ---- Combining shares into the whole batch


def mean(value: Tensor, count: int) -> Tensor:
    """The mean over the images of all processes. `value`, of any shape, is the mean over the `count` images of this
    process.

    Differentiable any number of times. Every process differentiates the same mean, so the gradient with respect to this
    process's copy of a parameter is the copy's contribution times the number of processes. `average` turns it into the
    gradient with respect to the parameter.
    """
    return mean_and_count(value, count)[0] if dist.is_initialized() else value


def mean_and_count(value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`mean`, in a process group, and the sum of the counts, ()."""
    sums = _Sum.apply(torch.cat([(value * count).reshape(-1), value.new_full((1,), count)]))
    return sums[:-1].view_as(value) / sums[-1], sums[-1]


def average(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over the processes, by a single `all_reduce`. Differentiable like `mean`."""
    if not dist.is_initialized() or not tensors:
        return list(tensors)
    flat = _Sum.apply(torch.cat([tensor.reshape(-1) for tensor in tensors])) / world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def data_parallel(model: nn.Module) -> nn.Module:
    """Returns a module that computes what `model` does, and during `backward` replaces the gradients by their
    `average`.

    Every forward pass through it must use the same parameters, not necessarily all of them.
    """
    if world_size() == 1:
        return model
    # They differ for convolutions with one input channel or pixel, where they mean the same memory.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with warnings.catch_warnings(), others():
        warnings.simplefilter("ignore", FutureWarning)  # `broadcast_buffers` has another name since PyTorch 2.14
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, static_graph=True)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces the gradients of `parameters` by their `average`. Parameters without a gradient are skipped."""
    learned = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter, gradient in zip(learned, average([parameter.grad for parameter in learned]), strict=True):  # type: ignore[misc]
        parameter.grad = gradient


class _Sum(torch.autograd.Function):
    """The sum over the processes.

    Every process's result depends on every term, so the gradient of a term is summed over processes too.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        """The sum is linear, so nothing is saved."""

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


# ---- Values that all processes share


def summed(counts: Tensor) -> Tensor:
    """The sum of `counts` over the processes."""
    return _Sum.apply(counts) if dist.is_initialized() else counts


def total(number: int) -> int:
    """The sum of `number` over the processes."""
    return int(summed(torch.tensor(number)))


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    tensor = torch.tensor(number)
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def broadcast(content: bytes) -> bytes:
    """`content` of process 0, on all processes."""
    contents = [content]
    if dist.is_initialized():
        dist.broadcast_object_list(contents, src=0, device=torch.device("cpu"))
    return contents[0]


def synchronize(model: nn.Module) -> None:
    """At the end of an epoch: averages running statistics over the processes. Raises `UserError` if the parameters are
    not equal to the bit on all of them."""
    if not dist.is_initialized():
        return
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    for buffer, value in zip(statistics, average(statistics), strict=True):
        buffer.copy_(value)
    names, different = [""], 0
    for name, parameter in model.named_parameters():
        names.append(name)
        mine = parameter.detach().reshape(-1)
        first = mine.clone()
        dist.broadcast(first, src=0)
        if not torch.equal(mine.view(torch.uint8), first.view(torch.uint8)):
            different = len(names) - 1
    if name := names[largest(different)]:
        raise UserError(
            f"{name} is not the same on all processes: do they run the same code, libraries and kind of device?"
        )


def take_over(model: nn.Module) -> None:
    """Copies weights and running statistics of process 0 to all processes."""
    if dist.is_initialized():
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def same_random_numbers(device: torch.device) -> None:
    """Gives all processes the random states of process 0, on the CPU and on `device`: they draw the same numbers."""
    if not dist.is_initialized():
        return
    state = torch.get_rng_state()
    dist.broadcast(state, src=0)
    torch.set_rng_state(state)
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
        dist.broadcast(state, src=0)
        torch.cuda.set_rng_state(state, device)


def own_random_numbers() -> None:
    """Gives every process other random numbers, for its own images. Those of process 0 do not change."""
    if rank() > 0:
        torch.manual_seed(int(torch.randint(2**62, ())) + rank())


@contextmanager
def others() -> Iterator[None]:
    """Turns torch's errors about a lost or silent process into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # which has no class of its own
            raise
        raise UserError(
            "another process of this run has ended or does not answer, so this one stops, too: "
            f"see what the other said, then go on with --resume ({' '.join(str(error).split())[:200]})"
        ) from None
