"""Labels written for other tools, read back by this project's readers or checked by hand."""

import json
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.inference.label_formats import FORMATS, write_format
from mtfixmatch.inference.label_formats.cvat import run_lengths
from mtfixmatch.inference.label_formats.label_studio import brush_runs
from mtfixmatch.tasks.auto_labels import HUMAN, AutoLabel, LabeledImage
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.labels import IGNORE_LABEL
from tests.support.auto_labels import (
    BOX_CLASSES,
    MAP_CLASSES,
    SIZE,
    annotation,
    record,
)
from tests.support.own_data import black, own_data, save

NETWORK = "net@0123456789ab"
CLASSES = {"detection": BOX_CLASSES, "segmentation": MAP_CLASSES}
HUMAN_BOX = annotation(0, 1, 2, 11, 7) | {"provenance": HUMAN}
OBJECT = annotation(2, 3, 4, 18, 14) | {"provenance": NETWORK, "score": 0.875}
UNSURE = annotation(1, 0, 0, 30, 5, crowd=1) | {"provenance": NETWORK, "score": 0.5}
BOXES = {"a.jpg": [HUMAN_BOX, OBJECT, UNSURE], "sub/b.jpg": [], "c.jpg": None}


@pytest.fixture
def data(tmp_path):
    """Three images: boxes and a map, no object, and no label."""
    pixels = np.full(SIZE, IGNORE_LABEL, np.uint8)
    pixels[2:4, 5:8], pixels[3, 6], pixels[10:] = 0, IGNORE_LABEL, 1
    save(tmp_path / "map.png", pixels)
    images = []
    for name, boxes in BOXES.items():
        path = tmp_path / "images" / name
        black(path)
        maps = {"map_file": str(tmp_path / "map.png"), "provenance": NETWORK}
        labels = {
            "detection": AutoLabel(boxes=boxes, num_classes=3 if boxes else 2),
            "segmentation": AutoLabel(**maps if name == "a.jpg" else {}),
        }
        own = record(name)
        images.append(LabeledImage(record=own, path=str(path), name=name, size=SIZE, labels=labels))
    return SimpleNamespace(root=tmp_path, images=images, pixels=pixels)


def write(data, name):
    return write_format(name, data.images, CLASSES, str(data.root / name))


def load(tasks=("detection",), **keys):
    return {x["image_id"]: x for x in own_data(tasks, **keys).load("TRAIN", FileScanner())}


def test_coco_boxes_are_read_back(data):
    (line,) = write(data, "coco")
    assert line.startswith("coco: detection: 1 images are not labeled for all classes")
    path = data.root / "coco" / "detection.json"
    content = json.loads(path.read_text())
    for section in ("images", "annotations", "categories"):
        assert [x["id"] for x in content[section]] == [1, 2, 3][: len(content[section])]
    assert [x.get("score") for x in content["annotations"]] == [None, 0.875, 0.5]
    assert [x["provenance"] for x in content["annotations"]] == [HUMAN, NETWORK, NETWORK]
    records = load(TRAIN={"IMAGES": str(data.root / "images"), "BOXES": str(path)})
    plain = [{k: x[k] for k in annotation(0, 0)} for x in BOXES["a.jpg"]]
    assert records["a.jpg"]["annotations"] == plain
    assert records["sub/b.jpg"]["annotations"] == []
    assert "annotations" not in records["c.jpg"]


def test_coco_masks_are_read_back(data):
    write(data, "coco")
    path = data.root / "coco" / "segmentation.json"
    files = {"IMAGES": str(data.root / "images"), "MAPS": str(path)}
    records = load(("segmentation",), TRAIN=files)
    reader = records["a.jpg"]["sem_seg_reader"]
    own = reader.read(records["a.jpg"]["sem_seg_file_name"], SIZE)
    assert np.array_equal(own, data.pixels)
    assert "sem_seg_reader" not in records["c.jpg"]
    content = json.loads(path.read_text())
    assert [(x["category_id"], x["area"], x["bbox"]) for x in content["annotations"]] == [
        (1, 5, [5, 2, 3, 2]),
        (2, 300, [0, 10, 30, 10]),
    ]


def test_yolo_is_read_back(data):
    lines = write(data, "yolo")
    assert [x for x in lines if "1 ignored regions" in x]
    assert [x for x in lines if x == "yolo: segmentation: the format has no maps, left out"]
    folder = data.root / "yolo" / "detection"
    rows = (folder / "labels" / "a.txt").read_text().splitlines()
    # Center 6, 4.5 and size 10, 5 of 30 x 20; center 10.5, 9 and size 15, 10.
    assert rows == [
        "0 0.20000000 0.22500000 0.33333333 0.25000000",
        "2 0.35000000 0.45000000 0.50000000 0.50000000",
    ]
    path = str(folder / "data.yaml")
    own = own_data(("detection",), TRAIN={"IMAGES": path, "BOXES": path})
    scan = FileScanner()
    assert own.class_names("detection", scan) == BOX_CLASSES
    records = {x["image_id"]: x for x in own.load("TRAIN", scan)}
    assert records.keys() == {"a.jpg", "sub/b.jpg"}  # a label file is a label
    boxes = [(x["category_id"], x["bbox"]) for x in records["a.jpg"]["annotations"]]
    assert [x for x, _ in boxes] == [0, 2]
    expected = [HUMAN_BOX["bbox"], OBJECT["bbox"]]
    assert np.allclose([x for _, x in boxes], expected, atol=1e-5)
    assert records["sub/b.jpg"]["annotations"] == []


