"""What one training step holds: its record, its loss terms, and small helpers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

from ..augmentation.strong import StrongView
from ..tasks import Task
from ..tasks.task import Assigned, Target


def ramp_up(step: int, length: float) -> float:
    """exp(-5 (1 - t/T)^2) for the first `length` steps, then 1 (Tarvainen and Valpola, 2017)."""
    if step >= length:
        return 1.0
    return math.exp(-5 * (1 - step / length) ** 2)


@dataclass
class Term:
    """One loss of one task: the student's images it reads and what they should give."""

    task: Task
    unsupervised: bool
    rows: list[int]
    assigned: Assigned
    normalizer: float = 1.0

    def key(self, part: str) -> str:
        """Name of a part of this loss in logs."""
        return f"loss_{self.task.name}_{part}" + ("_unsup" if self.unsupervised else "")

    def part_keys(self) -> list[str]:
        """Names of all its parts."""
        return [self.key(part) for part in self.task.loss_parts]


@dataclass
class StepRecord:
    """What a step saw and made, kept for the hooks that measure and draw.

    Attributes:
        batch: items of the mapper.
        weak: (N, 3, H, W) RGB in [0, 1].
        unlabeled: by task, the images of the batch that have a pseudo-label.
        pseudo: by task, pseudo-labels of those images in the weak view.
        moved: by task, the same in the strong view.
        strong: (M, 3, H, W), strong views of the images `strong_images`.
        strong_images: the images of the batch that have a strong view.
        agreement: by task, of the student on the strong views with the moved pseudo-labels.
    """

    batch: list[dict]
    weak: Tensor
    unlabeled: dict[str, list[int]]
    pseudo: dict[str, list[Target]] = field(default_factory=dict)
    moved: dict[str, list[Target]] = field(default_factory=dict)
    strong: Tensor | None = None
    strong_images: list[int] = field(default_factory=list)
    agreement: dict[str, float] = field(default_factory=dict)


def stack_images(batch: Sequence[dict], device: torch.device) -> Tensor:
    """The weak views of a batch, (N, 3, H, W) RGB in [0, 1]."""
    images = torch.stack([item["image"] for item in batch])
    return images.to(device, non_blocking=True).float() / 255


def images_of(batch: Sequence[dict], task: Task, *, labeled: bool) -> list[int]:
    """The images of a batch that are, or are not, labeled for a task."""
    has_label = [item["targets"][task.name] is not None for item in batch]
    return [i for i, known in enumerate(has_label) if known == labeled]


def move_target(task: Task, target: Target, view: StrongView, row: int) -> Target:
    """A target of a weak view, moved into the strong view in a row of `view`."""
    size = (view.images.shape[2], view.images.shape[3])
    return task.move_target(target, view.matrices[row], size, view.erased[row])


def union(images: Mapping[str, Sequence[int]]) -> list[int]:
    """The images that at least one task needs, in order."""
    return sorted({i for rows in images.values() for i in rows})


def split_rows(count: int, parts: int) -> list[list[int]]:
    """0..count-1 in at most `parts` parts, interleaved so that each has weak and strong views."""
    return [rows for part in range(parts) if (rows := list(range(part, count, parts)))]


def sum_over_ranks(values: Sequence[float] | Tensor, device: torch.device) -> list[float]:
    """The sum over all ranks of each value, on every rank."""
    total = torch.as_tensor(values, dtype=torch.float64).to(device, torch.float32)
    if comm.get_world_size() > 1:
        dist.all_reduce(total)
    return total.tolist()


def checked_losses(
    losses: Mapping[str, Tensor], batch: Sequence[dict], step: int
) -> dict[str, float]:
    """The losses summed over all ranks.

    Raises:
        FloatingPointError: on every rank, before any weight has changed, if one is not finite.
    """
    values = torch.stack([value.detach() for value in losses.values()])
    summed = dict(zip(losses, sum_over_ranks(values, values.device), strict=True))
    bad = [key for key, value in summed.items() if not math.isfinite(value)]
    if bad:
        names = ", ".join(item["file_name"] for item in batch)
        raise FloatingPointError(
            f"step {step}: {bad[0]} is {summed[bad[0]]}; the last checkpoint is unharmed. "
            f"Images of the batch: {names}"
        )
    return summed
