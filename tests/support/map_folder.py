"""Black images with maps, read as the user's own data."""

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.data.datasets.own_data import TRAIN
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.tasks.segmentation import load_map
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.notes import Notes
from tests.support.own_data import own_data

HEIGHT, WIDTH = 4, 6


def full(value: Any, dtype: Any = np.uint8) -> np.ndarray:
    """A map of one value or color."""
    return np.broadcast_to(np.array(value, dtype), (HEIGHT, WIDTH, *np.shape(value))).copy()


def halves(left: Any, right: Any, dtype: Any = np.uint8) -> np.ndarray:
    """A map of one value or color in its left half, and another in its right."""
    pixels = full(left, dtype)
    pixels[:, WIDTH // 2 :] = right
    return pixels


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """A rectangle as a polygon."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def grey_png(rows: Sequence[bytes], width: int, bits: int, color: int = 0) -> bytes:
    """A PNG of packed rows, which Pillow cannot write for 2 and 4 bits of grey."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, len(rows), bits, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


class MapFolder:
    """`images` with a.png, b.png and c.png below a root; classes road, sky and tree.

    Attributes:
        notes: those of the last reading.
    """

    def __init__(self, root: Path):
        self.root, self.images, self.maps = root, root / "images", root / "maps"
        self.json = root / "maps.json"
        for name in "abc":
            self.save(f"images/{name}.png", full((0, 0, 0)))
        self.notes = Notes()

    def save(self, name: str, pixels: np.ndarray) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    def write(self, name: str, content: Any) -> Path:
        """Write bytes, or a value as JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    def coco(self, *shapes: tuple[str, str, Any], listed: str = "abc", **fields: Any) -> str:
        """Write (image, category, segmentation) of each annotation, and the images in `listed`."""
        names = list(dict.fromkeys(name for _, name, _ in shapes))
        sides = {"height": HEIGHT, "width": WIDTH}
        content = {
            "images": [{"id": x, "file_name": f"{x}.png", **sides} for x in listed],
            "annotations": [
                {"id": i, "image_id": x, "category_id": name, "segmentation": shape}
                for i, (x, name, shape) in enumerate(shapes, start=1)
            ],
            "categories": [{"id": name, "name": name} for name in names],
        }
        return str(self.write("maps.json", content | fields))

    def labelme(self, image: str, *shapes: dict, **fields: Any) -> str:
        content = {"shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH}
        content |= {"imagePath": f"{image}.png"}
        return str(self.write(f"labels/{image}.json", content | fields).parent)

    def records(self, maps: Any = None, split: str = TRAIN, max_faults=0.5, **keys: Any) -> dict:
        """Letter of the image -> its record."""
        files = {"IMAGES": str(self.images), "MAPS": maps or str(self.maps)}
        self.notes = Notes(max_faults)
        keys = {"SEM_SEG_CLASSES": ["road", "sky", "tree"]} | {split: files} | keys
        own = own_data(("segmentation",), **keys)
        records = own.load(split, FileScanner(notes=self.notes))
        return {record["image_id"][0]: record for record in records}

    def read(self, maps: Any = None, **options: Any) -> dict[str, np.ndarray]:
        """Letter of the image -> its classes, of those that are labeled."""
        records = self.records(maps, **options)
        return {x: load_map(r) for x, r in records.items() if "sem_seg_file_name" in r}

    def message(self, maps: Any = None, **options: Any) -> str:
        with pytest.raises(InputError) as error:
            self.records(maps, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    def note(self, words: str) -> str:
        """The only message of the notes with these words."""
        (message,) = [x for x in self.notes.messages() if words in x]
        assert "\n" not in message
        return message
