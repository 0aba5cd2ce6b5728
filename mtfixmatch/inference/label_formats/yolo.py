"""YOLO: links to the images, text files of boxes, and data.yaml."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ...tasks.auto_labels import LabeledImage
from ...utils.errors import InputError
from ...utils.files import write_atomically
from .labels import count_partial, has_boxes

DATA_FILE = "data.yaml"


def write_yolo(
    images: Sequence[LabeledImage], classes: Mapping[str, Sequence[str]], folder: str
) -> list[str]:
    """Write a folder for each task with boxes: `images`, `labels` and data.yaml.

    Ids are those of YOLO, from 0. A row has five columns: trainers take a sixth one for an error.
    """
    lines: list[str] = []
    for task, names in classes.items():
        if not has_boxes(task, images):
            lines.append(f"{task}: the format has no maps, left out")
            continue
        labeled = [image for image in images if image.labels[task].boxes is not None]
        place = os.path.join(folder, task)
        ignored = sum(_write_image(image, task, place) for image in labeled)
        content = {"train": "images", "val": "images", "names": dict(enumerate(names))}
        path = os.path.join(place, DATA_FILE)
        write_atomically(path, yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
        if ignored:
            lines.append(f"{task}: {ignored} ignored regions, which the format cannot hold")
        lines.append(f"{task}: scores are in the dataset's own files alone")
        lines += count_partial(task, images, len(names))
    return lines


def _write_image(image: LabeledImage, task: str, folder: str) -> int:
    """Write the link and the rows of an image, and return the number of ignored regions."""
    link = os.path.join(folder, "images", image.name)
    label = os.path.join(folder, "labels", f"{os.path.splitext(image.name)[0]}.txt")
    if os.path.exists(label):
        raise InputError(f"{image.path}: another image has its name and another suffix")
    for path in (link, label):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(image.path, link)
    boxes = image.labels[task].boxes or []
    rows = [_row(box, image.size) for box in boxes if not box["iscrowd"]]
    write_atomically(label, "".join(f"{row}\n" for row in rows))
    return len(boxes) - len(rows)


def _row(box: Mapping[str, Any], size: tuple[int, int]) -> str:
    x0, y0, x1, y1 = box["bbox"]
    height, width = size
    shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    return " ".join([str(box["category_id"]), *(f"{value:.8f}" for value in shares)])
