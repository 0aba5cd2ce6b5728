"""Boxes of generated scenes, written in each format and read back."""

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.data.datasets import scan
from mtfixmatch.data.datasets.cityscapes import THING_LABELS, mask_extents
from mtfixmatch.data.datasets.own_data import TRAIN
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.street.scene import draw_scene
from mtfixmatch.utils.notes import Notes
from tests.support.box_writers import WRITERS, Box
from tests.support.own_data import own_data

HEIGHT, WIDTH = 96, 144
NAMES = {label.id: label.name for label in THING_LABELS}
CLASSES = list(NAMES.values())
EMPTY, NOT_LABELED = "2.png", ("4.png", "5.png")


def boxes_of(ids):
    instances = np.unique(ids[ids >= 1000])
    extents = mask_extents(ids, instances)
    return [Box(NAMES[i // 1000], x) for i, x in zip(instances.tolist(), extents, strict=True)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Folder with six images, and image -> boxes; one has none, and two are not labeled."""
    folder = tmp_path_factory.mktemp("scenes")
    images = {}
    for number in range(6):
        scene = draw_scene(np.random.default_rng(number), WIDTH, HEIGHT)
        Image.fromarray(scene.rgb).save(folder / f"{number}.png")
        images[f"{number}.png"] = boxes_of(scene.ids)
    images |= {EMPTY: [], **dict.fromkeys(NOT_LABELED)}
    assert sum(len(boxes or ()) for boxes in images.values()) >= 10
    return folder, images


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_read(name, workers, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "MIN_FILES_FOR_PROCESSES", 2)
    folder, images = scenes
    boxes = WRITERS[name](tmp_path, images, CLASSES, (HEIGHT, WIDTH))
    files = {"IMAGES": str(folder), "BOXES": boxes}
    own = own_data(("detection",), THING_CLASSES=CLASSES, TRAIN=files)
    for _ in range(2):  # the second time from the cache
        notes = Notes()
        records = own.load(TRAIN, FileScanner(str(tmp_path / "cache"), workers, notes=notes))
        assert {record["image_id"]: read(record) for record in records} == {
            key: expected(boxes, 1e-3 if name == "yolo" else 0) for key, boxes in images.items()
        }
    assert own.class_names("detection", FileScanner()) == CLASSES
    kinds = {"images without a label file, not labeled"} if name != "coco" else set()
    assert {kind for kind in notes.lines if not kind.startswith("classes")} == kinds


def read(record):
    """Rows of class and corners, in the order of the file; None if the image is not labeled."""
    if "annotations" not in record:
        return None
    assert "labeled_classes" not in record
    assert not any(x["iscrowd"] for x in record["annotations"])
    return [(CLASSES[x["category_id"]], x["bbox"]) for x in record["annotations"]]


def expected(boxes, tolerance):
    if boxes is None:
        return None
    return [(x.name, pytest.approx(list(x.corners), abs=tolerance, rel=0)) for x in boxes]
