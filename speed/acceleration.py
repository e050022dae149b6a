"""Makes networks faster from outside: memory format, compiled regions; pooling.py and recomputation.py do the rest.

The networks (model_search.py, model.py, nas/) define what is computed, not how. `accelerate` changes neither their parameters nor the keys
of their `state_dict()`, so a run can be resumed with or without it.

*Regions* are compiled: the outermost modules that consist only of tensor operations, in the search the edges of cells. Regions of the same
type and shape share compiled code. Whole cells take minutes to compile and are not faster.
"""

from __future__ import annotations

import argparse
import functools
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch._inductor.config  # a submodule that torch does not import by itself
from torch import Tensor, nn

import model_search
import operations
import utils
from experiment import distributed, errors
from speed import pooling, products
from speed.convolutions import use_fast_gradients
from speed.recomputation import recompute

Regions = Mapping[type[nn.Module], tuple[str, ...]]  # {type: the methods to compile}; of a subclass, only `forward` is compiled
REGIONS: Regions = {
    pooling.Edge: ("pool", "mix"),
    model_search.MixedOp: ("forward",),
    **dict.fromkeys((operations.SepConv, operations.DilConv, operations.ReLUConvBN, operations.FactorizedReduce), ("forward",)),
}

# `--compile auto` compiles runs with at least this many multiply-adds, counting one forward pass over each training batch. On two CPU
# cores, eager steps did 2e9 multiply-adds a second, so this is more than an hour, of which compiled steps save a third. Compiling took
# from one minute to more than a quarter of an hour, on a slow and busy machine. On a CPU, networks without mixed operations are not
# compiled: their regions are small, and their steps took longer compiled.
WORTH_COMPILING = 1e13

# Of the vectors that compiled code computes with, by what a processor can do; the compiler's choice for others.
VECTOR_BITS = {"AVX2": 256, "AVX512": 512}


def accelerate(network: nn.Module, args: argparse.Namespace, multiply_adds: float, steps: int, device: torch.device) -> str:
    """Makes `network` faster, in place, and sets the number of threads. Returns a line for the log about what was done.

    Whether it compiles depends on the arguments and on whether a compiler works, never on measured times: a resumed run must compute the
    same as before.

    Args:
        network: a network for images.
        args: `batch_size`, `threads`, `amp`, `compile` (`auto`, `yes` or `no`), `recompute` and `sync_bn` are read.
        multiply_adds: millions, for one image (`utils.count_multiply_adds`).
        steps: training steps of the whole run.
        device: the device of the network.
    """
    if args.sync_bn:
        distributed.convert(network)
    if args.sync_bn and distributed.world_size() > 1 and args.compile != "no":
        reason = "--sync_bn communicates within the network"
    elif args.compile == "auto" and device.type == "cpu" and not any(map(_is_large_region, network.modules())):
        reason = "on a CPU, that makes only searches with mixed operations faster (--compile yes compiles anyway)"
    else:
        reason = _why_not_compiled(args.compile, 1e6 * multiply_adds * args.batch_size * steps, device)
    batch_size = len(range(args.batch_size)[distributed.share(args.batch_size)])
    threads = utils.set_threads(args, 1e6 * multiply_adds * batch_size, device)
    _compiler.passes = _passes(network, args)
    apply(network, device, args.amp, None if reason else batch_size, args.recompute)
    return _line(reason, threads)


def apply(network: nn.Module, device: torch.device, amp: bool = False, compiled_for: int | None = None, recomputed: bool = False) -> None:
    """What `accelerate` does to a network, without its decisions.

    Args:
        network: a network for images.
        device: its device.
        amp: whether it will run in autocast.
        compiled_for: the batch size that its regions are compiled for; None: not compiled.
        recomputed: whether its cells recompute their activations in the backward pass.
    """
    set_memory_format(network, device, amp)
    pooling.share_pools(network)
    if compiled_for is not None:
        compile_regions(network, compiled_for)
    if recomputed:
        recompute(network)


def set_memory_format(network: nn.Module, device: torch.device, amp: bool = False) -> None:
    """Makes `network` convert its images to the memory format that is fastest on `device`. On a CPU, also uses fast gradients.

    On CPUs, this is `channels_last`, which halves the time of a step (benchmarks/README.md). On GPUs, it is `channels_last` for bfloat16,
    which tensor cores need. In float32, cuDNN has no fast depthwise convolution for it (`use_cudnn_depthwise` in PyTorch's
    aten/src/ATen/native/Convolution.cpp accepts only float16 and bfloat16).
    """
    format = torch.channels_last if device.type == "cpu" or amp else torch.contiguous_format
    if device.type == "cpu":
        use_fast_gradients(network)
    if device.type == "cpu" and any(map(_corrupts_memory, network.modules())):
        format = torch.contiguous_format
    network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(memory_format=format), *inputs[1:]))


