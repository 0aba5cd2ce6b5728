"""Read the boxes around the shapes in the JSON files of labelme."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from ..utils.errors import InputError
from ..utils.json_values import is_number, shown_json, shown_text
from .coco import decode_json, id_key
from .image_files import FoundFile
from .label_files import LabelFile, image_name, read_label_files
from .sources import BoxSource, Scan, pixel_size

# Kind of a shape with an area -> least number of its points.
KINDS = {"rectangle": 2, "polygon": 3, "circle": 2, "mask": 2, "rotation": 3}
KINDS["oriented_rectangle"] = 3
# Labels that mean no class in labelme's own exports.
NO_CLASSES = ("__ignore__", "_background_")

NO_AREA = "shapes without an area, such as points and lines, left out"
NO_CLASS = f"shapes labeled {' or '.join(NO_CLASSES)}, left out"


class _File(msgspec.Struct):  # imageData, the image itself, is skipped
    shapes: list[msgspec.Raw] | None = None
    imagePath: Any = None
    imageHeight: Any = None
    imageWidth: Any = None


class Shape(msgspec.Struct, gc=False):
    """An entry of the list of shapes; the mask is a PNG in base64."""

    label: Any = None
    points: Any = None
    group_id: Any = None
    shape_type: Any = None
    mask: Any = None


def open_labelme(path: str, files: Sequence[FoundFile], scan: Scan) -> BoxSource:
    """Return the boxes in JSON files of labelme; see `labelme_boxes`."""
    files = [FoundFile(x.path, image_name(x.name)) for x in files]
    return read_label_files(path, files, scan, labelme_boxes)


def labelme_boxes(path: str) -> dict[str, Any]:
    """Return the fields of a `LabelFile` from a JSON file of labelme.

    Shapes of one label and one group_id are an object, and its box is around all of them. Flags
    are not read.

    Raises:
        InputError: the file is no JSON object with a list of shapes.
    """
    label, shapes = read_labelme(path)
    groups: dict[Any, list] = {}
    for number, shape in shapes:
        found = check_shape(label, number, shape, NO_CLASSES)
        if found is None:
            continue
        name, kind = found
        box = [name, 0, *_box(kind, shape.points), number]
        group = id_key(shape.group_id)
        key = number if group is None else (name, group)
        if key in groups:
            _extend(groups[key], box)
        else:
            groups[key] = box
            label.boxes.append(box)
    return vars(label)


def read_labelme(path: str) -> tuple[LabelFile, list[tuple[int, Shape]]]:
    """Return what a JSON file of labelme says of its image, and its shapes by their numbers.

    Raises:
        InputError: the file is no JSON object with a list of shapes.
    """
    content = decode_json(path, _File)
    if content.shapes is None:
        hint = "a COCO instances JSON is named itself, not its folder"
        raise InputError(f"{path}: expected a file of labelme with a list 'shapes' ({hint})")
    label = LabelFile(path, "shape", num_entries=len(content.shapes))
    label.size = pixel_size(content.imageHeight, content.imageWidth)
    label.image = content.imagePath if isinstance(content.imagePath, str) else ""
    shapes = []
    for number, raw in enumerate(content.shapes, start=1):
        try:
            shapes.append((number, msgspec.json.decode(raw, type=Shape)))
        except ValueError:  # msgspec's errors, and a number with too many digits
            label.fault(number, f"is {shown_text(bytes(raw))}, no object of labelme's form")
    return label, shapes


def check_shape(
    label: LabelFile, number: int, shape: Shape, no_classes: Sequence[str] = ()
) -> tuple[str, str] | None:
    """Return the class and the kind of a shape; None if it is left out, which is noted."""
    name = shape.label.strip() if isinstance(shape.label, str) else ""
    kind = "polygon" if shape.shape_type is None else shape.shape_type  # of old versions
    if not name:
        label.fault(number, f"has label {shown_json(shape.label)}, expected a name")
    elif name in no_classes:
        label.leave_out(NO_CLASS, number, f"is {name!r}")
    elif not isinstance(kind, str) or kind not in KINDS:
        label.leave_out(NO_AREA, number, f"has shape_type {shown_json(kind)}")
    elif not _are_points(shape.points) or len(shape.points) < KINDS[kind]:
        expected = f"expected at least {KINDS[kind]} points [x, y] for a {kind}"
        label.fault(number, f"has points {shown_json(shape.points)}, {expected}")
    else:
        return name, kind
    return None


def _are_points(points: Any) -> bool:
    pairs = points if isinstance(points, list) else [None]
    return all(isinstance(x, list) and len(x) == 2 and all(map(is_number, x)) for x in pairs)


def _box(kind: str, points: Sequence[Sequence[float]]) -> list[float]:
    """Return x0, y0, x1, y1 of a shape."""
    if kind == "circle":
        (x, y), rim = points[:2]
        radius = math.dist((x, y), rim)
        return [x - radius, y - radius, x + radius, y + radius]
    xs, ys = zip(*points, strict=True)
    last = 1 if kind == "mask" else 0  # the corners of a mask are pixels inside it
    return [min(xs), min(ys), max(xs) + last, max(ys) + last]


def _extend(box: list, other: list) -> None:
    """Make a box of `LabelFile` the one around itself and another."""
    box[2:4] = map(min, box[2:4], other[2:4])
    box[4:6] = map(max, box[4:6], other[4:6])
