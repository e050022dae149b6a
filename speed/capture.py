"""Captures a whole step as one CUDA graph: one call starts tens of thousands of kernels.

A graph repeats the same kernels on the same memory. Therefore a captured step must not read values from the GPU. Its inputs are copied to
the memory that the graph reads, and numbers that change between epochs (learning rates, the drop path probability) are replaced by tensors.
On a CPU, the same code runs the step itself instead of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiment import errors

Step = Callable[..., tuple[Tensor, ...]]

WARM_UPS = 3  # steps before a capture: the first compiles and selects kernels, the others stabilise memory


class CapturedStep:
    """A step that is captured in its first call and replayed in the others. Returned tensors are valid until the next call.

    Batches of another size, such as the last of an epoch, run the step itself. If the capture fails, all batches do, with a warning on
    standard error.

    Args:
        step: a function from batches to tensors. It changes only `model` and the state of the optimizers.
        model: the model that the step trains. Its attribute `drop_path_prob`, if it has one, may change between calls.
        optimizers: the optimizers that the step uses. The learning rate of the first may change between calls.
        batch_size: the size of the batches to capture.
    """

    def __init__(self, step: Step, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], batch_size: int) -> None:
        self._step, self._model, self._optimizers, self._batch_size = step, model, optimizers, batch_size
        self._graph: _CudaGraph | _NoGraph | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._batch_size == 0 or any(len(x) != self._batch_size for x in inputs):
            return self._step(*inputs)
        if self._graph is None:
            try:
                self._capture(inputs)
            except RuntimeError as error:
                errors.warn(f"cannot capture the step; it runs without a CUDA graph ({errors.shorten(' '.join(str(error).split()))})")
                self._batch_size = 0
                return self._step(*inputs)
        assert self._graph is not None
        for static, x in zip(self._inputs, inputs, strict=True):
            static.copy_(x, non_blocking=True)
        for (holder, key), tensor in zip(self._numbers(), self._tensors, strict=True):
            tensor.fill_(holder[key])
        return self._graph.replay()

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = [x.clone() for x in inputs]
        self._tensors = [torch.tensor(holder[key], device=inputs[0].device) for holder, key in self._numbers()]
        saved = _State(self._model, self._optimizers, inputs[0].device)
        kind = _CudaGraph if inputs[0].is_cuda else _NoGraph
        try:
            self._graph = kind(self._run, saved.restore, self._model)
        except RuntimeError:
            saved.restore()
            raise

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
        """(dictionary, key) of every number that may change. Looked up each time: an optimizer that loads a checkpoint gets new groups."""
        for group in self._optimizers[0].param_groups:
            yield group, "lr"
        if "drop_path_prob" in vars(self._model):
            yield vars(self._model), "drop_path_prob"


class _State:
    """Everything that a step changes, to be restored after the warm-up."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], device: torch.device) -> None:
        self._optimizers, self._device = optimizers, device
        self._gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
        changing = [*model.parameters(), *model.buffers(), *self._of_optimizers()]
        self._values = {id(tensor): (tensor, tensor.detach().clone()) for tensor in changing}
        self._random = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()

    def _of_optimizers(self) -> list[Tensor]:
        states = [state for optimizer in self._optimizers for state in optimizer.state.values()]
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, value in self._values.values():
            tensor.copy_(value)
        for tensor in self._of_optimizers():
            if id(tensor) not in self._values:  # momentum and moments before the first step are 0
                tensor.zero_()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._random, self._device)
        else:
            torch.set_rng_state(self._random)


class _CudaGraph:
    def __init__(self, run: Callable[[], tuple[Tensor, ...]], restore: Callable[[], None], model: nn.Module) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
            restore()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._outputs = run()
        # The tensors that the graph writes. A step that is not captured replaces `.grad`.
        self._gradients = [(parameter, parameter.grad) for parameter in model.parameters()]

    def replay(self) -> tuple[Tensor, ...]:
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._outputs


class _NoGraph:
    """Replaces the graph on a CPU."""

    def __init__(self, run: Callable[[], tuple[Tensor, ...]], restore: Callable[[], None], model: nn.Module) -> None:
        for _ in range(WARM_UPS):
            run()
        restore()
        self.replay = run
