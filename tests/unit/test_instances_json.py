import json

import pytest

from mtfixmatch.data.datasets.instances_json import read_instances
from tests.support.helpers import message_of


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


def write(folder, content):
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_what_is_kept(tmp_path):
    assert read_instances(write(tmp_path, make_content())) == {
        "categories": [[3, "cat"], [7, "dog"]],
        "images": [[11, "a.jpg", 20, 30], [12, "sub/b.png", 20, 30]],
        "annotations": [
            [1, 11, 7, 0, [2.0, 3.0, 10.0, 5.0]],
            [2, 11, 3, 1, [0.5, 0.0, 9.0, 9.0]],
        ],
    }


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ([2, 3, 0, 5], "[2, 3, 0, 5]"),
        ([2, 3, 5, -1], "[2, 3, 5, -1]"),
        ([float("nan"), 3, 5, 5], "[NaN, 3, 5, 5]"),
        ([2, 3, float("inf"), 5], "[2, 3, Infinity, 5]"),
        ([2, 3, 5], "[2, 3, 5]"),
        ([2, 3, 5, "6"], '[2, 3, 5, "6"]'),
        (None, "null"),
    ],
)
def test_a_bad_box_is_named(tmp_path, box, shown):
    content = make_content()
    content["annotations"][1]["bbox"] = box
    assert f"annotation 2 has bbox {shown}, expected" in message_of(
        read_instances, write(tmp_path, content)
    )


def change_image(content, **fields):
    content["images"][1] |= fields


def delete(content, section, field):
    del content[section][0][field]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("images"), "a list 'images'"),
        (lambda c: c.pop("annotations"), "a list 'annotations'"),
        (lambda c: c.update(categories={}), "a list 'categories'"),
        (lambda c: delete(c, "images", "width"), "needs 'width' (int)"),
        (lambda c: delete(c, "categories", "name"), "needs 'name' (str)"),
        (lambda c: delete(c, "annotations", "category_id"), "needs 'category_id' (int)"),
        (lambda c: c["annotations"].append("x"), "'annotations' entry \"x\" needs 'id' (int)"),
        (lambda c: c["annotations"][0].update(category_id=8), "annotation 1 has unknown category"),
        (lambda c: c["annotations"][0].update(image_id=8), "annotation 1 has unknown image_id 8"),
        (lambda c: c["annotations"][0].update(iscrowd=2), "annotation 1 has iscrowd 2"),
        (lambda c: c["categories"][0].update(id=3), "category id 3 occurs twice"),
        (lambda c: c["categories"][0].update(name="cat"), "category name 'cat' occurs twice"),
        (lambda c: change_image(c, id=11), "image id 11 occurs twice"),
        (lambda c: change_image(c, file_name="a.jpg"), "file_name 'a.jpg' occurs twice"),
        (lambda c: change_image(c, file_name="./a.jpg"), "file_name 'a.jpg' occurs twice"),
    ],
)
def test_a_bad_entry_is_explained(tmp_path, change, expected):
    content = make_content()
    change(content)
    assert expected in message_of(read_instances, write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"{", "is not valid JSON"), (b"[]", "a JSON object"), (b"\xff", "is not valid JSON")],
)
def test_a_file_that_is_no_json_object(tmp_path, content, expected):
    path = tmp_path / "boxes.json"
    path.write_bytes(content)
    assert expected in message_of(read_instances, str(path))


def test_a_missing_file_is_named(tmp_path):
    assert "cannot be read" in message_of(read_instances, str(tmp_path / "missing.json"))
