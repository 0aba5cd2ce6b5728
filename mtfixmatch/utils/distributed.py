"""Collectives that every process calls with the same shapes and types."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def sum_over_ranks(values: Sequence[float] | Tensor, device: torch.device) -> list[float]:
    """The sum over all ranks of each value, on every rank."""
    total = torch.as_tensor(values, dtype=torch.float64)
    if comm.get_world_size() > 1:  # else counts stay off the GPU, which would be waited for
        total = total.to(device)
        dist.all_reduce(total)
    return total.tolist()
