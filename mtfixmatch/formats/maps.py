"""Find the format of a file or folder with semantic maps.

PNGs of values or colors are found by their names, see `mtfixmatch.tasks.png_maps`. The other
formats list images: each is a module with a function from a path to a `MapSource`.
"""

import glob
import os
from collections.abc import Callable

from ..utils.errors import InputError
from ..utils.files import contains
from .coco_maps import open_coco_maps
from .image_files import files_of
from .label_files import has_shapes
from .labelme_maps import open_labelme_maps
from .panoptic import open_panoptic_maps
from .sources import MapSource, Scan

EXPECTED = (
    "a folder of .png maps or of labelme's .json, a COCO JSON with polygons or masks, or the JSON "
    "of COCO's panoptic annotations"
)


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
    if path.lower().endswith(".json") and os.path.isfile(path):
        is_panoptic = contains(path, b'"segments_info"')
        return open_panoptic_maps if is_panoptic else open_coco_maps
    if not os.path.exists(path) and not glob.has_magic(path):
        return None
    files = files_of(path, key)
    texts = [x for x in files if x.name.lower().endswith(".json")]
    if has_shapes(texts):
        return lambda path, scan: open_labelme_maps(path, texts, scan)
    if texts and not any(x.name.lower().endswith(".png") for x in files):
        hint = "a COCO JSON is named itself, not its folder"
        raise InputError(f"{key}: {path} has no maps, expected {EXPECTED} ({hint})")
    return None
