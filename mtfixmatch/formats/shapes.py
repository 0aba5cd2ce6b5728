"""Polygons and run-length encoded masks: checked when files are read, drawn when they are needed.

Shapes are in corner coordinates: pixel i covers [i, i + 1]. They are drawn as by pycocotools.
"""

import base64
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from ..utils.errors import InputError, first_line
from ..utils.images import MAX_PIXELS
from ..utils.labels import INVALID_LABEL

# Greatest coordinate and length of an outline in pixels: pycocotools takes memory for each pixel of
# an outline, and its integers overflow.
MAX_OUTLINE = 5_000_000
MAX_DIGITS = 6  # characters of a number in compressed runs


class Runs(msgspec.Struct):
    """A mask of `size` [height, width] as run lengths down its columns, zeros first.

    Attributes:
        counts: the run lengths, or pycocotools' compressed text of them.
    """

    size: tuple[int, int]
    counts: str | list[int]


Polygons = list[list[float]]  # x0, y0, x1, y1, ... of each; a pixel inside one of them is inside
_DECODER = msgspec.json.Decoder(Polygons | Runs)
_ROWS = msgspec.json.Decoder(list[tuple[int, str | int, Polygons | Runs]])


def decode_shape(content: bytes) -> Polygons | Runs:
    """Decode and check a segmentation of COCO's form; polygons of less than 3 points are left out.

    Raises:
        ValueError: it has another form, or values that cannot be drawn; the text says why.
    """
    try:
        shape = _DECODER.decode(content)
    except ValueError as error:  # msgspec's errors, and a number with too many digits
        raise ValueError(f"no polygons or runs ({first_line(error)})") from None
    if isinstance(shape, Runs):
        run_lengths(shape)
        return shape
    return check_polygons(shape)


def check_polygons(polygons: Polygons) -> Polygons:
    """Return the polygons of at least 3 points.

    Raises:
        ValueError: there are none, or they cannot be drawn.
    """
    if any(len(x) % 2 for x in polygons):
        raise ValueError("a polygon with an odd number of coordinates")
    kept = [x for x in polygons if len(x) >= 6]
    if not kept:
        raise ValueError("no polygon of at least 3 points")
    if not all(-MAX_OUTLINE <= value <= MAX_OUTLINE for x in kept for value in (min(x), max(x))):
        raise ValueError(f"coordinates beyond {MAX_OUTLINE} pixels")
    if any(len(x) * (max(x) - min(x)) > MAX_OUTLINE and _length(x) > MAX_OUTLINE for x in kept):
        raise ValueError(f"an outline of more than {MAX_OUTLINE} pixels")
    return kept


def _length(polygon: Sequence[float]) -> float:
    """Return the length of an outline in pixels, as the steps that pycocotools makes."""
    points = np.asarray(polygon).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def run_lengths(runs: Runs) -> np.ndarray:
    """Return the run lengths of a mask, int64.

    Raises:
        ValueError: they are broken, or do not fill the mask.
    """
    height, width = runs.size
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"runs of a mask of size {[height, width]}")
    if isinstance(runs.counts, str):
        counts = _decompress(runs.counts)
    elif all(0 <= x <= MAX_PIXELS for x in runs.counts):
        counts = np.array(runs.counts, np.int64)
    else:
        raise ValueError("a run length that is negative or too large")
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"runs that do not fill their mask of size {[height, width]}")
    return counts


