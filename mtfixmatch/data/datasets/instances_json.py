"""Read the part of a COCO instances JSON that is needed here, and check its form."""

import json
import posixpath
from typing import Any

from ...utils.errors import InputError
from .scan import is_number, shown_json


def read_instances(path: str) -> dict[str, Any]:
    """Return what a COCO instances JSON says about boxes, in short, for `scan_files`.

    Returns:
        "categories": [[id, name], ...] by id;
        "images": [[id, file_name, height, width], ...];
        "annotations": [[id, image id, category id, iscrowd, [x, y, width, height]], ...].
    """
    content = _load(path)
    result: dict[str, Any] = {
        "categories": sorted(_rows(path, content, "categories", {"id": int, "name": str})),
        "images": _rows(
            path, content, "images", {"id": int, "file_name": str, "height": int, "width": int}
        ),
        "annotations": _rows(
            path, content, "annotations", {"id": int, "image_id": int, "category_id": int}
        ),
    }
    for row, entry in zip(result["annotations"], content["annotations"], strict=True):
        row += [_crowd(path, entry), _box(path, entry)]
    for row in result["images"]:
        row[1] = posixpath.normpath(row[1])
    for section, column, what in (
        ("categories", 0, "category id"),
        ("categories", 1, "category name"),
        ("images", 0, "image id"),
        ("images", 1, "image file_name"),
        ("annotations", 0, "annotation id"),
    ):
        _check_unique(path, [row[column] for row in result[section]], what)
    _check_references(path, result)
    return result


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a COCO instances file, a JSON object")
    return content


def _rows(path: str, content: dict, section: str, fields: dict[str, type]) -> list[list]:
    entries = content.get(section)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a COCO instances file with a list {section!r}")
    for entry in entries:
        for field, kind in fields.items():
            # Of that very type: to Python true and false are integers, too.
            if not isinstance(entry, dict) or type(entry.get(field)) is not kind:
                shown = shown_json(entry)
                raise InputError(
                    f"{path}: {section!r} entry {shown} needs {field!r} ({kind.__name__})"
                )
    return [[entry[field] for field in fields] for entry in entries]


def _crowd(path: str, entry: dict) -> int:
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        shown = shown_json(crowd)
        raise InputError(f"{path}: annotation {entry['id']} has iscrowd {shown}, expected 0 or 1")
    return int(crowd)


def _box(path: str, entry: dict) -> list[float]:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        shown = shown_json(box)
        raise InputError(
            f"{path}: annotation {entry['id']} has bbox {shown}, expected [x, y, width, height], "
            "finite numbers"
        )
    if min(box[2:]) <= 0:
        raise InputError(
            f"{path}: annotation {entry['id']} has bbox {box}, expected a width and height above 0"
        )
    return [float(x) for x in box]


def _check_unique(path: str, values: list, what: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise InputError(f"{path}: {what} {value!r} occurs twice")
        seen.add(value)


def _check_references(path: str, result: dict[str, Any]) -> None:
    image_ids = {row[0] for row in result["images"]}
    category_ids = {row[0] for row in result["categories"]}
    for annotation, image, category, *_ in result["annotations"]:
        if image not in image_ids:
            raise InputError(f"{path}: annotation {annotation} has unknown image_id {image}")
        if category not in category_ids:
            raise InputError(f"{path}: annotation {annotation} has unknown category_id {category}")
