"""Read the boxes in a COCO instances JSON, as the tools of the field write it."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
from pycocotools import mask as coco_mask

from ..utils.errors import InputError, first_line
from ..utils.files import reading
from ..utils.json_values import is_number, shown_json, shown_text
from .shapes import Runs, bounds_of, decode_shape, run_lengths
from .sources import BoxSource, ListedImage, Scan, pixel_size

SECTIONS = ("categories", "images", "annotations")

# Kinds of faults.
BAD_ENTRIES = "entries of a wrong form, left out"
BAD_BOXES = "annotations without a usable box, left out"
ORPHANS = "annotations of an image or a category that is not listed, left out"
REPEATED_IDS = "images whose id another one has, left out"
MERGED = "categories of the same name, taken as one class"


class _File(msgspec.Struct):
    categories: list[msgspec.Raw] | None = None
    images: list[msgspec.Raw] | None = None
    annotations: list[msgspec.Raw] | None = None


class _Category(msgspec.Struct, gc=False):
    id: Any = None
    name: Any = None
    supercategory: Any = None
    isthing: Any = None  # of panoptic files


class _Image(msgspec.Struct, gc=False):
    id: Any = None
    file_name: Any = None
    height: Any = None
    width: Any = None


class Annotation(msgspec.Struct, gc=False):
    """An entry of the list of annotations."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    iscrowd: Any = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")  # decoded only where the box is absent


def open_coco(path: str, scan: Scan) -> BoxSource:
    """Return the boxes in a COCO instances JSON; see `read_coco`."""
    content = scan([path], read_coco, name="coco_boxes", source=path, strict=True)[path]
    images = [ListedImage(*image) for image in content.pop("images")]
    return BoxSource(path=path, images=images, **content)


def read_coco(path: str) -> dict[str, Any]:
    """Return the fields of a `BoxSource` from a COCO instances JSON.

    Ids may be numbers or strings, and those of annotations may be absent; null is as absent. A box
    that is absent is that of the segmentation. A category without boxes is no class if it is named
    like another one or is the supercategory of others, as the root that Roboflow adds. Entries that
    cannot be used are left out and become faults.

    Raises:
        InputError: the file is no JSON object with the lists of COCO.
    """
    reader = CocoReader(path)
    return box_fields(reader, reader.boxes())


def box_fields(reader: "CocoReader", boxes: dict[Any, Any]) -> dict[str, Any]:
    """Return the fields of a `BoxSource`.

    Args:
        reader: reader of the file.
        boxes: image key -> see `CocoReader.boxes`; None: the image is not labeled.
    """
    rows = [box for found in boxes.values() for box in found or ()]
    classes = reader.classes({box[0] for box in rows})
    for box in rows:
        box[0] = classes[reader.categories[box[0]][0]]
    images = [[name, size, boxes[key]] for key, (name, size) in reader.images.items()]
    return {
        "classes": list(classes),
        "images": images,
        "faults": reader.faults,
        "num_entries": reader.num_entries,
    }


