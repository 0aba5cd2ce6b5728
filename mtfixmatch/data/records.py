"""The record of an image, which all readers of datasets make.

A record is a dict with the keys of Detectron2's dataset dicts:

    file_name                    path of the image
    image_id                     name of the image, unique in the training set
    height, width                size of the image in pixels, after its EXIF rotation
    <label key of a task>        label; absent = the image is not labeled for the task
    range_16bit                  optional: the two values of a 16-bit image that become 0 and 255;
                                 absent = those of INPUT.RANGE_16BIT
    ignored                      optional: reason -> number of objects that are ignored or left out
    hidden                       optional: label key -> label that `partial_labels` hides

A label may be partial: the teacher then labels the rest of the image.

    labeled_classes              optional: sorted list of the class ids that the boxes are for; of
                                 the other classes nothing is known. Absent = all classes
    sem_seg_partial              optional: True = a pixel that the map ignores is not labeled yet.
                                 Absent or False = it is to be ignored

The keys of a task of another name begin with it: <task>_labeled_classes, <task>_sem_seg_partial.

The readers of this package write two labels:

    annotations                  boxes: "bbox", "bbox_mode" XYXY_ABS, "category_id" and "iscrowd";
                                 an empty list = labeled, but the image has no object
    sem_seg_file_name            path of an 8-bit label map
    sem_seg_lut                  256 bytes: id in that file -> class, IGNORE_LABEL or INVALID_LABEL
    sem_seg_reader               instead of it: object that reads the classes from the file, which
                                 may be of any kind, see `tasks.segmentation.MapReader`
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.structures import BoxMode

from ..utils.errors import InputError
from ..utils.labels import INVALID_LABEL
from ..utils.notes import Notes

Record = dict[str, Any]
Records = Sequence[Record]

FAULTY = "label files that do not fit their image or have unknown values, left out"  # for notes

BOX_KEY, MAP_KEY = LABEL_KEYS = ("annotations", "sem_seg_file_name")


def make_record(path: str, image_id: str, size: Sequence[int]) -> Record:
    """Return the record of an unlabeled image of `size` [height, width]."""
    return {"file_name": path, "image_id": image_id, "height": size[0], "width": size[1]}


def make_annotation(box: Sequence[float], category_id: int, iscrowd: int) -> dict[str, Any]:
    """Return the annotation of a box [x0, y0, x1, y1] in pixels, ends exclusive."""
    bbox = {"bbox": [float(x) for x in box], "bbox_mode": BoxMode.XYXY_ABS}
    return {**bbox, "category_id": category_id, "iscrowd": iscrowd}


def check_map_size(record: Record, path: str, size: Sequence[int]) -> None:
    """Raise InputError unless the label map at `path` has the [height, width] of its image."""
    if [record["height"], record["width"]] != list(size):
        image = f"its image {record['file_name']} is {record['width']}x{record['height']}"
        raise InputError(f"{path} is {size[1]}x{size[0]} pixels, but {image}")


def add_map(record: Record, path: str, scan: Sequence, *, lut: bytes, expected: str) -> None:
    """Label an image with the semantic map at `path`, whose `scan` is [height, width, ids].

    InputError if the map has another size than its image, or an id that `lut` lacks, which is
    called `expected`, such as "no class of BDD100K".
    """
    *size, ids = scan
    check_map_size(record, path, size)
    unknown = [i for i in ids if lut[i] == INVALID_LABEL]
    if unknown:
        raise InputError(f"{path}: id {unknown[0]} is {expected} (image: {record['file_name']})")
    record |= {"sem_seg_file_name": path, "sem_seg_lut": lut}


def add_labels(
    records: dict[str, Record],
    paths: Mapping[str, str],
    scans: Mapping[str, Any],
    add: Callable[[Record, str, Any], None],
    source: str,
    notes: Notes,
) -> None:
    """Call `add` with the record, path and scan of each label file.

    A record whose file has no scan is dropped. One for which `add` raises an InputError stays
    without the label, and a note names the file; if they are too many, it is an InputError.
    """
    faults = []
    for name, path in paths.items():
        if path not in scans:
            del records[name]
            continue
        try:
            add(records[name], path, scans[path])
        except InputError as error:
            faults.append(str(error))
    notes.check_share(source, FAULTY, faults, len(paths))
