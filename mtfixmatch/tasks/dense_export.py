"""The results of a dense detector in tensors alone, for an exported network.

The boxes are those of `DenseHead.inference`: the best candidates of each level, non-maximum
suppression within each class, and the best of what is left. All sizes but those of the image and
the batch are fixed.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor
from torchvision.ops import box_iou

from ..augmentation.geometry import Size
from .exported import Difference, Exports

NO_CLASS = -1  # class of a row without a box


@torch.library.custom_op("mtfixmatch::suppress", mutates_args=())
def suppress(
    boxes: Tensor, scores: Tensor, classes: Tensor, num_classes: int, iou: float, limit: int
) -> Tensor:
    """Set scores to 0 where a better box of the same image and class covers their box.

    Args:
        boxes: (N, M, 4).
        scores: (N, M); boxes with a score of 0 cover nothing.
        classes: (N, M) int64.
        num_classes: number of classes.
        iou: intersection over union from which a box covers another.
        limit: number of boxes of a class and image that a caller may need.

    Returns:
        (N, M) scores.
    """
    kept = torch.zeros_like(scores)
    for image in range(len(scores)):
        rows = scores[image].nonzero()[:, 0]
        left = batched_nms(boxes[image, rows], scores[image, rows], classes[image, rows], iou)
        kept[image, rows[left]] = scores[image, rows[left]]
    return kept


@suppress.register_fake
def _(boxes, scores, classes, num_classes, iou, limit) -> Tensor:
    return torch.empty_like(scores)


def onnx_suppress(
    boxes: Any, scores: Any, classes: Any, num_classes: int, iou: float, limit: int
) -> Any:
    """Build `suppress` of ONNX operators."""
    from onnxscript import opset20

    op: Any = opset20  # whose types do not know that it takes constants

    ids = op.Constant(value_ints=list(range(num_classes)))
    of_class = op.Equal(op.Unsqueeze(classes, [1]), op.Unsqueeze(ids, [0, 2]))
    by_class = op.Where(of_class, op.Unsqueeze(scores, [1]), 0.0)  # (N, K, M)
    kept = op.NonMaxSuppression(boxes, by_class, limit, iou, 0.0)  # rows of image, class, box
    places = op.Gather(kept, [0, 2], axis=1)
    return op.ScatterND(op.Mul(scores, 0.0), places, op.GatherND(scores, places))


def export_boxes(
    detector: DenseDetector,
    anchors: Sequence[Tensor],
    scores: Tensor,
    deltas: Tensor,
    image_size: Size,
) -> dict[str, Tensor]:
    """Decode the outputs of a dense detector for N images.

    Args:
        detector: detector with the thresholds.
        anchors: anchors of each level, R in all.
        scores: (N, R, K) in [0, 1].
        deltas: (N, R, 4).
        image_size: (height, width) of the images without padding.

    Returns:
        boxes (N, D, 4) XYXY in pixels, scores (N, D) and classes (N, D) int64, best first, for D
        detections at most. Rows without a box have a score of 0, the class -1 and zeros as box.
    """
    counts = [level.shape[0] for level in anchors]
    levels = zip(anchors, scores.split(counts, dim=1), deltas.split(counts, dim=1), strict=True)
    found = [_best_of_level(detector, *level) for level in levels]
    boxes, best, classes = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    limit = detector.max_detections_per_image
    settings = (detector.num_classes, detector.test_nms_thresh, limit)
    best = suppress(boxes, best, classes, *settings)
    # There may be fewer candidates than detections.
    best, rows = F.pad(best, (0, limit)).topk(limit, dim=1)
    boxes = _rows(F.pad(boxes, (0, 0, 0, limit)), rows)
    classes = _rows(F.pad(classes, (0, limit)), rows)
    boxes = _clip(boxes, image_size)
    # A box outside the image is a line after the clip, and no detection.
    visible = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    best, rows = torch.where(visible, best, 0.0).topk(limit, dim=1)
    boxes, classes, valid = _rows(boxes, rows), _rows(classes, rows), best > 0
    return {
        "boxes": torch.where(valid[..., None], boxes, 0.0),
        "scores": best,
        "classes": torch.where(valid, classes, NO_CLASS),
    }


def _best_of_level(
    detector: DenseDetector, anchors: Tensor, scores: Tensor, deltas: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (N, M, 4), scores (N, M), 0 below the threshold, and classes (N, M)."""
    flat = scores.flatten(1)
    best, index = flat.topk(torch.sym_min(detector.test_topk_candidates, flat.shape[1]), dim=1)
    classes, index = index % detector.num_classes, index // detector.num_classes
    chosen = _rows(deltas, index)
    transform = detector.box2box_transform
    boxes = transform.apply_deltas(chosen.flatten(0, 1), anchors[index].flatten(0, 1))
    best = torch.where(best > detector.test_score_thresh, best, 0.0)
    return boxes.view_as(chosen), best, classes


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of x, (N, M) or (N, M, 4), at the places (N, P) of each image."""
    if x.dim() == 2:
        return x.gather(1, index)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _clip(boxes: Tensor, size: Size) -> Tensor:
    x0, y0, x1, y1 = boxes.unbind(dim=-1)
    height, width = size
    clipped = (x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height))
    return torch.stack(clipped, dim=-1)


def box_differences(expected: Exports, exports: Exports) -> list[Difference]:
    """Compare the boxes of two networks: each with the best one of its class in the other.

    Boxes are a pair if they overlap by more than .99; scores of equal height may be in any order.
    """
    pairs, errors, total = 0, [0.0], 0
    for image in range(len(expected["scores"])):
        ours, theirs = ({k: x[image] for k, x in side.items()} for side in (expected, exports))
        valid, others = ours["scores"] > 0, theirs["scores"] > 0
        total += max(int(valid.sum()), int(others.sum()))
        if not (valid.any() and others.any()):
            continue
        overlap = box_iou(ours["boxes"][valid], theirs["boxes"][others])
        overlap[ours["classes"][valid][:, None] != theirs["classes"][others]] = 0
        best, index = overlap.max(dim=1)
        paired = best > 0.99
        pairs += min(int(paired.sum()), len(index[paired].unique()))
        gaps = (ours["scores"][valid] - theirs["scores"][others][index])[paired].abs()
        errors += gaps.tolist()
    share = (total - pairs) / max(total, 1)
    return [
        Difference("boxes: share without a counterpart", share, 0.02, total, True),
        Difference("scores: greatest error", max(errors), 1e-3, pairs, False),
    ]
