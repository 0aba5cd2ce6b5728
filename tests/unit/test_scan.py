import gzip
import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.data.datasets import scan
from mtfixmatch.data.datasets.scan import (
    cache_path,
    scan_files,
    scan_label_map,
)
from mtfixmatch.data.records import check_map_size, make_record
from mtfixmatch.utils.errors import InputError, InputErrors
from mtfixmatch.utils.images import read_image_size, read_instance_map, read_label_map


def count_and_read(path):
    """Leaves a trace next to the file, since a counter does not come back from another process."""
    with open(f"{path}.calls", "a") as file:
        file.write("x")
    with open(path) as file:
        return [file.read()]


def refuse_b(path):
    if "b" in os.path.basename(path):
        raise InputError(f"{path}: refused")
    return path


def other_function(path):
    return "other"


def write_files(folder, names):
    paths = [str(folder / f"{name}.txt") for name in names]
    for path in paths:
        Path(path).write_text(os.path.basename(path))
    return paths


def calls(path):
    trace = Path(f"{path}.calls")
    return len(trace.read_text()) if trace.exists() else 0


def rewrite(path, text):
    Path(path).write_text(text)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_the_order_of_the_paths(tmp_path, workers):
    paths = write_files(tmp_path, range(50))[::-1]
    expected = [[os.path.basename(path)] for path in paths]
    assert scan_files(paths, count_and_read, None, workers) == expected
    assert [calls(path) for path in paths] == [1] * 50


def test_only_a_changed_file_is_scanned_again(tmp_path):
    paths = write_files(tmp_path, "abcd")
    cache = str(tmp_path / "new" / "cache.json.gz")
    scan_files(paths, count_and_read, cache, 1)
    rewrite(paths[2], "changed")
    results = scan_files(paths, count_and_read, cache, 1)
    assert results == [["a.txt"], ["b.txt"], ["changed"], ["d.txt"]]
    assert [calls(path) for path in paths] == [1, 1, 2, 1]


def test_same_size_and_another_time_is_a_change(tmp_path):
    (path,) = write_files(tmp_path, "a")
    cache = str(tmp_path / "cache.json.gz")
    scan_files([path], count_and_read, cache, 1)
    rewrite(path, "A.txt")
    assert scan_files([path], count_and_read, cache, 1) == [["A.txt"]]


def test_added_and_removed_files(tmp_path):
    paths = write_files(tmp_path, "abc")
    cache = tmp_path / "cache.json.gz"
    scan_files(paths[:2], count_and_read, str(cache), 1)
    assert scan_files(paths[1:], count_and_read, str(cache), 1) == [["b.txt"], ["c.txt"]]
    assert [calls(path) for path in paths] == [1, 1, 1]
    assert sorted(json.loads(gzip.decompress(cache.read_bytes()))["files"]) == paths[1:]


def test_an_unchanged_cache_is_not_written_again(tmp_path):
    paths = write_files(tmp_path, "ab")
    cache = tmp_path / "cache.json.gz"
    scan_files(paths, count_and_read, str(cache), 1)
    os.utime(cache, ns=(1, 1))
    scan_files(paths, count_and_read, str(cache), 1)
    assert cache.stat().st_mtime_ns == 1


def test_no_temporary_file_stays(tmp_path):
    paths = write_files(tmp_path, "a")
    scan_files(paths, other_function, str(tmp_path / "new" / "cache.json.gz"), 1)
    assert os.listdir(tmp_path / "new") == ["cache.json.gz"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"no json", mtime=0),
        gzip.compress(b"[]", mtime=0),
        gzip.compress(b"{}", mtime=0),
    ],
)
def test_a_corrupt_cache_is_made_anew(tmp_path, content, caplog):
    paths = write_files(tmp_path, "a")
    cache = tmp_path / "cache.json.gz"
    cache.write_bytes(content)
    assert scan_files(paths, count_and_read, str(cache), 1) == [["a.txt"]]
    assert str(cache) in caplog.text
    scan_files(paths, count_and_read, str(cache), 1)
    assert calls(paths[0]) == 1


def test_a_truncated_cache_is_made_anew(tmp_path):
    paths = write_files(tmp_path, "a")
    cache = tmp_path / "cache.json.gz"
    scan_files(paths, count_and_read, str(cache), 1)
    cache.write_bytes(cache.read_bytes()[:-12])
    assert scan_files(paths, count_and_read, str(cache), 1) == [["a.txt"]]
    assert calls(paths[0]) == 2


def test_a_cache_of_another_version_or_function_is_not_used(tmp_path, monkeypatch):
    paths = write_files(tmp_path, "a")
    cache = str(tmp_path / "cache.json.gz")
    scan_files(paths, count_and_read, cache, 1)
    monkeypatch.setattr(scan, "CACHE_VERSION", scan.CACHE_VERSION + 1)
    scan_files(paths, count_and_read, cache, 1)
    assert calls(paths[0]) == 2
    assert scan_files(paths, other_function, cache, 1) == ["other"]


