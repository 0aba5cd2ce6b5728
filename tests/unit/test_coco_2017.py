"""COCO 2017 on a stand-in with rows like those of the official files."""

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from mtfixmatch.data.datasets import get_records, reader_notes, register_datasets
from mtfixmatch.data.loader import train_records
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError
from tests.unit.test_datasets import make_cfg

HEIGHT, WIDTH = 40, 60
THINGS = [x for x in COCO_CATEGORIES if x["isthing"]]
# As annotations 918 and 2206849 of instances_train2017.json: without a height.
FLAT = [[29.6, 18.3, 1.03, 0.0], [3.5, 12.25, 20.0, 0]]


def write_split(root, split, names, boxes):
    """`boxes`: for each image, [box, category id] of its objects."""
    (root / f"coco/{split}2017").mkdir(parents=True)
    for name in names:
        picture = Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        picture.save(root / f"coco/{split}2017/{name}")
    annotations = [
        {"id": 900 + 10 * i + k, "image_id": i, "bbox": box, "category_id": c, "iscrowd": 0}
        for i, objects in enumerate(boxes)
        for k, (box, c) in enumerate(objects)
    ]
    size = {"height": HEIGHT, "width": WIDTH}
    content = {
        "images": [{"id": i, "file_name": name, **size} for i, name in enumerate(names)],
        "annotations": annotations,
        "categories": [
            {"id": x["id"], "name": x["name"], "supercategory": "thing"} for x in THINGS
        ],
    }
    path = root / f"coco/annotations/instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def cfg(tmp_path):
    names = [f"{i:012d}.jpg" for i in range(4)]
    boxes = [[([1, 2, 10, 10], 1)], [(FLAT[0], 1), ([5, 5, 8, 8], 90)], [(FLAT[1], 18)], []]
    write_split(tmp_path, "train", names, boxes)
    write_split(tmp_path, "val", names[:2], boxes[:2])
    cfg = make_cfg(tmp_path)
    cfg.MODEL.TASKS = ["detection"]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2017_train",), ("coco_2017_val",)
    register_datasets(cfg)
    return cfg


def test_the_official_rows_are_read(cfg):
    """The two flat boxes are left out; an image without an annotation is labeled and empty."""
    records = get_records(["coco_2017_train"])
    assert [len(record["annotations"]) for record in records] == [1, 1, 0, 0]
    assert records[1]["annotations"][0]["category_id"] == 79  # the last of 80 classes
    assert records[1]["annotations"][0]["bbox"] == [5.0, 5.0, 13.0, 13.0]
    (kind,) = [x for x in reader_notes(["coco_2017_train"])["coco_2017_train"].lines if "area" in x]
    lines = reader_notes(["coco_2017_train"])["coco_2017_train"].lines[kind]
    assert [line.split(": ")[1] for line in lines] == ["annotation 910", "annotation 920"]


def test_the_classes_are_known_before_a_file_is_read(cfg):
    classes = MetadataCatalog.get("coco_2017_train").thing_classes
    assert len(classes) == 80 and (classes[0], classes[-1]) == ("person", "toothbrush")


def test_training_with_part_of_the_labels(cfg):
    cfg.TASKS.DETECTION.CLASSES = [x["name"] for x in THINGS]
    cfg.TASKS.DETECTION.LABELS = 3
    records = train_records(cfg, build_tasks(cfg))
    assert sum("annotations" in record for record in records) == 3 and len(records) == 4


def test_missing_images_are_named_by_the_dataset(tmp_path):
    cfg = make_cfg(tmp_path)
    register_datasets(cfg)
    folder = tmp_path / "coco/train2017"
    with pytest.raises(InputError, match=f"coco_2017.TRAIN.IMAGES: there is no folder '{folder}'"):
        get_records(["coco_2017_train"])


def test_maps_are_those_of_the_panoptic_annotations(cfg, tmp_path):
    """Of the first image: a person (id 1) of 1 x 2 pixels, void, and sky (id 187)."""
    ids = np.full((HEIGHT, WIDTH), 7, np.uint32)
    ids[0, :2], ids[1] = 70_000, 0
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65_536], axis=-1).astype(np.uint8)
    name = f"{0:012d}"
    for split in ("train", "val"):
        folder = tmp_path / f"coco/annotations/panoptic_{split}2017"
        folder.mkdir()
        Image.fromarray(colors).save(folder / f"{name}.png")
        segments = [{"id": 70_000, "category_id": 1}, {"id": 7, "category_id": 187}]
        content = {
            "images": [{"id": 0, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}],
            "annotations": [{"image_id": 0, "file_name": f"{name}.png", "segments_info": segments}],
            "categories": [
                {key: x[key] for key in ("id", "name", "isthing")} for x in COCO_CATEGORIES
            ],
        }
        folder.with_suffix(".json").write_text(json.dumps(content))
    cfg.MODEL.TASKS = ["detection", "segmentation"]
    register_datasets(cfg)
    record, *others = get_records(["coco_2017_train"])
    names = MetadataCatalog.get("coco_2017_train").stuff_classes
    classes = build_tasks(cfg)[1].load_map(record)
    assert len(names) == 133 and names[classes[0, 0]] == "person"
    assert names[classes[0, 2]] == names[classes[2, 0]] == "sky-other-merged"
    assert set(np.unique(classes[1])) == {255}
    assert not any("sem_seg_file_name" in other for other in others)
