"""The boxes of several images as one block of tensors, padded to their greatest number."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..utils.devices import to_device


@dataclass(frozen=True)
class PaddedBoxes:
    """At most M boxes of each of N images, M >= 1.

    Attributes:
        boxes: (N, M, 4); zeros where an image has fewer boxes.
        classes: (N, M).
        weights: weight of each box in the loss, (N, M).
        present: whether the image has such a box, (N, M) bool.
    """

    boxes: Tensor
    classes: Tensor
    weights: Tensor
    present: Tensor

    def flat(self) -> Boxes:
        """Return all N * M boxes."""
        return Boxes(self.boxes.reshape(-1, 4))


def pad_boxes(targets: Sequence[Instances], device: torch.device) -> PaddedBoxes:
    """Bring the boxes of N targets on the CPU to a device, in one copy."""
    block = torch.zeros(len(targets), max(1, *map(len, targets)), 7)
    for row, target in zip(block, targets, strict=True):
        count = len(target)
        row[:count, :4] = target.gt_boxes.tensor
        row[:count, 4] = target.gt_classes
        row[:count, 5] = target.gt_weights if target.has("gt_weights") else 1.0
        row[:count, 6] = 1.0
    block = to_device(block, device)
    return PaddedBoxes(block[..., :4], block[..., 4].long(), block[..., 5], block[..., 6] > 0)
