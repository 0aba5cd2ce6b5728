"""Mutations of image and JSON files, each with the outcome that a reader must have."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from tests.support.fuzz.dataset import HEIGHT, WIDTH, encoded, picture_of

SAME = "same"  # it is read as the original file is
ERROR = "error"
SAME_OR_ERROR = "same or error"
# A format without checksums cannot tell that a value changed: it is an error or within its range.
SANE = "sane or error"
# A wrong entry is left out or clipped and a note names its file, or it is an error.
NOTED = "noted or error"
ORIENTATION = 0x0112
# By EXIF orientation: the transposition that a reader undoes.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass
class Mutant:
    """A mutated file.

    Attributes:
        content: content of the file; None: the file is missing.
        outcome: SAME, ERROR, SAME_OR_ERROR, SANE or NOTED.
        image: (H, W, 3) uint8 that a reader must give; None: that of the original file.
        tolerance: allowed mean difference of the image in grey levels.
    """

    content: bytes | None
    outcome: str
    image: np.ndarray | None = None
    tolerance: float = 0.0


@dataclass
class Source:
    """A file before its mutation.

    Attributes:
        kind: "png", "jpeg", "tiff", "map", "instances" or "json".
        name: name of the image that it belongs to.
        content: content of the file.
    """

    kind: str
    name: str
    content: bytes

    @property
    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8: what the image shows."""
        return picture_of(self.name)

    @property
    def format(self) -> str:
        """Format of an image, as Pillow names it."""
        return self.kind.upper() if self.kind in ("jpeg", "tiff") else "PNG"

    @property
    def tolerance(self) -> float:
        """Mean difference in grey levels that the format may cause."""
        return 4.0 if self.kind == "jpeg" else 0.0

    @property
    def ids(self) -> np.ndarray:
        """(H, W) pixels of a map."""
        with Image.open(io.BytesIO(self.content)) as image:
            return np.array(image)


Mutate = Callable[[Source, Generator], Mutant]


def by_kind(source: Source, checked: str, unchecked: str) -> str:
    """Outcome of a source: `checked` if its format has checksums, else `unchecked`."""
    return unchecked if source.kind in ("jpeg", "tiff", "json") else checked


# Any file


def truncated(source: Source, rng: Generator) -> Mutant:
    cut = int(rng.integers(1, len(source.content)))
    return Mutant(source.content[:cut], ERROR if source.kind == "json" else SAME_OR_ERROR)


def emptied(source: Source, rng: Generator) -> Mutant:
    return Mutant(b"", ERROR)


def missing(source: Source, rng: Generator) -> Mutant:
    return Mutant(None, ERROR)


def flipped(source: Source, rng: Generator) -> Mutant:
    content = bytearray(source.content)
    for place in rng.integers(0, len(content), int(rng.integers(1, 9))):
        content[place] ^= 1 << int(rng.integers(8))
    return Mutant(bytes(content), by_kind(source, SAME_OR_ERROR, SANE))


def zeroed(source: Source, rng: Generator) -> Mutant:
    """A hole of zeros, as in a file that was not written to its end."""
    start = int(rng.integers(0, len(source.content) - 8))
    end = start + int(rng.integers(8, 200))
    hole = bytes(len(source.content[start:end]))
    content = source.content[:start] + hole + source.content[end:]
    return Mutant(content, by_kind(source, SAME_OR_ERROR, SANE))


def shuffled(source: Source, rng: Generator) -> Mutant:
    """Two blocks of the file in the wrong order."""
    a, b, c = sorted(int(x) for x in rng.integers(0, len(source.content), 3))
    x = source.content
    return Mutant(x[:a] + x[b:c] + x[a:b] + x[c:], by_kind(source, SAME_OR_ERROR, SANE))


def noise(source: Source, rng: Generator) -> Mutant:
    return Mutant(rng.bytes(int(rng.integers(1, 2000))), ERROR)


def page(source: Source, rng: Generator) -> Mutant:
    """The error page of a server instead of the file."""
    return Mutant(b"<!DOCTYPE html><html><body>404 Not Found</body></html>", ERROR)


# Pictures


def extended(source: Source, rng: Generator) -> Mutant:
    return Mutant(source.content + rng.bytes(40), SAME)


