"""RetinaNet's head under the task contract: losses, pseudo-boxes, results (paper Sec. 3)."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from fvcore.nn import giou_loss, sigmoid_focal_loss
from torch import Tensor, nn

from ..augmentation import geometry
from ..augmentation.geometry import Size
from .base import Assigned, Raw, TaskHead

IGNORED = -1  # label of an anchor that takes no part in the loss


def boxes_target(size: Size, boxes: Tensor, classes: Tensor, ignore: Tensor) -> Instances:
    """A target of R boxes (R, 4) with classes (R,) and ignore flags (R,)."""
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes, gt_ignore=ignore)


class DetectionHead(TaskHead):
    """RetinaNet's head; raw outputs: logits (N, R, K) and box deltas (N, R, 4), R anchors."""

    normalizers: Tensor

    @configurable
    def __init__(
        self,
        *,
        retinanet: RetinaNet,
        pseudo_matcher: Matcher,
        strides: Sequence[int],
        pseudo_threshold: float,
        uncertain_threshold: float,
        background_weight: float,
    ):
        """RetinaNet without its backbone, and what rules the pseudo-boxes.

        Args:
            retinanet: its head, anchors, box coding, matcher and thresholds are used.
            pseudo_matcher: matches anchors with pseudo-boxes.
            strides: of the features that the head reads.
            pseudo_threshold: least score of a pseudo-box.
            uncertain_threshold: predictions from here to `pseudo_threshold` are ignored boxes.
            background_weight: of anchors without a pseudo-box; 0 discards them.
        """
        super().__init__()
        self.retinanet = retinanet
        self.in_features = list(retinanet.head_in_features)
        self.num_classes = retinanet.num_classes
        self.pseudo_matcher = pseudo_matcher
        self.strides = list(strides)
        self.pseudo_threshold = pseudo_threshold
        self.uncertain_threshold = uncertain_threshold if background_weight else pseudo_threshold
        self.background_weight = background_weight
        # Running means of the number of positive anchors, as RetinaNet's, one for each loss.
        self.register_buffer("normalizers", torch.tensor([100.0, 100.0]))

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> dict:
        """Read MODEL.RETINANET and TASKS.DETECTION."""
        node, task = cfg.MODEL.RETINANET, cfg.TASKS.DETECTION
        feature_shapes = [shapes[f] for f in node.IN_FEATURES]
        return {
            "retinanet": _retinanet_without_backbone(cfg, feature_shapes),
            "pseudo_matcher": Matcher(
                node.IOU_THRESHOLDS,
                node.IOU_LABELS,
                allow_low_quality_matches=task.PSEUDO_LOW_QUALITY,
            ),
            "strides": [shape.stride for shape in feature_shapes],
            "pseudo_threshold": task.THRESHOLD,
            "uncertain_threshold": task.UNCERTAIN_THRESHOLD,
            "background_weight": task.BACKGROUND_WEIGHT,
        }

    def forward(self, features: dict[str, Tensor]) -> Raw:
        """See base class."""
        levels = [features[f] for f in self.in_features]
        logits, deltas = self.retinanet.head(levels)
        return _by_anchor(logits, self.num_classes), _by_anchor(deltas, 4)

    def anchors(self, size: Size) -> list[Boxes]:
        """Anchors of each level of an input of `size`."""
        grids = [[-(-side // stride) for side in size] for stride in self.strides]
        return [Boxes(x) for x in self.retinanet.anchor_generator._grid_anchors(grids)]

    @torch.no_grad()
    def assign(self, targets: Sequence[Instances], size: Size, *, unsupervised: bool) -> Assigned:
        """For R anchors of each of N images, which are the tensors of the result.

        labels (N, R): class, `num_classes` for background, or IGNORED; boxes (N, R, 4): matched;
        anchors (N, R, 4); weights (N, R): of the classification term.
        """
        anchors = Boxes.cat(self.anchors(size))
        matcher = self.pseudo_matcher if unsupervised else self.retinanet.anchor_matcher
        labels = torch.zeros(len(targets), len(anchors), dtype=torch.long, device=anchors.device)
        boxes = anchors.tensor.new_zeros(*labels.shape, 4)
        for i, target in enumerate(targets):
            labels[i], boxes[i] = self._label_anchors(anchors, target.to(anchors.device), matcher)
        if unsupervised and not self.background_weight:
            labels[labels == self.num_classes] = IGNORED
        positive = (labels >= 0) & (labels != self.num_classes)
        weights = torch.where(positive, 1.0, self.background_weight if unsupervised else 1.0)
        spread = anchors.tensor.expand(*labels.shape, 4)
        return Assigned((labels, boxes, spread, weights), float(positive.sum()))

    def _label_anchors(
        self, anchors: Boxes, target: Instances, matcher: Matcher
    ) -> tuple[Tensor, Tensor]:
        objects, ignored = target[~target.gt_ignore], target[target.gt_ignore]
        index, quality = matcher(pairwise_iou(objects.gt_boxes, anchors))
        labels = torch.full_like(index, self.num_classes)
        boxes = torch.zeros_like(anchors.tensor)
        if len(objects):
            labels, boxes = objects.gt_classes[index], objects.gt_boxes.tensor[index]
            labels = torch.where(quality == 0, self.num_classes, labels)
            labels = torch.where(quality == -1, IGNORED, labels)
        if len(ignored):
            # Share of each anchor under an ignored box.
            covered = pairwise_ioa(ignored.gt_boxes, anchors).amax(dim=0)
            labels[(labels == self.num_classes) & (covered > 0.5)] = IGNORED
        return labels, boxes

    def normalizer(self, count: float, *, unsupervised: bool) -> float:
        """Running mean of the count with momentum .9, as RetinaNet's."""
        mean = self.normalizers[int(unsupervised)]
        mean.mul_(0.9).add_(0.1 * max(count, 1.0))
        return float(mean)

    def losses(self, raw: Raw, assigned: Assigned) -> dict[str, Tensor]:
        """Focal loss over labeled anchors, GIoU loss over positive ones (paper Sec. 3)."""
        labels, boxes, anchors, weights = assigned.tensors
        logits, deltas = raw
        valid = labels >= 0
        positive = valid & (labels != self.num_classes)
        one_hot = nn.functional.one_hot(labels[valid], self.num_classes + 1)[:, :-1]
        focal = sigmoid_focal_loss(
            logits[valid],
            one_hot.to(logits),
            alpha=self.retinanet.focal_loss_alpha,
            gamma=self.retinanet.focal_loss_gamma,
        )
        transform = self.retinanet.box2box_transform
        predicted = transform.apply_deltas(deltas[positive], anchors[positive])
        if predicted.isfinite().all():
            box = giou_loss(predicted, boxes[positive], reduction="sum")
        else:  # fvcore's loss asserts on such boxes; the trainer reports a loss of nan better
            box = predicted.sum() * float("nan")
        return {"cls": (focal * weights[valid][:, None]).sum(), "box": box}

    @torch.no_grad()
    def pseudo_labels(self, raw: Raw, size: Size, valid: Tensor) -> list[Instances]:
        """Boxes after NMS with a score over the threshold; uncertain ones are ignored boxes."""
        least = min(self.uncertain_threshold, self.pseudo_threshold)
        targets = []
        for found in self._detect(raw, size, [size] * len(valid), least):
            uncertain = found.scores <= self.pseudo_threshold
            boxes = geometry.clip_boxes(found.pred_boxes.tensor, size)
            targets.append(boxes_target(size, boxes, found.pred_classes, uncertain))
        return targets

    @torch.no_grad()
    def inference(
        self, raw: Raw, size: Size, image_sizes: Sequence[Size], output_sizes: Sequence[Size]
    ) -> list[dict]:
        """See base class."""
        found = self._detect(raw, size, image_sizes, self.retinanet.test_score_thresh)
        return [
            {"instances": detector_postprocess(instances, *output)}
            for instances, output in zip(found, output_sizes, strict=True)
        ]

    def _detect(
        self, raw: Raw, size: Size, image_sizes: Sequence[Size], least_score: float
    ) -> list[Instances]:
        """RetinaNet's inference with a score threshold of our choice."""
        net, anchors = self.retinanet, self.anchors(size)
        counts = [len(level) for level in anchors]
        found = []
        for logits, deltas, image_size in zip(*raw, image_sizes, strict=True):
            scores = logits.sigmoid().split(counts)
            candidates = net._decode_multi_level_predictions(
                anchors,
                scores,
                deltas.split(counts),
                least_score,
                net.test_topk_candidates,
                image_size,
            )
            boxes, classes = candidates.pred_boxes.tensor, candidates.pred_classes
            keep = batched_nms(boxes, candidates.scores, classes, net.test_nms_thresh)
            found.append(candidates[keep[: net.max_detections_per_image]])
        return found

    @torch.no_grad()
    def agreement(self, raw: Raw, assigned: Assigned) -> float:
        """Share of positive anchors whose top class is that of their box."""
        labels = assigned.tensors[0]
        positive = (labels >= 0) & (labels != self.num_classes)
        same = raw[0][positive].argmax(dim=1) == labels[positive]
        return float(same.float().mean()) if len(same) else float("nan")


def _by_anchor(levels: Sequence[Tensor], k: int) -> Tensor:
    """(N, A * K, H, W) of each level to (N, R, K) of all; Detectron2's cannot do with N = 0."""
    flat = [x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, k)) for x in levels]
    return torch.cat(flat, dim=1)


def _retinanet_without_backbone(cfg: CfgNode, feature_shapes: list[ShapeSpec]) -> RetinaNet:
    node = cfg.MODEL.RETINANET
    return RetinaNet(
        backbone=nn.Identity(),
        head=RetinaNetHead(cfg, feature_shapes),
        head_in_features=node.IN_FEATURES,
        anchor_generator=build_anchor_generator(cfg, feature_shapes),
        box2box_transform=Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
        anchor_matcher=Matcher(
            node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=True
        ),
        num_classes=node.NUM_CLASSES,
        focal_loss_alpha=node.FOCAL_LOSS_ALPHA,
        focal_loss_gamma=node.FOCAL_LOSS_GAMMA,
        test_score_thresh=node.SCORE_THRESH_TEST,
        test_topk_candidates=node.TOPK_CANDIDATES_TEST,
        test_nms_thresh=node.NMS_THRESH_TEST,
        max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
