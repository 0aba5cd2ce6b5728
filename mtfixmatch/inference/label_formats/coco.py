"""COCO instances JSON: boxes, and masks for maps."""

import os
from collections.abc import Mapping, Sequence

from ...formats.coco_writer import ImageBoxes, coco_boxes, coco_maps
from ...tasks.auto_labels import LabeledImage
from ...utils.files import write_atomically
from ...utils.images import read_label_map
from .labels import count_partial, has_boxes, has_maps


def write_coco(
    images: Sequence[LabeledImage], classes: Mapping[str, Sequence[str]], folder: str
) -> list[str]:
    """Write a JSON for each task: of boxes with "score", or of a mask (RLE) for each class.

    Pixels that are ignored have no mask.
    """
    lines: list[str] = []
    for task, names in classes.items():
        path = os.path.join(folder, f"{task}.json")
        if has_boxes(task, images):
            labeled = [x for x in images if x.labels[task].boxes is not None]
            rows = [ImageBoxes(x.name, x.size, x.labels[task].boxes or ()) for x in labeled]
            write_atomically(path, coco_boxes(rows, dict(enumerate(names))))
            lines += count_partial(task, images, len(names))
        elif has_maps(task, images):
            labels = [(x.name, x.labels[task]) for x in images if x.labels[task].map_file]
            maps = ((name, read_label_map(x.map_file), x.provenance) for name, x in labels)
            write_atomically(path, coco_maps(maps, names))
    return lines
