"""The target of a detection task: the boxes of an image, maybe labeled for some classes alone."""

from typing import Any

from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..augmentation.geometry import Size


class PartialInstances(Instances):
    """Boxes of an image that is labeled for some of the classes.

    Of the other classes nothing is known: they have no box here, and are not background.
    """

    def __init__(self, image_size: Size, labeled: Tensor, **fields: Any):
        """Set the classes (K,) bool that the image is labeled for, and the fields of the boxes."""
        self._labeled = labeled
        super().__init__(image_size, **fields)

    @property
    def labeled(self) -> Tensor:
        """Which classes the image is labeled for, (K,) bool."""
        return self._labeled

    def to(self, *args: Any, **kwargs: Any) -> "PartialInstances":
        """See base class."""
        fields = super().to(*args, **kwargs).get_fields()
        return PartialInstances(self.image_size, self._labeled.to(*args, **kwargs), **fields)

    def __getitem__(self, item: Any) -> "PartialInstances":
        fields = super().__getitem__(item).get_fields()
        return PartialInstances(self.image_size, self._labeled, **fields)


def make_target(size: Size, labeled: Tensor | None = None, **fields: Any) -> Instances:
    """Return a target with the fields; of an image labeled for all classes if `labeled` is None."""
    if labeled is None:
        return Instances(size, **fields)
    return PartialInstances(size, labeled, **fields)


def boxes_target(
    size: Size, boxes: Tensor, classes: Tensor, ignore: Tensor, labeled: Tensor | None = None
) -> Instances:
    """Return a target of R boxes (R, 4) with classes (R,) and ignore flags (R,)."""
    fields = {"gt_boxes": Boxes(boxes), "gt_classes": classes, "gt_ignore": ignore}
    return make_target(size, labeled, **fields)


def labeled_mask(target: Instances) -> Tensor | None:
    """Return which classes a target is labeled for, (K,) bool; None: all."""
    return target.labeled if isinstance(target, PartialInstances) else None


def keep_labeled(boxes: Instances, target: Instances) -> Instances:
    """Return the boxes, on the CPU or a GPU, of the classes that a target is labeled for."""
    labeled = labeled_mask(target)
    if labeled is None:
        return boxes
    return boxes[labeled.to(boxes.gt_classes.device)[boxes.gt_classes]]
