"""Batch normalization over the images of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn


class SyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's SyncBatchNorm that also runs where some ranks have no images, but not all."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (N, C, H, W), by mean and variance over the images of all ranks."""
        # Without images, PyTorch would send zeros in the type of x, where other ranks send float32.
        wide = x if x.numel() else x.to(torch.promote_types(x.dtype, torch.float32))
        return _activate(self, super().forward(wide).to(x.dtype))


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Synchronized batch norm on a CPU, where PyTorch's does not run and DDP refuses it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (N, C, H, W), by mean and variance over the images of all ranks."""
        if not self.training:
            return _activate(self, super().forward(x))
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        wide = x.to(self.running_mean.dtype)
        count = differentiable_all_reduce(wide.new_tensor([wide[:, 0].numel()]))
        mean = differentiable_all_reduce(wide.sum((0, 2, 3))) / count
        centered = wide - mean[:, None, None]
        variance = differentiable_all_reduce(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = (variance + self.eps).rsqrt() * (self.weight if self.affine else 1)
        bias = self.bias[:, None, None] if self.affine else 0
        return _activate(self, (centered * scale[:, None, None] + bias).to(x.dtype))


def _activate(norm: Any, x: Tensor) -> Tensor:
    """Apply the activation that timm's SyncBatchNormAct has after its norm."""
    return norm.act(norm.drop(x)) if hasattr(norm, "act") else x


def replace_sync_norms(model: nn.Module) -> None:
    """Make every SyncBatchNorm in a model one of this module, in place, with the same state."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            assert module.running_mean is not None
            on_cpu = module.running_mean.device.type == "cpu"
            new_class = CpuSyncBatchNorm if on_cpu else SyncBatchNorm
            module.__class__ = new_class  # type: ignore[assignment]


@torch.no_grad()
def share_statistics(model: nn.Module) -> None:
    """Average the running statistics of BatchNorms that are not synchronized, over all ranks.

    Otherwise the ranks' teachers would differ, and a checkpoint would hold one rank's statistics.
    """
    layers = get_bn_modules(model) if comm.get_world_size() > 1 else []
    layers = [x for x in layers if not isinstance(x, (nn.SyncBatchNorm, CpuSyncBatchNorm))]
    pairs = [(layer.running_mean, layer.running_var) for layer in layers]
    if statistics := [x for pair in pairs for x in pair if x is not None]:
        flat = torch.cat(statistics) / comm.get_world_size()
        dist.all_reduce(flat)
        torch._foreach_copy_(statistics, list(flat.split([len(x) for x in statistics])))
