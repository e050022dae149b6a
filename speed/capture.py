"""Captures a whole step as one CUDA graph: one call starts tens of thousands of kernels.

A graph repeats the same kernels on the same memory. Therefore a captured step must not read values from the GPU. Its
inputs are copied to the memory that the graph reads, and numbers that change between epochs (learning rates, the drop
path probability) are replaced by tensors. On a CPU, the same code runs the step itself instead of a graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiment import errors
from experiment.loop import Step
from experiment.run import random_states, set_random_states

WARM_UPS = 3  # steps before a capture: the first compiles and selects kernels, the others stabilise memory


class CapturedStep:
    """A step that is captured in its first call and replayed in the others. Returned tensors are valid until the next
    call.

    Batches of another size, such as the last of an epoch, run the step itself. If the capture fails, all batches do,
    with a warning on standard error.

    Args:
        step: it changes only `model` and `parts`.
        model: its attribute `drop_path_prob`, if it has one, may change between calls.
        parts: optimizers, and learners of alphas with an `optimizer`. The learning rate of the first may change between
            calls.
        batch_size: the size of the batches to capture.
    """

    def __init__(self, step: Step, model: nn.Module, parts: Sequence[Any], batch_size: int) -> None:
        self._step, self._model, self._parts, self._batch_size = step, model, parts, batch_size
        self._optimizers = [part if isinstance(part, torch.optim.Optimizer) else part.optimizer for part in parts]
        self._replay: Callable[[], tuple[Tensor, ...]] | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if any(len(x) != self._batch_size for x in inputs):
            return self._step(*inputs)
        if self._replay is None:
            self._inputs = [x.clone() for x in inputs]
            self._tensors = [torch.tensor(holder[key], device=inputs[0].device) for holder, key in self._numbers()]
            restore = remember(self._model, self._parts)
            try:
                graph = cuda_graph if inputs[0].is_cuda else no_graph
                self._replay = graph(self._run, lambda: self._warm_up(restore), self._model)
            except RuntimeError as error:
                restore()
                reason = errors.shorten(" ".join(str(error).split()))
                errors.warn(f"cannot capture the step; it runs without a CUDA graph ({reason})")
                self._batch_size = -1  # no batch has it
                return self._step(*inputs)
        for static, x in zip(self._inputs, inputs, strict=True):
            static.copy_(x, non_blocking=True)
        for (holder, key), tensor in zip(self._numbers(), self._tensors, strict=True):
            tensor.fill_(holder[key])
        return self._replay()

    def _warm_up(self, restore: Callable[[], None]) -> None:
        """Runs the step without a trace, except for its optimizers' state, which a graph cannot create."""
        for _ in range(WARM_UPS):
            self._run()
        states = [(optimizer, dict(optimizer.state)) for optimizer in self._optimizers]
        restore()
        for optimizer, state in states:
            for parameter, values in state.items():
                if parameter not in optimizer.state:  # momentum and moments before the first step are 0
                    zeros = {key: torch.zeros_like(value) for key, value in values.items() if value is not None}
                    optimizer.state[parameter] = zeros

    def _run(self) -> tuple[Tensor, ...]:
        """Runs the step on the static inputs, with tensors in place of the numbers."""
        places = list(self._numbers())
        numbers = [holder[key] for holder, key in places]
        try:
            for (holder, key), tensor in zip(places, self._tensors, strict=True):
                holder[key] = tensor
            return self._step(*self._inputs)
        finally:
            for (holder, key), number in zip(places, numbers, strict=True):
                holder[key] = number

    def _numbers(self) -> Iterator[tuple[MutableMapping[str, Any], str]]:
        """(dictionary, key) of every number that may change: an optimizer that loads a checkpoint gets new groups."""
        for group in self._optimizers[0].param_groups:
            yield group, "lr"
        if "drop_path_prob" in vars(self._model):
            yield vars(self._model), "drop_path_prob"


def cuda_graph(run: Step, warm_up: Callable[[], None], model: nn.Module) -> Callable[[], tuple[Tensor, ...]]:
    """Captures `run`. The returned function replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        warm_up()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = run()
    # The tensors that the graph writes. A step that is not captured replaces `.grad`.
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        return outputs

    return replay


def no_graph(run: Step, warm_up: Callable[[], None], model: nn.Module) -> Callable[[], tuple[Tensor, ...]]:
    """Replaces the graph on a CPU."""
    warm_up()
    return run


def remember(model: nn.Module, parts: Sequence[Any]) -> Callable[[], None]:
    """Saves what a step changes, and returns a function that restores it."""
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    states = [copy.deepcopy(part.state_dict()) for part in parts]
    device = tensors[0][0].device
    random = random_states(device)

    @torch.no_grad()
    def restore() -> None:
        for tensor, value in tensors:
            tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(copy.deepcopy(state))
        set_random_states(random, device)

    return restore
