"""What a human should look at first: a table and pictures of the least certain labels."""

import csv
import io
import os
from collections.abc import Sequence

import cv2
import numpy as np

from ..engine.visualize import truth_tiles, write_grid
from ..tasks import Task
from ..tasks.auto_labels import LabeledImage
from ..utils.files import write_atomically

TABLE, SHEET = "review.csv", "contact_sheet.png"
HEADER = ("image", "image_unsure", "task", "class", "unsure", "score")
IMAGE_KEYS = ("file_name", "image_id", "height", "width", "range_16bit")  # of a record
PICTURES = 8  # images on the contact sheet
MAX_WIDTH = 640  # of a picture in pixels


def write_review(images: Sequence[LabeledImage], tasks: Sequence[Task], folder: str) -> None:
    """Write the table, and the pictures of the images that come first in it."""
    unsure = {image.path: image_unsure(image) for image in images}
    ranked = sorted(images, key=lambda x: (-unsure[x.path], x.path))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for image in ranked:
        rows = [(name, x) for name, label in image.labels.items() for x in label.review]
        for name, x in sorted(rows, key=lambda row: (-row[1].unsure, row[1].score)):
            figures = [f"{value:.4f}" for value in (unsure[image.path], x.unsure, x.score)]
            writer.writerow([image.path, figures[0], name, x.class_name, *figures[1:]])
    write_atomically(os.path.join(folder, TABLE), text.getvalue())
    first = [x for x in ranked if any(label.review for label in x.labels.values())][:PICTURES]
    if first:
        _draw_sheet(first, tasks, os.path.join(folder, SHEET))


def image_unsure(image: LabeledImage) -> float:
    """Return the mean over an image's tasks of the mean over their classes of `Review.unsure`.

    A human sees the whole image, and all tasks count alike: a share of boxes and one of pixels
    cannot be compared, but each of them grows with what is left to a human.
    """
    shares = [[x.unsure for x in label.review] for label in image.labels.values()]
    means = [sum(x) / len(x) for x in shares if x]
    return sum(means) / len(means) if means else 0.0


def _draw_sheet(images: Sequence[LabeledImage], tasks: Sequence[Task], path: str) -> None:
    """Draw each image without and with its labels; ignored boxes are grey."""
    plain = [{k: v for k, v in x.record.items() if k in IMAGE_KEYS} for x in images]
    labeled = [
        record | {k: v for label in x.labels.values() for k, v in label.keys.items()}
        for record, x in zip(plain, images, strict=True)
    ]
    tiles = [[_shrink(x) for x in truth_tiles(records, tasks)] for records in (plain, labeled)]
    rows = [list(row) for row in zip(*tiles, strict=True)]
    write_grid(rows, ["image", "labels"], path, [image.name for image in images])


def _shrink(tile: np.ndarray) -> np.ndarray:
    factor = MAX_WIDTH / tile.shape[1]
    if factor >= 1:
        return tile
    return cv2.resize(tile, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
