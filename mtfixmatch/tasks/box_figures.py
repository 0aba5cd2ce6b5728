"""Figures of boxes for reports and diagnostics."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Instances, pairwise_iou

# COCO's limits between small, medium and large boxes: areas in square pixels.
SIZE_LIMITS = (32**2, 96**2)


def box_sizes(boxes: Sequence[Sequence[float]]) -> dict[str, int | str]:
    """Return figures of the sizes of boxes [x0, y0, x1, y1], for `Statistics`."""
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


def true_positives(pseudo: Instances, labels: Instances) -> int:
    """Count the pseudo-boxes that match a box of their class at IoU >= .5, each box once."""
    iou = pairwise_iou(pseudo.gt_boxes.to("cpu"), labels.gt_boxes)
    same = pseudo.gt_classes.cpu()[:, None] == labels.gt_classes[None]
    iou = torch.where(same & ~labels.gt_ignore[None], iou, iou.new_zeros(()))
    hits = 0
    while iou.numel() and iou.max() >= 0.5:
        row, column = divmod(int(iou.argmax()), iou.shape[1])
        iou[row], iou[:, column] = 0, 0
        hits += 1
    return hits
