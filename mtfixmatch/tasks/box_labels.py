"""Read boxes from a user's label files: classes, matching with images, clipping."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.structures import BoxMode

from ..formats.image_files import ImageFiles
from ..formats.sources import BoxSource, ListedImage
from ..utils.boxes import clip_box, is_far
from ..utils.errors import InputError
from ..utils.notes import Notes
from .image_matcher import ImageMatcher, file_of
from .own_labels import OwnLabels

# Share of images without a box or without a file from which on the reader asks what they are.
MANY_EMPTY = 0.25

# Kinds of notes.
CLIPPED = "boxes that reached over the border of their image, clipped"
NO_AREA = "boxes without an area inside their image, left out"
REPEATED = "boxes that an image has twice, taken once"
OTHER_CLASSES = "boxes of classes that are not trained, left out"
NO_FILE = "images without a label file, not labeled"

UNANNOTATED = ("auto", "empty", "unlabeled")
UNANNOTATED_KEY = "DATASETS.COCO_STYLE.UNANNOTATED"


def class_list(sources: Sequence[BoxSource], listed: Sequence[str], key: str) -> list[str]:
    """Return the classes: those that are `listed` in the config, else those of all sources.

    Raises:
        InputError: a listed class is listed twice, or in no source: of sources without a list of
            classes, which may lack a rare one, if they have none of those listed.
    """
    names = list(dict.fromkeys(name for source in sources for name in source.classes))
    if len(set(listed)) < len(listed):
        raise InputError(f"{key} names a class twice: {list(listed)}")
    missing = [name for name in listed if name not in names]
    has_lists = not any(source.of_all_classes for source in sources)
    if sources and missing and (has_lists or len(missing) == len(listed)):
        paths = ", ".join(source.path for source in sources)
        raise InputError(f"{key} names {missing}, but {paths} has only {names}")
    return list(listed) or names


@dataclass
class _Counts:
    """Numbers of boxes of a source."""

    boxes: int = 0
    wrong: int = 0  # clipped, or without an area
    others: Counter = field(default_factory=Counter)  # name of a class that is not trained -> boxes


class BoxReader:
    """Matches the boxes of sources with the images of a split."""

    def __init__(
        self,
        *,
        images: ImageFiles,
        classes: Sequence[str],
        unannotated: str,
        refuse_others: bool,
        notes: Notes,
    ):
        """Set what the boxes are matched with.

        Args:
            images: images of the split.
            classes: names of the classes that are trained.
            unannotated: what a listed image without a box is, or in a format with a file for each
                image, one without a file: "empty", "unlabeled" or "auto", the former empty and the
                latter unlabeled.
            refuse_others: whether a box of another class is an error.
            notes: notes on the dataset.
        """
        self.images, self.classes, self.notes = images, list(classes), notes
        self.matcher = ImageMatcher(images, notes)
        self.unannotated, self.refuse_others = unannotated, refuse_others
        self.annotations: dict[str, list[dict]] = {}
        self.labeled_classes: dict[str, frozenset[int]] = {}
        self.listed: set[str] = set()
        self.broken: set[str] = set()
        self.without_file: set[str] | None = None  # images that no source has; None: all are lists

    def add(self, source: BoxSource) -> None:
        """Add the boxes of a source, which is whole for its classes on the images that it lists."""
        self.matcher.note_entries(source)
        class_ids = [self.classes.index(x) if x in self.classes else -1 for x in source.classes]
        trained = range(len(self.classes)) if source.of_all_classes else class_ids
        whole = frozenset(i for i in trained if i >= 0)  # shared by all images
        ids = self.matcher.match(source)
        counts = _Counts()
        for listed, image_id in ids:
            if source.lists_images:
                self.listed.add(image_id)
            if listed.boxes is None or not self.matcher.has_size(source, listed, image_id):
                continue
            if not listed.boxes and self.unannotated == "unlabeled":
                continue
            known = self._labels_of(image_id, whole)
            seen = {_values(box) for box in known}
            for box, name in self._boxes(source, listed, image_id, class_ids, counts):
                if (values := _values(box)) in seen:
                    path = self.images.paths[image_id]
                    self.notes.add(REPEATED, f"{_where(source, listed, name)} in {path}")
                else:
                    seen.add(values)
                    known.append(box)
        if not source.lists_images:
            self._add_others(source, {image_id for _, image_id in ids}, whole)
        self._report(source, counts)

    def _labels_of(self, image_id: str, whole: frozenset[int]) -> list[dict]:
        """Return the annotations of an image, which a source labels for some classes."""
        others = self.labeled_classes.get(image_id, whole)
        self.labeled_classes[image_id] = whole if others == whole else whole | others
        return self.annotations.setdefault(image_id, [])

    def _add_others(self, source: BoxSource, own: set[str], whole: frozenset[int]) -> None:
        """Add the images without a readable file of their own in a source of such files."""
        broken, _ = self.images.match(source.broken, by_stem=source.by_stem)
        self.broken |= set(broken.values())
        others = self.images.sizes.keys() - own - self.broken
        if self.unannotated == "empty":
            for image_id in others:
                self._labels_of(image_id, whole)
        self.without_file = others if self.without_file is None else self.without_file & others

    def _boxes(
        self,
        source: BoxSource,
        listed: ListedImage,
        image_id: str,
        class_ids: Sequence[int],
        counts: "_Counts",
    ) -> list[tuple[dict[str, Any], Any]]:
        """Return the annotations of an image with their names, and count its boxes."""
        height, width = map(float, self.images.sizes[image_id])
        scale_x, scale_y = (width, height) if source.relative else (1.0, 1.0)
        annotations = []
        for category, crowd, x0, y0, x1, y1, name in listed.boxes or ():
            counts.boxes += 1
            if class_ids[category] < 0:
                counts.others[source.classes[category]] += 1
                continue
            box = [x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y]
            clipped = clip_box(box, width, height)
            has_area = clipped[2] > clipped[0] and clipped[3] > clipped[1]
            if not has_area or is_far(box, width, height):
                kind = CLIPPED if has_area else NO_AREA
                self._note_box(kind, _where(source, listed, name), box, image_id)
                counts.wrong += 1
            if has_area:
                annotation = {
                    "bbox": clipped,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": class_ids[category],
                    "iscrowd": crowd,
                }
                annotations.append((annotation, name))
        return annotations

    def _note_box(self, kind: str, where: str, box: Sequence[float], image_id: str) -> None:
        height, width = self.images.sizes[image_id]
        corners = ", ".join(f"{value:g}" for value in box)
        image = f"{self.images.paths[image_id]} of {width}x{height} pixels"
        self.notes.add(kind, f"{where}: x0, y0, x1, y1 = {corners} in {image}")

    def _report(self, source: BoxSource, counts: "_Counts") -> None:
        """Add notes on classes that were left out and on many images without boxes."""
        lines = [f"{source.path}: {name!r} ({n} boxes)" for name, n in counts.others.items()]
        if lines and self.refuse_others:
            names = ", ".join(lines)
            raise InputError(
                f"{names}: training does not know the class; its classes are {self.classes} "
                "(DATASETS.COCO_STYLE.THING_CLASSES selects)"
            )
        self.notes.add(OTHER_CLASSES, lines)
        if counts.wrong > self.notes.max_faults * counts.boxes:
            share = f"more than DATASETS.MAX_FAULTS {self.notes.max_faults} allows"
            expected = "does the file have boxes in pixels, in the order of its format?"
            what = f"{counts.wrong} of {counts.boxes} boxes are not inside their images"
            raise InputError(f"{source.path}: {what}, {share}: {expected}")
        empty = [x for x in source.images if x.boxes == []]
        if self.unannotated == "auto" and len(empty) > MANY_EMPTY * len(source.images):
            kind = "listed images without a box, which count as images without objects"
            way = f"if nobody looked at them yet, set {UNANNOTATED_KEY} to unlabeled"
            self.notes.add(kind, [f"{file_of(source, x)}: {x.name!r} ({way})" for x in empty])

    def labels(self, label_key: str, classes_key: str) -> OwnLabels:
        """Return the labels of all sources, under these keys of a record."""
        others = sorted((self.without_file or set()) - self.annotations.keys() - self.listed)
        if self.unannotated == "auto" and len(others) > MANY_EMPTY * len(self.images.sizes):
            way = f"if they show no objects, set {UNANNOTATED_KEY} to empty"
            self.notes.add(NO_FILE, [f"{self.images.paths[x]} ({way})" for x in others])
        labels: dict[str, dict[str, Any]] = {}
        for image_id, annotations in self.annotations.items():
            if not self.labeled_classes[image_id]:  # none of the classes of its files is trained
                continue
            labels[image_id] = {label_key: annotations}
            if len(self.labeled_classes[image_id]) < len(self.classes):
                labels[image_id][classes_key] = sorted(self.labeled_classes[image_id])
        used = {a["category_id"] for boxes in self.annotations.values() for a in boxes}
        absent = [name for i, name in enumerate(self.classes) if i not in used]
        return OwnLabels(labels=labels, listed=self.listed, absent=absent, broken=self.broken)


def _values(annotation: dict[str, Any]) -> tuple:
    """Return what makes two annotations of an image the same."""
    return (*annotation["bbox"], annotation["category_id"], annotation["iscrowd"])


def _where(source: BoxSource, listed: ListedImage, name: Any) -> str:
    """Return the file of a box and what it is called there."""
    return f"{file_of(source, listed)}: {source.entry}{name}"
