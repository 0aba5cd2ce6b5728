"""A small data set in each layout, read through the real readers and the real mapper.

Its files are kept in memory, so that each case can corrupt one of them in a folder of its own.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from detectron2.config import get_cfg
from PIL import Image

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.data.datasets import register_datasets
from mtfixmatch.data.datasets.bdd100k import load_bdd100k
from mtfixmatch.data.datasets.cityscapes import load_cityscapes
from mtfixmatch.data.datasets.own_data import TRAIN
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.data.mapper import EvalMapper, TrainMapper
from mtfixmatch.data.samplers import Draw
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError, InputErrors
from mtfixmatch.utils.notes import Notes
from tests.support.own_data import own_data

HEIGHT, WIDTH = 48, 64
# By image: box [x0, y0, x1, y1] in corner coordinates and class of each object drawn into it.
OBJECTS = {
    "a": [([8, 6, 30, 20], "person"), ([34, 10, 60, 44], "car")],
    "b": [([2, 2, 20, 40], "car")],
    "c": [([40, 20, 62, 46], "person"), ([4, 24, 30, 44], "person")],
}
GROUND, SKY = 0, 10  # train ids
TRAIN_ID = {"person": 11, "car": 13}
LABEL_ID = {GROUND: 7, SKY: 23, 11: 24, 13: 26}  # train id -> id of Cityscapes


def picture_of(name: str) -> np.ndarray:
    """(H, W, 3) uint8 image of at most 16 colours, so that a palette holds it."""
    rng = np.random.default_rng(ord(name))
    colors = rng.integers(0, 256, (4, 3), dtype=np.uint8)
    classes = np.searchsorted([GROUND, SKY, 11, 13], map_of(name))
    return colors[classes]


def map_of(name: str) -> np.ndarray:
    """(H, W) uint8 map of train ids."""
    ids = np.full((HEIGHT, WIDTH), GROUND, np.uint8)
    ids[: HEIGHT // 3] = SKY
    for (x0, y0, x1, y1), thing in OBJECTS[name]:
        ids[y0:y1, x0:x1] = TRAIN_ID[thing]
    return ids


def encoded(array: np.ndarray | Image.Image, file_format: str, **options) -> bytes:
    """Content of an image file of this format."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    defaults = {"quality": 95, "subsampling": 0} if file_format == "JPEG" else {}
    image.save(file, file_format, **defaults | options)
    return file.getvalue()


Tree = dict[str, bytes]  # path below the root -> content


def coco_tree() -> Tree:
    categories = {"person": 3, "car": 7}
    tree, images, annotations = {}, [], []
    for number, (name, objects) in enumerate(OBJECTS.items(), start=1):
        kind, suffix = {"a": ("PNG", "png"), "b": ("JPEG", "jpg"), "c": ("TIFF", "tif")}[name]
        file_name = f"{name}.{suffix}"
        tree[f"images/{file_name}"] = encoded(picture_of(name), kind)
        tree[f"maps/{name}.png"] = encoded(map_of(name), "PNG")
        images.append({"id": number, "file_name": file_name, "height": HEIGHT, "width": WIDTH})
        for (x0, y0, x1, y1), thing in objects:
            box = [x0, y0, x1 - x0, y1 - y0]
            entry = {"id": len(annotations) + 1, "image_id": number, "bbox": box, "iscrowd": 0}
            annotations.append(entry | {"category_id": categories[thing]})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in categories.items()],
    }
    return tree | {"boxes.json": json.dumps(content).encode()}


def bdd_tree() -> Tree:
    tree, frames = {"street.json": b"{}"}, []
    for name, objects in OBJECTS.items():
        picture = encoded(picture_of(name), "JPEG")
        tree |= {f"images/100k/train/{name}.jpg": picture, f"images/10k/train/{name}.jpg": picture}
        tree[f"labels/sem_seg/masks/train/{name}.png"] = encoded(map_of(name), "PNG")
        labels = [
            {
                "category": "pedestrian" if thing == "person" else thing,
                "attributes": {"crowd": False},
                "box2d": {"x1": box[0], "y1": box[1], "x2": box[2] - 1, "y2": box[3] - 1},
            }
            for box, thing in objects
        ]
        frames.append({"name": f"{name}.jpg", "labels": labels})
    tree["images/100k/val/v.jpg"] = picture
    return tree | {"labels/det_20/det_train.json": json.dumps(frames).encode()}


def cityscapes_tree() -> Tree:
    tree = {"street.json": b"{}"}
    for name, objects in OBJECTS.items():
        stem = f"{name}_000000_000019"
        tree[f"leftImg8bit/train/{name}/{stem}_leftImg8bit.png"] = encoded(picture_of(name), "PNG")
        ids = np.vectorize(LABEL_ID.get)(map_of(name)).astype(np.uint8)
        tree[f"gtFine/train/{name}/{stem}_gtFine_labelIds.png"] = encoded(ids, "PNG")
        instances = np.where(ids >= 24, 0, ids).astype(np.uint16)
        for number, ((x0, y0, x1, y1), thing) in enumerate(objects):
            instances[y0:y1, x0:x1] = LABEL_ID[TRAIN_ID[thing]] * 1000 + number
        tree[f"gtFine/train/{name}/{stem}_gtFine_instanceIds.png"] = encoded(instances, "PNG")
    return tree


