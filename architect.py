"""How the alphas learn: the gradient of the validation loss with respect to the architecture (DARTS, section 2.3).

`Architect` does not depend on datasets or cells. It works with any *search model*: a module with `arch_parameters()`, `weight_parameters()`
and `forward(x) -> logits`. If several processes share a batch, `_loss` and `_grad` return the loss and the gradients of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

import utils
from experiment import checkpoint, distributed

HVP = ("finite_difference", "exact")


class Searchable(Protocol):
    """A search model: an `nn.Module` whose `forward(x)` returns logits, and whose `export()` returns the architecture that it has found."""

    training: bool

    def __call__(self, x: Tensor) -> Tensor: ...

    def train(self, mode: bool = True) -> Any: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    def arch_parameters(self) -> list[nn.Parameter]:
        """The architecture parameters, alpha in the paper."""

    def weight_parameters(self) -> list[nn.Parameter]:
        """The network's weights, w in the paper."""

    def export(self) -> Any:
        """The architecture found so far: a `Genotype`, or {key of a choice: what was chosen}."""

    def alphas_by_edge(self) -> dict[str, dict[str, float]]:
        """{edge: {operation: softmaxed alpha}}, JSON-ready; empty if the model has no alphas."""

    def alpha_lines(self) -> list[str]:
        """Lines for the log about the alphas."""


