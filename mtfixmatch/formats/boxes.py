"""Boxes as label files list them, before they are matched with images.

A format is a module of this package with a function from a file or folder to a `BoxSource`. Adding
one means one more file, and one more line in `open_boxes`.
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..utils.errors import InputError
from ..utils.files import contains
from .image_files import expand
from .sources import LabelSource, Scan

EXPECTED = (
    "a COCO JSON, the data.yaml of YOLO, or a folder of YOLO's .txt, Pascal VOC's .xml "
    "or labelme's .json"
)


class ListedImage(NamedTuple):
    """An image that a source lists, with its boxes.

    Attributes:
        name: path of the image as the source writes it.
        size: [height, width] in pixels that the source says; None: it does not.
        boxes: [class index, iscrowd, x0, y0, x1, y1, name or number for messages] of each box, ends
            exclusive; empty: none; None: the source says that the image is not labeled.
        file: its label file, for messages; "": the source is one file.
        other_name: another name, in case that no image has the first; "": none.
    """

    name: str
    size: list[int] | None
    boxes: list[list] | None
    file: str = ""
    other_name: str = ""


@dataclass
class BoxSource(LabelSource):
    """A file or a folder with boxes.

    Attributes:
        images: the images that it lists.
        relative: whether boxes are in shares of the image's width and height, not in pixels.
        of_all_classes: whether an image is labeled for all classes that are trained, because the
            files have no list of classes; False: for `classes`.
        entry: word in front of the number of a box, for messages.
    """

    images: list[ListedImage]
    relative: bool = False
    of_all_classes: bool = False
    entry: str = ""


def open_boxes(path: str, scan: Scan, key: str, names: Sequence[str] = ()) -> BoxSource:
    """Read the boxes in a file or folder, whose format is guessed.

    Args:
        path: a COCO instances or panoptic JSON; the data.yaml of YOLO; or label files, one for
            each image, of YOLO, Pascal VOC or labelme: a folder, a glob, or a text file with paths.
        scan: function that reads files.
        key: config key of the path, for messages.
        names: classes in the config, for a format whose files have numbers alone.

    Raises:
        InputError: there is no such file, or it has no format that can be read.
    """
    from . import coco, label_files, labelme, panoptic, voc, yolo  # the formats import this module

    path = expand(path)
    if not os.path.exists(path) and not glob.has_magic(path):
        raise InputError(f"{key}: there is no file or folder {path!r}")
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path):
        if suffix == ".json":
            is_panoptic = contains(path, b'"segments_info"')
            return (panoptic.open_panoptic_boxes if is_panoptic else coco.open_coco)(path, scan)
        if suffix in (".yaml", ".yml"):
            return yolo.open_data_yaml(path, scan, key)
        if suffix not in label_files.SUFFIXES:
            raise InputError(f"{key}: {path} has no known format: expected {EXPECTED}")
    suffix, files = label_files.find_label_files(path, key)
    if suffix == ".txt":
        return yolo.open_yolo(path, files, scan, key, names)
    return (voc.open_voc if suffix == ".xml" else labelme.open_labelme)(path, files, scan)
