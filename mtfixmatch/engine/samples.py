"""The images that the student sees in a step, each with its targets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..augmentation.strong import StrongAugmentation, StrongView
from ..data.samplers import Draw
from ..modeling import MultiTaskNet
from ..tasks import Task
from ..tasks.base import Assigned, Outputs, Target
from ..utils.devices import stack, take_rows, to_device

# Random stream of dropout in a weak view, under the key (seed, step, position); the next number is
# the stream of a strong view.
_DROPOUT = 103


@dataclass(frozen=True)
class SampleTarget:
    """The target of a sample for one task.

    Attributes:
        target: label or pseudo-label, in the coordinates of the sample's image.
        is_pseudo: whether it is a pseudo-label and belongs to the unsupervised loss.
        is_partial: whether it is a label that leaves a part to a pseudo-label.
        assigned: the target in the shape of the head's outputs, see `assign_targets`.
    """

    target: Target
    is_pseudo: bool
    is_partial: bool = False
    assigned: Assigned | None = None


@dataclass(frozen=True)
class Sample:
    """One image that the student sees.

    Attributes:
        image: (3, H, W) RGB in [0, 1].
        dropout_seed: seed of the dropout masks of the image.
        targets: task name -> target; the sample has no part in the losses of other tasks.
        in_all_heads: whether it passes through heads without a target too, for their BatchNorm.
    """

    image: Tensor
    dropout_seed: int
    targets: Mapping[str, SampleTarget] = field(default_factory=dict)
    in_all_heads: bool = False

    def runs(self, task: Task) -> bool:
        """Whether the sample passes through the head of a task."""
        return self.in_all_heads or task.name in self.targets

    def is_labeled(self, task: Task) -> bool:
        """Whether it has a label for a task that leaves nothing to a pseudo-label."""
        return task.name in self.targets and not self.targets[task.name].is_partial

    def restrict(self, task: Task, pseudo: Target) -> Target:
        """Restrict a pseudo-label of this image to what its label, if it has one, leaves."""
        label = self.targets.get(task.name)
        return pseudo if label is None else task.restrict_pseudo_label(pseudo, label.target)


def stack_images(batch: Sequence[dict], device: torch.device) -> Tensor:
    """Return the weak views of a batch, (N, 3, H, W) RGB in [0, 1]."""
    images = stack([item["image"] for item in batch])
    return to_device(images, device).float() / 255


def weak_samples(batch: Sequence[dict], images: Tensor, seed: int) -> list[Sample]:
    """Make a sample of each weak view, with its labels.

    Args:
        batch: N items of the mapper.
        images: weak views, (N, 3, H, W) RGB in [0, 1], see `stack_images`.
        seed: seed of the training.
    """
    return [
        Sample(
            image=image,
            dropout_seed=_dropout_seed(seed, item["draw"], strong=False),
            targets={
                name: SampleTarget(target, is_pseudo=False, is_partial=name in item["partial"])
                for name, target in item["targets"].items()
                if target is not None
            },
        )
        for image, item in zip(images, batch, strict=True)
    ]


@torch.no_grad()
def strong_samples(
    images: Tensor,
    draws: Sequence[Draw],
    pseudo_labels: Sequence[Mapping[str, Target]],
    tasks: Sequence[Task],
    augmentation: StrongAugmentation,
    seed: int,
) -> list[Sample]:
    """Make a strong view of each image, with the pseudo-labels warped into it.

    Args:
        images: weak views, (N, 3, H, W) RGB in [0, 1].
        draws: draws of the N images, all of one step.
        pseudo_labels: for each weak view, task name -> pseudo-label.
        tasks: tasks of the pseudo-labels.
        augmentation: augmentation from weak to strong views.
        seed: seed of the training.
    """
    positions = [draw.position for draw in draws]
    view = augmentation(images, step=draws[0].step, positions=positions)
    targets: list[dict[str, SampleTarget]] = [{} for _ in draws]
    for task in tasks:
        rows = indices(task.name in labels for labels in pseudo_labels)
        if not rows:
            continue
        warped = warped_targets(task, [pseudo_labels[i][task.name] for i in rows], view, rows)
        for i, target in zip(rows, warped, strict=True):
            targets[i][task.name] = SampleTarget(target, is_pseudo=True)
    return [
        Sample(image, _dropout_seed(seed, draw, strong=True), own)
        for image, draw, own in zip(view.images, draws, targets, strict=True)
    ]


def warped_targets(
    task: Task, targets: Sequence[Target], view: StrongView, rows: Sequence[int]
) -> list[Target]:
    """Warp targets of the weak views at some rows into the strong views at the same rows."""
    size = (view.images.shape[2], view.images.shape[3])
    erased = take_rows(view.erased, rows) if view.ignore_erased else None
    return task.warp_targets(targets, view.matrices[list(rows)], size, erased)


@torch.no_grad()
def assign_targets(
    samples: Sequence[Sample], tasks: Sequence[Task], student: MultiTaskNet
) -> list[Sample]:
    """Return the same samples with their targets in the shape of the heads' outputs."""
    assigned: dict[str, Iterator[Assigned]] = {}
    for task in tasks:
        targets = targets_of(samples, task)
        size = image_size(samples) if targets else (0, 0)
        labels, is_pseudo = [x.target for x in targets], [x.is_pseudo for x in targets]
        assigned[task.name] = iter(student.head(task.name).assign(labels, is_pseudo, size))
    return [
        replace(
            sample,
            targets={
                name: replace(target, assigned=next(assigned[name]))
                for name, target in sample.targets.items()
            },
        )
        for sample in samples
    ]


def targets_of(samples: Sequence[Sample], task: Task) -> list[SampleTarget]:
    """Return the targets for a task, in the order of the samples that have one."""
    return [sample.targets[task.name] for sample in samples if task.name in sample.targets]


def assigned_of(samples: Sequence[Sample], task: Task, *, is_pseudo: bool) -> list[Assigned]:
    """Return the assigned labels or pseudo-labels of a task, in the order of the samples."""
    targets = [x for x in targets_of(samples, task) if x.is_pseudo == is_pseudo]
    return [x.assigned for x in targets if x.assigned is not None]


def loss_rows(samples: Sequence[Sample], task: Task, *, is_pseudo: bool) -> list[bool]:
    """Return which rows of a head's outputs have a label, or a pseudo-label, of a task."""
    targets = [sample.targets.get(task.name) for sample in samples if sample.runs(task)]
    return [x is not None and x.is_pseudo == is_pseudo for x in targets]


def select_rows(outputs: Outputs, mask: Sequence[bool]) -> Outputs:
    """Return the outputs for the images of a mask, without a copy if they follow each other."""
    rows = indices(mask)
    return tuple(take_rows(x, rows) for x in outputs)


def indices(flags: Iterable[Any]) -> list[int]:
    """Return the indices of true values."""
    return [i for i, flag in enumerate(flags) if flag]


def image_size(samples: Sequence[Sample]) -> tuple[int, int]:
    """Return the (height, width) that all samples have in common."""
    return samples[0].image.shape[1], samples[0].image.shape[2]


def _dropout_seed(seed: int, draw: Draw, *, strong: bool) -> int:
    """Return a seed from (seed, step, position), which does not depend on the number of ranks."""
    key = [seed, draw.step, draw.position, _DROPOUT + strong]
    return int(np.random.SeedSequence(key).generate_state(1)[0])