def huge(source: Source, rng: Generator) -> Mutant:
    """A header of far too many pixels, with a valid checksum."""
    sides = tuple(int(x) for x in rng.integers(30_000, 65_000, 2))
    return Mutant(with_size(source, *sides), ERROR)


def resized(source: Source, rng: Generator) -> Mutant:
    """A header of a slightly wider image."""
    extra = int(rng.integers(1, 30))
    return Mutant(with_size(source, WIDTH + extra, HEIGHT), ERROR)


def with_size(source: Source, width: int, height: int) -> bytes:
    """The file with another size in its header."""
    content = source.content
    if source.kind == "jpeg":
        at = content.index(b"\xff\xc0") + 5  # of a baseline frame: height, width
        return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]
    if source.kind == "tiff":
        for tag, value in ((256, width), (257, height)):
            at = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
            content = content[:at] + struct.pack("<I", value) + content[at + 4 :]
        return content
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def other_format(source: Source, rng: Generator) -> Mutant:
    """A GIF, which no reader accepts."""
    return Mutant(encoded(Image.fromarray(source.picture).convert("P"), "GIF"), ERROR)


def grey(source: Source, rng: Generator) -> Mutant:
    plane = source.picture[..., 0]
    image = plane[..., None].repeat(3, 2)
    return Mutant(encoded(plane, source.format), SAME, image, source.tolerance)


