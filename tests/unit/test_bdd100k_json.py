import json

import pytest

from mtfixmatch.data.datasets import bdd100k_json
from mtfixmatch.data.datasets.bdd100k_json import read_frames
from tests.support.helpers import message_of

CAR = 2


def make_label(category="car", box=(1, 2, 3, 4), **fields):
    box2d = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    return {"id": "0", "category": category, "attributes": {}, "box2d": box2d} | fields


def write(folder, content):
    path = folder / "det_train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def read_labels(folder, labels):
    content = read_frames(write(folder, [{"name": "a.jpg", "labels": labels}]))
    ((_, boxes, ignored),) = content["frames"]
    assert content["faults"] == []
    return boxes, ignored


def test_what_is_kept(tmp_path):
    first = make_label(box=(1.25, 0, 3, 4.5), attributes={"occluded": True, "crowd": False})
    frames = [
        {"name": "a.jpg", "attributes": {"weather": "clear"}, "labels": [first]},
        {"name": "b.jpg", "labels": []},
        {"name": "c.jpg", "labels": None},
        {"name": "d.jpg"},
    ]
    content = read_frames(write(tmp_path, frames))
    assert (content["faults"], content["num_entries"]) == ([], 5)
    assert content["frames"] == [
        ["a.jpg", [[CAR, 0, 1.25, 0, 3, 4.5]], {}],
        ["b.jpg", [], {}],
        ["c.jpg", None, {}],
        ["d.jpg", None, {}],
    ]
    assert read_frames(write(tmp_path, []))["frames"] == []


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("pedestrian", 0),
        ("person", 0),
        ("rider", 1),
        ("car", 2),
        ("van", 2),
        ("truck", 3),
        ("bus", 4),
        ("train", 5),
        ("motorcycle", 6),
        ("motor", 6),
        ("bicycle", 7),
        ("bike", 7),
        ("traffic light", 8),
        ("traffic sign", 9),
    ],
)
def test_classes_and_their_other_names(tmp_path, category, expected):
    boxes, ignored = read_labels(tmp_path, [make_label(category)])
    assert boxes == [[expected, 0, 1, 2, 3, 4]] and ignored == {}


def test_uncertain_objects_and_crowds_are_regions_to_ignore(tmp_path):
    labels = [
        make_label("other person"),
        make_label("other vehicle"),
        make_label("other vehicle", attributes={"crowd": True}),
        make_label("trailer", attributes=None),
        make_label("bike", attributes={"crowd": True}),
    ]
    boxes, ignored = read_labels(tmp_path, labels)
    assert [box[:2] for box in boxes] == [[0, 1], [2, 1], [2, 1], [3, 1], [7, 1]]
    assert ignored == {"other person": 1, "other vehicle": 2, "trailer": 1, "crowd": 1}


def test_lanes_and_areas_are_counted_and_left_out(tmp_path):
    poly = {"poly2d": [{"vertices": [[0, 1], [2, 3]], "types": "LL", "closed": False}]}
    names = ["lane", "lane/road curb", "lane/crosswalk", "drivable area", "area/alternative"]
    boxes, ignored = read_labels(tmp_path, [{"category": x} | poly for x in names] + [make_label()])
    assert boxes == [[CAR, 0, 1, 2, 3, 4]]
    assert ignored == {"lane": 3, "drivable area": 1, "area": 1}


def test_an_unknown_category_names_file_frame_and_category(tmp_path):
    frames = [{"name": "a.jpg"}, {"name": "b.jpg", "labels": [make_label("tram")]}]
    content = read_frames(write(tmp_path, frames))
    (message,) = content["faults"]
    assert content["frames"] == [["a.jpg", None, {}], ["b.jpg", [], {}]]
    assert "det_train.json: frame 'b.jpg' has the unknown category 'tram', expected ped" in message


@pytest.mark.parametrize(
    "box", [(1, 2, 3, float("nan")), (1, 2, float("inf"), 4), (1, "2", 3, 4), (1, 2, 3, True)]
)
def test_a_box_without_numbers_is_shown(tmp_path, box):
    path = write(tmp_path, [{"name": "a.jpg", "labels": [make_label(box=box)]}])
    content = read_frames(path)
    (message,) = content["faults"]
    assert content["frames"] == [["a.jpg", [], {}]] and content["num_entries"] == 2
    assert "frame 'a.jpg' has 'box2d' {\"x1\": 1" in message and "finite numbers" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"name": "a.jpg"}, "b.jpg"], "frame number 2 needs 'name' (str)"),
        ([{"labels": []}], "frame number 1 needs 'name' (str)"),
        ([{"name": "a.jpg"}, {"name": "a.jpg"}], "frame 'a.jpg' occurs twice"),
        ([{"name": "a.jpg", "labels": {}}], "frame 'a.jpg' needs 'labels', a list or null"),
        ([{"name": "a.jpg", "labels": [{}]}], "frame 'a.jpg' has a label without 'category'"),
        ([{"name": "a.jpg", "labels": [3]}], "frame 'a.jpg' has a label without 'category'"),
        ([{"name": "a.jpg", "labels": [{"category": "car"}]}], "has 'box2d' null, expected x1, y1"),
        ([{"name": "a.jpg", "labels": [make_label(box2d={"x1": 1})]}], "has 'box2d' {\"x1\": 1}"),
    ],
)
def test_an_entry_of_a_wrong_structure_is_left_out_and_named(tmp_path, content, expected):
    path = write(tmp_path, content)
    (fault,) = read_frames(path)["faults"]
    assert fault.startswith(f"{path}: ") and expected in fault


def test_another_kind_of_file_is_an_error(tmp_path):
    path = write(tmp_path, {"images": []})
    assert "a JSON list of frames" in message_of(read_frames, path)


TEXT = json.dumps(
    [
        {"name": "a.jpg", "labels": [make_label(box=(0.5, -1, 12.25, 3e2), manualShape=True)]},
        {"name": "b\\\"'é.jpg", "labels": None, "timestamp": 10000},
        {"name": "c.jpg", "labels": []},
    ],
    indent=1,
)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 11, 64, 1000])
def test_how_much_is_read_at_once_does_not_matter(tmp_path, monkeypatch, chunk):
    expected = [[CAR, 0, 0.5, -1, 12.25, 300.0]]
    monkeypatch.setattr(bdd100k_json, "CHUNK", chunk)
    frames = read_frames(write(tmp_path, TEXT))["frames"]
    assert [x[:2] for x in frames] == [["a.jpg", expected], ["b\\\"'é.jpg", None], ["c.jpg", []]]


@pytest.mark.parametrize("chunk", [7, 1 << 24])
def test_a_file_cut_anywhere_is_truncated(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(bdd100k_json, "CHUNK", chunk)
    for end in range(len(TEXT)):
        assert "is truncated" in message_of(read_frames, write(tmp_path, TEXT[:end])), TEXT[:end]


@pytest.mark.parametrize(
    ("old", "new"), [('"a.jpg",', '"a.jpg"'), ("[\n {", "[\n <"), (": null", ": nil")]
)
def test_what_is_no_json_is_shown(tmp_path, old, new):
    assert old in TEXT
    assert "is not valid JSON" in message_of(read_frames, write(tmp_path, TEXT.replace(old, new)))


def test_what_is_no_text_or_no_file(tmp_path):
    path = tmp_path / "det_train.json"
    path.write_bytes(b'[{"name": "\xff"}]')
    assert "cannot be read" in message_of(read_frames, str(path))
    assert "cannot be read" in message_of(read_frames, str(tmp_path))
