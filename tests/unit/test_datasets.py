import json
import os

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm
from PIL import Image

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.data.datasets import (
    broken_files,
    catalog,
    check_class_lists,
    get_records,
    register_datasets,
)
from mtfixmatch.street.generate import MARK
from mtfixmatch.tasks.config import complete_task_config
from mtfixmatch.utils.errors import InputError


def make_cfg(root, **coco_style):
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.DATASETS.ROOT, cfg.DATASETS.CACHE_DIR = str(root), str(root / "cache")
    cfg.DATALOADER.NUM_WORKERS = 0
    for key, value in coco_style.items():
        if isinstance(value, dict):
            cfg.DATASETS.COCO_STYLE[key].update(value)
        else:
            cfg.DATASETS.COCO_STYLE[key] = value
    return cfg


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)


def add_street(root, split="train"):
    save(root / f"street/leftImg8bit/{split}/town/town_1_leftImg8bit.png")
    (root / "street" / MARK).touch()


def add_boxes(root, split, categories):
    """One image with a box of the last category."""
    save(root / split / "a.png")
    content = {
        "images": [{"id": 0, "file_name": "a.png", "height": 4, "width": 6}],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": list(categories)[-1], "bbox": [0, 0, 2, 2]}
        ],
    }
    path = root / f"{split}.json"
    path.write_text(json.dumps(content))
    return {"IMAGES": str(root / split), "BOXES": str(path), "MAPS": ""}


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    register_datasets(make_cfg(tmp_path / "nowhere"))
    metadata = MetadataCatalog.get("cityscapes_val")
    assert (len(metadata.thing_classes), len(metadata.stuff_classes)) == (8, 19)
    with pytest.raises(InputError, match=r"nowhere.street: looked for"):
        get_records(["street_train"])


def test_registering_again_replaces(tmp_path):
    register_datasets(make_cfg(tmp_path / "nowhere"))
    add_street(tmp_path)
    register_datasets(make_cfg(tmp_path))
    assert [record["image_id"] for record in get_records(["street_train"])] == ["town_1"]
    assert os.listdir(tmp_path / "cache")


def test_the_labels_of_other_tasks_are_not_read(street_root, tmp_path):
    """Neither those of a task that is left out, nor the boxes of the default name for another."""
    for tasks, keys in (
        (["detection"], {"annotations"}),
        (["segmentation"], {"sem_seg_file_name", "sem_seg_lut"}),
        (["cars"], set()),
    ):
        cfg = make_cfg(tmp_path)
        cfg.DATASETS.ROOT, cfg.MODEL.TASKS = str(street_root), tasks
        cfg.TASKS.CARS = CfgNode({"KIND": "Detection"})
        complete_task_config(cfg)
        register_datasets(cfg)
        labels = {"annotations", "sem_seg_file_name", "sem_seg_lut"}
        records = get_records(["street_train"])
        assert all(labels & record.keys() == keys for record in records) and len(records) == 16


