"""Label images with a network's boxes: objects, ignored regions, and nothing."""

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances, pairwise_ioa, pairwise_iou

from ..augmentation.geometry import box_areas, clip_boxes
from ..formats.coco_writer import ImageBoxes, coco_boxes
from ..utils.files import write_atomically
from .auto_labels import (
    HUMAN,
    AutoLabel,
    AutoLabeler,
    ClassScores,
    LabeledImage,
    Review,
    ScoreMeter,
    Thresholds,
    WrittenLabels,
)

IOU = 0.5  # least overlap of a right box with its label, and of a box with an ignored region
DIGITS = 6  # of a score


class BoxTask(Protocol):
    """What is read of a task with boxes."""

    name: str
    class_names: list[str]
    partial_field: ClassVar[str]

    @property
    def label_key(self) -> str: ...  # noqa: D102
    @property
    def result_key(self) -> str: ...  # noqa: D102
    def labeled_classes(self, record: dict) -> list[int] | None: ...  # noqa: D102
    def load_target(self, record: dict) -> Instances: ...  # noqa: D102
    @classmethod
    def key_of(cls, field: str, name: str) -> str: ...  # noqa: D102


def match_boxes(boxes: Instances, labels: Instances) -> tuple[np.ndarray, np.ndarray]:
    """Find out which boxes are right, best score first, each label once.

    Args:
        boxes: N predictions of a network, in descending order of their scores.
        labels: target of the image; its ignored regions make a box neither right nor wrong.

    Returns:
        Which boxes are right, and which count, (N,) bool each.
    """
    same = boxes.pred_classes[:, None] == labels.gt_classes[None]
    iou = pairwise_iou(boxes.pred_boxes, labels.gt_boxes) * (same & ~labels.gt_ignore[None])
    inside = pairwise_ioa(labels.gt_boxes, boxes.pred_boxes).T * (same & labels.gt_ignore[None])
    right = np.zeros(len(boxes), bool)
    for i in range(len(boxes) if len(labels) else 0):
        best = int(iou[i].argmax())
        if iou[i, best] >= IOU:
            right[i] = True
            iou[:, best] = 0
    ignored = (inside >= IOU).any(dim=1).numpy()
    return right, right | ~ignored


class BoxMeter(ScoreMeter):
    """Collects the scores of boxes."""

    share_name, support_name = "recall", "objects"
    has_lower = True

    def __init__(self, task: BoxTask):
        """Measure the boxes of a task."""
        self.task = task
        count = len(task.class_names)
        self._found: list[list[tuple[float, bool]]] = [[] for _ in range(count)]
        self._labeled = np.zeros(count, np.int64)

    def add(self, record: dict, result: dict) -> None:
        """See base class; boxes of classes that the image is not labeled for do not count."""
        labels = self.task.load_target(record)
        boxes = result[self.task.result_key].to("cpu")
        boxes = boxes[boxes.scores.argsort(descending=True, stable=True)]
        if (classes := self.task.labeled_classes(record)) is not None:
            boxes = boxes[torch.isin(boxes.pred_classes, torch.tensor(classes))]
        right, counts = match_boxes(boxes, labels)
        rows = zip(boxes.pred_classes.tolist(), boxes.scores.tolist(), right, counts, strict=True)
        for category, score, is_right, is_counted in rows:
            if is_counted:
                self._found[category].append((score, bool(is_right)))
        objects = labels.gt_classes[~labels.gt_ignore].numpy()
        self._labeled += np.bincount(objects, minlength=len(self._labeled))

    def scores(self) -> list[ClassScores]:
        """See base class."""
        return [
            _class_scores(found, int(count))
            for found, count in zip(self._found, self._labeled, strict=True)
        ]


def _class_scores(found: Sequence[tuple[float, bool]], labeled: int) -> ClassScores:
    right = np.array([is_right for _, is_right in found], np.int64)
    return ClassScores(
        scores=np.array([score for score, _ in found]),
        total=np.ones(len(found), np.int64),
        right=right,
        reached=right,
        whole=labeled,
        support=labeled,
    )


