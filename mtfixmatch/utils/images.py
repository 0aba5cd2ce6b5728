"""Read images and label maps.

A file that cannot be read, is of another kind than the function reads, or has more than MAX_PIXELS
is an InputError that names it.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import cv2
import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from PIL import ExifTags, Image, TiffImagePlugin

from .decoders import decode_bytes, decode_rgb
from .errors import InputError, first_line

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
# Pillow's own limit against headers that would fill the memory; Pillow only warns.
MAX_PIXELS = 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Values of 16 bits that become 0 and 255, unless INPUT.RANGE_16BIT says otherwise.
RANGE_16BIT = (0, 65535)
# Percentiles between which the values of an image lie, without single pixels that are defective.
PERCENTILES = (0.1, 99.9)

PNG_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
# Bits and color types of PNGs that hold values or indices of a palette.
_VALUES = [*((bits, 0) for bits in (1, 2, 4, 8, 16)), *((bits, 3) for bits in (1, 2, 4, 8))]
_OF_VALUES = "a single-channel or palette PNG"
# Entries of `Image.info` with the orientation; without one, `getexif` decodes a whole PNG.
EXIF_PLACES = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")


def read_image_size(path: str) -> list[int]:
    """Return the [height, width] of an image from its header, after its EXIF rotation."""
    with _open_image(path) as image:
        return _turned_size(image)


def read_image_header(path: str) -> list[int]:
    """Return [height, width, bits of a channel, 1 if there are more pages] from the header.

    Height and width are those after the EXIF rotation; frames of an animation count as pages.
    """
    with _open_image(path) as image:
        # The further pictures that phones write into a JPEG are previews or depths.
        more_pages = image.format != "MPO" and getattr(image, "is_animated", False)
        return [*_turned_size(image), _bits(image), int(more_pages)]


def read_rgb_pixels(
    path: str, size: list[int], range_16bit: Sequence[int] = RANGE_16BIT
) -> np.ndarray:
    """Return the pixels of an image, (H, W, 3) uint8 RGB, rotated as its EXIF orientation says.

    Its transparency is dropped, and of several pages or frames the first is read. Values of 16 bits
    from the first to the second of `range_16bit`, which is divided into 256 equal parts, become 0
    to 255. An image of another `size`, [height, width], is an InputError, too.
    """
    with _open_image(path, decode=True) as image:
        found = _turned_size(image)
        if found == size:  # do not decode an image of the wrong size
            pixels = _decode(path, image, range_16bit)
            found = list(pixels.shape[:2])
    if found != size:
        raise InputError(f"{path} is {tuple(found)}, not {tuple(size)} as its labels say (H, W)")
    return pixels


def _decode(path: str, image: Image.Image, range_16bit: Sequence[int]) -> np.ndarray:
    """Return the pixels of an open image, (H, W, 3) uint8 RGB, after its EXIF rotation."""
    has_8_bits = _bits(image) <= 8
    if has_8_bits and _orientation(image) == 1:
        pixels = decode_rgb(image)
        if pixels is not None:
            return pixels
    image.load()  # the orientation may stand after the pixels
    if not has_8_bits:
        scaled = Image.fromarray(_to_8_bits(*range_16bit)[_read_values(path, image)])
        scaled.info, image = image.info, scaled
    return convert_PIL_to_numpy(_apply_exif_orientation(image), "RGB")


def read_value_range(path: str) -> list[int]:
    """Return the least and the greatest value of a 16-bit image, between its PERCENTILES."""
    with _open_image(path, decode=True) as image:
        values = _read_values(path, image)
        return np.percentile(values, PERCENTILES, method="nearest").astype(int).tolist()


def read_label_map(path: str) -> np.ndarray:
    """Return the ids in a semantic map as an (H, W) uint8 array; see `read_map_values`."""
    values = _read_png(path, _VALUES, _OF_VALUES)
    if values.max() > 255:
        expected = "expected ids of a semantic map, from 0 to 255"
        raise InputError(f"{path}: has the value {values.max()}, {expected}")
    return values.astype(np.uint8, copy=False)


def read_map_values(path: str, expected: str = _OF_VALUES) -> np.ndarray:
    """Return the values of a grey PNG of 1 to 16 bits, or a palette's indices, (H, W) int32.

    Another file is an InputError, which says what was `expected`.
    """
    return _read_png(path, _VALUES, expected).astype(np.int32)


def read_map_colors(path: str) -> np.ndarray:
    """Return the colors r + 256 g + 65536 b of a PNG of up to 8 bits, (H, W) int32.

    Grey values are colors of three equal parts, and transparency is dropped.
    """
    formats = [(8, 2), (8, 6), (8, 4), *((bits, x) for bits in (1, 2, 4, 8) for x in (0, 3))]
    pixels = _read_png(path, formats, "a PNG of up to 8 bits", mode="RGBA")
    return pixels.view("<i4")[..., 0] & 0xFFFFFF


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
        reason = f"it is none of {formats} that can be read"
        raise InputError(f"cannot read the image {path}: {reason}") from None
    except Exception as error:  # Pillow's decoders raise errors of many types
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"cannot read the image {path}: {reason}") from None


def _read_header(path: str, file) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        pixels = f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS}"
        raise InputError(f"cannot read the image {path}: its header claims {pixels}")
    if not _is_readable(image):
        found = f"{_bits(image)} bits of Pillow's mode {image.mode}"
        expected = "8 bits, or 16 without sign; grey, where 0 is black, or RGB"
        raise InputError(f"cannot read the image {path}: it has {found}, expected {expected}")
    return image


def _is_readable(image: Image.Image) -> bool:
    """Return whether Pillow reads the values of an image of this kind as they are meant."""
    if _bits(image) <= 8:
        return image.mode != "LAB"
    # Of 16 bits, Pillow does not invert a TIFF in which 0 is white.
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return image.mode.startswith(("I;16", "RGB")) and not white_is_zero


def _bits(image: Image.Image) -> int:
    """Return the number of bits of a channel of an image that is not decoded yet."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return _png_kind(image)[0] if image.format == "PNG" else 8


