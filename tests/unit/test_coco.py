import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mtfixmatch.formats.coco import read_coco
from tests.support.helpers import message_of

SECTIONS = ("images", "annotations", "categories")


def make_content():
    return {
        "info": {"year": 2024},
        "images": [
            {"id": 11, "file_name": "a.jpg", "height": 20, "width": 30, "license": 1},
            {"id": 12, "file_name": "sub/b.png", "height": 20, "width": 30},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 11, "category_id": 7, "bbox": [2, 3, 10, 5], "area": 50},
            {"id": 2, "image_id": 11, "category_id": 3, "bbox": [0.5, 0, 9, 9], "iscrowd": 1},
        ],
    }


BOXES = [
    [1, 0, 2.0, 3.0, 12.0, 8.0, "annotation 1"],
    [0, 1, 0.5, 0.0, 9.5, 9.0, "annotation 2"],
]


def write(folder, content):
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return str(path)


def read(folder, change=lambda content: None):
    """The file with a change, and its faults as one text."""
    content = make_content()
    change(content)
    result = read_coco(write(folder, content))
    return result, "; ".join(f"{k}: {line}" for k, x in result["faults"].items() for line in x)


def test_what_is_kept(tmp_path):
    assert read(tmp_path)[0] == {
        "classes": ["cat", "dog"],
        "images": [["a.jpg", [20, 30], BOXES], ["sub/b.png", [20, 30], []]],
        "faults": {},
        "num_entries": 6,
    }


def convert_ids(content, kind):
    for entry in (entry for section in SECTIONS for entry in content[section]):
        entry |= {key: kind(x) for key, x in entry.items() if key.endswith("id")}


def mix_ids(content):
    for image in content["images"]:
        image["id"] = str(image["id"])


def name_ids(content):
    convert_ids(content, lambda number: f"id{number}")


@pytest.mark.parametrize(
    "change",
    [lambda c: convert_ids(c, str), lambda c: convert_ids(c, float), mix_ids, name_ids],
)
def test_ids_are_keys_of_any_kind(tmp_path, change):
    result, faults = read(tmp_path, change)
    assert faults == "" and result["classes"] == ["cat", "dog"]
    assert [box[:-1] for box in result["images"][0][2]] == [box[:-1] for box in BOXES]


def test_annotations_without_ids_are_named_by_number(tmp_path):
    result, faults = read(tmp_path, lambda c: [a.pop("id") for a in c["annotations"]])
    assert [box[-1] for box in result["images"][0][2]] == [f"annotation number {i}" for i in (1, 2)]
    assert faults == ""


def test_null_is_as_absent(tmp_path):
    def change(content):
        content["annotations"][0]["iscrowd"] = None
        content["images"][0] |= {"height": None, "width": None}
        content["categories"][0]["supercategory"] = None

    result, faults = read(tmp_path, change)
    assert result["images"][0] == ["a.jpg", None, BOXES] and faults == ""


def test_a_byte_order_mark_and_nan(tmp_path):
    content = make_content()
    content["annotations"][0]["area"] = float("nan")
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    assert read_coco(str(path))["images"][0][2] == BOXES


# A mask 2 to 12 across and 3 to 8 down: ten columns of five pixels, from pixel 20 * 2 + 3 on.
MASK = np.zeros((20, 30), np.uint8)
MASK[3:8, 2:12] = 1
COUNTS = [43, *[5, 15] * 9, 5, 600 - 43 - 9 * 20 - 5]
COMPRESSED = coco_mask.encode(np.asfortranarray(MASK))["counts"].decode()


@pytest.mark.parametrize(
    "shape",
    [
        [[2, 3, 12, 3, 12, 8, 2, 8]],
        [[2, 3, 12, 3, 12, 4], [2, 8, 5, 8, 5, 7]],
        {"size": [20, 30], "counts": COMPRESSED},
        {"size": [20, 30], "counts": COUNTS},
    ],
)
@pytest.mark.parametrize("box", [None, []])
def test_an_absent_box_is_that_of_the_segmentation(tmp_path, shape, box):
    result, faults = read(
        tmp_path, lambda c: c["annotations"][0].update(bbox=box, segmentation=shape)
    )
    assert faults == "" and result["images"][0][2] == BOXES


@pytest.mark.parametrize(
    "shape",
    [
        None,
        [],
        [[1, 2, 3]],
        [["a", 2]],
        {"size": [20, 30]},
        {"size": [20, 30], "counts": [600, 1]},
        {"size": [20, 30], "counts": [-1, 601]},
        {"size": [10**6, 10**6], "counts": [5, 5]},
        {"size": "x", "counts": COMPRESSED},
    ],
)
def test_a_segmentation_without_a_box_is_a_fault(tmp_path, shape):
    def change(content):
        del content["annotations"][0]["bbox"]
        content["annotations"][0]["segmentation"] = shape

    result, faults = read(tmp_path, change)
    assert "annotation 1 has bbox null" in faults and result["images"][0][2] == BOXES[1:]


