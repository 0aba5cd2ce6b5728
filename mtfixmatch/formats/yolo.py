"""Read the boxes in the text files of YOLO, whose rows are `class x y width height`."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from ..utils.errors import InputError
from ..utils.files import reading
from ..utils.json_values import parse_number
from .data_yaml import YAML_SUFFIXES, class_names, read_data_yaml, split_images, split_of
from .image_files import FoundFile, files_of, without_suffix
from .label_files import LabelFile, image_name, is_label_file, read_label_files
from .sources import BoxSource, Scan

SUFFIX = ".txt"
IMAGES, LABELS = "images", "labels"  # the folders of images and labels have one of these parts
# Files with the names of the classes, beside the labels or in one of the folders above.
YAML_NAMES, LIST_NAMES = ("data.yaml", "dataset.yaml"), ("classes.txt", "obj.names")
LEVELS = 3  # folders that are searched for them, that of the labels included
# A coordinate may lie outside the image by this share because it was rounded or drawn so.
TOLERANCE = 0.01

EXPECTED = "expected 'class x y width height' or a polygon, in shares of the image from 0 to 1"
MORE = "text files with a further column (a confidence or a track), which is not read"


def open_yolo(
    path: str, files: Sequence[FoundFile], scan: Scan, key: str, names: Sequence[str]
) -> BoxSource:
    """Return the boxes in label files of YOLO.

    The names of the classes are those of a data.yaml, classes.txt or obj.names beside the files or
    up to two folders above, else `names`.

    Raises:
        InputError: the classes have no names.
    """
    found = [FoundFile(x.path, _swap(image_name(x.name), LABELS, IMAGES)) for x in files]
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(x.path)) for x in files])
    names_in = _find_names(folder)
    if names_in:
        known = _read_names(names_in)
    elif names:
        known, names_in = dict(enumerate(names)), "DATASETS.COCO_STYLE.THING_CLASSES"
    else:
        where = (
            f"a {', '.join((*YAML_NAMES[:1], *LIST_NAMES))} in {path} or up to two folders above"
        )
        raise InputError(f"{key}: the classes have no names: expected {where}, or THING_CLASSES")
    return _read(path, found, scan, known, names_in)


def open_data_yaml(path: str, scan: Scan, key: str) -> BoxSource:
    """Return the boxes of the split in `key` of a data.yaml.

    As in YOLO, the label file of `images/a.jpg` is `labels/a.txt`.

    Raises:
        InputError: the file has a wrong form, or there are no label files.
    """
    sources = split_images(path, key)
    files = [x for source in sources for x in _files_of_images(source, key)]
    if not files:
        shown = ", ".join(sources)
        raise InputError(f"{key}: {path} has no label file ({SUFFIX}) for the images in {shown}")
    return _read(f"{path} ({split_of(key)})", files, scan, class_names(path), path)


def _read(
    path: str, files: Sequence[FoundFile], scan: Scan, names: dict[int, str], names_in: str
) -> BoxSource:
    has_keypoints = names_in.endswith(YAML_SUFFIXES) and "kpt_shape" in read_data_yaml(names_in)
    read = yolo_poses if has_keypoints else yolo_boxes
    source = read_label_files(path, files, scan, read, names, names_in)
    source.relative = True
    return source


def _files_of_images(source: str, key: str) -> Iterable[FoundFile]:
    """Return the label files of a folder or a list of images, with the paths of their images."""
    if os.path.isfile(source):
        stems = [without_suffix(os.path.abspath(x.path)) for x in files_of(source, key)]
        labels = [FoundFile(_swap(x, IMAGES, LABELS) + SUFFIX, x) for x in stems]
        return [x for x in labels if os.path.isfile(x.path)]
    folder = _swap(os.path.abspath(source), IMAGES, LABELS)
    paths = [x.path for x in files_of(folder if os.path.isdir(folder) else source, key)]
    paths = [os.path.abspath(x) for x in paths if x.lower().endswith(SUFFIX) and is_label_file(x)]
    return [FoundFile(x, _swap(image_name(x), LABELS, IMAGES)) for x in paths]


def _swap(path: str, old: str, new: str) -> str:
    """Return a path with another name for its last folder of the name `old`."""
    parts = path.replace(os.sep, "/").split("/")
    if old in parts:
        parts[len(parts) - 1 - parts[::-1].index(old)] = new
    return "/".join(parts)


def _find_names(folder: str) -> str:
    """Return the file with the names of the classes nearest to a folder, "" if there is none."""
    for _ in range(LEVELS):
        for name in (*YAML_NAMES, *LIST_NAMES):
            if os.path.isfile(os.path.join(folder, name)):
                return os.path.join(folder, name)
        folder = os.path.dirname(folder)
    return ""


def _read_names(path: str) -> dict[int, str]:
    """Return class id -> name of a data.yaml, or of a text file with a name in each line."""
    if path.endswith(YAML_SUFFIXES):
        return class_names(path)
    try:
        with reading(path), open(path, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file]
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text in UTF-8") from None
    return {number: name for number, name in enumerate(names) if name}


def yolo_boxes(path: str) -> dict[str, Any]:
    """Return the fields of a `LabelFile` from a text file of YOLO, in shares of the image.

    A row of at least 7 columns is a polygon and means the box around it. A further column, as
    predictions and tracks have, is not read.

    Raises:
        InputError: the file cannot be read, or is no text.
    """
    return _read_rows(path, has_keypoints=False)


def yolo_poses(path: str) -> dict[str, Any]:
    """Return the same as `yolo_boxes`, of rows with key points after their box."""
    return _read_rows(path, has_keypoints=True)


def _read_rows(path: str, *, has_keypoints: bool) -> dict[str, Any]:
    with reading(path), open(path, "rb") as file:
        content = file.read().removeprefix(b"\xef\xbb\xbf")
    if b"\0" in content:
        raise InputError(f"{path}: is no text in UTF-8: {EXPECTED}")
    label = LabelFile(path, "row")
    for number, line in enumerate(content.splitlines(), start=1):
        text = line.decode(errors="replace")
        if not text.strip():
            continue
        label.num_entries += 1
        values = [parse_number(x) for x in text.split()]
        numbers = [x for x in values if x is not None]
        if len(numbers) >= 6 and len(numbers) % 2 == 0 and not has_keypoints:
            label.left_out[MORE] = [path]
        box = _box(numbers, has_keypoints) if len(numbers) == len(values) else None
        if box is None:
            label.fault(number, f"is {text.strip()[:80]!r}, {EXPECTED}{_hint(numbers)}")
        else:
            label.boxes.append([*box, number])
    return vars(label)


def _box(numbers: Sequence[float], has_keypoints: bool) -> list | None:
    """Return class id, iscrowd, x0, y0, x1, y1 of a row, None if it has a wrong form."""
    category, *shape = numbers
    shape = shape[:4] if has_keypoints else shape[: len(shape) // 2 * 2]
    is_class = category >= 0 and category == int(category)
    if not is_class or len(shape) < 4 or not all(-TOLERANCE <= x <= 1 + TOLERANCE for x in shape):
        return None
    if len(shape) == 4:
        x, y, width, height = shape
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    else:
        xs, ys = shape[::2], shape[1::2]
        corners = [min(xs), min(ys), max(xs), max(ys)]
    return [int(category), 0, *corners]


def _hint(numbers: Sequence[float]) -> str:
    """Return a question if the numbers of a row are far above 1."""
    return " (are these pixels?)" if len(numbers) > 4 and max(numbers[1:]) > 2 else ""
