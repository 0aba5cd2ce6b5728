import os
import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from iopath.common.file_io import HTTPURLHandler

from mtfixmatch.engine.checkpoint import MultiTaskCheckpointer, export_model
from mtfixmatch.tasks.dropout import ImageDropout, set_seeds
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import tiny_config

BOTH = ["detection", "segmentation"]
SUBSETS = [["detection"], ["segmentation"], BOTH, BOTH[::-1]]
R50 = ["MODEL.RESNETS.DEPTH", 50]
PYRAMID = ["p3", "p4", "p5", "p6", "p7"]


@pytest.fixture(scope="module")
def build(street_root):
    cfg = tiny_config(street_root)

    def make(*opts, seed=0):
        own = cfg.clone()
        own.merge_from_list(list(opts))
        torch.manual_seed(seed)
        return build_model(own)

    return make


@pytest.fixture(scope="module")
def model(build):
    """With running statistics that are not those of a new network."""
    model = build()
    with torch.no_grad():
        model.train()(views(4, 128), all_rows(model, 4))
    return model.eval()


@pytest.fixture
def trained(build):
    return build().train()


def views(count=4, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator)


def all_rows(model, count):
    return {name: [True] * count for name in model.heads}


@pytest.mark.parametrize("tasks", SUBSETS, ids="+".join)
def test_every_subset_of_tasks_builds_and_runs(build, tasks):
    model = build("MODEL.TASKS", tasks)
    assert list(model.heads) == tasks
    assert (model.backbone.fpn is None) == (tasks == ["segmentation"])
    outputs, zero = model(views(2), all_rows(model, 2))
    assert float(zero.detach()) == 0 and set(outputs) == set(tasks)
    if "detection" in tasks:
        anchors = 9 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)
        logits, deltas = outputs["detection"]
        assert logits.shape == (2, anchors, 8) and deltas.shape == (2, anchors, 4)
    if "segmentation" in tasks:
        assert [tuple(x.shape) for x in outputs["segmentation"]] == [(2, 19, 16, 16)]


def test_the_heads_read_normalized_rgb(model):
    images = views(2)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        outputs, _ = model(images, all_rows(model, 2))
        features = model.backbone((images - mean) / std)
        for name, found in outputs.items():
            for x, expected in zip(found, model.heads[name](features), strict=True):
                torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)


def test_a_head_runs_only_on_its_rows(model):
    images = views(4)
    masks = {"detection": [True, False, True, True], "segmentation": [False, True, False, False]}
    with torch.no_grad():
        outputs, _ = model(images, masks)
        for name, mask in masks.items():
            alone, _ = model(images[mask], {n: [True] * sum(mask) for n in masks})
            assert outputs[name][0].shape[0] == sum(mask)
            for x, expected in zip(outputs[name], alone[name], strict=True):
                torch.testing.assert_close(x, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("left_out", BOTH)
def test_a_head_without_rows_has_a_gradient_of_zero(trained, left_out):
    masks = {name: [True, True] for name in BOTH if name != left_out}
    outputs, zero = trained(views(2), masks)
    (found,) = outputs
    assert found != left_out and float(zero.detach()) == 0
    (sum(x.square().sum() for x in outputs[found]) + zero).backward()
    assert all(p.grad is not None for p in trained.parameters())
    silent = trained.heads[left_out]
    assert all((p.grad == 0).all() for p in silent.parameters())
    assert any((p.grad != 0).any() for p in trained.heads[found].parameters())
    assert (trained.backbone.bottom_up.stem.conv1.weight.grad != 0).any()
    if left_out == "detection":
        assert all((p.grad == 0).all() for p in trained.backbone.fpn.parameters())


def test_without_any_rows_all_gradients_are_zero(trained):
    outputs, zero = trained(views(2), {})
    assert outputs == {}
    zero.backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in trained.parameters())


def test_a_head_may_run_on_no_image_and_so_may_the_whole_network(trained):
    """As on a rank without labels whose SyncBN others wait for: gradients of 0, not none."""
    before = {name: value.clone() for name, value in trained.named_buffers()}
    outputs, zero = trained(views(0), {name: [] for name in BOTH})
    assert [len(x) for name in BOTH for x in outputs[name]] == [0, 0, 0]
    zero.backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in trained.parameters())
    after = dict(trained.named_buffers())
    same = (n for n in before if not n.endswith("num_batches_tracked"))
    assert all(torch.equal(after[name], before[name]) for name in same)


def test_the_dropout_of_an_image_depends_on_its_seed_alone():
    dropout = ImageDropout(0.5)
    set_seeds(dropout, [1, 2, 3])
    whole = dropout(torch.ones(3, 4, 16, 16))
    assert set(whole.unique().tolist()) == {0, 2} and 0.9 < float(whole.mean()) < 1.1
    assert not torch.equal(whole[0], whole[1])
    set_seeds(dropout, [3])
    assert torch.equal(dropout(torch.ones(1, 4, 16, 16))[0], whole[2])
    assert torch.equal(dropout.eval()(torch.ones(2, 4, 16, 16)), torch.ones(2, 4, 16, 16))


