"""Move and select tensors without waiting for a GPU and without copies that are not needed."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; a GPU fetches it from the CPU's memory by itself."""
    if tensor.device.type == "cpu" and device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def take_rows(x: Tensor, rows: Sequence[int] | Tensor) -> Tensor:
    """Return x[rows], for a list of rows that follow each other a view of x."""
    if isinstance(rows, Tensor):
        return x[rows]
    if not rows:
        return x[:0]
    first, last = rows[0], rows[-1] + 1
    if list(rows) == list(range(first, last)):
        return x if len(rows) == len(x) else x[first:last]
    return x[to_device(torch.tensor(rows), x.device)]


def stack(rows: Sequence[Tensor]) -> Tensor:
    """Stack tensors of one shape, without a copy if they are neighbors in a larger tensor."""
    first = rows[0]
    base, start, size = first._base, first.storage_offset(), first.numel()
    are_neighbors = base is not None and all(
        x._base is base
        and x.is_contiguous()
        and x.shape == first.shape
        and x.storage_offset() == start + i * size
        for i, x in enumerate(rows)
    )
    if not are_neighbors:
        return torch.stack(list(rows))
    return first.as_strided((len(rows), *first.shape), (size, *first.stride()), start)
