"""Write the labels of a new dataset for other tools (projects/autolabel.py --to)."""

import os
from collections.abc import Callable, Mapping, Sequence

from ...tasks.auto_labels import LabeledImage
from .coco import write_coco
from .cvat import write_cvat
from .label_studio import write_label_studio
from .yolo import write_yolo

# Name -> function of images, classes of each task and an existing folder. It returns a line for
# each thing that the format cannot hold.
Writer = Callable[[Sequence[LabeledImage], Mapping[str, Sequence[str]], str], list[str]]
FORMATS: dict[str, Writer] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
}


def write_format(
    name: str, images: Sequence[LabeledImage], classes: Mapping[str, Sequence[str]], folder: str
) -> list[str]:
    """Write labels in the format `name` into a new folder, and return lines on what is left out."""
    os.makedirs(folder)
    return [f"{name}: {line}" for line in FORMATS[name](images, classes, folder)]