def test_an_unwritable_cache_folder_only_warns(tmp_path, caplog):
    paths = write_files(tmp_path, "a")
    cache = str(tmp_path / "a.txt" / "cache.json.gz")
    with caplog.at_level(logging.WARNING):
        assert scan_files(paths, other_function, cache, 1) == ["other"]
    assert cache in caplog.text and "cannot be written" in caplog.text


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"/nowhere/x\.txt"):
        scan_files(["/nowhere/x.txt"], other_function, None, 1)


def test_no_files():
    assert scan_files([], other_function, None, 2) == []


def test_cache_path_depends_on_the_absolute_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cache_path("c", "x", "data") == cache_path("c", "x", str(tmp_path / "data"))
    assert cache_path("c", "x", "data") != cache_path("c", "x", "data2")
    assert cache_path("c", "x", "data") != cache_path("c", "y", "data")


def save(folder, array, mode=None, **options):
    path = str(folder / "map.png")
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_read_label_map_grey_and_palette(tmp_path):
    ids = np.array([[0, 3], [18, 255]], np.uint8)
    np.testing.assert_array_equal(read_label_map(save(tmp_path, ids)), ids)
    image = Image.fromarray(ids % 4)
    image = image.convert("P")
    image.putdata((ids % 4).ravel().tolist())
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    path = str(tmp_path / "palette.png")
    image.save(path, bits=2)
    result = read_label_map(path)
    np.testing.assert_array_equal(result, ids % 4)
    assert result.dtype == np.uint8


def test_scan_label_map_lists_the_ids(tmp_path):
    ids = np.array([[7, 7, 0], [255, 7, 0]], np.uint8)
    assert scan_label_map(save(tmp_path, ids)) == [2, 3, [0, 7, 255]]


@pytest.mark.parametrize(
    ("array", "mode", "found"),
    [
        (np.zeros((2, 2, 3), np.uint8), None, "8 bits, RGB"),
        (np.zeros((2, 2, 4), np.uint8), None, "8 bits, RGBA"),
        (np.zeros((2, 2, 2), np.uint8), None, "8 bits, grey with alpha"),
    ],
)
def test_read_label_map_refuses_other_pngs(tmp_path, array, mode, found):
    path = save(tmp_path, array, mode)
    with pytest.raises(InputError) as error:
        read_label_map(path)
    assert str(error.value).startswith(path) and found in str(error.value)


def test_read_label_map_refuses_other_files(tmp_path):
    jpeg = str(tmp_path / "map.jpg")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(jpeg)
    with pytest.raises(
        InputError, match=r"map\.jpg: expected a single-channel .* another kind of file"
    ):
        read_label_map(jpeg)
    with pytest.raises(InputError, match=r"cannot read the image .*missing\.png: No such file"):
        read_label_map(str(tmp_path / "missing.png"))


def test_a_truncated_png_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (50, 50)).astype(np.uint8)
    path = Path(save(tmp_path, noise))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match=r"cannot read the image .*map\.png"):
        read_label_map(str(path))


def test_read_instance_map_keeps_16_bits(tmp_path):
    ids = np.array([[24, 24001], [33999, 0]], np.uint16)
    np.testing.assert_array_equal(read_instance_map(save(tmp_path, ids)), ids)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(("orientation", "expected"), [(None, [2, 5]), (3, [2, 5]), (6, [5, 2])])
def test_image_size_is_the_one_detectron2_sees(tmp_path, suffix, orientation, expected):
    from detectron2.data.detection_utils import read_image

    path = str(tmp_path / f"image.{suffix}")
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(np.zeros((2, 5, 3), np.uint8)).save(path, exif=exif)
    assert read_image_size(path) == expected
    assert list(read_image(path, "RGB").shape[:2]) == expected


def test_an_unreadable_image_is_named():
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file, pytest.raises(InputError) as error:
        read_image_size(file.name)
    assert file.name in str(error.value)


def test_check_map_size_names_both_files():
    record = make_record("i.png", "i", [2, 3])
    check_map_size(record, "m.png", [2, 3])
    with pytest.raises(InputError, match=r"m\.png is 4x2 pixels, but its image i\.png is 3x2"):
        check_map_size(record, "m.png", [2, 4])


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_files_are_named_and_the_good_ones_remembered(tmp_path, workers):
    paths = write_files(tmp_path, [*range(30), "b1", *range(30, 40), "b2"])
    bad = [paths[30], paths[41]]
    cache = str(tmp_path / "cache.json.gz")
    with pytest.raises(InputErrors) as caught:
        scan_files(paths, refuse_b, cache, workers)
    assert caught.value.messages == [f"{path}: refused" for path in bad]
    assert str(caught.value) == f"{bad[0]}: refused (and 1 more like this)"
    with gzip.open(cache, "rt") as file:
        assert set(json.load(file)["files"]) == set(paths) - set(bad)
