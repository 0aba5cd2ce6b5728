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
HEADER = ("image", "task", "class", "unsure", "score")
IMAGE_KEYS = ("file_name", "image_id", "height", "width", "range_16bit")  # of a record
PICTURES = 8  # images on the contact sheet
MAX_WIDTH = 640  # of a picture in pixels


def write_review(images: Sequence[LabeledImage], tasks: Sequence[Task], folder: str) -> None:
    """Write the table, and the pictures of the images that come first in it."""
    rows = sorted(
        (
            (image, name, review)
            for image in images
            for name, label in image.labels.items()
            for review in label.review
        ),
        key=lambda row: (-row[2].unsure, row[2].score, row[0].path, row[1]),
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for image, name, x in rows:
        writer.writerow([image.path, name, x.class_name, f"{x.unsure:.4f}", f"{x.score:.4f}"])
    write_atomically(os.path.join(folder, TABLE), text.getvalue())
    first = list({image.path: image for image, _, _ in rows}.values())[:PICTURES]
    if first:
        _draw_sheet(first, tasks, os.path.join(folder, SHEET))


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
