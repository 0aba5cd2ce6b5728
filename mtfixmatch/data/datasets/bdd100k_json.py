"""Read the boxes in BDD100K's detection JSON and check its form.

The file of 2020 (det_20) and the older one, which also holds lanes and drivable areas, are lists:

    [{"name": "x.jpg", "labels": [{"category": "car", "attributes": {"crowd": false},
                                   "box2d": {"x1": 1.5, "y1": 2, "x2": 30, "y2": 40}}, ...]}, ...]
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ...utils.errors import InputError
from ...utils.json_values import is_number, shown_json

ROAD_USERS = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
CLASSES = (*ROAD_USERS, "traffic light", "traffic sign")
# Other names of the classes, as in BDD100K's own tools.
ALIASES = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle"}
ALIASES |= {"van": "car", "caravan": "car"}
# Categories that resemble a class, and that class: the same tools ignore their boxes for it.
UNCERTAIN = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
# Lines and areas, which have no boxes; also with a kind as in "lane/road curb".
NO_OBJECTS = ("lane", "area", "drivable area")
# Category -> class, and the reason to ignore the box ("" = none).
CATEGORIES = (
    {name: (i, "") for i, name in enumerate(CLASSES)}
    | {alias: (CLASSES.index(name), "") for alias, name in ALIASES.items()}
    | {other: (CLASSES.index(name), other) for other, name in UNCERTAIN.items()}
)

FAULTY_LABELS = "frames and labels of a wrong form, left out"  # for notes
CORNERS = ("x1", "y1", "x2", "y2")
CHUNK = 1 << 24  # characters per read
SEPARATORS = re.compile(r"[\s,]*")
# A decoder fails at most this far from the end of a chunk that ends inside a token, or says that a
# string is unterminated.
LONGEST_LITERAL = len("-Infinity")


def read_frames(path: str) -> dict[str, Any]:
    """Read the frames in a detection JSON.

    Returns:
        "frames": [image name, boxes, {reason to ignore: count}] of each; "faults": a line for each
        frame or label that cannot be used and is left out; "num_entries": number of both.

    The boxes are None for a frame whose "labels" are null or absent, else [[class, iscrowd, x1, y1,
    x2, y2], ...] in pixel indices, both ends inclusive. UNCERTAIN objects and those with the
    attribute "crowd" are ignored: "iscrowd" is 1. NO_OBJECTS are left out. InputError if malformed.
    """
    frames: list[list] = []
    faults: list[str] = []
    names: set[str] = set()
    num_entries = 0
    for number, frame in enumerate(_decode_frames(path), start=1):
        labels = frame.get("labels") if isinstance(frame, dict) else None
        num_entries += 1 + (len(labels) if isinstance(labels, list) else 0)
        try:
            name = _frame_name(frame, f"{path}: frame number {number}")
            if name in names:
                raise InputError(f"{path}: frame {name!r} occurs twice")
            names.add(name)
            boxes, ignored = _read_labels(labels, f"{path}: frame {name!r}", faults)
        except InputError as error:
            faults.append(str(error))
        else:
            frames.append([name, boxes, ignored])
    return {"frames": frames, "faults": faults, "num_entries": num_entries}


def _frame_name(frame: Any, where: str) -> str:
    name = frame.get("name") if isinstance(frame, dict) else None
    if not isinstance(name, str):
        raise InputError(f"{where} needs 'name' (str)")
    return name


def _decode_frames(path: str) -> Iterator[Any]:
    """Decode one frame after the other, because all at once take several gigabytes."""
    decode = json.JSONDecoder().raw_decode
    try:
        with open(path, encoding="utf-8") as file:
            text, at = file.read(CHUNK).lstrip(), 1
            if text and text[0] != "[":
                raise InputError(f"{path}: expected BDD100K's labels, a JSON list of frames")
            while True:
                at = SEPARATORS.match(text, at).end()  # type: ignore[union-attr]  # always matches
                if text.startswith("]", at):
                    return
                try:
                    frame, at = decode(text, at)
                except json.JSONDecodeError as error:
                    _check_at_end(path, text, error)
                    more = file.read(CHUNK)
                    if not more:
                        raise InputError(f"{path}: is truncated, the list has no end") from error
                    text, at = text[at:] + more, 0
                else:
                    yield frame
    except InputError:
        raise
    # ValueError: not UTF-8, or a number too long; RecursionError: nested too deep.
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _check_at_end(path: str, text: str, error: json.JSONDecodeError) -> None:
    """Raise InputError unless the error is only that the text ends too early."""
    if not error.msg.startswith("Unterminated") and len(text) - error.pos > LONGEST_LITERAL:
        shown = text[max(error.pos - 30, 0) : error.pos + 30]
        raise InputError(f"{path}: is not valid JSON ({error.msg} in {shown!r})") from error


def _read_labels(
    labels: Any, where: str, faults: list[str]
) -> tuple[list[list] | None, dict[str, int]]:
    """Return boxes and counts of ignored labels as in `read_frames`, and add to the faults."""
    if labels is None:
        return None, {}
    if not isinstance(labels, list):
        raise InputError(f"{where} needs 'labels', a list or null")
    boxes: list[list] = []
    ignored: Counter[str] = Counter()
    for label in labels:
        try:
            box, reason = _read_label(label, where)
        except InputError as error:
            faults.append(str(error))
            continue
        if reason:
            ignored[reason] += 1
        if box:
            boxes.append(box)
    return boxes, dict(ignored)


def _read_label(label: Any, where: str) -> tuple[list | None, str]:
    """Return the box of a label (None = no object) and the reason to ignore it ("" = none)."""
    category, reason = _read_category(label, where)
    if category is None:
        return None, reason
    box = label.get("box2d")
    corners = [box.get(x) if isinstance(box, dict) else None for x in CORNERS]
    if not all(map(is_number, corners)):
        expected = "x1, y1, x2 and y2, finite numbers"
        raise InputError(f"{where} has 'box2d' {shown_json(box)}, expected {expected}")
    return [category, int(bool(reason)), *corners], reason


def _read_category(label: Any, where: str) -> tuple[int | None, str]:
    """Return the class of a label (None = no object) and the reason to ignore it ("" = none)."""
    name = label.get("category") if isinstance(label, dict) else None
    if not isinstance(name, str):
        raise InputError(f"{where} has a label without 'category' (str)")
    if (kind := name.split("/")[0]) in NO_OBJECTS:
        return None, kind
    if name not in CATEGORIES:
        expected = ", ".join(CATEGORIES)
        raise InputError(f"{where} has the unknown category {name!r}, expected {expected}")
    category, reason = CATEGORIES[name]
    attributes = label.get("attributes")
    crowd = attributes.get("crowd") if isinstance(attributes, dict) else attributes
    if crowd not in (None, False, True):
        what = f"{where} has 'attributes' {shown_json(attributes)}"
        raise InputError(f"{what}, expected an object or null, with 'crowd' true or false")
    return category, reason or ("crowd" if crowd else "")
