"""A shared backbone with features res2..res5 and, where a head reads it, a pyramid p3..p7."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.projects.deeplab import build_resnet_deeplab_backbone
from torch import Tensor, nn

from ..tasks.config import in_features
from ..utils.errors import InputError, check_choice

PYRAMID_STRIDES = {"res3": 8, "res4": 16, "res5": 32}  # inputs of the pyramid


class _PrecomputedFeatures(nn.Identity, Backbone):
    """Bottom-up network of an FPN whose input is features instead of images."""

    def __init__(self, shapes: dict[str, ShapeSpec]):
        super().__init__()
        self.shapes = shapes

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.shapes


class TopBlock(LastLevelP6P7):
    """P6 and P7 with correct gradients for narrow images too.

    In bfloat16 on a CPU, PyTorch 2.15 leaves part of the weight gradient of a strided convolution
    uninitialized where the input is one column wide.
    """

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Compute features at strides 64 and 128 from those at stride 32, (N, C, H, W)."""
        # The size comes last: an exported network, in full precision, must not depend on it.
        is_mixed = c5.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not is_mixed or c5.shape[-1] > 2:
            return super().forward(c5)
        with torch.autocast("cpu", enabled=False):
            return super().forward(c5.to(self.p6.weight.dtype))


class MultiTaskBackbone(Backbone):
    """A bottom-up network with its own features and those of a feature pyramid on top."""

    size_divisibility = 32  # images are padded to multiples of this

    @configurable
    def __init__(self, *, bottom_up: Backbone, fpn: FPN | None):
        """Join a network of res2..res5, at strides up to 8, 16 or 32, and a pyramid on them."""
        super().__init__()
        self.bottom_up = bottom_up
        self.fpn = fpn

    @classmethod
    def from_config(cls, cfg: CfgNode, bottom_up: Backbone) -> dict:
        """Build a pyramid if one of MODEL.TASKS reads it."""
        reads_pyramid = in_features(cfg) - set(bottom_up.output_shape())
        fpn = _build_fpn(cfg, bottom_up) if reads_pyramid else None
        return {"bottom_up": bottom_up, "fpn": fpn}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Shapes of the features by name."""
        return self.bottom_up.output_shape() | (self.fpn.output_shape() if self.fpn else {})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to features by name, each (N, C, H / stride, W / stride)."""
        features = self.bottom_up(images)
        if self.fpn is None:
            return features
        pyramid_inputs, shapes = {}, self.bottom_up.output_shape()
        for name, stride in PYRAMID_STRIDES.items():
            # A dilated stage has the positions of a strided one at every second or fourth row and
            # column.
            step = stride // shapes[name].stride
            x = features[name]
            pyramid_inputs[name] = F.max_pool2d(x, kernel_size=1, stride=step) if step > 1 else x
        return features | self.fpn(pyramid_inputs)


@BACKBONE_REGISTRY.register()
def build_multitask_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MultiTaskBackbone:
    """Build ResNet-18/34/50/101/152, with a pyramid if one of MODEL.TASKS reads it.

    Raises:
        InputError: a key of DeepLab's ResNets is set for ResNet-18 or 34.
    """
    cfg = cfg.clone()
    cfg.defrost()
    node, stride = cfg.MODEL.RESNETS, encoder_stride(cfg)
    if node.DEPTH >= 50:
        node.RES4_DILATION, node.RES5_DILATION = max(16 // stride, 1), 32 // stride
        return MultiTaskBackbone(cfg, build_resnet_deeplab_backbone(cfg, input_shape))
    for key, value, is_valid in (
        ("BACKBONE.ENCODER_STRIDE", stride, stride == 32),
        ("RESNETS.RES5_MULTI_GRID", node.RES5_MULTI_GRID, set(node.RES5_MULTI_GRID) == {1}),
    ):
        if not is_valid:
            needed = f"a ResNet of depth 50 or more, not {node.DEPTH}"
            raise InputError(f"MODEL.{key} {value} needs {needed}")
    node.RES2_OUT_CHANNELS, node.RES5_DILATION = 64, 1
    return MultiTaskBackbone(cfg, build_resnet_backbone(cfg, input_shape))


def encoder_stride(cfg: CfgNode) -> int:
    """Return MODEL.BACKBONE.ENCODER_STRIDE, the stride of res5, or raise an InputError."""
    stride = cfg.MODEL.BACKBONE.ENCODER_STRIDE
    check_choice("MODEL.BACKBONE.ENCODER_STRIDE", stride, (8, 16, 32))
    return stride


def _build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    shapes, channels = bottom_up.output_shape(), cfg.MODEL.FPN.OUT_CHANNELS
    shapes = {
        name: ShapeSpec(channels=shapes[name].channels, stride=stride)
        for name, stride in PYRAMID_STRIDES.items()
    }
    return FPN(
        bottom_up=_PrecomputedFeatures(shapes),
        in_features=list(PYRAMID_STRIDES),
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=TopBlock(shapes["res5"].channels, channels),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