def test_yolo_refuses_two_images_of_one_label_file(data):
    other = LabeledImage(**vars(data.images[0]) | {"name": "a.png"})
    data.images.append(other)
    with pytest.raises(InputError, match="another image has its name and another suffix"):
        write(data, "yolo")


def test_cvat_by_hand(data):
    assert write(data, "cvat") == []
    root = ElementTree.parse(data.root / "cvat" / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    labels = root.findall("meta/task/labels/label")
    assert [x.findtext("name") for x in labels] == BOX_CLASSES + MAP_CLASSES
    assert [x.findtext("name") for x in labels[0].iter("attribute")] == ["score", "unsure"]
    a, b, c = root.findall("image")
    assert a.attrib == {"id": "1", "name": "a.jpg", "width": "30", "height": "20"}
    assert (b.get("name"), len(b), len(c)) == ("sub/b.jpg", 0, 0)
    human, unsure = a.findall("box")[::2]
    corners = {"xtl": "1.00", "ytl": "2.00", "xbr": "11.00", "ybr": "7.00"}
    own = {"label": "cat", "source": "manual", "occluded": "0", "z_order": "0"}
    assert human.attrib == own | corners
    assert (unsure.get("label"), unsure.get("source")) == ("dog", "auto")
    values = {x.get("name"): x.text for x in unsure.findall("attribute")}
    assert values == {"score": "0.5", "unsure": "true"}
    road, sky = a.findall("mask")
    place = {"left": "5", "top": "2", "width": "3", "height": "2", "rle": "0, 4, 1, 1"}
    assert place.items() <= road.attrib.items() and road.get("label") == "road"
    assert (sky.get("rle"), sky.get("height")) == ("0, 300", "10")


@pytest.mark.parametrize(
    "rows, expected",
    [([[1]], "0, 1"), ([[0, 1], [1, 1]], "1, 3"), ([[1, 0], [0, 1]], "0, 1, 2, 1")],
)
def test_run_lengths(rows, expected):
    assert run_lengths(np.array(rows, bool)) == expected


def test_label_studio_by_hand(data):
    assert write(data, "label-studio") == []
    folder = data.root / "label-studio"
    a, b, c = json.loads((folder / "tasks.json").read_text())
    assert [x["id"] for x in (a, b, c)] == [1, 2, 3]
    path = str(data.root / "images" / "a.jpg").lstrip("/")
    assert a["data"] == {"image": f"/data/local-files/?d={path}"}
    assert (b["annotations"], b["predictions"], c["predictions"]) == ([], [], [])
    (human,) = a["annotations"][0]["result"]
    value = human["value"]
    assert [value[x] for x in ("x", "y", "width", "height")] == pytest.approx(
        [100 / 30, 10, 1000 / 30, 25]
    )
    assert value["rectanglelabels"] == ["cat"] and "score" not in human
    (prediction,) = a["predictions"]
    assert (prediction["model_version"], prediction["score"]) == (NETWORK, 0.5)
    box, unsure, road, sky = prediction["result"]
    assert (box["score"], box["original_width"], box["original_height"]) == (0.875, 30, 20)
    assert "meta" not in box and unsure["meta"] == {"text": ["unsure"]}
    assert road["value"]["brushlabels"] == ["road"] and sky["value"]["format"] == "rle"
    assert sky["value"]["rle"] == brush_runs(data.pixels == 1)
    assert len({x["id"] for x in (human, box, unsure, road, sky)}) == 5
    view = ElementTree.parse(folder / "interface.xml").getroot()
    assert [x.tag for x in view] == ["Image", "RectangleLabels", "BrushLabels"]
    names = [x.get("name") for x in view]
    assert names == [human["to_name"], human["from_name"], road["from_name"]]
    assert [x.get("value") for x in view.iter("Label")] == BOX_CLASSES + MAP_CLASSES


def test_brush_runs_by_hand():
    """One pixel of 0 and two of 255, in four channels: runs of 4 and of 8."""
    header = f"{12:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    bits = header + "1" + "00" + "011" + "00000000" + "1" + "00" + "111" + "11111111"
    bits += "0" * (-len(bits) % 8)
    expected = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert brush_runs(np.array([[False, True, True]])) == expected


@pytest.mark.parametrize(
    "length, parts", [(2, 1), (3, 1), (64, 1), (65, 1), (16384, 1), (16385, 2), (40000, 3)]
)
def test_long_runs_are_divided(length, parts):
    bits = "".join(f"{x:08b}" for x in brush_runs(np.ones((1, length), bool)))[53:]
    runs, total = 0, 0
    while bits.startswith("1"):
        size = (3, 4, 8, 16)[int(bits[1:3], 2)]
        total += int(bits[3 : 3 + size], 2) + 1
        assert bits[3 + size : 11 + size] == "1" * 8
        bits, runs = bits[11 + size :], runs + 1
    assert (runs, total) == (parts, 4 * length) and not bits.strip("0") and len(bits) < 8


@pytest.mark.parametrize("name", FORMATS)
def test_a_dataset_without_a_label_of_a_task(data, name):
    images = [x for x in data.images if x.name == "c.jpg"]
    write_format(name, images, CLASSES, str(data.root / name))
