"""Object detection: RetinaNet's head, focal and GIoU losses, pseudo-boxes, COCO mAP.

A target is an `Instances` with `gt_boxes`, `gt_classes` and `gt_ignore`; an ignored box (a group of
objects, an object mostly cut off) makes no anchor positive and no anchor under it negative.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

from ..augmentation import geometry
from ..augmentation.geometry import Size
from ..utils.errors import InputError
from .base import TASK_REGISTRY, Scan, Statistics, Target, Task
from .coco_ap import CocoApEvaluator
from .retinanet import DetectionHead, boxes_target

# COCO's limits of small, medium and large boxes: areas in square pixels.
SIZE_LIMITS = (32**2, 96**2)


@TASK_REGISTRY.register
class Detection(Task):
    """Boxes of things."""

    name = "detection"
    label_key = "annotations"
    metadata_key = "thing_classes"
    metric = "mAP"
    head_config = "RETINANET"
    loss_parts = ("cls", "box")
    counted = "objects"
    teacher_keys = ("BACKGROUND_WEIGHT", "THRESHOLD", "UNSUPERVISED_WEIGHT")

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        node = cfg.TASKS.DETECTION
        self.min_visible = node.MIN_VISIBLE
        self.moved_shape = node.MOVED_BOX
        if self.moved_shape not in ("box", "ellipse"):
            raise InputError(f"TASKS.DETECTION.MOVED_BOX is {self.moved_shape!r}: box or ellipse")

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Keys of detection; the head itself is configured by MODEL.RETINANET."""
        super().add_config(cfg)
        node = cfg.TASKS.DETECTION
        node.THRESHOLD = 0.5
        # A moved box with less than this share of its area inside the image is ignored.
        node.MIN_VISIBLE = 0.25
        # Bounds of a moved box: of its corners ("box") or of its inscribed "ellipse".
        node.MOVED_BOX = "box"
        # Match every pseudo-box to its best anchor, even below the IoU threshold, as RetinaNet does
        # with labels.
        node.PSEUDO_LOW_QUALITY = True
        # Safeguard, off in the paper: weight of anchors without a pseudo-box as background in the
        # unsupervised loss. 0: they are discarded, and no score is ever lowered.
        node.BACKGROUND_WEIGHT = 0.0
        # With it: predictions between this score and THRESHOLD are ignored, not background.
        node.UNCERTAIN_THRESHOLD = 0.1

    def build_head(self, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> "DetectionHead":
        """See base class."""
        return DetectionHead(cfg, shapes)

    def load_target(self, record: dict) -> Instances:
        """See base class."""
        annotations = record["annotations"]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4)
        classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.long)
        ignore = torch.tensor([bool(a.get("iscrowd", 0)) for a in annotations], dtype=torch.bool)
        return boxes_target((record["height"], record["width"]), boxes, classes, ignore)

    def move_target(
        self, target: Instances, matrix: Tensor, size: Size, erased: Tensor | None = None
    ) -> Instances:
        """See base class; boxes under erased pixels stay."""
        moved = geometry.warp_boxes(target.gt_boxes.tensor, matrix, shape=self.moved_shape)
        clipped = geometry.clip_boxes(moved, size)
        areas = geometry.box_areas(clipped)
        visible = areas / geometry.box_areas(moved).clamp(min=1e-6)
        keep = areas > 0
        ignore = target.gt_ignore | (visible < self.min_visible)
        return boxes_target(size, clipped[keep], target.gt_classes[keep], ignore[keep])

    def evaluator(self, records: Sequence[dict]) -> CocoApEvaluator:
        """See base class."""
        return CocoApEvaluator(records, self.class_names)

    def statistics(self, records: Sequence[dict], scan: Scan) -> Statistics:
        """See base class; an ignored region is no object. Sizes are in pixels of the files."""
        objects = [[a for a in r["annotations"] if not a.get("iscrowd", 0)] for r in records]
        flat = [a for found in objects for a in found]
        classes = Counter(a["category_id"] for a in flat)
        numbers = [len(found) for found in objects]
        figures: dict[str, int | str] = {
            "images without objects": numbers.count(0),
            "ignored regions": sum(len(r["annotations"]) for r in records) - len(flat),
        }
        if numbers:
            figures["objects per image: mean, most"] = f"{np.mean(numbers):.1f}, {max(numbers)}"
        return Statistics(
            counts={name: classes[i] for i, name in enumerate(self.class_names)},
            figures=figures | _box_sizes([a["bbox"] for a in flat]),
        )

    def result_target(self, result: dict, threshold: float) -> Instances:
        """See base class."""
        found = result["instances"].to("cpu")
        found = found[found.scores > threshold]
        ignore = torch.zeros(len(found), dtype=torch.bool)
        return boxes_target(found.image_size, found.pred_boxes.tensor, found.pred_classes, ignore)

    def draw(self, image: np.ndarray, target: Instances) -> np.ndarray:
        """See base class; ignored boxes are grey and without a name, for there may be many."""
        # Brighter than in a map: a name in Cityscapes' dark blue could not be read.
        colors = 0.3 + 0.7 * np.array(self.metadata.thing_colors) / 255
        ignored, objects = (target[x].to("cpu") for x in (target.gt_ignore, ~target.gt_ignore))
        canvas = Visualizer(image)
        canvas.overlay_instances(
            boxes=ignored.gt_boxes, assigned_colors=[(0.5, 0.5, 0.5)] * len(ignored)
        )
        classes = objects.gt_classes.tolist()
        drawn = canvas.overlay_instances(
            boxes=objects.gt_boxes,
            labels=[self.class_names[c] for c in classes],
            assigned_colors=[tuple(colors[c]) for c in classes],
        )
        return drawn.get_image()

    def count_classes(self, targets: Sequence[Instances]) -> list[int]:
        """See base class; ignored boxes are none."""
        classes = [c for t in targets for c in t.gt_classes[~t.gt_ignore].tolist()]
        return np.bincount(classes, minlength=len(self.class_names)).tolist()

    def diagnose(
        self, pseudo: Sequence[Instances], known: Sequence[Target | None]
    ) -> dict[str, float]:
        """Boxes per image; precision and recall at IoU .5 where the boxes are known."""
        boxes = [p[~p.gt_ignore] for p in pseudo]
        measured = {"pseudo_boxes_per_image": sum(map(len, boxes)) / max(len(boxes), 1)}
        hits = found = labeled = 0
        for p, k in zip(boxes, known, strict=True):
            if k is not None:
                hits += _true_positives(p, k)
                found += len(p)
                labeled += len(k[~k.gt_ignore])
        if found:
            measured["precision"] = hits / found
        if labeled:
            measured["recall"] = hits / labeled
        return measured


