"""Semantic maps as label files list them, before they are matched with images.

PNGs of values or colors are found by their names, see `mtfixmatch.tasks.png_maps`. The other
formats list images: each is a module with a function from a file or folder to a `MapSource`.
"""

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..utils.errors import InputError
from ..utils.files import contains
from .image_files import files_of
from .label_files import has_shapes
from .shapes import PackedShapes
from .sources import LabelSource, Scan

EXPECTED = (
    "a folder of .png maps or of labelme's .json, a COCO JSON with polygons or masks, or the JSON "
    "of COCO's panoptic annotations"
)


class Segments(NamedTuple):
    """The segments of an image in a PNG of panoptic annotations.

    Attributes:
        path: the PNG, whose colors r + 256 g + 65536 b are ids of segments; 0: none.
        ids: id of each segment.
        classes: name of the class of each.
    """

    path: str
    ids: Sequence[int]
    classes: Sequence[str]


class ListedMap(NamedTuple):
    """An image that a source lists, with its map; see `Listed`.

    Attributes:
        label: the map; None: the image is not labeled.
    """

    name: str
    size: list[int] | None
    label: PackedShapes | Segments | None
    file: str = ""
    other_name: str = ""


@dataclass
class MapSource(LabelSource):
    """A file or a folder with maps; see `LabelSource`."""

    images: list[ListedMap]


def map_format(path: str, key: str) -> Callable[[str, Scan], MapSource] | None:
    """Return the function that reads the maps in a file or folder, whose format is guessed.

    Args:
        path: a file, a folder, a glob or a text file with paths.
        key: config key of the path, for messages.

    Returns:
        Function of the path and the function that reads files; None: the maps are PNGs.

    Raises:
        InputError: there are JSON files of no known format.
    """
    from . import coco_maps, labelme_maps, panoptic  # the formats import this module

    if path.lower().endswith(".json") and os.path.isfile(path):
        is_panoptic = contains(path, b'"segments_info"')
        return panoptic.open_panoptic_maps if is_panoptic else coco_maps.open_coco_maps
    if not os.path.exists(path) and not glob.has_magic(path):
        return None
    files = files_of(path, key)
    texts = [x for x in files if x.name.lower().endswith(".json")]
    if has_shapes(texts):
        return lambda path, scan: labelme_maps.open_labelme_maps(path, texts, scan)
    if texts and not any(x.name.lower().endswith(".png") for x in files):
        hint = "a COCO JSON is named itself, not its folder"
        raise InputError(f"{key}: {path} has no maps, expected {EXPECTED} ({hint})")
    return None
