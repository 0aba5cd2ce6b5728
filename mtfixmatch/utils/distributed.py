"""Collectives that every process calls with the same shapes and types."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def sum_over_ranks(values: Sequence[float] | Tensor, device: torch.device) -> list[float]:
    """Return the sum over all ranks of each value, on every rank, in float64.

    A GPU is waited for; `sum_on_host` is for values that are no result of it.
    """
    total = torch.as_tensor(values, dtype=torch.float64)
    if comm.get_world_size() > 1:  # with one rank, CPU values need no GPU
        total = total.to(device)
        dist.all_reduce(total)
    return total.tolist()


def sum_on_host(values: Sequence[float]) -> list[float]:
    """Return the sum over all ranks of each value, on every rank; no GPU takes part."""
    if comm.get_world_size() == 1:
        return [float(x) for x in values]
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total, group=comm._get_global_gloo_group())
    return total.tolist()
