"""How generated scenes are arranged as files: as in Cityscapes, or as in BDD100K.

BDD100K has the boxes of Cityscapes, and one for each connected region of traffic lights or signs.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.datasets.cityscapes import MAX_SPECK_PIXELS, THING_LABELS, label_id_lut, mask_extents
from .canvas import ID, Scene

SPLITS = ("train", "val")
CITIES = ("northtown", "southport", "westfield")
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]
CATEGORIES = {x.id: x.name.replace("person", "pedestrian") for x in THING_LABELS}
FIXTURES = ("traffic light", "traffic sign")

Frames = list[tuple[str, dict[str, Any]]]  # a split, and an entry of its JSON


def write_cityscapes(root: Path, split: str, index: int, scene: Scene) -> Frames:
    """Write the image and its two maps; there is no JSON."""
    city = CITIES[index % len(CITIES)]
    name = f"{split}/{city}/{city}_{index:06d}_000019"
    image = cv2.cvtColor(scene.rgb, cv2.COLOR_RGB2BGR)
    _write(root / f"leftImg8bit/{name}_leftImg8bit.png", image, PNG)
    _write(root / f"gtFine/{name}_gtFine_instanceIds.png", scene.ids, PNG)
    _write(root / f"gtFine/{name}_gtFine_labelIds.png", _label_ids(scene.ids), PNG)
    return []


def write_bdd100k(root: Path, split: str, index: int, scene: Scene) -> Frames:
    """Write the image and the map into the parts that have the scene; return its boxes."""
    name = f"{split}-{index:06d}"
    split_100k, split_10k = bdd100k_splits(split, index)
    image = cv2.cvtColor(scene.rgb, cv2.COLOR_RGB2BGR)
    for part, folder in (("100k", split_100k), ("10k", split_10k)):
        if folder:
            _write(root / f"images/{part}/{folder}/{name}.jpg", image, JPEG)
    if split_10k:
        train_ids = np.frombuffer(label_id_lut(), np.uint8)[_label_ids(scene.ids)]
        _write(root / f"labels/sem_seg/masks/{split_10k}/{name}.png", train_ids, PNG)
    has_boxes = split_100k and not (split == "train" and index % 20 == 19)
    return [(split_100k, _frame(f"{name}.jpg", scene.ids))] if has_boxes else []


def write_frames(root: Path, frames: Frames) -> None:
    """Write the JSON of each split."""
    for split in {split for split, _ in frames}:
        content = [frame for name, frame in frames if name == split]
        path = root / f"labels/det_20/det_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


def bdd100k_splits(split: str, index: int) -> tuple[str, str]:
    """Return the split of a scene in the 100K part and in the 10K part, "" where it is not.

    Of 20 training scenes 11 are in the 100K part alone (the last of 20 without boxes), 4 in both
    parts, 4 in the 10K part alone, and one is in the 100K part for validation.
    """
    if split == "val":
        return ("", "val") if index % 3 == 1 else ("val", "")
    if index % 20 == 9:
        return "val", "train"
    if index % 5 == 0:
        return "train", "train"
    return ("", "train") if index % 10 in (3, 7) else ("train", "")


def _frame(name: str, ids: np.ndarray) -> dict[str, Any]:
    """Return one entry of the JSON; a region of several instances is a crowd."""
    instances = np.unique(ids[ids >= 1000])
    extents = zip(instances.tolist(), mask_extents(ids, instances), strict=True)
    boxes = [(CATEGORIES[i // 1000], False, box) for i, box in extents]
    boxes += [(CATEGORIES[i], True, box) for i in CATEGORIES for box in _regions(ids == i)]
    boxes += [(fixture, False, box) for fixture in FIXTURES for box in _regions(ids == ID[fixture])]
    labels = []
    for number, (category, crowd, (x0, y0, x1, y1)) in enumerate(boxes):
        box = {"x1": x0, "y1": y0, "x2": x1 - 1, "y2": y1 - 1}
        label = {"id": str(number), "category": category, "attributes": {"crowd": crowd}}
        labels.append(label | {"box2d": box})
    return {"name": name, "labels": labels}


def _regions(mask: np.ndarray) -> list[list[int]]:
    """Return [x0, y0, x1, y1], ends exclusive, of a mask's connected regions but for specks."""
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
    kept = stats[1:][stats[1:, cv2.CC_STAT_AREA] > MAX_SPECK_PIXELS]  # 0 is the background
    return [[x, y, x + width, y + height] for x, y, width, height, _ in kept.tolist()]


def _label_ids(ids: np.ndarray) -> np.ndarray:
    return np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)


def _write(path: Path, image: np.ndarray, options: list[int]) -> None:
    _, data = cv2.imencode(path.suffix, image, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


LAYOUTS = {"cityscapes": write_cityscapes, "bdd100k": write_bdd100k}
