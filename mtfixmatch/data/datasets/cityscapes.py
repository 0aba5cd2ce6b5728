"""Cityscapes, and anything else in its folders, as records.

leftImg8bit/<split>/<city>/<image_id>_leftImg8bit.png
gtFine/<split>/<city>/<image_id>_gtFine_instanceIds.png    (absent = not labeled for boxes)
gtFine/<split>/<city>/<image_id>_gtFine_labelIds.png       (absent = not labeled for segmentation)
"""

import glob
import os
from typing import Any

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import labels
from detectron2.structures import BoxMode

from ...errors import InputError
from .scan import (
    IGNORE_LABEL,
    INVALID_LABEL,
    cache_path,
    check_map_size,
    read_image_size,
    read_instance_map,
    scan_files,
    scan_label_map,
)

IMAGE_SUFFIX = "_leftImg8bit.png"
INSTANCES_SUFFIX = "_gtFine_instanceIds.png"
LABELS_SUFFIX = "_gtFine_labelIds.png"

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
    root: str, split: str, *, cache_dir: str | None, workers: int = 1
) -> list[dict[str, Any]]:
    """Return the records of one split, sorted by image id.

    Args:
        root: the folder that holds leftImg8bit and gtFine.
        split: name of the folders below these two.
        cache_dir: where to remember what the files hold; None = nowhere.
        workers: number of processes that read files which are not in the cache.
    """
    images = _find_images(root, split)

    def scan(paths: list[str], function: Any, what: str) -> dict[str, Any]:
        found = [path for path in paths if os.path.isfile(path)]
        name = f"cityscapes_{split}_{what}"
        cache_file = cache_path(cache_dir, name, root) if cache_dir else None
        return dict(zip(found, scan_files(found, function, cache_file, workers), strict=True))

    sizes = scan(images, read_image_size, "sizes")
    instances = scan([_map_path(x, INSTANCES_SUFFIX) for x in images], scan_instances, "boxes")
    maps = scan([_map_path(x, LABELS_SUFFIX) for x in images], scan_label_map, "maps")
    records = [_make_record(image, sizes[image], instances, maps) for image in images]
    return sorted(records, key=lambda record: record["image_id"])


def label_id_lut() -> bytes:
    """Return the table of 256 train ids that translates the label ids in a map."""
    lut = np.full(256, INVALID_LABEL, np.uint8)
    lut[sorted(LABEL_IDS)] = IGNORE_LABEL
    lut[[x.id for x in STUFF_LABELS]] = [x.trainId for x in STUFF_LABELS]
    return lut.tobytes()


def scan_instances(path: str) -> list:
    """Return [height, width, [[category id, iscrowd, x0, y0, x1, y1], ...]] of an instance map.

    An instance gives the extent of its mask. A region with a bare class id is a group that was not
    told apart: it gives one crowd box for each of its connected components.
    """
    ids = read_instance_map(path)
    present = np.flatnonzero(np.bincount(ids.ravel()))
    single = present >= INSTANCES_PER_CLASS
    unknown = [
        *set(present[~single].tolist()).difference(LABEL_IDS),
        *(i for i in present[single].tolist() if _label_id(i) not in INSTANCE_LABEL_IDS),
    ]
    if unknown:
        raise InputError(f"{path}: instance id {unknown[0]} belongs to no Cityscapes label")

    things = np.array([i for i in present.tolist() if _label_id(i) in CATEGORY_OF_LABEL_ID], int)
    instances = things[things >= INSTANCES_PER_CLASS]
    boxes = [
        [CATEGORY_OF_LABEL_ID[_label_id(i)], 0, *box]
        for i, box in zip(instances.tolist(), mask_extents(ids, instances), strict=True)
    ]
    for group in things[things < INSTANCES_PER_CLASS].tolist():
        boxes += [[CATEGORY_OF_LABEL_ID[group], 1, *box] for box in _component_boxes(ids == group)]
    return [*ids.shape, boxes]


def mask_extents(ids: np.ndarray, wanted: np.ndarray) -> list[list[int]]:
    """Return [x0, y0, x1, y1], ends exclusive, of the pixels that hold each of the wanted ids."""
    index = np.full(int(ids.max()) + 1, -1, np.int16)
    index[wanted] = np.arange(len(wanted))
    found = index[ids]
    ys, xs = np.nonzero(found >= 0)
    found = found[ys, xs]
    starts, ends = [], []
    for positions, size in ((xs, ids.shape[1]), (ys, ids.shape[0])):
        seen = np.zeros((len(wanted), size), bool)
        seen[found, positions] = True
        starts.append(seen.argmax(axis=1))
        ends.append(size - seen[:, ::-1].argmax(axis=1))
    return np.stack(starts + ends, axis=1).tolist()


def _component_boxes(mask: np.ndarray) -> list[list[int]]:
    stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2]
    # Row 0 is the background; a row is x, y, width, height, area.
    return [[x, y, x + w, y + h] for x, y, w, h, n in stats[1:].tolist() if n > MAX_SPECK_PIXELS]


def _label_id(instance_id: int) -> int:
    bare = instance_id < INSTANCES_PER_CLASS
    return instance_id if bare else instance_id // INSTANCES_PER_CLASS


def _find_images(root: str, split: str) -> list[str]:
    pattern = os.path.join("leftImg8bit", split, "*", f"*{IMAGE_SUFFIX}")
    for folder in (
        root,
        os.path.join(root, "leftImg8bit"),
        os.path.join(root, "leftImg8bit", split),
    ):
        if not os.path.isdir(folder):
            raise InputError(
                f"{root}: looked for images in {pattern}, but there is no folder {folder}; "
                "give the folder that holds leftImg8bit and gtFine"
            )
    images = glob.glob(os.path.join(glob.escape(root), pattern))
    if not images:
        raise InputError(f"{root}: there is no image {pattern}")
    return sorted(images)


def _map_path(image: str, suffix: str) -> str:
    folder, name = os.path.split(image)
    rest, city = os.path.split(folder)
    top, split = os.path.split(rest)
    name = name.removesuffix(IMAGE_SUFFIX) + suffix
    return os.path.join(os.path.dirname(top), "gtFine", split, city, name)


def _make_record(
    image: str, size: list[int], instances: dict[str, Any], maps: dict[str, Any]
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "file_name": image,
        "image_id": os.path.basename(image).removesuffix(IMAGE_SUFFIX),
        "height": size[0],
        "width": size[1],
    }
    instance_map, label_map = _map_path(image, INSTANCES_SUFFIX), _map_path(image, LABELS_SUFFIX)
    if instance_map in instances:
        *map_size, boxes = instances[instance_map]
        check_map_size(image, size, instance_map, map_size)
        record["annotations"] = [_make_annotation(*box) for box in boxes]
    if label_map in maps:
        *map_size, ids = maps[label_map]
        check_map_size(image, size, label_map, map_size)
        _check_label_ids(image, label_map, ids)
        record["sem_seg_file_name"] = label_map
        record["sem_seg_lut"] = label_id_lut()
    return record


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
