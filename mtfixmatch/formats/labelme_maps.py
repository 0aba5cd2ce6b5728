"""Read semantic maps from the shapes in the JSON files of labelme."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..utils.errors import first_line
from ..utils.images import MAX_PIXELS
from .image_files import FoundFile
from .label_files import BAD_ENTRIES, LabelFile, image_name, note_label, other_name
from .labelme import Shape, check_shape, read_labelme
from .shapes import PackedShapes, Polygons, Row, Runs, check_polygons
from .sources import ListedMap, MapSource, Scan

IGNORED = "__ignore__"  # label of pixels to ignore, in labelme's own exports
CIRCLE_POINTS = 180  # corners of the polygon for a circle


def open_labelme_maps(path: str, files: Sequence[FoundFile], scan: Scan) -> MapSource:
    """Return the maps in JSON files of labelme; see `labelme_shapes`."""
    results = scan([x.path for x in files], labelme_shapes, name="labelme_shapes", source=path)
    source = MapSource(path, [], [], lists_images=False, by_stem=True)
    names: set[str] = set()
    for file in files:
        name = image_name(file.name)
        if file.path not in results:
            source.broken.append(name)
            continue
        fields = dict(results[file.path])
        shapes = PackedShapes.from_json(fields.pop("shapes"))
        label = LabelFile(**fields)
        is_faulty = bool(label.faults) and not shapes.counts
        note_label(source, label, is_faulty=is_faulty)
        known, other = None if is_faulty else shapes, other_name(name, label)
        source.images.append(ListedMap(name, label.size, known, file.path, other))
        names |= shapes.counts.keys()
    source.classes = sorted(names - {IGNORED})
    return source


def labelme_shapes(path: str) -> dict[str, Any]:
    """Return the fields of a `LabelFile` without boxes, and the values of `PackedShapes`.

    Raises:
        InputError: the file is no JSON object with a list of shapes.
    """
    label, shapes = read_labelme(path)
    rows = []
    for number, shape in shapes:
        found = check_shape(label, number, shape)
        if found is None:
            continue
        name, kind = found
        try:
            rows.append(Row(name, number, _area(kind, shape, label.size)))
        except ValueError as error:
            label.fault(number, f"has {error}", BAD_ENTRIES)
    return {**vars(label), "shapes": PackedShapes.pack(rows).to_json()}


def _area(kind: str, shape: Shape, size: list[int] | None) -> Polygons | Runs:
    """Return the area of a shape.

    Raises:
        ValueError: it cannot be drawn; the text says why.
    """
    points = shape.points
    if kind == "mask":
        return _mask(shape, size)
    if kind == "circle":
        (x, y), rim = points[:2]
        radius = math.dist((x, y), rim)
        angles = np.arange(CIRCLE_POINTS) * (2 * math.pi / CIRCLE_POINTS)
        points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).tolist()
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points[:2]
        points = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    return check_polygons([[float(value) for point in points for value in point]])


def _mask(shape: Shape, size: list[int] | None) -> Runs:
    """Return a mask, which is a PNG whose first and last pixel are the points."""
    if size is None or size[0] * size[1] > MAX_PIXELS:
        raise ValueError("a mask, which needs the right imageHeight and imageWidth")
    pixels = _decode_mask(shape.mask)
    xs, ys = zip(*shape.points, strict=True)
    x, y = round(min(xs)), round(min(ys))
    height, width = pixels.shape
    if [round(max(xs)) - x + 1, round(max(ys)) - y + 1] != [width, height]:
        raise ValueError(f"a mask of {width}x{height} pixels, other than its points say")
    if min(x, y) < 0 or x + width > size[1] or y + height > size[0]:
        raise ValueError("a mask that reaches over the border of its image")
    whole = np.zeros(size, np.uint8, order="F")
    whole[y : y + height, x : x + width] = pixels
    counts = coco_mask.encode(whole)["counts"].decode()
    return Runs((size[0], size[1]), counts)


def _decode_mask(text: Any) -> np.ndarray:
    """Return the pixels of a PNG in base64 that are not 0, (H, W) bool."""
    try:
        content = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError("too many pixels")
            return np.asarray(image.convert("L")) > 0
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise ValueError(f"a mask that is no PNG in base64 ({first_line(error)})") from None
