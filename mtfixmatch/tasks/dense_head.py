"""Base class of the heads of dense detectors: assignment, losses, decoding (paper Sec. 3)."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, pairwise_ioa
from fvcore.common.registry import Registry
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from ..augmentation.geometry import Size
from ..utils.devices import stack, to_device
from .base import Assigned, Outputs, TaskHead
from .box_target import labeled_mask
from .config import with_classes
from .dense_boxes import fetch_candidates, giou_loss
from .dense_export import export_boxes, onnx_suppress
from .padded_boxes import PaddedBoxes, pad_boxes

DETECTION_HEAD_REGISTRY = Registry("DETECTION_HEAD")
DETECTION_HEAD_REGISTRY.__doc__ = "Heads of detection by class name, for TASKS.<NAME>.HEAD."

IGNORED = -1  # label of an anchor without a loss
# Pairs of a box and an anchor that a GPU compares at once; each takes about 50 bytes.
MOST_PAIRS = 2**25


class DenseHead(TaskHead):
    """The head of one of Detectron2's dense detectors.

    Its outputs are logits (N, R, K), box deltas (N, R, 4) and possibly more, for R anchors and K
    classes. A subclass matches anchors with boxes and turns outputs into scores.

    Attributes:
        config_node: name of the node of cfg.MODEL with the keys of the head.
        loss_parts: names of the loss terms.
    """

    config_node: ClassVar[str]
    loss_parts: ClassVar[tuple[str, ...]] = ("cls", "box")
    class_layers = ("detector.head.cls_score",)

    @configurable
    def __init__(
        self, *, detector: DenseDetector, strides: Sequence[int], background_weight: float
    ):
        """Wrap a detector without its backbone.

        Args:
            detector: detector with the head, anchors, box coding and thresholds.
            strides: stride in pixels of each feature that the head reads.
            background_weight: weight in the unsupervised loss of anchors without a pseudo-box; 0
                discards them, as the paper does.
        """
        super().__init__()
        self.detector = detector
        self.in_features = list(detector.head_in_features)
        self.num_classes: int = detector.num_classes
        self.strides = list(strides)
        self.background_weight = background_weight
        self._kept_anchors: tuple[Any, list[Boxes]] = (None, [])

    @classmethod
    def from_config(
        cls, cfg: CfgNode, name: str, class_names: Sequence[str], shapes: dict[str, ShapeSpec]
    ) -> dict[str, Any]:
        """Read the head's node of cfg.MODEL and cfg.TASKS.<NAME>."""
        features = {f: shapes[f] for f in cfg.MODEL[cls.config_node].IN_FEATURES}
        return {
            "detector": cls.build_detector(
                with_classes(cfg, cls.config_node, class_names), features
            ),
            "strides": [shape.stride for shape in features.values()],
            "background_weight": cfg.TASKS[name.upper()].BACKGROUND_WEIGHT,
        }

    @staticmethod
    @abstractmethod
    def build_detector(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> DenseDetector:
        """Build the detector on features with these names and shapes."""

    @abstractmethod
    def match_quality(self, anchors: Sequence[Boxes], boxes: Boxes) -> Tensor:
        """Return how well each of M boxes fits each anchor, (M, R), 0 or more.

        Args:
            anchors: boxes of each level, R in all.
            boxes: M boxes; those of zeros only fill up.
        """

    @abstractmethod
    def match_labels(self, quality: Tensor, best: Tensor, *, is_pseudo: bool) -> Tensor:
        """Decide which anchors the boxes of N images make positive.

        Args:
            quality: (N, M, R), see `match_quality`; -1 for a box that an image does not have.
            best: its maximum over the boxes, (N, R).
            is_pseudo: whether they are pseudo-boxes.

        Returns:
            (N, R): 1 positive, 0 background, -1 ignored.
        """

    def scores(self, outputs: Outputs) -> Tensor:
        """Return scores (N, R, K) in [0, 1]."""
        return outputs[0].sigmoid()

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes (P, 4) that deltas (P, 4) make of anchors (P, 4)."""
        return self.detector.box2box_transform.apply_deltas(deltas, anchors)

    def output_widths(self) -> tuple[int, ...]:
        """Return the size of the last dimension of each output."""
        return self.num_classes, 4

    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """See base class."""
        levels = self.detector.head([features[f] for f in self.in_features])
        widths = self.output_widths()
        return tuple(_by_anchor(x, k) for x, k in zip(levels, widths, strict=True))

    def anchors(self, size: Size) -> list[Boxes]:
        """Return the anchors of each level for images of `size` (height, width)."""
        # Rounded up without negative numbers, whose division ONNX rounds towards 0.
        grids = [[(side + stride - 1) // stride for side in size] for stride in self.strides]
        return [Boxes(x) for x in self.detector.anchor_generator._grid_anchors(grids)]

    def _training_anchors(self, size: Size) -> list[Boxes]:
        """Return the same as `anchors`, which are kept, because training images have one size."""
        key = (size, next(self.parameters()).device)
        if self._kept_anchors[0] != key:
            self._kept_anchors = (key, self.anchors(size))
        return self._kept_anchors[1]

    @torch.no_grad()
    def assign(
        self, targets: Sequence[Instances], is_pseudo: Sequence[bool], size: Size
    ) -> list[Assigned]:
        """See base class.

        Returns:
            For each image and its R anchors: label (R,), a class, `num_classes` for background, or
            IGNORED; matched box (R, 4); weight in the loss (R,); and, if the image is labeled for
            some of the classes, which ones (K,) bool. The count is the number of positive anchors.
        """
        anchors = self._training_anchors(size)
        assigned: list[Assigned] = []
        pairs = zip([target.to("cpu") for target in targets], is_pseudo, strict=True)
        for pseudo, run in groupby(pairs, key=lambda pair: pair[1]):
            for group in _groups([target for target, _ in run], anchors):
                assigned += self._assign(anchors, group, pseudo)
        return assigned

    def _assign(
        self, anchors: Sequence[Boxes], targets: Sequence[Instances], is_pseudo: bool
    ) -> list[Assigned]:
        device = anchors[0].device
        objects = pad_boxes([target[~target.gt_ignore] for target in targets], device)
        index, match = self._match(anchors, objects, is_pseudo)
        labels = torch.where(match == 0, self.num_classes, objects.classes.gather(1, index))
        labels = torch.where(match == -1, IGNORED, labels)
        boxes = objects.boxes.gather(1, index[..., None].expand(-1, -1, 4))
        background = self.background_weight if is_pseudo else 1.0
        weights = torch.where(match == 1, objects.weights.gather(1, index), background)
        regions = [target[target.gt_ignore] for target in targets]
        if any(map(len, regions)):
            # An anchor that an ignored box covers by more than half is not background.
            ioa = pairwise_ioa(pad_boxes(regions, device).flat(), Boxes.cat(list(anchors)))
            covered = ioa.view(len(targets), -1, len(index[0])).amax(dim=1) > 0.5
            labels = torch.where((labels == self.num_classes) & covered, IGNORED, labels)
        if is_pseudo and not self.background_weight:
            labels = torch.where(labels == self.num_classes, IGNORED, labels)
        counts = self._is_positive(labels).sum(dim=1)
        masks = [labeled_mask(target) for target in targets]
        subsets = [() if mask is None else (to_device(mask, device),) for mask in masks]
        rows = zip(labels, boxes, weights, subsets, counts, strict=True)
        return [Assigned((*tensors, *subset), count) for *tensors, subset, count in rows]

    def _match(
        self, anchors: Sequence[Boxes], objects: PaddedBoxes, is_pseudo: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the best box and the label, see `match_labels`, of each anchor, (N, R)."""
        present = objects.present
        quality = self.match_quality(anchors, objects.flat()).view(*present.shape, -1)
        quality = quality.masked_fill_(~present[..., None], -1.0)
        best, index = quality.max(dim=1)
        return index, self.match_labels(quality, best, is_pseudo=is_pseudo)

    def _is_positive(self, labels: Tensor) -> Tensor:
        return (labels >= 0) & (labels != self.num_classes)

    def losses(
        self, outputs: Outputs, assigned: Sequence[Assigned], size: Size, weights: Tensor
    ) -> dict[str, Tensor]:
        """Compute the focal loss of all but ignored anchors and the losses of positive ones.

        The focal loss is over the classes that an image is labeled for.
        """
        labels, boxes, anchor_weights = stack_assigned(assigned)
        weights = anchor_weights * weights[:, None]
        labeled = self._labeled_classes(assigned)
        focal = self._focal_loss(outputs[0], labels, weights, labeled)
        # The only place in the losses that waits for a GPU.
        positive = self._is_positive(labels).flatten().nonzero().squeeze(1)
        anchors = Boxes.cat(self._training_anchors(size)).tensor[positive % labels.shape[1]]
        *others, boxes, weights = (
            x.flatten(0, 1).index_select(0, positive) for x in (*outputs[1:], boxes, weights)
        )
        return {"cls": focal, **self.positive_losses(others, anchors, boxes, weights)}

    def positive_losses(
        self, outputs: Sequence[Tensor], anchors: Tensor, boxes: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Compute the losses of P positive anchors.

        Args:
            outputs: their outputs (P, ...) but for the logits.
            anchors: (P, 4).
            boxes: their matched boxes (P, 4).
            weights: their weights (P,).
        """
        predicted = self.decode(outputs[0], anchors)
        return {"box": (giou_loss(predicted, boxes) * weights).sum()}

    def _labeled_classes(self, assigned: Sequence[Assigned]) -> Tensor | None:
        """Return which classes N images are labeled for, (N, K) bool; None: all of them."""
        masks = [x.tensors[3] if len(x.tensors) > 3 else None for x in assigned]
        if all(mask is None for mask in masks):
            return None
        everything = assigned[0].tensors[0].new_ones(self.num_classes, dtype=torch.bool)
        return torch.stack([everything if mask is None else mask for mask in masks])

    def _focal_loss(
        self, logits: Tensor, labels: Tensor, weights: Tensor, labeled: Tensor | None
    ) -> Tensor:
        valid = labels >= 0
        masks = weights[..., None]
        if labeled is not None:
            masks = masks * labeled[:, None]
        if logits.is_cuda:  # which would have to be waited for, for the number of valid anchors
            masks = torch.where(valid[..., None], masks, 0.0)
        else:  # few anchors are valid where the background of pseudo-labels is not
            logits, labels, masks = logits[valid], labels[valid], masks[valid]
        one_hot = labels[..., None] == torch.arange(self.num_classes, device=labels.device)
        focal = sigmoid_focal_loss(
            logits,
            one_hot.to(logits),
            alpha=self.detector.focal_loss_alpha,
            gamma=self.detector.focal_loss_gamma,
        )
        return (focal * masks).sum()

    @torch.no_grad()
    def predict(self, outputs: Outputs, size: Size, least_score: float) -> list[Instances]:
        """Return pred_boxes, scores and pred_classes of each image after NMS, on the CPU."""
        if not outputs[0].is_cuda:
            return self._detect(outputs, size, size, least_score)
        candidates = fetch_candidates(
            self._training_anchors(size),
            self.scores(outputs),
            outputs[1],
            self.decode,
            size=size,
            least_score=least_score,
            most=self.detector.test_topk_candidates,
        )
        return [self._suppress(x) for x in candidates]

    @torch.no_grad()
    def inference(
        self, outputs: Outputs, size: Size, image_size: Size, output_sizes: Sequence[Size]
    ) -> list[Instances]:
        """See base class."""
        instances = self._detect(outputs, size, image_size, self.detector.test_score_thresh)
        pairs = zip(instances, output_sizes, strict=True)
        return [detector_postprocess(x, *output_size) for x, output_size in pairs]

    def _detect(
        self, outputs: Outputs, size: Size, image_size: Size, least_score: float
    ) -> list[Instances]:
        """Decode as the detector does in inference, but with another score threshold."""
        anchors = self.anchors(size)
        counts = [len(level) for level in anchors]
        detector, detections = self.detector, []
        for scores, deltas in zip(self.scores(outputs), outputs[1], strict=True):
            levels = list(zip(anchors, scores.split(counts), deltas.split(counts), strict=True))
            # Most levels have no pseudo-box and can be skipped; on a GPU this would be a wait.
            found = [x for x in levels if scores.is_cuda or not x[1].max() <= least_score]
            found = found or levels[:1]
            candidates = detector._decode_multi_level_predictions(
                *zip(*found, strict=True), least_score, detector.test_topk_candidates, image_size
            )
            detections.append(self._suppress(candidates))
        return detections

    def _suppress(self, candidates: Instances) -> Instances:
        boxes, classes = candidates.pred_boxes.tensor, candidates.pred_classes
        keep = batched_nms(boxes, candidates.scores, classes, self.detector.test_nms_thresh)
        return candidates[keep[: self.detector.max_detections_per_image]]

    def export(self, outputs: Outputs, size: Size, image_size: Size) -> dict[str, Tensor]:
        """See base class; the exports are those of `export_boxes`."""
        anchors = [level.tensor for level in self.anchors(size)]
        return export_boxes(self.detector, anchors, self.scores(outputs), outputs[1], image_size)

    def export_facts(self) -> dict[str, Any]:
        """See base class."""
        return {
            "least_score": self.detector.test_score_thresh,
            "suppressed_from_iou": self.detector.test_nms_thresh,
            "most_boxes": self.detector.max_detections_per_image,
        }

    def onnx_operators(self) -> dict[Callable, Callable]:
        """See base class."""
        return {torch.ops.mtfixmatch.suppress.default: onnx_suppress}

    @torch.no_grad()
    def agreement(self, outputs: Outputs, assigned: Sequence[Assigned]) -> float:
        """Return the share of positive anchors whose most likely class is that of their box."""
        labels = stack_assigned(assigned)[0]
        positive = self._is_positive(labels)
        same = outputs[0][positive].argmax(dim=1) == labels[positive]
        return float(same.float().mean()) if len(same) else float("nan")


class ShapesOnly(nn.Identity):
    """A placeholder for the backbone of a detector of which only the head is used."""

    def __init__(self, shapes: dict[str, ShapeSpec]):
        super().__init__()
        self.shapes = shapes

    def output_shape(self) -> dict[str, ShapeSpec]:
        """See detectron2.modeling.Backbone."""
        return self.shapes


def detector_arguments(cfg: CfgNode, node: CfgNode, shapes: dict[str, ShapeSpec]) -> dict[str, Any]:
    """Return the arguments of a detector that are the same for all of Detectron2's."""
    return {
        "backbone": ShapesOnly(shapes),
        "head_in_features": list(shapes),
        "num_classes": node.NUM_CLASSES,
        "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
        "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
        "test_score_thresh": node.SCORE_THRESH_TEST,
        "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
        "test_nms_thresh": node.NMS_THRESH_TEST,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def stack_assigned(assigned: Sequence[Assigned]) -> tuple[Tensor, ...]:
    """Return labels, boxes and weights of N images, each (N, ...)."""
    return tuple(stack([x.tensors[i] for x in assigned]) for i in range(3))


def _groups(targets: Sequence[Instances], anchors: Sequence[Boxes]) -> Iterator[list[Instances]]:
    """Split targets into those that are matched together: as many as memory allows on a GPU.

    On a CPU each is alone, because padding costs more there than a call.
    """
    count = 1
    if anchors[0].tensor.is_cuda:
        pairs = max(1, *map(len, targets)) * sum(map(len, anchors))
        count = max(1, MOST_PAIRS // pairs)
    for start in range(0, len(targets), count):
        yield list(targets[start : start + count])


def _by_anchor(levels: Sequence[Tensor], k: int) -> Tensor:
    """Reshape levels (N, A * K, H, W) to (N, R, K); Detectron2's function fails on N = 0."""
    flat = [x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, k)) for x in levels]
    return torch.cat(flat, dim=1)
