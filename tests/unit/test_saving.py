"""What the tasks write to files of predictions: lists and layers, with figures by hand."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.formats.coco import read_coco
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.saving import SavedImage, SavedResults


@pytest.fixture(scope="module")
def tasks():
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.TASKS.DETECTION.CLASSES = ["cat", "Käfer"]
    cfg.TASKS.SEGMENTATION.CLASSES = ["sky", "road", "tree"]
    cfg.TASKS.SEGMENTATION.COLORS = [[0, 0, 255], [9, 9, 9], [0, 255, 0]]
    return {task.name: task for task in build_tasks(cfg)}


@pytest.fixture
def boxes():
    instances = Instances((10, 20))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 4.5, 8.0], [0.0, 0.0, 20.0, 10.0]]))
    instances.scores = torch.tensor([0.75, 0.5])
    instances.pred_classes = torch.tensor([1, 0])
    return {"instances": instances}


def test_a_record_has_the_boxes_over_the_threshold(tasks, boxes):
    task = tasks["detection"]

    def record(threshold):
        return task.record(boxes, task.result_target(boxes, threshold), threshold)

    first, second = [1, 0.75, 1.0, 2.0, 4.5, 8.0], [0, 0.5, 0.0, 0.0, 20.0, 10.0]
    assert record(0.0) == {"boxes": [first, second]}
    assert record(0.5) == {"boxes": [first]}
    assert record(0.75) == {"boxes": []}


def write_list(tasks, path, images):
    path.write_text("".join(tasks["detection"].list_parts(lambda: images, {"model": "a@1"})))
    return json.loads(path.read_text())


def test_boxes_are_a_coco_file(tasks, boxes, tmp_path):
    task, path = tasks["detection"], tmp_path / "boxes.json"
    records = {"detection": task.record(boxes, None, 0.0)}
    empty = {"detection": {"boxes": []}}
    images = [SavedImage("a/x.jpg", (10, 20), records), SavedImage("y.jpg", (3, 4), empty)]
    images.append(SavedImage("v.mp4#000007", (10, 20), records, "v.mp4", 7))
    content = write_list(tasks, path, images)
    assert content["info"] == {"model": "a@1"}
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "Käfer"}]
    frame = {"file_name": "v.mp4#000007", "height": 10, "width": 20, "video": "v.mp4", "frame": 7}
    assert content["images"] == [
        {"id": 1, "file_name": "a/x.jpg", "height": 10, "width": 20},
        {"id": 2, "file_name": "y.jpg", "height": 3, "width": 4},
        {"id": 3, **frame},
    ]
    assert [x["image_id"] for x in content["annotations"]] == [1, 1, 3, 3]
    expected = {"category_id": 2, "bbox": [1.0, 2.0, 3.5, 6.0], "area": 21.0, "score": 0.75}
    assert content["annotations"][0] == {"id": 1, "image_id": 1, "iscrowd": 0, **expected}

    coco = COCO(str(path))
    assert coco.getImgIds() == [1, 2, 3] and coco.getAnnIds(imgIds=[3], catIds=[1]) == [4]
    own = read_coco(str(path))
    assert own["classes"] == ["cat", "Käfer"] and not own["faults"]
    name, size, found = own["images"][0]
    assert (name, size) == ("a/x.jpg", [10, 20])
    assert [box[:6] for box in found] == [[1, 0, 1, 2, 4.5, 8], [0, 0, 0, 0, 20, 10]]
    assert own["images"][1] == ["y.jpg", [3, 4], []]


def test_a_list_without_images(tasks, tmp_path):
    content = write_list(tasks, tmp_path / "boxes.json", [])
    assert content["images"] == content["annotations"] == []


def test_maps_and_confidence(tasks):
    """Two classes of equal logits have the confidence .5: 127.5 is rounded to the even 128."""
    task = tasks["segmentation"]
    logits = torch.full((3, 1, 3), -50.0)
    logits[1, 0, 0] = logits[2, 0, 1] = 50.0
    logits[:2, 0, 2] = 0.0
    result = {"sem_seg": logits}
    target = task.result_target(result, 0.9)
    assert task.record(result, target, 0.9) == {"classes": [0, 1, 2]}
    maps = task.layer("maps", result, target)
    assert maps.values.tolist() == [[1, 2, 0]] and maps.values.dtype == np.uint8
    assert maps.colors == [[0, 0, 255], [9, 9, 9], [0, 255, 0]]
    confidence = task.layer("confidence", result, target)
    assert confidence.values.tolist() == [[255, 255, 128]] and confidence.colors == []
    table = json.loads(task.class_table("maps"))
    assert table[1] == {"id": 1, "name": "road", "color": [9, 9, 9]}
    assert task.class_table("confidence") == ""


def test_a_kind_that_saves_nothing(tasks):
    kind = SavedResults()
    assert not (kind.saved_list or kind.saved_layers or kind.record({}, None, 0.5))
