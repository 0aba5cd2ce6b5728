"""Read pictures of unknown origin: what is wrong with one is an InputError that names its file."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from PIL import Image

from .errors import InputError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
# A file of some kilobytes can say that it has billions of pixels, which would fill the memory. This
# is where Pillow warns, without a name: 256 MiB as RGB.
MAX_PIXELS = 89_478_485
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

PNG_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
EXIF_ORIENTATION = 0x0112
# Where the orientation may be. Asking a PNG without any of them would decode the whole image.
EXIF_PLACES = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")


def read_image_size(path: str) -> list[int]:
    """Return [height, width] from the header, turned as the EXIF orientation says.

    Raises:
        InputError: if the header cannot be read, or tells of more than MAX_PIXELS.
    """
    with _opened(path) as image:
        return _turned_size(image)


def read_rgb_pixels(path: str, size: list[int]) -> np.ndarray:
    """Return an image as (H, W, 3) uint8 RGB, turned as the EXIF orientation says.

    Args:
        path: of the file; transparency is dropped, 16 bits become 8.
        size: [height, width] that is expected.

    Raises:
        InputError: if it cannot be read, has more than MAX_PIXELS, or another size.
    """
    with _opened(path, whole=True) as image:
        found = _turned_size(image)
        if found == size:  # else it is not worth to be decoded
            image = _apply_exif_orientation(image)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            pixels = convert_PIL_to_numpy(image, "RGB")
            found = list(pixels.shape[:2])  # an orientation may come after the pixels
    if found != size:
        raise InputError(f"{path} is {tuple(found)}, not {tuple(size)} as its labels say (H, W)")
    return pixels


def read_label_map(path: str) -> np.ndarray:
    """Return the ids in a semantic map as an (H, W) uint8 array.

    Raises:
        InputError: if it cannot be read, or is no such map.
    """
    # Grey images of 1, 2 or 4 bits are refused: Pillow would stretch their ids to 0-255.
    formats = [(8, 0), (8, 3), (4, 3), (2, 3), (1, 3)]
    return _read_png(path, formats, "an 8-bit single-channel or palette PNG").astype(np.uint8)


def read_instance_map(path: str) -> np.ndarray:
    """Return the ids in an instance map as an (H, W) int32 array.

    Raises:
        InputError: if it cannot be read, or is no such map.
    """
    return _read_png(path, [(16, 0), (8, 0)], "a 16-bit single-channel PNG").astype(np.int32)


@contextmanager
def _opened(path: str, *, whole: bool = False) -> Iterator[Image.Image]:
    """Give an image whose header is read; what fails while it is used is an InputError, too.

    Args:
        path: of the file.
        whole: its pixels will be read, so that the checksums of a PNG matter: the decoder stops
            before the last of them.
    """
    try:
        with open(path, "rb") as file:
            image = _read_header(path, file)
            if whole and image.format == "PNG":
                image.verify()
                file.seek(0)
                image = _read_header(path, file)
            yield image
    except (InputError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise InputError(f"cannot read the image {path}: it is none of {formats}") from None
    except Exception as error:  # there is no end to what decoding foreign bytes raises
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"cannot read the image {path}: {reason}") from None


def _read_header(path: str, file) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"cannot read the image {path}: it says that it has {image.width}x{image.height} "
            f"pixels, at most {MAX_PIXELS} are read"
        )
    return image


def _turned_size(image: Image.Image) -> list[int]:
    width, height = image.size
    try:
        exif = image.getexif() if any(x in image.info for x in EXIF_PLACES) else {}
        turned = exif.get(EXIF_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # of broken EXIF, without which detectron2, too, takes the image as it is
        turned = False
    return [width, height] if turned else [height, width]


def _read_png(path: str, formats: list[tuple[int, int]], expected: str) -> np.ndarray:
    with _opened(path, whole=True) as image:
        if image.format != "PNG":
            raise InputError(f"{path}: expected {expected}, found another kind of file")
        image.fp.seek(24)  # type: ignore[attr-defined]
        depth, color = image.fp.read(2)  # type: ignore[attr-defined]
        if (depth, color) not in formats:
            found = f"{depth} bits, {PNG_COLOR_TYPES.get(color, color)}"
            raise InputError(f"{path}: expected {expected}, found a PNG of {found}")
        return np.array(image)
