"""Read your own data: a folder of images, a COCO instances JSON and a folder of semantic maps."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...utils.errors import InputError
from ...utils.images import read_image_size
from ...utils.labels import IGNORE_LABEL, INVALID_LABEL
from ..records import Record, add_labels, add_map, clip_box, make_annotation, make_record
from .instances_json import read_instances
from .scan import FileScanner, scan_label_map

ByName = dict[str, Record]  # by the path of the image below its folder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAP_SUFFIXES = (".png",)

CLASSES_KEY = "DATASETS.COCO_STYLE.THING_CLASSES"
SEM_SEG_KEY = "DATASETS.COCO_STYLE.SEM_SEG_CLASSES"
IGNORE_KEY = "DATASETS.COCO_STYLE.IGNORE_LABEL"


def load_coco_style(
    *,
    images: str,
    boxes: str,
    maps: str,
    thing_classes: Sequence[str],
    sem_seg_classes: Sequence[str],
    ignore_label: int,
    key: str,
    scan: FileScanner,
) -> tuple[list[Record], list[str]]:
    """Return the records of one split, sorted by image id, and the classes of its boxes.

    Each image of the folder is a record, labeled for boxes if the JSON lists it, and for
    segmentation if there is a map of the same name. So each split needs its own image folder.
    The arguments are the values in DATASETS.COCO_STYLE, and `key` is the config key above IMAGES,
    BOXES and MAPS. The `broken` of `scan` takes images and maps; a bad JSON is always an error.

    InputError if files are missing, of the wrong form, or do not fit each other or the config.
    """
    files = _find_files(images, IMAGE_SUFFIXES, f"{key}.IMAGES")
    names = {os.path.relpath(path, images).replace(os.sep, "/"): path for path in files.values()}
    sizes = scan(names.values(), read_image_size, name="coco_style_read_image_size", source=images)
    records = {x: make_record(path, x, sizes[path]) for x, path in names.items() if path in sizes}
    classes = list(thing_classes)
    if boxes:
        content = load_instances(boxes, scan)
        classes = classes or class_names(content)
        _check_classes(classes, content, boxes, f"{key}.BOXES")
        for _, name, *_ in content["images"]:
            if name not in names:
                raise InputError(f"{boxes}: image {name!r} is not in the folder {images}")
        _add_boxes(records, content, classes, boxes)
    if maps:
        lut = _make_lut(sem_seg_classes, ignore_label, f"{key}.MAPS")
        _add_maps(records, maps, lut, f"{key}.MAPS", scan)
    return [records[name] for name in sorted(records)], classes


def load_instances(boxes: str, scan: FileScanner) -> dict[str, Any]:
    """Return the content of a COCO instances JSON, also if it is cached; see `read_instances`."""
    strict = replace(scan, broken=None)
    return strict([boxes], read_instances, name="coco_style_read_instances", source=boxes)[boxes]


def class_names(content: dict[str, Any]) -> list[str]:
    """Return the classes in the content of a COCO instances JSON, by category id."""
    return [name for _, name in content["categories"]]


def _find_files(folder: str, suffixes: tuple[str, ...], key: str) -> dict[str, str]:
    """Return path relative to the folder, without suffix -> file."""
    if not os.path.isdir(folder):
        raise InputError(f"{key}: there is no folder {folder!r}")
    files: dict[str, str] = {}
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        for path in sorted(os.path.join(parent, x) for x in names if not x.startswith(".")):
            stem, suffix = os.path.splitext(os.path.relpath(path, folder))
            if suffix.lower() in suffixes and files.setdefault(stem, path) != path:
                raise InputError(f"{key}: {files[stem]} and {path} differ only in the suffix")
    if not files:
        raise InputError(f"{key}: no file in {folder} ends in {', '.join(suffixes)}")
    return files


def _check_classes(classes: list[str], content: dict[str, Any], boxes: str, key: str) -> None:
    if len(set(classes)) < len(classes):
        raise InputError(f"{CLASSES_KEY} names a class twice: {classes}")
    categories = class_names(content)
    missing = [x for x in classes if x not in categories]
    extra = [x for x in categories if x not in classes]
    if missing or extra:
        raise InputError(
            f"{key}: the categories of {boxes} are not those of {CLASSES_KEY} (of TRAIN.BOXES "
            f"where that is empty): the file lacks {missing} and adds {extra}"
        )


def _add_boxes(records: ByName, content: dict[str, Any], classes: list[str], boxes: str) -> None:
    """Label the listed images; an image without a record is broken and is left out."""
    record_of_id = {}
    for image_id, name, height, width in content["images"]:
        if record := records.get(name):
            record_of_id[image_id] = record
            if [height, width] != [record["height"], record["width"]]:
                file = f"{record['file_name']} is {record['width']}x{record['height']}"
                what = f"image {name!r} has {width}x{height} pixels there"
                raise InputError(f"{boxes}: {what}, but {file}")
            record["annotations"] = []
    category_of_id = {i: classes.index(name) for i, name in content["categories"]}
    for annotation, image_id, category, iscrowd, bbox in content["annotations"]:
        if record := record_of_id.get(image_id):
            x, y, w, h = bbox
            problem = f"{boxes}: annotation {annotation} has bbox {bbox}"
            box = clip_box([x, y, x + w, y + h], record, problem)
            record["annotations"].append(make_annotation(box, category_of_id[category], iscrowd))


def _make_lut(classes: Sequence[str], ignore_label: int, key: str) -> bytes:
    """Return the look-up table of the maps, id -> class, `IGNORE_LABEL` or `INVALID_LABEL`."""
    if not classes:
        raise InputError(f"{SEM_SEG_KEY} is empty: name the classes of the maps in {key}")
    count = len(classes)
    if count > INVALID_LABEL or len(set(classes)) < count:
        expected = f"different names and at most {INVALID_LABEL}"
        raise InputError(f"{SEM_SEG_KEY} lists {count} classes, expected {expected}")
    if not count <= ignore_label <= 255:
        expected = f"{count} to 255: the ids below are the classes of {SEM_SEG_KEY}"
        raise InputError(f"{IGNORE_KEY} is {ignore_label}, expected {expected}")
    lut = np.full(256, INVALID_LABEL, np.uint8)
    lut[:count] = np.arange(count)
    lut[ignore_label] = IGNORE_LABEL
    return lut.tobytes()


def _add_maps(records: ByName, folder: str, lut: bytes, key: str, scan: FileScanner) -> None:
    files = _find_files(folder, MAP_SUFFIXES, key)
    scans = scan(files.values(), scan_label_map, name="coco_style_scan_label_map", source=folder)
    stems = {name: os.path.splitext(name)[0].replace("/", os.sep) for name in records}
    maps = {name: files[stem] for name, stem in stems.items() if stem in files}
    if not any(path in scans for path in maps.values()):
        raise InputError(f"{key}: no map in {folder} is named and placed like an image")
    num_classes = sum(x < INVALID_LABEL for x in lut)
    expected = f"neither one of the {num_classes} classes of {SEM_SEG_KEY} nor {IGNORE_KEY}"
    add_labels(records, maps, scans, partial(add_map, lut=lut, expected=expected))
