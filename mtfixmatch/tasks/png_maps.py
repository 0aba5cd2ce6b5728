"""Find and check the PNGs of semantic maps."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..formats.image_files import ImageFiles, find_files, without_suffix
from ..formats.value_maps import ValueMap, scan_colors, scan_values, shown_value
from ..utils.errors import InputError
from ..utils.labels import IGNORE_LABEL, INVALID_LABEL
from .map_values import IGNORE_KEY, VALUES_KEY
from .own_labels import OWN_DATA, OwnFiles

MAP_SUFFIX = ".png"
STEM = "{stem}"
# Share of ignored pixels from which on the reader warns.
MANY_IGNORED = 0.5
MAX_NAMED = 200  # maps whose names are compared with those of the images
# Number of unknown colors from which on an image was not saved as a map.
MANY_COLORS = 16

# Kinds of notes.
NO_IMAGE = "maps that belong to no image, left out"
OTHER_NAME = "maps that are not named as DATASETS.COCO_STYLE.MAP_NAMES says, left out"
WRONG_SIZE = "maps of another size than their image, left out"
UNKNOWN_ID = "maps with values that are no class, left out"


@dataclass
class PngMaps:
    """PNGs that are checked together.

    Attributes:
        source: file or folder that they belong to.
        maps: image id -> PNG and the table of its values.
        expected: what an unknown value is, such as "no class".
        has_colors: whether their values are colors.
        of_segments: whether these are ids of segments of panoptic annotations.
    """

    source: str
    maps: Mapping[str, tuple[str, ValueMap]]
    expected: str
    has_colors: bool
    of_segments: bool = False


def match_maps(path: str, files: OwnFiles, images: ImageFiles) -> dict[str, str]:
    """Return image id -> map of the images that have one in a folder, a glob or a list.

    Raises:
        InputError: no map belongs to an image.
    """
    pattern = files.options["MAP_NAMES"]
    if pattern.count(STEM) != 1:
        raise InputError(f"{OWN_DATA}.MAP_NAMES is {pattern!r}: it must hold {STEM} once")
    (found,) = find_files([path], (MAP_SUFFIX,), files.key, files.notes)
    stems: dict[str, str] = {}
    for file in found:
        stem = stem_of(file.name, pattern)
        if stem is None:
            files.notes.add(OTHER_NAME, f"{file.path} (expected {pattern})")
        elif stems.setdefault(stem, file.path) != file.path:
            raise InputError(f"{files.key}: {stems[stem]} and {file.path} are maps of one image")
    matched, lines = images.match(list(stems), by_stem=True)
    alone = [stem for stem in stems if stem not in matched]
    lines = [f"{stems[stem]}: {line}" for stem, line in zip(alone, lines, strict=True)]
    if lines:
        lines[0] += _hint(alone, images)
    if not matched:
        shown = lines[0] if lines else f"expected {pattern}"
        raise InputError(f"{files.key}: no map in {path} is named like an image: {shown}")
    files.notes.add(NO_IMAGE, lines)
    return {image_id: stems[stem] for stem, image_id in matched.items()}


def stem_of(name: str, pattern: str) -> str | None:
    """Return the path of a map without what `pattern`, such as {stem}_mask.png, adds to it."""
    before, after = (re.escape(part) for part in pattern.split(STEM))
    folder, base = posixpath.split(name)
    match = re.fullmatch(f"{before}(.+){after}", base, re.IGNORECASE)
    return posixpath.join(folder, match[1]) if match else None


def guess_names(maps: Sequence[str], images: Iterable[str]) -> str:
    """Return MAP_NAMES: the most common difference between names of maps and of images.

    Both lack their suffix. With equal names, or none that agree, it is {stem}.png.
    """
    stems = sorted({posixpath.basename(x) for x in images}, key=len, reverse=True)
    known = set(stems)
    step = max(1, len(maps) // MAX_NAMED)
    counts: Counter = Counter()
    for name in map(posixpath.basename, maps[::step]):
        stem = name if name in known else next((x for x in stems if x in name), "")
        if stem:
            counts[name.replace(stem, STEM, 1)] += 1
    return (counts.most_common(1)[0][0] if counts else STEM) + MAP_SUFFIX


def _hint(stems: Sequence[str], images: ImageFiles) -> str:
    """Return MAP_NAMES that would fit maps without an image, "" if they have nothing in common."""
    pattern = guess_names(stems, [without_suffix(x) for x in images.names.values()])
    has_none = pattern == STEM + MAP_SUFFIX
    return "" if has_none else f"; {OWN_DATA}.MAP_NAMES {pattern!r} would fit"


def read_pngs(
    pngs: PngMaps, files: OwnFiles, images: ImageFiles
) -> tuple[dict[str, tuple[str, ValueMap]], np.ndarray, set[str]]:
    """Check PNGs.

    Returns:
        The `maps` that can be used; the number of pixels of each class, with the ignored ones under
        IGNORE_LABEL, (256,); and ids of images whose PNG cannot be read.
    """
    maps = pngs.maps
    function, name = (scan_colors, "colors") if pngs.has_colors else (scan_values, "maps")
    paths = [path for path, _ in maps.values()]
    scans = files.scan(paths, function, name=f"coco_style_{name}", source=pngs.source)
    broken = {image_id for image_id, (path, _) in maps.items() if path not in scans}
    faults: dict[str, list[str]] = {WRONG_SIZE: [], UNKNOWN_ID: []}
    pixels, kept = np.zeros(256, np.int64), {}
    for image_id, (path, table) in maps.items():
        if image_id in broken or image_id not in images.sizes:
            continue
        height, width, values, counts, _ = scans[path]
        classes = table.look_up(values)
        if [height, width] != images.sizes[image_id]:
            faults[WRONG_SIZE].append(_wrong_size(path, [height, width], image_id, images))
        elif (classes == INVALID_LABEL).any():
            line = f"{path}: {_unknown(pngs, scans[path], classes)}"
            faults[UNKNOWN_ID].append(f"{line} (image: {images.paths[image_id]})")
        else:
            kept[image_id] = (path, table)
            np.add.at(pixels, classes, counts)
    for kind, lines in faults.items():
        files.notes.check_share(f"{files.key}: {pngs.source}", kind, lines, len(maps))
    return kept, pixels, broken


def _wrong_size(path: str, size: Sequence[int], image_id: str, images: ImageFiles) -> str:
    height, width = images.sizes[image_id]
    image = f"its image {images.paths[image_id]} is {width}x{height}"
    return f"{path} is {size[1]}x{size[0]} pixels, but {image}"


def _unknown(pngs: PngMaps, scan: Sequence, classes: np.ndarray) -> str:
    """Return the unknown value of most pixels of a map, for a message."""
    _, _, values, counts, total = scan
    unknown = np.flatnonzero(classes == INVALID_LABEL)
    first = max(unknown, key=lambda i: counts[i])
    others = len(unknown) - 1 + total - len(values)
    more = f", and {others} other values are so" if others else ""
    is_no_map = pngs.has_colors and not pngs.of_segments and others > MANY_COLORS
    hint = " (was the map a JPEG, scaled or antialiased?)" if is_no_map else ""
    shown = shown_value(values[first], has_colors=pngs.has_colors and not pngs.of_segments)
    return f"{shown} is {pngs.expected} ({counts[first]} pixels){more}{hint}"


def note_ignored(
    pngs: PngMaps, files: OwnFiles, pixels: np.ndarray, classes: Sequence[str]
) -> None:
    """Say it if most pixels are ignored, or masks of 0 and 255 lose their second class."""
    share = pixels[IGNORE_LABEL] / max(pixels.sum(), 1)
    value, has_table = files.options["IGNORE_LABEL"], bool(files.options["MAP_VALUES"])
    is_binary = share and len(classes) > 1 and not pixels[1 : len(classes)].any()
    if is_binary and not has_table and not pngs.of_segments:
        table = f"[[0, {classes[0]!r}], [{value}, {classes[1]!r}]]"
        files.notes.say(
            f"{files.key}: the maps hold 0 and {value} alone. {value} is {IGNORE_KEY}, so "
            f"{classes[1]!r} never occurs; if it is {classes[1]!r}, set {VALUES_KEY} to {table}"
        )
    elif share > MANY_IGNORED:
        reason = f"have the value {value}, which is {IGNORE_KEY}"
        if has_table or pngs.of_segments:
            reason = f"are ignored ({'no segment' if pngs.of_segments else VALUES_KEY})"
        percent = f"{100 * share:.0f} % of the pixels of the maps in {pngs.source}"
        files.notes.say(f"{files.key}: {percent} {reason}")