def _box_sizes(boxes: Sequence[Sequence[float]]) -> dict[str, int | str]:
    """How large boxes (x0, y0, x1, y1) are, in the words of a table."""
    corners = np.array(boxes, dtype=float).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    areas = sides.prod(axis=1)
    counts = np.bincount(np.digitize(areas, SIZE_LIMITS), minlength=3)
    figures: dict[str, int | str] = {
        "small boxes (area below 32²)": int(counts[0]),
        "medium boxes (below 96²)": int(counts[1]),
        "large boxes": int(counts[2]),
    }
    if len(sides):
        shown = [np.median(sides, axis=0), sides[areas.argmin()], sides[areas.argmax()]]
        for name, (width, height) in zip(("median", "smallest", "largest"), shown, strict=True):
            figures[f"{name} box, width x height"] = f"{width:.4g} x {height:.4g}"
    return figures


def _true_positives(pseudo: Instances, known: Instances) -> int:
    """Pseudo-boxes that match a known box of their class at IoU >= .5, each box once."""
    iou = pairwise_iou(pseudo.gt_boxes.to("cpu"), known.gt_boxes)
    same = pseudo.gt_classes.cpu()[:, None] == known.gt_classes[None]
    iou = torch.where(same & ~known.gt_ignore[None], iou, iou.new_zeros(()))
    hits = 0
    while iou.numel() and iou.max() >= 0.5:
        row, column = divmod(int(iou.argmax()), iou.shape[1])
        iou[row], iou[:, column] = 0, 0
        hits += 1
    return hits