class Architect:
    """Learns the alphas of `model` on validation batches.

    Args:
        model: a search model. The loss is its attribute `criterion` if it has one, otherwise cross-entropy.
        args: any object with `momentum` and `weight_decay` (of the weights' SGD), `arch_learning_rate` and `arch_weight_decay` (of the
            alphas' Adam). Optional attributes: `hvp`, how the second order computes its Hessian-vector product,
            `"finite_difference"` as in the paper (the default) or `"exact"`; `amp`, whether the network runs in bfloat16 autocast (the
            loss and the passes of the Hessian-vector product do not); `arch_beta1`, Adam's first beta, 0.5 by default.
    """

    betas = (0.5, 0.999)  # of Adam

    def __init__(self, model: Searchable, args: Any) -> None:
        self.model = model
        self.criterion = getattr(model, "criterion", F.cross_entropy)
        self.network_momentum = args.momentum
        self.network_weight_decay = args.weight_decay
        self.amp = getattr(args, "amp", False)
        self.hvp = getattr(args, "hvp", HVP[0])
        if self.hvp not in HVP:
            raise ValueError(f"hvp is {self.hvp!r}; known are {', '.join(HVP)}")
        self.optimizer = utils.optimizer(
            torch.optim.Adam,
            model.arch_parameters(),
            lr=args.arch_learning_rate,
            betas=(getattr(args, "arch_beta1", self.betas[0]), self.betas[1]),
            weight_decay=args.arch_weight_decay,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides the model."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        checkpoint.load_optimizer(self.optimizer, state_dict)

    def step(
        self,
        input_train: Tensor,
        target_train: Tensor,
        input_valid: Tensor,
        target_valid: Tensor,
        eta: float | Tensor,
        network_optimizer: torch.optim.Optimizer,
        unrolled: bool,
    ) -> None:
        """One step on the alphas. Leaves the gradient in each alpha's `.grad`. Changes no weight.

        Args:
            input_train, target_train: the batch of the next weight step, (B, C, H, W) and (B,); read only if `unrolled`.
            input_valid, target_valid: a batch of the validation half.
            eta: the learning rate of the virtual step, xi in the paper; a tensor, (), if it must not be read on the CPU.
            network_optimizer: the weights' SGD, for its momentum buffers.
            unrolled: second order (equation 6) if true, first order (xi = 0) otherwise.

        Running statistics of BatchNorm are updated as in the original. First order: by the validation batch. Second order: by the training
        batch, once in each of the passes at w, w+ and w- (with `exact` only at w), but not in the pass at w'.
        """
        if unrolled:
            gradient = self._unrolled_gradient(input_train, target_train, input_valid, target_valid, eta, network_optimizer)
        else:
            # Detached weights: nothing is stored for their gradients.
            constants = self._state(_flatten(self.model.weight_parameters()))
            gradient = _grad(self._loss(input_valid, target_valid, constants), self.model.arch_parameters())
        for alpha, grad in zip(self.model.arch_parameters(), gradient, strict=True):
            alpha.grad = grad
        self.optimizer.step()

    def _unrolled_gradient(
        self,
        input_train: Tensor,
        target_train: Tensor,
        input_valid: Tensor,
        target_valid: Tensor,
        eta: float | Tensor,
        network_optimizer: torch.optim.Optimizer,
    ) -> list[Tensor]:
        """Equation 7: d/dalpha L_val(w', alpha) - xi (d2/dalpha dw L_train(w, alpha)) v, with v = d/dw' L_val(w', alpha)."""
        alphas, weights = self.model.arch_parameters(), self.model.weight_parameters()

        with utils.constant(alphas):
            loss = self._loss(input_train, target_train)
        w, dw = _flatten(weights), _flatten(_grad(loss, weights))
        w_virtual, xi = self._virtual_step(w, dw, eta, network_optimizer)
        w_virtual.requires_grad_()

        # The pass at w' uses copies of the buffers, so that it does not update the running statistics.
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        loss_valid = self._loss(input_valid, target_valid, self._state(w_virtual) | buffers)
        *dalpha, v = _grad(loss_valid, [*alphas, w_virtual])

        product = self._product(w, v, input_train, target_train)
        return [da.sub_(p * xi) for da, p in zip(dalpha, product, strict=True)]

    def _virtual_step(
        self, w: Tensor, dw: Tensor, eta: float | Tensor, network_optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, float | Tensor]:
        """The step that SGD is about to make, without gradient clipping, and the factor of d/dw L_train in it.

        Args:
            w, dw: the weights and the gradient of the training loss, flat, (parameters,).

        Returns:
            w' = w - xi (momentum * buffer + d/dw L_train(w, alpha) + weight_decay * w), and xi.
        """
        buffers = [_momentum_buffer(network_optimizer, weight) for weight in self.model.weight_parameters()]
        direction = dw.add(w, alpha=self.network_weight_decay).add_(_flatten(buffers), alpha=self.network_momentum)
        return w - direction.mul_(eta), eta

    def _product(self, w: Tensor, v: Tensor, input: Tensor, target: Tensor) -> list[Tensor]:
        """(d2/dalpha dw L_train) v, computed as `hvp` says."""
        multiply = self._exact_product if self.hvp == "exact" else self._hessian_vector_product
        return multiply(w, v, input, target)

    def _hessian_vector_product(self, w: Tensor, v: Tensor, input: Tensor, target: Tensor, r: float = 1e-2) -> list[Tensor]:
        """(d2/dalpha dw L_train) v by central differences: (d/dalpha L_train(w+) - d/dalpha L_train(w-)) / 2 epsilon (equation 8).

        Args:
            w, v: the weights and the vector, flat, (parameters,).
            input, target: the training batch.
            r: epsilon |v|, the length of the step from w to w+ = w + epsilon v and to w- = w - epsilon v (footnote 2 of the paper).
        """
        epsilon = r / v.norm()
        alphas = self.model.arch_parameters()
        dalpha_plus = _grad(self._loss(input, target, self._state(w + epsilon * v), amp=False), alphas)
        dalpha_minus = _grad(self._loss(input, target, self._state(w - epsilon * v), amp=False), alphas)
        return [(plus - minus).div_(2 * epsilon) for plus, minus in zip(dalpha_plus, dalpha_minus, strict=True)]

    def _exact_product(self, w: Tensor, v: Tensor, input: Tensor, target: Tensor) -> list[Tensor]:
        """The same product, exact: the derivative of L_train along v in forward mode, then one backward pass to alpha.

        Arguments as for `_hessian_vector_product`. Does not update the buffers.
        """

        def loss(w: Tensor) -> Tensor:
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}  # forward mode must not change the model's
            return self._loss(input, target, self._state(w) | buffers, amp=False)

        with _differentiable_twice(cast(nn.Module, self.model)):
            along_v = torch.func.jvp(loss, (w,), (v,))[1]
            return _grad(along_v, self.model.arch_parameters())

    def _loss(self, input: Tensor, target: Tensor, state: dict[str, Tensor] | None = None, amp: bool = True) -> Tensor:
        """The loss of the model; `state` replaces parameters and buffers of the model."""
        logits, _ = utils.forward(partial(functional_call, cast(nn.Module, self.model), state or {}), input, amp and self.amp)
        return distributed.mean(self.criterion(logits, target), target.size(0))

    def _state(self, flat: Tensor) -> dict[str, Tensor]:
        """{name in the model: weight}, where the weights are views into the vector `flat`."""
        weights = self.model.weight_parameters()
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {names[id(weight)]: view for weight, view in zip(weights, _unflatten(flat, weights), strict=True)}


