"""What makes a network fast, applied to it from outside: memory format, compiled regions, recomputation.

The networks themselves (model_search.py, model.py, nas/) say what is computed and nothing about how. `accelerate` changes neither their
parameters nor the keys of their `state_dict()`: a run that was saved with it goes on without it, and the reverse.

*Regions* are compiled: the outermost modules that consist of nothing but tensor operations, in the search an edge of a cell. Regions of one
kind and shape share their compiled code. Whole cells take minutes to compile and run no faster.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._inductor.config  # a submodule that torch does not import by itself
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import model
import model_search
import operations
import utils
from experiment import distributed, errors
from speed.convolutions import use_fast_gradients

REGIONS = (model_search.MixedOp, operations.SepConv, operations.DilConv, operations.ReLUConvBN, operations.FactorizedReduce)
CELLS = (model_search.Cell, model.Cell)

# `--compile auto` compiles a run of at least so many multiply-adds, counted in one forward pass over each training batch. On two CPU cores,
# compiling the search network took one to three minutes and saved a quarter of each step; eager steps did 2e9 multiply-adds a second.
WORTH_COMPILING = 3e12

# Of the vectors that compiled code computes with, by what a processor can do; the compiler's choice for others.
VECTOR_BITS = {"AVX2": 256, "AVX512": 512}


def accelerate(network: nn.Module, args: argparse.Namespace, image_size: int, steps: int, device: torch.device) -> str:
    """Makes `network` fast, in place, and returns a line for the log that says what was done.

    The decision to compile depends on the arguments and on whether a compiler works, never on a clock: a run that goes on must compute
    what it computed before.

    Args:
        network: from images (B, C, S, S).
        args: `channels`, `batch_size`, `amp`, `compile` (`auto`, `yes` or `no`), `recompute` and `sync_bn` are read.
        image_size: S.
        steps: of the whole run.
        device: the network's.
    """
    if args.sync_bn:
        distributed.convert(network)
    set_memory_format(network, device, args.amp)
    work = 1e6 * utils.count_multiply_adds(network, image_size, args.channels) * args.batch_size * steps
    if args.recompute:
        recompute(network)
    if args.sync_bn and distributed.world_size() > 1 and args.compile != "no":
        return "not compiled: --sync_bn sends messages within the network"
    return compile_where_worth(network, args.compile, work, len(range(args.batch_size)[distributed.share(args.batch_size)]), device)


def set_memory_format(network: nn.Module, device: torch.device, amp: bool = False) -> None:
    """Makes `network` bring its images into the order that convolutions on `device` are fast in; on a CPU with fast gradients, too.

    On CPUs that is `channels_last`, which halves a step's time (benchmarks/README.md). On GPUs it is the order of tensor cores, for
    bfloat16; cuDNN has no fast depthwise convolution of float32 in it (PyTorch's `use_cudnn_depthwise`, in
    aten/src/ATen/native/Convolution.cpp, takes float16 and bfloat16 only).
    """
    format = torch.channels_last if device.type == "cpu" or amp else torch.contiguous_format
    if device.type == "cpu":
        use_fast_gradients(network)
    if device.type == "cpu" and any(map(_corrupts_memory, network.modules())):
        format = torch.contiguous_format
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(memory_format=format), *inputs[1:]))


def _corrupts_memory(module: nn.Module) -> bool:
    """Whether this convolution must not be computed in `channels_last` on a CPU (speed/convolutions.py); operations.py has none."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.groups == 1
        and module.in_channels < 16
    )


def recompute(network: nn.Module) -> None:
    """Makes the cells of `network` keep nothing for the backward pass but their inputs, and compute the rest again there."""
    for cell in network.modules():
        if isinstance(cell, CELLS):
            cell.forward = _recomputed(cell)  # type: ignore[method-assign]


