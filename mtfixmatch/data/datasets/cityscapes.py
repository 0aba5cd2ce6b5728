"""Cityscapes, and anything else in its folders, as records.

Where the files are says cityscapes_files.py. A missing instance map = not labeled for boxes, a
missing label map = not labeled for segmentation. "train_extra" and "sequence" have no labels.
"""

from functools import cache
from typing import Any

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import labels
from detectron2.structures import BoxMode

from ...utils.errors import InputError
from ...utils.images import read_image_size, read_instance_map
from .cityscapes_files import INSTANCES_SUFFIX, LABELS_SUFFIX, find_images, find_maps, image_id
from .scan import (
    IGNORE_LABEL,
    INVALID_LABEL,
    cache_path,
    check_map_size,
    scan_files,
    scan_label_map,
)

# The license plate has id -1, which an 8-bit map holds as 255; it and the void classes are ignored.
STUFF_LABELS = sorted((x for x in labels if 0 <= x.trainId < 255), key=lambda x: x.trainId)
THING_LABELS = [x for x in STUFF_LABELS if x.hasInstances]
CATEGORY_OF_LABEL_ID = {x.id: category for category, x in enumerate(THING_LABELS)}
LABEL_IDS = frozenset(x.id % 256 for x in labels)
INSTANCE_LABEL_IDS = frozenset(x.id for x in labels if x.hasInstances)

# A value in an instance map is a bare label id, or label id * 1000 + number of the instance.
INSTANCES_PER_CLASS = 1000
# Specks of a group region up to this many pixels are left out.
MAX_SPECK_PIXELS = 10

Record = dict[str, Any]


def cityscapes_metadata() -> dict[str, Any]:
    """Return the classes and colours under detectron2's metadata keys."""
    return {
        "thing_classes": [x.name for x in THING_LABELS],
        "thing_colors": [list(x.color) for x in THING_LABELS],
        "stuff_classes": [x.name for x in STUFF_LABELS],
        "stuff_colors": [list(x.color) for x in STUFF_LABELS],
        "ignore_label": IGNORE_LABEL,
    }


def load_cityscapes(
    root: str,
    split: str,
    *,
    cache_dir: str | None,
    workers: int = 1,
    broken: dict[str, str] | None = None,
) -> list[Record]:
    """Return the records of one split, sorted by image id.

    Args:
        root: the folder that holds leftImg8bit and gtFine.
        split: "train", "val", "train_extra" or "sequence".
        cache_dir: where to remember what the files hold; None = nowhere.
        workers: number of processes that read files which are not in the cache.
        broken: takes file -> message for images and maps that cannot be read, whose records are
            left out; without it they are errors.

    Returns:
        records whose key "ignored", reason -> count, tells what the labels leave out, if anything.

    Raises:
        InputError: files are missing, misplaced or not what they should be.
    """
    images = find_images(root, split)

    def scan(paths: list[str], function: Any, what: str) -> list[Any]:
        name = f"cityscapes_{split}_{what}"
        cache_file = cache_path(cache_dir, name, root) if cache_dir else None
        return scan_files(paths, function, cache_file, workers, broken)

    sizes = scan(images, read_image_size, "sizes")
    records = {x: _make_record(x, size) for x, size in zip(images, sizes, strict=True) if size}
    for suffix, function, what, add in (
        (INSTANCES_SUFFIX, scan_instances, "boxes", _add_boxes),
        (LABELS_SUFFIX, scan_label_map, "maps", _add_map),
    ):
        maps = find_maps(root, split, list(records), suffix)
        scans = scan(list(maps.values()), function, what)
        for (image, path), found in zip(maps.items(), scans, strict=True):
            if found:
                add(records[image], path, found)
            else:
                del records[image]
    return sorted(records.values(), key=lambda record: record["image_id"])


@cache
def label_id_lut() -> bytes:
    """Return the table of 256 train ids that translates the label ids in a map."""
    lut = np.full(256, INVALID_LABEL, np.uint8)
    lut[sorted(LABEL_IDS)] = IGNORE_LABEL
    lut[[x.id for x in STUFF_LABELS]] = [x.trainId for x in STUFF_LABELS]
    return lut.tobytes()