def test_root_and_cache_have_defaults(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    add_street(tmp_path)
    cfg = make_cfg(tmp_path)
    cfg.DATASETS.ROOT = cfg.DATASETS.CACHE_DIR = ""
    register_datasets(cfg)
    assert len(get_records(["street_train"])) == 1
    assert os.listdir(tmp_path / "home/.cache/mtfixmatch")


def test_records_of_several_datasets(tmp_path):
    add_street(tmp_path)
    save(tmp_path / "cityscapes/leftImg8bit/train/ulm/ulm_1_leftImg8bit.png")
    (tmp_path / "cityscapes/gtFine/train/ulm").mkdir(parents=True)
    register_datasets(make_cfg(tmp_path))
    records = get_records(["street_train", "cityscapes_train"])
    assert [record["image_id"] for record in records] == ["town_1", "ulm_1"]
    assert get_records([]) == []


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    register_datasets(make_cfg(tmp_path))
    with pytest.raises(InputError, match=r"'cityscape_train', expected one of cityscapes_train, "):
        get_records(["cityscape_train"])


def test_classes_are_those_of_the_training_file(tmp_path):
    """The files number the same classes differently."""
    train = add_boxes(tmp_path, "train", {1: "cat", 2: "dog"})
    val = add_boxes(tmp_path, "val", {1: "dog", 2: "cat"})
    register_datasets(make_cfg(tmp_path, TRAIN=train, VAL=val, SEM_SEG_CLASSES=["road"]))
    (record,) = get_records(["coco_style_val"])
    assert record["annotations"][0]["category_id"] == 0
    (record,) = get_records(["coco_style_train"])
    assert record["annotations"][0]["category_id"] == 1
    metadata = MetadataCatalog.get("coco_style_val")
    assert metadata.thing_classes == ["cat", "dog"] and metadata.stuff_classes == ["road"]
    assert len(metadata.thing_colors) == 2 and len(metadata.stuff_colors[0]) == 3
    assert metadata.ignore_label == 255
    check_class_lists(["coco_style_train", "coco_style_val"], ["thing_classes"])


def test_given_classes_are_known_at_once(tmp_path):
    train = add_boxes(tmp_path, "train", {1: "cat", 2: "dog"})
    register_datasets(make_cfg(tmp_path, TRAIN=train, THING_CLASSES=["dog", "cat"]))
    assert MetadataCatalog.get("coco_style_train").thing_classes == ["dog", "cat"]
    assert get_records(["coco_style_train"])[0]["annotations"][0]["category_id"] == 0


def test_other_classes_cannot_be_mixed(tmp_path):
    add_street(tmp_path)
    train = add_boxes(tmp_path, "train", {1: "cat"})
    register_datasets(make_cfg(tmp_path, TRAIN=train))
    names = ["street_train", "coco_style_train"]
    get_records(names)
    with pytest.raises(InputError, match=r"their stuff_classes are \['road', .*\] and \[\]"):
        check_class_lists(names, ["stuff_classes", "thing_classes"])
    with pytest.raises(InputError, match=r"street_train and coco_style_train cannot .*\['cat'\]"):
        check_class_lists(names, ["thing_classes"])


@pytest.fixture
def own_dataset():
    """Register a dataset as a user's own code does."""
    name = "my_own_train"

    def register(records, **metadata):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


OWN_RECORD = {"file_name": "a.png", "image_id": "a", "height": 4, "width": 6}


def test_a_dataset_that_own_code_registers(own_dataset, tmp_path):
    labels = {"drivable_sem_seg_file_name": "a_map.png", "drivable_sem_seg_lut": bytes(256)}
    name = own_dataset([OWN_RECORD | labels], drivable_classes=["direct", "alternative"])
    add_street(tmp_path)
    register_datasets(make_cfg(tmp_path))
    own, street = get_records([name, "street_train"])
    assert own == OWN_RECORD | labels and street["image_id"] == "town_1"
    assert broken_files([name]) == {}
    with pytest.raises(InputError, match=r"their drivable_classes are \['direct', .* and None"):
        check_class_lists([name, "street_train"], ["drivable_classes"])


def test_a_dataset_that_is_registered_again_is_read_again(own_dataset):
    assert get_records([own_dataset([])]) == []
    assert get_records([own_dataset([OWN_RECORD])]) == [OWN_RECORD]


def test_a_record_without_a_required_key_is_an_error(own_dataset):
    record = {key: value for key, value in OWN_RECORD.items() if key != "height"}
    with pytest.raises(InputError, match=r"^my_own_train: record 1 needs the key 'height'"):
        get_records([own_dataset([OWN_RECORD, record])])


def test_the_other_processes_wait_and_hear_of_failures(tmp_path, monkeypatch):
    """As a rank other than 0: first what the main process sends, then reading, if all is well."""
    add_street(tmp_path)
    register_datasets(make_cfg(tmp_path))
    events = []
    load = catalog._load
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda mine: events.append("wait") or [([], {}), mine])
    monkeypatch.setattr(catalog, "_load", lambda *given: events.append("load") or load(*given))
    assert len(get_records(["street_train"])) == 1
    assert events == ["wait", "load"]
    monkeypatch.setattr(comm, "all_gather", lambda mine: [(["x.png: bad"], {}), mine])
    with pytest.raises(InputError, match=r"^x\.png: bad$"):
        get_records(["street_train"])
    assert events == ["wait", "load"]


def test_boxes_of_an_own_dataset_may_be_in_any_mode(own_dataset):
    box = {"bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": "a.png", "image_id": "a", "height": 80, "width": 80}
    name = own_dataset([record | {"annotations": [box], "far_annotations": []}])
    (found,) = get_records([name])
    assert found["annotations"][0]["bbox"] == [10, 20, 40, 60]
    assert found["annotations"][0]["bbox_mode"] == BoxMode.XYXY_ABS
    assert box["bbox"] == [10, 20, 30, 40]
