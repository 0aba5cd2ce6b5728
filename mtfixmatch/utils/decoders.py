"""Decode common PNGs and JPEGs with kornia-rs, in a quarter to a half of Pillow's time.

The pixels are those of Pillow. A file of another kind, or with which kornia-rs finds any fault, is
None and left to Pillow, so that every error is Pillow's, too. It does not compare the checksum of
a PNG's compressed data, but those of its chunks.
"""

import struct

import numpy as np
from PIL import Image

try:
    from kornia_rs import io as kornia_io
except ImportError:  # a version before 0.2
    kornia_io = None  # type: ignore[assignment]

# What begins an EXIF orientation in a chunk of a PNG.
_EXIF_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def decode_rgb(image: Image.Image) -> np.ndarray | None:
    """Decode an image of 8-bit RGB that Pillow has opened, before its EXIF rotation.

    Returns:
        (H, W, 3) uint8; None: Pillow has to decode it, also if the EXIF data of a PNG stands after
        its pixels.
    """
    if image.mode != "RGB" or image.format not in ("PNG", "JPEG") or kornia_io is None:
        return None
    content = _content(image)
    if image.format == "JPEG":
        return _tried(image, kornia_io.decode_image_jpegturbo, content, "rgb")
    if _has_exif_at_end(content):
        return None
    return _decode_png(image, content, "rgb")


def decode_bytes(image: Image.Image) -> np.ndarray | None:
    """Decode the bytes of a PNG of 8 bits, grey or with a palette, that Pillow has opened.

    Returns:
        (H, W) uint8, grey values or indices of the palette; None: Pillow has to decode it.
    """
    if image.mode not in ("L", "P") or kornia_io is None:
        return None
    pixels = _decode_png(image, _content(image), "mono")
    return None if pixels is None else pixels[..., 0]


def _content(image: Image.Image) -> bytes:
    file = image.fp  # type: ignore[attr-defined]
    file.seek(0)
    return file.read()


def _decode_png(image: Image.Image, content: bytes, mode: str) -> np.ndarray | None:
    size = (image.height, image.width)
    return _tried(image, kornia_io.decode_image_png_u8, content, size, mode)


def _tried(image: Image.Image, decode, *args) -> np.ndarray | None:
    try:
        pixels = decode(*args)
    except Exception:  # of no narrower class; Pillow finds the reason
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None


def _has_exif_at_end(content: bytes) -> bool:
    """Whether EXIF data stands after the pixels of a PNG whose chunks have been verified."""
    at, end, kind = 8, 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", content, at)
        at += 12 + size
        end = at if kind == b"IDAT" else end
    return any(mark in content[end:] for mark in _EXIF_MARKS)
