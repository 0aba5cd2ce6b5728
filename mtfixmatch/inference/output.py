"""The folder of predictions: its files for each image, and those for all images."""

import io
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..engine.visualize import draw_targets
from ..tasks import Task
from ..tasks.saving import Layer
from ..utils.errors import InputError
from ..utils.files import remove_temporaries, write_atomically
from .journal import Done, saved_images
from .page import page_parts
from .prediction import Prediction
from .shots import Shot
from .video import VideoFile

PICTURES, IMAGES = "pictures", "images"  # with the results of all tasks, and without
UNFINISHED = "unfinished"  # folder of videos that are being written
PAGE, CLASSES = "index.html", "classes.json"
JPEG_QUALITY = 90


@dataclass(frozen=True)
class SavedShot:
    """A shot whose files are written, except for the frame of a video.

    Attributes:
        shot: the image or frame.
        records: task name -> record, see `SavedResults.record`.
        drawn: (H, W, 3) uint8 RGB, a frame with the results of all tasks; None: it is an image, or
            pictures are not asked for.
    """

    shot: Shot
    records: dict[str, dict[str, Any]]
    drawn: np.ndarray | None


def save_choices(tasks: Sequence[Task]) -> dict[str, bool]:
    """Return what the tasks can save -> whether it is saved if nothing is asked for."""
    own = [(task, name) for task in tasks for name in (task.saved_list, *task.saved_layers) if name]
    choices = {name: name not in task.saved_on_request for task, name in own}
    return {**choices, PICTURES: True}


class Output:
    """A folder of predictions.

    Attributes:
        folder: the folder.
        lists: the tasks whose list is asked for.
        layers: pairs of a task and the name of a layer that is asked for.
    """

    def __init__(
        self, *, folder: str, tasks: Sequence[Task], wanted: Collection[str], threshold: float
    ):
        """Take the folder and the options.

        Args:
            folder: the folder.
            tasks: tasks of the network.
            wanted: names of what is saved, see `save_choices`.
            threshold: least score of an object that is saved or drawn, in [0, 1].
        """
        self.folder = folder
        self.tasks = tasks
        self.threshold = threshold
        self.lists = [task for task in tasks if task.saved_list in wanted]
        self.layers = [(t, name) for t in tasks for name in t.saved_layers if name in wanted]
        self.has_pictures = PICTURES in wanted

    def path(self, *parts: str) -> str:
        """Return the path of a file in the folder."""
        return os.path.join(self.folder, *parts)

    def clean(self) -> None:
        """Remove what killed processes left; no process may be writing to the folder."""
        shutil.rmtree(self.path(UNFINISHED), ignore_errors=True)
        remove_temporaries(self.folder)
        lists, layers = (task.saved_list for task in self.lists), (name for _, name in self.layers)
        for name in {PICTURES, IMAGES, *lists, *layers}:
            for parent, _, _ in os.walk(self.path(name)):
                remove_temporaries(parent)

    def save(self, shot: Shot, prediction: Prediction) -> SavedShot:
        """Write the files of an image or frame, except for the frame of a video.

        Raises:
            InputError: a file cannot be written.
        """
        out = shot.item.frame_out(shot.frame)
        results, targets = prediction.results, prediction.targets(self.threshold)
        for task, name in self.layers:
            layer = task.layer(name, results, targets[task.name])
            self._write(_png(layer), name, task.name, f"{out}.png")
        records = {x.name: x.record(results, targets[x.name], self.threshold) for x in self.tasks}
        if not self.has_pictures:
            return SavedShot(shot, records, None)
        drawn = draw_targets(shot.pixels, self.tasks, targets)
        if shot.item.is_video:
            return SavedShot(shot, records, drawn)
        self._write(_jpeg(drawn), PICTURES, f"{out}.jpg")
        self._write(_jpeg(shot.pixels), IMAGES, f"{out}.jpg")
        return SavedShot(shot, records, None)

    def _write(self, content: Any, *parts: str) -> None:
        path = self.path(*parts)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
        write_atomically(path, content)

    def video(self, shot: Shot, rank: int) -> VideoFile:
        """Return the file for the video of a shot, with the results of all tasks.

        Args:
            shot: a frame of the video.
            rank: that of this process.
        """
        path = self.path(PICTURES, f"{shot.item.out}.mp4")
        return VideoFile(path, self.path(UNFINISHED, f"{rank}.mp4"), shot.fps)

    def finish(self, items: Sequence[Done], info: Mapping[str, Any]) -> list[str]:
        """Write the files for all images and return their paths.

        Args:
            items: the finished images and videos, in their order.
            info: what identifies the network and the options.
        """
        with suppress(OSError):
            os.rmdir(self.path(UNFINISHED))
        return [self.path(*parts) for parts in self._write_common(items, info)]

    def _write_common(
        self, items: Sequence[Done], info: Mapping[str, Any]
    ) -> Iterator[tuple[str, ...]]:
        for task in self.lists:
            parts = task.list_parts(lambda: saved_images(items), info)
            yield self._common(parts, task.saved_list, f"{task.name}.json")
        for task, name in self.layers:
            if table := task.class_table(name):
                yield self._common(table, name, task.name, CLASSES)
        if self.has_pictures:
            yield self._common(page_parts(items, self.tasks, self.layers, info), PAGE)

    def _common(self, content: Any, *parts: str) -> tuple[str, ...]:
        self._write(content, *parts)
        return parts


def _png(layer: Layer) -> bytes:
    image = Image.fromarray(layer.values)
    if layer.colors:
        image = Image.fromarray(layer.values, "P")
        image.putpalette([x for color in layer.colors for x in color])
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def _jpeg(pixels: np.ndarray) -> bytes:
    options = (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    return cv2.imencode(".jpg", pixels[..., ::-1], options)[1].tobytes()