def _decompress(text: str) -> np.ndarray:
    """Return the numbers in pycocotools' compressed text.

    A character has 5 bits of a number, the lowest first, and a bit that says whether more follow.
    From the fourth number on, each is the difference from that two places before.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("compressed runs that are broken")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.append(0, ends[:-1] + 1)
    digits = ends - starts + 1
    if digits.max() > MAX_DIGITS:
        raise ValueError("compressed runs that are broken")
    place = np.arange(codes.size) - np.repeat(starts, digits)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)  # the highest bit is the sign
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


class Row(NamedTuple):
    """A shape, the name of its class, and its name or number for messages."""

    name: str
    entry: str | int
    shape: Polygons | Runs


@dataclass(frozen=True)
class PackedShapes:
    """The shapes of an image in little memory.

    Attributes:
        counts: name of each class -> number of its shapes.
        bounds: [x0, y0, x1, y1] of all polygons; None: there are none.
        data: compressed JSON of [place of the class in `counts`, entry, shape] of each shape.
    """

    counts: dict[str, int] = field(default_factory=dict)
    bounds: list[float] | None = None
    data: bytes = b""

    @classmethod
    def pack(cls, rows: Sequence[Row]) -> "PackedShapes":
        """Pack checked shapes, in the order in which they are drawn."""
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.name] = counts.get(row.name, 0) + 1
        places = {name: i for i, name in enumerate(counts)}
        boxes = [x for x in (bounds_of(row.shape) for row in rows) if x]
        x0, y0, x1, y1 = zip(*boxes, strict=True) if boxes else ((),) * 4
        bounds = [min(x0), min(y0), max(x1), max(y1)] if boxes else None
        data = msgspec.json.encode([(places[row.name], row.entry, row.shape) for row in rows])
        return cls(counts, bounds, zlib.compress(data, 1) if rows else b"")

    @property
    def rows(self) -> list[Row]:
        """The shapes."""
        names = list(self.counts)
        return [Row(names[place], entry, shape) for place, entry, shape in _unpack(self.data)]

    def to_json(self) -> list:
        """Return values that survive JSON."""
        return [self.counts, self.bounds, base64.b64encode(self.data).decode()]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> "PackedShapes":
        """Return the shapes of which these are the values."""
        counts, bounds, data = values
        return cls(counts, bounds, base64.b64decode(data))


def _unpack(data: bytes) -> list[tuple[int, str | int, Polygons | Runs]]:
    return _ROWS.decode(zlib.decompress(data)) if data else []


def bounds_of(shape: Polygons | Runs) -> list[float] | None:
    """Return x0, y0, x1, y1 of polygons; None for runs, which are inside their image."""
    if isinstance(shape, Runs):
        return None
    xs = [x for polygon in shape for x in (min(polygon[::2]), max(polygon[::2]))]
    ys = [y for polygon in shape for y in (min(polygon[1::2]), max(polygon[1::2]))]
    return [min(xs), min(ys), max(xs), max(ys)]


@dataclass(frozen=True)
class ShapeMap:
    """Draws the semantic map of an image; its record holds one.

    Attributes:
        data: that of `PackedShapes`.
        classes: class of each place in the `counts` there; INVALID_LABEL: it is not drawn.
        unpainted: class of the pixels that no shape covers, or IGNORE_LABEL.
    """

    data: bytes
    classes: bytes
    unpainted: int

    def read(self, path: str, size: tuple[int, int]) -> np.ndarray:
        """Return the classes of an image of `size` (height, width), uint8; later shapes cover.

        Raises:
            InputError: a mask is for another size; the message names the `path` of the labels.
        """
        canvas = np.full(size[0] * size[1], self.unpainted, np.uint8)  # column after column
        for place, _, shape in _unpack(self.data):
            if self.classes[place] == INVALID_LABEL:
                continue
            if isinstance(shape, Runs) and tuple(shape.size) != tuple(size):
                raise InputError(f"{path}: a mask is for {shape.size}, not {size} (height, width)")
            for runs in [shape] if isinstance(shape, Runs) else _draw(shape, size):
                _paint(canvas, run_lengths(runs), self.classes[place])
        return np.ascontiguousarray(canvas.reshape(size[1], size[0]).T)


def _draw(polygons: Polygons, size: tuple[int, int]) -> Iterable[Runs]:
    """Yield the pixels inside each polygon."""
    for runs in coco_mask.frPyObjects(polygons, *size):
        yield Runs(size, runs["counts"].decode())


def _paint(canvas: np.ndarray, counts: np.ndarray, value: int) -> None:
    """Set the pixels of a mask, whose columns follow each other in `canvas`."""
    lengths = counts[1::2]
    starts = counts.cumsum()[::2][: len(lengths)]
    shifts = starts - (lengths.cumsum() - lengths)
    canvas[np.repeat(shifts, lengths) + np.arange(lengths.sum())] = value
