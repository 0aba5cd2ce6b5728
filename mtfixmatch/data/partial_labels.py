"""Hide labels, so that a fully labeled dataset becomes a partially labeled one.

A label is a key of a record: present = labeled. The value of the key does not matter here.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..utils.errors import InputError
from ..utils.files import read_json, write_atomically
from .records import Record, Records

MODES = ("nested", "random")
ALL = -1


def hide_labels(records: Records, counts: dict[str, int], *, mode: str, seed: int) -> list[Record]:
    """Keep each label on a number of its images, and hide it on the others (paper Sec. 4.1).

    The ranking of the images depends on the seed and their ids, not on the order of the records.

    Args:
        records: dataset records; they are not changed.
        counts: label key -> number of images that keep it; -1 = all.
        mode: "nested" ranks the images once for all labels, so that an image that keeps one label
            also keeps every label with a higher count; "random" ranks them for each label anew.
        seed: seed of the ranking.

    Returns:
        New records in the same order, with hidden labels in record["hidden"][key].

    Raises:
        InputError: the mode is unknown, a count is not possible, or an image id occurs twice.
    """
    if mode not in MODES:
        raise InputError(f"partial labels: mode {mode!r} is none of {', '.join(MODES)}")
    _check_ids(records)
    hidden: dict[str, set[str]] = {}
    for key, count in counts.items():
        labeled = [record["image_id"] for record in records if key in record]
        if count < ALL:
            raise InputError(f"partial labels: {key} = {count}, expected -1 (all) or 0 and more")
        if count > (have := len(labeled)):
            raise InputError(f"partial labels: {key} = {count}, but only {have} images have it")
        prefix = f"{seed}/{mode if mode == 'nested' else key}/"
        ranking = sorted(labeled, key=lambda x: hashlib.sha256((prefix + x).encode()).digest())
        hidden[key] = set() if count == ALL else set(ranking[count:])
    return [_hide(record, hidden) for record in records]


def write_manifest(records: Records, keys: dict[str, str], path: str, **settings: Any) -> None:
    """Write a JSON manifest of the labeled images, so that another run can use the same ones.

    The `keys` are task name -> label key. The manifest also has the number of all images, and
    repeats the `settings` of the subsets.
    """
    labels = {}
    for name, key in keys.items():
        images = sorted(record["image_id"] for record in records if key in record)
        labels[name] = {"count": len(images), "sha256": _digest(images), "images": images}
    content = {**settings, "num_images": len(records), "labels": labels}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def hide_by_manifest(records: Records, keys: dict[str, str], path: str) -> list[Record]:
    """Keep the labels that a manifest names, and hide the others as `hide_labels` does.

    The manifest is the file of another run's `write_manifest`; `keys` are as there. InputError if
    it cannot be read, was changed by hand, lacks a task, or names an image that has no such label
    in these records.
    """
    _check_ids(records)
    hidden: dict[str, set[str]] = {}
    for name, key in keys.items():
        kept = set(_read_manifest(path, name))
        labeled = {record["image_id"] for record in records if key in record}
        if missing := kept - labeled:
            what = f"{len(missing)} of its images for {name} have no such label in this dataset"
            raise InputError(f"{path}: {what}, such as {min(missing)!r}")
        hidden[key] = labeled - kept
    return [_hide(record, hidden) for record in records]


def _read_manifest(path: str, name: str) -> list[str]:
    """Return the ids of the images that a manifest names for a task."""
    try:
        labels = read_json(path)["labels"][name]
        images, digest = labels["images"], labels["sha256"]
    except InputError as error:
        raise InputError(f"DATASETS.LABEL_MANIFEST {error}") from None
    except (KeyError, TypeError) as error:
        expected = f"the label_subsets.json of a run with labels for {name}"
        what = f"expected {expected} ({type(error).__name__}: {error})"
        raise InputError(f"DATASETS.LABEL_MANIFEST {path}: {what}") from None
    if _digest(images) != digest:
        raise InputError(f"{path}: the images listed for {name} do not have the hash {digest}")
    return images


def _digest(images: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(images).encode()).hexdigest()


def count_labels(records: Iterable[Record], keys: Sequence[str]) -> dict[str, int]:
    """Count the images with each label, with "all" of the labels and with "none" of them."""
    present = [[key in record for key in keys] for record in records]
    counts = {key: sum(row[i] for row in present) for i, key in enumerate(keys)}
    return counts | {"all": sum(map(all, present)), "none": sum(not any(row) for row in present)}


def _hide(record: Record, hidden: dict[str, set[str]]) -> Record:
    """Return a copy of a record without the labels to hide: label key -> image ids."""
    keys = [key for key, image_ids in hidden.items() if record["image_id"] in image_ids]
    kept = {key: value for key, value in record.items() if key not in keys}
    if keys:
        kept["hidden"] = record.get("hidden", {}) | {key: record[key] for key in keys}
    return kept


def _check_ids(records: Records) -> None:
    seen: set[str] = set()
    for record in records:
        if record["image_id"] in seen:
            what = f"image id {record['image_id']!r} occurs twice"
            raise InputError(f"{record['file_name']}: {what}, so labels cannot be hidden by image")
        seen.add(record["image_id"])
