"""How the alphas learn: the gradient of the validation loss with respect to the architecture (DARTS, section 2.3).

`Architect.step` is the paper's alpha step. Its gradients are written over two losses, each a function of weights and
alphas, so that `rnn/architect.py` uses the same lines. If several processes share a batch, losses and gradients are
those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import utils
from experiment import distributed

HVP = ("finite_difference", "exact")  # how the second order multiplies with the Hessian

State = dict[str, Tensor]  # tensors that replace parameters and buffers of the model, by their names
Loss = Callable[[State], Tensor]  # the loss of the model on one batch, ()


class Searchable(Protocol):
    """A search model: an `nn.Module` whose `forward(x)` returns logits."""

    training: bool

    def __call__(self, x: Tensor) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...
    def arch_parameters(self) -> list[nn.Parameter]: ...  # alpha in the paper
    def weight_parameters(self) -> list[nn.Parameter]: ...  # w in the paper
    def export(self) -> Any: ...  # the architecture found so far: a `Genotype`, or {key of a choice: what was chosen}
    def alphas_by_edge(self) -> dict[str, dict[str, float]]: ...  # {edge: {operation: softmaxed alpha}}
    def alpha_lines(self) -> list[str]: ...  # about the alphas, for the log


class Architect:
    """Learns the alphas of `model` on validation batches.

    Args:
        model: a search model. The loss is its attribute `criterion` if it has one, otherwise cross-entropy.
        args: any object with `momentum` and `weight_decay` (of the weights' SGD), `arch_learning_rate` and
            `arch_weight_decay` (of the alphas' Adam). Optional: `hvp`, one of `HVP`, the paper's finite difference by
            default; `amp`, whether the network runs in bfloat16 autocast (but not in the Hessian-vector product);
            `arch_beta1`, Adam's first beta, 0.5 by default.
    """

    r = 1e-2  # epsilon |v|, the length of the finite difference's steps (footnote 2 of the paper)
    resting = False  # whether only the weights are trained (`--arch_warmup`)

    def __init__(self, model: Searchable, args: Any) -> None:
        self.model = model
        self.criterion = getattr(model, "criterion", F.cross_entropy)
        self.network_momentum = args.momentum
        self.network_weight_decay = args.weight_decay
        self.amp = getattr(args, "amp", False)
        exact = getattr(args, "hvp", HVP[0]) == "exact"
        self.product = self._exact_product if exact else self._hessian_vector_product
        betas = getattr(args, "arch_beta1", 0.5), 0.999
        options = {"lr": args.arch_learning_rate, "betas": betas, "weight_decay": args.arch_weight_decay}
        self.optimizer = utils.optimizer(torch.optim.Adam, model.arch_parameters(), **options)

    def begin_epoch(self, epoch: int) -> None:
        """Called before the steps of an epoch, and again when a run is resumed in the middle of one."""

    def settle(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Called at the end of an epoch, with the batches of the validation half."""

    def metrics(self) -> dict[str, Any]:
        """Numbers for the epoch's row in metrics.jsonl."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint holds in addition to the model."""
        gradients = [alpha.grad for alpha in self.model.arch_parameters()]  # which `--clip_alphas` counts
        return {**self.optimizer.state_dict(), "gradients": gradients}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)
        for alpha, gradient in zip(self.model.arch_parameters(), state_dict["gradients"], strict=True):
            alpha.grad = None if gradient is None else gradient.to(alpha)

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
        """One step on the alphas, unless they rest. Leaves the gradient in each alpha's `.grad`. Changes no weight.

        Running statistics of BatchNorm are updated as in the original. First order: by the validation batch. Second
        order: by the training batch, in each of the passes at w, w+ and w- (with `exact` only at w), not in that at w'.

        Args:
            input_train, target_train: the next weight step's batch, (B, C, H, W) and (B,); only read if `unrolled`.
            input_valid, target_valid: a batch of the validation half.
            eta: the learning rate of the virtual step, xi in the paper; a tensor, (), if the CPU must not wait for it.
            network_optimizer: the weights' SGD, for its momentum buffers.
            unrolled: second order (equation 6) if true, first order (xi = 0) otherwise.
        """
        if self.resting:
            return
        valid_loss = partial(self._loss, input_valid, target_valid, self.amp)
        if not unrolled:
            self.descend(self.first_order_gradient(valid_loss))
            return
        train_loss = partial(self._loss, input_train, target_train, self.amp)
        virtual_step = partial(self._virtual_step, eta=eta, network_optimizer=network_optimizer)
        product = partial(self.product, partial(self._loss, input_train, target_train, False))
        self.descend(self.unrolled_gradient(train_loss, valid_loss, virtual_step, product))

    def _loss(self, input: Tensor, target: Tensor, amp: bool, state: State) -> Tensor:
        logits, _ = utils.forward(partial(functional_call, cast(nn.Module, self.model), state), input, amp)
        return distributed.mean(self.criterion(logits, target), target.size(0))

    def _virtual_step(
        self, w: Tensor, dw: Tensor, eta: float | Tensor, network_optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, float | Tensor]:
        """SGD's next step without clipping: w' = w - xi (momentum * buffer + dw + weight_decay * w)."""
        weights = self.model.weight_parameters()
        buffers = [network_optimizer.state.get(weight, {}).get("momentum_buffer") for weight in weights]
        momentum = [torch.zeros_like(weight) if b is None else b for weight, b in zip(weights, buffers, strict=True)]
        direction = dw.add(w, alpha=self.network_weight_decay).add_(_flatten(momentum), alpha=self.network_momentum)
        return w - direction.mul_(eta), eta

    # ---- For any losses

    def descend(self, gradient: Sequence[Tensor]) -> None:
        """Adam's step along the gradient of the alphas, which stays in their `.grad`."""
        for alpha, grad in zip(self.model.arch_parameters(), gradient, strict=True):
            alpha.grad = grad
        self.optimizer.step()

    def first_order_gradient(self, valid_loss: Loss) -> list[Tensor]:
        """d/dalpha L_val(w, alpha)."""
        with utils.constant(self.model.weight_parameters()):  # nothing is stored for their gradients
            return _grad(valid_loss({}), self.model.arch_parameters())

    def unrolled_gradient(
        self,
        train_loss: Loss,
        valid_loss: Loss,
        virtual_step: Callable[[Tensor, Tensor], tuple[Tensor, float | Tensor]],
        product: Callable[[Tensor, Tensor], list[Tensor]],
    ) -> list[Tensor]:
        """Equation 7: d/dalpha L_val(w', alpha) - xi (d2/dalpha dw L_train(w, alpha)) v, v = d/dw' L_val(w', alpha).

        `virtual_step` takes w and d/dw L_train(w, alpha), and returns w' and xi. `product` takes w and v, and returns
        (d2/dalpha dw L_train(w, alpha)) v. All weights and their gradients are flat, (parameters,).
        """
        alphas, weights = self.model.arch_parameters(), self.model.weight_parameters()
        with utils.constant(alphas):
            loss = train_loss({})
        w, dw = _flatten(weights), _flatten(_grad(loss, weights))
        w_virtual, xi = virtual_step(w, dw)
        w_virtual.requires_grad_()
        # With copies of the buffers, the pass at w' does not update the running statistics.
        *dalpha, v = _grad(valid_loss(self._state(w_virtual) | self._buffers()), [*alphas, w_virtual])
        return [da.sub_(p * xi) for da, p in zip(dalpha, product(w, v), strict=True)]

    def _hessian_vector_product(self, train_loss: Loss, w: Tensor, v: Tensor) -> list[Tensor]:
        """Equation 8: (d/dalpha L_train(w + epsilon v, alpha) - d/dalpha L_train(w - epsilon v, alpha)) / 2 epsilon."""
        epsilon = self.r / v.norm()
        alphas = self.model.arch_parameters()
        dalpha_plus = _grad(train_loss(self._state(w + epsilon * v)), alphas)
        dalpha_minus = _grad(train_loss(self._state(w - epsilon * v)), alphas)
        return [(plus - minus).div_(2 * epsilon) for plus, minus in zip(dalpha_plus, dalpha_minus, strict=True)]

    def _exact_product(self, train_loss: Loss, w: Tensor, v: Tensor) -> list[Tensor]:
        """d/dalpha (v d/dw L_train(w, alpha)) by autograd. Does not update the running statistics."""
        w = w.detach().requires_grad_()
        with torch.compiler.set_stance("force_eager"):  # compiled code cannot be differentiated twice
            dw = torch.autograd.grad(train_loss(self._state(w) | self._buffers()), w, create_graph=True)
            return _grad(dw, self.model.arch_parameters(), v)

    def _state(self, flat: Tensor) -> State:
        """The weights in the vector `flat`, as views of it."""
        weights = self.model.weight_parameters()
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        parts = flat.split([weight.numel() for weight in weights])
        return {names[id(weight)]: part.view(weight.shape) for weight, part in zip(weights, parts, strict=True)}

    def _buffers(self) -> State:
        return {name: buffer.clone() for name, buffer in self.model.named_buffers()}


def _grad(outputs: Any, inputs: Sequence[Tensor], grad_outputs: Tensor | None = None) -> list[Tensor]:
    """The gradients with respect to `inputs` only; zeros for an input that the outputs do not depend on."""
    gradients = torch.autograd.grad(outputs, inputs, grad_outputs, allow_unused=True, materialize_grads=True)
    return distributed.average(gradients)


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