# Categories


def test_the_root_of_roboflow_is_no_class(tmp_path):
    def change(content):
        for category in content["categories"]:
            category["supercategory"] = "animals"
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})

    assert read(tmp_path, change)[0]["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("root_id", [0, 9])
def test_an_unused_category_named_like_a_class_is_no_class(tmp_path, root_id):
    root = {"id": root_id, "name": "dog"}
    result, faults = read(tmp_path, lambda c: c["categories"].append(root))
    assert sorted(result["classes"]) == ["cat", "dog"] and faults == ""
    assert [result["classes"][box[0]] for box in result["images"][0][2]] == ["dog", "cat"]


def test_a_class_that_is_its_own_supercategory(tmp_path):
    """As the person of COCO, here without a box."""
    person = {"id": 1, "name": "person", "supercategory": "person"}
    result, _ = read(tmp_path, lambda c: c["categories"].append(person))
    assert result["classes"] == ["person", "cat", "dog"]


def test_two_used_categories_of_one_name_are_one_class(tmp_path):
    def change(content):
        content["categories"].append({"id": 8, "name": "dog"})
        box = {"id": 3, "image_id": 12, "category_id": 8, "bbox": [0, 0, 1, 1]}
        content["annotations"].append(box)

    result, faults = read(tmp_path, change)
    assert result["classes"] == ["cat", "dog"] and result["images"][1][2][0][0] == 1
    assert "taken as one class" in faults and "[7, 8] are 'dog'" in faults


# Faults


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ([float("nan"), 3, 5, 5], "[null, 3, 5, 5]"),
        ([2, 3, float("inf"), 5], "[2, 3, null, 5]"),
        ([2, 3, 5], "[2, 3, 5]"),
        ([2, 3, 5, "6"], '[2, 3, 5, "6"]'),
        ({"x": 1}, '{"x": 1}'),
        (None, "null"),
    ],
)
def test_a_bad_box_is_left_out_and_named(tmp_path, box, shown):
    result, faults = read(tmp_path, lambda c: c["annotations"][1].update(bbox=box))
    assert result["images"][0][2] == BOXES[:1]
    assert f"{tmp_path / 'boxes.json'}: annotation 2 has bbox {shown}, expected [x, y" in faults


@pytest.mark.parametrize(
    ("change", "expected", "num_boxes"),
    [
        (lambda c: c["annotations"].append("x"), "'annotations' entry \"x\" is no object", 2),
        (lambda c: c["images"].insert(0, None), "'images' entry null is no object", 2),
        (lambda c: c["annotations"][0].update(category_id=8), "annotation 1 has category_id 8", 1),
        (lambda c: c["annotations"][0].update(image_id=8), "annotation 1 has image_id 8", 1),
        (lambda c: c["annotations"][0].update(image_id=[8]), "annotation 1 has image_id [8]", 1),
        (lambda c: c["annotations"][0].update(iscrowd=2), "annotation 1 has iscrowd 2", 1),
        (lambda c: c["categories"][0].update(name=None), "category {id: 7, name: null} needs", 1),
        (lambda c: c["categories"][0].pop("id"), 'category {id: null, name: "dog"} needs', 1),
        (lambda c: c["images"][1].update(file_name=7), "image {id: 12, file_name: 7} needs", 2),
        (lambda c: c["images"][1].update(id=True), "image {id: true, file_name: ", 2),
        (lambda c: c["images"][1].update(id=11), "image id 11 is that of 'a.jpg' and others", 0),
    ],
)
def test_a_bad_entry_is_left_out_and_explained(tmp_path, change, expected, num_boxes):
    result, faults = read(tmp_path, change)
    assert expected in faults and str(tmp_path / "boxes.json") in faults
    assert sum(len(boxes) for _, _, boxes in result["images"]) == num_boxes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("images"), "with a list 'images'"),
        (lambda c: c.update(annotations=None), "with a list 'annotations'"),
        (lambda c: c.update(categories={}), "has another form than expected"),
        (lambda c: c["categories"][0].update(id=3), "category id 3 has two names, 'dog' and 'cat'"),
    ],
)
def test_a_file_of_another_form_is_an_error(tmp_path, change, expected):
    content = make_content()
    change(content)
    assert expected in message_of(read_coco, write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not valid JSON"),
        (b"[]", "has another form than expected"),
        (b"\xff", "is not valid JSON"),
        (b'{"x": ' + b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_file_that_is_no_json_object(tmp_path, content, expected):
    path = tmp_path / "boxes.json"
    path.write_bytes(content)
    assert expected in message_of(read_coco, str(path))


def test_a_missing_file_is_named(tmp_path):
    assert "cannot be read" in message_of(read_coco, str(tmp_path / "missing.json"))
