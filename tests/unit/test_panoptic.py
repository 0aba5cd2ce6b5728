"""Maps and boxes from COCO's panoptic annotations."""

import numpy as np
import pytest

from mtfixmatch.data.datasets.own_data import TRAIN
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.formats.coco import ORPHANS
from mtfixmatch.utils.labels import IGNORE_LABEL
from tests.support.map_folder import HEIGHT, WIDTH, MapFolder, full, halves
from tests.support.own_data import own_data

X = IGNORE_LABEL


@pytest.fixture
def data(tmp_path):
    return MapFolder(tmp_path)


def panoptic(data, *annotations, categories=("road", "sky", "tree"), folder="panoptic"):
    """Write (image, map of ids, id -> category) of each annotation; the things are the trees."""
    rows = []
    for image, ids, segments in annotations:
        colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
        data.save(f"{folder}/{image}.png", colors)
        entries = [{"id": i, "category_id": x} for i, x in segments.items()]
        for entry in entries:
            entry |= {"bbox": [1, 1, 2, 2], "iscrowd": 0}
        rows.append({"image_id": image, "file_name": f"{image}.png", "segments_info": entries})
    sides = {"height": HEIGHT, "width": WIDTH}
    content = {
        "images": [{"id": x, "file_name": f"{x}.png", **sides} for x in "abc"],
        "annotations": rows,
        "categories": [{"id": x, "name": x, "isthing": int(x == "tree")} for x in categories],
    }
    return data.write("panoptic.json", content)


def ids_of(left, right):
    return halves(left, right, np.int32)


def test_segments_have_the_class_of_their_category(data):
    """Id 0 is ignored, and the map is not partial; c has no annotation."""
    path = panoptic(
        data,
        ("a", ids_of(70_000, 0), {70_000: "sky"}),
        ("b", ids_of(1, 255), {1: "tree", 255: "tree"}),
    )
    found = data.read(str(path))
    assert found["a"][0].tolist() == [1, 1, 1, X, X, X]
    assert (found["b"] == 2).all() and "c" not in found
    record = data.records(str(path))["a"]
    assert record["sem_seg_file_name"] == str(data.root / "panoptic" / "a.png")
    assert "sem_seg_partial" not in record and "sem_seg_lut" not in record


def test_boxes_of_segments(data):
    path = str(panoptic(data, ("a", ids_of(5, 6), {5: "sky", 6: "tree"}), ("b", ids_of(0, 0), {})))
    files = {"IMAGES": str(data.images), "BOXES": path}
    own = own_data(("detection",), TRAIN=files)
    a, b, c = own.load(TRAIN, FileScanner())
    assert own.class_names("detection", FileScanner()) == ["tree"]
    assert [x["bbox"] for x in a["annotations"]] == [[1.0, 1.0, 3.0, 3.0]]
    assert b["annotations"] == [] and "annotations" not in c


def test_pngs_beside_their_json(data):
    path = panoptic(data, ("a", ids_of(5, 5), {5: "sky"}), folder="annotations")
    path = path.rename(data.root / "annotations" / "x.json")
    assert (data.read(str(path))["a"] == 1).all()


def test_a_segment_that_is_not_listed(data):
    path = panoptic(
        data,
        ("a", ids_of(5, 9), {5: "sky"}),
        ("b", ids_of(5, 5), {5: "sky"}),
        ("c", ids_of(5, 5), {5: "sky", 77: "tree"}),
    )
    assert set(data.read(str(path))) == {"b", "c"}
    png = data.root / "panoptic" / "a.png"
    expected = f"1 ({png}: id 9 is no segment of its image in {path} (12 pixels) (image:"
    assert expected in data.note("values that are no class")


def test_segments_of_other_classes_are_ignored(data):
    path = panoptic(
        data, ("a", ids_of(5, 6), {5: "sky", 6: "dog"}), categories=("road", "sky", "dog")
    )
    assert data.read(str(path))["a"][0].tolist() == [1, 1, 1, X, X, X]
    assert f"1 ({path}: 'dog')" in data.note("classes of panoptic annotations")


def test_pngs_that_are_not_there(data):
    rows = [(x, ids_of(5, 5), {5: "sky"}) for x in "abc"]
    path = panoptic(data, *rows)
    (data.root / "panoptic" / "b.png").unlink()
    assert set(data.read(str(path))) == {"a", "c"}
    image, png = data.images / "b.png", data.root / "panoptic" / "b.png"
    assert f"{path}: image {image} has the map {png}" in data.note("whose PNG does not exist")
    (data.root / "panoptic" / "a.png").unlink()
    assert "2 of 3 maps whose PNG does not exist" in data.message(str(path))


def test_faulty_segments(data):
    rows = [
        {"image_id": "a", "file_name": "a.png", "segments_info": [7]},
        {"image_id": "a", "file_name": "a.png", "segments_info": []},
        {"image_id": "z", "file_name": "z.png", "segments_info": []},
        {"image_id": "b", "file_name": "b\0.png", "segments_info": []},
        {"image_id": "b", "segments_info": []},
    ]
    segments = ({"id": 0}, {"id": 2**24}, {"id": "x"}, {"id": 5}, {"id": 5}, {"id": 6})
    entries = [x | {"category_id": "sky"} for x in segments]
    entries[-1]["category_id"] = 99
    rows.append({"image_id": "c", "file_name": "c.png", "segments_info": entries})
    data.save("panoptic/c.png", full((5, 0, 0)))
    data.save("panoptic/a.png", full((0, 0, 0)))
    images = [{"id": x, "file_name": f"{x}.png"} for x in "abc"]
    categories = [{"id": "sky", "name": "sky"}]
    content = {"images": images, "annotations": rows, "categories": categories}
    path = data.write("panoptic.json", content)
    found = data.read(str(path), max_faults=1.0)
    assert set(found) == {"a", "c"} and (found["c"] == 1).all() and (found["a"] == X).all()
    lines = "\n".join(data.notes.lines["entries of a wrong form, left out"])
    for part in (
        "segment 7 of a.png is no object",
        'annotation number 4 (image_id "b") needs a file_name',
        'annotation number 5 (image_id "b") needs',
        "segment 0 of c.png: expected another id for each, 1 to 16777215",
        "segment 16777216 of c.png",
        "segment x of c.png",
        "segment 5 of c.png",
    ):
        assert f"{path}: {part}" in lines
    assert lines.count("\n") == 6
    first, second = data.notes.lines[ORPHANS]
    assert first == f'{path}: annotation number 3 has image_id "z"'
    assert second == f"{path}: segment 6 of c.png has category_id 99"
    assert 'annotation number 2 of image_id "a"' in data.note("another one is for")
