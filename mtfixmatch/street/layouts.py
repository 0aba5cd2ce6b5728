"""How generated scenes are laid out as files: as in Cityscapes, or as in BDD100K.

In BDD100K's layout the scenes are spread over its two parts, see `bdd100k_parts`. The boxes are
those of Cityscapes, and the connected regions of traffic lights and of traffic signs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
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
    """Write the picture and two maps; everything about the scene is in them."""
    city = CITIES[index % len(CITIES)]
    name = f"{city}_{index:06d}_000019"
    truth = root / "gtFine" / split / city
    picture = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    _write(picture, cv2.cvtColor(scene.rgb, cv2.COLOR_RGB2BGR), PNG)
    _write(truth / f"{name}_gtFine_instanceIds.png", scene.ids, PNG)
    _write(truth / f"{name}_gtFine_labelIds.png", _label_ids(scene.ids), PNG)
    return []


def write_bdd100k(root: Path, split: str, index: int, scene: Scene) -> Frames:
    """Write the picture and the map into the parts that the scene is in, and return its boxes."""
    name = f"{split}-{index:06d}"
    large, small = bdd100k_parts(split, index)
    picture = cv2.cvtColor(scene.rgb, cv2.COLOR_RGB2BGR)
    for part, where in (("100k", large), ("10k", small)):
        if where:
            _write(root / "images" / part / where / f"{name}.jpg", picture, JPEG)
    if small:
        train_ids = np.frombuffer(label_id_lut(), np.uint8)[_label_ids(scene.ids)]
        _write(root / "labels" / "sem_seg" / "masks" / small / f"{name}.png", train_ids, PNG)
    bare = split == "train" and index % 20 == 19
    return [(large, _frame(f"{name}.jpg", scene.ids))] if large and not bare else []


def write_frames(root: Path, found: Iterable[Frames]) -> None:
    """Write the JSON of each split that the scenes returned entries of."""
    frames = [pair for some in found for pair in some]
    for split in {split for split, _ in frames}:
        content = [frame for where, frame in frames if where == split]
        path = root / "labels" / "det_20" / f"det_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


def bdd100k_parts(split: str, index: int) -> tuple[str, str]:
    """Return the split that a scene is in of the 100K and of the 10K part, "" for none.

    As in BDD100K most scenes are in the 100K part alone. Of 20 for training 4 are in both parts, 4
    in the 10K part alone, and one is in the 10K part for training and in the 100K part for
    validation. (The last of 20 has no boxes.) Every third for validation is in the 10K part.
    """
    if split == "val":
        return ("", "val") if index % 3 == 1 else ("val", "")
    if index % 20 == 9:
        return "val", "train"
    if index % 5 == 0:
        return "train", "train"
    return ("", "train") if index % 10 in (3, 7) else ("train", "")


def _frame(name: str, ids: np.ndarray) -> dict[str, Any]:
    """One entry of the JSON; a region that is not told apart is a crowd."""
    present = np.unique(ids)
    single = present[present >= 1000]
    found = [
        (CATEGORIES[i // 1000], False, box)
        for i, box in zip(single.tolist(), mask_extents(ids, single), strict=True)
    ]
    found += [(CATEGORIES[i], True, box) for i in CATEGORIES for box in _regions(ids == i)]
    found += [(x, False, box) for x in FIXTURES for box in _regions(ids == ID[x])]
    labels = [
        {
            "id": str(number),
            "category": category,
            "attributes": {"crowd": crowd},
            "box2d": {"x1": x0, "y1": y0, "x2": x1 - 1, "y2": y1 - 1},
        }
        for number, (category, crowd, (x0, y0, x1, y1)) in enumerate(found)
    ]
    return {"name": name, "labels": labels}


def _regions(mask: np.ndarray) -> list[list[int]]:
    """Return [x0, y0, x1, y1], ends exclusive, of the connected regions that are no specks."""
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
    kept = stats[1:][stats[1:, cv2.CC_STAT_AREA] > MAX_SPECK_PIXELS]  # 0 is the background
    return [[x, y, x + width, y + height] for x, y, width, height, _ in kept.tolist()]


def _label_ids(ids: np.ndarray) -> np.ndarray:
    return np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)


def _write(path: Path, image: np.ndarray, options: list[int]) -> None:
    _, data = cv2.imencode(path.suffix, image, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


LAYOUTS: dict[str, Callable[[Path, str, int, Scene], Frames]]
LAYOUTS = {"cityscapes": write_cityscapes, "bdd100k": write_bdd100k}
