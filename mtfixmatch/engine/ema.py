"""The teacher, an exponential moving average of the student (paper Sec. 3, Table 10)."""

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def build_teacher(student: Network) -> Network:
    """Copy the student, in evaluation mode and without gradients."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Teacher = decay * teacher + (1 - decay) * student, for parameters and buffers.

    Args:
        teacher: of the same architecture as the student.
        student: the network itself, not its DistributedDataParallel wrapper.
        decay: 0 makes the teacher a copy; integer buffers (counters) are always copied.
    """
    averages: list[torch.Tensor] = []
    latest: list[torch.Tensor] = []
    pairs = zip(teacher.state_dict().values(), student.state_dict().values(), strict=True)
    for old, new in pairs:
        if old.is_floating_point():
            averages.append(old)
            latest.append(new)
        else:
            old.copy_(new)
    torch._foreach_lerp_(averages, latest, 1 - decay)
