import math
import sys

import pytest
import timm
import torch
from detectron2.modeling import build_model

from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import (
    build_trainer,
    copy_state,
    losses_of,
    make_batch,
    run_config,
    run_step,
)
from tests.support.helpers import tiny_config

BOTH = ["detection", "segmentation"]
TINY = {
    "MODEL.BACKBONE.NAME": "build_vit_fpn_backbone",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p5"],
    "MODEL.VIT.EMBED_DIM": 64,
    "MODEL.VIT.DEPTH": 6,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.VIT.IMG_SIZE": 160,
    "MODEL.VIT.WINDOW_SIZE": 3,
    "MODEL.VIT.DROP_PATH": 0.5,
}


@pytest.fixture
def build(street_root):
    def make(*opts, seed=0):
        given = [x for pair in TINY.items() for x in pair]
        cfg = tiny_config(street_root, *given, *opts)
        torch.manual_seed(seed)
        return build_model(cfg)

    return make


def views(count, height=64, width=96):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def backward(model, images, masks, precision=torch.float32):
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
        outputs, zero = model.train()(images, masks)
    (sum(x.square().sum() for raw in outputs.values() for x in raw) + zero).backward()
    return outputs


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_both_heads_train(build, precision, window):
    model = build("MODEL.VIT.WINDOW_SIZE", window)
    windows = [block.window_size for block in model.backbone.net.blocks]
    assert windows == [0, window, 0, 0, window, 0]
    outputs = backward(model, views(2), {name: [True, True] for name in BOTH}, precision)
    assert outputs["segmentation"][0].shape == (2, 19, 16, 24)
    anchors = 9 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1)
    assert outputs["detection"][0].shape == (2, anchors, 8)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (model.backbone.net.patch_embed.proj.weight.grad != 0).any()


def test_images_of_any_size_are_evaluated(build):
    model = build().eval()
    sizes = [(50, 70), (97, 33), (256, 320)]
    for height, width in sizes:
        image = views(1, height, width)[0] * 255
        (result,) = model([{"image": image, "height": height, "width": width}])
        assert result["sem_seg"].shape == (19, height, width)
        assert result["sem_seg"].isfinite().all()
        assert result["instances"].image_size == (height, width)


