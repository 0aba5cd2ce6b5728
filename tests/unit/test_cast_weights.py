"""A teacher whose weights are cast once a pass gives the bits of one that autocast casts."""

from collections import Counter

import pytest
import torch
from detectron2.modeling import build_model
from torch.utils._python_dispatch import TorchDispatchMode

from mtfixmatch.engine.ema import build_teacher
from mtfixmatch.modeling.cast_weights import CastWeights
from tests.support.helpers import tiny_config

VIT = (
    *("MODEL.BACKBONE.NAME", "build_vit_fpn_backbone", "MODEL.VIT.NAME", "vit_tiny_patch16_224"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p5"], "MODEL.VIT.WEIGHTS", ""),
)
TIMM = (
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "mobilenetv2_050"),
    *("MODEL.TIMM.WEIGHTS", ""),
)
NETWORKS = {
    "ResNet": (),
    "GN, a wide TopBlock": ("MODEL.RESNETS.NORM", "GN", "INPUT.TRAIN_SIZE", (64, 128)),
    "FCOS": ("TASKS.DETECTION.HEAD", "FCOSHead"),
    "timm": TIMM,
    "ViT": VIT,
}


class Casts(TorchDispatchMode):
    """Counts the casts to bfloat16."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.dtype is torch.bfloat16:
            self.count += 1
        return result


def build(street_root, *opts):
    torch.manual_seed(0)
    cfg = tiny_config(street_root, *opts)
    return build_teacher(build_model(cfg)), cfg.INPUT.TRAIN_SIZE


@torch.no_grad()
def run(teacher, size, weights=None):
    """Outputs of a pass in bfloat16, and the number of casts to it."""
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    masks = {"detection": [True, True], "segmentation": [True, False]}
    weights = weights or CastWeights(teacher, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), weights.applied(), Casts() as casts:
        outputs, _ = teacher(images, masks)
    return [x for task in outputs.values() for x in task], casts.count


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_are_the_same_with_fewer_casts(street_root, name):
    teacher, size = build(street_root, *NETWORKS[name])
    expected, casts = run(teacher, size)
    before = dict(teacher.named_parameters())
    outputs, fewer = run(teacher, size, CastWeights(teacher, torch.bfloat16))
    assert same(outputs, expected)
    assert fewer < casts - 40
    after = dict(teacher.named_parameters())
    assert after.keys() == before.keys() and all(after[x] is before[x] for x in after)
    assert all(x.dtype is torch.float32 for x in after.values())


def test_the_weights_are_those_of_now(street_root):
    teacher, size = build(street_root)
    weights = CastWeights(teacher, torch.bfloat16)
    first, _ = run(teacher, size, weights)
    changes = {
        "an average": lambda: torch._foreach_mul_(list(teacher.parameters()), 1.25),
        "a checkpoint": lambda: teacher.load_state_dict(build(street_root)[0].state_dict()),
        "another layer": lambda: setattr(
            teacher.head("segmentation").head, "predictor", torch.nn.Conv2d(32, 19, 1)
        ),
    }
    for change in changes.values():
        change()
        outputs, _ = run(teacher, size, weights)
        assert same(outputs, run(teacher, size)[0]) and not same(outputs, first)
        first = outputs


def test_without_autocast_and_after_an_error_the_weights_stay(street_root):
    teacher, _ = build(street_root)
    before = Counter(map(id, teacher.parameters()))
    weights = CastWeights(teacher, torch.bfloat16)
    with weights.applied():
        assert Counter(map(id, teacher.parameters())) == before
    raises = pytest.raises(ValueError, match="planned")
    with torch.autocast("cpu", torch.bfloat16), raises, weights.applied():
        assert Counter(map(id, teacher.parameters())) != before
        raise ValueError("planned")
    assert Counter(map(id, teacher.parameters())) == before
