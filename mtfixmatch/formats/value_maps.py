"""Maps whose pixels have values or colors, and tables of their classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.errors import InputError
from ..utils.images import read_map_colors, read_map_values
from ..utils.labels import INVALID_LABEL

# Different values of a map that a scan lists; one that has more is no map of classes.
MAX_LISTED = 1000
EXPECTED = "a single-channel or palette PNG, or colors in DATASETS.COCO_STYLE.MAP_VALUES"


def scan_values(path: str) -> list:
    """Return [height, width, values, their numbers of pixels, number of values] of a map.

    If there are more than MAX_LISTED values, those of most pixels are listed.
    """
    return _scan(read_map_values(path, EXPECTED))


def scan_colors(path: str) -> list:
    """Return the same of a map whose values are colors, r + 256 g + 65536 b."""
    return _scan(read_map_colors(path))


def _scan(pixels: np.ndarray) -> list:
    runs, lengths = _runs(pixels)
    values, places = np.unique(runs, return_inverse=True)
    counts = np.bincount(places, lengths).astype(np.int64)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_LISTED])
    return [*pixels.shape, values[kept].tolist(), counts[kept].tolist(), len(values)]


def _runs(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of pixels in a row that are equal, and their numbers.

    Maps have few of them, so that what is done with a value takes little time.
    """
    flat = pixels.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    return flat[starts], np.diff(starts, append=flat.size)


@dataclass(frozen=True)
class ValueMap:
    """Reads the semantic map of an image from the values or colors of a PNG; a record holds one.

    Attributes:
        values: the values of the table in ascending order, int32.
        classes: class of each, or IGNORE_LABEL, uint8.
        has_colors: whether values are colors, r + 256 g + 65536 b.
    """

    values: bytes
    classes: bytes
    has_colors: bool

    @classmethod
    def of(cls, table: Mapping[int, int], *, has_colors: bool) -> "ValueMap":
        """Return the map of a table, value -> class."""
        values = sorted(table)
        classes = bytes(table[x] for x in values)
        return cls(np.array(values, np.int32).tobytes(), classes, has_colors)

    def read(self, path: str, size: tuple[int, int]) -> np.ndarray:
        """Return the classes in a PNG, (H, W) uint8; `size` is not needed.

        Raises:
            InputError: the file cannot be read, or has a value that is not in the table.
        """
        pixels = (read_map_colors if self.has_colors else read_map_values)(path)
        runs, lengths = _runs(pixels)
        classes = self.look_up(runs)
        if (classes == INVALID_LABEL).any():
            value = int(runs[classes == INVALID_LABEL][0])
            shown = shown_value(value, has_colors=self.has_colors)
            raise InputError(f"{path} has the {shown}, which is no class")
        return np.repeat(classes, lengths).reshape(pixels.shape)

    def look_up(self, values: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return the class of each value, uint8; INVALID_LABEL: the table does not have it."""
        known = np.frombuffer(self.values, np.int32)
        if not known.size:
            return np.full(len(values), INVALID_LABEL, np.uint8)
        places = np.searchsorted(known, values).clip(max=known.size - 1)
        classes = np.frombuffer(self.classes, np.uint8)[places]
        return np.where(known[places] == values, classes, np.uint8(INVALID_LABEL))

    def look_up_table(self) -> bytes | None:
        """Return the class of each value from 0 to 255, None if this is not all of the table."""
        known = np.frombuffer(self.values, np.int32)
        is_short = not self.has_colors and (not known.size or known[-1] < 256)
        return self.look_up(np.arange(256)).tobytes() if is_short else None


def shown_value(value: int, *, has_colors: bool) -> str:
    """Return a value or a color for a message."""
    if has_colors:
        return f"color {[value & 255, value >> 8 & 255, value >> 16]}"
    return f"id {value}"
