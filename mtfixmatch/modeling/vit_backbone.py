"""A plain Vision Transformer under the heads, with ViTDet's simple feature pyramid p2..p7.

Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", 2022, Sec. 3.
"""

from functools import partial

from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import SimpleFeaturePyramid, ViT
from torch import Tensor, nn

from ..tasks.base import in_features
from ..utils.errors import InputError, first_line
from .backbone import TopBlock
from .timm_weights import import_timm, load_state, read_state

PATCH_SIZE = 16  # the pyramid's strides 4, 8, 16 and 32 are those of 16-pixel patches
FEATURES = ["p2", "p3", "p4", "p5", "p6", "p7"]
GLOBAL_BLOCKS = 4  # blocks that attend to the whole image, where the others have windows


def add_vit_config(cfg: CN) -> None:
    """Add the keys of MODEL.VIT, by default those of a ViT-S/16."""
    # For MODEL.BACKBONE.NAME build_vit_fpn_backbone. The heads read p2..p7: set
    # MODEL.SEM_SEG_HEAD.IN_FEATURES to ["p2", "p5"]. MODEL.FPN.OUT_CHANNELS are its channels.
    cfg.MODEL.VIT = CN()
    # Channels of a token; a multiple of 4 and of NUM_HEADS.
    cfg.MODEL.VIT.EMBED_DIM = 384
    # Transformer blocks, and attention heads in each.
    cfg.MODEL.VIT.DEPTH = 12
    cfg.MODEL.VIT.NUM_HEADS = 6
    # Side in pixels of the images that the positional embeddings were trained on, a multiple of
    # 16; they are interpolated for all others.
    cfg.MODEL.VIT.IMG_SIZE = 224
    # Side in tokens of the attention windows; 4 blocks, evenly spaced, attend to the whole image.
    # 0: all do.
    cfg.MODEL.VIT.WINDOW_SIZE = 14
    # Probability to skip the last block (stochastic depth); it grows from 0 at the first. A resumed
    # run draws the same blocks; another number of processes draws others.
    cfg.MODEL.VIT.DROP_PATH = 0.0
    # The network in timm whose weights "hub" loads and whose normalization the images get.
    cfg.MODEL.VIT.NAME = "vit_small_patch16_224"
    # Weights at the start: "" random; "hub": timm's own for NAME, downloaded by timm; or a file
    # .pth, .pt, .safetensors in timm's names. Not read where MODEL.WEIGHTS names a checkpoint.
    cfg.MODEL.VIT.WEIGHTS = ""
    # Set MODEL.PIXEL_MEAN and PIXEL_STD to what timm states for NAME. False once that is done.
    cfg.MODEL.VIT.OWN_NORMALIZATION = True


class ViTPyramid(SimpleFeaturePyramid):
    """Detectron2's simple feature pyramid; the batch may be empty."""

    @property
    def size_divisibility(self) -> int:
        """Images are padded to multiples of this."""
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to features by name, each (N, C, H / stride, W / stride)."""
        if len(images):
            return super().forward(images)
        # Detectron2's attention cannot reshape an empty batch, but DDP needs every gradient.
        features = super().forward(images.new_zeros(1, *images.shape[1:]))
        return {name: feature[:0] for name, feature in features.items()}


@BACKBONE_REGISTRY.register()
def build_vit_fpn_backbone(cfg: CN, input_shape: ShapeSpec) -> ViTPyramid:
    """A ViT of MODEL.VIT with its pyramid; p6 and p7 where one of MODEL.TASKS reads them.

    Raises:
        InputError: for values or weights that cannot be used, or without timm.
    """
    _check(cfg)
    import_timm()  # Detectron2's ViT takes drop path and MLP from it
    net = _build_vit(cfg.MODEL.VIT, input_shape.channels)
    _load_weights(net, cfg)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    reads_top = {"p6", "p7"} & in_features(cfg)
    return ViTPyramid(
        net=net,
        in_feature="last_feat",
        out_channels=channels,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=TopBlock(channels, channels, in_feature="p5") if reads_top else None,
    )


def _check(cfg: CN) -> None:
    node = cfg.MODEL.VIT
    for key in ("EMBED_DIM", "DEPTH", "NUM_HEADS", "IMG_SIZE"):
        if node[key] < 1:
            raise InputError(f"MODEL.VIT.{key} is {node[key]}: it must be at least 1")
    if node.EMBED_DIM % node.NUM_HEADS or node.EMBED_DIM % 4:
        raise InputError(
            f"MODEL.VIT.EMBED_DIM is {node.EMBED_DIM}: it must be a multiple of 4 and of "
            f"MODEL.VIT.NUM_HEADS, {node.NUM_HEADS}"
        )
    if node.IMG_SIZE % PATCH_SIZE:
        raise InputError(f"MODEL.VIT.IMG_SIZE is {node.IMG_SIZE}: it must be a multiple of 16")
    if node.WINDOW_SIZE < 0:
        raise InputError(f"MODEL.VIT.WINDOW_SIZE is {node.WINDOW_SIZE}: it must be 0 or more")
    if not 0 <= node.DROP_PATH < 1:
        raise InputError(f"MODEL.VIT.DROP_PATH is {node.DROP_PATH}: it must be in [0, 1)")
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        raise InputError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}: with a ViT it must be 0"
        )
    if cfg.MODEL.BACKBONE.ENCODER_STRIDE != 32:
        raise InputError(
            f"MODEL.BACKBONE.ENCODER_STRIDE is {cfg.MODEL.BACKBONE.ENCODER_STRIDE}: with a ViT it "
            "must be 32; choose the heads' strides by their IN_FEATURES"
        )
    unknown = sorted(in_features(cfg) - set(FEATURES))
    if unknown:
        raise InputError(
            f"the heads read {', '.join(unknown)}, but a ViT gives {', '.join(FEATURES)}: set "
            'their IN_FEATURES, such as MODEL.SEM_SEG_HEAD.IN_FEATURES ["p2", "p5"]'
        )


def _build_vit(node: CN, in_channels: int) -> ViT:
    attend_globally = {node.DEPTH * (k + 1) // GLOBAL_BLOCKS - 1 for k in range(GLOBAL_BLOCKS)}
    return ViT(
        patch_size=PATCH_SIZE,
        in_chans=in_channels,
        embed_dim=node.EMBED_DIM,
        depth=node.DEPTH,
        num_heads=node.NUM_HEADS,
        drop_path_rate=node.DROP_PATH,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # as timm's and ViTDet's weights were trained
        window_size=node.WINDOW_SIZE,
        window_block_indexes=[i for i in range(node.DEPTH) if i not in attend_globally],
        pretrain_img_size=node.IMG_SIZE,
    )


def _load_weights(net: ViT, cfg: CN) -> None:
    """Load MODEL.VIT.WEIGHTS; Detectron2's ViT and timm's have the same names."""
    node = cfg.MODEL.VIT
    if not node.WEIGHTS or cfg.MODEL.WEIGHTS:
        return
    source = f"MODEL.VIT.WEIGHTS {node.WEIGHTS}"
    if node.WEIGHTS != "hub":
        load_state(net, read_state(node.WEIGHTS, "MODEL.VIT.WEIGHTS"), source)
        return
    source = f"MODEL.VIT.NAME {node.NAME} with {source}"
    try:
        state = import_timm().create_model(node.NAME, pretrained=True).state_dict()
    except Exception as error:  # each model hub raises its own
        raise InputError(f"{source}: timm cannot load it: {first_line(error)}") from None
    load_state(net, state, source)