def turned(source: Source, rng: Generator) -> Mutant:
    """An image that its EXIF orientation turns back."""
    orientation = int(rng.choice(list(TURNS)))
    image = Image.fromarray(source.picture).transpose(TURNS[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(image, source.format, exif=exif)
    return Mutant(content, SAME, source.picture, source.tolerance)


def bad_exif(source: Source, rng: Generator) -> Mutant:
    """EXIF data that cannot be read, so the image is taken as it is."""
    exif = b"Exif\x00\x00" + rng.bytes(30)
    content = encoded(source.picture, source.format, exif=exif)
    return Mutant(content, SAME, source.picture, source.tolerance)


def other_size(source: Source, rng: Generator) -> Mutant:
    """A sound image of another size than its labels."""
    return Mutant(encoded(source.picture[int(rng.integers(1, 20)) :], source.format), ERROR)


def cmyk(source: Source, rng: Generator) -> Mutant:
    image = Image.fromarray(source.picture).convert("CMYK")
    return Mutant(encoded(image, "JPEG"), SAME, source.picture, 4.0)


def progressive(source: Source, rng: Generator) -> Mutant:
    return Mutant(encoded(source.picture, "JPEG", progressive=True), SAME, source.picture, 4.0)


def sixteen_bits(source: Source, rng: Generator) -> Mutant:
    plane = source.picture[..., 0]
    content = encoded(plane.astype(np.uint16) * 257, "PNG")
    return Mutant(content, SAME, plane[..., None].repeat(3, 2))


def sixteen_bits_color(source: Source, rng: Generator) -> Mutant:
    picture = source.picture
    _, content = cv2.imencode(".png", picture[..., ::-1].astype(np.uint16) * 257)
    return Mutant(content.tobytes(), SAME, picture)


def palette(source: Source, rng: Generator) -> Mutant:
    picture = source.picture
    image = Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    assert np.array_equal(np.asarray(image.convert("RGB")), picture)
    return Mutant(encoded(image, "PNG"), SAME, picture)


def transparent(source: Source, rng: Generator) -> Mutant:
    """Random transparency, which a reader drops; the colours stay."""
    picture = source.picture
    alpha = rng.integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    return Mutant(encoded(np.concatenate([picture, alpha], axis=2), "PNG"), SAME, picture)


def grey_transparent(source: Source, rng: Generator) -> Mutant:
    plane = source.picture[..., :1]
    alpha = rng.integers(0, 256, plane.shape, dtype=np.uint8)
    content = encoded(np.concatenate([plane, alpha], axis=2), "PNG")
    return Mutant(content, SAME, plane.repeat(3, 2))


def one_bit(source: Source, rng: Generator) -> Mutant:
    plane = source.picture[..., 0] > 127
    expected = plane[..., None].repeat(3, 2) * np.uint8(255)
    return Mutant(encoded(Image.fromarray(plane), "PNG"), SAME, expected)


# Maps


def map_palette(source: Source, rng: Generator) -> Mutant:
    """The ids as palette indices with random colours, which many tools write."""
    ids = source.ids
    image = Image.fromarray(ids.astype(np.uint8)).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette(rng.integers(0, 256, 768).tolist())
    return Mutant(encoded(image, "PNG"), SAME if source.kind == "map" else ERROR)


def map_colors(source: Source, rng: Generator) -> Mutant:
    channels = int(rng.choice([3, 4]))
    picture = rng.integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    return Mutant(encoded(picture, "PNG"), ERROR)


def map_few_bits(source: Source, rng: Generator) -> Mutant:
    """One bit, which is a map of two ids."""
    outcome = SANE if source.kind == "map" else ERROR
    return Mutant(encoded(Image.fromarray(source.ids > 0), "PNG"), outcome)


def map_other_depth(source: Source, rng: Generator) -> Mutant:
    """A semantic map of 16 bits, or an instance map of 8, which drops the high bits."""
    ids = source.ids
    if source.kind == "map":
        ids, is_wide = ids.astype(np.uint16), bool(rng.integers(2))
        ids[0, 0] += 256 * is_wide
        return Mutant(encoded(ids, "PNG"), ERROR if is_wide else SAME)
    return Mutant(encoded((ids % 256).astype(np.uint8), "PNG"), SANE)


def map_jpeg(source: Source, rng: Generator) -> Mutant:
    return Mutant(encoded(source.ids.astype(np.uint8), "JPEG"), ERROR)


def map_unknown_id(source: Source, rng: Generator) -> Mutant:
    ids = source.ids
    unknown = [60, 200, 254] if source.kind == "map" else [60, 999, 60_001, 7_003]
    ids[int(rng.integers(HEIGHT)), int(rng.integers(WIDTH))] = rng.choice(unknown)
    return Mutant(encoded(ids, "PNG"), ERROR)


def map_other_size(source: Source, rng: Generator) -> Mutant:
    return Mutant(encoded(source.ids[:, int(rng.integers(1, 20)) :], "PNG"), ERROR)


# JSON files


def json_nested(source: Source, rng: Generator) -> Mutant:
    return Mutant(b"[" * int(rng.integers(5_000, 200_000)), ERROR)


def json_long_number(source: Source, rng: Generator) -> Mutant:
    number = b": " + b"9" * int(rng.integers(400, 9_000))
    return Mutant(re.sub(rb": \d+", number, source.content, count=1), ERROR)


def json_other_encoding(source: Source, rng: Generator) -> Mutant:
    return Mutant(source.content.decode().encode(str(rng.choice(["utf-16", "utf-32"]))), ERROR)


def json_other_value(source: Source, rng: Generator) -> Mutant:
    return Mutant(bytes(rng.choice([b"null", b"3", b'"x"', b"true", b"{}", b"[1, 2]"])), ERROR)


def json_indented(source: Source, rng: Generator) -> Mutant:
    return Mutant(source.content.replace(b", ", b",\r\n\t "), SAME)


ANY = (truncated, emptied, flipped, zeroed, shuffled, noise, page)
PICTURE = (missing, extended, huge, resized, other_format, grey, turned, bad_exif, other_size)
MAP = (extended, huge, resized, other_format, map_palette, map_colors, map_few_bits)
MAP += (map_other_depth, map_jpeg, map_unknown_id, map_other_size)
JSON = (json_nested, json_long_number, json_other_encoding, json_other_value, json_indented)
PNG = (sixteen_bits, sixteen_bits_color, palette, transparent, grey_transparent, one_bit, cmyk)
MUTATIONS: dict[str, tuple[Mutate, ...]] = {
    "png": ANY + PICTURE + PNG,
    # Pillow writes no EXIF data into a TIFF that it cannot read.
    "tiff": (*ANY, *(x for x in PICTURE if x is not bad_exif)),
    "jpeg": (*ANY, *PICTURE, cmyk, progressive, sixteen_bits, transparent),
    "map": ANY + MAP,
    "instances": ANY + MAP,
    "json": ANY + JSON,
}
