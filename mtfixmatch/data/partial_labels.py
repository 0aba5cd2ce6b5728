"""Hide labels, so that a fully labeled dataset becomes a partially labeled one.

A label is a key of a record: present = labeled. What it means plays no part here.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import InputError

Record = dict[str, Any]

MODES = ("nested", "random")
ALL = -1


def hide_labels(
    records: Sequence[Record], counts: dict[str, int], *, mode: str, seed: int
) -> list[Record]:
    """Keep each label on a given number of the images that have it, and hide it on the others.

    The choice depends on the seed and the image ids alone: not on the order of the records, nor on
    the machine.

    Args:
        records: dataset records; they are not changed.
        counts: label key -> on how many images to keep it; -1 = all.
        mode: "nested" ranks the images once for all labels, so that the images that keep one label
            also keep every label with a higher count; "random" ranks them anew for each label.
        seed: another seed, another ranking.

    Returns:
        new records in the same order, with hidden labels moved to record["hidden"][key].
    """
    _check(records, mode)
    hidden: dict[str, set[str]] = {}
    for key, count in counts.items():
        labeled = [record["image_id"] for record in records if key in record]
        _check_count(key, count, len(labeled))
        stream = mode if mode == "nested" else key
        ranking = _rank(labeled, stream, seed)
        hidden[key] = set() if count == ALL else set(ranking[count:])
    return [_hide(r, [key for key in counts if r["image_id"] in hidden[key]]) for r in records]


def count_labels(records: Iterable[Record], keys: Sequence[str]) -> dict[str, int]:
    """Count the images that have each label, and those with "all" of them and with "none"."""
    present = [[key in record for key in keys] for record in records]
    counts = {key: sum(row[i] for row in present) for i, key in enumerate(keys)}
    return counts | {"all": sum(map(all, present)), "none": sum(not any(row) for row in present)}


def _rank(image_ids: list[str], stream: str, seed: int) -> list[str]:
    def digest(image_id: str) -> bytes:
        return hashlib.sha256(f"{seed}/{stream}/{image_id}".encode()).digest()

    return sorted(image_ids, key=digest)


def _hide(record: Record, keys: list[str]) -> Record:
    kept = {key: value for key, value in record.items() if key not in keys}
    if keys:
        kept["hidden"] = record.get("hidden", {}) | {key: record[key] for key in keys}
    return kept


def _check(records: Sequence[Record], mode: str) -> None:
    if mode not in MODES:
        raise InputError(f"partial labels: mode {mode!r} is none of {', '.join(MODES)}")
    seen: set[str] = set()
    for record in records:
        if record["image_id"] in seen:
            raise InputError(
                f"{record['file_name']}: image id {record['image_id']!r} occurs twice, "
                "so labels cannot be hidden by image"
            )
        seen.add(record["image_id"])


def _check_count(key: str, count: int, labeled: int) -> None:
    if count < ALL:
        raise InputError(f"partial labels: {key} = {count}, expected -1 (all) or 0 and more")
    if count > labeled:
        raise InputError(f"partial labels: {key} = {count}, but only {labeled} images have it")
