"""Images of every mode: they are read as they are meant, or are an error that names them."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.images import read_image_header, read_rgb_pixels, read_value_range

RGB = np.array(
    [[[200, 100, 50], [0, 0, 0], [255, 255, 255]], [[1, 2, 3], [9, 8, 7], [128, 64, 32]]], np.uint8
)
GREY = np.array([[0, 85, 170], [255, 85, 0]], np.uint8)
ALPHA = np.array([[0, 1, 255], [7, 128, 0]], np.uint8)
DEEP = np.array([[0, 255, 256], [4095, 4096, 65535]], np.uint16)
DEEP_RGB = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], axis=2)
HEIGHT, WIDTH = DEEP.shape
ORIENTATION, PHOTOMETRIC, EXTRA_SAMPLES = 274, 262, 338
WHITE_IS_ZERO, MULTIPLIED = 0, 1
LOSSLESS = {"WEBP": {"lossless": True}}


def as_rgb(grey):
    return np.stack([grey] * 3, axis=2)


def pillow(array, file_format, mode=None, **options):
    """The file of an array, converted to one of Pillow's modes."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    options = LOSSLESS.get(file_format, {}) | options
    (image.convert(mode) if mode else image).save(file, file_format, **options)
    return file.getvalue()


def opencv(array, suffix):
    """The file of an array, (H, W) or (H, W, 3 or 4) in the order RGB."""
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    array = array[..., order[array.shape[2]]] if array.ndim == 3 else array
    return cv2.imencode(suffix, array)[1].tobytes()


def tiff(values, bits, width, tags=()):
    """An uncompressed grey TIFF of one row, whose `values` are its bytes."""
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, 1), (273, 8)]
    entries = sorted((dict(entries) | {277: 1, 278: 1, 279: len(values)} | dict(tags)).items())
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    values += bytes(-len(values) % 2)
    header = b"II*\0" + struct.pack("<I", 8 + len(values))
    return header + values + struct.pack("<H", len(entries)) + rows + bytes(4)


def palette(array):
    return Image.fromarray(array).convert("P", palette=Image.Palette.ADAPTIVE)


@pytest.fixture
def read(tmp_path):
    """Write a file and read it in the size that its header says."""

    def read(content, *options):
        path = tmp_path / "image"
        path.write_bytes(content)
        return read_rgb_pixels(str(path), read_image_header(str(path))[:2], *options)

    return read


