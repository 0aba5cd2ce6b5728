"""Maps in PNGs: what their values and colors mean."""

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.formats.value_maps import MAX_LISTED, ValueMap, scan_colors, scan_values
from mtfixmatch.utils.images import read_label_map, read_map_colors, read_map_values
from mtfixmatch.utils.labels import IGNORE_LABEL, INVALID_LABEL
from tests.support.map_folder import HEIGHT, WIDTH, MapFolder, full, grey_png, halves
from tests.support.own_data import own_data

X = IGNORE_LABEL
VALUES = "DATASETS.COCO_STYLE.MAP_VALUES"


@pytest.fixture
def data(tmp_path):
    return MapFolder(tmp_path)


# Reading of PNGs


@pytest.mark.parametrize(
    ("bits", "row", "values"),
    [
        (1, [0b01100000], [0, 1, 1, 0]),
        (2, [0b00011011], [0, 1, 2, 3]),
        (4, [0x01, 0xEF], [0, 1, 14, 15]),
        (8, [0, 1, 254, 255], [0, 1, 254, 255]),
        (16, [0, 0, 0, 255, 1, 0, 255, 255], [0, 255, 256, 65535]),
    ],
)
def test_grey_values_of_all_depths(tmp_path, bits, row, values):
    path = tmp_path / "map.png"
    path.write_bytes(grey_png([bytes(row)] * 2, 4, bits))
    found = read_map_values(str(path))
    assert found.dtype == np.int32 and found.tolist() == [values] * 2
    if bits <= 8:
        assert read_label_map(str(path)).tolist() == [values] * 2


def test_colors_are_numbers(data):
    colors = np.array([[[1, 2, 3], [255, 255, 255], [0, 0, 1]]], np.uint8)
    path = str(data.save("map.png", colors))
    expected = [[1 + 2 * 256 + 3 * 65536, 0xFFFFFF, 65536]]
    assert read_map_colors(path).tolist() == expected
    alpha = np.array([[[0], [7], [255]]], np.uint8)
    data.save("map.png", np.concatenate([colors, alpha], axis=2))
    assert read_map_colors(path).tolist() == expected
    data.save("map.png", np.array([[1, 255]], np.uint8))
    assert read_map_colors(path).tolist() == [[0x010101, 0xFFFFFF]]


def test_a_scan_counts_values(data):
    path = str(data.save("map.png", np.array([[7, 7, 0], [7, 255, 0]], np.uint8)))
    assert scan_values(path) == [2, 3, [0, 7, 255], [2, 3, 1], 3]
    grey = [x * 0x010101 for x in (0, 7, 255)]
    assert scan_colors(path) == [2, 3, grey, [2, 3, 1], 3]


def test_a_scan_lists_the_values_of_most_pixels(data):
    colors = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    colors[10:20, :] = 5, 6, 7
    *_, values, counts, total = scan_colors(str(data.save("map.png", colors)))
    number = 5 + 6 * 256 + 7 * 65536
    assert len(values) == len(counts) == MAX_LISTED and values == sorted(values)
    assert counts[values.index(number)] == 600 and total == 3001


def test_a_table_looks_values_up():
    table = ValueMap.of({7: 0, 300: 1, 9: IGNORE_LABEL}, has_colors=False)
    expected = [INVALID_LABEL, 0, X, 1, INVALID_LABEL, INVALID_LABEL]
    assert table.look_up([0, 7, 9, 300, 299, 70000]).tolist() == expected
    assert table.look_up_table() is None
    assert ValueMap.of({}, has_colors=False).look_up([1]).tolist() == [INVALID_LABEL]
    lut = ValueMap.of({255: 3, 0: 1}, has_colors=False).look_up_table()
    assert lut == bytes([1, *[INVALID_LABEL] * 254, 3])
    assert ValueMap.of({0: 1}, has_colors=True).look_up_table() is None


# MAP_VALUES


