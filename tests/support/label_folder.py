"""Black images with label files in a folder, read as the user's own data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.data.datasets.own_data import TRAIN
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.notes import Notes
from tests.support.own_data import own_data

HEIGHT, WIDTH = 50, 100


class LabelFolder:
    """`images` below a root, and `labels` beside it.

    Attributes:
        notes: those of the last reading.
        broken: files that the last reading left out.
    """

    def __init__(self, root: Path, images: tuple[str, ...] = ("a.png", "b.png")):
        self.root, self.images, self.labels = root, root / "images", root / "labels"
        for name in images:
            self.add_image(f"images/{name}")
        self.notes, self.broken = Notes(), {}

    def add_image(self, name: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def load(self, split=TRAIN, files=None, max_faults=0.5, skip_broken=False, **keys):
        """Image id -> record."""
        self.notes, self.broken = Notes(max_faults), {}
        places = {"IMAGES": str(self.images), "BOXES": str(self.labels)} | (files or {})
        own = own_data(("detection",), **{split: places}, **keys)
        scan = FileScanner(notes=self.notes, broken=self.broken if skip_broken else None)
        return {record["image_id"]: record for record in own.load(split, scan)}

    def boxes(self, image="a.png", **options) -> list[tuple] | None:
        """(class id, iscrowd, x0, y0, x1, y1) of each box, None if the image is not labeled."""
        record = self.load(**options)[image]
        if "annotations" not in record:
            return None
        return [(x["category_id"], x["iscrowd"], *x["bbox"]) for x in record["annotations"]]

    def message(self, **options) -> str:
        with pytest.raises(InputError) as error:
            self.load(**options)
        assert "\n" not in str(error.value)
        return str(error.value)

    def note(self, kind: str) -> str:
        """The message of the only kind of note with these words."""
        (message,) = [x for x in self.notes.messages() if kind in x]
        assert "\n" not in message
        return message
