"""Batch normalization over the images of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn
from torch.nn.modules import _functions as functions

# Elements that a rank without images says it has: so few that they weigh nothing, but not 0, which
# the kernel that joins the statistics divides by.
NO_ELEMENTS = 1e-20


class _SyncStatistics(functions.SyncBatchNorm):
    """PyTorch's function, whose forward pass waits for no GPU.

    PyTorch looks for ranks without images, which stops the host three times in every layer.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, eps, momentum, group, world_size):
        """Normalize x, (N, C, H, W), by mean and variance over the images of all ranks."""
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous()
        channels = x.shape[1]
        if x.numel():
            mean, invstd = torch.batch_norm_stats(x, eps)
            count = mean.new_full((1,), x.numel() // channels)
        else:
            mean, invstd = running_mean.new_zeros(channels), running_mean.new_ones(channels)
            count = mean.new_full((1,), NO_ELEMENTS)
        own = torch.cat([mean, invstd, count])
        ranks = own.new_empty(world_size * len(own))
        dist.all_gather_into_tensor(ranks, own, group)
        means, invstds, counts = ranks.view(world_size, -1).split(channels, dim=1)
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            *(x, means, invstds, running_mean, running_var, momentum, eps, counts.flatten()),
        )
        ctx.save_for_backward(x, weight, mean, invstd, counts.to(torch.int32))
        ctx.process_group = group
        if not x.numel():
            return torch.empty_like(x)
        return torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps)


class SyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's SyncBatchNorm that also runs where some ranks have no images, but not all.

    It never waits for the GPU. A compiled graph has plain operators instead of PyTorch's kernels,
    which change the running statistics without declaring it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (N, C, H, W), by mean and variance over the images of all ranks."""
        if not self.training:
            return _activate(self, super().forward(x))
        if torch.compiler.is_compiling():
            return _activate(self, _normalize(self, x))
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        group = self.process_group or dist.group.WORLD
        # Without images, PyTorch would send gradients in the type of x, where other ranks send
        # float32.
        wide = x if x.numel() else x.to(torch.promote_types(x.dtype, torch.float32))
        parts = (self.weight, self.bias, self.running_mean, self.running_var)
        size = dist.get_world_size(group)
        y = _SyncStatistics.apply(wide, *parts, self.eps, self.momentum, group, size)
        return _activate(self, y.to(x.dtype))


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Synchronized batch norm on a CPU, where PyTorch's does not run and DDP refuses it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (N, C, H, W), by mean and variance over the images of all ranks."""
        if not self.training:
            return _activate(self, super().forward(x))
        return _activate(self, _normalize(self, x))


def _normalize(norm: nn.SyncBatchNorm | CpuSyncBatchNorm, x: Tensor) -> Tensor:
    """Normalize x, (N, C, H, W), by mean and variance over the images of all ranks."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.momentum is not None and norm.num_batches_tracked is not None
    wide = x.to(norm.running_mean.dtype)
    own = wide.new_full((1,), wide.shape[0] * wide.shape[2] * wide.shape[3])
    total, count = _sum_over_ranks(torch.cat([wide.sum((0, 2, 3)), own])).split([x.shape[1], 1])
    mean = total / count
    centered = wide - mean[:, None, None]
    variance = _sum_over_ranks(centered.square().sum((0, 2, 3))) / count
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
        norm.num_batches_tracked.add_(1)
    scale = (variance + norm.eps).rsqrt() * (norm.weight if norm.affine else 1)
    bias = norm.bias[:, None, None] if norm.affine else 0
    return (centered * scale[:, None, None] + bias).to(x.dtype)


@torch.library.custom_op("mtfixmatch::sum_over_ranks", mutates_args=())
def sum_in_graph(x: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks, as an operator that a compiled graph can hold."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


sum_in_graph.register_fake(lambda x: torch.empty_like(x, memory_format=torch.contiguous_format))
sum_in_graph.register_autograd(lambda ctx, grad: sum_in_graph(grad))
# The compiler may reorder operators, and does so differently in the graph of a rank that has one
# image for a head or none. The ranks must exchange in one order, which older PyTorch cannot ensure.
CAN_COMPILE = hasattr(sum_in_graph, "register_effect")
if CAN_COMPILE:
    from torch._library.effects import EffectType

    sum_in_graph.register_effect(EffectType.ORDERED)


def _sum_over_ranks(x: Tensor) -> Tensor:
    return sum_in_graph(x) if torch.compiler.is_compiling() else differentiable_all_reduce(x)


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
