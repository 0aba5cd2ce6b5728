"""BatchNorm of several processes."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """What SyncBatchNorm is, on a CPU, where PyTorch's refuses to run.

    Some ranks may have no images, not all of them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, H, W), by mean and variance over the images of all ranks."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        wide = x.to(self.weight.dtype)
        count = differentiable_all_reduce(wide.new_tensor([wide[:, 0].numel()]))
        mean = differentiable_all_reduce(wide.sum((0, 2, 3))) / count
        centered = wide - mean[:, None, None]
        variance = differentiable_all_reduce(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def sync_on_cpu(model: nn.Module) -> None:
    """Make every SyncBatchNorm of a model one that runs on a CPU."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = CpuSyncBatchNorm  # type: ignore[assignment]  # of the same state


@torch.no_grad()
def share_statistics(model: nn.Module) -> None:
    """Average the running statistics of BatchNorm that is not synchronised, over all ranks.

    There each rank normalises by its own images and has statistics of its own; teachers would
    differ, and a checkpoint has those of one rank alone.
    """
    layers = get_bn_modules(model) if comm.get_world_size() > 1 else []
    own = [
        statistic
        for layer in layers
        if not isinstance(layer, (nn.SyncBatchNorm, CpuSyncBatchNorm))
        for statistic in (layer.running_mean, layer.running_var)
        if statistic is not None
    ]
    if own:
        flat = torch.cat(own) / comm.get_world_size()
        dist.all_reduce(flat)
        torch._foreach_copy_(own, list(flat.split([len(x) for x in own])))
