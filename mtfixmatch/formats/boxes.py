"""Boxes as label files list them, before they are matched with images.

A format is a module of this package with a function from a file or folder to a `BoxSource`. Adding
one means one more file, and one more line in `_format_of`.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..utils.errors import InputError
from .image_files import expand


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
        boxes: [class index, iscrowd, x0, y0, x1, y1, what to call it in a message] of each box,
            ends exclusive; empty: none; None: the source says that the image is not labeled.
    """

    name: str
    size: list[int] | None
    boxes: list[list] | None


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
        faults: kind -> a line for each entry that was left out, see `Notes`.
        num_entries: number of its entries, left out or not.
    """

    path: str
    classes: list[str]
    images: list[ListedImage]
    lists_images: bool = True
    by_stem: bool = False
    relative: bool = False
    faults: dict[str, list[str]] = field(default_factory=dict)
    num_entries: int = 0


def open_boxes(path: str, scan: Scan, key: str, names: Sequence[str] = ()) -> BoxSource:
    """Read the boxes in a file or folder, whose format is guessed.

    Args:
        path: a COCO instances JSON.
        scan: function that reads files.
        key: config key of the path, for messages.
        names: classes in the config, for a format whose files have numbers alone.

    Raises:
        InputError: there is no such file, or it has no format that can be read.
    """
    path = expand(path)
    if not os.path.exists(path):
        raise InputError(f"{key}: there is no file or folder {path!r}")
    return _format_of(path, key)(path, scan)


def _format_of(path: str, key: str) -> Callable[[str, Scan], BoxSource]:
    from . import coco  # the formats import this module

    if os.path.isfile(path) and path.lower().endswith(".json"):
        return coco.open_coco
    raise InputError(f"{key}: {path} has no known format: expected {EXPECTED}")


EXPECTED = "a COCO instances JSON"
