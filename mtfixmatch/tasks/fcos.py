"""The head of FCOS for detection: no anchor shapes, and a centerness at each location."""

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import fcos
from detectron2.structures import Boxes
from torch import Tensor

from .base import Outputs
from .dense_head import DETECTION_HEAD_REGISTRY, DenseHead, detector_arguments


def add_fcos_config(cfg: CfgNode) -> None:
    """Add MODEL.FCOS: the defaults of Detectron2's FCOS under the key names of MODEL.RETINANET."""
    node = cfg.MODEL.FCOS = CfgNode()
    # Number of classes; 0: that of the dataset.
    node.NUM_CLASSES = 0
    # Features that the head reads, at strides 8, 16, ...; each location predicts one box.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Number of convolutions before the outputs, and their norm.
    node.NUM_CONVS = 4
    node.NORM = "GN"
    # Score of every class at initialization.
    node.PRIOR_PROB = 0.01
    # Greatest distance of a positive location from the center of its box, in strides.
    node.CENTER_SAMPLING_RADIUS = 1.5
    node.FOCAL_LOSS_ALPHA = 0.25
    node.FOCAL_LOSS_GAMMA = 2.0
    # Least score of a detection, candidates for NMS at each level, IoU threshold of NMS.
    node.SCORE_THRESH_TEST = 0.05
    node.TOPK_CANDIDATES_TEST = 1000
    node.NMS_THRESH_TEST = 0.6


@DETECTION_HEAD_REGISTRY.register()
class FCOSHead(DenseHead):
    """Detectron2's FCOS without its backbone, which matches locations by box center and size."""

    config_node = "FCOS"
    loss_parts = ("cls", "box", "centerness")

    @staticmethod
    def build_detector(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> fcos.FCOS:
        """See base class."""
        node, channels = cfg.MODEL.FCOS, next(iter(shapes.values())).channels
        head = fcos.FCOSHead(
            input_shape=list(shapes.values()),
            num_classes=node.NUM_CLASSES,
            conv_dims=[channels] * node.NUM_CONVS,
            norm=node.NORM,
            prior_prob=node.PRIOR_PROB,
        )
        arguments = detector_arguments(cfg, node, shapes)
        radius = node.CENTER_SAMPLING_RADIUS
        return fcos.FCOS(head=head, center_sampling_radius=radius, **arguments)

    def output_widths(self) -> tuple[int, ...]:
        """See base class; the third output is the centerness."""
        return self.num_classes, 4, 1

    def scores(self, outputs: Outputs) -> Tensor:
        """Return the geometric mean of class probability and centerness, (N, R, K)."""
        return (outputs[0].sigmoid() * outputs[2].sigmoid()).sqrt()

    def match_quality(self, anchors: Sequence[Boxes], boxes: Boxes) -> Tensor:
        """See base class: the greater, the smaller a box is, and 0 for a location not in it."""
        return self.detector._match_anchors(boxes, list(anchors))

    def match_labels(self, quality: Tensor, best: Tensor, *, is_pseudo: bool) -> Tensor:
        """See base class; no location is ignored."""
        return (best >= 1e-5).long()

    def positive_losses(
        self, outputs: Sequence[Tensor], anchors: Tensor, boxes: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Add the binary cross-entropy of the centerness to the losses of the base class."""
        targets = self.detector.compute_ctrness_targets([Boxes(anchors)], [boxes])[0]
        centerness = F.binary_cross_entropy_with_logits(
            outputs[1][:, 0], targets, weights, reduction="sum"
        )
        losses = super().positive_losses(outputs, anchors, boxes, weights)
        return losses | {"centerness": centerness}
