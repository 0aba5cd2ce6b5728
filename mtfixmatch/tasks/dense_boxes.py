"""Boxes of dense detectors without waiting for a GPU: decoding, and the GIoU loss."""

from collections.abc import Callable, Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..augmentation.geometry import Size


def fetch_candidates(
    anchors: Sequence[Boxes],
    scores: Tensor,
    deltas: Tensor,
    decode: Callable[[Tensor, Tensor], Tensor],
    *,
    size: Size,
    least_score: float,
    most: int,
) -> list[Instances]:
    """Decode the candidates of N images together, and fetch them from a GPU in one copy.

    Detectron2 selects the scores over the threshold first, and so waits for the GPU at each level
    of each image. Here the best of each level are decoded, a fixed number, and cut by score on the
    CPU. NMS on the CPU suits pseudo-labels: few candidates are over their threshold.

    Args:
        anchors: boxes of each level, R in all.
        scores: (N, R, K).
        deltas: (N, R, 4).
        decode: function of deltas (P, 4) and anchors (P, 4) that returns boxes (P, 4).
        size: (height, width) of the images.
        least_score: score that candidates must exceed.
        most: number of candidates of a level.

    Returns:
        For each image pred_boxes, scores and pred_classes on the CPU, before NMS.
    """
    num_images, _, num_classes = scores.shape
    values, indices, start = [], [], 0
    for level in anchors:
        flat = scores[:, start : start + len(level)].flatten(1)
        best, index = flat.topk(min(most, flat.shape[1]), dim=1)
        values.append(best)
        indices.append(index + start * num_classes)
        start += len(level)
    index = torch.cat(indices, dim=1)
    rows = index // num_classes
    boxes = decode(
        deltas.gather(1, rows[..., None].expand(-1, -1, 4)).flatten(0, 1),
        Boxes.cat(list(anchors)).tensor[rows.flatten()],
    )
    columns = [boxes.view(num_images, -1, 4), torch.cat(values, dim=1)[..., None]]
    block = torch.cat([*columns, (index % num_classes)[..., None]], dim=2).cpu()
    return [
        Instances(size, pred_boxes=Boxes(x[:, :4]), scores=x[:, 4], pred_classes=x[:, 5].long())
        for x in (image[image[:, 4] > least_score] for image in block)
    ]


def decode_boxes(transform: Box2BoxTransform, deltas: Tensor, anchors: Tensor) -> Tensor:
    """Apply deltas (P, 4) to anchors (P, 4) with the bits of Detectron2, in fewer launches."""
    if tuple(transform.weights) != (1.0, 1.0, 1.0, 1.0):
        return transform.apply_deltas(deltas, anchors)
    sizes = anchors[:, 2:] - anchors[:, :2]
    centers = deltas[:, :2] * sizes + (anchors[:, :2] + 0.5 * sizes)
    half = 0.5 * (deltas[:, 2:].clamp(max=transform.scale_clamp).exp() * sizes)
    return torch.cat([centers - half, centers + half], dim=1)


def giou_loss(predicted: Tensor, boxes: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute the generalized IoU loss (P,) of boxes (P, 4) with others, nan if not finite.

    It is fvcore's to the last bit. That one asserts that no box is inverted, and so waits for a
    GPU; boxes that a head decodes never are.
    """
    low, high = torch.max(predicted[:, :2], boxes[:, :2]), torch.min(predicted[:, 2:], boxes[:, 2:])
    shared = high - low
    intersection = torch.where((shared > 0).all(dim=1), shared[:, 0] * shared[:, 1], 0.0)
    sides, other_sides = predicted[:, 2:] - predicted[:, :2], boxes[:, 2:] - boxes[:, :2]
    areas = sides[:, 0] * sides[:, 1] + other_sides[:, 0] * other_sides[:, 1]
    union = areas - intersection
    hull_high, hull_low = (
        torch.max(predicted[:, 2:], boxes[:, 2:]),
        torch.min(predicted[:, :2], boxes[:, :2]),
    )
    hull_sides = hull_high - hull_low
    hull = hull_sides[:, 0] * hull_sides[:, 1]
    return 1 - (intersection / (union + eps) - (hull - union) / (hull + eps))
