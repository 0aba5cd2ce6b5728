"""Object detection: boxes, pseudo-boxes, COCO mAP (paper Sec. 3, 4).

A target is an `Instances` with `gt_boxes`, `gt_classes`, `gt_ignore` and, if a method weights its
pseudo-boxes, `gt_weights`. An ignored box, such as a group of objects or an object mostly outside
the view, makes no anchor positive, and anchors under it are not background. The target of an image
that is labeled for some of the classes is a `PartialInstances`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..augmentation import geometry
from ..augmentation.geometry import Size
from ..formats.boxes import open_boxes
from ..formats.image_files import ImageFiles
from ..formats.sources import BoxSource
from ..utils.errors import InputError, check_choice
from . import retinanet  # noqa: F401  # registers its head, as fcos does
from .auto_labels import Thresholds
from .base import TASK_REGISTRY, Scan, Statistics, Target, Task, Threshold
from .box_auto_labels import BoxLabeler, BoxMeter
from .box_drawing import draw_boxes
from .box_figures import box_sizes, true_positives
from .box_labels import UNANNOTATED, UNANNOTATED_KEY, BoxReader, class_list
from .box_saving import SavedBoxes
from .box_target import (
    PartialInstances,
    boxes_target,
    keep_labeled,
    labeled_mask,
    make_target,
)
from .coco_ap import CocoApEvaluator
from .dense_export import box_differences
from .dense_head import DETECTION_HEAD_REGISTRY, DenseHead
from .exported import Difference, Exports
from .fcos import add_fcos_config
from .own_labels import OWN_DATA, OwnFiles, OwnLabels

GREY = (128, 128, 128)  # color of ignored boxes


@TASK_REGISTRY.register()
class Detection(SavedBoxes, Task):
    """Detection of objects by boxes."""

    default_name = "detection"
    label_field = "annotations"
    partial_field = "labeled_classes"
    metadata_field = "thing_classes"
    result_field = "instances"
    metric = "mAP"
    unit = "objects"
    tuning_keys = ("BACKGROUND_WEIGHT", "THRESHOLD", "UNSUPERVISED_WEIGHT")
    target_types = (Instances, PartialInstances, Boxes)
    normalizers = ("image", "batch", "running")
    own_key = "BOXES"

    @configurable
    def __init__(
        self,
        *,
        min_visible: float,
        box_shape: str,
        ignore_groups: bool = True,
        uncertain_threshold: float | None,
        loss_parts: Sequence[str],
        **kwargs: Any,
    ):
        """Set up the task.

        Args:
            min_visible: least share of a warped box's area inside the view, else it is ignored.
            box_shape: "box" or "ellipse", see geometry.warp_boxes.
            ignore_groups: ignore group regions (iscrowd); False: they are background.
            uncertain_threshold: predictions from this score to the threshold become ignored boxes;
                None: they are dropped.
            loss_parts: names of the loss terms of the head.
            kwargs: arguments of the base class.
        """
        super().__init__(**kwargs)
        self.min_visible = min_visible
        self.box_shape = box_shape
        self.ignore_groups = ignore_groups
        self.uncertain_threshold = uncertain_threshold
        self.loss_parts = tuple(loss_parts)

    @classmethod
    def from_config(cls, cfg: CfgNode, name: str) -> dict[str, Any]:
        """Read cfg.TASKS.<NAME>."""
        node = cfg.TASKS[name.upper()]
        check_choice(f"TASKS.{name.upper()}.MOVED_BOX", node.MOVED_BOX, ("box", "ellipse"))
        key, choices = f"TASKS.{name.upper()}.GROUP_REGIONS", ("ignore", "background")
        check_choice(key, node.GROUP_REGIONS, choices)
        return {
            **super().from_config(cfg, name),
            "min_visible": node.MIN_VISIBLE,
            "box_shape": node.MOVED_BOX,
            "ignore_groups": node.GROUP_REGIONS == "ignore",
            "uncertain_threshold": node.UNCERTAIN_THRESHOLD if node.BACKGROUND_WEIGHT else None,
            "loss_parts": cls.head_class(cfg, name).loss_parts,
        }

    @classmethod
    def default_config(cls) -> CfgNode:
        """See base class; the keys of the head are in MODEL.RETINANET or MODEL.FCOS."""
        node = super().default_config()
        # Name of the head in DETECTION_HEAD_REGISTRY: RetinaNetHead or FCOSHead.
        node.HEAD = "RetinaNetHead"
        node.THRESHOLD = 0.5
        # A warped box with less than this share of its area inside the view is ignored.
        node.MIN_VISIBLE = 0.25
        # Regions of groups and other boxes with "iscrowd", in training and mAP: "ignore", or
        # "background": predictions there are wrong.
        node.GROUP_REGIONS = "ignore"
        # Bounds of a warped box: of its corners ("box") or of its inscribed ellipse ("ellipse").
        node.MOVED_BOX = "box"
        # RetinaNetHead: match every pseudo-box with its best anchor, even below the IoU threshold,
        # as RetinaNet does with labels.
        node.PSEUDO_LOW_QUALITY = True
        # Weight in the unsupervised loss of anchors without a pseudo-box, as background. The paper
        # discards them (0); then no loss lowers a score on unlabeled images.
        node.BACKGROUND_WEIGHT = 0.0
        # If BACKGROUND_WEIGHT is not 0: anchors under predictions with a score between this one and
        # THRESHOLD are ignored, not background.
        node.UNCERTAIN_THRESHOLD = 0.1
        return node

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """See base class; MODEL.FCOS is added because Detectron2's config lacks it."""
        super().add_config(cfg)
        add_fcos_config(cfg)

    @classmethod
    def head_class(cls, cfg: CfgNode, name: str) -> type[DenseHead]:
        """Return the head class that TASKS.<NAME>.HEAD names.

        Raises:
            InputError: no class of that name is registered.
        """
        head = cfg.TASKS[name.upper()].HEAD
        check_choice(f"TASKS.{name.upper()}.HEAD", head, [x for x, _ in DETECTION_HEAD_REGISTRY])
        return DETECTION_HEAD_REGISTRY.get(head)

    @classmethod
    def head_node(cls, cfg: CfgNode, name: str) -> str:
        """See base class."""
        return cls.head_class(cfg, name).config_node

    def build_head(self, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> DenseHead:
        """See base class."""
        head: Any = self.head_class(cfg, self.name)
        return head(cfg, self.name, self.class_names, shapes)

    @classmethod
    def own_config(cls) -> dict[str, Any]:
        """See base class."""
        return {
            # Names of the box classes in the order of their ids, a selection of those in the
            # training files; empty: all of them.
            "THING_CLASSES": [],
            # What an image is that a file lists without a box, or that has no file in a format with
            # one for each image: "empty", labeled without objects; "unlabeled"; or "auto", the
            # former empty and the latter unlabeled, with a warning if it is many.
            "UNANNOTATED": "auto",
        }

    @classmethod
    def own_classes(cls, files: OwnFiles) -> list[str]:
        """See base class."""
        listed = files.options["THING_CLASSES"]
        return class_list(cls._open(files), listed, f"{OWN_DATA}.THING_CLASSES")

    @classmethod
    def _open(cls, files: OwnFiles) -> list[BoxSource]:
        names = files.options["THING_CLASSES"]
        return [open_boxes(path, files.scan, files.key, names) for path in files.paths]

    @classmethod
    def read_own_labels(
        cls, files: OwnFiles, images: ImageFiles, classes: Sequence[str]
    ) -> OwnLabels:
        """See base class."""
        check_choice(UNANNOTATED_KEY, files.options["UNANNOTATED"], UNANNOTATED)
        reader = BoxReader(
            images=images,
            classes=classes,
            unannotated=files.options["UNANNOTATED"],
            refuse_others=not files.is_training and not files.options["THING_CLASSES"],
            notes=files.notes,
        )
        for source in cls._open(files):
            reader.add(source)
        return reader.labels(
            cls.key_of(cls.label_field, files.task), cls.key_of(cls.partial_field, files.task)
        )

    def annotations(self, record: dict) -> list[dict]:
        """Return the annotations of a record, without group regions if they are background."""
        found = record[self.label_key]
        return found if self.ignore_groups else [a for a in found if not a.get("iscrowd", 0)]

    def labeled_classes(self, record: dict) -> list[int] | None:
        """See base class."""
        key, number = self.key_of(self.partial_field, self.name), len(self.class_names)
        classes = record.get(key)
        if classes is None:
            return None
        problem = f"the record of {record['file_name']}: {key} is {classes!r}"
        is_list = isinstance(classes, list) and len(classes) > 0
        if not is_list or any(c not in range(number) for c in classes):
            expected = f"expected a list of class ids from 0 to {number - 1}"
            raise InputError(f"{problem}, {expected}; without the key, it is labeled for all")
        for a in record.get(self.label_key, ()):
            if a["category_id"] not in classes:
                what = f"but it has a box of class {a['category_id']}"
                raise InputError(f"{problem}, {what}: add the class or leave out its boxes")
        return classes if len(set(classes)) < number else None

    def load_target(self, record: dict) -> Instances:
        """See base class."""
        annotations = self.annotations(record)
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4)
        classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.long)
        ignore = torch.tensor([bool(a.get("iscrowd", 0)) for a in annotations], dtype=torch.bool)
        subset, labeled = self.labeled_classes(record), None
        if subset is not None:
            labeled = torch.tensor([i in subset for i in range(len(self.class_names))])
        return boxes_target((record["height"], record["width"]), boxes, classes, ignore, labeled)

    def restrict_pseudo_label(self, pseudo: Instances, label: PartialInstances) -> Instances:
        """See base class: the boxes, ignored ones too, of the classes without a label."""
        left = ~label.labeled.to(pseudo.gt_classes.device)
        partial = PartialInstances(pseudo.image_size, left, **pseudo.get_fields())
        return partial[left[pseudo.gt_classes]]

    def warp_target(
        self, target: Instances, matrix: Tensor, size: Size, erased: Tensor | None = None
    ) -> Instances:
        """See base class; boxes under erased pixels stay."""
        warped = geometry.warp_boxes(target.gt_boxes.tensor, matrix, shape=self.box_shape)
        clipped = geometry.clip_boxes(warped, size)
        areas = geometry.box_areas(clipped)
        visible = areas / geometry.box_areas(warped).clamp(min=1e-6)
        fields = target.get_fields() | {
            "gt_boxes": Boxes(clipped),
            "gt_ignore": target.gt_ignore | (visible < self.min_visible),
        }
        return make_target(size, labeled_mask(target), **fields)[areas > 0]

    def least_score(self, threshold: Threshold) -> float:
        """See base class."""
        least = super().least_score(threshold)
        return least if self.uncertain_threshold is None else min(least, self.uncertain_threshold)

    def pseudo_labels(
        self, predictions: Sequence[Instances], threshold: Threshold, valid: Tensor
    ) -> list[Instances]:
        """Return the boxes over the threshold; uncertain predictions become ignored boxes."""
        targets = []
        if isinstance(threshold, Tensor) and predictions:
            threshold = threshold.to(predictions[0].scores.device)
        for instances in predictions:
            classes, size = instances.pred_classes, instances.image_size
            least = threshold[classes] if isinstance(threshold, Tensor) else threshold
            uncertain = instances.scores <= least
            boxes = geometry.clip_boxes(instances.pred_boxes.tensor, size)
            target = boxes_target(size, boxes, classes, uncertain)
            floor = least if self.uncertain_threshold is None else self.uncertain_threshold
            # A box outside the view is a line after the clip, which a warp would give an area.
            inside = geometry.box_areas(boxes) > 0
            targets.append(target[inside & (~uncertain | (instances.scores > floor))])
        return targets

    def score_meter(self) -> BoxMeter:
        """See base class."""
        return BoxMeter(self)

    def auto_labeler(self, thresholds: Thresholds, folder: str, provenance: str) -> BoxLabeler:
        """See base class."""
        return BoxLabeler(self, thresholds, folder, provenance)

    def evaluator(self, records: Sequence[dict]) -> CocoApEvaluator:
        """See base class."""
        labeled = [record for record in records if self.label_key in record]
        records = [record | {self.label_key: self.annotations(record)} for record in labeled]
        subsets = {r["image_id"]: self.labeled_classes(r) for r in labeled}
        return CocoApEvaluator(
            records,
            self.class_names,
            label_key=self.label_key,
            result_key=self.result_key,
            labeled_classes={image: x for image, x in subsets.items() if x is not None},
        )

    def statistics(self, records: Sequence[dict], scan: Scan) -> Statistics:
        """See base class; ignored regions are not objects, and sizes are in pixels of the files."""
        annotations = [record[self.label_key] for record in records]
        objects = [[a for a in image if not a.get("iscrowd", 0)] for image in annotations]
        flat = [a for image in objects for a in image]
        classes = Counter(a["category_id"] for a in flat)
        numbers = [len(image) for image in objects]
        figures: dict[str, int | str] = {
            "images without objects": numbers.count(0),
            "ignored regions": sum(map(len, annotations)) - len(flat),
        }
        if numbers:
            figures["objects per image: mean, most"] = f"{np.mean(numbers):.1f}, {max(numbers)}"
        return Statistics(
            counts={name: classes[i] for i, name in enumerate(self.class_names)},
            figures=figures | box_sizes([a["bbox"] for a in flat]),
            images=self._images_of_classes(records),
        )

    def _images_of_classes(self, records: Sequence[dict]) -> dict[str, int]:
        """Return class name -> images labeled for it; {} if all are for all classes."""
        subsets = [self.labeled_classes(record) for record in records]
        if all(subset is None for subset in subsets):
            return {}
        return {
            name: sum(subset is None or i in subset for subset in subsets)
            for i, name in enumerate(self.class_names)
        }

    def result_target(self, result: dict, threshold: float) -> Instances:
        """See base class."""
        instances = result[self.result_key].to("cpu")
        instances = instances[instances.scores > threshold]
        ignore = torch.zeros(len(instances), dtype=torch.bool)
        boxes, classes = instances.pred_boxes.tensor, instances.pred_classes
        return boxes_target(instances.image_size, boxes, classes, ignore)

    def exported_result(self, exports: Exports, image_size: Size) -> Instances:
        """See base class."""
        valid = exports["scores"] > 0
        boxes, scores, classes = (exports[x][valid] for x in ("boxes", "scores", "classes"))
        fields = {"pred_boxes": Boxes(boxes), "scores": scores, "pred_classes": classes}
        return Instances(image_size, **fields)

    def export_differences(self, expected: Exports, exports: Exports) -> list[Difference]:
        """See base class."""
        return box_differences(expected, exports)

    def draw(self, image: np.ndarray, target: Instances) -> np.ndarray:
        """See base class; ignored boxes are grey and without a name."""
        # Brighter than in a label map, because a name in Cityscapes' dark blue is not readable.
        bright = (76 + 0.7 * np.array(self.colors).reshape(-1, 3)).astype(int)
        colors = [*map(tuple, bright.tolist()), GREY]
        names = [*self.class_names, ""]
        target = target.to("cpu")
        classes = torch.where(target.gt_ignore, len(self.class_names), target.gt_classes).tolist()
        boxes = target.gt_boxes.tensor.numpy()
        return draw_boxes(image, boxes, [names[c] for c in classes], [colors[c] for c in classes])

    def count_classes(self, targets: Sequence[Instances]) -> list[int]:
        """See base class; ignored boxes do not count."""
        classes = [c for t in targets for c in t.gt_classes[~t.gt_ignore].tolist()]
        return np.bincount(classes, minlength=len(self.class_names)).tolist()

    def count_images(self, targets: Sequence[Instances]) -> list[int]:
        """See base class."""
        everything = torch.ones(len(self.class_names), dtype=torch.bool)
        masks = [labeled_mask(target) for target in targets]
        covered = [everything if mask is None else mask.cpu() for mask in masks]
        return torch.stack([~everything, *covered]).sum(dim=0).tolist()

    def diagnose(
        self, pseudo: Sequence[Instances], labels: Sequence[Target | None]
    ) -> dict[str, float]:
        """Count boxes per image; on labeled images, measure precision and recall at IoU .5.

        They are those of the classes that both label and pseudo-label are for.
        """
        boxes = [p[~p.gt_ignore] for p in pseudo]
        figures = {"pseudo_boxes_per_image": sum(map(len, boxes)) / max(len(boxes), 1)}
        pairs = [
            (keep_labeled(p, y), keep_labeled(y, p))
            for p, y in zip(boxes, labels, strict=True)
            if y is not None
        ]
        hits = sum(true_positives(p, y) for p, y in pairs)
        predicted = sum(len(p) for p, _ in pairs)
        labeled = sum(len(y[~y.gt_ignore]) for _, y in pairs)
        if predicted:
            figures["precision"] = hits / predicted
        if labeled:
            figures["recall"] = hits / labeled
        return figures
