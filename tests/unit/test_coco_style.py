import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from mtfixmatch.data.datasets.coco_style import load_coco_style
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import REPOSITORY

COCO_SMALL = REPOSITORY.parent / "shared" / "data" / "coco_small"
HEIGHT, WIDTH = 20, 30
KEY = "DATASETS.COCO_STYLE.TRAIN"


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def annotation(number, image, bbox, category=7, **other):
    return {"id": number, "image_id": image, "bbox": bbox, "category_id": category, **other}


def make_content():
    """Images 11 and 12 are listed, the others of the folder are not; 12 has no annotation."""
    return {
        "images": [
            {"id": 11, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 12, "file_name": "sub/b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            annotation(1, 11, [2, 3, 10, 5]),
            annotation(2, 11, [-0.5, 0, 30.9, 20.25], category=3, iscrowd=1),
        ],
    }


class Dataset:
    """A small dataset on disk: a.jpg both labels, sub/b.png boxes, c.jpg a map, d.jpg nothing."""

    def __init__(self, root):
        self.images, self.maps = root / "images", root / "maps"
        self.boxes = root / "boxes.json"
        for name in ("a.jpg", "sub/b.png", "c.jpg", "d.jpg"):
            save(self.images / name, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        (self.images / "notes.txt").write_text("not an image")
        for name in ("a.png", "c.png"):
            save(self.maps / name, np.array([[0, 1, 255]] * HEIGHT, np.uint8).repeat(10, axis=1))
        self.content = make_content()

    def load(self, **options):
        self.boxes.write_text(json.dumps(self.content))
        defaults = {
            "images": str(self.images),
            "boxes": str(self.boxes),
            "maps": str(self.maps),
            "thing_classes": [],
            "sem_seg_classes": ["road", "sky"],
            "ignore_label": 255,
            "key": KEY,
            "scan": FileScanner(),
        }
        return load_coco_style(**{**defaults, **options})

    def message(self, **options):
        with pytest.raises(InputError) as error:
            self.load(**options)
        message = str(error.value)
        assert "\n" not in message
        return message


@pytest.fixture
def data(tmp_path):
    return Dataset(tmp_path)


def test_what_is_labeled(data):
    records, _ = data.load()
    assert [record["image_id"] for record in records] == ["a.jpg", "c.jpg", "d.jpg", "sub/b.png"]
    labeled = [["annotations" in r, "sem_seg_file_name" in r] for r in records]
    assert labeled == [[True, True], [False, True], [False, False], [True, False]]
    assert records[3]["annotations"] == []
    assert all((r["height"], r["width"]) == (HEIGHT, WIDTH) for r in records)
    assert records[3]["file_name"] == str(data.images / "sub/b.png")


def test_boxes_become_corners_inside_the_image(data):
    records, classes = data.load()
    assert classes == ["cat", "dog"]
    assert records[0]["annotations"] == [
        {
            "bbox": [2.0, 3.0, 12.0, 8.0],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 1,
            "iscrowd": 0,
        },
        {
            "bbox": [0.0, 0.0, 30.0, 20.0],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "iscrowd": 1,
        },
    ]


def test_given_classes_set_the_order(data):
    records, classes = data.load(thing_classes=["dog", "cat"])
    assert classes == ["dog", "cat"]
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1]


def test_only_boxes_or_only_maps(data):
    records, _ = data.load(maps="", sem_seg_classes=[])
    assert not any("sem_seg_file_name" in record for record in records)
    records, classes = data.load(boxes="", thing_classes=["x"])
    assert classes == ["x"]
    assert not any("annotations" in record for record in records)
    records, classes = data.load(boxes="", maps="")
    assert (len(records), classes) == (4, [])


def test_lut(data):
    lut = np.frombuffer(data.load()[0][0]["sem_seg_lut"], np.uint8)
    assert lut.tolist() == [0, 1, *[254] * 253, 255]
    records, _ = data.load(boxes="", sem_seg_classes=[f"{i}" for i in range(254)], ignore_label=255)
    assert np.frombuffer(records[0]["sem_seg_lut"], np.uint8).tolist() == [*range(254), 254, 255]


def test_another_ignore_label(data):
    save(data.maps / "a.png", np.full((HEIGHT, WIDTH), 2, np.uint8))
    (data.maps / "c.png").unlink()
    lut = np.frombuffer(data.load(ignore_label=2)[0][0]["sem_seg_lut"], np.uint8)
    assert lut.tolist() == [0, 1, 255, *[254] * 253]


def test_the_cache_gives_the_same_records_and_sees_changes(data, tmp_path):
    options = {"scan": FileScanner(cache_dir=str(tmp_path / "cache"), workers=2)}
    first = data.load(**options)
    assert data.load(**options) == first == data.load()
    data.content["annotations"].pop()
    assert len(data.load(**options)[0][0]["annotations"]) == 1
    save(data.maps / "a.png", np.full((HEIGHT, WIDTH), 9, np.uint8))
    assert "id 9" in data.message(**options)


@pytest.mark.parametrize(
    "box",
    [
        [25, 3, 7, 5],
        [2, 3, 5, 19],
        [-1.5, 0, 5, 5],
        [40, 3, 5, 5],
        [30.5, 3, 0.4, 5],
    ],
)
def test_a_box_outside_its_image_is_named(data, box):
    data.content["annotations"].append(annotation(99, 11, box))
    message = data.message()
    assert str(data.boxes) in message and "annotation 99 has bbox" in message
    assert str([float(x) for x in box]) in message
    assert f"{data.images / 'a.jpg'} of 30x20 pixels" in message


def test_thing_classes_that_differ_are_listed(data):
    message = data.message(thing_classes=["dog", "horse", "cow"])
    assert f"{KEY}.BOXES" in message and "DATASETS.COCO_STYLE.THING_CLASSES" in message
    assert str(data.boxes) in message
    assert "lacks ['horse', 'cow']" in message and "adds ['cat']" in message


def test_thing_classes_named_twice(data):
    assert "THING_CLASSES names a class twice" in data.message(thing_classes=["dog", "cat", "cat"])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"file_name": "b.png"}, "image 'b.png' is not in the folder"),
        ({"width": 31}, "image 'sub/b.png' has 31x20 pixels there, but"),
        ({"height": 30, "width": 20}, "image 'sub/b.png' has 20x30 pixels there, but"),
    ],
)
def test_an_image_entry_that_does_not_fit_the_folder(data, fields, expected):
    data.content["images"][1] |= fields
    message = data.message()
    assert str(data.boxes) in message and expected in message
    assert str(data.images) in message