PRINTED = [Image.fromarray(x) for x in (*(255 - RGB.transpose(2, 0, 1)), 0 * GREY)]
EIGHT_BITS = {
    **{f"RGB {x}": (pillow(RGB, x), RGB) for x in ("PNG", "BMP", "WEBP", "TIFF")},
    **{f"grey {x}": (pillow(GREY, x), as_rgb(GREY)) for x in ("PNG", "BMP", "WEBP", "TIFF")},
    **{f"palette {x}": (pillow(palette(RGB), x), RGB) for x in ("PNG", "BMP", "TIFF")},
    **{
        f"RGBA {x}": (pillow(np.dstack([RGB, ALPHA]), x, exact=True), RGB)
        for x in ("PNG", "WEBP", "TIFF")
    },
    **{
        f"grey with alpha {x}": (pillow(np.dstack([GREY, ALPHA]), x), as_rgb(GREY))
        for x in ("PNG", "TIFF")
    },
    **{
        f"TIFF {x}": (pillow(RGB, "TIFF", compression=x), RGB)
        for x in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    **{
        f"1 bit {x}": (pillow(GREY > 100, x), as_rgb(255 * (GREY > 100)))
        for x in ("PNG", "BMP", "TIFF")
    },
    "1 bit TIFF of a fax": (
        pillow(GREY > 100, "TIFF", compression="group4"),
        as_rgb(255 * (GREY > 100)),
    ),
    # 0 to 3 in one byte: 00 01 10 11
    "2 bits TIFF": (tiff(bytes([0b00011011]), 2, 4), as_rgb(np.array([[0, 85, 170, 255]]))),
    # Without black, a color is what cyan, magenta and yellow leave of white.
    "CMYK TIFF": (
        pillow(Image.fromarray(255 - np.dstack([RGB, 255 + 0 * ALPHA]), "CMYK"), "TIFF"),
        RGB,
    ),
}


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_images_of_8_bits_or_less(read, name):
    content, expected = EIGHT_BITS[name]
    pixels = read(content)
    assert pixels.dtype == np.uint8 and pixels.tolist() == expected.tolist()


def test_a_jpeg_in_the_colors_of_print(read):
    image = Image.new("CMYK", (16, 16), (55, 155, 205, 0))
    assert np.abs(read(pillow(image, "JPEG", quality=95)).astype(int) - [200, 100, 50]).max() <= 3


SIXTEEN_BITS = {
    "grey PNG": (pillow(DEEP, "PNG"), as_rgb(DEEP)),
    "grey TIFF": (pillow(DEEP, "TIFF"), as_rgb(DEEP)),
    "grey TIFF, compressed": (pillow(DEEP, "TIFF", compression="tiff_lzw"), as_rgb(DEEP)),
    "grey TIFF, big-endian": (pillow(DEEP.astype(">u2"), "TIFF"), as_rgb(DEEP)),
    "RGB PNG": (opencv(DEEP_RGB, ".png"), DEEP_RGB),
    "RGBA PNG": (opencv(np.dstack([DEEP_RGB, DEEP]), ".png"), DEEP_RGB),
    "RGB TIFF": (opencv(DEEP_RGB, ".tif"), DEEP_RGB),
    "RGBA TIFF": (opencv(np.dstack([DEEP_RGB, DEEP]), ".tif"), DEEP_RGB),
    # 0xABC and 0x123 in three bytes
    "12 bits TIFF": (tiff(b"\xab\xc1\x23", 12, 2), as_rgb(np.array([[0xABC, 0x123]]))),
}


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_images_of_16_bits(read, name):
    content, values = SIXTEEN_BITS[name]
    assert read(content).tolist() == (values // 256).tolist()
    assert read(content, (0, 4095)).tolist() == np.minimum(values // 16, 255).tolist()
    # 512 values, two for each grey level
    expected = ((values.astype(int) - 100) // 2).clip(0, 255)
    assert read(content, (100, 611)).tolist() == expected.tolist()


def test_the_default_keeps_the_high_byte_of_every_value(read):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(read(pillow(values, "PNG")), as_rgb(values >> 8))


def test_the_ends_of_a_range_become_0_and_255(read):
    for low, high in ((0, 65535), (7000, 8999), (3, 1026)):
        values = np.array([[low, high, max(low - 1, 0), min(high + 1, 65535)]], np.uint16)
        assert read(pillow(values, "PNG"), (low, high))[0, :, 0].tolist() == [0, 255, 0, 255]


def turned(array, orientation):
    """What a camera with this orientation writes, so that turning it back gives `array`."""
    back = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: array.swapaxes(0, 1)[::-1],  # shown by a quarter turn clockwise
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: array.swapaxes(0, 1)[:, ::-1],
    }
    return np.ascontiguousarray(back[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(tmp_path, read, file_format, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = read(pillow(turned(RGB, orientation), file_format, exif=exif))
    assert pixels.tolist() == RGB.tolist()
    if file_format != "WEBP":
        pixels = read(pillow(turned(DEEP, orientation), file_format, exif=exif), (0, 4095))
        assert pixels[..., 0].tolist() == np.minimum(DEEP // 16, 255).tolist()


def test_exif_orientation_of_a_phone(tmp_path, read):
    """A JPEG that holds a second picture, which is not read."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, 16:] = 255  # right; a quarter turn clockwise puts it below
    second = Image.fromarray(255 - image)
    options = {"save_all": True, "append_images": [second], "exif": exif}
    content = pillow(image, "MPO", **options)
    pixels = read(content)
    assert pixels.shape == (32, 16, 3) and pixels[:16].max() < 9 and pixels[16:].min() > 246
    assert read_image_header(str(tmp_path / "image")) == [32, 16, 8, 0]


@pytest.mark.parametrize("file_format", ["TIFF", "WEBP", "PNG"])
def test_the_first_of_several_pages_is_read(tmp_path, read, file_format):
    options = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
    assert read(pillow(RGB, file_format, **options)).tolist() == RGB.tolist()
    assert read_image_header(str(tmp_path / "image")) == [HEIGHT, WIDTH, 8, 1]
    read(pillow(RGB, file_format))
    assert read_image_header(str(tmp_path / "image")) == [HEIGHT, WIDTH, 8, 0]


SIGNED, FLOAT = {339: 2}, {339: 3}
UNREAD = {
    "float TIFF": (pillow(GREY.astype(np.float32), "TIFF"), "32 bits of Pillow's mode F, expected"),
    "float RGB TIFF": (opencv(RGB.astype(np.float32), ".tif"), "none of PNG, JPEG, .* can be read"),
    "double TIFF": (opencv(GREY.astype(np.float64), ".tif"), "none of PNG, JPEG, .* can be read"),
    "32-bit TIFF": (pillow(GREY.astype(np.int32), "TIFF"), "32 bits of Pillow's mode I, expected"),
    "signed TIFF": (tiff(bytes(4), 16, 2, SIGNED), "16 bits of Pillow's mode I, expected 8 bits"),
    "16-bit TIFF, white is 0": (
        tiff(bytes(4), 16, 2, {PHOTOMETRIC: WHITE_IS_ZERO}),
        "16 bits of Pillow's mode I;16, expected .* where 0 is black",
    ),
    "LAB TIFF": (pillow(Image.new("LAB", (3, 2)), "TIFF"), "8 bits of Pillow's mode LAB"),
    "GIF": (pillow(palette(RGB), "GIF"), "none of PNG, JPEG, BMP, WEBP, TIFF"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_other_images_are_an_error_of_their_header(tmp_path, name):
    content, expected = UNREAD[name]
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^cannot read the image {path}: it .*{expected}"):
        read_image_header(str(path))


def test_a_tiff_of_8_bits_in_which_white_is_0(read):
    content = tiff(bytes([0, 255, 10]), 8, 3, {PHOTOMETRIC: WHITE_IS_ZERO})
    assert read(content)[0, :, 0].tolist() == [255, 0, 245]


def with_tag(content, tag, value):
    """A little-endian TIFF with one more tag of 16 bits."""
    (at,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[at : at + 2])
    rows = [content[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    rows = sorted([*rows, struct.pack("<HHII", tag, 3, 1, value)], key=lambda x: x[1::-1])
    directory = struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4)
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_16_bit_colors(read, orientation):
    content = opencv(turned(DEEP_RGB, orientation), ".tif")
    pixels = read(with_tag(content, ORIENTATION, orientation), (0, 4095))
    assert pixels.tolist() == np.minimum(DEEP_RGB // 16, 255).tolist()


def test_16_bit_colors_that_opencv_reads_otherwise_are_an_error(read):
    """Pillow divides colors by an alpha that they were multiplied with, and OpenCV does not."""
    content = opencv(np.dstack([DEEP_RGB, DEEP // 2 + 9]), ".tif")
    with pytest.raises(InputError, match="image: convert its 16-bit colors to 8 bits"):
        read(with_tag(content, EXTRA_SAMPLES, MULTIPLIED))


def test_the_range_of_the_values_leaves_out_defective_pixels(tmp_path):
    values = np.full((100, 100), 3000, np.uint16)
    values[:50] = 2000
    values[0, :5], values[99, :5] = 0, 65535
    path = tmp_path / "image.png"
    path.write_bytes(pillow(values, "PNG"))
    assert read_value_range(str(path)) == [2000, 3000]
    path.write_bytes(opencv(np.stack([values, values + 7, values], axis=2)[1:99], ".png"))
    assert read_value_range(str(path)) == [2000, 3007]
