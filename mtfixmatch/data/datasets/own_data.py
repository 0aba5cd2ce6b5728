"""Read your own data: folders of images, and for each task its label files."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detectron2.config import CfgNode

from ...formats.image_files import UNREAD, ImageFiles, expand, find_images
from ...tasks.base import Task
from ...tasks.config import own_key
from ...tasks.own_labels import OWN_DATA, OwnFiles, OwnLabels
from ...utils.errors import InputError
from ...utils.images import read_image_size
from ..records import Record, make_record
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
    """

    node: CfgNode
    kinds: Mapping[str, type[Task]]
    classes: Mapping[str, Sequence[str]]

    def load(self, split: str, scan: FileScanner) -> list[Record]:
        """Return the records of a split, TRAIN or VAL, sorted by image id.

        Each image takes part in the training, unless validation lists it. If both splits have the
        same images, validation has those that its label files list.

        Raises:
            InputError: files are missing, of the wrong form, or do not fit each other.
        """
        images = self._images(split, scan)
        labels = self._labels(split, images, scan)
        held_out = self._validation_files(images, scan)
        is_training = split == TRAIN
        broken = {image_id for own in labels.values() for image_id in own.broken}
        readable = images.sizes.keys() - broken
        kept = {
            image_id
            for image_id in readable
            if held_out is None or (_real(images.paths[image_id]) in held_out) != is_training
        }
        if is_training:
            left_out = sorted(images.paths[x] for x in readable - kept)
            scan.notes.add(HELD_OUT, left_out)
            for name, own in labels.items():
                scan.notes.add(NEVER, [f"{x!r} ({name})" for x in own.absent])
        records = [self._record(image_id, images, labels) for image_id in sorted(kept)]
        _log_labels(split, records, labels)
        return records

    def class_names(self, name: str, scan: FileScanner) -> list[str]:
        """Return the classes of a task: those of the config, else those of the training files."""
        known = list(self.classes.get(name, ()))
        return known or self.kinds[name].own_classes(self._files(name, TRAIN, scan))

    def listed_classes(self, name: str) -> list[str]:
        """Return the classes of a task that are known before a file is read, maybe none."""
        files = replace(self._files(name, TRAIN, FileScanner()), paths=[])
        return list(self.classes.get(name, ())) or self.kinds[name].own_classes(files)

    def _images(self, split: str, scan: FileScanner) -> ImageFiles:
        key = f"{OWN_DATA}.{split}.IMAGES"
        sources = paths_of(self.node[split].IMAGES)
        if not sources:
            raise InputError(f"{key} is empty: name the folders of the images")
        paths, names = find_images(sources, key, scan.notes)
        source = os.path.commonpath([expand(x) for x in sources]) if len(sources) == 1 else key
        sizes = scan(paths.values(), read_image_size, name="coco_style_sizes", source=source)
        by_id = {x: sizes[path] for x, path in paths.items() if path in sizes}
        unread = scan.notes.lines.get(f"{UNREAD} in {key}", ())
        shown = ", ".join(sources)
        return ImageFiles(paths=paths, sizes=by_id, names=names, sources=shown, unread=unread)

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
            key=f"{OWN_DATA}.{split}.{key}",
            options=options,
            is_training=split == TRAIN,
            scan=scan,
            notes=scan.notes,
        )

    def _validation_files(self, images: ImageFiles, scan: FileScanner) -> set[str] | None:
        """Return the real files of validation if it shares images with training, else None.

        Raises:
            InputError: they are shared, and nothing lists those of validation.
        """
        sources = {split: paths_of(self.node[split].IMAGES) for split in (TRAIN, VAL)}
        if not all(sources.values()):
            return None
        quiet = scan.without_notes()
        found = {x: find_images(sources[x], x, quiet.notes)[0].values() for x in (TRAIN, VAL)}
        train, val = ({_real(path) for path in found[x]} for x in (TRAIN, VAL))
        if not train & val:
            return None
        if all(source.lower().endswith(".txt") for source in sources[VAL]):
            return val
        images = self._images(VAL, quiet)
        labels = self._labels(VAL, images, quiet)
        listed = {x for own in labels.values() for x in own.listed}
        if not listed:
            raise InputError(
                f"{OWN_DATA}: TRAIN and VAL have the same images, and no label file of VAL lists "
                "those of validation: name a text file with their paths as VAL.IMAGES"
            )
        return {_real(images.paths[image_id]) for image_id in listed}

    def _record(self, image_id: str, images: ImageFiles, labels: Mapping[str, OwnLabels]) -> Record:
        record = make_record(images.paths[image_id], image_id, images.sizes[image_id])
        for own in labels.values():
            record |= own.labels.get(image_id, {})
        return record


def paths_of(value: Any) -> list[str]:
    """Return the paths in a config value: a string, a list, or nothing."""
    return [value] if isinstance(value, str) and value else list(value or ())


def _real(path: str) -> str:
    return os.path.realpath(path)


def _log_labels(split: str, records: Sequence[Record], labels: Mapping[str, OwnLabels]) -> None:
    """Log how many images have labels of each task, and of none."""
    counts = [f"{len(own.labels)} for {name}" for name, own in labels.items()]
    keys = {key for own in labels.values() for x in own.labels.values() for key in x}
    none = sum(not keys & record.keys() for record in records)
    shown = ", ".join([*counts, f"{none} for no task"])
    logger.info("%s.%s: of %d images are labeled: %s", OWN_DATA, split, len(records), shown)
