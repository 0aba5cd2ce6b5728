"""Batch normalization over the images of all processes."""

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
        if x.numel():
            return super().forward(x)
        # PyTorch would send zeros in the type of x, where ranks with images send float32.
        return super().forward(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Synchronized batch norm on a CPU, where PyTorch's does not run and DDP refuses it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (N, C, H, W), by mean and variance over the images of all ranks."""
        if not self.training:
            return super().forward(x)
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
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return (centered * scale[:, None, None]).to(x.dtype)
        scale = self.weight * scale
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _WithActivation(nn.Module):
    """A norm that has an activation after it, as timm's SyncBatchNormAct."""

    act: nn.Module
    drop: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[misc]  # of the norm


class _SyncBatchNormAct(_WithActivation, SyncBatchNorm):
    pass


class _CpuSyncBatchNormAct(_WithActivation, CpuSyncBatchNorm):
    pass


# By whether the norm is on a CPU, and whether it has an activation.
_CLASSES: dict[tuple[bool, bool], type[nn.Module]] = {
    (False, False): SyncBatchNorm,
    (False, True): _SyncBatchNormAct,
    (True, False): CpuSyncBatchNorm,
    (True, True): _CpuSyncBatchNormAct,
}


def replace_sync_norms(model: nn.Module) -> None:
    """Make every SyncBatchNorm in a model one of this module, in place, with the same state."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            assert module.running_mean is not None
            on_cpu = module.running_mean.device.type == "cpu"
            module.__class__ = _CLASSES[on_cpu, hasattr(module, "act")]  # type: ignore[assignment]


@torch.no_grad()
def share_statistics(model: nn.Module) -> None:
    """Average the running statistics of BatchNorms that are not synchronized, over all ranks.

    Each rank normalizes by its own images there. Without the average, the ranks' teachers would
    differ, and a checkpoint would hold the statistics of one rank alone.
    """
    layers = get_bn_modules(model) if comm.get_world_size() > 1 else []
    statistics = [
        statistic
        for layer in layers
        if not isinstance(layer, (nn.SyncBatchNorm, CpuSyncBatchNorm))
        for statistic in (layer.running_mean, layer.running_var)
        if statistic is not None
    ]
    if statistics:
        flat = torch.cat(statistics) / comm.get_world_size()
        dist.all_reduce(flat)
        torch._foreach_copy_(statistics, list(flat.split([len(x) for x in statistics])))
