"""Read Cityscapes, or a dataset in its folders, as records.

An image without an instance map is not labeled for boxes, and one without a label map is not
labeled for segmentation. The splits "train_extra" and "sequence" have no labels.
`cityscapes_files` says where the files are.
"""

from collections.abc import Collection
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import labels

from ...utils.errors import InputError
from ...utils.images import read_image_size, read_instance_map
from ...utils.labels import IGNORE_LABEL, INVALID_LABEL
from ..records import (
    BOX_KEY,
    LABEL_KEYS,
    MAP_KEY,
    Record,
    add_labels,
    add_map,
    check_map_size,
    make_annotation,
    make_record,
)
from .cityscapes_files import INSTANCES_SUFFIX, LABELS_SUFFIX, find_images, find_maps, image_id
from .scan import FileScanner, scan_label_map

# The license plate has id -1, which is 255 in an 8-bit map. It and the void classes are ignored.
STUFF_LABELS = sorted((x for x in labels if 0 <= x.trainId < 255), key=lambda x: x.trainId)
THING_LABELS = [x for x in STUFF_LABELS if x.hasInstances]
CATEGORY_OF_LABEL_ID = {x.id: category for category, x in enumerate(THING_LABELS)}
LABEL_IDS = frozenset(x.id % 256 for x in labels)
INSTANCE_LABEL_IDS = frozenset(x.id for x in labels if x.hasInstances)

# The ids of an instance map are bare label ids, or label id * 1000 + number of the instance.
INSTANCES_PER_CLASS = 1000
MAX_SPECK_PIXELS = 10  # larger components of a group region become boxes


def cityscapes_metadata() -> dict[str, Any]:
    """Return the classes and colors under the keys of Detectron2's metadata."""
    return {
        "thing_classes": [x.name for x in THING_LABELS],
        "thing_colors": [list(x.color) for x in THING_LABELS],
        "stuff_classes": [x.name for x in STUFF_LABELS],
        "stuff_colors": [list(x.color) for x in STUFF_LABELS],
        "ignore_label": IGNORE_LABEL,
    }


def load_cityscapes(
    *, root: str, split: str, scan: FileScanner, labels: Collection[str] = LABEL_KEYS
) -> list[Record]:
    """Return the records of a split by image id; only the files of the `labels` are read.

    InputError for missing, misplaced or bad files.
    """
    images = find_images(root, split)
    sizes = scan(images, read_image_size, name=f"cityscapes_{split}_sizes", source=root)
    records = {x: make_record(x, image_id(x), sizes[x]) for x in images if x in sizes}
    add_label_map = partial(add_map, lut=label_id_lut(), expected="no label id of Cityscapes")
    for key, suffix, function, name, add in (
        (BOX_KEY, INSTANCES_SUFFIX, scan_instances, "boxes", _add_boxes),
        (MAP_KEY, LABELS_SUFFIX, scan_label_map, "maps", add_label_map),
    ):
        if key not in labels:
            continue
        maps = find_maps(root, split, list(records), suffix)
        scans = scan(maps.values(), function, name=f"cityscapes_{split}_{name}", source=root)
        add_labels(records, maps, scans, add, root, scan.notes)
    return sorted(records.values(), key=lambda record: record["image_id"])


@cache
def label_id_lut() -> bytes:
    """Return the look-up table of 256 bytes, label id -> train id."""
    lut = np.full(256, INVALID_LABEL, np.uint8)
    lut[sorted(LABEL_IDS)] = IGNORE_LABEL
    lut[[x.id for x in STUFF_LABELS]] = [x.trainId for x in STUFF_LABELS]
    return lut.tobytes()


def scan_instances(path: str) -> list:
    """Return [height, width, boxes, {reason to ignore: count}] of an instance map.

    A box is [category id, iscrowd, x0, y0, x1, y1], the extent of the mask of an instance. A region
    with a bare class id is a group of objects without instance ids: each of its connected
    components becomes a box with "iscrowd" 1. InputError for a bad file or an unknown id.
    """
    ids = read_instance_map(path)
    present = np.unique(ids.ravel()[_run_begins(ids)]).tolist()
    for i in present:
        known = LABEL_IDS if i < INSTANCES_PER_CLASS else INSTANCE_LABEL_IDS
        if _label_id(i) not in known:
            raise InputError(f"{path}: instance id {i} belongs to no Cityscapes label")
    things = np.array([i for i in present if _label_id(i) in CATEGORY_OF_LABEL_ID], int)
    boxes, crowds, specks = [], [], 0
    for i, extent in zip(things.tolist(), mask_extents(ids, things), strict=True):
        category = CATEGORY_OF_LABEL_ID[_label_id(i)]
        if i >= INSTANCES_PER_CLASS:
            boxes.append([category, 0, *extent])
        else:
            parts, small = _component_boxes(ids, i, extent)
            crowds += [[category, 1, *box] for box in parts]
            specks += small
    ignored = {
        "group region": len(crowds),
        "speck of a group region": specks,
        "caravan or trailer": sum(i >= INSTANCES_PER_CLASS for i in present) - len(boxes),
    }
    return [*ids.shape, boxes + crowds, {why: n for why, n in ignored.items() if n}]


def mask_extents(ids: np.ndarray, wanted: np.ndarray) -> list[list[int]]:
    """Return the extents [x0, y0, x1, y1], ends exclusive, of ids in a map.

    The map has (H, W) non-negative ids; the (N,) `wanted` ones are distinct and occur in it.
    """
    begins = _run_begins(ids)
    index_of_id = np.full(int(ids.max()) + 1, -1)
    index_of_id[wanted] = np.arange(len(wanted))
    indices = index_of_id[ids.ravel()[begins]]
    kept = indices >= 0
    y0, x0 = np.divmod(begins, ids.shape[1])
    x1 = x0 + np.diff(begins, append=ids.size)
    low = np.full((len(wanted), 2), max(ids.shape))
    high = np.zeros((len(wanted), 2), int)
    np.minimum.at(low, indices[kept], np.stack([x0, y0], axis=1)[kept])
    np.maximum.at(high, indices[kept], np.stack([x1, y0 + 1], axis=1)[kept])
    return np.hstack([low, high]).tolist()


def _run_begins(ids: np.ndarray) -> np.ndarray:
    """Return where runs of one id begin in `ids.ravel()`, a hundred times fewer than pixels."""
    begins = np.ones(ids.shape, bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return np.flatnonzero(begins)


def _component_boxes(ids: np.ndarray, group: int, extent: list[int]) -> tuple[list, int]:
    """Return [x0, y0, x1, y1] of each component of a group region, and the number of specks."""
    x0, y0, x1, y1 = extent  # searching the extent of the region alone is much faster
    mask = (ids[y0:y1, x0:x1] == group).astype(np.uint8)
    # Row 0 is the background; a row is x, y, width, height, area.
    rows = cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:].tolist()
    large = [box for *box, area in rows if area > MAX_SPECK_PIXELS]
    boxes = [[x0 + x, y0 + y, x0 + x + w, y0 + y + h] for x, y, w, h in large]
    return boxes, len(rows) - len(boxes)


def _label_id(instance_id: int) -> int:
    return instance_id // (1 if instance_id < INSTANCES_PER_CLASS else INSTANCES_PER_CLASS)


def _add_boxes(record: Record, path: str, scan: list) -> None:
    """Add the boxes of an instance map as `scan_instances` returns them."""
    *size, boxes, ignored = scan
    check_map_size(record, path, size)
    record[BOX_KEY] = [make_annotation(x[2:], *x[:2]) for x in boxes]
    if ignored:
        record["ignored"] = ignored
