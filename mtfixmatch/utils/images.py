"""Read images and label maps.

A file that cannot be read, is of another kind than the function reads, or has more than MAX_PIXELS
is an InputError that names it.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from PIL import Image

from .errors import InputError, first_line

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
# Pillow's own limit against headers that would fill the memory; Pillow only warns.
MAX_PIXELS = 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

PNG_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
EXIF_ORIENTATION = 0x0112
# Entries of `Image.info` with the orientation; without one, `getexif` decodes a whole PNG.
EXIF_PLACES = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")


def read_image_size(path: str) -> list[int]:
    """Return the [height, width] of an image from its header, after its EXIF rotation."""
    with _open_image(path) as image:
        return _rotated_size(image)


def read_rgb_pixels(path: str, size: list[int]) -> np.ndarray:
    """Return the pixels of an image, (H, W, 3) uint8 RGB, rotated as its EXIF orientation says.

    Its transparency is dropped, and 16 bits become 8. An image of another `size`, [height, width],
    is an InputError, too.
    """
    with _open_image(path, decode=True) as image:
        found = _rotated_size(image)
        if found == size:  # do not decode an image of the wrong size
            image = _apply_exif_orientation(image)
            if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            pixels = convert_PIL_to_numpy(image, "RGB")
            found = list(pixels.shape[:2])  # the orientation may stand after the pixels
    if found != size:
        raise InputError(f"{path} is {tuple(found)}, not {tuple(size)} as its labels say (H, W)")
    return pixels


def read_label_map(path: str) -> np.ndarray:
    """Return the ids in a semantic map, an 8-bit or palette PNG, as an (H, W) uint8 array."""
    # Grey images of 1, 2 or 4 bits are refused because Pillow would stretch their ids to 0-255.
    formats = [(8, 0), (8, 3), (4, 3), (2, 3), (1, 3)]
    return _read_png(path, formats, "an 8-bit single-channel or palette PNG").astype(np.uint8)


def read_instance_map(path: str) -> np.ndarray:
    """Return the ids in an instance map, a PNG of 8 or 16 bits, as an (H, W) int32 array."""
    return _read_png(path, [(16, 0), (8, 0)], "a 16-bit single-channel PNG").astype(np.int32)


@contextmanager
def _open_image(path: str, *, decode: bool = False) -> Iterator[Image.Image]:
    """Open an image and turn every error, also of the caller's decoding, into an InputError.

    If the caller decodes the pixels, the checksums of a PNG are verified, because the decoder
    stops before the last of them.
    """
    try:
        with open(path, "rb") as file:
            image = _read_header(path, file)
            if decode and image.format == "PNG":
                image.verify()
                file.seek(0)
                image = _read_header(path, file)
            yield image
    except (InputError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise InputError(f"cannot read the image {path}: it is none of {formats}") from None
    except Exception as error:  # Pillow's decoders raise errors of many types
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"cannot read the image {path}: {reason}") from None


def _read_header(path: str, file) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        pixels = f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS}"
        raise InputError(f"cannot read the image {path}: its header claims {pixels}")
    return image


def _rotated_size(image: Image.Image) -> list[int]:
    """Return [height, width] after the EXIF rotation."""
    width, height = image.size
    try:
        exif = image.getexif() if any(x in image.info for x in EXIF_PLACES) else {}
        swapped = exif.get(EXIF_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # Detectron2, too, does not rotate an image whose EXIF is broken
        swapped = False
    return [width, height] if swapped else [height, width]


def _read_png(path: str, formats: list[tuple[int, int]], expected: str) -> np.ndarray:
    """Read a PNG in one of `formats`, pairs of (bits, color type) that `expected` describes."""
    with _open_image(path, decode=True) as image:
        if image.format != "PNG":
            raise InputError(f"{path}: expected {expected}, found another kind of file")
        # Pillow does not expose the bit depth; bytes 24 and 25 are bit depth and color type.
        image.fp.seek(24)  # type: ignore[attr-defined]
        depth, color = image.fp.read(2)  # type: ignore[attr-defined]
        if (depth, color) not in formats:
            kind = PNG_COLOR_TYPES.get(color, color)
            raise InputError(f"{path}: expected {expected}, found a PNG of {depth} bits, {kind}")
        return np.array(image)
