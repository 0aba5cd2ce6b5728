"""The data.yaml of YOLO: where the images of its splits are, and the names of its classes."""

import os
from typing import Any

import yaml

from ..utils.errors import InputError, first_line
from ..utils.files import reading

YAML_SUFFIXES = (".yaml", ".yml")
# Split -> its key, and another one that tools write.
ENTRIES = {"train": ("train",), "val": ("val", "validation")}


def read_data_yaml(path: str) -> dict[str, Any]:
    """Return the content of a data.yaml, its scalars as strings.

    Raises:
        InputError: the file cannot be read, or is no YAML with keys and values.
    """
    try:
        with reading(path), open(path, encoding="utf-8-sig") as file:
            content = yaml.load(file, Loader=yaml.BaseLoader)  # a class "no" stays a name
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid YAML ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected the data.yaml of YOLO, with the keys train, val, names")
    return content


def class_names(path: str) -> dict[int, str]:
    """Return class id -> name of a data.yaml.

    Raises:
        InputError: it has no list of names, and no names by id.
    """
    names = read_data_yaml(path).get("names")
    items = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(items, dict) or not items:
        raise InputError(f"{path}: expected 'names', a list of the classes or a name for each id")
    for key, name in items.items():
        if not (str(key).isdecimal() and isinstance(name, str) and name.strip()):
            raise InputError(f"{path}: 'names' has {key!r}: {name!r}, expected an id and a name")
    return {int(key): name.strip() for key, name in items.items()}


def split_of(key: str) -> str:
    """Return the split of a data.yaml, a key of ENTRIES, that a config key belongs to."""
    return "val" if "VAL" in key.split(".") else "train"


def split_images(path: str, key: str) -> list[str]:
    """Return the folders and lists of images of the split that a config key belongs to.

    They are relative to the folder that `path` names in the file, or to that of the file.

    Raises:
        InputError: the file lacks the split, or what it names for it does not exist.
    """
    content = read_data_yaml(path)
    split = split_of(key)
    entries = next((content[x] for x in ENTRIES[split] if content.get(x)), None)
    entries = entries if isinstance(entries, list) else [entries]
    if not all(isinstance(x, str) and x.strip() for x in entries):
        raise InputError(f"{key}: {path} has no folder or list of images for {split!r}")
    root = content.get("path", "")
    return [_resolve(path, root if isinstance(root, str) else "", x.strip(), key) for x in entries]


def _resolve(path: str, root: str, entry: str, key: str) -> str:
    """Return the existing file or folder that an entry means."""
    folder = os.path.dirname(path)
    root, entry = root.strip().replace("\\", "/"), entry.replace("\\", "/")
    places = [os.path.join(folder, root, entry), os.path.join(root, entry)]
    # `path` is often that of another machine, and Roboflow writes ../train/images for what lies
    # beside the file.
    places += [os.path.join(folder, entry), os.path.join(folder, entry.removeprefix("../"))]
    for place in places:
        if os.path.exists(place):
            return os.path.normpath(place)
    shown = " or ".join(dict.fromkeys(os.path.normpath(x) for x in places))
    raise InputError(f"{key}: {path} names {entry!r}, but there is no {shown}")
