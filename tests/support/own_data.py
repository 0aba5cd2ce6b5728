"""The user's own data of a config, for tests."""

import json
from typing import Any

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.data.datasets.builtin import own_data as from_config
from mtfixmatch.data.datasets.own_data import TRAIN, OwnData
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.tasks.config import complete_task_config
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.notes import Notes

HEIGHT, WIDTH = 20, 30


def own_data(tasks: tuple[str, ...] = ("detection", "segmentation"), **keys: Any) -> OwnData:
    """Return the data that these keys of DATASETS.COCO_STYLE describe, those left out as default.

    TRAIN and VAL are dicts of their keys.
    """
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.MODEL.TASKS = list(tasks)
    node = cfg.DATASETS.COCO_STYLE
    for key, value in keys.items():
        if isinstance(value, dict):
            node[key].update(value)
        else:
            node[key] = value
    complete_task_config(cfg)
    return from_config(cfg)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def black(path):
    save(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def annotation(number, image, bbox, category=7, **other):
    return {"id": number, "image_id": image, "bbox": bbox, "category_id": category, **other}


def listed(number, name):
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}


def make_content():
    """Images 11 and 12 are listed, the others of the folder are not; 12 has no annotation."""
    return {
        "images": [listed(11, "a.jpg"), listed(12, "sub/b.png")],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            annotation(1, 11, [2, 3, 10, 5]),
            annotation(2, 11, [-0.5, 0, 30.9, 20.25], category=3, iscrowd=1),
        ],
    }


class Dataset:
    """A small dataset on disk: a.jpg both labels, sub/b.png boxes, c.jpg a map, d.jpg nothing."""

    def __init__(self, root):
        self.root, self.images, self.maps = root, root / "images", root / "maps"
        self.boxes = root / "boxes.json"
        for name in ("a.jpg", "sub/b.png", "c.jpg", "d.jpg"):
            black(self.images / name)
        (self.images / "notes.txt").write_text("not an image")
        for name in ("a.png", "c.png"):
            save(self.maps / name, np.array([[0, 1, 255]] * HEIGHT, np.uint8).repeat(10, axis=1))
        self.content = make_content()
        self.notes = Notes()

    def load(self, split=TRAIN, scan=None, tasks=("detection", "segmentation"), **keys):
        self.boxes.write_text(json.dumps(self.content))
        files = {"IMAGES": self.images, "BOXES": self.boxes, "MAPS": self.maps}
        files = {key: str(path) for key, path in files.items()} | keys.pop("files", {})
        defaults = {"SEM_SEG_CLASSES": ["road", "sky"], split: files}
        self.notes = Notes()
        own = own_data(tasks, **(defaults | keys))
        return own.load(split, scan or FileScanner(notes=self.notes))

    def boxes_of(self, image_id="a.jpg", **keys):
        records = {record["image_id"]: record for record in self.load(**keys)}
        return [x["bbox"] for x in records[image_id]["annotations"]]

    def message(self, **options):
        with pytest.raises(InputError) as error:
            self.load(**options)
        message = str(error.value)
        assert "\n" not in message
        return message

    def note(self, kind):
        """The message of the only kind of note with these words."""
        (message,) = [x for x in self.notes.messages() if kind in x]
        assert "\n" not in message
        return message
