"""Hide labels, so that a fully labeled dataset becomes a partially labeled one.

A label is a key of a record: present = labeled. The value of the key does not matter here.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..utils.errors import InputError
from ..utils.files import read_json, write_atomically
from .record_table import RecordTable, has_labels
from .records import Record, Records

MODES = ("nested", "random")
ALL = -1


def hide_labels(records: Records, counts: dict[str, int], *, mode: str, seed: int) -> RecordTable:
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
    table = RecordTable.of(records)
    _check_ids(table)
    masks: dict[str, np.ndarray] = {}
    for key, count in counts.items():
        labeled = np.flatnonzero(table.has(key))
        if count < ALL:
            raise InputError(f"partial labels: {key} = {count}, expected -1 (all) or 0 and more")
        if count > (have := len(labeled)):
            raise InputError(f"partial labels: {key} = {count}, but only {have} images have it")
        if count != ALL:
            prefix = f"{seed}/{mode if mode == 'nested' else key}/"
            ranking = _ranking(table.values("image_id", labeled), prefix)
            masks[key] = _mask(table, labeled[ranking[count:]])
    return table.hide(masks)


def _ranking(ids: Iterable[str], prefix: str) -> np.ndarray:
    """Return the places of the ids in the order of the SHA-256 of prefix and id."""
    digests = b"".join(hashlib.sha256((prefix + x).encode()).digest() for x in ids)
    # The four words of a digest, the first one counts most.
    words = np.frombuffer(digests, ">u8").reshape(-1, 4)
    order = np.argsort(words[:, 0])
    heads = words[order, 0]
    return order if (heads[1:] != heads[:-1]).all() else np.lexsort(words.T[::-1])


def _mask(table: RecordTable, indices: np.ndarray) -> np.ndarray:
    mask = np.zeros(len(table), bool)
    mask[indices] = True
    return mask


def write_manifest(records: Records, keys: dict[str, str], path: str, **settings: Any) -> None:
    """Write a JSON manifest of the labeled images, so that another run can use the same ones.

    The `keys` are task name -> label key. The manifest also has the number of all images, and
    repeats the `settings` of the subsets.
    """
    table, labels = RecordTable.of(records), {}
    for name, key in keys.items():
        images = sorted(table.values("image_id", np.flatnonzero(table.has(key))))
        labels[name] = {"count": len(images), "sha256": _digest(images), "images": images}
    content = {**settings, "num_images": len(table), "labels": labels}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def hide_by_manifest(records: Records, keys: dict[str, str], path: str) -> RecordTable:
    """Keep the labels that a manifest names, and hide the others as `hide_labels` does.

    The manifest is the file of another run's `write_manifest`; `keys` are as there. InputError if
    it cannot be read, was changed by hand, lacks a task, or names an image that has no such label
    in these records.
    """
    table = RecordTable.of(records)
    _check_ids(table)
    masks: dict[str, np.ndarray] = {}
    for name, key in keys.items():
        kept = set(_read_manifest(path, name))
        labeled = np.flatnonzero(table.has(key))
        ids = list(table.values("image_id", labeled))
        if missing := kept.difference(ids):
            what = f"{len(missing)} of its images for {name} have no such label in this dataset"
            raise InputError(f"{path}: {what}, such as {min(missing)!r}")
        masks[key] = _mask(table, labeled[[x not in kept for x in ids]])
    return table.hide(masks)


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
    present = has_labels(records, keys)
    counts = dict(zip(keys, present.sum(axis=0).tolist(), strict=True))
    every, none = present.all(axis=1), ~present.any(axis=1)
    return counts | {"all": int(every.sum()), "none": int(none.sum())}


def _check_ids(table: RecordTable) -> None:
    # Ten million ids in a set would take a gigabyte.
    hashes = np.fromiter(map(hash, table.values("image_id")), np.int64, len(table))
    values, counts = np.unique(hashes, return_counts=True)
    if len(values) == len(table):
        return
    seen: set[str] = set()
    for index in np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist():
        record = table[index]
        if record["image_id"] in seen:
            what = f"image id {record['image_id']!r} occurs twice"
            raise InputError(f"{record['file_name']}: {what}, so labels cannot be hidden by image")
        seen.add(record["image_id"])
