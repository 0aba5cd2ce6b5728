"""BDD100K, and anything else in its folders, as records.

It has two parts: 100K with boxes, and 10K with maps, images of which may be in both.

images/100k/<split>/<image_id>.jpg
labels/det_20/det_<split>.json                    (see `bdd100k_json`)
images/10k/<split>/<image_id>.jpg
labels/sem_seg/masks/<split>/<image_id>.png       (8 bits: 0-18 as in Cityscapes, 255 = ignore)

Older names are in PLACES. All may lie in a folder bdd100k, as the archives are packed.
"""

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from detectron2.structures import BoxMode

from ...utils.errors import InputError
from ...utils.images import read_image_size
from ..partial_labels import count_labels
from .bdd100k_json import CLASSES, read_frames
from .cityscapes import STUFF_LABELS
from .scan import (
    IGNORE_LABEL,
    INVALID_LABEL,
    MARK,
    cache_path,
    check_map_size,
    scan_files,
    scan_label_map,
)

logger = logging.getLogger(__name__)

# What is looked for, the newest names first: a folder and how its files end, or a file.
LARGE, SMALL = "images of the 100K part", "images of the 10K part"
BOXES, MAPS = "boxes", "maps"
PLACES = {
    LARGE: (("images/100k/{}", ".jpg"),),
    BOXES: (
        ("labels/det_20/det_{}.json", ""),
        ("labels/bdd100k_labels_images_{}.json", ""),
        ("bdd100k_labels_images_{}.json", ""),
    ),
    SMALL: (("images/10k/{}", ".jpg"), ("seg/images/{}", ".jpg")),
    MAPS: (("labels/sem_seg/masks/{}", ".png"), ("seg/labels/{}", "_train_id.png")),
}
TOPS = ("", "bdd100k")
FOREIGN = ("leftImg8bit", "gtFine")

# Every record shares it.
LUT = bytes([*range(19), *[INVALID_LABEL] * (IGNORE_LABEL - 19), IGNORE_LABEL])
# The paper's numbers of images in Sec. 4.3, under the keys of `count_labels`.
OFFICIAL = {
    "train": {"annotations": 69_853, "sem_seg_file_name": 6_546, "all": 2_972, "none": 143},
    "val": {"annotations": 10_000, "sem_seg_file_name": 1_000, "all": 0, "none": 0},
}
COUNTED = {"annotations": "boxes", "sem_seg_file_name": "maps", "all": "both", "none": "neither"}

# A box that ends with the last pixel but is not rounded reaches over the border by a pixel.
MAX_OVERSHOOT = 1.0
ROUNDING = 1e-3  # pixels that the decimals in the file may cost
DEGENERATE = "degenerate box"  # less than a pixel wide or high

Record = dict[str, Any]


def bdd100k_metadata() -> dict[str, Any]:
    """Return the classes and colours under detectron2's metadata keys."""
    colors = {x.name: list(x.color) for x in STUFF_LABELS}
    colors["pedestrian"] = colors["person"]
    return {
        "thing_classes": list(CLASSES),
        "thing_colors": [colors[name] for name in CLASSES],
        "stuff_classes": [x.name for x in STUFF_LABELS],
        "stuff_colors": [list(x.color) for x in STUFF_LABELS],
        "ignore_label": IGNORE_LABEL,
    }


def load_bdd100k(
    root: str,
    split: str,
    *,
    cache_dir: str | None,
    workers: int = 1,
    broken: dict[str, str] | None = None,
) -> list[Record]:
    """Return the records of one split, its two parts merged, sorted by image id.

    An image in both parts is one record with both labels; its file is that of the 100K part. What
    the 100K part holds for validation is left out of the 10K part for training.

    An image is not labeled for boxes without a frame in the JSON (137 of the official 70,000), nor
    where the frame's "labels" are null or absent (10 more); an empty list says that nothing is
    there. What BDD100K's own tools ignore is a region to ignore here, too, neither object nor
    background: the attribute "crowd", and "other person", "other vehicle" and "trailer", which
    stand for what could not be told apart. record["ignored"], absent where there is nothing to
    count, has the number of these and of labels that were left out, by reason.

    Args:
        root: the folder that holds images and labels.
        split: "train" or "val".
        cache_dir: where to remember what the files hold; None = nowhere.
        workers: number of processes that read files which are not in the cache.
        broken: takes file -> message for images and maps that cannot be read, whose records are
            left out; without it they are errors.

    Raises:
        InputError: files are missing, misplaced or not what they should be.
    """
    _check_root(root)
    large, small = _list(root, LARGE, split), _list(root, SMALL, split)
    maps, boxes = _list(root, MAPS, split), _find(root, BOXES, split)[0]
    _check_images(list(maps), small, os.path.dirname(next(iter(maps.values()))))
    if split == "train":
        held_out = _list(root, LARGE, "val")
        small = {name: path for name, path in small.items() if name not in held_out}

    def scan(
        paths: Iterable[str], function: Callable, what: str, broken: dict[str, str] | None = None
    ) -> list[Any]:
        cache_file = cache_path(cache_dir, f"bdd100k_{split}_{what}", root) if cache_dir else None
        return scan_files(list(paths), function, cache_file, workers, broken)

    images = dict(sorted((small | large).items()))
    sizes = scan(images.values(), read_image_size, "sizes", broken)
    records = {
        name: {"file_name": path, "image_id": name, "height": size[0], "width": size[1]}
        for (name, path), size in zip(images.items(), sizes, strict=True)
        if size
    }
    maps = {name: path for name, path in maps.items() if name in small and name in records}
    for name, found in zip(maps, scan(maps.values(), scan_label_map, "maps", broken), strict=True):
        if found:
            _add_map(records[name], maps[name], found)
        else:
            del records[name]
    with _no_garbage_collection():
        _add_frames(records, scan([boxes], read_frames, "boxes")[0], large, boxes)
    _check_counts(root, split, list(records.values()))
    return list(records.values())


