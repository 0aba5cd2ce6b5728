"""A plain Vision Transformer under the heads, with ViTDet's simple feature pyramid p2..p7.

Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", 2022, Sec. 3.
"""

from functools import partial

from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import SimpleFeaturePyramid, ViT
from torch import Tensor, nn

from ..tasks.config import in_features
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

    size_divisibility = 32  # images are padded to multiples of this

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) to features by name, each (N, C, H / stride, W / stride)."""
        if len(images):
            return super().forward(images)
        # Detectron2's attention cannot reshape an empty batch, but DDP needs every gradient.
        features = super().forward(images.new_zeros(1, *images.shape[1:]))
        return {name: feature[:0] for name, feature in features.items()}


@BACKBONE_REGISTRY.register()
def build_vit_fpn_backbone(cfg: CN, input_shape: ShapeSpec) -> ViTPyramid:
    """Build the ViT of MODEL.VIT with its pyramid; p6 and p7 if one of MODEL.TASKS reads them."""
    _check(cfg)
    import_timm()  # Detectron2's ViT takes drop path and MLP from it
    net = _build_vit(cfg.MODEL.VIT, input_shape.channels)
    if cfg.MODEL.VIT.WEIGHTS and not cfg.MODEL.WEIGHTS:
        _load_weights(net, cfg.MODEL.VIT)
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
    vit, backbone = cfg.MODEL.VIT, cfg.MODEL.BACKBONE
    heads, stride = vit.NUM_HEADS, backbone.ENCODER_STRIDE
    divisible = vit.EMBED_DIM % 4 == 0 and vit.EMBED_DIM % max(heads, 1) == 0
    multiple = f"a multiple of 4 and of MODEL.VIT.NUM_HEADS, {heads}"
    for_heads = "32 with a ViT; choose the heads' strides by their IN_FEATURES"
    counts = ("EMBED_DIM", "DEPTH", "NUM_HEADS", "IMG_SIZE")
    for key, value, is_valid, expected in (
        *((f"VIT.{x}", vit[x], vit[x] >= 1, "at least 1") for x in counts),
        ("VIT.EMBED_DIM", vit.EMBED_DIM, divisible, multiple),
        ("VIT.IMG_SIZE", vit.IMG_SIZE, vit.IMG_SIZE % PATCH_SIZE == 0, "a multiple of 16"),
        ("VIT.WINDOW_SIZE", vit.WINDOW_SIZE, vit.WINDOW_SIZE >= 0, "0 or more"),
        ("VIT.DROP_PATH", vit.DROP_PATH, 0 <= vit.DROP_PATH < 1, "in [0, 1)"),
        ("BACKBONE.FREEZE_AT", backbone.FREEZE_AT, backbone.FREEZE_AT == 0, "0 with a ViT"),
        ("BACKBONE.ENCODER_STRIDE", stride, stride == 32, for_heads),
    ):
        if not is_valid:
            raise InputError(f"MODEL.{key} is {value}: it must be {expected}")
    if unknown := sorted(in_features(cfg) - set(FEATURES)):
        hint = 'set their IN_FEATURES, such as MODEL.SEM_SEG_HEAD.IN_FEATURES ["p2", "p5"]'
        read, given = ", ".join(unknown), ", ".join(FEATURES)
        raise InputError(f"the heads read {read}, but a ViT gives {given}: {hint}")


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


def _load_weights(net: ViT, node: CN) -> None:
    """Load MODEL.VIT.WEIGHTS; Detectron2's ViT and timm's have the same names."""
    source = f"MODEL.VIT.WEIGHTS {node.WEIGHTS}"
    if node.WEIGHTS == "hub":
        source = f"MODEL.VIT.NAME {node.NAME} with {source}"
        try:
            state = import_timm().create_model(node.NAME, pretrained=True).state_dict()
        except Exception as error:  # each model hub raises its own
            raise InputError(f"{source}: timm cannot load it: {first_line(error)}") from None
    else:
        state = read_state(node.WEIGHTS, "MODEL.VIT.WEIGHTS")
    load_state(net, state, source)
