"""The head of RetinaNet for detection (paper Sec. 4)."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import retinanet
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from .dense_boxes import decode_boxes
from .dense_head import DETECTION_HEAD_REGISTRY, DenseHead, detector_arguments


@DETECTION_HEAD_REGISTRY.register()
class RetinaNetHead(DenseHead):
    """Detectron2's RetinaNet without its backbone, which matches anchors by IoU."""

    config_node = "RETINANET"

    @configurable
    def __init__(self, *, pseudo_matcher: Matcher, **kwargs):
        """Set up the head.

        Args:
            pseudo_matcher: matcher of anchors with pseudo-boxes.
            kwargs: arguments of the base class.
        """
        super().__init__(**kwargs)
        self.pseudo_matcher = pseudo_matcher

    @classmethod
    def from_config(
        cls, cfg: CfgNode, name: str, class_names: Sequence[str], shapes: dict[str, ShapeSpec]
    ) -> dict:
        """See base class; add the matcher of pseudo-boxes."""
        node, task = cfg.MODEL.RETINANET, cfg.TASKS[name.upper()]
        matcher = Matcher(
            node.IOU_THRESHOLDS,
            node.IOU_LABELS,
            allow_low_quality_matches=task.PSEUDO_LOW_QUALITY,
        )
        return super().from_config(cfg, name, class_names, shapes) | {"pseudo_matcher": matcher}

    @staticmethod
    def build_detector(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> retinanet.RetinaNet:
        """See base class."""
        node, used = cfg.MODEL.RETINANET, list(shapes.values())
        return retinanet.RetinaNet(
            head=retinanet.RetinaNetHead(cfg, used),
            anchor_generator=build_anchor_generator(cfg, used),
            box2box_transform=Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            anchor_matcher=Matcher(
                node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=True
            ),
            **detector_arguments(cfg, node, shapes),
        )

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """See base class."""
        return decode_boxes(self.detector.box2box_transform, deltas, anchors)

    def match_quality(self, anchors: Sequence[Boxes], boxes: Boxes) -> Tensor:
        """See base class: the IoU."""
        return pairwise_iou(boxes, Boxes.cat(list(anchors)))

    def match_labels(self, quality: Tensor, best: Tensor, *, is_pseudo: bool) -> Tensor:
        """Do as Detectron2's Matcher, which asserts something and so waits for a GPU."""
        matcher = self.pseudo_matcher if is_pseudo else self.detector.anchor_matcher
        labels = torch.full_like(best, matcher.labels[0], dtype=torch.int8)
        for label, low in zip(matcher.labels[1:], matcher.thresholds[1:-1], strict=True):
            labels.masked_fill_(best >= low, label)
        if matcher.allow_low_quality_matches:
            highest = quality.amax(dim=2, keepdim=True)
            labels.masked_fill_(((quality == highest) & (highest >= 0)).any(dim=1), 1)
        return labels