def test_values_of_cityscapes(data):
    """labelIds: most values are no class, 255 is ignored without being named."""
    data.save("maps/a.png", halves(7, 0))
    data.save("maps/b.png", halves(255, 23))
    table = [[7, "road"], [23, "sky"], [0, ""]]
    found = data.read(MAP_VALUES=table)
    assert found["a"][0].tolist() == [0, 0, 0, X, X, X]
    assert found["b"][0].tolist() == [X, X, X, 1, 1, 1]
    record = data.records(MAP_VALUES=table)["a"]
    assert len(record["sem_seg_lut"]) == 256 and "sem_seg_reader" not in record
    assert (
        data.note("never occur") == "classes that never occur in the labels of the training: "
        "1 ('tree' (segmentation))"
    )


def test_masks_of_0_and_255(data):
    """The table wins over IGNORE_LABEL; its own message says how it is written."""
    data.save("maps/a.png", halves(0, 255))
    data.read(SEM_SEG_CLASSES=["background", "building"])
    note = data.note("hold 0 and 255 alone")
    table = [[0, "background"], [255, "building"]]
    assert note.endswith(f"set {VALUES} to {table}")
    found = data.read(SEM_SEG_CLASSES=[], MAP_VALUES=table)
    assert found["a"][0].tolist() == [0, 0, 0, 1, 1, 1]
    assert data.notes.messages() == []


def test_masks_of_one_bit(data):
    path = data.save("maps/a.png", halves(False, True, bool))
    assert Image.open(path).mode == "1"
    assert data.read(SEM_SEG_CLASSES=["no", "yes"])["a"][0].tolist() == [0, 0, 0, 1, 1, 1]


def test_several_values_of_a_class(data):
    data.save("maps/a.png", halves(3, 200))
    table = [[3, "sky"], [200, "sky"], [1, "road"]]
    assert (data.read(MAP_VALUES=table)["a"] == 1).all()


@pytest.mark.parametrize("classes", [[], ["sky", "road"]])
def test_classes_of_the_table(data, classes):
    data.save("maps/a.png", full(5))
    table = [[9, "road"], [0, ""], [5, "sky"], [6, "sky"]]
    own = own_data(("segmentation",), MAP_VALUES=table, SEM_SEG_CLASSES=classes)
    assert own.listed_classes("segmentation") == (classes or ["road", "sky"])
    expected = 0 if classes else 1
    assert (data.read(MAP_VALUES=table, SEM_SEG_CLASSES=classes)["a"] == expected).all()


def test_colors(data):
    table = [[[128, 64, 128], "road"], [[70, 130, 180], "sky"], [[0, 0, 0], ""]]
    data.save("maps/a.png", halves((128, 64, 128), (0, 0, 0)))
    data.save("maps/b.png", halves((70, 130, 180, 9), (128, 64, 128, 0)))
    data.save("maps/c.png", full(0))
    found = data.read(MAP_VALUES=table)
    assert found["a"][0].tolist() == [0, 0, 0, X, X, X]
    assert found["b"][0].tolist() == [1, 1, 1, 0, 0, 0]
    assert (found["c"] == X).all()


def test_a_color_that_is_not_in_the_table(data):
    pixels = full((128, 64, 128))
    pixels[0, :3] = 128, 64, 127
    bad = data.save("maps/a.png", pixels)
    for name in "bc":
        data.save(f"maps/{name}.png", full((128, 64, 128)))
    assert set(data.read(MAP_VALUES=[[[128, 64, 128], "road"]])) == {"b", "c"}
    note = data.note("no class, left out")
    assert f"1 ({bad}: color [128, 64, 127] is not in {VALUES} (3 pixels) (image:" in note


