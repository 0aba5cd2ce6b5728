"""Read semantic maps from the polygons and masks in a COCO JSON."""

from typing import Any

import msgspec

from .coco import CocoReader
from .shapes import PackedShapes, Row, Runs, decode_shape
from .sources import ListedMap, MapSource, Scan

# Kinds of faults.
BAD_SHAPES = "annotations without polygons or a mask that can be drawn, left out"
FAULTY = "images of which each annotation is faulty, not labeled"


class _Annotation(msgspec.Struct, gc=False):
    id: Any = None
    image_id: Any = None
    category_id: Any = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


def open_coco_maps(path: str, scan: Scan) -> MapSource:
    """Return the maps in a COCO JSON; see `read_coco_maps`."""
    content = scan([path], read_coco_maps, name="coco_maps", source=path, strict=True)[path]
    images = [
        ListedMap(name, size, PackedShapes.from_json(shapes) if shapes else None)
        for name, size, shapes in content.pop("images")
    ]
    return MapSource(path=path, images=images, **content)


def read_coco_maps(path: str) -> dict[str, Any]:
    """Return the fields of a `MapSource` from a COCO JSON, as `read_coco` does for boxes.

    The annotations of an image are drawn in their order. An image of which each annotation is
    faulty is not labeled.

    Raises:
        InputError: the file is no JSON object with the lists of COCO.
    """
    reader = CocoReader(path)
    found: dict[Any, list[tuple[str, Any, msgspec.Raw]]] = {key: [] for key in reader.images}
    for name, image, category, x in reader.rows(_Annotation):
        found[image].append((name, category, x.segmentation))
    classes = reader.classes({category for rows in found.values() for _, category, _ in rows})
    faulty, images = [], []
    for key, (name, size) in reader.images.items():
        rows, size = _rows(reader, found.pop(key), size)
        if rows is None:
            faulty.append(f"{path}: image {name!r}")
        images.append([name, size, None if rows is None else PackedShapes.pack(rows).to_json()])
    return {
        "classes": list(classes),
        "images": images,
        "faults": reader.faults,
        "num_entries": reader.num_entries,
        "left_out": {FAULTY: faulty} if faulty else {},
    }


def _rows(
    reader: CocoReader, found: list[tuple[str, Any, msgspec.Raw]], size: list[int] | None
) -> tuple[list[Row] | None, list[int] | None]:
    """Return the shapes of an image, None if all are faulty, and its size, maybe that of a mask."""
    rows = []
    for name, category, content in found:
        try:
            shape = decode_shape(content)
            if isinstance(shape, Runs):
                size = size or list(shape.size)
                if size != list(shape.size):
                    raise ValueError(f"a mask of size {list(shape.size)} in an image of {size}")
        except ValueError as error:
            reader.fault(BAD_SHAPES, f"{name} has {error}")
        else:
            rows.append(Row(reader.categories[category][0], name, shape))
    return (None if found and not rows else rows), size
