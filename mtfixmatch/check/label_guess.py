"""What a file or folder with labels holds: its format, its classes, and the images it is for."""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..data.datasets.scan import FileScanner
from ..formats.boxes import open_boxes
from ..formats.data_yaml import YAML_SUFFIXES
from ..formats.image_files import IMAGE_SUFFIXES, ImageFiles, files_of
from ..formats.label_files import SUFFIXES, is_label_file
from ..formats.maps import map_format
from ..formats.sources import BoxSource, LabelSource
from ..tasks.png_maps import MAP_SUFFIX
from ..utils.errors import InputError
from ..utils.files import contains, reading
from .class_names import is_of_names
from .map_guess import COLORS, guess_classes, guess_maps

BOXES, MAPS = "BOXES", "MAPS"  # keys of a split in DATASETS.COCO_STYLE
EXPECTED = (
    "boxes as a COCO instances or panoptic JSON, the data.yaml of YOLO, or files of YOLO (.txt), "
    "Pascal VOC (.xml) or labelme (.json), one for each image; maps as a panoptic JSON or as .png"
)
# Names of the classes of YOLO, if no file has them.
INVENTED = [f"class_{i}" for i in range(1000)]
# Polygons or masks in a COCO JSON or a file of labelme, in its first megabytes.
POLYGONS = re.compile(rb'"segmentation"\s*:\s*(\[\s*\[|\{)|"shape_type"\s*:\s*"polygon"')
MAX_HEAD = 1 << 24  # bytes
PANOPTIC, YOLO = "COCO panoptic", "YOLO"
FORMATS = {".txt": YOLO, ".xml": "Pascal VOC", ".json": "labelme"}


@dataclass
class Labels:
    """A file or folder with labels of which the format was recognized.

    Attributes:
        path: the file, folder or glob.
        key: BOXES or MAPS.
        format: name of the format.
        labeled: ids of the images that it labels.
        classes: names of its classes.
        empty: number of the labeled images without an object.
        options: keys of DATASETS.COCO_STYLE that it needs, and their values.
        remarks: sentences on what the user should know or decide.
        values: values or colors of PNG maps, for which classes are invented.
        is_beside: whether it is outside of the dataset, beside the images.
        broken: file -> message, for files that cannot be read.
    """

    path: str
    key: str
    format: str
    labeled: set[str]
    classes: list[str]
    empty: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    values: set[int] = field(default_factory=set)
    is_beside: bool = False
    broken: dict[str, str] = field(default_factory=dict)


def invented(count: int) -> list[str]:
    """Return names of classes that have none."""
    return INVENTED[:count]


def recognize(path: str, images: ImageFiles, scan: FileScanner, key: str) -> list[Labels]:
    """Return what a file, folder or glob holds: nothing, boxes, maps, or both.

    Args:
        path: an existing file or folder, or a glob.
        images: images that the labels should be for.
        scan: scanner that reads files.
        key: option of the command line or config key, for messages.

    Raises:
        InputError: it holds labels of a known format that cannot be used for these images, or more
            files that cannot be read than labels.
    """
    broken: dict[str, str] = {}
    try:
        found = _recognize(path, images, replace(scan, broken=broken), key)
    except InputError as error:
        raise InputError(next(iter(broken.values()), str(error))) from error
    if len(broken) > max((len(x.labeled) for x in found), default=0):
        raise InputError(next(iter(broken.values())))
    return [replace(x, broken=broken) for x in found]


def _recognize(path: str, images: ImageFiles, scan: FileScanner, key: str) -> list[Labels]:
    """Return what `recognize` does; files that cannot be read are in `scan.broken`."""
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path) and suffix in (".json", *YAML_SUFFIXES):
        if suffix == ".json" and contains(path, b'"segments_info"'):
            return _guess_panoptic(path, images, scan, key)
        return [_guess_boxes(path, "COCO" if suffix == ".json" else YOLO, images, scan, key)]
    counts, has_images = _count_files(path, images, key)
    several = sum(counts[x] > 0 for x in SUFFIXES) > 1
    found = [
        _guess_boxes(_select(path, x) if several else path, FORMATS[x], images, scan, key)
        for x in SUFFIXES
        if counts[x] and not (several and x != _main_suffix(counts))
    ]
    others = [x for x in IMAGE_SUFFIXES if counts[x]]
    if others and not (found or has_images or counts[MAP_SUFFIX]):
        raise InputError(f"{path}: maps are read as {MAP_SUFFIX}, these files are {others[0]}")
    maps = _select(path, MAP_SUFFIX) if has_images else path
    return found + ([guess_png(maps, images, scan, key)] if counts[MAP_SUFFIX] else [])


def _count_files(path: str, images: ImageFiles, key: str) -> tuple[Counter, bool]:
    """Return suffix -> number of files that may be labels, and whether images are among them."""
    taken = {os.path.abspath(x) for x in images.paths.values()}
    files = files_of(path, key)
    others = [x for x in files if os.path.abspath(x.path) not in taken]
    labels = [x for x in others if is_label_file(x.name) and not is_of_names(x.path)]
    suffixes = [os.path.splitext(x.name)[1].lower() for x in labels]
    return Counter(suffixes), len(others) < len(files)


def _guess_panoptic(path: str, images: ImageFiles, scan: FileScanner, key: str) -> list[Labels]:
    """Return the boxes of things and the maps of panoptic annotations."""
    boxes = _guess_boxes(path, PANOPTIC, images, scan, key)
    open_maps = map_format(path, key)
    assert open_maps is not None  # it is a JSON
    source = open_maps(path, scan)
    _check_faults(source)
    labeled = {image_id for x, image_id in _match(source, images) if x.label is not None}
    options = {"SEM_SEG_CLASSES": source.classes}
    maps = Labels(path, MAPS, PANOPTIC, labeled, source.classes, 0, options)
    return [boxes, maps] if boxes.classes else [maps]


