"""One network that gives every head its features: res2..res5 and, where asked for, p3..p7."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from torch import Tensor

from ..tasks.base import in_features
from ..utils.errors import InputError

PYRAMID_INPUTS = ["res3", "res4", "res5"]


class _GivenFeatures(Backbone):
    """Stands below an FPN that is handed the bottom-up features instead of the image."""

    def __init__(self, shapes: dict[str, ShapeSpec]):
        super().__init__()
        self._out_features = list(shapes)
        self._out_feature_channels = {k: s.channels for k, s in shapes.items()}
        self._out_feature_strides = {k: s.stride for k, s in shapes.items()}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


class _TopBlock(LastLevelP6P7):
    """P6 and P7, with gradients that are right for narrow images too.

    In bfloat16 on a CPU, PyTorch (seen: 2.15) leaves a part of the weight gradient of a strided
    convolution unwritten where its input is one column wide: whatever the memory held is learnt.
    """

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Features (N, C, H, W) at stride 32 to those at 64 and 128."""
        if c5.shape[-1] > 2:  # P6 is wider than one column
            return super().forward(c5)
        with torch.autocast(c5.device.type, enabled=False):
            return super().forward(c5.to(self.p6.weight.dtype))


class MultiTaskBackbone(Backbone):
    """A bottom-up network and, beside its own features, a feature pyramid on top of it."""

    @configurable
    def __init__(self, *, bottom_up: Backbone, fpn: FPN | None):
        """Join them.

        Args:
            bottom_up: gives res2..res5; res5 at stride 32, or at stride 16 by dilation.
            fpn: on res3..res5 at strides 8-32, or None.
        """
        super().__init__()
        self.bottom_up = bottom_up
        self.fpn = fpn
        shapes = bottom_up.output_shape() | (fpn.output_shape() if fpn else {})
        self._out_features = list(shapes)
        self._out_feature_channels = {k: s.channels for k, s in shapes.items()}
        self._out_feature_strides = {k: s.stride for k, s in shapes.items()}

    @classmethod
    def from_config(cls, cfg: CfgNode, bottom_up: Backbone) -> dict:
        """A pyramid is built where one of MODEL.TASKS reads it."""
        fpn = (
            _build_fpn(cfg, bottom_up) if in_features(cfg) - set(bottom_up.output_shape()) else None
        )
        return {"bottom_up": bottom_up, "fpn": fpn}

    @property
    def size_divisibility(self) -> int:
        """Images are padded to multiples of this."""
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to features by name, each (N, C, H / stride, W / stride)."""
        features = self.bottom_up(images)
        if self.fpn is None:
            return features
        pyramid_inputs = {name: features[name] for name in PYRAMID_INPUTS}
        if self._out_feature_strides["res5"] == 16:
            # Every second position of a dilated res5 is where a strided one would look.
            pyramid_inputs["res5"] = F.max_pool2d(features["res5"], kernel_size=1, stride=2)
        return features | self.fpn(pyramid_inputs)


@BACKBONE_REGISTRY.register()
def build_multitask_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MultiTaskBackbone:
    """ResNet-18/34/50/101 with a pyramid where one of MODEL.TASKS reads one.

    Raises:
        InputError: for an encoder stride that the network cannot have.
    """
    bottom_up = build_resnet_backbone(_with_encoder_stride(cfg), input_shape)
    return MultiTaskBackbone(cfg, bottom_up)


def encoder_stride(cfg: CfgNode) -> int:
    """MODEL.BACKBONE.ENCODER_STRIDE, the stride of res5.

    Raises:
        InputError: unless it is 16 or 32.
    """
    stride = cfg.MODEL.BACKBONE.ENCODER_STRIDE
    if stride not in (16, 32):
        raise InputError(f"MODEL.BACKBONE.ENCODER_STRIDE is {stride}: it must be 16 or 32")
    return stride


def _with_encoder_stride(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    stride, depth = encoder_stride(cfg), cfg.MODEL.RESNETS.DEPTH
    if stride == 16 and depth < 50:
        raise InputError(
            f"MODEL.BACKBONE.ENCODER_STRIDE 16 needs a ResNet of depth 50 or more, not {depth}"
        )
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.RES5_DILATION = 32 // stride
    return cfg


def _build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    shapes: dict[str, ShapeSpec] = {
        name: ShapeSpec(channels=bottom_up.output_shape()[name].channels, stride=stride)
        for name, stride in zip(PYRAMID_INPUTS, (8, 16, 32), strict=True)
    }
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=_GivenFeatures(shapes),
        in_features=PYRAMID_INPUTS,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=_TopBlock(shapes["res5"].channels, channels),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