def compile_where_worth(
    network: nn.Module, choice: str, work: float, batch_size: int, device: torch.device, regions: tuple[type[nn.Module], ...] = REGIONS
) -> str:
    """`compile_regions` of a network whose run takes so much work, in multiply-adds, as `choice` (`auto`, `yes` or `no`) says.

    Returns a line for the log that says what was done.
    """
    if choice == "no":
        return "not compiled: --compile no"
    if choice == "auto" and work < WORTH_COMPILING:
        return f"not compiled: {work:.0e} multiply-adds are too few to earn it back (--compile yes compiles anyway)"
    if reason := _no_compiler(device):
        return f"not compiled: no compiler works here ({reason})"
    compile_regions(network, batch_size, regions)
    return "compiled: the first steps take a minute or two longer"


def compile_regions(network: nn.Module, batch_size: int, regions: tuple[type[nn.Module], ...] = REGIONS) -> None:
    """Compiles the regions of `network` for batches of this size. Others, such as an epoch's last, are computed without compiled code."""
    for region in _outermost(network, regions):
        region.forward = types.MethodType(_compiled(type(region), batch_size), region)  # type: ignore[arg-type, method-assign]


def _no_compiler(device: torch.device) -> str:
    """Why nothing can be compiled for `device`; empty if something can."""
    try:
        torch.compile(lambda x: 2 * x, dynamic=False)(torch.ones(2, device=device))
    except Exception as error:  # a missing C++ compiler, a missing Triton and an old GPU are told in many ways
        return errors.shorten(" ".join(str(error).split()) or type(error).__name__)
    return ""


def _outermost(module: nn.Module, regions: tuple[type[nn.Module], ...] = REGIONS) -> Iterator[nn.Module]:
    """The regions of a network."""
    for child in module.children():
        if (isinstance(child, regions) and getattr(child, "compilable", True)) or (
            isinstance(child, nn.Sequential) and all(map(_is_layer, child))
        ):
            yield child
        else:
            yield from _outermost(child, regions)


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.children())


@functools.cache
def _compiled(kind: Any, batch_size: int) -> Callable[..., Tensor]:
    """`kind.forward`, compiled: one function for all modules of this type, which compiles once for each shape and mode of them."""
    # More than the default of 8: a network has regions of about 6 shapes, each in training and in evaluation, with and without gradients.
    torch._dynamo.config.recompile_limit = 256
    # Stated, because it is part of the key of the compiler's cache, and what the processor can do is not: on AVX-512, code from the cache
    # that had been made for AVX2 gave wrong gradients without a word (PyTorch 2.14).
    torch._inductor.config.cpp.simdlen = VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
    compiled = torch.compile(kind.forward, fullgraph=True, dynamic=False)

    def forward(self: nn.Module, x: Tensor, *others: Any) -> Tensor:
        nonlocal compiled
        if x.size(0) != batch_size:
            return kind.forward(self, x, *others)
        try:
            return compiled(self, x, *others)
        except torch._dynamo.exc.TorchDynamoException as error:
            errors.warn(f"cannot compile {kind.__name__}, which is computed without ({errors.shorten(' '.join(str(error).split()))})")
            compiled = kind.forward
            return compiled(self, x, *others)

    return forward


def _recomputed(cell: nn.Module) -> Callable[..., Tensor]:
    """The cell's `forward` that keeps its inputs only (Chen et al. 2016, 1604.06174)."""
    forward, inside = cell.forward, False

    def recomputed(*inputs: Any) -> Tensor:
        # Checkpoints do not go with forward-mode derivatives (`--hvp exact`): that pass keeps what it needs.
        if inside or not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return forward(*inputs)
        # Those of this pass: under `functional_call` they are not the cell's own, and the backward pass comes after it.
        parameters, buffers = dict(cell.named_parameters()), dict(cell.named_buffers())
        passes = itertools.count()

        def run(*inputs: Any) -> Tensor:
            nonlocal inside
            # The second pass works on copies of the buffers: running statistics advance once.
            own = buffers if next(passes) == 0 else {name: buffer.clone() for name, buffer in buffers.items()}
            inside = True
            try:
                return functional_call(cell, parameters | own, inputs)
            finally:
                inside = False

        return checkpoint(run, *inputs, use_reentrant=False)

    return recomputed
