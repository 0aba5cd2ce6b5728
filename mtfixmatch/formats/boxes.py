"""Boxes as label files list them, before they are matched with images.

A format is a module of this package with a function from a file or folder to a `BoxSource`. Adding
one means one more file, and one more line in `open_boxes`.
"""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..utils.errors import InputError
from ..utils.json_values import is_number
from .image_files import expand

EXPECTED = (
    "a COCO instances JSON, the data.yaml of YOLO, or a folder of YOLO's .txt, Pascal VOC's .xml "
    "or labelme's .json"
)


class Scan(Protocol):
    """Reads files in parallel, and recalls the results of those that did not change."""

    def __call__(
        self,
        paths: Iterable[str],
        function: Callable[[str], Any],
        *,
        name: str,
        source: str,
        strict: bool = False,
    ) -> dict[str, Any]:
        """Return file -> result of a function of one path, which survives JSON.

        Where DATALOADER.SKIP_BROKEN allows it, files that cannot be read are absent, unless
        `strict`; elsewhere, they are an InputError.
        """


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
class BoxSource:
    """A file or a folder with boxes.

    Attributes:
        path: the file or folder, for messages.
        classes: names of its classes, in its order.
        images: the images that it lists.
        lists_images: whether it lists the images of a split; False: it has a file for each image,
            and an image without one is not listed.
        by_stem: whether the names of images lack their suffix.
        relative: whether boxes are in shares of the image's width and height, not in pixels.
        of_all_classes: whether an image is labeled for all classes that are trained, because the
            files have no list of classes; False: for `classes`.
        entry: word in front of the number of a box, for messages.
        faults: kind -> a line for each entry that is faulty and left out, see `Notes`.
        num_entries: number of its entries, faulty or not.
        left_out: kind -> a line for each thing that is sound and left out all the same.
        broken: names of images whose label file cannot be read.
    """

    path: str
    classes: list[str]
    images: list[ListedImage]
    lists_images: bool = True
    by_stem: bool = False
    relative: bool = False
    of_all_classes: bool = False
    entry: str = ""
    faults: dict[str, list[str]] = field(default_factory=dict)
    num_entries: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def pixel_size(height: Any, width: Any) -> list[int] | None:
    """Return [height, width], None if one of them is absent or no number of pixels."""
    sides = [height, width]
    if all(is_number(x) and x > 0 and x == int(x) for x in sides):
        return [int(x) for x in sides]
    return None


def open_boxes(path: str, scan: Scan, key: str, names: Sequence[str] = ()) -> BoxSource:
    """Read the boxes in a file or folder, whose format is guessed.

    Args:
        path: a COCO instances JSON; the data.yaml of YOLO; or label files, one for each image, of
            YOLO, Pascal VOC or labelme: a folder, a glob, or a text file with their paths.
        scan: function that reads files.
        key: config key of the path, for messages.
        names: classes in the config, for a format whose files have numbers alone.

    Raises:
        InputError: there is no such file, or it has no format that can be read.
    """
    from . import coco, label_files, labelme, voc, yolo  # the formats import this module

    path = expand(path)
    if not os.path.exists(path) and not glob.has_magic(path):
        raise InputError(f"{key}: there is no file or folder {path!r}")
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path):
        if suffix == ".json":
            return coco.open_coco(path, scan)
        if suffix in (".yaml", ".yml"):
            return yolo.open_data_yaml(path, scan, key)
        if suffix not in label_files.SUFFIXES:
            raise InputError(f"{key}: {path} has no known format: expected {EXPECTED}")
    suffix, files = label_files.find_label_files(path, key)
    if suffix == ".txt":
        return yolo.open_yolo(path, files, scan, key, names)
    return (voc.open_voc if suffix == ".xml" else labelme.open_labelme)(path, files, scan)
