"""Read the boxes in a COCO instances JSON and check its form."""

import posixpath
from typing import Any

from ...utils.errors import InputError
from ...utils.files import read_json
from .json_values import is_number, shown_json

# Section -> the fields that each of its entries needs, and their types.
FIELDS: dict[str, dict[str, type]] = {
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"id": int, "image_id": int, "category_id": int},
}
# Section, column and name of the values that must not occur twice.
UNIQUE = (
    ("categories", 0, "category id"),
    ("categories", 1, "category name"),
    ("images", 0, "image id"),
    ("images", 1, "image file_name"),
    ("annotations", 0, "annotation id"),
)


def read_instances(path: str) -> dict[str, Any]:
    """Return the boxes in a COCO instances JSON, or raise InputError for a wrong form.

    The keys are "categories": [[id, name], ...] by id; "images": [[id, file_name, height, width],
    ...]; "annotations": [[id, image id, category id, iscrowd, [x, y, width, height]], ...].
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a COCO instances file, a JSON object")
    result = {name: _rows(path, content, name, fields) for name, fields in FIELDS.items()}
    result["categories"].sort()
    for row, entry in zip(result["annotations"], content["annotations"], strict=True):
        row += _read_crowd_and_box(f"{path}: annotation {entry['id']}", entry)
    for row in result["images"]:
        row[1] = posixpath.normpath(row[1])
    _check_ids(path, result)
    return result


def _rows(path: str, content: dict, section: str, fields: dict[str, type]) -> list[list]:
    """Return the given fields of each entry of a section."""
    entries = content.get(section)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a COCO instances file with a list {section!r}")
    for entry in entries:
        for field, kind in fields.items():
            # Not `isinstance`: in Python, true and false are integers, too.
            if not isinstance(entry, dict) or type(entry.get(field)) is not kind:
                needs = f"{section!r} entry {shown_json(entry)} needs {field!r} ({kind.__name__})"
                raise InputError(f"{path}: {needs}")
    return [[entry[field] for field in fields] for entry in entries]


def _read_crowd_and_box(where: str, entry: dict) -> tuple[int, list[float]]:
    crowd = entry.get("iscrowd", 0)
    box: Any = entry.get("bbox")
    if crowd not in (0, 1):
        raise InputError(f"{where} has iscrowd {shown_json(crowd)}, expected 0 or 1")
    numbers = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
    if not numbers or min(box[2:]) <= 0:
        form = "a width and height above 0" if numbers else "[x, y, width, height], finite numbers"
        raise InputError(f"{where} has bbox {shown_json(box)}, expected {form}")
    return int(crowd), [float(x) for x in box]


def _check_ids(path: str, result: dict[str, Any]) -> None:
    known: dict[str, set] = {}
    for section, column, what in UNIQUE:
        seen = known[what] = set()
        for row in result[section]:
            if row[column] in seen:
                raise InputError(f"{path}: {what} {row[column]!r} occurs twice")
            seen.add(row[column])
    for annotation, *references in result["annotations"]:
        for what, value in zip(("image", "category"), references, strict=False):
            if value not in known[f"{what} id"]:
                raise InputError(f"{path}: annotation {annotation} has unknown {what}_id {value}")
