"""Corrupt label files of which each image has its own, read as a training reads them.

The outcome must be the boxes that the corrupt text says, or those before, or a note or an error in
one line that names the file. What a text says is found here by plain means of Python.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.random import Generator
from PIL import Image

from mtfixmatch.data.datasets.own_data import TRAIN, OwnData
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.notes import Notes
from tests.support.box_writers import WRITERS, Box
from tests.support.fuzz.dataset import message_of
from tests.support.fuzz.files import ANY, Source
from tests.support.own_data import own_data

HEIGHT, WIDTH = 48, 64
CLASSES = ["car", "person"]
IMAGES = {
    "a.png": [
        Box("car", [8, 6, 30, 20]),
        Box("person", [34, 10, 60, 44]),
        Box("car", [2, 2, 9, 9]),
    ],
    "b.png": [Box("car", [2, 2, 20, 40])],
    "c.png": None,
}
OTHER_CLASSES = "boxes of classes that are not trained"
NAMED = re.compile(r": (row|object|shape) \d+|image |images of which each entry|a confidence")
Row = tuple[str, float, float, float, float, int]  # class, corners, iscrowd
# What each entry of a text says; None: nothing that can be used, so that it has to be noted.
Said = list[Row | None]


class BoxFolder:
    """A folder with three images and their labels in a format."""

    def __init__(self, root: Path, name: str):
        self.name = name
        for image in IMAGES:
            path = root / "images" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)
        boxes = WRITERS[name](root, IMAGES, CLASSES, (HEIGHT, WIDTH))
        (self.path,) = Path(boxes).glob("a.*")
        self.content = self.path.read_bytes()
        files = {"IMAGES": str(root / "images"), "BOXES": boxes}
        self.own: OwnData = own_data(("detection",), THING_CLASSES=CLASSES, TRAIN=files)
        self.expected = self.read(Notes())

    def read(self, notes: Notes) -> dict[str, list[Row] | None]:
        """Image -> its boxes, rounded; None if it is not labeled."""
        rows = {}
        for record in self.own.load(TRAIN, FileScanner(notes=notes)):
            boxes = record.get("annotations")
            rows[record["image_id"]] = boxes and [
                rounded(CLASSES[x["category_id"]], x["bbox"], x["iscrowd"]) for x in boxes
            ]
        return rows

    def complaint(self, content: bytes) -> str:
        """What goes wrong if the labels of image a are these, "" if nothing does."""
        self.path.write_bytes(content)
        notes = Notes(max_faults=1.0)
        try:
            found = self.read(notes)
        except InputError as error:
            message = message_of(error)
            good = str(self.path) in message and "\n" not in message and len(message) < 700
            return "" if good else f"a bad message: {message}"
        except Exception as error:
            return f"a traceback: {error!r}"
        if any(found[name] != self.expected[name] for name in ("b.png", "c.png")):
            return "changed the labels of another image"
        return self._problem(found["a.png"] or [], SAYS[self.name](content), notes)

    def _problem(self, found: list[Row], said: Said, notes: Notes) -> str:
        before = self.expected["a.png"] or []
        if not all(is_sane(row) for row in found):
            return f"gave invalid boxes: {found}"
        if found in (before, said):
            return ""
        lines = [f"{kind}: {x}" for kind, part in notes.lines.items() for x in part]
        noted = any(str(self.path) in x and NAMED.search(x) and "\n" not in x for x in lines)
        if not noted and not any(OTHER_CLASSES in kind for kind in notes.lines):
            return f"was read wrongly, without a note: {found}, not {said}"
        invented = [row for row in found if row not in [*before, *said]]
        return f"gave boxes that are not in the text: {invented}" if invented else ""


def rounded(name: str, corners: Sequence[float], crowd: int) -> Row:
    return (name, *(round(float(x), 3) + 0.0 for x in corners), crowd)


def is_sane(row: Row) -> bool:
    _, x0, y0, x1, y1, crowd = row
    return 0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT and crowd in (0, 1)


def clipped(name: object, box: Sequence[float], crowd: int = 0) -> Row | None:
    """A box as a row, clipped to its image; None if nothing of it is left, or its class unknown."""
    corners = [min(max(x, 0), end) for x, end in zip(box, (WIDTH, HEIGHT) * 2, strict=True)]
    row = rounded(str(name).strip(), corners, crowd)
    return row if row[0] in CLASSES and is_sane(row) else None


# What a text says, by its format


def yolo_says(content: bytes) -> Said:
    text = content.decode("utf-8-sig", errors="replace").replace("\r", "\n")
    return [yolo_row(line) for line in text.split("\n") if line.strip()]


def yolo_row(line: str) -> Row | None:
    try:
        key, *numbers = [float(x) for x in line.split()]
        name = CLASSES[int(key)]
    except (ValueError, IndexError, OverflowError):
        return None
    if len(numbers) < 4 or not np.isfinite(numbers).all():
        return None
    numbers = numbers[: len(numbers) // 2 * 2]
    x, y = np.array(numbers[::2]) * WIDTH, np.array(numbers[1::2]) * HEIGHT
    if len(x) == 2:
        x, y = (np.array([c[0] - c[1] / 2, c[0] + c[1] / 2]) for c in (x, y))
    return clipped(name, [x.min(), y.min(), x.max(), y.max()])


def voc_says(content: bytes) -> Said:
    try:
        root = ElementTree.fromstring(content if b"<!DOCTYPE" not in content else "")
    except (ElementTree.ParseError, ValueError, LookupError):
        return [None]
    return [voc_row(x) for x in root if x.tag == "object" or x.find(".//bndbox") is not None]


def voc_row(element: ElementTree.Element) -> Row | None:
    texts = [element.findtext(f"bndbox/{x}") for x in ("xmin", "ymin", "xmax", "ymax")]
    crowd = (element.findtext("difficult") or "0").strip() == "1"
    try:
        x0, y0, x1, y1 = (float(x or "") for x in texts)
    except ValueError:
        return None
    return clipped(element.findtext("name"), [x0 - 1, y0 - 1, x1, y1], int(crowd))


def labelme_says(content: bytes) -> Said:
    try:
        shapes = json.loads(content)["shapes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return [None]
    said: Said = []
    groups: dict[object, list] = {}
    for number, shape in enumerate(shapes if isinstance(shapes, list) else [None]):
        try:
            label, box = str(shape["label"]).strip(), labelme_box(shape)
            group = shape.get("group_id")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            said.append(None)
            continue
        key = (label, number if group is None else str(group), group is None)
        old = groups.setdefault(key, [label, box])[1]
        old[:] = [*map(min, old[:2], box[:2]), *map(max, old[2:], box[2:])]
    return [*(clipped(label, box) for label, box in groups.values()), *said]


def labelme_box(shape: dict) -> list[float]:
    x, y = np.array(shape["points"], float).T
    kind = shape.get("shape_type") or "polygon"
    if kind == "circle":
        radius = math.hypot(x[1] - x[0], y[1] - y[0])
        x, y = x[0] + np.array([-radius, radius]), y[0] + np.array([-radius, radius])
    return [x.min(), y.min(), x.max() + (kind == "mask"), y.max() + (kind == "mask")]


SAYS: dict[str, Callable[[bytes], Said]] = {
    "yolo": yolo_says,
    "voc": voc_says,
    "labelme": labelme_says,
}

# Mutations of a text

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
WORD = re.compile(rb"[A-Za-z_]+")
NUMBERS = b"0 -1 1 2 7.5 63 64 65 1e3 1e12 9e999 -0.5 0.5 nan inf 0,5 1_0 0x1 null true".split()
NUMBERS += [b"", b'"3"', b"[]", b"9" * 5000, "\u0663".encode(), b"1 2", b"--1", b"1.2.3"]
WORDS = b"object bndbox xmin name points label shape_type polygon circle point person dog".split()
WORDS += [b"", b"<", b"&lt;", b"&x;", b'"', b"1", "\u00e4".encode()]
ENCODINGS = ("utf-8-sig", "utf-16", "utf-32", "cp037", "utf-16-be")


def spot(content: bytes, rng: Generator) -> int:
    return int(rng.integers(len(content) + 1))


def replaced(pattern: re.Pattern, values: Sequence[bytes], content: bytes, rng: Generator) -> bytes:
    """One match of a pattern, or all that are equal to it, replaced by one of the values."""
    matches = list(pattern.finditer(content))
    match = matches[int(rng.integers(len(matches)))]
    value = values[int(rng.integers(len(values)))]
    if rng.integers(2):  # as a tag is renamed, where it opens and where it closes
        return re.sub(rb"\b%s\b" % re.escape(match[0]), lambda _: value, content)
    return content[: match.start()] + value + content[match.end() :]


def nudged(content: bytes, rng: Generator) -> bytes:
    """A number with another digit."""
    digits = [i for i, x in enumerate(content) if chr(x).isdigit()]
    place = digits[int(rng.integers(len(digits)))]
    return content[:place] + b"%d" % rng.integers(10) + content[place + 1 :]


def inserted(content: bytes, rng: Generator) -> bytes:
    place = spot(content, rng)
    return content[:place] + rng.bytes(int(rng.integers(1, 6))) + content[place:]


def deleted(content: bytes, rng: Generator) -> bytes:
    place = spot(content, rng)
    return content[:place] + content[place + int(rng.integers(1, 12)) :]


def without_lines(content: bytes, rng: Generator) -> bytes:
    lines = content.splitlines(keepends=True)
    place = int(rng.integers(len(lines)))
    return b"".join(lines[:place] + lines[place + int(rng.integers(1, 4)) :])


def with_line_again(content: bytes, rng: Generator) -> bytes:
    lines = content.splitlines(keepends=True)
    source, target = rng.integers(len(lines), size=2)
    lines.insert(int(target), lines[int(source)])
    return b"".join(lines)


def encoded_otherwise(content: bytes, rng: Generator) -> bytes:
    return content.decode().encode(ENCODINGS[int(rng.integers(len(ENCODINGS)))])


def other_line_ends(content: bytes, rng: Generator) -> bytes:
    return content.replace(b"\n", (b"\r\n", b"\r", b"\n\n", b" \t\n")[int(rng.integers(4))])


def nested(content: bytes, rng: Generator) -> bytes:
    part = (b"[", b"<annotation>", b'{"shapes":', b"<object>")[int(rng.integers(4))]
    return part * int(rng.integers(1000, 5000)) + content


def with_doctype(content: bytes, rng: Generator) -> bytes:
    entities = b"".join(b'<!ENTITY x%d "%s">' % (i, b"&x%d;" % (i - 1) * 10) for i in range(1, 12))
    return b'<!DOCTYPE x [<!ENTITY x0 "lol">' + entities + b"]>" + content.replace(b"car", b"&x11;")


def mutated(mutate: Callable, content: bytes, rng: Generator) -> bytes:
    """A mutation of `fuzz.files`, by its content alone."""
    return mutate(Source("json", "a", content), rng).content


MUTATIONS: tuple[Callable[[bytes, Generator], bytes], ...] = (
    *(partial(mutated, x) for x in ANY),
    *(partial(replaced, NUMBER, NUMBERS),) * 4,
    *(nudged,) * 2,
    *(inserted, deleted, without_lines, with_line_again, encoded_otherwise, other_line_ends),
    *(nested, with_doctype),
)
WORD_MUTATIONS = (partial(replaced, WORD, WORDS),) * 4


def box_complaints(name: str, count: int, seed: int, folder: Path) -> list[str]:
    """Corrupt a label file of a format `count` times and return what went wrong."""
    data = BoxFolder(folder, name)
    problems = []
    mutations = MUTATIONS + (WORD_MUTATIONS if WORD.search(data.content) else ())
    for i in range(count):
        mutate = mutations[i % len(mutations)]
        content = mutate(data.content, np.random.default_rng(seed + i))
        problem = data.complaint(content)
        if problem:
            problems.append(f"{name}, seed {seed + i}, {content[:300]!r}: {problem}")
    return problems
