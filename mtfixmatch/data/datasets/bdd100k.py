"""Read BDD100K, or a dataset in its folders, as records.

BDD100K has two parts: 100K images with boxes and 10K images with semantic maps. Some images are in
both parts. `bdd100k_files` says where the files are.
"""

import logging
import os
from collections.abc import Collection
from functools import partial
from typing import Any

from ...tasks.box_labels import CLIPPED, NO_AREA
from ...utils.boxes import clip_box, is_far
from ...utils.images import read_image_size
from ...utils.labels import IGNORE_LABEL, INVALID_LABEL
from ...utils.notes import Notes
from ..partial_labels import count_labels
from ..records import (
    BOX_KEY,
    LABEL_KEYS,
    MAP_KEY,
    Record,
    add_labels,
    add_map,
    make_annotation,
    make_record,
)
from .bdd100k_files import SplitFiles, check_images, find_files
from .bdd100k_json import CLASSES, FAULTY_LABELS, read_frames
from .cityscapes import STUFF_LABELS, cityscapes_metadata
from .folders import is_generated
from .scan import FileScanner, scan_label_map

logger = logging.getLogger(__name__)

# All records share this table.
LUT = bytes([*range(19), *[INVALID_LABEL] * (IGNORE_LABEL - 19), IGNORE_LABEL])
# Numbers of images in the paper (Sec. 4.3), under the keys of `count_labels`.
OFFICIAL = {
    "train": {BOX_KEY: 69_853, MAP_KEY: 6_546, "all": 2_972, "none": 143},
    "val": {BOX_KEY: 10_000, MAP_KEY: 1_000, "all": 0, "none": 0},
}
# Number of training images with maps without the 100K part, whose validation images are excluded.
OFFICIAL_MAPS_ALONE = 7_000
COUNTED = {BOX_KEY: "boxes", MAP_KEY: "maps", "all": "both", "none": "neither"}

ROUNDING = 1e-3  # pixels that the decimals in the file may cost
DEGENERATE = "degenerate box"  # less than a pixel wide or high inside the image


def bdd100k_metadata() -> dict[str, Any]:
    """Return the classes and colors under the keys of Detectron2's metadata."""
    colors = {x.name: list(x.color) for x in STUFF_LABELS}
    colors["pedestrian"] = colors["person"]
    things = {"thing_classes": list(CLASSES), "thing_colors": [colors[x] for x in CLASSES]}
    return cityscapes_metadata() | things


def load_bdd100k(
    *, root: str, split: str, scan: FileScanner, labels: Collection[str] = LABEL_KEYS
) -> list[Record]:
    """Return the records of a split, "train" or "val", its parts merged, sorted by image id.

    Only the `labels` are read and needed, with the images of their part; images of the other part
    are unlabeled if they are there. An image in both parts is one record with both labels; its file
    is that of the 100K part. The 10K part for training loses the images that the 100K part holds
    for validation.

    An image is not labeled for boxes without a frame in the JSON (137 of the official 70,000), nor
    if the "labels" of its frame are null or absent (10 more). As in BDD100K's own tools, boxes with
    the attribute "crowd" or one of the categories UNCERTAIN are ignored. Single labels that cannot
    be used are left out and noted. InputError if files are missing, misplaced or malformed.
    """
    files = find_files(root, split, labels, scan.notes)
    images = dict(sorted((files.small | files.large).items()))
    sizes = scan(images.values(), read_image_size, name=f"bdd100k_{split}_sizes", source=root)
    records = {x: make_record(path, x, sizes[path]) for x, path in images.items() if path in sizes}
    if MAP_KEY in labels:
        maps = {x: path for x, path in files.maps.items() if x in files.small and x in records}
        scans = scan(maps.values(), scan_label_map, name=f"bdd100k_{split}_maps", source=root)
        expected = "no class of BDD100K, expected 0 to 18, or 255 for none"
        add = partial(add_map, lut=LUT, expected=expected)
        add_labels(records, maps, scans, add, root, scan.notes)
    if BOX_KEY in labels:
        name = f"bdd100k_{split}_boxes"
        content = scan([files.boxes], read_frames, name=name, source=root, strict=True)
        _add_frames(records, files, content.pop(files.boxes), scan.notes)
    if not is_generated(root):
        keys = [key for key in LABEL_KEYS if key in labels]
        counts = count_labels(records.values(), keys)
        # With one kind of label, the others depend on which part is there.
        shown = keys if len(keys) == 1 else list(counts)
        _compare_counts({key: counts[key] for key in shown}, files, root, split)
    return list(records.values())


def _compare_counts(counts: dict[str, int], files: SplitFiles, root: str, split: str) -> None:
    """Warn of numbers of images, under the keys of `count_labels`, that are not the official."""
    alone = split == "train" and not files.held_out
    official = OFFICIAL[split] | ({MAP_KEY: OFFICIAL_MAPS_ALONE} if alone else {})
    if any(counts[key] != official[key] for key in counts):
        shown = [f"{COUNTED[key]} {counts[key]}/{official[key]}" for key in counts]
        text = "%s: not the official BDD100K, number of %s images found/expected: %s"
        logger.warning(text, root, split, ", ".join(shown))


def _add_frames(
    records: dict[str, Record], files: SplitFiles, content: dict[str, Any], notes: Notes
) -> None:
    """Add the boxes of all frames; `content` is what `read_frames` returns."""
    frames = content["frames"]
    notes.check_share(files.boxes, FAULTY_LABELS, content["faults"], content["num_entries"])
    names = [os.path.splitext(frame[0])[0] for frame in frames]
    check_images(names, files.large, files.boxes, notes)
    while frames:  # free the frames on the way: they take as much memory as the annotations
        name, boxes, ignored = frames.pop()
        image_id = os.path.splitext(name)[0]
        if image_id in files.large and image_id in records and boxes is not None:
            where = f"{files.boxes}: frame {name!r}"
            _add_boxes(records[image_id], boxes, ignored, where, notes)


def _add_boxes(
    record: Record, boxes: list[list], ignored: dict[str, int], frame: str, notes: Notes
) -> None:
    """Add the boxes of a frame as `read_frames` returns them."""
    record[BOX_KEY] = []
    width, height = float(record["width"]), float(record["height"])
    for category, iscrowd, x0, y0, *last in boxes:
        # The file gives the first and the last pixel.
        box = [x0, y0, last[0] + 1.0, last[1] + 1.0]
        clipped = clip_box(box, width, height)
        is_swapped = last[0] < x0 or last[1] < y0
        if is_swapped or is_far(box, width + ROUNDING, height + ROUNDING):
            image = f"{record['file_name']} of {width:.0f}x{height:.0f} pixels"
            kind = NO_AREA if is_swapped else CLIPPED
            notes.add(kind, f"{frame}: x1, y1, x2, y2 = {[x0, y0, *last]} in {image}")
        if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < 1 - ROUNDING:
            ignored[DEGENERATE] = ignored.get(DEGENERATE, 0) + 1
        else:
            record[BOX_KEY].append(make_annotation(clipped, category, iscrowd))
    if ignored:
        record["ignored"] = ignored
