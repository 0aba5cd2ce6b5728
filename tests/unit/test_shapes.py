import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mtfixmatch.formats.shapes import (
    PackedShapes,
    Row,
    Runs,
    ShapeMap,
    bounds_of,
    decode_shape,
    run_lengths,
)
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.labels import IGNORE_LABEL, INVALID_LABEL

SIZE = (20, 30)


def encode(shape):
    return decode_shape(json.dumps(shape).encode())


def draw(*shapes, size=SIZE, unpainted=0):
    """A map in which shape i has class i + 1."""
    packed = PackedShapes.pack([Row(str(i), i, shape) for i, shape in enumerate(shapes)])
    classes = bytes(range(1, len(shapes) + 1))
    return ShapeMap(packed.data, classes, unpainted).read("labels.json", size)


def compressed(mask):
    counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode()}


def uncompressed(mask):
    flat = np.append(0, mask.T.ravel().astype(int))
    ends = np.append(np.flatnonzero(np.diff(flat)), mask.size)
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def random_masks():
    rng = np.random.default_rng(0)
    whole, none = np.ones(SIZE, bool), np.zeros(SIZE, bool)
    blobs = [rng.random(SIZE) < share for share in (0.02, 0.5, 0.98)]
    halves = [np.arange(SIZE[1])[None] < 15 + none, np.arange(SIZE[0])[:, None] < 10 + none]
    return [whole, none, *blobs, *halves]


# Runs


def test_runs_by_hand():
    """Down the columns, zeros first: two zeros, three ones, one zero."""
    assert draw(encode({"size": [2, 3], "counts": [2, 3, 1]}), size=(2, 3)).tolist() == [
        [0, 1, 1],
        [0, 1, 0],
    ]


@pytest.mark.parametrize("write", [compressed, uncompressed])
@pytest.mark.parametrize("mask", random_masks(), ids=range(7))
def test_runs_are_read_as_they_were_written(write, mask):
    shape = encode(write(mask))
    assert np.array_equal(draw(shape), mask)
    assert np.array_equal(run_lengths(shape), run_lengths(encode(uncompressed(mask))))


def test_long_runs():
    """Run lengths of several characters, and differences below 0."""
    mask = np.zeros((3000, 40), bool)
    mask[5:2900, 7], mask[100:, 8], mask[:3, 30] = True, True, True
    assert np.array_equal(draw(encode(compressed(mask)), size=mask.shape), mask)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([], "do not fill"),
        ([1], "do not fill"),
        ([2, 3, 2], "do not fill"),
        ([2**31, 3], "negative or too large"),
        ([-2, 5, 3], "negative or too large"),
        ([2, "3", 1], "no polygons or runs"),
        ([2, None, 1], "no polygons or runs"),
        ("", "broken"),
        ("203", "do not fill"),
        ("2o", "broken"),
        ("oooooooooo0", "broken"),
        ("2\u0661", "broken"),
        ("2 1", "broken"),
        ("N5", "do not fill"),
        (None, "no polygons or runs"),
    ],
)
def test_broken_runs(counts, reason):
    with pytest.raises(ValueError, match=reason):
        encode({"size": [2, 3], "counts": counts})


@pytest.mark.parametrize("size", [[0, 6], [-2, -3], [6], [1, 2, 3], [2.5, 2], [10**6, 10**6], None])
def test_sizes_that_no_image_has(size):
    with pytest.raises(ValueError, match="size"):
        encode({"size": size, "counts": [6]})


def test_a_mask_for_another_image_is_named():
    shape = encode({"size": [2, 3], "counts": [0, 6]})
    with pytest.raises(InputError, match=r"labels\.json: a mask is for \(2, 3\), not \(20, 30\)"):
        draw(shape)


# Polygons


def test_a_rectangle_covers_the_pixels_between_its_corners():
    expected = np.zeros(SIZE, int)
    expected[3:9, 5:12] = 1
    assert np.array_equal(draw([[5, 3, 12, 3, 12, 9, 5, 9]]), expected)