def guess_png(path: str, images: ImageFiles, scan: FileScanner, key: str) -> Labels:
    """Return what a folder of maps holds; InputError if they cannot be used."""
    maps = guess_maps(path, images, scan, key)
    labels = Labels(path, MAPS, maps.kind, set(maps.labeled), [], values=maps.values)
    labels.options["MAP_NAMES"] = maps.pattern
    set_map_classes([labels])
    return labels


def set_map_classes(maps: Sequence[Labels]) -> None:
    """Set the classes of maps of one kind, for the values of all of them; the first says it."""
    first = maps[0]
    values = set().union(*(x.values for x in maps))
    paths = [x.path for x in maps]
    found = guess_classes(paths, values, has_colors=first.format.endswith(COLORS))
    options = {"MAP_VALUES": found.table} if found.table else {"SEM_SEG_CLASSES": found.classes}
    for x in maps:
        x.classes, x.remarks = found.classes, []
        x.options = {"MAP_NAMES": first.options["MAP_NAMES"]} | options
    first.remarks = [found.remark]


def _main_suffix(counts: Counter) -> str:
    """Return the suffix of the label files in a folder that has several."""
    # Text files beside others are lists of images.
    return max((x for x in SUFFIXES if x != ".txt"), key=lambda x: counts[x])


def _select(folder: str, suffix: str) -> str:
    return (
        os.path.join(glob.escape(folder), "**", f"*{suffix}") if os.path.isdir(folder) else folder
    )


def _guess_boxes(path: str, name: str, images: ImageFiles, scan: FileScanner, key: str) -> Labels:
    source = open_boxes(path, scan, key, INVENTED)
    _check_faults(source)
    found = _match(source, images)
    boxes = {image_id: x.boxes for x, image_id in found if x.boxes is not None}
    labels = Labels(path, BOXES, name, set(boxes), list(source.classes))
    labels.empty = sum(not x for x in boxes.values())
    if source.classes == INVENTED:
        used = max((box[0] for x in boxes.values() for box in x), default=0)
        labels.classes = invented(used + 1)
        labels.remarks.append(f"{path}: no file has names of the classes: rename class_0 ...")
    crowds = [box[1] for x in boxes.values() for box in x]
    if crowds and all(crowds):
        text = "boxes are ignored regions (iscrowd), so there is no object to train on"
        labels.remarks.append(f"{path}: all {len(crowds)} {text}")
    if POLYGONS.search(_head(source, path)):
        text = f"its polygons and masks mean boxes; they are maps, too, with {MAPS}: {path}"
        labels.remarks.append(f"{path}: {text}")
    if labels.empty:
        labels.remarks.append(_empty_remark(path, labels, source))
    return labels


def _head(source: BoxSource, path: str) -> bytes:
    """Return the begin of a label file."""
    file = next((x.file for x in source.images if x.file and x.boxes), path)
    with reading(file), open(file, "rb") as content:
        return content.read(MAX_HEAD)


def _check_faults(source: LabelSource) -> None:
    lines = [x for kind in source.faults.values() for x in kind]
    if lines and 2 * len(lines) > source.num_entries:
        shown = f"{len(lines)} of {source.num_entries} entries are no boxes"
        raise InputError(f"{source.path}: {shown}, such as: {lines[0]}")


def _match(source: LabelSource, images: ImageFiles) -> list[tuple[Any, str]]:
    """Return the images of a source that are there, with their ids."""
    ids, lines = images.match([x.name for x in source.images], by_stem=source.by_stem)
    if not ids:  # label files may name their images
        others = [x.other_name for x in source.images if x.other_name]
        ids, _ = images.match(others, by_stem=source.by_stem)
        pairs = [(x, ids[x.other_name]) for x in source.images if x.other_name in ids]
    else:
        pairs = [(x, ids[x.name]) for x in source.images if x.name in ids]
    if not pairs or (source.lists_images and 2 * len(pairs) < len(source.images)):
        shown = f"{len(pairs)} of its {len(source.images)} images are there"
        raise InputError(f"{source.path}: {shown}{f', such as: {lines[0]}' if lines else ''}")
    return [x for x in pairs if x[1] in images.sizes]  # those that can be read


def _empty_remark(path: str, labels: Labels, source: BoxSource) -> str:
    where = "are listed without a box" if source.lists_images else "have a label file without a box"
    return (
        f"{path}: {labels.empty} of {len(labels.labeled)} images {where} and count as images "
        "without objects; if nobody looked at them yet, set UNANNOTATED to unlabeled"
    )


def best_labels(found: Sequence[Labels], note: Callable[[str, str], None]) -> list[Labels]:
    """Return the labels of one task that fit together: the largest, and others beside them.

    COCO files fit together if they have other images or other classes. Two formats are usually the
    same labels twice.
    """
    kept: list[Labels] = []
    for x in sorted(found, key=_rank):
        clash = next((y for y in kept if not _fit(x, y)), None)
        if clash is None:
            kept.append(x)
        else:
            note(x.path, f"its {x.key.lower()} are for the same images as {clash.path}")
    return kept


def _rank(labels: Labels) -> tuple:
    # COCO's key points and stuff have files of their own beside the instances.
    is_other = "instances" not in os.path.basename(labels.path)
    return is_other, -len(labels.labeled), labels.path


def _fit(a: Labels, b: Labels) -> bool:
    is_coco = a.format == b.format == "COCO" and a.key == b.key == BOXES
    others = a.labeled.isdisjoint(b.labeled) or set(a.classes).isdisjoint(b.classes)
    return is_coco and others
