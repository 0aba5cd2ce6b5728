"""Label files of which each image has its own: found in a folder, read into a `BoxSource`."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..utils.errors import InputError
from ..utils.files import contains
from .image_files import IMAGE_SUFFIXES, FoundFile, files_of, without_suffix
from .sources import BoxSource, LabelSource, ListedImage, Scan

SUFFIXES = (".txt", ".xml", ".json")
# Files beside labels, by their names, that are no labels.
OTHERS = re.compile(r"(predefined_)?classes\.txt|readme.*\.txt|notes\.json", re.IGNORECASE)
MAX_PEEKED = 20  # JSON files that are searched for shapes

# Kinds of faults and notes.
BAD_ENTRIES = "entries without a usable box, left out"
NO_NAME = "boxes of a class id without a name, left out"
SAME_NAME = "class ids of the same name, taken as one class"
FAULTY = "images of which each entry is faulty, not labeled"


@dataclass
class LabelFile:
    """What a label file says of its image; its fields survive JSON.

    Attributes:
        path: the file.
        entry: what the format calls an entry: "row", "object", "shape".
        size: [height, width] of the image in pixels that it says; None: it does not.
        image: name of the image that it says, maybe with folders; "": it does not.
        boxes: [class id or name, iscrowd, x0, y0, x1, y1, number of the entry] of each box.
        num_entries: number of its entries.
        faults, left_out: see `BoxSource`.
    """

    path: str
    entry: str
    size: list[int] | None = None
    image: str = ""
    boxes: list[list] = field(default_factory=list)
    num_entries: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def fault(self, number: int, text: str, kind: str = BAD_ENTRIES) -> None:
        """Add a line on a faulty entry."""
        self.faults.setdefault(kind, []).append(f"{self.path}: {self.entry} {number} {text}")

    def leave_out(self, kind: str, number: int, text: str) -> None:
        """Add a line on an entry that is left out."""
        self.left_out.setdefault(kind, []).append(f"{self.path}: {self.entry} {number} {text}")


def find_label_files(source: str, key: str) -> tuple[str, list[FoundFile]]:
    """Return the suffix of the label files in a folder, a glob or a list, and the files.

    Raises:
        InputError: there are none, or those of several formats.
    """
    files: dict[str, list[FoundFile]] = {}
    for file in files_of(source, key):
        suffix = posixpath.splitext(file.name)[1].lower()
        if suffix in SUFFIXES and is_label_file(file.name):
            files.setdefault(suffix, []).append(file)
    if len(files) > 1 and not has_shapes(files.get(".json", ())):
        files.pop(".json", None)  # such as a list of images
    if len(files) != 1:
        found = " and ".join(f"{len(x)} {suffix}" for suffix, x in files.items()) or "none"
        expected = f"label files of one format ({', '.join(SUFFIXES)})"
        hint = f"; a glob such as {source}/*.xml selects" if len(files) > 1 else ""
        raise InputError(f"{key}: expected {expected} in {source}, found {found}{hint}")
    return files.popitem()


def is_label_file(name: str) -> bool:
    """Return whether a file may be a label file by its name."""
    return not OTHERS.fullmatch(posixpath.basename(name))


def has_shapes(files: Sequence[FoundFile]) -> bool:
    """Return whether one of the first JSON files seems to be of labelme."""
    return any(contains(x.path, b'"shapes"') for x in files[:MAX_PEEKED])


def image_name(label: str) -> str:
    """Return the name, without suffix, of the image of a label file such as a.txt or a.jpg.txt."""
    return _without_image_suffix(without_suffix(label))


def _without_image_suffix(name: str) -> str:
    return without_suffix(name) if name.lower().endswith(IMAGE_SUFFIXES) else name


def read_label_files(
    path: str,
    files: Sequence[FoundFile],
    scan: Scan,
    read: Callable[[str], dict[str, Any]],
    names: Mapping[int, str] | None = None,
    names_in: str = "",
) -> BoxSource:
    """Read label files.

    Args:
        path: file or folder that they belong to.
        files: each with the name of its image, without suffix.
        scan: function that reads files.
        read: function that returns the fields of a `LabelFile`.
        names: names of the classes by id; None: the files have names, and all of them are classes.
        names_in: where the names are, for messages.
    """
    results = scan([x.path for x in files], read, name=read.__name__, source=path)
    labels = [(x, LabelFile(**results[x.path])) for x in files if x.path in results]
    used = {box[0] for _, label in labels for box in label.boxes} if names is None else ()
    known = {x: x for x in sorted(used)} if names is None else names
    every = list(known.values())
    classes = list(dict.fromkeys(every))
    ids = {key: classes.index(name) for key, name in known.items()}
    source = BoxSource(path, classes, [], lists_images=False, by_stem=True)
    source.of_all_classes = names is None
    items = enumerate(known.items())
    merged = [f"{names_in}: {key} ({name!r})" for i, (key, name) in items if name in every[:i]]
    source.left_out = {SAME_NAME: merged} if merged else {}
    for file, label in labels:
        source.entry = f"{label.entry} "
        _add(source, file.name, label, _set_classes(label, ids, names_in))
    source.broken = [x.name for x in files if x.path not in results]
    return source


def _set_classes(label: LabelFile, ids: Mapping[Any, int], names_in: str) -> list[list]:
    """Return the boxes of an image as in `ListedImage`; those of unknown classes are faults."""
    boxes = [box for box in label.boxes if box[0] in ids]
    if len(boxes) < len(label.boxes):
        for key, *_, number in (box for box in label.boxes if box[0] not in ids):
            label.fault(number, f"has class {key}, which has no name in {names_in}", NO_NAME)
    for box in boxes:  # in place, for they are millions
        box[0] = ids[box[0]]
    return boxes


def _add(source: BoxSource, name: str, label: LabelFile, boxes: list[list]) -> None:
    """Add an image to a source; it is not labeled if all of its entries are faulty."""
    is_faulty = bool(label.faults) and not boxes
    note_label(source, label, is_faulty=is_faulty)
    known = None if is_faulty else boxes
    listed = ListedImage(name, label.size, known, label.path, other_name(name, label))
    source.images.append(listed)


def note_label(source: LabelSource, label: LabelFile, *, is_faulty: bool) -> None:
    """Add the faults of a file to a source, and whether its image is not labeled for them."""
    if is_faulty:
        source.left_out.setdefault(FAULTY, []).append(label.path)
    for ours, theirs in ((source.faults, label.faults), (source.left_out, label.left_out)):
        for kind, lines in theirs.items():
            ours.setdefault(kind, []).extend(lines)
    source.num_entries += label.num_entries


def other_name(name: str, label: LabelFile) -> str:
    """Return the name of the image that a file says, if it is another one."""
    image = _without_image_suffix(label.image.replace("\\", "/"))
    return "" if posixpath.basename(image) == posixpath.basename(name) else image
