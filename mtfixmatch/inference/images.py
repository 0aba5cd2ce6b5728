"""The images that a predictor takes: paths, PIL images and arrays, as RGB pixels."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from PIL import Image

from ..formats.image_files import find_images
from ..utils.errors import InputError, check_choice
from ..utils.images import read_image_header, read_rgb_pixels
from ..utils.notes import Notes

RGB, BGR = "RGB", "BGR"
READABLE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits


def read_pixels(image: Any, color: str | None, range_16bit: Sequence[int]) -> np.ndarray:
    """Return an image as (H, W, 3) uint8 RGB.

    Args:
        image: path of a file, which is read as those of a dataset are; PIL image, turned as its
            EXIF says; or array (H, W, 3) uint8, or (H, W) of grey values.
        color: "RGB" or "BGR", the order of the channels of an array, which must be named.
        range_16bit: values of 16-bit files that become 0 and 255.

    Raises:
        InputError: the file cannot be read, or the image has another form.
    """
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        return read_rgb_pixels(path, read_image_header(path)[:2], range_16bit)
    if isinstance(image, Image.Image):
        if image.mode not in READABLE_MODES:
            expected = "an image of 8 bits; give the path of a file of 16 bits instead"
            raise InputError(f"the PIL image has the mode {image.mode}, expected {expected}")
        return convert_PIL_to_numpy(_apply_exif_orientation(image), RGB)
    return _array_pixels(image, color)


def _array_pixels(image: Any, color: str | None) -> np.ndarray:
    expected = "a path, a PIL image, or an array (H, W, 3) or (H, W) of uint8"
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image is a {type(image).__name__}, expected {expected}")
    has_form = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not has_form or not image.size:
        raise InputError(f"an image is {image.dtype} {image.shape}, expected {expected}")
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if color is None:
        raise InputError('an array needs color="RGB" or color="BGR", the order of its channels')
    check_choice("color", color, (RGB, BGR))
    return image if color == RGB else image[..., ::-1]


def read_some(
    sources: Sequence[str], key: str, limit: int, range_16bit: Sequence[int]
) -> list[np.ndarray]:
    """Read the images of some sources, at most `limit`, evenly spaced among all.

    Args:
        sources: folders, globs, files, or text files with paths; see `find_images`.
        key: option of the sources, for messages.
        limit: at least 1.
        range_16bit: values of 16-bit files that become 0 and 255.

    Raises:
        InputError: a source does not exist or has no image, or an image cannot be read.
    """
    paths = list(find_images(sources, key, Notes())[0].values())
    count = min(len(paths), max(limit, 1))
    return [read_pixels(paths[i * len(paths) // count], None, range_16bit) for i in range(count)]
