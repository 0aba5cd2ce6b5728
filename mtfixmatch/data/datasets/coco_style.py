"""Bring your own data: a folder of images, a COCO instances JSON, a folder of semantic PNGs."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ...utils.errors import InputError
from ...utils.images import read_image_size
from .instances_json import read_instances
from .scan import (
    IGNORE_LABEL,
    INVALID_LABEL,
    cache_path,
    check_map_size,
    scan_files,
    scan_label_map,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAP_SUFFIXES = (".png",)
# COCO's own boxes reach over the border by a fraction of a pixel.
MAX_OVERSHOOT = 1.0

CLASSES_KEY = "DATASETS.COCO_STYLE.THING_CLASSES"
SEM_SEG_KEY = "DATASETS.COCO_STYLE.SEM_SEG_CLASSES"
IGNORE_KEY = "DATASETS.COCO_STYLE.IGNORE_LABEL"

Record = dict[str, Any]


def load_coco_style(
    *,
    images: str,
    boxes: str,
    maps: str,
    thing_classes: Sequence[str],
    sem_seg_classes: Sequence[str],
    ignore_label: int,
    key: str,
    cache_dir: str | None,
    workers: int = 1,
    broken: dict[str, str] | None = None,
) -> tuple[list[Record], list[str]]:
    """Return the records of one split, sorted by image id, and the classes of its boxes.

    Every image of the folder is a record. It is labeled for boxes when the JSON lists it, and for
    segmentation when there is a PNG of its name; so each split needs an image folder of its own.

    Args:
        images: folder of images, searched with its subfolders.
        boxes: COCO instances JSON; "" = no boxes.
        maps: folder of 8-bit PNGs named and placed like the images; "" = no segmentation.
        thing_classes: order of the classes; empty = the file's, by category id.
        sem_seg_classes: names of the ids 0, 1, ... in the maps.
        ignore_label: id in the maps that is no class.
        key: the config key above IMAGES, BOXES and MAPS, for messages.
        cache_dir: where to remember what the files hold; None = nowhere.
        workers: number of processes that read files which are not in the cache.
        broken: takes file -> message for images and maps that cannot be read, whose records are
            left out; without it they are errors.
    """
    files = _find(images, IMAGE_SUFFIXES, f"{key}.IMAGES")
    sizes = _scan(list(files.values()), read_image_size, images, cache_dir, workers, broken)
    names = [os.path.relpath(path, images).replace(os.sep, "/") for path in files.values()]
    records = {
        name: _make_record(path, name, size)
        for name, path, size in zip(names, files.values(), sizes, strict=True)
        if size
    }
    classes = list(thing_classes)
    if boxes:
        content = load_instances(boxes, cache_dir)
        classes = classes or [name for _, name in content["categories"]]
        _check_classes(classes, content, boxes, f"{key}.BOXES")
        _check_images(names, content, boxes, images)
        _add_boxes(records, content, classes, boxes)
    if maps:
        lut = _make_lut(sem_seg_classes, ignore_label, f"{key}.MAPS")
        found = _find(maps, MAP_SUFFIXES, f"{key}.MAPS")
        scans = _scan(list(found.values()), scan_label_map, maps, cache_dir, workers, broken)
        checked = {stem: (found[stem], scan) for stem, scan in zip(found, scans, strict=True)}
        _add_maps(records, checked, lut, maps, f"{key}.MAPS")
    return [records[name] for name in sorted(records)], classes


def load_instances(boxes: str, cache_dir: str | None) -> dict[str, Any]:
    """Return `read_instances` of a file, from the cache where it did not change."""
    return _scan([boxes], read_instances, boxes, cache_dir, 1)[0]


def _scan(
    paths: list[str],
    function: Any,
    source: str,
    cache_dir: str | None,
    workers: int,
    broken: dict[str, str] | None = None,
) -> list[Any]:
    name = f"coco_style_{function.__name__}"
    cache_file = cache_path(cache_dir, name, source) if cache_dir else None
    return scan_files(paths, function, cache_file, workers, broken)


def _find(folder: str, suffixes: tuple[str, ...], key: str) -> dict[str, str]:
    """Map the path below the folder, without suffix, to the file."""
    if not os.path.isdir(folder):
        raise InputError(f"{key}: there is no folder {folder!r}")
    found: dict[str, str] = {}
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        for path in sorted(os.path.join(parent, x) for x in names if not x.startswith(".")):
            stem, suffix = os.path.splitext(os.path.relpath(path, folder))
            if suffix.lower() not in suffixes:
                continue
            if stem in found:
                raise InputError(
                    f"{key}: {found[stem]} and {path} differ in nothing but the suffix"
                )
            found[stem] = path
    if not found:
        raise InputError(f"{key}: no file in {folder} ends in {', '.join(suffixes)}")
    return found


def _make_record(path: str, name: str, size: list[int]) -> Record:
    return {
        "file_name": path,
        "image_id": name,
        "height": size[0],
        "width": size[1],
    }


def _check_classes(classes: list[str], content: dict[str, Any], boxes: str, key: str) -> None:
    categories = [name for _, name in content["categories"]]
    if len(set(classes)) < len(classes):
        raise InputError(f"{CLASSES_KEY} names a class twice: {classes}")
    missing = [name for name in classes if name not in categories]
    extra = [name for name in categories if name not in classes]
    if missing or extra:
        raise InputError(
            f"{key}: the categories of {boxes} are not those of {CLASSES_KEY} (of TRAIN.BOXES "
            f"where that is empty): the file lacks {missing} and adds {extra}"
        )


def _check_images(names: list[str], content: dict[str, Any], boxes: str, images: str) -> None:
    there = set(names)
    for _, name, *_ in content["images"]:
        if name not in there:
            raise InputError(f"{boxes}: image {name!r} is not in the folder {images}")


def _add_boxes(
    records: dict[str, Record], content: dict[str, Any], classes: list[str], boxes: str
) -> None:
    category_of_id = {i: classes.index(name) for i, name in content["categories"]}
    record_of_id = {}
    for image_id, name, height, width in content["images"]:
        if name not in records:
            continue  # it cannot be read
        record = record_of_id[image_id] = records[name]
        if (height, width) != (record["height"], record["width"]):
            raise InputError(
                f"{boxes}: image {name!r} is said to be {width}x{height} pixels, "
                f"but {record['file_name']} is {record['width']}x{record['height']}"
            )
        record["annotations"] = []
    for annotation, image_id, category, iscrowd, box in content["annotations"]:
        if image_id not in record_of_id:
            continue
        record = record_of_id[image_id]
        record["annotations"].append(
            {
                "bbox": _to_corners(box, record, f"{boxes}: annotation {annotation}"),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": category_of_id[category],
                "iscrowd": iscrowd,
            }
        )


def _to_corners(box: list[float], record: Record, what: str) -> list[float]:
    x, y, w, h = box
    limits = [record["width"], record["height"]] * 2
    corners = [x, y, x + w, y + h]
    clipped = [
        min(max(value, 0.0), float(limit)) for value, limit in zip(corners, limits, strict=True)
    ]
    overshoot = max(abs(a - b) for a, b in zip(corners, clipped, strict=True))
    if overshoot > MAX_OVERSHOOT or clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise InputError(
            f"{what} has bbox {box}, which is not inside its image {record['file_name']} of "
            f"{record['width']}x{record['height']} pixels"
        )
    return clipped


def _make_lut(classes: Sequence[str], ignore_label: int, key: str) -> np.ndarray:
    if not classes:
        raise InputError(f"{SEM_SEG_KEY} is empty: name the classes of the maps in {key}")
    if len(classes) > INVALID_LABEL or len(set(classes)) < len(classes):
        raise InputError(
            f"{SEM_SEG_KEY} lists {len(classes)} classes, "
            f"expected different names and at most {INVALID_LABEL}"
        )
    if not len(classes) <= ignore_label <= 255:
        raise InputError(
            f"{IGNORE_KEY} is {ignore_label}, expected {len(classes)} to 255: "
            f"the ids below are the classes of {SEM_SEG_KEY}"
        )
    lut = np.full(256, INVALID_LABEL, np.uint8)
    lut[: len(classes)] = np.arange(len(classes))
    lut[ignore_label] = IGNORE_LABEL
    return lut


def _add_maps(
    records: dict[str, Record],
    scans: dict[str, tuple[str, list]],
    lut: np.ndarray,
    maps: str,
    key: str,
) -> None:
    labeled = 0
    for name, record in list(records.items()):
        path, scan = scans.get(os.path.splitext(name)[0].replace("/", os.sep), ("", []))
        if not path:
            continue
        if not scan:  # it cannot be read
            del records[name]
            continue
        *map_size, ids = scan
        size = [record["height"], record["width"]]
        check_map_size(record["file_name"], size, path, map_size)
        unknown = [i for i in ids if lut[i] == INVALID_LABEL]
        if unknown:
            raise InputError(
                f"{path}: id {unknown[0]} is neither one of the "
                f"{int((lut < INVALID_LABEL).sum())} classes of {SEM_SEG_KEY} nor {IGNORE_KEY}"
            )
        record["sem_seg_file_name"] = path
        record["sem_seg_lut"] = lut.tobytes()
        labeled += 1
    if not labeled:
        raise InputError(f"{key}: no map in {maps} is named and placed like an image")