def test_missing_files_are_named(data, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    assert f"{KEY}.IMAGES: there is no folder '{nowhere}'" in data.message(images=nowhere)
    assert f"{KEY}.MAPS: there is no folder '{nowhere}'" in data.message(maps=nowhere)
    assert f"{nowhere}: cannot be read" in data.message(boxes=nowhere)
    assert f"{KEY}.IMAGES: there is no folder ''" in data.message(images="")
    Path(nowhere).mkdir()
    assert f"{KEY}.IMAGES: no file in {nowhere}" in data.message(images=nowhere)


def test_two_images_of_one_name(data):
    save(data.images / "a.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    message = data.message()
    assert f"{KEY}.IMAGES" in message
    assert str(data.images / "a.jpg") in message and str(data.images / "a.png") in message


def test_two_maps_of_one_name(data):
    save(data.maps / "a.PNG", np.zeros((HEIGHT, WIDTH), np.uint8))
    message = data.message()
    assert f"{KEY}.MAPS" in message
    assert str(data.maps / "a.PNG") in message and str(data.maps / "a.png") in message


def test_an_unreadable_image_is_named(data):
    (data.images / "d.jpg").write_bytes(b"no image")
    assert f"cannot read the image {data.images / 'd.jpg'}: " in data.message()


def test_a_map_of_another_size_names_both_files(data):
    save(data.maps / "c.png", np.zeros((HEIGHT, WIDTH - 1), np.uint8))
    message = data.message()
    assert f"{data.maps / 'c.png'} is 29x20" in message
    assert f"{data.images / 'c.jpg'} is 30x20" in message


@pytest.mark.parametrize("unknown", [2, 254])
def test_a_map_with_an_unknown_id_is_named(data, unknown):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4, 4] = unknown
    save(data.maps / "c.png", ids)
    message = data.message()
    assert f"{data.maps / 'c.png'}: id {unknown} is" in message
    assert "SEM_SEG_CLASSES" in message and "IGNORE_LABEL" in message


def test_maps_that_belong_to_no_image(data):
    for name in ("a", "c"):
        (data.maps / f"{name}.png").rename(data.maps / f"{name}_mask.png")
    message = data.message()
    assert f"{KEY}.MAPS" in message and str(data.maps) in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"sem_seg_classes": []},
            f"SEM_SEG_CLASSES is empty: name the classes of the maps in {KEY}",
        ),
        ({"sem_seg_classes": ["a", "a"]}, "SEM_SEG_CLASSES lists 2 classes, expected different"),
        ({"sem_seg_classes": [f"{i}" for i in range(255)]}, "lists 255 classes"),
        ({"ignore_label": 1}, "IGNORE_LABEL is 1, expected 2 to 255"),
        ({"ignore_label": 256}, "IGNORE_LABEL is 256, expected 2 to 255"),
    ],
)
def test_bad_classes_of_maps(data, options, expected):
    assert expected in data.message(**options)


@pytest.mark.skipif(not COCO_SMALL.is_dir(), reason=f"no data in {COCO_SMALL}")
@pytest.mark.parametrize(
    ("split", "images", "boxes", "crowds"), [("train", 26, 181, 1), ("val", 27, 174, 2)]
)
def test_real_data(tmp_path, split, images, boxes, crowds):
    records, classes = load_coco_style(
        images=str(COCO_SMALL / "images" / split),
        boxes=str(COCO_SMALL / f"instances_{split}.json"),
        maps=str(COCO_SMALL / "sem_seg" / split),
        thing_classes=[],
        sem_seg_classes=json.loads((COCO_SMALL / "sem_seg_classes.json").read_text()),
        ignore_label=255,
        key=KEY,
        scan=FileScanner(cache_dir=str(tmp_path), workers=2),
    )
    annotations = [a for record in records for a in record["annotations"]]
    assert (len(records), len(annotations)) == (images, boxes)
    assert sum(a["iscrowd"] for a in annotations) == crowds
    assert len(classes) == 12 and classes[0] == "accessory" and classes[-1] == "vehicle"
    for record in records:
        assert record["sem_seg_file_name"].endswith(f"{record['image_id'][:-4]}.png")
        for x0, y0, x1, y1 in (a["bbox"] for a in record["annotations"]):
            assert 0 <= x0 < x1 <= record["width"] and 0 <= y0 < y1 <= record["height"]
