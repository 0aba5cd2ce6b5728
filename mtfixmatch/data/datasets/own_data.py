"""Read your own data: folders of images, and for each task its label files."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from detectron2.config import CfgNode

from ...formats.image_files import UNREAD, ImageFiles, expand, find_images, image_sources
from ...tasks.base import Task
from ...tasks.config import own_key
from ...tasks.own_labels import OWN_DATA, OwnFiles, OwnLabels
from ...utils.errors import InputError
from ...utils.images import RANGE_16BIT, read_image_header
from ...utils.notes import Notes
from ..records import Record, make_record
from .pixel_notes import note_pixels
from .record_cache import code_of
from .scan import FileScanner

logger = logging.getLogger(__name__)

TRAIN, VAL = "TRAIN", "VAL"

HELD_OUT = "images that validation lists, left out of the training"
NEVER = "classes that never occur in the labels of the training"


@dataclass(frozen=True)
class OwnData:
    """The user's own data, as a config describes it.

    Attributes:
        node: the node DATASETS.COCO_STYLE.
        kinds: task name -> kind of the tasks that are trained; only their labels are read.
        classes: task name -> names of the classes, where the config of the task has them.
        range_16bit: INPUT.RANGE_16BIT.
        place: what to call the node in messages.
    """

    node: CfgNode
    kinds: Mapping[str, type[Task]]
    classes: Mapping[str, Sequence[str]]
    range_16bit: tuple[int, int] = RANGE_16BIT
    place: str = OWN_DATA
    _names: dict[str, list[str]] = field(default_factory=dict)  # see `class_names`
    # Split -> folders with its images, so that the many files of a split are listed once.
    _folders: dict[str, set[str]] = field(default_factory=dict)

    def load(self, split: str, scan: FileScanner) -> list[Record]:
        """Return the records of a split, TRAIN or VAL, sorted by image id.

        Each image takes part in the training, unless validation lists it. If both splits have the
        same images, validation has those that its label files list.

        Raises:
            InputError: files are missing, of the wrong form, or do not fit each other.
        """
        images = self._images(split, scan)
        labels = self._labels(split, images, scan)
        broken = {image_id for own in labels.values() for image_id in own.broken}
        readable = images.sizes.keys() - broken
        kept = readable & self._members(split, images, scan)
        if split == TRAIN:
            left_out = sorted(images.paths[x] for x in readable - kept)
            scan.notes.add(HELD_OUT, left_out)
            for name, own in labels.items():
                scan.notes.add(NEVER, [f"{x!r} ({name})" for x in own.absent])
        records = [self._record(image_id, images, labels) for image_id in sorted(kept)]
        _log_labels(f"{self.place}.{split}", records, labels)
        return records

    def class_names(self, name: str, scan: FileScanner) -> list[str]:
        """Return the classes of a task: those of the config, else of the training files.

        Without training files, they are those of the validation files.
        """
        if name not in self._names:  # the files are read once for both splits
            train, val = (self._files(name, split, scan) for split in (TRAIN, VAL))
            own_classes = self.kinds[name].own_classes
            listed = list(self.classes.get(name, ()))
            self._names[name] = listed or own_classes(train if train.paths else val)
        return self._names[name]

    def get_state(self, split: str, scan: FileScanner) -> dict[str, Any]:
        """Return what loading a split leaves here for the other split, as plain values."""
        classes = {name: self.class_names(name, scan) for name in self.kinds}
        return {"classes": classes, "folders": sorted(self._folders[split])}

    def set_state(self, split: str, state: Mapping[str, Any]) -> None:
        """Set what `get_state` has returned."""
        self._names.update(state["classes"])
        self._folders[split] = set(state["folders"])

    def sources(self) -> list[str]:
        """Return the folders and files that the config names, of both splits."""
        nodes = (self.node[split] for split in (TRAIN, VAL))
        return [path for node in nodes for value in node.values() for path in paths_of(value)]

    def settings(self) -> list[Any]:
        """Return all but the files that the records depend on, with a constant `repr`."""
        classes = {name: list(names) for name, names in self.classes.items()}
        return [self.place, self.node.dump(), classes, self.range_16bit, code_of(self.kinds)]

    def listed_classes(self, name: str) -> list[str]:
        """Return the classes of a task that are known before a file is read, maybe none."""
        files = replace(self._files(name, TRAIN, FileScanner()), paths=[])
        return list(self.classes.get(name, ())) or self.kinds[name].own_classes(files)

    def _images(self, split: str, scan: FileScanner) -> ImageFiles:
        key = f"{self.place}.{split}.IMAGES"
        images, headers = read_images(paths_of(self.node[split].IMAGES), key, scan)
        note_pixels(headers, self.range_16bit, scan, images.sources)
        return images

    def _labels(self, split: str, images: ImageFiles, scan: FileScanner) -> dict[str, OwnLabels]:
        """Read the labels of each task that has files in a split."""
        labels = {}
        for name, kind in self.kinds.items():
            files = self._files(name, split, scan)
            if files.paths:
                classes = self.class_names(name, scan)
                labels[name] = kind.read_own_labels(files, images, classes)
        return labels

    def _files(self, name: str, split: str, scan: FileScanner) -> OwnFiles:
        kind = self.kinds[name]
        key = own_key(kind, kind.own_key, name)
        options = {x: self.node[own_key(kind, x, name)] for x in kind.own_config()}
        return OwnFiles(
            task=name,
            paths=paths_of(self.node[split].get(key)) if kind.own_key else [],
            key=f"{self.place}.{split}.{key}",
            options=options,
            is_training=split == TRAIN,
            scan=scan,
            notes=scan.notes,
        )

    def _members(self, split: str, images: ImageFiles, scan: FileScanner) -> set[str]:
        """Return the ids of the images that belong to a split: all, unless the splits share some.

        Raises:
            InputError: they are shared, and nothing lists those of validation.
        """
        other, quiet = VAL if split == TRAIN else TRAIN, scan.without_notes()
        self._folders[split] = _folders(images.paths)
        if other in self._folders and self._folders[other].isdisjoint(self._folders[split]):
            return set(images.paths)
        others = self._paths(other, quiet.notes)
        self._folders[other] = _folders(others)
        if self._folders[other].isdisjoint(self._folders[split]):
            return set(images.paths)
        files = _real(images.paths)
        if files.keys().isdisjoint(_real(others)):
            return set(images.paths)
        held_out = _real(images.paths if split == VAL else others)
        validation = image_sources(paths_of(self.node.VAL.IMAGES), VAL)
        if not all(x.lower().endswith(".txt") for x in validation):
            held_out = self._listed_by_validation(quiet)
        return {
            image_id for file, image_id in files.items() if (file in held_out) == (split == VAL)
        }

    def _paths(self, split: str, notes: Notes) -> dict[str, str]:
        """Return image id -> path of a split; of one that cannot be read, none."""
        sources = paths_of(self.node[split].IMAGES)
        try:
            return find_images(sources, split, notes)[0] if sources else {}
        except InputError:  # that split says so when it is read
            return {}

    def _listed_by_validation(self, scan: FileScanner) -> dict[str, str]:
        """Return the real files of the images that the label files of validation list.

        Files of one image each list their images, unless training has the same ones.
        """
        images = self._images(VAL, scan)
        labels = self._labels(VAL, images, scan)
        listed = {x for own in labels.values() for x in own.listed}
        train, val = (
            {name: self._files(name, split, scan).paths for name in labels}
            for split in (TRAIN, VAL)
        )
        apart = [own.labels for name, own in labels.items() if train[name] != val[name]]
        listed = listed or {image_id for labels in apart for image_id in labels}
        if not listed:
            raise InputError(
                f"{self.place}: TRAIN and VAL have the same images, and no label file of VAL lists "
                "those of validation: name a text file with their paths as VAL.IMAGES"
            )
        return _real({image_id: images.paths[image_id] for image_id in listed})

    def _record(self, image_id: str, images: ImageFiles, labels: Mapping[str, OwnLabels]) -> Record:
        record = make_record(images.paths[image_id], image_id, images.sizes[image_id])
        for own in labels.values():
            record |= own.labels.get(image_id, {})
        return record


def read_images(
    sources: Sequence[str], key: str, scan: FileScanner
) -> tuple[ImageFiles, dict[str, list[int]]]:
    """Return the images in sources, and file -> what `read_image_header` returns.

    Args:
        sources: value of a key IMAGES.
        key: the key, for messages and caches.
        scan: scanner with the notes.

    Raises:
        InputError: there are no sources, or no images in one of them.
    """
    sources = image_sources(sources, key)
    if not sources:
        raise InputError(f"{key} is empty: name the folders of the images")
    paths, names = find_images(sources, key, scan.notes)
    source = os.path.commonpath([expand(x) for x in sources]) if len(sources) == 1 else key
    headers = scan(paths.values(), read_image_header, name="coco_style_headers", source=source)
    sizes = {x: headers[path][:2] for x, path in paths.items() if path in headers}
    unread = scan.notes.lines.get(f"{UNREAD} in {key}", ())
    shown = ", ".join(sources)
    images = ImageFiles(paths=paths, sizes=sizes, names=names, sources=shown, unread=unread)
    return images, headers


def paths_of(value: Any) -> list[str]:
    """Return the paths in a config value: a string, a list, or nothing."""
    return [value] if isinstance(value, str) and value else list(value or ())


def _folders(paths: Mapping[str, str]) -> set[str]:
    """Return the real paths of the folders of files."""
    return {os.path.realpath(folder) for folder in {os.path.dirname(x) for x in paths.values()}}


def _real(paths: Mapping[str, str]) -> dict[str, str]:
    """Return file with the real path of its folder, so that links are seen, -> image id."""
    folder = cache(os.path.realpath)
    return {
        os.path.join(folder(os.path.dirname(x)), os.path.basename(x)): i for i, x in paths.items()
    }


def _log_labels(split: str, records: Sequence[Record], labels: Mapping[str, OwnLabels]) -> None:
    """Log how many images have labels of each task, and of none."""
    ids = {record["image_id"]: record["file_name"] for record in records}
    counts = [
        f"{len(ids.keys() & own.labels)} for {task}" + (f" ({own.remark})" if own.remark else "")
        for task, own in labels.items()
    ]
    none = sorted(ids.keys() - {x for own in labels.values() for x in own.labels})
    first = f" (the first: {ids[none[0]]})" if none else ""
    shown = ", ".join([*counts, f"{len(none)} for no task{first}"])
    logger.info("%s: of %d images are labeled: %s", split, len(records), shown)
