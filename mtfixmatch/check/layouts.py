"""Where the images and labels of a split are, by the usual names of files and folders."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..formats.data_yaml import YAML_SUFFIXES, read_data_yaml, split_images
from ..formats.image_files import IMAGE_SUFFIXES, expand
from ..formats.label_files import SUFFIXES
from ..utils.errors import InputError
from ..utils.files import contains
from .class_names import is_of_names

TRAIN, VAL = "train", "val"
SPLIT_WORDS = {
    TRAIN: {"train", "training"},
    VAL: {"val", "valid", "validation", "dev"},
    "test": {"test", "testing"},
}
IMAGES, PART = "images", "split"  # what the name of a folder in a dataset says
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages"}
# Words of which the name of a folder with labels has one.
LABEL_WORDS = {"labels", "label", "annotations", "annotation", "annos", "boxes", "xml", "xmls"}
LABEL_WORDS |= {"masks", "mask", "maps", "map", "gt", "groundtruth", "segmentation", "semantic"}
LABEL_WORDS |= {"segmentationclass", "semseg", "labelme", "jsons", "panoptic"}
MAX_JSONS = 50  # COCO files in a folder
MASK_NAME = re.compile(r"(.+)[-_. ](masks?|labels?|gt|seg|segmentation|semantic)", re.IGNORECASE)


class Layout(NamedTuple):
    """Where the images of a dataset are.

    Attributes:
        train: sources of the training images, as DATASETS.COCO_STYLE.TRAIN.IMAGES takes them.
        val: those of validation; empty: none was found.
        boxes: the data.yaml of YOLO, which says where the labels are; "": there is none.
        unused: folders with images of neither.
    """

    train: list[str]
    val: list[str]
    boxes: str = ""
    unused: Sequence[str] = ()


def split_of(name: str) -> str:
    """Return the split that a file or folder is named for: "train", "val", "test", or ""."""
    words = set(re.split(r"[^a-z]+", os.path.splitext(os.path.basename(name))[0].lower()))
    splits = [split for split, known in SPLIT_WORDS.items() if words & known]
    return splits[0] if len(splits) == 1 else ""


def find_layout(path: str) -> Layout:
    """Find the images of training and validation in a folder, by the names of its parts.

    Anything else than a folder, and the data.yaml of YOLO, is a source of training images.
    """
    path = os.path.abspath(expand(path))
    if yaml := _data_yaml(path):
        return Layout([yaml], [yaml] if _has_split(yaml, VAL) else [], boxes=yaml)
    if not os.path.isdir(path):
        return Layout([path], [])
    for parent in (path, *_image_folders(path)):
        parts = {split_of(x): x for x in reversed(_subfolders(parent)) if _holds_images(x)}
        if TRAIN in parts:
            val = _image_sources(parts[VAL]) if VAL in parts else []
            others = [x for x in _image_parts(parent) if x not in (parts[TRAIN], parts.get(VAL))]
            return Layout(_image_sources(parts[TRAIN]), val, unused=others)
    return Layout(_image_sources(path), _sibling(path))


def label_places(folder: str, top: str, split: str) -> tuple[list[str], list[str]]:
    """Return files and folders that may have the labels of the images in a folder.

    Args:
        folder: the folder of the images.
        top: the folder that the user named.
        split: the split of the images. Places that are named for another one are left out.

    Returns:
        Places among the images, in `top`, and beside a folder named `images` or for a split; and
        those beside `top`, which may belong to other images, too.
    """
    names = _names(folder)
    has_labels = any(x.lower().endswith(SUFFIXES) for x in names) or _has_maps_beside(names)
    places = [folder] if has_labels else []
    places += _labels_in(folder, split)
    climbed: set[str] = set()
    while _is_below(folder, top) or _part(folder) not in ("", *climbed):
        climbed.add(_part(folder))
        folder = os.path.dirname(folder)
        places += _labels_in(folder, split)
    if IMAGES in climbed:  # the folder is a dataset, and beside it are others
        return places, []
    beside = _labels_in(os.path.dirname(folder), split)
    return places, [x for x in beside if PART not in climbed or split_of(x) == split]


def in_split(folder: str, split: str) -> str:
    """Return the part of a folder that is for a split, else the folder itself."""
    return next((x for x in _subfolders(folder) if split_of(x) == split), folder)


def label_parts(folder: str, split: str) -> list[str]:
    """Return what a folder of labels has for a split: a part or itself, and its JSON files.

    The folder of the PNGs of panoptic annotations, which their JSON reads, is not a part.
    """
    part = in_split(folder, split)
    if os.path.exists(f"{part}.json"):
        part = folder
    return [part, *json_files(folder, split)]


def json_files(folder: str, split: str) -> list[str]:
    """Return the JSON files of a folder that are named for a split, else those for none.

    A folder with many of them, or with those of labelme, has a file for each image.
    """
    paths = [os.path.join(folder, x) for x in _names(folder) if x.lower().endswith(".json")]
    paths = [x for x in paths if not is_of_names(x)]
    if len(paths) > MAX_JSONS or any(contains(x, b'"shapes"') for x in paths):
        return []
    own = [x for x in paths if split_of(x) == split]
    return own or [x for x in paths if not split_of(x)]


def voc_lists(top: str) -> dict[str, list[str]]:
    """Return split -> images, for the lists in the ImageSets of Pascal VOC; {}: there are none."""
    lists = {x: os.path.join(top, "ImageSets", "Main", f"{x}.txt") for x in (TRAIN, VAL)}
    if not all(map(os.path.isfile, lists.values())):
        return {}
    images: dict[str, str] = {}
    for folder in _image_folders(top):
        images |= {os.path.splitext(x)[0]: os.path.join(folder, x) for x in _names(folder)}
    stems = {split: _read_stems(path) for split, path in lists.items()}
    return {split: [images[x] for x in known if x in images] for split, known in stems.items()}


def named_like_maps(names: Iterable[str]) -> list[str]:
    """Return names such as a_mask.png of which there is an image a.png or a.jpg, too."""
    stems = {os.path.splitext(name)[0]: name for name in names}
    matches = {name: MASK_NAME.fullmatch(stem) for stem, name in stems.items()}
    return [name for name, match in matches.items() if match and match[1] in stems]


def _read_stems(path: str) -> list[str]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return [line.split()[0] for line in file if line.strip()]


def _names(folder: str) -> list[str]:
    return sorted(x for x in os.listdir(folder) if not x.startswith("."))


def _subfolders(folder: str) -> list[str]:
    return [x for x in (os.path.join(folder, y) for y in _names(folder)) if os.path.isdir(x)]


def _image_folders(folder: str) -> list[str]:
    inside = [x for x in _subfolders(folder) if os.path.basename(x).lower() in IMAGE_FOLDERS]
    return [x for x in inside if _holds_images(x)]


def _image_parts(folder: str) -> list[str]:
    """Return the folders in a folder that hold images, not maps."""
    return [x for x in _subfolders(folder) if _holds_images(x) and not _is_label_folder(x)]


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _holds_images(folder: str) -> bool:
    return any(any(map(_is_image, names)) for _, _, names in os.walk(folder, followlinks=True))


def _is_label_folder(folder: str) -> bool:
    name = os.path.basename(folder).lower()
    return bool({*re.split(r"[^a-z]+", name), name.replace("_", "")} & LABEL_WORDS)


def _image_sources(folder: str) -> list[str]:
    """Return the images of a folder without the maps beside or below them."""
    if inside := _image_folders(folder):
        return inside[:1]
    images = [x for x in _names(folder) if _is_image(x)]
    has_maps = any(_is_label_folder(x) and _holds_images(x) for x in _subfolders(folder))
    suffixes = sorted({os.path.splitext(x)[1] for x in images})
    if _has_maps_beside(images):
        suffixes = [x for x in suffixes if x.lower() != ".png"]
    elif not images and len(parts := _image_parts(folder)) == 1:
        return _image_sources(parts[0])
    elif not images or not has_maps:
        return [folder]
    return [os.path.join(glob.escape(folder), f"*{x}") for x in suffixes]


def _has_maps_beside(names: Sequence[str]) -> bool:
    """Return whether each PNG is named like an image of another format, or with something added."""
    images = [x for x in names if _is_image(x)]
    stems = {os.path.splitext(x)[0] for x in images if not x.lower().endswith(".png")}
    maps = [os.path.splitext(x)[0] for x in images if x.lower().endswith(".png")]
    named = [x for x in maps if x in stems or ((m := MASK_NAME.fullmatch(x)) and m[1] in stems)]
    return bool(maps) and len(named) == len(maps)


def _sibling(folder: str) -> list[str]:
    """Return the folder of validation that is beside one of training, such as images/val."""
    for level in (folder, os.path.dirname(folder)):
        other = in_split(os.path.dirname(level), VAL)
        if split_of(level) == TRAIN and other != os.path.dirname(level):
            place = os.path.normpath(os.path.join(other, os.path.relpath(folder, level)))
            if os.path.isdir(place) and _holds_images(place):
                return _image_sources(place)
    return []


def _data_yaml(path: str) -> str:
    """Return a data.yaml that names training images: the path itself, or one in the folder."""
    paths = [path]
    if os.path.isdir(path):
        paths = [os.path.join(path, x) for x in _names(path)]
    files = [x for x in paths if x.lower().endswith(YAML_SUFFIXES) and os.path.isfile(x)]
    return next((x for x in files if _has_split(x, TRAIN)), "")


def _has_split(path: str, split: str) -> bool:
    try:
        return "names" in read_data_yaml(path) and bool(split_images(path, split.upper()))
    except InputError:
        return False


def _part(folder: str) -> str:
    """Return IMAGES or PART if a folder is named for images or for a split, and nothing else."""
    name = os.path.splitext(os.path.basename(folder))[0].lower()
    words = {x for x in re.split(r"[^a-z]+", name) if x}
    if not words or words - IMAGE_FOLDERS.union(*SPLIT_WORDS.values()):
        return ""
    return IMAGES if words <= IMAGE_FOLDERS else PART


def _is_below(folder: str, top: str) -> bool:
    return folder.startswith(os.path.join(top, ""))


def _labels_in(folder: str, split: str) -> list[str]:
    folders = [x for x in _subfolders(folder) if _is_label_folder(x)]
    folders = [x for x in folders if not os.path.exists(f"{x}.json")]
    places = [y for x in folders for y in label_parts(x, split)]
    return [x for x in (*json_files(folder, split), *places) if split_of(x) in ("", split)]
