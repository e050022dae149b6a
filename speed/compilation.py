"""Compiles the regions of a network: the outermost modules that consist only of tensor operations, in the search the
edges of cells.

Regions of the same type and shape share compiled code. Whole cells take minutes to compile and are not faster.
"""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._dynamo.config
import torch._inductor.config
from torch import Tensor, fx, nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

import model_search
import operations
import speed
from experiment import errors
from speed import Regions, layers

REGIONS: Regions = {
    layers.Edge: ("pool", "mix"),
    model_search.MixedOp: ("forward",),
    operations.SepConv: ("forward",),
    operations.DilConv: ("forward",),
    operations.ReLUConvBN: ("forward",),
    operations.FactorizedReduce: ("forward",),
}

# Of the vectors that compiled code computes with, by what a processor can do; the compiler's choice for others.
VECTOR_BITS = {"AVX2": 256, "AVX512": 512}


class Progress:
    """How far the compiler is, which it tells about every ten seconds of its time."""

    def __init__(self, parts: int) -> None:
        self._parts, self._done, self._seconds, self._told = parts, 0, 0.0, 0.0

    def has_compiled(self, seconds: float) -> None:
        self._done += 1
        self._seconds += seconds
        if self._seconds - self._told >= 10:
            self._told, parts = self._seconds, max(self._done, self._parts)
            spent, left = (errors.duration(self._seconds * share) for share in (1, parts / self._done - 1))
            errors.tell(f"compiling: {self._done} of about {parts} parts in {spent}, about {left} left")


def compile_regions(network: nn.Module, batch_size: int, regions: Regions | None = None, passes: int = 3) -> None:
    """Compiles the regions of `network` for batches of this size. Batches of other sizes run without compiled code.

    A region with a method `rows` gets `rows(batch_size)` rows at once.

    Args:
        regions: None: `REGIONS`.
        passes: for how many kinds of passes a region is compiled again, such as evaluation, to estimate the time.
    """
    speed.uses_compiled_code = True
    if regions is None:
        merging = sys.modules.get("speed.merging")  # only imported for NAS-Bench-201
        regions = {**REGIONS, merging.MergedCell: ("mix",)} if merging else REGIONS
    found = [
        (region, name) for region in outermost(network, regions) for name in regions.get(type(region), ("forward",))
    ]
    progress = Progress(passes * len({(repr(region), name) for region, name in found}))
    shared: dict[Any, Callable[..., Any]] = {}
    for region, name in found:
        rows = region.rows(batch_size) if hasattr(region, "rows") else batch_size  # type: ignore[operator]
        key = type(region), name, rows
        if key not in shared:
            shared[key] = _compiled(*key, progress)
        setattr(region, name, types.MethodType(shared[key], region))


def outermost(module: nn.Module, regions: Regions = REGIONS) -> Iterator[nn.Module]:
    """The regions of a network."""
    for child in module.children():
        is_region = isinstance(child, tuple(regions)) and getattr(child, "compilable", True)
        if is_region or (isinstance(child, nn.Sequential) and all(map(_is_layer, child))):
            yield child
        else:
            yield from outermost(child, regions)


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not any(True for _ in module.children())


def try_compiler(device: torch.device) -> None:
    """Raises an exception if `torch.compile` does not work for `device`."""
    torch.compile(lambda x: 2 * x, dynamic=False, options=options())(torch.ones(2, device=device))


def _compiled(kind: Any, name: str, rows: int, progress: Progress) -> Callable[..., Any]:
    """The method `name` of `kind`, compiled for inputs of so many rows. It compiles once for each shape and mode of its
    modules."""
    eager = getattr(kind, name)
    compiled = torch.compile(eager, fullgraph=True, dynamic=False, options=options())

    def method(self: nn.Module, x: Tensor, *others: Any) -> Any:
        nonlocal compiled
        if not speed.uses_compiled_code or x.size(0) != rows:
            return eager(self, x, *others)
        graphs, started = counters["stats"]["unique_graphs"], time.perf_counter()
        try:
            output = compiled(self, x, *others)
        except TorchDynamoException as error:
            reason = errors.shorten(" ".join(str(error).split()))
            errors.warn(f"cannot compile {kind.__name__}.{name}; it runs without compiled code ({reason})")
            compiled = eager
            return compiled(self, x, *others)
        if counters["stats"]["unique_graphs"] > graphs:
            progress.has_compiled(time.perf_counter() - started)
        return output

    return method


def options() -> dict[str, Any]:
    """The options of torch.compile. Also sets those that it does not take."""
    # The default of 8 is too low: regions have about 6 shapes, each in training and evaluation, with and without
    # gradients.
    torch._dynamo.config.recompile_limit = 256
    # Stated, because it is part of the key of the compiler's cache, and what the processor can do is not: on AVX-512,
    # code from the cache that had been made for AVX2 gave wrong gradients without a word (PyTorch 2.14).
    torch._inductor.config.cpp.simdlen = VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
    onednn = {"post_grad_custom_post_pass": UseOneDNN()} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}
    # Compiled code draws the random numbers that plain code draws, so that the two can be compared (verification.py).
    return {**onednn, "fallback_random": True}


# ---- Matrix products on a CPU


class UseOneDNN(CustomGraphPass):
    """Makes compiled code compute products of float32 matrices on a CPU with oneDNN, as PyTorch computes convolutions,
    instead of MKL.

    On an AMD EPYC with AVX-512, this takes less than half of the time for products as large as those of the recurrent
    search (docs/recurrent.md).
    """

    def __call__(self, graph: fx.Graph) -> None:
        aten = torch.ops.aten
        for node in [node for node in graph.nodes if node.target in (aten.mm.default, aten.addmm.default)]:
            value = node.meta["val"]
            *bias, a, b = node.args
            if value.device.type != "cpu" or value.dtype != torch.float32 or a.meta["val"].numel() == 0:
                continue
            if node.kwargs:  # `addmm` with factors stays as it is
                continue
            with graph.inserting_before(node):
                faster = graph.call_function(torch.ops.darts.product.default, (a, b))
                faster.meta = dict(node.meta)
                for term in bias:
                    faster = graph.call_function(aten.add.Tensor, (faster, term))
                    faster.meta = dict(node.meta)
            node.replace_all_uses_with(faster)
            graph.erase_node(node)

    def uuid(self) -> bytes:
        """The key of this pass in the compiler's cache."""
        return get_hash_for_files((__file__,))


@torch.library.custom_op("darts::product", mutates_args=())
def product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two float32 matrices on the CPU, (M, K) and (K, N)."""
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


@product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.size(0), b.size(1))