def test_features_are_what_is_declared(build):
    backbone = build().backbone.eval()
    with torch.no_grad():
        features = backbone(views(1, 128, 160))
    shapes = backbone.output_shape()
    assert list(features) == list(shapes) == ["p2", "p3", "p4", "p5", "p6", "p7"]
    for name, feature in features.items():
        stride = shapes[name].stride
        assert stride == 2 ** int(name[1])
        assert feature.shape == (1, 64, -(-128 // stride), -(-160 // stride))


def test_p6_and_p7_are_built_only_where_a_task_reads_them(build):
    assert build("MODEL.TASKS", ["segmentation"]).backbone.top_block is None
    assert build("MODEL.TASKS", ["detection"]).backbone.top_block is not None


def test_a_rank_without_images_has_gradients_of_zero(build):
    model = build()
    outputs = backward(model, views(0), {name: [] for name in BOTH})
    assert [len(x) for raw in outputs.values() for x in raw] == [0, 0, 0]
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_drop_path_depends_on_the_seed_alone(build):
    """The training step seeds torch, so that a resumed run drops the same blocks."""
    backbone = build().backbone.train()

    def features(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return backbone(views(4))["p4"]

    assert torch.equal(features(1), features(1))
    assert not torch.equal(features(1), features(2))


@pytest.fixture
def whole():
    """timm's network of these sizes, with its classifier."""
    torch.manual_seed(7)
    sizes = {"embed_dim": 64, "depth": 6, "num_heads": 2, "img_size": 160}
    return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


def test_weights_of_a_file(build, whole, tmp_path):
    path = tmp_path / "vit.pth"
    torch.save(whole.state_dict(), path)
    opts = ("MODEL.VIT.WINDOW_SIZE", 0, "MODEL.VIT.WEIGHTS", str(path))
    net = build(*opts).backbone.net.eval()
    images = views(2, 160, 160)
    with torch.no_grad():
        tokens = net.patch_embed(images).flatten(1, 2) + net.pos_embed[:, 1:]
        # Detectron2 has no class token; without it, timm's blocks compute the same.
        expected = whole.blocks(tokens).transpose(1, 2).reshape(2, 64, 10, 10)
        torch.testing.assert_close(net(images)["last_feat"], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(net.pos_embed, whole.pos_embed)


def test_weights_of_the_hub(build, whole, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: whole)
    net = build("MODEL.VIT.WEIGHTS", "hub").backbone.net
    assert torch.equal(net.patch_embed.proj.weight, whole.patch_embed.proj.weight)

    def fail(name, pretrained):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=r"MODEL\.VIT\.NAME vit_small.*hub.*no route$"):
        build("MODEL.VIT.WEIGHTS", "hub")


def test_weights_of_another_size_are_refused(build, whole, tmp_path):
    path = str(tmp_path / "vit.pth")
    torch.save(whole.state_dict(), path)
    opts = ("MODEL.VIT.WEIGHTS", path)
    with pytest.raises(InputError, match=r"pos_embed is \(1, 101, 64\), .* needs \(1, 197, 64\)"):
        build(*opts, "MODEL.VIT.IMG_SIZE", 224)
    with pytest.raises(InputError, match=r"MODEL\.VIT\.WEIGHTS .*lacks 12 .* such as blocks\.6\."):
        build(*opts, "MODEL.VIT.DEPTH", 7)


def test_images_are_normalized_as_timms_weights_were_trained(street_root):
    cfg = tiny_config(street_root, *(x for pair in TINY.items() for x in pair))
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5] * 3


VALUES = [
    ("MODEL.VIT.EMBED_DIM", 63, r"MODEL\.VIT\.EMBED_DIM is 63: .* multiple of 4"),
    ("MODEL.VIT.NUM_HEADS", 5, r"MODEL\.VIT\.NUM_HEADS, 5"),
    ("MODEL.VIT.DEPTH", 0, r"MODEL\.VIT\.DEPTH is 0"),
    ("MODEL.VIT.IMG_SIZE", 100, r"MODEL\.VIT\.IMG_SIZE is 100"),
    ("MODEL.VIT.WINDOW_SIZE", -1, r"MODEL\.VIT\.WINDOW_SIZE is -1"),
    ("MODEL.VIT.DROP_PATH", 1.0, r"MODEL\.VIT\.DROP_PATH is 1\.0"),
    ("MODEL.VIT.NAME", "vit_smal_patch16_224", r"MODEL\.VIT\.NAME .*did you mean"),
    ("MODEL.VIT.WEIGHTS", "hup", r"MODEL\.VIT\.WEIGHTS is 'hup'"),
    ("MODEL.BACKBONE.FREEZE_AT", 2, r"FREEZE_AT is 2"),
    ("MODEL.BACKBONE.ENCODER_STRIDE", 16, r"ENCODER_STRIDE is 16"),
    ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "p5"], r"read res2, .* a ViT gives p2, p3"),
    ("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/x.pkl", r"MODEL\.VIT\.WEIGHTS to where"),
]


@pytest.mark.parametrize(("key", "value", "message"), VALUES)
def test_unfit_values_are_refused(build, key, value, message):
    with pytest.raises(InputError, match=message) as error:
        build(key, value)
    assert "\n" not in str(error.value)


def test_without_timm_the_error_says_what_to_install(build, monkeypatch):
    monkeypatch.setattr("mtfixmatch.modeling.timm_backbone.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'mtfixmatch\[timm\]'"):
        build()


def test_dense_fixmatch_trains_a_step_with_a_vit(street_root, tmp_path):
    opts = [x for pair in TINY.items() for x in pair]
    trainer = build_trainer(run_config(street_root, tmp_path, *opts))
    before = copy_state(trainer._trainer.student.backbone)
    losses = losses_of(run_step(trainer, make_batch(trainer, "bdsn")))
    assert all(math.isfinite(value) for value in losses.values())
    assert losses["loss_detection_cls"] > 0 < losses["loss_segmentation_ce_unsup"]
    after = trainer._trainer.student.backbone.state_dict()
    name = "net.blocks.0.attn.qkv.weight"
    assert not torch.equal(after[name], before[name])
