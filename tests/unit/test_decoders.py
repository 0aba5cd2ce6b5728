"""Images decoded by kornia-rs: the same pixels and errors as with Pillow alone."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.street.scene import draw_scene
from mtfixmatch.utils import decoders
from mtfixmatch.utils.decoders import decode_bytes, decode_rgb
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.images import read_label_map, read_rgb_pixels

SCENE = draw_scene(np.random.default_rng(3), 131, 67).rgb
GREY = np.ascontiguousarray(SCENE[..., 0])
ORIENTATION = 274


def encoded(array, file_format, mode=None, **options):
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, file_format, **options)
    return file.getvalue()


def opened(content):
    return Image.open(io.BytesIO(content))


JPEGS = [
    {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    for quality in (30, 90)
    for subsampling in (0, 1, 2, "4:1:1")
    for progressive in (False, True)
] + [{"keep_rgb": True}]


@pytest.mark.parametrize("options", JPEGS, ids=str)
@pytest.mark.parametrize("size", [(67, 131), (64, 128), (1, 1), (7, 100)])
def test_a_jpeg_has_the_pixels_of_pillow(options, size):
    content = encoded(np.ascontiguousarray(SCENE[: size[0], : size[1]]), "JPEG", **options)
    pixels = decode_rgb(opened(content))
    assert pixels is not None and np.array_equal(pixels, np.asarray(opened(content)))


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"transparency": (1, 2, 3)}])
def test_a_png_has_the_pixels_of_pillow(options):
    assert np.array_equal(decode_rgb(opened(encoded(SCENE, "PNG", **options))), SCENE)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_values_and_indices_are_those_of_pillow(mode):
    content = encoded(SCENE, "PNG", mode)
    values = decode_bytes(opened(content))
    assert values.shape == GREY.shape
    assert np.array_equal(values, np.asarray(opened(content)))


@pytest.mark.parametrize(
    ("content", "decode"),
    [
        (encoded(SCENE, "PNG", "RGBA"), decode_rgb),
        (encoded(SCENE, "PNG", "L"), decode_rgb),
        (encoded(SCENE, "JPEG", "L"), decode_rgb),
        (encoded(SCENE, "JPEG", "CMYK"), decode_rgb),
        (encoded(SCENE, "BMP"), decode_rgb),
        (encoded(SCENE, "PNG"), decode_bytes),
        (encoded(GREY > 100, "PNG"), decode_bytes),
        (encoded(GREY.astype(np.uint16) * 257, "PNG"), decode_bytes),
        (encoded(SCENE, "PNG", "P", bits=4), decode_bytes),
    ],
)
def test_other_kinds_are_left_to_pillow(content, decode):
    assert decode(opened(content)) is None


def with_chunk_at_end(content, kind, data):
    chunk = kind + data
    chunk = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content[:-12] + chunk + content[-12:]


def exif_of(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()[6:]


@pytest.mark.parametrize(("kind", "is_left"), [(b"eXIf", True), (b"tEXt", False)])
def test_exif_behind_the_pixels_is_left_to_pillow(tmp_path, kind, is_left):
    content = with_chunk_at_end(encoded(SCENE, "PNG"), kind, exif_of(3))
    assert (decode_rgb(opened(content)) is None) == is_left
    path = tmp_path / "image.png"
    path.write_bytes(content)
    pixels = read_rgb_pixels(str(path), list(GREY.shape))
    assert np.array_equal(pixels, SCENE[::-1, ::-1] if is_left else SCENE)


def outcome(read, *args):
    """The pixels that are read, or the text of the error."""
    try:
        return read(*args)
    except InputError as error:
        return str(error)


def corrupt(content, rng):
    """A file that is cut off, has a hole, wrong bits, blocks in another order or more bytes."""
    kind, size = rng.integers(5), len(content)
    a, b, c = (int(x) for x in np.sort(rng.integers(1, size, 3)))
    if kind == 0:
        return content[:a]
    if kind == 1:
        return content[:a] + bytes(min(size - a, 90)) + content[a + 90 :]
    if kind == 2:
        return content[:a] + content[b:c] + content[a:b] + content[c:]
    if kind == 3:
        return content + rng.bytes(40)
    wrong = bytearray(content)
    for place in rng.integers(0, size, int(rng.integers(1, 9))):
        wrong[place] ^= 1 << int(rng.integers(8))
    return bytes(wrong)


@pytest.mark.parametrize(
    "content",
    [
        encoded(SCENE, "PNG"),
        encoded(SCENE, "JPEG"),
        encoded(SCENE, "JPEG", progressive=True),
        encoded(SCENE, "JPEG", restart_marker_blocks=4),
        encoded(GREY // 9, "PNG"),
    ],
    ids=["PNG", "JPEG", "progressive JPEG", "JPEG with restarts", "map"],
)
def test_a_broken_file_is_read_or_an_error_as_with_pillow_alone(tmp_path, monkeypatch, content):
    rng, path = np.random.default_rng(0), tmp_path / "file"
    if opened(content).mode == "L":
        read, args = read_label_map, (str(path),)
    else:
        read, args = read_rgb_pixels, (str(path), list(GREY.shape))
    errors = 0
    for _ in range(100):
        path.write_bytes(corrupt(content, rng))
        found = outcome(read, *args)
        with monkeypatch.context() as patch:
            patch.setattr(decoders, "kornia_io", None)
            expected = outcome(read, *args)
        assert type(found) is type(expected) and np.array_equal(found, expected)
        errors += isinstance(found, str)
    assert 20 < errors < 100


def test_without_kornia_rs_pillow_decodes(monkeypatch):
    monkeypatch.setattr(decoders, "kornia_io", None)
    assert decode_rgb(opened(encoded(SCENE, "PNG"))) is None
    assert decode_bytes(opened(encoded(GREY, "PNG"))) is None
