"""Read BDD100K, or a dataset in its folders, as records.

BDD100K has two parts: 100K images with boxes and 10K images with semantic maps. Some images are in
both parts. `bdd100k_files` says where the files are.
"""

import gc
import logging
import os
from dataclasses import replace
from functools import partial
from typing import Any

from ...utils.images import read_image_size
from ...utils.labels import IGNORE_LABEL, INVALID_LABEL
from ..partial_labels import count_labels
from ..records import Record, add_labels, add_map, clip_box, make_annotation, make_record
from .bdd100k_files import SplitFiles, check_images, find_files
from .bdd100k_json import CLASSES, read_frames
from .cityscapes import STUFF_LABELS, cityscapes_metadata
from .folders import is_generated
from .scan import FileScanner, scan_label_map

logger = logging.getLogger(__name__)

# All records share this table.
LUT = bytes([*range(19), *[INVALID_LABEL] * (IGNORE_LABEL - 19), IGNORE_LABEL])
# Numbers of images in the paper (Sec. 4.3), under the keys of `count_labels`.
OFFICIAL = {
    "train": {"annotations": 69_853, "sem_seg_file_name": 6_546, "all": 2_972, "none": 143},
    "val": {"annotations": 10_000, "sem_seg_file_name": 1_000, "all": 0, "none": 0},
}
COUNTED = {"annotations": "boxes", "sem_seg_file_name": "maps", "all": "both", "none": "neither"}

ROUNDING = 1e-3  # pixels that the decimals in the file may cost
DEGENERATE = "degenerate box"  # less than a pixel wide or high


def bdd100k_metadata() -> dict[str, Any]:
    """Return the classes and colors under the keys of Detectron2's metadata."""
    colors = {x.name: list(x.color) for x in STUFF_LABELS}
    colors["pedestrian"] = colors["person"]
    things = {"thing_classes": list(CLASSES), "thing_colors": [colors[x] for x in CLASSES]}
    return cityscapes_metadata() | things


def load_bdd100k(*, root: str, split: str, scan: FileScanner) -> list[Record]:
    """Return the records of a split, "train" or "val", its parts merged, sorted by image id.

    An image in both parts is one record with both labels; its file is that of the 100K part. The
    10K part for training loses the images that the 100K part holds for validation.

    An image is not labeled for boxes without a frame in the JSON (137 of the official 70,000), nor
    if the "labels" of its frame are null or absent (10 more). As in BDD100K's own tools, boxes with
    the attribute "crowd" or one of the categories UNCERTAIN are ignored. InputError if files are
    missing, misplaced or of the wrong form.
    """
    files = find_files(root, split)
    images = dict(sorted((files.small | files.large).items()))
    sizes = scan(images.values(), read_image_size, name=f"bdd100k_{split}_sizes", source=root)
    records = {x: make_record(path, x, sizes[path]) for x, path in images.items() if path in sizes}
    maps = {x: path for x, path in files.maps.items() if x in files.small and x in records}
    scans = scan(maps.values(), scan_label_map, name=f"bdd100k_{split}_maps", source=root)
    expected = "no class of BDD100K, expected 0 to 18, or 255 for none"
    add_labels(records, maps, scans, partial(add_map, lut=LUT, expected=expected))
    name, strict = f"bdd100k_{split}_boxes", replace(scan, broken=None)
    collecting = gc.isenabled()
    gc.disable()  # collecting garbage would take longer than making a million boxes
    try:
        frames = strict([files.boxes], read_frames, name=name, source=root)
        _read_boxes(records, files, frames.pop(files.boxes))
    finally:
        if collecting:
            gc.enable()
    counts = count_labels(records.values(), ["annotations", "sem_seg_file_name"])
    if counts != OFFICIAL[split] and not is_generated(root):
        shown = [f"{COUNTED[key]} {counts[key]}/{n}" for key, n in OFFICIAL[split].items()]
        text = "%s: not the official BDD100K, number of %s images found/expected: %s"
        logger.warning(text, root, split, ", ".join(shown))
    return list(records.values())


def _read_boxes(records: dict[str, Record], files: SplitFiles, frames: list[list]) -> None:
    check_images([os.path.splitext(frame[0])[0] for frame in frames], files.large, files.boxes)
    while frames:  # free the frames on the way: they take as much memory as the annotations
        name, boxes, ignored = frames.pop()
        image_id = os.path.splitext(name)[0]
        if image_id in files.large and image_id in records and boxes is not None:
            _add_boxes(records[image_id], boxes, ignored, f"{files.boxes}: frame {name!r}")


def _add_boxes(record: Record, boxes: list[list], ignored: dict[str, int], frame: str) -> None:
    """Add the boxes of a frame as `read_frames` returns them."""
    record["annotations"] = []
    for category, iscrowd, x0, y0, *last in boxes:
        # The file gives the first and the last pixel.
        x1, y1 = last[0] + 1.0, last[1] + 1.0
        problem = f"{frame} has the box x1, y1, x2, y2 = {[x0, y0, *last]}"
        box = clip_box([x0, y0, x1, y1], record, problem, tolerance=ROUNDING, empty=True)
        if min(box[2] - box[0], box[3] - box[1]) < 1 - ROUNDING:
            ignored[DEGENERATE] = ignored.get(DEGENERATE, 0) + 1
        else:
            record["annotations"].append(make_annotation(box, category, iscrowd))
    if ignored:
        record["ignored"] = ignored
