"""Read boxes from a user's label files: classes, matching with images, clipping."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detectron2.structures import BoxMode

from ..formats.boxes import BoxSource, ListedImage
from ..formats.image_files import ImageFiles, normal
from ..utils.errors import InputError
from ..utils.notes import Notes
from .own_labels import OwnLabels

# Boxes reach over the border of the image by up to a pixel because they were rounded.
MAX_OVERSHOOT = 1.0
# Share of listed images without a box from which on the reader asks what they are.
MANY_EMPTY = 0.25

# Kinds of notes.
CLIPPED = "boxes that reached over the border of their image, clipped"
NO_AREA = "boxes without an area inside their image, left out"
REPEATED = "boxes that an image has twice, taken once"
OTHER_CLASSES = "boxes of classes that are not trained, left out"
MISSING = "images that have boxes but are not there, left out"
TWICE = "entries for an image that another entry names, taken together"
WRONG_SIZE = "images whose labels are for another size, not labeled"

UNANNOTATED = ("auto", "empty", "unlabeled")
UNANNOTATED_KEY = "DATASETS.COCO_STYLE.UNANNOTATED"


def class_list(sources: Sequence[BoxSource], listed: Sequence[str], key: str) -> list[str]:
    """Return the classes: those that are `listed` in the config, else those of all sources.

    Raises:
        InputError: a listed class is in no source, or listed twice.
    """
    names = list(dict.fromkeys(name for source in sources for name in source.classes))
    if len(set(listed)) < len(listed):
        raise InputError(f"{key} names a class twice: {list(listed)}")
    missing = [name for name in listed if name not in names]
    if missing and sources:
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
            unannotated: what a listed image without a box is: "empty", "unlabeled" or "auto".
            refuse_others: whether a box of another class is an error.
            notes: notes on the dataset.
        """
        self.images, self.classes, self.notes = images, list(classes), notes
        self.unannotated, self.refuse_others = unannotated, refuse_others
        self.annotations: dict[str, list[dict]] = {}
        self.labeled_classes: dict[str, frozenset[int]] = {}
        self.listed: set[str] = set()

    def add(self, source: BoxSource) -> None:
        """Add the boxes of a source, which is whole for its classes on the images that it lists."""
        for kind, lines in source.faults.items():
            self.notes.check_share(source.path, kind, lines, source.num_entries)
        class_ids = [self.classes.index(x) if x in self.classes else -1 for x in source.classes]
        ids = self._match(source)
        whole = frozenset(i for i in class_ids if i >= 0)  # shared by all images
        counts = _Counts()
        for listed, image_id in ids:
            if source.lists_images:
                self.listed.add(image_id)
            if listed.boxes is None or not self._has_size(source, listed, image_id):
                continue
            if not listed.boxes and self.unannotated == "unlabeled":
                continue
            boxes = self._boxes(source, listed, image_id, class_ids, counts)
            known = self.annotations.setdefault(image_id, [])
            for box, name in boxes:
                if box in known:
                    path = self.images.paths[image_id]
                    self.notes.add(REPEATED, f"{source.path}: {name} in {path}")
                else:
                    known.append(box)
            others = self.labeled_classes.get(image_id, whole)
            self.labeled_classes[image_id] = whole if others == whole else whole | others
        self._report(source, counts)

    def _match(self, source: BoxSource) -> list[tuple[ListedImage, str]]:
        """Return the listed images that exist, with their ids."""
        names = [listed.name for listed in source.images]
        found, alone = self.images.match(names, by_stem=source.by_stem)
        lines = [f"{source.path}: image {line}" for line in alone]
        self.notes.check_share(source.path, MISSING, lines, len(set(names)))
        repeated = [name for name, count in Counter(map(normal, names)).items() if count > 1]
        self.notes.add(TWICE, [f"{source.path}: {name!r}" for name in repeated])
        pairs = [(x, found[x.name]) for x in source.images if x.name in found]
        return [(x, image_id) for x, image_id in pairs if image_id in self.images.sizes]

    def _has_size(self, source: BoxSource, listed: ListedImage, image_id: str) -> bool:
        """Return whether the labels are for the size of the image; else add a note."""
        size = self.images.sizes[image_id]
        if listed.size in (None, size):
            return True
        path = self.images.paths[image_id]
        assert listed.size is not None
        shown = f"{listed.size[1]}x{listed.size[0]} pixels, but {path} has {size[1]}x{size[0]}"
        rotated = listed.size == size[::-1]
        reason = " (it may be rotated by its EXIF orientation: save it rotated)" if rotated else ""
        self.notes.add(WRONG_SIZE, f"{source.path}: image {listed.name!r} has {shown}{reason}")
        return False

    def _boxes(
        self,
        source: BoxSource,
        listed: ListedImage,
        image_id: str,
        class_ids: Sequence[int],
        counts: "_Counts",
    ) -> list[tuple[dict[str, Any], str]]:
        """Return the annotations of an image with their names, and count its boxes."""
        height, width = self.images.sizes[image_id]
        scale = (width, height) if source.relative else (1, 1)
        annotations = []
        for category, crowd, x0, y0, x1, y1, name in listed.boxes or ():
            counts.boxes += 1
            if class_ids[category] < 0:
                counts.others[source.classes[category]] += 1
                continue
            box = [x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1]]
            clipped = clip_box(box, width, height)
            if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
                self._note_box(NO_AREA, source, name, box, image_id)
                counts.wrong += 1
                continue
            if is_far(box, width, height):
                self._note_box(CLIPPED, source, name, box, image_id)
                counts.wrong += 1
            annotation = {
                "bbox": clipped,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": class_ids[category],
                "iscrowd": crowd,
            }
            annotations.append((annotation, name))
        return annotations

    def _note_box(
        self, kind: str, source: BoxSource, name: str, box: Sequence[float], image_id: str
    ) -> None:
        height, width = self.images.sizes[image_id]
        corners = ", ".join(f"{value:g}" for value in box)
        where = f"{source.path}: {name}: x0, y0, x1, y1 = {corners}"
        path = self.images.paths[image_id]
        self.notes.add(kind, f"{where} in {path} of {width}x{height} pixels")

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
        empty = [x.name for x in source.images if x.boxes == []]
        if self.unannotated == "auto" and len(empty) > MANY_EMPTY * len(source.images):
            kind = "listed images without a box, which count as images without objects"
            way = f"if nobody looked at them yet, set {UNANNOTATED_KEY} to unlabeled"
            self.notes.add(kind, [f"{source.path}: {name!r} ({way})" for name in empty])

    def labels(self, label_key: str, classes_key: str) -> OwnLabels:
        """Return the labels of all sources, under these keys of a record."""
        labels: dict[str, dict[str, Any]] = {}
        for image_id, annotations in self.annotations.items():
            if not self.labeled_classes[image_id]:  # none of the classes of its files is trained
                continue
            labels[image_id] = {label_key: annotations}
            if len(self.labeled_classes[image_id]) < len(self.classes):
                labels[image_id][classes_key] = sorted(self.labeled_classes[image_id])
        used = {a["category_id"] for boxes in self.annotations.values() for a in boxes}
        absent = [name for i, name in enumerate(self.classes) if i not in used]
        return OwnLabels(labels=labels, listed=self.listed, absent=absent)


def clip_box(box: Sequence[float], width: int, height: int) -> list[float]:
    """Clip a box [x0, y0, x1, y1] in pixels, ends exclusive, to its image."""
    x0, y0, x1, y1 = box
    return [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]


def is_far(box: Sequence[float], width: int, height: int) -> bool:
    """Return whether a box reaches over the border of its image by more than rounding does."""
    x0, y0, x1, y1 = box
    return min(x0, y0, width - x1, height - y1) < -MAX_OVERSHOOT