def _png_kind(image: Image.Image) -> tuple[int, int]:
    """Return bits and color type of a PNG that is not decoded yet, which Pillow does not expose."""
    image.fp.seek(24)  # type: ignore[attr-defined]
    depth, color = image.fp.read(2)  # type: ignore[attr-defined]
    return depth, color


def _read_values(path: str, image: Image.Image) -> np.ndarray:
    """Return the values of a 16-bit image before its EXIF rotation, (H, W) or (H, W, 3) uint16."""
    pixels = np.asarray(image)
    if image.mode.startswith("I;16"):
        return pixels
    # Of 16-bit colors, Pillow reads the high bytes alone.
    bgr: np.ndarray | None = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if bgr is None or not np.array_equal(bgr[..., 2::-1] // 256, pixels[..., :3]):
        raise InputError(f"cannot read the image {path}: convert its 16-bit colors to 8 bits")
    return bgr[..., 2::-1]


@cache
def _to_8_bits(low: int, high: int) -> np.ndarray:
    """Return the table of 65,536 uint8 that scales values from `low` to `high` to 0-255."""
    scaled = (np.arange(65536) - low) * 256 // (high - low + 1)
    return scaled.clip(0, 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation by which a reader must turn an image, 1 for none."""
    # Pillow itself turns a TIFF.
    if image.format == "TIFF" or not any(x in image.info for x in EXIF_PLACES):
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Detectron2, too, does not rotate an image whose EXIF is broken
        return 1


def _turned_size(image: Image.Image) -> list[int]:
    """Return [height, width] after the EXIF rotation."""
    width, height = image.size
    return [width, height] if _orientation(image) in (5, 6, 7, 8) else [height, width]


def _read_png(
    path: str, formats: Sequence[tuple[int, int]], expected: str, mode: str = ""
) -> np.ndarray:
    """Read a PNG in one of `formats`, pairs of (bits, color type) that `expected` describes.

    Its pixels are in Pillow's `mode`; "": as the file stores them.
    """
    with _open_image(path, decode=True) as image:
        if image.format != "PNG":
            raise InputError(f"{path}: expected {expected}, found another kind of file")
        depth, color = _png_kind(image)
        if (depth, color) not in formats:
            kind = PNG_COLOR_TYPES.get(color, color)
            raise InputError(f"{path}: expected {expected}, found a PNG of {depth} bits, {kind}")
        if mode:
            return np.array(image.convert(mode))
        values = decode_bytes(image) if depth == 8 else None
        if values is not None:
            return values
        # Pillow stretches grey of 2 and 4 bits to 0-255.
        return np.array(image) // ({2: 85, 4: 17}.get(depth, 1) if color == 0 else 1)
