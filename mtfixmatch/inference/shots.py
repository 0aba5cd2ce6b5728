"""Read the images and the frames of videos, one after another."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.errors import InputError
from .images import read_pixels
from .sources import Item
from .video import VideoFrames


@dataclass(frozen=True)
class Shot:
    """An image, or a frame of a video.

    Attributes:
        item: the image or the video.
        frame: number of the frame, from 0; 0 for an image.
        pixels: (H, W, 3) uint8 RGB.
        fps: frames in a second of the video; 0 for an image.
    """

    item: Item
    frame: int
    pixels: np.ndarray
    fps: float = 0.0


@dataclass(frozen=True)
class Ending:
    """Follows the shots of an item.

    Attributes:
        item: the item.
        error: why it cannot be read; "": it is complete.
        remark: what is to be said of a complete item.
    """

    item: Item
    error: str = ""
    remark: str = ""


def read_shots(items: Iterable[Item], range_16bit: Sequence[int]) -> Iterator[Shot | Ending]:
    """Yield the shots of each item and its ending.

    Args:
        items: images and videos.
        range_16bit: see `read_pixels`.
    """
    for item in items:
        try:
            if item.is_video:
                yield from _read_video(item)
            else:
                yield Shot(item, 0, read_pixels(item.path, None, range_16bit))
                yield Ending(item)
        except InputError as error:
            yield Ending(item, error=str(error))


def _read_video(item: Item) -> Iterator[Shot | Ending]:
    count = 0
    with VideoFrames(item.path) as frames:
        for count, pixels in enumerate(frames, start=1):
            yield Shot(item, count - 1, pixels, frames.fps)
        early = f"{item.path} ends early, after {count} of {frames.listed} frames"
        yield Ending(item, remark=early if count < frames.listed else "")
