"""What the writers of labels share."""

from collections.abc import Sequence

from ...tasks.auto_labels import LabeledImage


def has_boxes(task: str, images: Sequence[LabeledImage]) -> bool:
    """Return whether an image has boxes for a task."""
    return any(image.labels[task].boxes is not None for image in images)


def has_maps(task: str, images: Sequence[LabeledImage]) -> bool:
    """Return whether an image has a map for a task."""
    return any(image.labels[task].map_file for image in images)


def count_partial(task: str, images: Sequence[LabeledImage], number: int) -> list[str]:
    """Return a line if boxes are not for all classes, which other formats cannot say.

    A class that the network left out is in no label of the images that it labeled.
    """
    labels = [image.labels[task] for image in images]
    count = sum(label.num_classes < number for label in labels if label.boxes is not None)
    if not count:
        return []
    return [f"{task}: {count} images are not labeled for all classes, which the format cannot say"]
