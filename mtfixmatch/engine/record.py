"""What one training step holds: its record, its loss terms, and small helpers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor

from ..augmentation.strong import StrongView
from ..modeling import MultiTaskNet
from ..tasks import Task, TaskHead
from ..tasks.base import Assigned, Raw, Target
from ..utils.distributed import sum_over_ranks

# Streams of random numbers under one (seed, step, position): dropout in a weak and a strong view.
_DROPOUT = 103


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

    def losses(
        self, head: TaskHead, raw: Raw, assigned: Assigned, zero: Tensor
    ) -> dict[str, Tensor]:
        """Each part, from the raw outputs for some of its rows; without any, `zero`."""
        if not raw or not len(raw[0]):  # no image to learn this from: exactly 0, never nan
            return {key: zero for key in self.part_keys()}
        parts = head.losses(raw, assigned)
        return {self.key(part): value / self.normalizer for part, value in parts.items()}


@dataclass
class StepRecord:
    """What a step saw and made, kept for the hooks that measure and draw.

    Attributes:
        batch: items of the mapper.
        weak: (N, 3, H, W) RGB in [0, 1].
        labeled: by task, the images of the batch that have a label.
        unlabeled: by task, those that have a pseudo-label.
        pseudo: by task, pseudo-labels of those images in the weak view.
        moved: by task, the same in the strong view.
        strong: (M, 3, H, W), strong views of the images `strong_images`.
        strong_images: the images of the batch that have a strong view.
        seeds: of dropout, for each of the student's images.
        agreement: by task, of the student on the strong views with the moved pseudo-labels.
    """

    batch: list[dict]
    weak: Tensor
    labeled: dict[str, list[int]]
    unlabeled: dict[str, list[int]]
    pseudo: dict[str, list[Target]] = field(default_factory=dict)
    moved: dict[str, list[Target]] = field(default_factory=dict)
    strong: Tensor | None = None
    strong_images: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
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


def dropout_seeds(
    batch: Sequence[dict], images: Sequence[int], seed: int, *, strong: bool
) -> list[int]:
    """For the weak or the strong views of some images: alike however ranks share the batch."""
    draws = [batch[i]["draw"] for i in images]
    keys = [[seed, draw.step, draw.position, _DROPOUT + strong] for draw in draws]
    return [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]


def union(images: Mapping[str, Sequence[int]]) -> list[int]:
    """The images that at least one task needs, in order."""
    return sorted({i for rows in images.values() for i in rows})


def num_parts(limit: int, num_images: int) -> int:
    """As many on every rank, for with each part they exchange its losses."""
    return limit if limit == 1 else min(limit, max(1, *comm.all_gather(num_images)))


def split_rows(count: int, parts: int) -> list[list[int]]:
    """0..count-1 in `parts` parts, interleaved so that each has weak and strong views."""
    return [list(range(part, count, parts)) for part in range(parts)]


def set_normalizers(terms: Sequence[Term], student: MultiTaskNet) -> None:
    """Count over the whole global batch what each loss is a mean over."""
    counts = sum_over_ranks([term.assigned.count for term in terms], student.device)
    for term, count in zip(terms, counts, strict=True):
        head = student.head(term.task.name)
        term.normalizer = head.normalizer(count, unsupervised=term.unsupervised)