def test_later_shapes_cover_earlier_ones():
    first, second = [[0, 0, 10, 0, 10, 10, 0, 10]], [[5, 5, 15, 5, 15, 15, 5, 15]]
    found = draw(first, second, unpainted=IGNORE_LABEL)
    assert (found[0, 0], found[7, 7], found[12, 12], found[19, 0]) == (1, 2, 2, IGNORE_LABEL)
    assert draw(second, first)[7, 7] == 2  # the second of this order


def test_a_class_that_is_left_out_is_not_drawn():
    shape = [[0, 0, 10, 0, 10, 10, 0, 10]]
    packed = PackedShapes.pack([Row("a", 1, shape), Row("b", 2, shape), Row("a", 3, shape)])
    assert packed.counts == {"a": 2, "b": 1}
    found = ShapeMap(packed.data, bytes([3, INVALID_LABEL]), 7).read("x", SIZE)
    assert (found[0, 0], found[15, 15]) == (3, 7)


def test_polygons_are_drawn_as_by_pycocotools(tmp_path):
    """`annToMask` on a file of polygons of several parts, also over the border, and of masks."""
    rng = np.random.default_rng(1)
    shapes = [
        [np.round(rng.uniform([-5, -5], [35, 25], (n, 2)), 2).ravel().tolist() for n in (3, 7)]
        for _ in range(20)
    ]
    shapes += [uncompressed(random_masks()[3]), compressed(random_masks()[2])]
    content = {
        "images": [{"id": 1, "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "segmentation": shape}
            for i, shape in enumerate(shapes)
        ],
        "categories": [{"id": 1, "name": "x"}],
    }
    path = tmp_path / "polygons.json"
    path.write_text(json.dumps(content))
    coco = COCO(str(path))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        expected = coco.annToMask(annotation)
        assert np.array_equal(draw(encode(annotation["segmentation"])), expected)


@pytest.mark.parametrize(
    ("polygons", "reason"),
    [
        ([], "no polygon of at least 3 points"),
        ([[]], "no polygon of at least 3 points"),
        ([[1, 2, 3, 4]], "no polygon of at least 3 points"),
        ([[1, 2, 3, 4, 5]], "odd number"),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3]], "odd number"),
        ([[1, 2, 3, 4, 5, "6"]], "no polygons or runs"),
        ([[1, 2, 3, 4, 5, True]], "no polygons or runs"),
        ([[1, 2, 3, 4, 5, None]], "no polygons or runs"),
        ([1, 2, 3, 4, 5, 6], "no polygons or runs"),
        ([[1, 2, 3, 4, 5, 1e300]], "beyond 5000000 pixels"),
        ([[1, 2, -1e7, 4, 5, 6]], "beyond 5000000 pixels"),
        ([[0, 0, 4e6, 0, 0, 4e6]], "an outline of more than 5000000"),
        ("x", "no polygons or runs"),
        (None, "no polygons or runs"),
        ({}, "no polygons or runs"),
        (7, "no polygons or runs"),
    ],
)
def test_broken_polygons(polygons, reason):
    with pytest.raises(ValueError, match=reason):
        encode(polygons)


def test_a_part_without_an_area_covers_nothing():
    whole = [[5, 3, 12, 3, 12, 9, 5, 9]]
    assert np.array_equal(draw(encode([[1, 2, 3, 4], *whole])), draw(whole))


def test_the_greatest_polygon_takes_a_moment():
    far = 600_000.0
    found = draw(encode([[-far, -far, far, -far, far, far, -far, far]]))
    assert (found == 1).all()


def test_packed_shapes_survive_json():
    rows = [
        Row("a", "annotation 1", [[1.5, 2.25, 3.0, 4.0, 5.0, -6.0]]),
        Row("b", 2, Runs((2, 3), "203")),
        Row("a", 3, Runs((2, 3), [2, 3, 1])),
    ]
    packed = PackedShapes.pack(rows)
    again = PackedShapes.from_json(json.loads(json.dumps(packed.to_json())))
    assert again == packed and again.rows == rows
    assert packed.bounds == [1.5, -6.0, 5.0, 4.0] and bounds_of(rows[1].shape) is None
    assert PackedShapes.pack([]) == PackedShapes() and PackedShapes().rows == []
