"""BatchNorm over the batches of all processes: `--sync_bn`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiment import distributed


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, which may differ in size. Unlike torch's, it runs on CPUs and is
    differentiable twice.

    It has the parameters, buffers and `state_dict()` keys of `nn.BatchNorm2d`. Without a process group, or if it uses
    running statistics, it computes the same as `nn.BatchNorm2d`.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any (B, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:
        if not dist.is_initialized() or not (self.training or self.running_mean is None):
            return super().forward(input)
        pixels = [dim for dim in range(input.dim()) if dim != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)  # (C,) beside (B, C, ...)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mine = x.numel() // x.size(1)  # values per channel
        mean, count = distributed.mean_and_count(x.mean(pixels), mine)
        centred = x - mean.view(shape)
        var, _ = distributed.mean_and_count(centred.square().mean(pixels), mine)  # E[x^2] - E[x]^2 would lose digits
        if self.training and self.track_running_stats:
            own: Any = self  # whose buffers are not None
            with torch.no_grad():
                own.num_batches_tracked += 1
                own.running_mean.lerp_(mean.to(own.running_mean.dtype), own.momentum)
                own.running_var.lerp_((var * count / (count - 1)).to(own.running_var.dtype), own.momentum)
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = torch.addcmul(self.bias.view(shape), y, self.weight.view(shape))
        return y.to(input.dtype)


def convert(model: nn.Module) -> None:
    """Converts every BatchNorm of `model` to a `SyncBatchNorm`, in place. Optimizers keep their parameters."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm
