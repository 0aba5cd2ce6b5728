"""What a kind of task writes to files when a network predicts images.

There are two forms. A *list* is one file for all images; it is written from the records of the
images, which are small. A *layer* is a PNG for each image, of its size.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class Layer:
    """A PNG of an image.

    Attributes:
        values: (H, W) uint8: class ids, which index the colors, or grey values.
        colors: color of each value, RGB in 0-255; empty: the values are grey.
    """

    values: np.ndarray
    colors: list[list[int]]


@dataclass(frozen=True)
class SavedImage:
    """What is kept of an image or of a frame of a video.

    Attributes:
        file_name: path of the image below the folder of all images; of a frame, that of its video
            with its number.
        size: (height, width) in pixels.
        records: task name -> its record, see `SavedResults.record`.
        video: path of the video; "": it is an image.
        frame: number of the frame, from 0.
    """

    file_name: str
    size: tuple[int, int]
    records: Mapping[str, dict[str, Any]]
    video: str = ""
    frame: int = 0


class SavedResults:
    """The part of a kind of task that says which of its results are written to files, and how.

    Attributes:
        saved_list: name of the list of all images, a choice of `projects/predict.py --save`; "":
            the kind has none.
        saved_layers: names of the layers of an image, which are choices as well.
        saved_on_request: names among them that are only written if --save has them.
    """

    saved_list: ClassVar[str] = ""
    saved_layers: ClassVar[tuple[str, ...]] = ()
    saved_on_request: ClassVar[tuple[str, ...]] = ()

    def record(self, result: dict[str, Any], target: Any, threshold: float) -> dict[str, Any]:
        """Return what a list and the page need of the model's result for an image, for JSON.

        Two keys have a meaning everywhere: "boxes", a list of [class id, score, x0, y0, x1, y1] in
        pixels; and "classes", the ids of the classes in the image.

        Args:
            result: the model's result for an image, see `Task.result_key`.
            target: what `Task.result_target` makes of it.
            threshold: least score of an object, in [0, 1].
        """
        return {}

    def layer(self, name: str, result: dict[str, Any], target: Any) -> Layer:
        """Return the layer of this name for an image; see `record`."""
        raise NotImplementedError

    def class_table(self, name: str) -> str:
        """Return JSON that says what the values in the layers of this name are; "": nothing."""
        return ""

    def list_parts(
        self, images: Callable[[], Iterable[SavedImage]], info: Mapping[str, Any]
    ) -> Iterable[str]:
        """Yield the text of the list, JSON, in parts.

        Args:
            images: function that iterates over the images; it may be called several times.
            info: what identifies the network and the options.
        """
        raise NotImplementedError