class CocoReader:
    """The entries of one file, by the keys of their ids.

    Attributes:
        categories: key -> name, supercategory.
        stuff: keys of the categories that are no things, as panoptic files say.
        images: key -> file name, [height, width] or None.
        faults, num_entries: see `LabelSource`.
    """

    def __init__(self, path: str):
        self.path = path
        self.faults: dict[str, list[str]] = {}
        self.stuff: set = set()
        content = decode_json(path, _File)
        self.sections = {name: getattr(content, name) for name in SECTIONS}
        for name, entries in self.sections.items():
            if entries is None:
                raise InputError(f"{path}: expected a COCO instances file with a list {name!r}")
        self.num_entries = sum(map(len, self.sections.values()))
        self.categories = self._categories()
        self.images = self._images()

    def fault(self, kind: str, text: str) -> None:
        """Add a line on a faulty entry."""
        self.faults.setdefault(kind, []).append(f"{self.path}: {text}")

    def entries(self, section: str, kind: type) -> list[Any]:
        """Decode the entries of a section; those that are no objects are left out."""
        decoder: msgspec.json.Decoder = msgspec.json.Decoder(kind)
        entries = []
        for raw in self.sections.pop(section):
            try:
                entries.append(decoder.decode(raw))
            except ValueError:  # msgspec's errors, and a number with too many digits
                shown = shown_text(bytes(raw))
                self.fault(BAD_ENTRIES, f"{section!r} entry {shown} is no object of COCO's form")
        return entries

    def _categories(self) -> dict[Any, tuple[str, Any]]:
        categories: dict[Any, tuple[str, Any]] = {}
        for x in self.entries("categories", _Category):
            key, name = id_key(x.id), x.name
            if key is None or not isinstance(name, str | int) or not str(name).strip():
                shown = f"{{id: {shown_json(x.id)}, name: {shown_json(name)}}}"
                self.fault(BAD_ENTRIES, f"category {shown} needs an id and a name")
            elif key in categories and categories[key][0] != str(name):
                names = f"{categories[key][0]!r} and {str(name)!r}"
                raise InputError(f"{self.path}: category id {x.id} has two names, {names}")
            else:
                categories[key] = (str(name), x.supercategory)
                if x.isthing in (0, False):
                    self.stuff.add(key)
        return dict(sorted(categories.items(), key=lambda x: _order(x[0])))

    def _images(self) -> dict[Any, tuple[str, list[int] | None]]:
        rows = [(id_key(x.id), x) for x in self.entries("images", _Image)]
        files: dict[Any, set[str]] = {}
        for key, x in rows:
            files.setdefault(key, set()).add(str(x.file_name))
        images: dict[Any, tuple[str, list[int] | None]] = {}
        for key, x in rows:
            if key is None or not isinstance(x.file_name, str) or not x.file_name.strip():
                shown = f"{{id: {shown_json(x.id)}, file_name: {shown_json(x.file_name)}}}"
                self.fault(BAD_ENTRIES, f"image {shown} needs an id and a file_name")
            elif len(files[key]) > 1:
                self.fault(REPEATED_IDS, f"image id {x.id} is that of {x.file_name!r} and others")
            else:
                images[key] = (x.file_name, pixel_size(x.height, x.width))
        return images

    def rows(self, kind: type) -> Iterator[tuple[str, Any, Any, Any]]:
        """Yield name for messages, image key, category key and entry of each annotation."""
        for number, x in enumerate(self.entries("annotations", kind), start=1):
            name = f"annotation {x.id}" if x.id is not None else f"annotation number {number}"
            image, category = id_key(x.image_id), id_key(x.category_id)
            if self.is_listed(name, x, image, category):
                yield name, image, category, x

    def is_listed(self, name: str, entry: Any, image: Any, category: Any) -> bool:
        """Return whether the image and the category of an annotation are listed; else a fault."""
        if image in self.images and category in self.categories:
            return True
        what = "category" if image in self.images else "image"
        value = shown_json(entry.image_id if what == "image" else entry.category_id)
        self.fault(ORPHANS, f"{name} has {what}_id {value}")
        return False

    def boxes(self) -> dict[Any, list[list]]:
        """Return image key -> [category key, iscrowd, x0, y0, x1, y1, name] of each box."""
        boxes: dict[Any, list[list]] = {key: [] for key in self.images}
        for name, image, category, x in self.rows(Annotation):
            if box := self.box(name, x):
                boxes[image].append([category, *box, name])
        return boxes

    def box(self, name: str, entry: Any) -> list | None:
        """Return iscrowd and x0, y0, x1, y1 of an annotation; None if it is faulty."""
        box, crowd = _box(entry), entry.iscrowd or 0
        if box is not None and crowd in (0, 1):
            return [int(crowd), *box]
        shown = f"bbox {shown_json(entry.bbox)}" if box is None else f"iscrowd {crowd!r}"
        expected = "[x, y, width, height], finite numbers" if box is None else "0 or 1"
        self.fault(BAD_BOXES, f"{name} has {shown}, expected {expected}")
        return None

    def classes(self, used: set) -> dict[str, int]:
        """Return name -> index of the classes, for the keys of categories that have boxes."""
        names = Counter(name for name, _ in self.categories.values())
        parents = {parent for _, parent in self.categories.values()}
        for name in (name for name, count in names.items() if count > 1):
            keys = [key for key in used if self.categories[key][0] == name]
            if len(keys) > 1:
                self.fault(MERGED, f"the categories {sorted(keys, key=_order)} are {name!r}")
        kept = [
            name
            for key, (name, parent) in self.categories.items()
            if key in used or not (names[name] > 1 or (name in parents and parent != name))
        ]
        kept += [name for name in names if name not in kept and names[name] > 1]
        return {name: i for i, name in enumerate(dict.fromkeys(kept))}


def decode_json(path: str, kind: type) -> Any:
    """Decode a JSON file with msgspec, which skips what `kind` does not name.

    A byte order mark is passed over. NaN and infinity, which JSON does not have, become null.

    Raises:
        InputError: the file cannot be read, or is no JSON of that kind.
    """
    with reading(path), open(path, "rb") as file:
        content = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        return _decode(content, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: has another form than expected ({first_line(error)})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({first_line(error)})") from None


def _decode(content: bytes, kind: type) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError:
        raise
    except (ValueError, RecursionError):  # maybe for NaN alone; else Python says what is wrong
        values = json.loads(content.decode(), parse_constant=lambda name: None)
        return msgspec.json.decode(msgspec.json.encode(values), type=kind)


def id_key(value: Any) -> Any:
    """Return the key of an id, the same for 1, 1.0 and "1"; None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 20 else text or None


def _order(key: Any) -> tuple[bool, Any]:
    """Sort numbers by value, then strings."""
    return isinstance(key, str), key


def _box(annotation: Any) -> list[float] | None:
    """Return x0, y0, x1, y1 of a box, or of the segmentation of an annotation without one."""
    box = annotation.bbox
    if box is None or box == []:
        box = _box_of_segmentation(annotation.segmentation)
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return None
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


def _box_of_segmentation(content: msgspec.Raw) -> list[float] | None:
    """Return x, y, width, height of polygons or of a run-length encoded mask."""
    try:
        shape = decode_shape(content)
    except ValueError:
        return None
    if isinstance(shape, Runs):
        runs = {"size": shape.size, "counts": run_lengths(shape).tolist()}
        return coco_mask.toBbox(coco_mask.frPyObjects(runs, *shape.size)).tolist()
    bounds = bounds_of(shape)
    return bounds and [*bounds[:2], bounds[2] - bounds[0], bounds[3] - bounds[1]]
