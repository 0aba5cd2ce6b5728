"""What is done already, in a folder of predictions: a line for each image, in a file per process.

A line is appended when the files of its image are complete. The lines of an item, which is an image
or the frames of a video, stand together and end with a line of its own. Without that one they do
not count: the item was interrupted, and is predicted again.
"""

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..tasks.saving import SavedImage
from ..utils.errors import InputError
from ..utils.files import reading
from .shots import Shot
from .sources import Item, is_video

PATTERN = "journal_*.jsonl"


class Done(NamedTuple):
    """Place of the lines of a finished item.

    Attributes:
        name, out: see `Item`.
        journal: path of the journal.
        start, end: offsets of its first line and of the line that ends it, in bytes.
    """

    name: str
    out: str
    journal: str
    start: int
    end: int

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return is_video(self.name)


class Journal:
    """Appends the lines of one process; a context manager."""

    def __init__(self, folder: str, rank: int):
        """Open the journal of a process, by its rank, in a folder."""
        self.path = os.path.join(folder, PATTERN.replace("*", str(rank)))

    def __enter__(self) -> "Journal":
        with reading(self.path):
            self._file = open(self.path, "ab+", buffering=0)
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":  # the last line was cut off
                self._append(b"\n")
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def add(self, shot: Shot, records: Mapping[str, dict[str, Any]]) -> None:
        """Add a line on an image or a frame of a video, whose files are written.

        Args:
            shot: the image or frame.
            records: task name -> record, see `SavedResults.record`.

        Raises:
            InputError: it cannot be written.
        """
        entry = {"item": shot.item.name, "frame": shot.frame, "size": shot.pixels.shape[:2]}
        self._line({**entry, "records": records})

    def end(self, item: Item) -> None:
        """Add the line that ends an item; raise InputError if it cannot be written."""
        self._line({"item": item.name, "out": item.out})

    def _line(self, content: dict[str, Any]) -> None:
        self._append(json.dumps(content, separators=(",", ":")).encode() + b"\n")

    def _append(self, content: bytes) -> None:
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from None


def finished(folder: str) -> dict[str, Done]:
    """Return name -> place of the finished items in all journals of a folder, sorted by name."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), PATTERN)))
    items = [done for path in paths for done in _finished_in(path)]
    return {done.name: done for done in sorted(items)}


def _finished_in(path: str) -> Iterator[Done]:
    start = position = 0
    with reading(path), open(path, "rb") as file:
        for line in file:
            content = _parsed(line)
            if content.get("frame") == 0:
                start = position
            if "out" in content:
                yield Done(content["item"], content["out"], path, start, position)
            position += len(line)


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the content of a line; {} of one that was cut off."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def saved_images(items: Sequence[Done]) -> Iterator[SavedImage]:
    """Yield what is kept of the images and frames of finished items."""
    for done in items:
        with reading(done.journal), open(done.journal, "rb") as file:
            file.seek(done.start)
            while file.tell() < done.end:
                yield _saved_image(json.loads(file.readline()))


def _saved_image(content: dict[str, Any]) -> SavedImage:
    name, frame, (height, width) = content["item"], content["frame"], content["size"]
    return SavedImage(
        file_name=f"{name}#{frame:06d}" if is_video(name) else name,
        size=(height, width),
        records=content["records"],
        video=name if is_video(name) else "",
        frame=frame,
    )
