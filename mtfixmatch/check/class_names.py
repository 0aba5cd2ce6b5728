"""Files with names of classes, which lie beside maps: a list, a JSON, or CVAT's labelmap.txt."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..formats.image_files import expand, fixed_part
from ..utils.errors import InputError
from ..utils.files import read_json, reading

FILE = re.compile(r"(.*[_-])?(classes|class_?names|labels|names|label_?map)\.(txt|json)", re.I)
COLORED = re.compile(r"([^:#]+):(\d+),(\d+),(\d+):.*")  # a line of labelmap.txt
OF_MAPS = re.compile("seg|mask|map|stuff", re.I)  # other names may be those of boxes
MAX_BYTES = 1 << 20  # of a file of names; larger ones are labels
LEVELS = 3  # folder of the maps, and those above it, that are looked at


@dataclass
class NamedValues:
    """The names of the values of maps, or of their colors as r + 256 g + 65536 b."""

    path: str
    names: dict[int, str]


def names_beside(maps: Iterable[str], values: set[int], *, has_colors: bool) -> NamedValues | None:
    """Return the names of all `values` in the one file beside the maps that has them.

    In a folder above the maps, the name of the file must say that it is about maps.

    Args:
        maps: folders, or globs of the maps.
        values: values or colors that are classes.
        has_colors: whether they are colors.

    Returns:
        The names; None: no file has them, or several have.
    """
    folders = [fixed_part(x) if not os.path.isdir(x) else x for x in map(expand, maps)]
    folder = os.path.commonpath(list(map(os.path.abspath, folders)))
    for level in range(LEVELS):
        files = [x for x in sorted(os.listdir(folder)) if not level or OF_MAPS.search(x)]
        paths = [os.path.join(folder, x) for x in files]
        found = [NamedValues(x, read_names(x, has_colors=has_colors)) for x in paths]
        found = [x for x in found if values and values <= x.names.keys()]
        if found:
            return found[0] if len(found) == 1 else None
        folder = os.path.dirname(folder)
    return None


def is_of_names(path: str) -> bool:
    """Return whether a file names classes, so that it has no labels."""
    return any(read_names(path, has_colors=x) for x in (False, True))


def read_names(path: str, *, has_colors: bool) -> dict[int, str]:
    """Return value, or color, -> name as a file of names has it; {}: it is no such file."""
    if not FILE.fullmatch(os.path.basename(path)) or os.path.getsize(path) > MAX_BYTES:
        return {}
    try:
        if path.lower().endswith(".json"):
            return {} if has_colors else _named(read_json(path))
        with reading(path), open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip()]
    except (InputError, UnicodeError):
        return {}
    colors = [x for x in map(COLORED.fullmatch, lines) if x]
    if has_colors:
        return {int(x[2]) + 256 * int(x[3]) + 65536 * int(x[4]): x[1].strip() for x in colors}
    return {} if colors else _named(lines)


def _named(content: object) -> dict[int, str]:
    """Return id -> name of a list of names, of {"0": name} or of {name: 0}."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {}
    if all(isinstance(x, int) for x in content.values()):
        content = {i: name for name, i in content.items()}
    try:
        names = {int(i): name for i, name in content.items()}
    except (TypeError, ValueError):
        return {}
    is_names = all(isinstance(x, str) and x for x in names.values())
    return names if is_names and len(set(names.values())) == len(names) else {}
