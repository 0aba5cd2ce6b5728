"""DeepLabv3+'s head, or another of Detectron2's semantic heads, under the task contract."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor

from ..augmentation.geometry import Size
from ..utils.labels import IGNORE_LABEL
from .base import Assigned, Outputs, TaskHead
from .dense_head import with_classes
from .dropout import drop_by_image


class SegmentationHead(TaskHead):
    """A semantic head; its output are logits (N, K, H / stride, W / stride)."""

    @configurable
    def __init__(self, *, head: Any, stride: int):
        """Wrap the head.

        Args:
            head: of Detectron2, such as DeepLabV3PlusHead: `in_features` and `layers(features)`.
            stride: of its output.
        """
        super().__init__()
        self.head: Any = head
        drop_by_image(head)
        self.in_features = list(head.in_features)
        self.stride = stride

    @classmethod
    def from_config(
        cls, cfg: CfgNode, class_names: Sequence[str], shapes: dict[str, ShapeSpec]
    ) -> dict:
        """Read MODEL.SEM_SEG_HEAD as DeepLab does."""
        return {
            "head": build_sem_seg_head(with_classes(cfg, "SEM_SEG_HEAD", class_names), shapes),
            "stride": cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
        }

    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """See base class."""
        return (self.head.layers(features),)

    def _full_size(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)

    def assign(
        self, targets: Sequence[Tensor], is_pseudo: Sequence[bool], size: Size
    ) -> list[Assigned]:
        """The maps (H, W) as class ids, or soft labels (K, H, W); the count is of valid pixels."""
        device = next(self.parameters()).device
        return [_assign(target.to(device)) for target in targets]

    def normalizer(self, count: float, *, is_pseudo: bool) -> float:
        """The number of valid pixels, so the loss is their mean."""
        return max(count, 1.0)

    def losses(
        self, outputs: Outputs, assigned: Sequence[Assigned], size: Size
    ) -> dict[str, Tensor]:
        """Cross-entropy summed over valid pixels, at the resolution of the image."""
        logits = self._full_size(outputs[0])
        labels = torch.stack([x.tensors[0] for x in assigned])
        if labels.is_floating_point():
            return {"ce": -(labels * logits.log_softmax(dim=1)).sum()}
        return {"ce": F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="sum")}

    @torch.no_grad()
    def predict(self, outputs: Outputs, size: Size, least_score: float) -> Tensor:
        """Logits (N, K, H, W) at the resolution of the image."""
        return self._full_size(outputs[0])

    @torch.no_grad()
    def inference(
        self, outputs: Outputs, size: Size, image_size: Size, output_sizes: Sequence[Size]
    ) -> list[Tensor]:
        """See base class."""
        pairs = zip(self._full_size(outputs[0]), output_sizes, strict=True)
        return [sem_seg_postprocess(x, image_size, *output_size) for x, output_size in pairs]

    @torch.no_grad()
    def agreement(self, outputs: Outputs, assigned: Sequence[Assigned]) -> float:
        """Return the share of valid pixels whose top class is the assigned one."""
        maps = torch.stack([class_map(x.tensors[0]) for x in assigned])
        same = (self._full_size(outputs[0]).argmax(dim=1) == maps)[maps != IGNORE_LABEL]
        return float(same.float().mean()) if len(same) else float("nan")


def class_map(target: Tensor) -> Tensor:
    """Return the map of classes (H, W), the likeliest ones of soft labels (K, H, W)."""
    if not target.is_floating_point():
        return target
    return torch.where(target.sum(dim=0) > 0, target.argmax(dim=0), IGNORE_LABEL)


def _assign(target: Tensor) -> Assigned:
    if target.is_floating_point():
        return Assigned((target,), (target.sum(dim=0) > 0).sum())
    labels = target.long()
    return Assigned((labels,), (labels != IGNORE_LABEL).sum())
