"""Read COCO's panoptic annotations: a JSON, and a PNG for each image, whose colors are segments.

The JSON has the boxes, and with the PNGs the semantic maps.
"""

import os
from collections.abc import Iterator
from typing import Any

import msgspec

from ..utils.files import is_path, note_read
from ..utils.json_values import shown_json, shown_text
from .coco import BAD_ENTRIES, ORPHANS, CocoReader, box_fields, id_key
from .sources import BoxSource, ListedImage, ListedMap, MapSource, Scan, Segments

TWICE = "annotations of an image that another one is for, left out"
MAX_ID = (1 << 24) - 1  # three bytes of a color


class _Annotation(msgspec.Struct, gc=False):
    image_id: Any = None
    file_name: Any = None
    segments_info: list[msgspec.Raw] | None = None


class _Segment(msgspec.Struct, gc=False):
    id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")  # it has none, as `CocoReader.box` may ask


def open_panoptic_boxes(path: str, scan: Scan) -> BoxSource:
    """Return the boxes in a panoptic JSON; see `read_panoptic_boxes`."""
    content = scan([path], read_panoptic_boxes, name="panoptic_boxes", source=path, strict=True)
    fields = content[path]
    images = [ListedImage(*image) for image in fields.pop("images")]
    return BoxSource(path=path, images=images, **fields)


def read_panoptic_boxes(path: str) -> dict[str, Any]:
    """Return the fields of a `BoxSource` from a panoptic JSON.

    The classes are the categories that are things. An image without an annotation is not labeled.

    Raises:
        InputError: the file is no JSON object with the lists of COCO.
    """
    reader = _Reader(path)
    boxes: dict[Any, list[list] | None] = dict.fromkeys(reader.images)
    for image, _, segments in reader.annotations():
        boxes[image] = [
            [category, *box, name]
            for name, category, x in segments
            if category not in reader.stuff and (box := reader.box(name, x))
        ]
    for key in reader.stuff:
        del reader.categories[key]
    return box_fields(reader, boxes)


def open_panoptic_maps(path: str, scan: Scan) -> MapSource:
    """Return the maps of a panoptic JSON, whose PNGs are in the folder of its name or beside it."""
    content = scan([path], read_panoptic_maps, name="panoptic_maps", source=path, strict=True)
    fields = content[path]
    own_folder = os.path.splitext(path)[0]
    note_read(own_folder)
    folder = own_folder if os.path.isdir(own_folder) else os.path.dirname(path)
    names = fields["classes"]
    images = []
    for name, size, file, ids, places in fields.pop("images"):
        png = os.path.join(folder, file or "")
        label = Segments(png, ids, [names[x] for x in places]) if file else None
        images.append(ListedMap(name, size, label))
    return MapSource(path=path, images=images, **fields)


def read_panoptic_maps(path: str) -> dict[str, Any]:
    """Return the fields of a `MapSource` from a panoptic JSON.

    Each image has the name of its PNG, ids of segments and the places of their classes. An image
    without an annotation is not labeled.

    Raises:
        InputError: the file is no JSON object with the lists of COCO.
    """
    reader = _Reader(path)
    found: dict[Any, tuple[str, dict[int, Any]]] = {}
    for image, file, segments in reader.annotations():
        found[image] = (file, {x.id: category for _, category, x in segments})
    classes = reader.classes({x for _, segments in found.values() for x in segments.values()})
    images = []
    for key, (name, size) in reader.images.items():
        file, categories = found.get(key, ("", {}))
        places = [classes[reader.categories[x][0]] for x in categories.values()]
        images.append([name, size, file, list(categories), places])
    return {
        "classes": list(classes),
        "images": images,
        "faults": reader.faults,
        "num_entries": reader.num_entries,
    }


class _Reader(CocoReader):
    def annotations(self) -> Iterator[tuple[Any, str, list[tuple[str, Any, _Segment]]]]:
        """Yield image key, name of the PNG and segments of each image that has an annotation.

        A segment is its name for messages, its category key and its entry.
        """
        seen = set()
        for number, x in enumerate(self.entries("annotations", _Annotation), start=1):
            image, file = id_key(x.image_id), x.file_name
            name = f"annotation number {number}"
            if not is_path(file) or x.segments_info is None:
                expected = "needs a file_name and segments_info"
                self.fault(BAD_ENTRIES, f"{name} (image_id {shown_json(x.image_id)}) {expected}")
            elif image not in self.images:
                self.is_listed(name, x, image, None)
            elif image in seen:
                self.fault(TWICE, f"{name} of image_id {shown_json(x.image_id)}")
            else:
                seen.add(image)
                yield image, file, list(self._segments(file, x.segments_info))

    def _segments(
        self, file: str, entries: list[msgspec.Raw]
    ) -> Iterator[tuple[str, Any, _Segment]]:
        decoder = msgspec.json.Decoder(_Segment)
        seen = set()
        self.num_entries += len(entries)
        for raw in entries:
            try:
                x = decoder.decode(raw)
            except ValueError:  # msgspec's errors, and a number with too many digits
                shown = shown_text(bytes(raw))
                self.fault(BAD_ENTRIES, f"segment {shown} of {file} is no object of COCO's form")
                continue
            x.id, category = id_key(x.id), id_key(x.category_id)
            name = f"segment {x.id} of {file}"
            if not isinstance(x.id, int) or not 0 < x.id <= MAX_ID or x.id in seen:
                self.fault(BAD_ENTRIES, f"{name}: expected another id for each, 1 to {MAX_ID}")
            elif category not in self.categories:
                value = shown_json(x.category_id)
                self.fault(ORPHANS, f"{name} has category_id {value}")
            else:
                seen.add(x.id)
                yield name, category, x
