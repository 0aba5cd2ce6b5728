"""Read semantic maps from a user's files: names, matching with images, tables of classes."""

import posixpath
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..formats.image_files import ImageFiles, find_files, without_suffix
from ..utils.errors import InputError
from ..utils.images import read_label_map
from ..utils.labels import IGNORE_LABEL, INVALID_LABEL
from .own_labels import OWN_DATA, OwnFiles

MAP_SUFFIXES = (".png",)
STEM = "{stem}"
# Share of ignored pixels from which on the reader warns.
MANY_IGNORED = 0.5

# Kinds of notes.
NO_IMAGE = "maps that belong to no image, left out"
OTHER_NAME = "maps that are not named as DATASETS.COCO_STYLE.MAP_NAMES says, left out"
WRONG_SIZE = "maps of another size than their image, left out"
UNKNOWN_ID = "maps with values that are no class, left out"


def scan_map(path: str) -> list:
    """Return [height, width, [values that occur], [their numbers of pixels]] of a map."""
    ids = read_label_map(path)
    pixels = np.bincount(ids.ravel())
    present = np.flatnonzero(pixels)
    return [*ids.shape, present.tolist(), pixels[present].tolist()]


def make_lut(classes: Sequence[str], files: OwnFiles) -> bytes:
    """Return the look-up table of the maps, id -> class, `IGNORE_LABEL` or `INVALID_LABEL`."""
    ignore_label = files.options["IGNORE_LABEL"]
    key = f"{OWN_DATA}.SEM_SEG_CLASSES"
    if not classes:
        raise InputError(f"{key} is empty: name the classes of the maps in {files.key}")
    count = len(classes)
    if count > INVALID_LABEL or len(set(classes)) < count:
        expected = f"different names and at most {INVALID_LABEL}"
        raise InputError(f"{key} lists {count} classes, expected {expected}")
    if not count <= ignore_label <= 255:
        expected = f"{count} to 255: the ids below are the classes of {key}"
        raise InputError(f"{OWN_DATA}.IGNORE_LABEL is {ignore_label}, expected {expected}")
    lut = np.full(256, INVALID_LABEL, np.uint8)
    lut[:count] = np.arange(count)
    lut[ignore_label] = IGNORE_LABEL
    return lut.tobytes()


def match_maps(files: OwnFiles, images: ImageFiles) -> dict[str, str]:
    """Return image id -> map of the images that have one.

    Raises:
        InputError: no map belongs to an image.
    """
    pattern = files.options["MAP_NAMES"]
    if pattern.count(STEM) != 1:
        raise InputError(f"{OWN_DATA}.MAP_NAMES is {pattern!r}: it must hold {STEM} once")
    found = find_files(files.paths, MAP_SUFFIXES, files.key, files.notes)
    stems: dict[str, str] = {}
    for file in (x for part in found for x in part):
        stem = _stem_of(file.name, pattern)
        if stem is None:
            files.notes.add(OTHER_NAME, f"{file.path} (expected {pattern})")
        elif stems.setdefault(stem, file.path) != file.path:
            raise InputError(f"{files.key}: {stems[stem]} and {file.path} are maps of one image")
    matched, lines = images.match(list(stems), by_stem=True)
    alone = [stem for stem in stems if stem not in matched]
    lines = [f"{stems[stem]}: {line}" for stem, line in zip(alone, lines, strict=True)]
    if lines:
        lines[0] += _hint(alone[0], images)
    if not matched:
        where = ", ".join(files.paths)
        shown = lines[0] if lines else f"expected {pattern}"
        raise InputError(f"{files.key}: no map in {where} is named like an image: {shown}")
    files.notes.add(NO_IMAGE, lines)
    return {image_id: stems[stem] for stem, image_id in matched.items()}


def _stem_of(name: str, pattern: str) -> str | None:
    """Return the path of a map without what `pattern`, such as {stem}_mask.png, adds to it."""
    before, after = (re.escape(part) for part in pattern.split(STEM))
    folder, base = posixpath.split(name)
    match = re.fullmatch(f"{before}(.+){after}", base, re.IGNORECASE)
    return posixpath.join(folder, match[1]) if match else None


def _hint(stem: str, images: ImageFiles) -> str:
    """Return how to name maps if a stem is that of an image with something added."""
    base = posixpath.basename(stem)
    names = {posixpath.basename(without_suffix(x)): x for x in images.names.values()}
    image = max((x for x in names if x in base and x != base), key=len, default="")
    if not image:
        return ""
    pattern = f"{base.replace(image, STEM, 1)}.png"
    return f"; {OWN_DATA}.MAP_NAMES {pattern!r} would make it that of {names[image]}"


def read_maps(
    files: OwnFiles, images: ImageFiles, maps: Mapping[str, str], lut: bytes
) -> tuple[dict[str, str], np.ndarray, set[str]]:
    """Check the maps of the images.

    Returns:
        image id -> map of those that can be used; the number of pixels of each class, with the
        ignored ones under IGNORE_LABEL, (256,); and ids of images whose map cannot be read.
    """
    scans = files.scan(maps.values(), scan_map, name="coco_style_maps", source=files.paths[0])
    table = np.frombuffer(lut, np.uint8)
    pixels = np.zeros(256, np.int64)
    faults: dict[str, list[str]] = {WRONG_SIZE: [], UNKNOWN_ID: []}
    kept: dict[str, str] = {}
    broken = {image_id for image_id, path in maps.items() if path not in scans}
    for image_id, path in maps.items():
        if image_id in broken or image_id not in images.sizes:
            continue
        height, width, ids, counts = scans[path]
        unknown = [i for i in ids if table[i] == INVALID_LABEL]
        if [height, width] != images.sizes[image_id]:
            faults[WRONG_SIZE].append(_wrong_size(path, [height, width], image_id, images))
        elif unknown:
            expected = f"neither a class of {OWN_DATA}.SEM_SEG_CLASSES nor its IGNORE_LABEL"
            text = f"id {unknown[0]} is {expected}"
            faults[UNKNOWN_ID].append(f"{path}: {text} (image: {images.paths[image_id]})")
        else:
            kept[image_id] = path
            np.add.at(pixels, table[ids], counts)
    for kind, lines in faults.items():
        files.notes.check_share(files.key, kind, lines, len(maps))
    return kept, pixels, broken


def _wrong_size(path: str, size: Sequence[int], image_id: str, images: ImageFiles) -> str:
    height, width = images.sizes[image_id]
    image = f"its image {images.paths[image_id]} is {width}x{height}"
    return f"{path} is {size[1]}x{size[0]} pixels, but {image}"


def note_ignored(files: OwnFiles, pixels: np.ndarray, classes: Sequence[str]) -> None:
    """Say it if most pixels are ignored, or masks of 0 and 255 lose their second class."""
    share = pixels[IGNORE_LABEL] / max(pixels.sum(), 1)
    value, key = files.options["IGNORE_LABEL"], f"{OWN_DATA}.IGNORE_LABEL"
    if share and len(classes) > 1 and not pixels[1 : len(classes)].any():
        table = f"[[0, {classes[0]}], [{value}, {classes[1]}]]"
        files.notes.say(
            f"{files.key}: the maps hold 0 and {value} alone. {value} is {key}, so {classes[1]!r} "
            f"never occurs; if it is {classes[1]!r}, set {OWN_DATA}.MAP_VALUES to {table}"
        )
    elif share > MANY_IGNORED:
        percent = f"{100 * share:.0f} % of the pixels"
        files.notes.say(
            f"{files.key}: {percent} of the maps have the value {value}, which is {key}"
        )
