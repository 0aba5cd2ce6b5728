"""What a folder of PNG maps holds: how they are named, and what their values may mean."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.datasets.scan import FileScanner
from ..formats.image_files import ImageFiles, find_files, without_suffix
from ..formats.value_maps import scan_colors, scan_values
from ..tasks.png_maps import MAP_SUFFIX, guess_names, stem_of
from ..utils.errors import InputError
from ..utils.labels import IGNORE_LABEL, INVALID_LABEL
from ..utils.notes import Notes
from .class_names import NamedValues, names_beside

MAX_READ = 256  # different values that are read of a map: more than maps of classes have
VALUES, COLORS = "values", "colors"


@dataclass
class Maps:
    """Maps of images.

    Attributes:
        kind: format, for the table of what was seen.
        pattern: DATASETS.COCO_STYLE.MAP_NAMES.
        labeled: ids of the images that have one.
        values: their values, or colors as r + 256 g + 65536 b.
    """

    kind: str
    pattern: str
    labeled: list[str]
    values: set[int]


@dataclass
class MapClasses:
    """Classes of maps.

    Attributes:
        classes: their names.
        table: DATASETS.COCO_STYLE.MAP_VALUES; empty: value i is class i.
        remark: what the user should know or decide.
    """

    classes: list[str]
    table: list[list]
    remark: str


def guess_maps(path: str, images: ImageFiles, scan: FileScanner, key: str) -> Maps:
    """Return what the maps in a folder or a glob hold.

    Raises:
        InputError: they are named like no image, are no maps of classes, or cannot be read.
    """
    taken = set(images.paths.values())
    (files,) = find_files([path], (MAP_SUFFIX,), key, Notes())
    files = [x for x in files if x.path not in taken]
    names = [without_suffix(x.name) for x in files]
    pattern = guess_names(names, [without_suffix(x) for x in images.names.values()])
    stems = {stem: x.path for x in files if (stem := stem_of(x.name, pattern))}
    matched, lines = images.match(list(stems), by_stem=True)
    if not matched:
        shown = f": {lines[0]}" if lines else ""
        raise InputError(f"{path}: no map is named like an image{shown}")
    readable = {stems[x]: image_id for x, image_id in matched.items() if image_id in images.sizes}
    found = scan(readable, map_values, name="guess_map_values", source=path)
    if not found:
        raise InputError(f"{path}: no map can be read")
    kinds = {kind for kind, _ in found.values()}
    if len(kinds) > 1:
        raise InputError(f"{path}: the maps have {' and '.join(sorted(kinds))}, expected one kind")
    values = {x for _, seen in found.values() for x in seen}
    return Maps(f"PNG, {kinds.pop()}", pattern, [readable[x] for x in found], values)


def map_values(path: str) -> list:
    """Return [kind, values] of a PNG; values of colors are r + 256 g + 65536 b.

    There are at most MAX_READ, which is enough to see that they are no classes.

    Raises:
        InputError: it cannot be read, or is no map.
    """
    try:
        *_, values, _, _ = scan_values(path)
        kind = VALUES
    except InputError:  # it has colors, or is broken, which the next reader says, too
        *_, values, _, _ = scan_colors(path)
        kind = COLORS
    return [kind, values[:MAX_READ]]


def guess_classes(paths: Sequence[str], values: set[int], *, has_colors: bool) -> MapClasses:
    """Return classes for maps with these values: those that a file beside them names, or others.

    Args:
        paths: folders or globs of the maps.
        values: values, or colors as r + 256 g + 65536 b.
        has_colors: whether they are colors.

    Raises:
        InputError: they are too many.
    """
    path = ", ".join(dict.fromkeys(paths))
    classes = sorted(values - (set() if has_colors else {IGNORE_LABEL}))
    named = names_beside(paths, set(classes), has_colors=has_colors)
    is_binary = values == {0, IGNORE_LABEL} and not has_colors
    if named and not is_binary and len(named.names) <= INVALID_LABEL:
        return _named_classes(path, named, has_colors=has_colors)
    shown = ", ".join(map(str, sorted(values)[:10])) + (", ..." if len(values) > 10 else "")
    remark = f"{path}: the maps have the values {shown}"
    if has_colors:
        remark = f"{path}: each of {len(values)} colors is taken as a class"
    elif is_binary:
        remark += " alone: taken as 2 classes; if 255 means ignored, take it out of MAP_VALUES"
    elif IGNORE_LABEL in values:
        remark += ", of which 255 counts as ignored"
    if has_colors or is_binary or classes[-1:] > [2 * len(classes) + 1] or not classes:
        listed = sorted(values) if is_binary or not classes else classes
        names = [f"class_{i}" for i in range(len(listed))]
        table = [[_value(x, has_colors), y] for x, y in zip(listed, names, strict=True)]
    else:
        table, names = [], [f"class_{i}" for i in range(classes[-1] + 1)]
    if len(names) > INVALID_LABEL:
        what = "colors" if has_colors else "values"
        raise InputError(f"{path}: the maps have more than {INVALID_LABEL} {what}")
    return MapClasses(names, table, remark)


def _named_classes(path: str, named: NamedValues, *, has_colors: bool) -> MapClasses:
    ids = sorted(named.names)
    names = [named.names[i] for i in ids]
    has_gaps = has_colors or ids != list(range(len(ids)))
    table = [[_value(i, has_colors), named.names[i]] for i in ids] if has_gaps else []
    ignored = "" if has_colors else "; 255 counts as ignored"
    return MapClasses(names, table, f"{path}: {named.path} names the classes{ignored}")


def _value(value: int, has_colors: bool) -> int | list[int]:
    return [value & 255, value >> 8 & 255, value >> 16] if has_colors else value
