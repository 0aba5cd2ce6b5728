"""The teacher, an exponential moving average of the student (paper Sec. 3, Table 10)."""

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def build_teacher(student: Network) -> Network:
    """Return a copy of the student in evaluation mode and without gradients."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Set teacher = decay * teacher + (1 - decay) * student, for parameters and buffers.

    Args:
        teacher: network with the architecture of the student; changed.
        student: the network itself, not its DistributedDataParallel wrapper.
        decay: decay in [0, 1]; 0 makes the teacher a copy. Integer buffers are always copied.
    """
    averages: list[torch.Tensor] = []
    updates: list[torch.Tensor] = []
    pairs = zip(teacher.state_dict().values(), student.state_dict().values(), strict=True)
    for old, new in pairs:
        if old.is_floating_point():
            averages.append(old)
            updates.append(new)
        else:
            old.copy_(new)
    torch._foreach_lerp_(averages, updates, 1 - decay)