def read_coco(root: Path, **options) -> list[dict]:
    # All train ids up to the largest one in the maps.
    classes = [str(i) for i in range(max(TRAIN_ID.values()) + 1)]
    files = {"IMAGES": "images", "BOXES": "boxes.json", "MAPS": "maps"}
    own = own_data(
        THING_CLASSES=["person", "car"],
        SEM_SEG_CLASSES=classes,
        TRAIN={key: str(root / path) for key, path in files.items()},
    )
    return own.load(TRAIN, FileScanner(**options))


LAYOUTS: dict[str, tuple[Callable[[], Tree], Callable[..., list[dict]]]] = {
    "coco_style": (coco_tree, read_coco),
    "bdd100k": (
        bdd_tree,
        lambda root, **x: load_bdd100k(root=str(root), split="train", scan=FileScanner(**x)),
    ),
    "cityscapes": (
        cityscapes_tree,
        lambda root, **x: load_cityscapes(root=str(root), split="train", scan=FileScanner(**x)),
    ),
}


@cache
def tree_of(layout: str) -> Tree:
    return LAYOUTS[layout][0]()


def write_tree(tree: Tree, root: Path) -> None:
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@cache
def _mapper() -> TrainMapper:
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.SEED = 0  # without load_config, which draws one
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("cityscapes_train",)
    cfg.INPUT.TRAIN_SIZE = (64, 64)
    register_datasets(cfg)
    return TrainMapper(cfg, build_tasks(cfg))


@dataclass
class Example:
    """An image and its labels as they were read, and the item that a training would get.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: rows x0, y0, x1, y1, class, iscrowd; None if not labeled with boxes.
        classes: (H, W) uint8 train ids; None if not labeled with a map.
        item: what TrainMapper returns.
    """

    image: np.ndarray
    boxes: list | None
    classes: np.ndarray | None
    item: dict

    def equals(self, other: "Example", tolerance: float = 0) -> bool:
        """Whether both are the same, up to `tolerance` mean grey levels between the images."""
        if self.image.shape != other.image.shape or self.boxes != other.boxes:
            return False
        difference = np.abs(self.image.astype(int) - other.image).mean()
        maps = [x is None for x in (self.classes, other.classes)]
        return difference <= tolerance and (
            all(maps) or (not any(maps) and np.array_equal(self.classes, other.classes))
        )

    def is_sane(self) -> bool:
        """Whether all labels and shapes are in their ranges, so that a network can be trained."""
        height, width = self.image.shape[:2]
        for x0, y0, x1, y1, category, crowd in self.boxes or []:
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                return False
            if category not in range(10) or crowd not in (0, 1):
                return False
        instances = self.item["targets"]["detection"]
        corners = instances.gt_boxes.tensor if instances is not None else np.zeros((0, 4))
        good_boxes = bool((corners[:, 2:] > corners[:, :2]).all() and (corners <= 64).all())
        labels = {*range(19), 255}
        classes = set() if self.classes is None else set(np.unique(self.classes).tolist())
        return good_boxes and classes <= labels and tuple(self.item["image"].shape) == (3, 64, 64)


def read_all(layout: str, root: Path, notes: Notes | None = None) -> dict[str, Example]:
    """Read all images and labels, by the first letter of the image's file; fill the notes.

    Raises:
        InputError: a file or label is wrong.
    """
    mapper = _mapper()
    examples = {}
    for step, record in enumerate(LAYOUTS[layout][1](root, notes=notes or Notes())):
        boxes = classes = None
        if "annotations" in record:
            rows = record["annotations"]
            boxes = sorted([*x["bbox"], x["category_id"], x["iscrowd"]] for x in rows)
        if "sem_seg_file_name" in record:
            classes = mapper.tasks[-1].load_target(record).numpy()
        image = EvalMapper()(record)["image"].numpy().transpose(1, 2, 0)
        item = mapper(record, Draw(0, step, 0))
        examples[Path(record["file_name"]).name[0]] = Example(image, boxes, classes, item)
    return examples


@cache
def expected_of(layout: str, root: Path) -> dict[str, Example]:
    """What is read from the original files, which are written into a folder below `root`."""
    folder = root / f"expected_{layout}"
    write_tree(tree_of(layout), folder)
    return read_all(layout, folder)


def message_of(error: InputError) -> str:
    """Message of an error, or the number of errors if it holds several."""
    messages = error.messages if isinstance(error, InputErrors) else [str(error)]
    return messages[0] if len(messages) == 1 else f"{len(messages)} errors"