def _corrupts_memory(module: nn.Module) -> bool:
    """Whether this convolution must not run in `channels_last` on a CPU (speed/convolutions.py). operations.py has no such convolution."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.groups == 1
        and module.in_channels < 16
    )


def compile_where_worth(
    network: nn.Module, args: argparse.Namespace, multiply_adds: float, steps: int, device: torch.device, regions: Regions
) -> str:
    """Sets the number of threads. Calls `compile_regions` if `args.compile` is `yes`, or is `auto` and the run is long enough.

    Returns a line for the log about what was done.

    Args:
        multiply_adds: of a forward pass over a batch.
        steps: of the whole run.
    """
    threads = utils.set_threads(args, multiply_adds, device)
    _compiler.passes = _passes(network, args)
    reason = _why_not_compiled(args.compile, multiply_adds * steps, device)
    if not reason:
        compile_regions(network, args.batch_size, regions)
    return _line(reason, threads)


def _why_not_compiled(choice: str, work: float, device: torch.device) -> str:
    """The reason why a run should not be compiled; empty if it should."""
    if choice == "no":
        return "--compile no"
    if choice == "auto" and work < WORTH_COMPILING:
        return f"{work:.0e} multiply-adds are too few for compiling to pay off (--compile yes compiles anyway)"
    reason = _no_compiler(device)
    return reason and f"no compiler works here ({reason})"


def _line(reason: str, threads: str) -> str:
    line = f"not compiled: {reason}" if reason else "compiled: the first step and the first evaluation take minutes longer"
    return f"{line}; {threads}" if threads else line


def compile_regions(network: nn.Module, batch_size: int, regions: Regions = REGIONS) -> None:
    """Compiles the regions of `network` for batches of this size. Batches of other sizes run without compiled code.

    A region with a method `rows` gets `rows(batch_size)` rows at once.
    """
    found = list(_outermost(network, regions))
    methods = [(repr(region), name) for region in found for name in regions.get(type(region), ("forward",))]
    _compiler.methods = len(set(methods))
    for region in found:
        rows = region.rows(batch_size) if hasattr(region, "rows") else batch_size  # type: ignore[operator]
        for name in regions.get(type(region), ("forward",)):
            setattr(region, name, types.MethodType(_compiled(type(region), name, rows), region))  # type: ignore[arg-type]


def compiled_methods(network: nn.Module) -> list[tuple[nn.Module, str, types.MethodType]]:
    """(region, name, method): what `compile_regions` has done to `network`."""
    items = [(module, name, value) for module in network.modules() for name, value in vars(module).items()]
    return [item for item in items if isinstance(item[2], types.MethodType) and hasattr(item[2].__func__, "eager")]


def uncompile(network: nn.Module) -> None:
    """The inverse of `compile_regions`."""
    for region, name, _ in compiled_methods(network):
        delattr(region, name)


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Takes the compiled code off `network` for a while."""
    methods = compiled_methods(network)
    uncompile(network)
    try:
        yield
    finally:
        for region, name, method in methods:
            setattr(region, name, method)


def _no_compiler(device: torch.device) -> str:
    """The reason why `torch.compile` does not work for `device`; empty if it works."""
    try:
        torch.compile(lambda x: 2 * x, dynamic=False)(torch.ones(2, device=device))
    except Exception as error:  # the exceptions differ: no C++ compiler, no Triton, an old GPU
        return errors.shorten(" ".join(str(error).split()) or type(error).__name__)
    return ""


def _outermost(module: nn.Module, regions: Regions = REGIONS) -> Iterator[nn.Module]:
    """The regions of a network."""
    for child in module.children():
        if (isinstance(child, tuple(regions)) and getattr(child, "compilable", True)) or (
            isinstance(child, nn.Sequential) and all(map(_is_layer, child))
        ):
            yield child
        else:
            yield from _outermost(child, regions)


def _is_large_region(module: nn.Module) -> bool:
    """Whether this is a mixed operation that is compiled as a whole. Those of GDAS are not: each pass runs one of their operations."""
    return isinstance(module, model_search.MixedOp) and getattr(module, "compilable", True)


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.children())


def _passes(network: nn.Module, args: argparse.Namespace) -> int:
    """For how many kinds of passes a region is compiled again: training of weights, evaluation, and in a search those for the alphas."""
    if not hasattr(network, "arch_parameters"):
        return 2
    return 5 if args.unrolled else 3


class _Compiler:
    """Tells on standard error how far the compiler is, about every ten seconds."""

    methods = 0  # of regions that differ
    passes = 3  # for which each method is compiled again: to train weights and alphas, and to evaluate

    def __init__(self) -> None:
        self._done, self._seconds, self._told = 0, 0.0, 0.0

    def has_compiled(self, seconds: float) -> None:
        self._done += 1
        self._seconds += seconds
        if self._seconds - self._told >= 10:
            self._told = self._seconds
            expected = max(self._done, self.methods * self.passes)
            left = errors.duration(self._seconds / self._done * (expected - self._done))
            errors.tell(f"compiling: {self._done} of about {expected} parts in {errors.duration(self._seconds)}, about {left} left")


_compiler = _Compiler()


@functools.cache
def _compiled(kind: Any, name: str, batch_size: int) -> Callable[..., Any]:
    """The method `name` of `kind`, compiled. All modules of this type share it; it compiles once for each of their shapes and modes."""
    # The default of 8 is too low: regions have about 6 shapes, each in training and evaluation, with and without gradients.
    torch._dynamo.config.recompile_limit = 256
    # Stated, because it is part of the key of the compiler's cache, and what the processor can do is not: on AVX-512, code from the cache
    # that had been made for AVX2 gave wrong gradients without a word (PyTorch 2.14).
    torch._inductor.config.cpp.simdlen = VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
    eager = getattr(kind, name)
    # It draws the random numbers that plain code draws, so that the two can be compared (verification.py).
    options = {**products.options(), "fallback_random": True}
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, options=options)

    def forward(self: nn.Module, x: Tensor, *others: Any) -> Any:
        nonlocal compiled
        if x.size(0) != batch_size:
            return eager(self, x, *others)
        graphs, started = torch._dynamo.utils.counters["stats"]["unique_graphs"], time.perf_counter()
        try:
            output = compiled(self, x, *others)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = errors.shorten(" ".join(str(error).split()))
            errors.warn(f"cannot compile {kind.__name__}.{name}; it runs without compiled code ({reason})")
            compiled = eager
            return compiled(self, x, *others)
        if torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs:
            _compiler.has_compiled(time.perf_counter() - started)
        return output

    forward.eager = eager  # type: ignore[attr-defined]
    return forward