def _check_root(root: str) -> None:
    for name in FOREIGN:
        if os.path.exists(os.path.join(root, name)):
            raise InputError(
                f"{root}: expected BDD100K alone, found {name} of Cityscapes; "
                "give each dataset a folder of its own"
            )


def _find(root: str, what: str, split: str) -> tuple[str, str]:
    """Return the path of what is looked for, and how its files end."""
    wanted = [
        (os.path.join(top, place.format(split)), suffix)
        for place, suffix in PLACES[what]
        for top in TOPS
    ]
    found = [
        (os.path.join(root, place), suffix)
        for place, suffix in wanted
        if os.path.exists(os.path.join(root, place))
    ]
    if not found:
        raise InputError(
            f"{root}: looked for the {what} in {' and '.join(place for place, _ in wanted)}, but "
            "there is none; give the folder that holds images and labels"
        )
    if len(found) > 1:
        others = ", ".join(path for path, _ in found[1:])
        logger.info("The %s are read from %s, not from %s", what, found[0][0], others)
    return found[0]


def _list(root: str, what: str, split: str) -> dict[str, str]:
    """Map image ids to files."""
    folder, suffix = _find(root, what, split)
    try:
        names = [x for x in sorted(os.listdir(folder)) if not x.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    files = {x.removesuffix(suffix): os.path.join(folder, x) for x in names if x.endswith(suffix)}
    if not files:
        raise InputError(f"{folder}: expected the {what}, found no file that ends in {suffix}")
    return files


def _image_id(name: str) -> str:
    return os.path.splitext(name)[0]


def _check_images(labeled: Sequence[str], images: dict[str, str], source: str) -> None:
    """Tell of labels without an image; raise InputError if that is most of them."""
    missing = [image_id for image_id in labeled if image_id not in images]
    folder = os.path.dirname(next(iter(images.values())))
    if 2 * len(missing) > len(labeled):
        raise InputError(
            f"{folder}: holds {len(labeled) - len(missing)} of the {len(labeled)} images that are "
            f"labeled in {source}; unpack the rest, or labels and images of the same split"
        )
    if missing:
        logger.warning(
            "%s: %d of the %d labeled images are not in %s, the first is %s",
            *(source, len(missing), len(labeled), folder, missing[0]),
        )


def _add_map(record: Record, path: str, found: list) -> None:
    *map_size, ids = found
    check_map_size(record["file_name"], [record["height"], record["width"]], path, map_size)
    unknown = [i for i in ids if LUT[i] == INVALID_LABEL]
    if unknown:
        raise InputError(
            f"{path}: id {unknown[0]} is no class of BDD100K, expected 0 to 18, or 255 for none"
        )
    record["sem_seg_file_name"] = path
    record["sem_seg_lut"] = LUT


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For a million boxes it takes longer than to make them, and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _add_frames(
    records: dict[str, Record], frames: list[list], images: dict[str, str], source: str
) -> None:
    _check_images([_image_id(frame[0]) for frame in frames], images, source)
    while frames:  # taken apart on the way: all of it takes as much memory as the annotations
        name, boxes, ignored = frames.pop()
        image_id = _image_id(name)
        if image_id in images and image_id in records and boxes is not None:
            _add_boxes(records[image_id], boxes, ignored, f"{source}: frame {name!r}")


def _add_boxes(record: Record, boxes: list[list], ignored: dict[str, int], where: str) -> None:
    record["annotations"] = []
    for category, iscrowd, *ends in boxes:
        corners = _to_corners(ends, record, where)
        if min(corners[2] - corners[0], corners[3] - corners[1]) < 1 - ROUNDING:
            ignored[DEGENERATE] = ignored.get(DEGENERATE, 0) + 1
            continue
        record["annotations"].append(
            {
                "bbox": corners,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": category,
                "iscrowd": iscrowd,
            }
        )
    if ignored:
        record["ignored"] = ignored


def _to_corners(ends: list[float], record: Record, where: str) -> list[float]:
    """Turn first and last pixel into corners inside the image, which may then cover nothing."""
    x0, y0, x1, y1 = float(ends[0]), float(ends[1]), ends[2] + 1.0, ends[3] + 1.0
    width, height = float(record["width"]), float(record["height"])
    if x1 < x0 or y1 < y0 or max(-x0, -y0, x1 - width, y1 - height) > MAX_OVERSHOOT + ROUNDING:
        raise InputError(
            f"{where} has the box x1, y1, x2, y2 = {ends}, which is not inside its image "
            f"{record['file_name']} of {record['width']}x{record['height']} pixels"
        )
    return [max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)]


def _check_counts(root: str, split: str, records: list[Record]) -> None:
    found = count_labels(records, list(COUNTED)[:2])
    if found != OFFICIAL[split] and not os.path.isfile(os.path.join(root, MARK)):
        shown = [f"{COUNTED[key]} {found[key]}/{n}" for key, n in OFFICIAL[split].items()]
        logger.warning(
            "%s: not the official BDD100K, number of %s images found/expected: %s",
            *(root, split, ", ".join(shown)),
        )
