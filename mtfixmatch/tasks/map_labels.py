"""Read semantic maps from a user's files: PNGs, shapes or panoptic annotations."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..formats.image_files import ImageFiles, expand
from ..formats.maps import map_format
from ..formats.shapes import ShapeMap
from ..formats.sources import MapSource, Segments
from ..formats.value_maps import ValueMap
from ..utils.files import note_read
from ..utils.labels import IGNORE_LABEL
from .image_matcher import TWICE as ENTRY_TWICE
from .image_matcher import ImageMatcher
from .map_values import (
    CLASSES_KEY,
    IGNORED,
    VALUES_KEY,
    check_classes,
    listed_classes,
    unpainted_class,
    value_map,
)
from .own_labels import OwnFiles, OwnLabels
from .png_maps import PngMaps, match_maps, note_ignored, read_pngs
from .shape_maps import ShapeReader

NO_ID = 0  # color of the pixels of no segment

# Kinds of notes.
AGAIN = "images that are listed twice, of whose labels the first counts"
NO_PNG = "maps whose PNG does not exist, left out"
TWICE = "maps of images that an earlier entry of MAPS has, left out"
OTHER_CLASSES = "classes of panoptic annotations that are not trained, ignored"


class MapKeys(NamedTuple):
    """Keys of a record: of the label file, and of what else the map needs; see `load_map`."""

    label: str
    lut: str
    reader: str
    partial: str


def map_classes(files: OwnFiles) -> list[str]:
    """Return the classes of the maps: those of the config, else those of the files, if any.

    In the latter case, the class UNPAINTED is the first unless the files have it.
    """
    names = listed_classes(files.options)
    if names or not files.paths:
        return names
    for path in map(expand, files.paths):
        if open_maps := map_format(path, files.key):
            names += open_maps(path, files.scan).classes
    unpainted = files.options["UNPAINTED"]
    if names and unpainted not in (IGNORED, *names):
        names.insert(0, unpainted)
    return list(dict.fromkeys(names))


class OwnMapReader:
    """Reads the maps of a split."""

    def __init__(self, files: OwnFiles, images: ImageFiles, classes: Sequence[str], keys: MapKeys):
        """Set the files, the images of the split, the classes and the keys of records."""
        check_classes(classes, files)
        self.files, self.images, self.classes, self.keys = files, images, list(classes), keys
        self.table = value_map(classes, files.options)
        self.lut = self.table.look_up_table()
        unpainted = unpainted_class(classes, files.options)
        self.shapes = ShapeReader(files, images, classes, unpainted)
        self.matcher = ImageMatcher(images, files.notes)
        self.labels: dict[str, dict[str, Any]] = {}
        self.pixels = np.zeros(256, np.int64)  # of each class, in PNGs
        self.listed: set[str] = set()
        self.broken: set[str] = set()

    def read(self) -> OwnLabels:
        """Return the labels of all files; of several maps of an image, the first is its label."""
        for path in map(expand, self.files.paths):
            open_maps = map_format(path, self.files.key)
            if open_maps is None:
                self._add_pngs(path)
            else:
                self._add_source(open_maps(path, self.files.scan))
        used = self.shapes.drawn | set(np.flatnonzero(self.pixels).tolist())
        absent = [name for i, name in enumerate(self.classes) if i not in used]
        return OwnLabels(
            labels=self.labels,
            listed=self.listed,
            absent=absent,
            broken=self.broken - self.labels.keys(),
            remark=self._remark(),
        )

    def _remark(self) -> str:
        if not self.pixels.any():
            return ""
        share = self.pixels[IGNORE_LABEL] / self.pixels.sum()
        return f"{100 * share:.1f} % of the pixels of PNGs are ignored"

    def _add_pngs(self, path: str) -> None:
        maps = match_maps(path, self.files, self.images)
        expected = f"neither a class of {CLASSES_KEY} nor its IGNORE_LABEL"
        if self.files.options["MAP_VALUES"]:
            expected = f"not in {VALUES_KEY}"
        tables = {image_id: (png, self.table) for image_id, png in maps.items()}
        self._read(PngMaps(path, tables, expected, self.table.has_colors))

    def _read(self, pngs: PngMaps) -> None:
        kept, pixels, broken = read_pngs(pngs, self.files, self.images)
        note_ignored(pngs, self.files, pixels, self.classes)
        self.pixels += pixels
        self.broken |= broken
        self._add(kept, pngs.source)

    def _add_source(self, source: MapSource) -> None:
        """Add a source that lists images."""
        self.matcher.note_entries(source)
        broken, _ = self.images.match(source.broken, by_stem=source.by_stem)
        self.broken |= set(broken.values())
        is_panoptic = any(isinstance(x.label, Segments) for x in source.images)
        listed = self.matcher.match(source, AGAIN if is_panoptic else ENTRY_TWICE)
        if source.lists_images:
            self.listed |= {image_id for _, image_id in listed}
        labeled = [
            (x, image_id)
            for x, image_id in listed
            if x.label is not None and self.matcher.has_size(source, x, image_id)
        ]
        if is_panoptic:
            segments = {image_id: x.label for x, image_id in reversed(labeled)}
            self._add_segments(source.path, segments)
        else:
            self._add(self.shapes.read(source, labeled), source.path)

    def _add_segments(self, path: str, segments: Mapping[str, Segments]) -> None:
        """Add the maps of panoptic annotations, of which a pixel without a segment is ignored."""
        numbers = {name: i for i, name in enumerate(self.classes)}
        others = {name for x in segments.values() for name in x.classes} - numbers.keys()
        self.files.notes.add(OTHER_CLASSES, [f"{path}: {name!r}" for name in sorted(others)])
        for folder in {os.path.dirname(found.path) for found in segments.values()}:
            note_read(folder)
        there = {x: found for x, found in segments.items() if os.path.exists(found.path)}
        missing = [
            f"{path}: image {self.images.paths[x]} has the map {found.path}"
            for x, found in segments.items()
            if x not in there
        ]
        self.files.notes.check_share(path, NO_PNG, missing, len(segments))
        tables = {
            image_id: {NO_ID: IGNORE_LABEL}
            | {
                key: numbers.get(name, IGNORE_LABEL)
                for key, name in zip(x.ids, x.classes, strict=True)
            }
            for image_id, x in there.items()
        }
        maps = {x: (there[x].path, ValueMap.of(t, has_colors=True)) for x, t in tables.items()}
        expected = f"no segment of its image in {path}"
        self._read(PngMaps(path, maps, expected, has_colors=True, of_segments=True))

    def _add(self, maps: Mapping[str, tuple[str, ValueMap | ShapeMap]], source: str) -> None:
        """Add the maps of a source, image id -> label file and what reads it."""
        twice = [self.images.paths[x] for x in maps if x in self.labels]
        self.files.notes.add(TWICE, [f"{source}: that of {path}" for path in twice])
        is_partial = self.shapes.unpainted == IGNORE_LABEL
        for image_id, (path, reader) in maps.items():
            if image_id in self.labels:
                continue
            label: dict[str, Any] = {self.keys.label: path}
            if reader is self.table and self.lut:
                label[self.keys.lut] = self.lut
            else:
                label[self.keys.reader] = reader
            if isinstance(reader, ShapeMap) and is_partial:
                label[self.keys.partial] = True
            self.labels[image_id] = label