class BoxLabeler(AutoLabeler):
    """Labels images with boxes."""

    def __init__(self, task: BoxTask, thresholds: Thresholds, folder: str, provenance: str):
        """See `AutoLabeled.auto_labeler`."""
        self.task, self.folder, self.provenance = task, folder, provenance
        self.classes_key = task.key_of(task.partial_field, task.name)
        # Scores are at most 1, so a class that is left out has no box.
        limits = [(x.upper, x.lower) if x else (2.0, 2.0) for x in thresholds]
        self.upper, self.lower = torch.tensor(limits, dtype=torch.float64).view(-1, 2).T
        self.kept = {i for i, x in enumerate(thresholds) if x}

    def label(self, record: dict, result: dict | None, name: str) -> AutoLabel:
        """See base class; boxes of the classes without a human label are added."""
        count = len(self.task.class_names)
        boxes, known = [], set()
        if self.task.label_key in record:
            labeled = self.task.labeled_classes(record)
            known = set(range(count) if labeled is None else labeled)
            boxes = [_human(annotation) for annotation in record[self.task.label_key]]
        new = [] if result is None else self._boxes(result[self.task.result_key], known)
        labeled_for = known if result is None else known | self.kept
        if not labeled_for:
            return AutoLabel()
        keys: dict[str, Any] = {self.task.label_key: boxes + new}
        if len(labeled_for) < count:
            keys[self.classes_key] = sorted(labeled_for)
        return AutoLabel(
            keys=keys, review=self._review(new), boxes=boxes + new, num_classes=len(labeled_for)
        )

    def _boxes(self, predicted: Instances, known: set[int]) -> list[dict[str, Any]]:
        """Return the objects and the ignored regions of the classes that are not `known`."""
        predicted = predicted.to("cpu")
        scores, classes = predicted.scores.double(), predicted.pred_classes
        boxes = clip_boxes(predicted.pred_boxes.tensor, predicted.image_size)
        unknown = ~torch.isin(classes, torch.tensor(sorted(known), dtype=torch.long))
        kept = unknown & (scores >= self.lower[classes]) & (box_areas(boxes) > 0)
        unsure = scores < self.upper[classes]
        return [
            {
                **_annotation(boxes[i].tolist(), int(classes[i]), int(unsure[i])),
                "score": round(float(scores[i]), DIGITS),
                "provenance": self.provenance,
            }
            for i in kept.nonzero().flatten().tolist()
        ]

    def _review(self, boxes: Sequence[dict[str, Any]]) -> list[Review]:
        by_class: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for box in boxes:
            by_class[box["category_id"]].append(box)
        return [
            Review(
                class_name=self.task.class_names[category],
                unsure=sum(box["iscrowd"] for box in found) / len(found),
                score=min(box["score"] for box in found),
            )
            for category, found in sorted(by_class.items())
        ]

    def write(self, images: Sequence[LabeledImage]) -> WrittenLabels:
        """See base class: a COCO JSON for each set of classes that images are labeled for.

        Each file is whole for its own categories, so that nothing is said about the others.
        """
        everything = tuple(range(len(self.task.class_names)))
        # The first file lists all classes, even if it has no image.
        groups: dict[tuple[int, ...], list[ImageBoxes]] = {everything: []}
        for image in images:
            label = image.labels[self.task.name]
            if label.boxes is not None:
                classes = tuple(label.keys.get(self.classes_key, everything))
                entry = ImageBoxes(image.path, image.size, label.boxes)
                groups.setdefault(classes, []).append(entry)
        files = []
        for number, (classes, group) in enumerate(groups.items(), start=1):
            files.append(f"{self.task.name}{f'_{number}' if number > 1 else ''}.json")
            names = {i: self.task.class_names[i] for i in classes}
            write_atomically(os.path.join(self.folder, files[-1]), coco_boxes(group, names))
        options = {"THING_CLASSES": list(self.task.class_names), "UNANNOTATED": "empty"}
        # An unsure box as background would teach that there is no object.
        return WrittenLabels(files=files, options=options, config={"GROUP_REGIONS": "ignore"})


def _human(annotation: dict[str, Any]) -> dict[str, Any]:
    box, crowd = annotation["bbox"], int(annotation.get("iscrowd", 0))
    return {**_annotation(list(box), annotation["category_id"], crowd), "provenance": HUMAN}


def _annotation(box: Sequence[float], category: int, crowd: int) -> dict[str, Any]:
    mode = BoxMode.XYXY_ABS
    return {"bbox": box, "bbox_mode": mode, "category_id": category, "iscrowd": crowd}
