"""The teacher, an exponential moving average of the student (paper Sec. 3, Table 10)."""

import copy
from typing import TypeVar

import torch
from torch import nn

from ..utils.tensor_lists import TensorLists

Network = TypeVar("Network", bound=nn.Module)


def build_teacher(student: Network) -> Network:
    """Return a copy of the student in evaluation mode and without gradients."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: TensorLists, student: TensorLists, decay: float) -> None:
    """Set teacher = decay * teacher + (1 - decay) * student, for parameters and buffers.

    Args:
        teacher: tensors of a network with the architecture of the student; changed.
        student: tensors of the network itself, see `averaged_tensors`.
        decay: decay in [0, 1]; 0 makes the teacher a copy. Integer buffers are always copied.
    """
    for averages, updates in zip(teacher.get(), student.get(), strict=True):
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, updates, 1 - decay)
        else:
            torch._foreach_copy_(averages, updates)


def averaged_tensors(network: nn.Module) -> TensorLists:
    """Return the tensors of a network, not of a wrapper, that the average is over."""
    return TensorLists(network, transient=False)
