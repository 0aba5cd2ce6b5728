"""Open a file or folder with boxes, whatever its format.

A format is a module of this package with a function from a path to a `BoxSource`.
"""

import glob
import os
from collections.abc import Sequence

from ..utils.errors import InputError
from ..utils.files import contains
from .coco import open_coco
from .image_files import expand
from .label_files import SUFFIXES, find_label_files
from .labelme import open_labelme
from .panoptic import open_panoptic_boxes
from .sources import BoxSource, Scan
from .voc import open_voc
from .yolo import open_data_yaml, open_yolo

EXPECTED = (
    "a COCO JSON, the data.yaml of YOLO, or a folder of YOLO's .txt, Pascal VOC's .xml "
    "or labelme's .json"
)


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
    path = expand(path)
    if not os.path.exists(path) and not glob.has_magic(path):
        raise InputError(f"{key}: there is no file or folder {path!r}")
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path):
        if suffix == ".json":
            is_panoptic = contains(path, b'"segments_info"')
            return (open_panoptic_boxes if is_panoptic else open_coco)(path, scan)
        if suffix in (".yaml", ".yml"):
            return open_data_yaml(path, scan, key)
        if suffix not in SUFFIXES:
            raise InputError(f"{key}: {path} has no known format: expected {EXPECTED}")
    suffix, files = find_label_files(path, key)
    if suffix == ".txt":
        return open_yolo(path, files, scan, key, names)
    return (open_voc if suffix == ".xml" else open_labelme)(path, files, scan)