def test_a_copy_of_the_network_has_dropouts_of_its_own(build):
    model = build("MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.5).train()
    teacher = deepcopy(model).eval()
    masks = {"segmentation": [True, True]}
    with torch.no_grad():
        first, again = (teacher(views(2), masks)[0]["segmentation"][0] for _ in range(2))
        drawn = [model(views(2), masks, seeds)[0]["segmentation"][0] for seeds in ([1, 2], [1, 3])]
    assert torch.equal(first, again)
    assert not torch.equal(drawn[0][1], drawn[1][1])


def test_results_have_the_size_of_the_original_images(model):
    images = [torch.randint(0, 256, (3, 50, 70)).byte(), torch.randint(0, 256, (3, 64, 40)).byte()]
    inputs = [{"image": images[0], "height": 100, "width": 141}, {"image": images[1]}]
    first, second = model(inputs)
    for result, size in ((first, (100, 141)), (second, (64, 40))):
        assert set(result) == {"instances", "sem_seg"}
        assert result["sem_seg"].shape == (19, *size)
        assert result["instances"].image_size == size
        found = result["instances"]
        assert len(found.pred_boxes) == len(found.scores) == len(found.pred_classes)


def results_differ(a, b):
    boxes = (x["instances"].pred_boxes.tensor for x in (a, b))
    return max(float((x - y).abs().sum()) for x, y in ((a["sem_seg"], b["sem_seg"]), boxes))


def test_the_result_of_an_image_does_not_depend_on_images_of_other_sizes(model):
    sizes = [(50, 70), (64, 40), (50, 70)]
    images = [torch.randint(0, 256, (3, *size)).byte() for size in sizes]
    together = model([{"image": image} for image in images])
    for image, result, size in zip(images, together, sizes, strict=True):
        (alone,) = model([{"image": image}])
        assert result["sem_seg"].shape[1:] == size
        torch.testing.assert_close(result["sem_seg"], alone["sem_seg"], atol=1e-3, rtol=1e-3)
    (alone,) = model([{"image": images[1]}])
    assert results_differ(together[1], alone) == 0


def test_results_are_those_of_the_raw_outputs(model):
    images = torch.randint(0, 256, (2, 3, 64, 64)).byte()
    with torch.no_grad():
        results = model([{"image": image} for image in images])
        outputs, _ = model(images.float() / 255, all_rows(model, 2))
    logits = torch.nn.functional.interpolate(
        outputs["segmentation"][0], scale_factor=4, mode="bilinear", align_corners=False
    )
    for result, expected in zip(results, logits, strict=True):
        torch.testing.assert_close(result["sem_seg"], expected, atol=1e-3, rtol=1e-3)


def test_raw_outputs_are_float32_under_autocast(model):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, zero = model(views(2), all_rows(model, 2))
    assert {x.dtype for raw in outputs.values() for x in raw} == {torch.float32}
    assert float(zero) == 0


@pytest.mark.parametrize("width", [32, 64, 96])
def test_gradients_of_narrow_images_hold_nothing_that_was_in_memory_before(build, width):
    """A kernel's column that sees only padding learns nothing, in bfloat16 too."""
    pyramid = build("MODEL.TASKS", ["detection"]).backbone.fpn.top_block
    c5 = torch.rand(2, pyramid.p6.in_channels, 4, width // 32)
    for _ in range(5):
        rubbish = [torch.full(x.shape, 1e9, dtype=x.dtype) for x in pyramid.parameters()] * 2
        del rubbish
        pyramid.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            levels = pyramid(c5)
        sum(x.float().square().sum() for x in levels).backward()
        assert all(x.grad.abs().max() < 1e6 for x in pyramid.parameters())
        if width <= 64:  # P7 sees one column, with padding on both sides
            assert (pyramid.p7.weight.grad[..., [0, 2]] == 0).all()
            assert (pyramid.p7.weight.grad[..., 1] != 0).any()


def shapes(features):
    return {name: tuple(x.shape[-2:]) for name, x in features.items()}


def test_encoder_stride_leaves_the_pyramid_alone(build):
    expected = dict(zip(PYRAMID, [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], strict=True))
    expected |= {"res2": (32, 32), "res3": (16, 16)}
    for stride, res4, res5 in ((32, 8, 4), (16, 8, 8), (8, 16, 16)):
        model = build(*R50, "MODEL.BACKBONE.ENCODER_STRIDE", stride).eval()
        with torch.no_grad():
            features = model.backbone(views(1, 128))
            outputs, _ = model(views(1, 128), all_rows(model, 1))
        assert shapes(features) == expected | {"res4": (res4, res4), "res5": (res5, res5)}
        strides = {name: 128 // size[1] for name, size in shapes(features).items()}
        declared = {name: s.stride for name, s in model.backbone.output_shape().items()}
        assert declared == strides
        channels = {name: s.channels for name, s in model.backbone.output_shape().items()}
        assert channels == {name: x.shape[1] for name, x in features.items()}
        assert outputs["detection"][0].shape[1] == 9 * (256 + 64 + 16 + 4 + 1)
        assert outputs["segmentation"][0].shape[-2:] == (32, 32)


def test_a_dilated_stage_computes_what_the_strided_one_does(build):
    """Without a spatial kernel, dilation only adds positions between those of a strided network.

    Each 3x3 kernel keeps its center alone, so that stages differ in stride and in nothing else.
    """
    features = {}
    for stride in (32, 16, 8):
        torch.manual_seed(0)
        model = build(*R50, "MODEL.BACKBONE.ENCODER_STRIDE", stride).eval()
        for module in model.backbone.bottom_up.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                center = module.weight.data[..., 1:2, 1:2].clone()
                module.weight.data.zero_()[..., 1:2, 1:2] = center
        with torch.no_grad():
            features[stride] = model.double().backbone(views(1, 128).double())
    for stride in (16, 8):
        for name in PYRAMID:
            torch.testing.assert_close(features[stride][name], features[32][name])


@pytest.mark.parametrize(("stride", "multi_grid"), [(16, [1, 2, 4]), (8, [1, 1, 1])])
def test_dilations_of_res4_and_res5(build, stride, multi_grid):
    opts = ("MODEL.BACKBONE.ENCODER_STRIDE", stride, "MODEL.RESNETS.RES5_MULTI_GRID", multi_grid)
    stages = build(*R50, *opts).backbone.bottom_up
    dilations = [[block.conv2.dilation[0] for block in x] for x in (stages.res4, stages.res5)]
    assert dilations == [[16 // stride or 1] * 6, [32 // stride * x for x in multi_grid]]


def test_a_multi_grid_needs_a_deep_network(build):
    with pytest.raises(InputError, match=r"RES5_MULTI_GRID \[1, 2, 4\] needs a ResNet of depth 50"):
        build("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES5_MULTI_GRID", [1, 2, 4])


@pytest.mark.parametrize(("stride", "depth"), [(4, 50), (16, 18), (8, 18)])
def test_impossible_encoder_strides_are_refused(build, stride, depth):
    opts = ["MODEL.BACKBONE.ENCODER_STRIDE", stride, "MODEL.RESNETS.DEPTH", depth]
    with pytest.raises(InputError, match=rf"MODEL\.BACKBONE\.ENCODER_STRIDE (is )?{stride}"):
        build(*opts)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", "SyncBN"])
def test_norms_build_and_run_on_a_cpu(build, norm):
    parts = ("RESNETS", "FPN", "RETINANET", "SEM_SEG_HEAD")
    opts = [x for part in parts for x in (f"MODEL.{part}.NORM", norm)]
    model = build(*opts, "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [32])
    outputs, zero = model.train()(views(2), all_rows(model, 2))
    (sum(x.sum() for raw in outputs.values() for x in raw) + zero).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(x.isfinite().all() for raw in outputs.values() for x in raw)
    names = {type(m).__name__ for m in model.backbone.bottom_up.modules()}
    expected = {"BN": "BatchNorm2d", "FrozenBN": "FrozenBatchNorm2d", "GN": "GroupNorm"}
    assert expected.get(norm, "SyncBatchNorm") in " ".join(names)


def test_memory_formats_agree(build, model):
    other = build("MODEL.CHANNELS_LAST", False, seed=1).eval()
    other.load_state_dict(model.state_dict())
    last, first = (m.backbone.bottom_up.res3[0].conv1.weight for m in (model, other))
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert first.is_contiguous()
    with torch.no_grad():
        found, _ = other(views(2), all_rows(other, 2))
        expected, _ = model(views(2), all_rows(model, 2))
    for name in BOTH:
        for x, y in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


def torchvision_resnet(depth):
    torch.manual_seed(7)
    net = getattr(torchvision.models, f"resnet{depth}")().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return net


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_weights_load_completely(build, tmp_path, depth):
    net = torchvision_resnet(depth)
    path = tmp_path / f"resnet{depth}.pth"
    torch.save(net.state_dict(), path)
    model = build("MODEL.RESNETS.DEPTH", depth).eval()
    heads = {k: v.clone() for k, v in model.heads.state_dict().items()}
    MultiTaskCheckpointer(model).resume_or_load(str(path), resume=False)
    images = views(2)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        features = model.backbone(images)
        for i, name in enumerate(["res2", "res3", "res4", "res5"]):
            x = getattr(net, f"layer{i + 1}")(x)
            torch.testing.assert_close(features[name], x, atol=1e-4, rtol=1e-4)
    theirs = [v for k, v in net.state_dict().items() if not k.startswith("fc.")]
    ours = list(model.backbone.bottom_up.state_dict().values())
    total = [sum(float(v.double().sum()) for v in values) for values in (ours, theirs)]
    assert len(ours) == len(theirs) and total[0] == pytest.approx(total[1])
    assert all(torch.equal(v, heads[k]) for k, v in model.heads.state_dict().items())


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_torchvision_weights_by_name(build, tmp_path, monkeypatch, version):
    """The named file is looked for at torchvision's address; here it is in a local folder."""
    net = torchvision_resnet(50)
    weights = getattr(torchvision.models.ResNet50_Weights, f"IMAGENET1K_{version}")
    asked = []

    def fetch(handler, url, **kwargs):
        asked.append(url)
        torch.save(net.state_dict(), tmp_path / os.path.basename(url))
        return str(tmp_path / os.path.basename(url))

    monkeypatch.setattr(HTTPURLHandler, "_get_local_path", fetch)
    model = build("MODEL.RESNETS.DEPTH", 50)
    name = f"torchvision://ResNet50_Weights.IMAGENET1K_{version}"
    MultiTaskCheckpointer(model).resume_or_load(name, resume=False)
    assert set(asked) == {weights.url}
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, net.conv1.weight)


@pytest.mark.parametrize("name", ["ResNet50_Weights.IMAGENET1K_V3", "resnet"])
def test_an_unknown_name_of_torchvision_is_refused(build, name):
    with pytest.raises(InputError, match=f"MODEL.WEIGHTS torchvision://{name}"):
        MultiTaskCheckpointer(build()).load(f"torchvision://{name}")


def test_detectron2_weights_load_completely(build, tmp_path):
    source, model = build(seed=1).backbone.bottom_up, build(seed=2)
    for buffer in source.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    state = {k: v.numpy() for k, v in source.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "R-18.pkl"
    content = {"model": state, "__author__": "somebody", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    assert "stem.conv1.norm.running_mean" in state
    MultiTaskCheckpointer(model).resume_or_load(str(path), resume=False)
    loaded = model.backbone.bottom_up.state_dict()
    assert all(np.array_equal(loaded[name].numpy(), value) for name, value in state.items())


def test_an_exported_model_loads(build, model, tmp_path):
    path = str(tmp_path / "model.pth")
    export_model(model, path, step=7)
    other = build(seed=3)
    MultiTaskCheckpointer(other).load(path)
    expected = model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in other.state_dict().items())
    assert torch.load(path)["step"] == 7


def test_a_checkpoint_of_other_classes_is_refused(build, model, tmp_path):
    path = str(tmp_path / "model.pth")
    state = dict(model.state_dict())
    key = "heads.detection.detector.head.cls_score.weight"
    state[key] = state[key][:27]
    torch.save({"model": state}, path)
    with pytest.raises(InputError, match=r"cls_score\.weight is \(27, 64, 3, 3\)") as error:
        MultiTaskCheckpointer(build()).load(path)
    assert "(72, 64, 3, 3)" in str(error.value) and "other classes" in str(error.value)


CONTENTS = {
    "empty": b"",
    "text": b"<html>404</html>",
    "pickle": pickle.dumps({"model": {"a": 1}})[:-4],
    "list": pickle.dumps([1, 2]),
}


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("content", [*CONTENTS, "truncated"])
def test_a_corrupt_file_is_named(tmp_path, suffix, content):
    path = tmp_path / f"weights.{suffix}"
    torch.save({"model": {"weight": torch.ones(500, 1)}}, path)
    path.write_bytes(CONTENTS.get(content, path.read_bytes()[:1500]))
    with pytest.raises(InputError) as error:
        MultiTaskCheckpointer(torch.nn.Linear(1, 500)).load(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_list_is_no_checkpoint(tmp_path):
    path = str(tmp_path / "list.pth")
    torch.save([1, 2], path)
    with pytest.raises(InputError, match=r"list\.pth cannot be read"):
        MultiTaskCheckpointer(torch.nn.Linear(1, 1)).load(path)


def test_a_missing_file_is_named(tmp_path):
    path = str(tmp_path / "nothing.pth")
    with pytest.raises(InputError, match=r"nothing\.pth does not exist"):
        MultiTaskCheckpointer(torch.nn.Linear(1, 1)).load(path)


def test_no_weights_leave_the_network_as_it_is():
    model = torch.nn.Linear(2, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    MultiTaskCheckpointer(model).load("")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
