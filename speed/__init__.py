"""Makes a run's steps faster from outside: faster layers, compiled regions, recomputation, CUDA graphs.

The networks (model_search.py, model.py, nas/) define what is computed, not how. Nothing here changes their parameters
or the keys of their `state_dict()`, so a run can be resumed with or without it. What each part gains, and its switch,
is in benchmarks/README.md. Parts that need private names of PyTorch are imported where they are used; a name that is
missing costs speed, not the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import model_search
from experiment import distributed, errors
from experiment.loop import Step
from speed import layers

Regions = Mapping[type[nn.Module], tuple[str, ...]]  # {type: the methods to compile}; of a subclass, only `forward` is

# `--compile auto` compiles runs with at least this many multiply-adds, counting one forward pass over each training
# batch. On two CPU cores, eager steps did 2e9 multiply-adds a second, so this is more than an hour, of which compiled
# steps save a third. Compiling took from one minute to more than a quarter of an hour, on a slow and busy machine. On a
# CPU, networks without mixed operations are not compiled: their regions are small, and their steps took longer
# compiled.
WORTH_COMPILING = 1e13

uses_compiled_code = True  # whether this process does, where it has compiled something; the check turns it off


def fast_step(
    plain: Step,
    model: nn.Module,
    parts: Sequence[Any],
    args: argparse.Namespace,
    multiply_adds: float,
    log: Callable[[str], None],
    regions: Regions | None = None,
) -> Step:
    """Makes `model` faster, in place, and returns `plain` or a faster step that computes the same. Logs what was done.

    Whether it compiles depends on the arguments and on whether a compiler works, never on measured times: a resumed run
    must compute the same as before. A compiled or captured step is compared with `plain` on its first batch
    (verification.py).

    Args:
        plain: a step of `model` on a batch whose last tensor is (..., batch size). Of its results, the first is the
            loss.
        parts: what else a step changes, with `state_dict()` and `load_state_dict()`; the first is the optimizer of the
            weights.
        multiply_adds: of the whole run, counting forward passes over its training batches.
        regions: what is compiled, if `model` is not one for images.
    """
    device = next(model.parameters()).device
    batch_size = len(range(args.batch_size)[distributed.share(args.batch_size)])
    reason = _why_not_compiled(model, args, multiply_adds, device, regions is None)
    how = f"not compiled: {reason}" if reason else "compiled: first step and first evaluation take minutes longer"
    log(how if device.type == "cuda" else f"{how}; threads: {torch.get_num_threads()}")
    if regions is None:
        apply(model, device, args.amp, recomputed=args.recompute)
    if not reason:
        from speed import compilation

        passes = {None: 2, False: 3, True: 5}[getattr(args, "unrolled", None)]  # a training has no such argument
        compilation.compile_regions(model, batch_size, regions, passes)
    fast = plain
    if getattr(args, "capture", False):
        from speed import capture

        fast = capture.CapturedStep(plain, model, parts, batch_size)
    if reason and fast is plain:
        return plain
    from speed import verification

    return verification.checked_step(fast, plain, model, parts, batch_size, log)


def apply(
    network: nn.Module,
    device: torch.device,
    amp: bool = False,
    compiled_for: int | None = None,
    recomputed: bool = False,
) -> None:
    """The changes that `fast_step` makes to a network for images, without its decisions.

    Args:
        amp: whether it will run in autocast.
        compiled_for: the batch size that its regions are compiled for; None: not compiled.
        recomputed: whether its cells recompute their activations in the backward pass.
    """
    layers.set_memory_format(network, device, amp)
    layers.share_pools(network)
    if "nas.spaces.nasbench201" in sys.modules and device.type == "cpu" and not amp:
        from speed import merging

        merging.merge_cells(network)
    if compiled_for is not None:
        from speed import compilation

        compilation.compile_regions(network, compiled_for)
    if recomputed:
        from speed import recomputation

        recomputation.recompute(network)


def _why_not_compiled(
    model: nn.Module, args: argparse.Namespace, multiply_adds: float, device: torch.device, images: bool
) -> str:
    """The reason why a run should not be compiled; empty if it should."""
    if args.compile == "no":
        return "--compile no"
    if images and args.sync_bn and distributed.world_size() > 1:
        return "--sync_bn communicates within the network"
    if args.compile == "auto" and images and device.type == "cpu" and not any(map(_is_large, model.modules())):
        return "on a CPU, that makes only searches with mixed operations faster (--compile yes compiles anyway)"
    if args.compile == "auto" and multiply_adds < WORTH_COMPILING:
        return f"{multiply_adds:.0e} multiply-adds are too few for compiling to pay off (--compile yes compiles anyway)"
    try:
        from speed import compilation

        compilation.try_compiler(device)
    except Exception as error:  # they differ: no C++ compiler, no Triton, an old GPU, another PyTorch
        return f"no compiler works here ({errors.shorten(' '.join(str(error).split()) or type(error).__name__)})"
    return ""


def _is_large(module: nn.Module) -> bool:
    """Whether this is a mixed operation that is compiled as a whole. Those of GDAS run one operation in each pass."""
    return isinstance(module, model_search.MixedOp) and getattr(module, "compilable", True)
