"""The alphas' gradient by autograd alone, and what it takes to compare with it."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.func import functional_call

ARGS = SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3)
EXACT = SimpleNamespace(**vars(ARGS), hvp="exact")
ETA = 0.025


def sgd(model, train, steps=2):
    """The weights' optimizer after some steps on the training batch: with momentum buffers that are not zero."""
    optimizer = torch.optim.SGD(model.weight_parameters(), ETA, momentum=ARGS.momentum, weight_decay=ARGS.weight_decay)
    for step in range(steps):
        x, y = train
        optimizer.zero_grad()
        F.cross_entropy(model(x + step), y).backward(inputs=model.weight_parameters())
        optimizer.step()
    return optimizer


def direct_gradient(model, train, valid, optimizer, eta=ETA):
    """d/dalpha of L_val(w - xi (momentum * buffer + d/dw L_train(w, alpha) + weight_decay w), alpha), by autograd."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    weights = model.weight_parameters()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss = F.cross_entropy(functional_call(model, buffers, (train[0],)), train[1])
    dw = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True, materialize_grads=True)
    virtual = {}
    for w, g in zip(weights, dw, strict=True):
        buffer = optimizer.state[w]["momentum_buffer"] if w in optimizer.state else torch.zeros_like(w)
        virtual[names[id(w)]] = w - eta * (
            ARGS.momentum * (0 if buffer is None else buffer) + g + ARGS.weight_decay * w
        )
    loss = F.cross_entropy(functional_call(model, buffers | virtual, (valid[0],)), valid[1])
    return torch.autograd.grad(loss, model.arch_parameters())


def relative_error(actual, expected):
    actual, expected = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (actual, expected))
    return float((actual - expected).norm() / expected.norm())