def scan_instances(path: str) -> list:
    """Return what an instance map says of boxes.

    An instance gives the extent of its mask. A region with a bare class id is a group that was not
    told apart: it gives one crowd box for each of its connected components.

    Returns:
        [height, width, [[category id, iscrowd, x0, y0, x1, y1], ...], {reason to ignore: count}]
    """
    ids = read_instance_map(path)
    present = np.unique(ids.ravel()[_run_begins(ids)]).tolist()
    _check_instance_ids(path, present)
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
    """Return [x0, y0, x1, y1], ends exclusive, of the pixels that hold each of the wanted ids.

    Args:
        ids: (H, W) of non-negative integers.
        wanted: (N,) different ids, all of which occur.
    """
    begins = _run_begins(ids)
    index = np.full(int(ids.max()) + 1, -1)
    index[wanted] = np.arange(len(wanted))
    found = index[ids.ravel()[begins]]
    kept = found >= 0
    y0, x0 = np.divmod(begins, ids.shape[1])
    x1 = x0 + np.diff(begins, append=ids.size)
    low = np.full((len(wanted), 2), max(ids.shape))
    high = np.zeros((len(wanted), 2), int)
    np.minimum.at(low, found[kept], np.stack([x0, y0], axis=1)[kept])
    np.maximum.at(high, found[kept], np.stack([x1, y0 + 1], axis=1)[kept])
    return np.hstack([low, high]).tolist()


def _run_begins(ids: np.ndarray) -> np.ndarray:
    """Return where, in `ids.ravel()`, a row begins or its id changes.

    A map has a hundred times fewer of these places than pixels.
    """
    begins = np.ones(ids.shape, bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return np.flatnonzero(begins)


def _component_boxes(ids: np.ndarray, group: int, extent: list[int]) -> tuple[list, int]:
    """Return [x0, y0, x1, y1] of each component of a group region, and the number of specks.

    Args:
        ids: (H, W) instance map.
        group: the id of the region.
        extent: its [x0, y0, x1, y1]; components are sought there alone, which is much faster.
    """
    x0, y0, x1, y1 = extent
    mask = (ids[y0:y1, x0:x1] == group).astype(np.uint8)
    # Row 0 is the background; a row is x, y, width, height, area.
    rows = cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:].tolist()
    boxes = [
        [x0 + x, y0 + y, x0 + x + w, y0 + y + h]
        for x, y, w, h, area in rows
        if area > MAX_SPECK_PIXELS
    ]
    return boxes, len(rows) - len(boxes)


def _check_instance_ids(path: str, ids: list[int]) -> None:
    for i in ids:
        known = LABEL_IDS if i < INSTANCES_PER_CLASS else INSTANCE_LABEL_IDS
        if _label_id(i) not in known:
            raise InputError(f"{path}: instance id {i} belongs to no Cityscapes label")


def _label_id(instance_id: int) -> int:
    bare = instance_id < INSTANCES_PER_CLASS
    return instance_id if bare else instance_id // INSTANCES_PER_CLASS


def _make_record(image: str, size: list[int]) -> Record:
    return {
        "file_name": image,
        "image_id": image_id(image),
        "height": size[0],
        "width": size[1],
    }


def _add_boxes(record: Record, path: str, found: list) -> None:
    *size, boxes, ignored = found
    _check_size(record, path, size)
    record["annotations"] = [_make_annotation(*box) for box in boxes]
    if ignored:
        record["ignored"] = ignored


def _add_map(record: Record, path: str, found: list) -> None:
    *size, ids = found
    _check_size(record, path, size)
    _check_label_ids(record["file_name"], path, ids)
    record["sem_seg_file_name"] = path
    record["sem_seg_lut"] = label_id_lut()


def _check_size(record: Record, path: str, size: list[int]) -> None:
    check_map_size(record["file_name"], [record["height"], record["width"]], path, size)


def _make_annotation(category: int, iscrowd: int, *box: int) -> dict[str, Any]:
    return {
        "bbox": [float(x) for x in box],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "iscrowd": iscrowd,
    }


def _check_label_ids(image: str, label_map: str, ids: list[int]) -> None:
    unknown = sorted(set(ids).difference(LABEL_IDS))
    if unknown:
        raise InputError(
            f"{label_map}, the map of {image}: label id {unknown[0]} belongs to no Cityscapes label"
        )
