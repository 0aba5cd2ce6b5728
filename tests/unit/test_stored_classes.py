"""The classes of an evaluation that has no training data."""

import json
import logging

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mtfixmatch.data.datasets import get_records
from mtfixmatch.engine.stored_classes import stored_classes
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import tiny_config


@pytest.fixture
def weights(tmp_path):
    return tmp_path / "run" / "w.pth"


def save(path, **content):
    path.parent.mkdir(exist_ok=True)
    torch.save({"model": {}, **content}, path)


def save_config(path, **classes):
    tasks = {name.upper(): {"CLASSES": names} for name, names in classes.items()}
    path.with_name("config.yaml").write_text(yaml.safe_dump({"TASKS": tasks}))


def test_classes_of_a_checkpoint(weights):
    save(weights, classes={"detection": ["cat", "dog"], "depth": []})
    assert stored_classes(str(weights)) == {"detection": ["cat", "dog"]}


def test_classes_of_the_run_beside_an_older_file(weights):
    save(weights)
    assert stored_classes(str(weights)) == {}
    save_config(weights, detection=["cat"], segmentation=[])
    assert stored_classes(str(weights)) == {"detection": ["cat"]}


def test_the_file_itself_goes_first(weights):
    save(weights, classes={"detection": ["dog"]})
    save_config(weights, detection=["cat"], segmentation=["road"])
    assert stored_classes(str(weights)) == {"detection": ["dog"], "segmentation": ["road"]}


def test_the_folder_of_a_run(weights):
    save(weights.with_name("model_final.pth"), classes={"detection": ["cat"]})
    assert stored_classes(str(weights.parent)) == {"detection": ["cat"]}
    save(weights.with_name("model_best.pth"), classes={"detection": ["dog"]})
    assert stored_classes(str(weights.parent)) == {"detection": ["dog"]}


@pytest.mark.parametrize("text", ["", "- a", "{", "TASKS: 3", "TASKS: {DETECTION: {LABELS: 3}}"])
def test_another_config_beside_the_file_has_no_classes(weights, text):
    save(weights, classes=["cat"])
    weights.with_name("config.yaml").write_text(text)
    assert stored_classes(str(weights)) == {}


def test_no_file_has_no_classes(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("TASKS: {DETECTION: {CLASSES: [cat]}}")
    for path in (str(weights), "a published name"):
        assert stored_classes(path) == {}
    (tmp_path / "broken.pth").write_bytes(b"broken")
    assert stored_classes("broken.pth") == {"detection": ["cat"]}


# An evaluation on the user's own data


@pytest.fixture
def own(tmp_path):
    """The opts of own data of which only validation is there: a dog, in a file that names it first.

    The training had the cat first.
    """
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    content = {
        "images": [{"id": 0, "file_name": "a.png", "height": 8, "width": 16}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 4, 4]}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    key = "DATASETS.COCO_STYLE"
    return [
        *("MODEL.TASKS", ["detection"], "DATASETS.TRAIN", ("coco_style_train",)),
        *("DATASETS.TEST", ("coco_style_val",), f"{key}.VAL.IMAGES", str(tmp_path / "images")),
        *(f"{key}.VAL.BOXES", str(tmp_path / "val.json")),
        *(f"{key}.TRAIN.IMAGES", "gone", f"{key}.TRAIN.BOXES", "gone/train.json"),
    ]


def evaluate(tmp_path, *opts):
    """Return the classes, and the category of the dog."""
    cfg = tiny_config(tmp_path, *opts, eval_only=True)
    (record,) = get_records(cfg.DATASETS.TEST)
    assert cfg.DATASETS.COCO_STYLE.TRAIN.IMAGES == "gone"  # the config keeps what it was given
    return cfg.TASKS.DETECTION.CLASSES, record["annotations"][0]["category_id"]


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mtfixmatch"), "propagate", True)
    return lambda: [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING]


def test_classes_stored_with_the_weights_set_the_order(tmp_path, own, weights, warnings):
    save(weights, classes={"detection": ["cat", "dog"]})
    assert evaluate(tmp_path, *own, "MODEL.WEIGHTS", str(weights)) == (["cat", "dog"], 1)
    assert warnings() == []


def test_classes_of_the_config_go_before_those_of_the_weights(tmp_path, own, weights, warnings):
    save(weights, classes={"detection": ["a", "b"]})
    opts = ["MODEL.WEIGHTS", str(weights), "TASKS.DETECTION.CLASSES", ["cat", "dog"]]
    assert evaluate(tmp_path, *own, *opts) == (["cat", "dog"], 1)
    assert warnings() == []


def test_without_a_list_the_classes_are_those_of_validation_and_that_is_said(
    tmp_path, own, weights, warnings
):
    save(weights)
    assert evaluate(tmp_path, *own, "MODEL.WEIGHTS", str(weights)) == (["dog", "cat"], 0)
    assert warnings() == [
        "Neither TASKS.DETECTION.CLASSES nor MODEL.WEIGHTS names the classes of detection: they "
        "are taken from coco_style_val, in the order there: ['dog', 'cat']"
    ]


def test_a_training_reads_its_own_file(tmp_path, own):
    with pytest.raises(InputError, match="gone"):
        tiny_config(tmp_path, *own)


def test_a_dataset_that_lists_its_classes_needs_none_of_the_weights(street_root, weights):
    """Whether they fit the weights is checked when these are loaded."""
    save(weights, classes={"detection": ["cat"]})
    cfg = tiny_config(street_root, "MODEL.WEIGHTS", str(weights), eval_only=True)
    assert cfg.TASKS.DETECTION.CLASSES[0] == "person"
