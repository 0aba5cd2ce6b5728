"""Classes of maps, and the table of the values or colors that mean them (MAP_VALUES)."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..formats.value_maps import ValueMap
from ..utils.errors import InputError
from ..utils.labels import IGNORE_LABEL, INVALID_LABEL
from .own_labels import OWN_DATA, OwnFiles

CLASSES_KEY, VALUES_KEY = f"{OWN_DATA}.SEM_SEG_CLASSES", f"{OWN_DATA}.MAP_VALUES"
UNPAINTED_KEY, IGNORE_KEY = f"{OWN_DATA}.UNPAINTED", f"{OWN_DATA}.IGNORE_LABEL"
IGNORED = ""  # the class name of what is ignored
MAX_VALUE = 65535  # of PNGs of 16 bits


def listed_classes(options: Mapping[str, Any]) -> list[str]:
    """Return SEM_SEG_CLASSES, else the classes in MAP_VALUES in their order, maybe none."""
    names = dict.fromkeys(name for _, name in _entries(options) if name != IGNORED)
    return list(options["SEM_SEG_CLASSES"]) or list(names)


def check_classes(classes: Sequence[str], files: OwnFiles) -> None:
    """Raise InputError unless there are classes, different ones, and not too many."""
    if not classes:
        raise InputError(f"{CLASSES_KEY} is empty: name the classes of the maps in {files.key}")
    count = len(classes)
    if count > INVALID_LABEL or len(set(classes)) < count:
        expected = f"different names and at most {INVALID_LABEL}"
        raise InputError(f"{CLASSES_KEY} lists {count} classes, expected {expected}")


def unpainted_class(classes: Sequence[str], options: Mapping[str, Any]) -> int:
    """Return the class of pixels that no shape covers, or IGNORE_LABEL."""
    name = options["UNPAINTED"]
    if name == IGNORED:
        return IGNORE_LABEL
    if name not in classes:
        expected = f"one of the classes {list(classes)}, or '' for ignored"
        raise InputError(f"{UNPAINTED_KEY} is {name!r}: expected {expected}")
    return list(classes).index(name)


def value_map(classes: Sequence[str], options: Mapping[str, Any]) -> ValueMap:
    """Return the table of the maps: MAP_VALUES, or if it is empty, value i is class i.

    Values, not colors, also have IGNORE_LABEL if the table does not name it.
    """
    ignore_label, entries = options["IGNORE_LABEL"], _entries(options)
    least = 0 if entries else len(classes)
    if type(ignore_label) is not int or not least <= ignore_label <= 255:
        why = "" if entries else f": the ids below are the classes of {CLASSES_KEY}"
        expected = f"{least} to 255{why}"
        raise InputError(f"{IGNORE_KEY} is {ignore_label}, expected {expected}")
    if not entries:
        table = {i: i for i in range(len(classes))}
        return ValueMap.of({**table, ignore_label: IGNORE_LABEL}, has_colors=False)
    numbers = {name: i for i, name in enumerate(classes)} | {IGNORED: IGNORE_LABEL}
    unknown = [name for _, name in entries if name not in numbers]
    if unknown:
        raise InputError(f"{VALUES_KEY} names {unknown[0]!r}: {CLASSES_KEY} is {list(classes)}")
    table = {_number(value): numbers[name] for value, name in entries}
    if len(table) < len(entries):
        raise InputError(f"{VALUES_KEY} has a value twice: {list(options['MAP_VALUES'])}")
    has_colors = isinstance(entries[0][0], list)
    rule = {} if has_colors else {ignore_label: IGNORE_LABEL}
    return ValueMap.of(rule | table, has_colors=has_colors)


def _entries(options: Mapping[str, Any]) -> list[tuple[int | list[int], str]]:
    """Return the checked entries of MAP_VALUES."""
    entries: list[tuple[int | list[int], str]] = []
    for entry in options["MAP_VALUES"]:
        match entry:
            case [int(value), str(name)] if _is_number(value, MAX_VALUE):
                entries.append((value, name))
            case [[_, _, _] as color, str(name)] if all(_is_number(x, 255) for x in color):
                entries.append((list(color), name))
            case _:
                expected = f"[0 to {MAX_VALUE}, class name] or [[r, g, b], class name]"
                raise InputError(f"{VALUES_KEY} has {entry!r}: expected {expected}")
    if len({isinstance(value, list) for value, _ in entries}) > 1:
        raise InputError(f"{VALUES_KEY} has values and colors: expected one kind")
    return entries


def _is_number(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _number(value: int | list[int]) -> int:
    """Return a value, or the number r + 256 g + 65536 b of a color."""
    if isinstance(value, int):
        return value
    return value[0] + 256 * value[1] + 65536 * value[2]
