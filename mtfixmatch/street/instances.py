"""Write the boxes of generated scenes as COCO instances JSONs, also with boxes of some classes."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.datasets.cityscapes import THING_LABELS, load_cityscapes
from ..data.datasets.scan import FileScanner
from ..data.records import BOX_KEY, Record
from ..utils.errors import InputError
from ..utils.files import write_atomically
from .layouts import SPLITS

Content = dict[str, list[dict[str, Any]]]  # of a COCO instances JSON

# Two halves of the classes with about as many boxes. Each has one that most scenes show, and the
# classes that are easily taken for each other are in the same half, as if two people had drawn.
VEHICLES = ("car", "truck", "bus", "train")
PEOPLE = ("person", "rider", "motorcycle", "bicycle")


def write_instances(root: str | Path, output: str | Path) -> dict[str, Content]:
    """Write five files for the scenes in `root` into `output`; return name -> content.

    all.json and val.json have all boxes of a split. vehicles.json lists every other training scene
    with boxes of VEHICLES alone, people.json the rest with boxes of PEOPLE alone. merged.json has
    the boxes of these two, but claims to be for all classes. Ids are those of all.json.

    Raises:
        InputError: `root` has no scenes in the layout of Cityscapes, or `output` is no folder that
            can be written.
    """
    train, val = (_load(Path(root), split) for split in SPLITS)
    image_ids = [image["id"] for image in train["images"]]
    vehicles = dict.fromkeys(image_ids[::2], VEHICLES)
    people = dict.fromkeys(image_ids[1::2], PEOPLE)
    files = {
        "all.json": train,
        "vehicles.json": select(train, vehicles),
        "people.json": select(train, people),
        "merged.json": select(train, vehicles | people),
        "val.json": val,
    }
    try:
        os.makedirs(output, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror or error}") from None
    for name, content in files.items():
        write_atomically(Path(output, name), json.dumps(content) + "\n")
    return files


def instances(records: Sequence[Record], folder: Path) -> Content:
    """Return all boxes of records, whose images are named by their paths below `folder`."""
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, record in enumerate(records, start=1):
        name = Path(record["file_name"]).relative_to(folder).as_posix()
        size = {"height": record["height"], "width": record["width"]}
        images.append({"id": image_id, "file_name": name, **size})
        for a in record[BOX_KEY]:
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({**ids, **_annotation(a)})
    categories = [{"id": i, "name": x.name} for i, x in enumerate(THING_LABELS, start=1)]
    return {"categories": categories, "images": images, "annotations": annotations}


def select(content: Content, classes: Mapping[int, Sequence[str]]) -> Content:
    """Keep some images, and of each the boxes of some classes: image id -> names of classes."""
    names = {x["id"]: x["name"] for x in content["categories"]}
    used = {name for kept in classes.values() for name in kept}
    return {
        "categories": [x for x in content["categories"] if x["name"] in used],
        "images": [x for x in content["images"] if x["id"] in classes],
        "annotations": [
            a
            for a in content["annotations"]
            if names[a["category_id"]] in classes.get(a["image_id"], ())
        ],
    }


def _load(root: Path, split: str) -> Content:
    scan = FileScanner()
    records = load_cityscapes(root=str(root), split=split, scan=scan, labels=(BOX_KEY,))
    # A scene that lost its map is not labeled, so that no file lists it.
    labeled = [record for record in records if BOX_KEY in record]
    return instances(labeled, root / "leftImg8bit" / split)


def _annotation(annotation: Mapping[str, Any]) -> dict[str, Any]:
    x0, y0, x1, y1 = annotation["bbox"]
    return {
        "category_id": annotation["category_id"] + 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": annotation["iscrowd"],
    }