def test_a_map_that_was_a_jpeg(data):
    rng = np.random.default_rng(0)
    data.save("maps/a.png", rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    message = data.message(MAP_VALUES=[[[1, 2, 3], "road"]])
    assert "1 of 1 maps with values that are no class" in message
    assert "(1 pixels), and 23 other values are so (was the map a JPEG, scaled or" in message


def test_colors_without_a_table(data):
    path = data.save("maps/a.png", full((1, 1, 1)))
    expected = "expected a single-channel or palette PNG, or colors in"
    assert f"{path}: {expected} {VALUES}, found a PNG of 8 bits, RGB" in data.message()


def test_an_unknown_value_names_its_pixels(data):
    pixels = halves(0, 1)
    pixels[2, 2:4] = 9
    path = data.save("maps/a.png", pixels)
    for name in "bc":
        data.save(f"maps/{name}.png", halves(0, 1))
    data.read()
    assert f"{path}: id 9 is neither a class of" in data.note("no class")
    assert "IGNORE_LABEL (2 pixels) (image:" in data.note("no class")
    data.read(MAP_VALUES=[[0, "road"], [1, "sky"]])
    assert f"{path}: id 9 is not in {VALUES} (2 pixels)" in data.note("no class")


def test_values_of_16_bits(data):
    data.save("maps/a.png", halves(1000, 65535, np.uint16))
    table = [[1000, "tree"], [65535, ""], [2, "road"]]
    assert data.read(MAP_VALUES=table)["a"][0].tolist() == [2, 2, 2, X, X, X]
    path = data.save("maps/a.png", halves(0, 1000, np.uint16))
    assert f"{path}: id 1000 is neither" in data.message()
    data.save("maps/a.png", halves(0, 2, np.uint16))
    assert data.read()["a"][0].tolist() == [0, 0, 0, 2, 2, 2]


def test_mostly_ignored_pixels_are_said(data):
    pixels = full(0)
    pixels[0] = 7
    data.save("maps/a.png", pixels)
    data.read(MAP_VALUES=[[0, ""], [7, "road"]])
    assert f"75 % of the pixels of the maps in {data.maps} are ignored ({VALUES})" in data.note(
        "75"
    )


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([7], "has 7: expected [0 to 65535, class name] or [[r, g, b], class name]"),
        ([[7]], "has [7]: expected"),
        ([["7", "road"]], "has ['7', 'road']: expected"),
        ([[7, None]], "has [7, None]: expected"),
        ([[7, 3]], "has [7, 3]: expected"),
        ([[-1, "road"]], "has [-1, 'road']: expected"),
        ([[65536, "road"]], "has [65536, 'road']: expected"),
        ([[True, "road"]], "has [True, 'road']: expected"),
        ([[[1, 2], "road"]], "has [[1, 2], 'road']: expected"),
        ([[[1, 2, 256], "road"]], "has [[1, 2, 256], 'road']: expected"),
        ([[[1, 2, 3.0], "road"]], "has [[1, 2, 3.0], 'road']: expected"),
        (["road"], "has 'road': expected"),
        ([[1, "road"], [[1, 1, 1], "sky"]], "has values and colors: expected one kind"),
        ([[1, "road"], [1, "sky"]], "has a value twice: [[1, 'road'], [1, 'sky']]"),
        ([[[1, 1, 1], "road"], [[1, 1, 1], ""]], "has a value twice"),
        ([[1, "dragon"]], "names 'dragon': DATASETS.COCO_STYLE.SEM_SEG_CLASSES is ['road',"),
    ],
)
def test_bad_tables(data, table, expected):
    data.save("maps/a.png", full(0))
    assert f"{VALUES} {expected}" in data.message(MAP_VALUES=table)


def test_ignore_label_may_be_any_value_beside_a_table(data):
    data.save("maps/a.png", halves(0, 7))
    found = data.read(MAP_VALUES=[[7, "road"]], IGNORE_LABEL=0)
    assert found["a"][0].tolist() == [X, X, X, 0, 0, 0]
    assert "IGNORE_LABEL is 256" in data.message(MAP_VALUES=[[7, "road"]], IGNORE_LABEL=256)