def _grad(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients with respect to `inputs` only; zeros for an input that the loss does not depend on."""
    return distributed.average(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))


@contextmanager
def _differentiable_twice(model: nn.Module) -> Iterator[None]:
    """Computes the normalisations of `model` in basic operations, and runs no compiled code.

    The forward-mode derivatives of PyTorch's batch, layer, instance and RMS normalisation silently give a wrong gradient when they are
    differentiated again: seen in 2.14 and 2.15, with a relative error of 0.65 for the search network. Compiled code cannot be
    differentiated twice.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.forward = MethodType(_batch_norm, norm)  # type: ignore[method-assign]
    try:
        with torch.compiler.set_stance("force_eager"), _BasicNorms():
            yield
    finally:
        for norm in norms:
            del norm.forward


def _batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm of x, (B, C, ...), with the statistics of x. Does not update the running statistics."""
    if isinstance(norm, distributed.SyncBatchNorm) and distributed.world_size() > 1:
        mean, var, _ = norm.statistics(x)
    else:
        var, mean = torch.var_mean(x, [dim for dim in range(x.dim()) if dim != 1], correction=0)
    shape = [-1] + [1] * (x.dim() - 2)
    normalised = (x - mean.view(shape)) * (var + norm.eps).rsqrt().view(shape)
    return normalised if norm.weight is None else normalised * norm.weight.view(shape) + norm.bias.view(shape)


class _BasicNorms(TorchFunctionMode):
    """Layer, RMS and instance normalisation in basic operations."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return {F.layer_norm: _layer_norm, F.rms_norm: _rms_norm, F.instance_norm: _instance_norm}.get(function, function)(
            *args, **kwargs or {}
        )


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    return _rms_norm(x - x.mean(list(range(-len(shape), 0)), keepdim=True), shape, weight, eps) + (0.0 if bias is None else bias)


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    normalised = x * (x.square().mean(list(range(-len(shape), 0)), keepdim=True) + eps).rsqrt()
    return normalised if weight is None else normalised * weight


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    shape = [-1] + [1] * (x.dim() - 2)
    normalised = _layer_norm(x, x.shape[2:], eps=eps)
    return normalised if weight is None or bias is None else normalised * weight.view(shape) + bias.view(shape)


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return [part.view(tensor.shape) for part, tensor in zip(flat.split([tensor.numel() for tensor in like]), like, strict=True)]


def _momentum_buffer(optimizer: torch.optim.Optimizer, weight: Tensor) -> Tensor:
    """SGD's running sum of gradients for this weight; zeros before its first step."""
    buffer = optimizer.state.get(weight, {}).get("momentum_buffer")
    return torch.zeros_like(weight) if buffer is None else buffer
