"""What a GPU does with many images at once is what Detectron2 does with each."""

import fvcore.nn
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou

from mtfixmatch.tasks.box_target import boxes_target
from mtfixmatch.tasks.dense_boxes import decode_boxes, giou_loss
from mtfixmatch.tasks.dense_head import DETECTION_HEAD_REGISTRY, IGNORED
from tests.support.helpers import tiny_config
from tests.support.pretend_cuda import pretended_cuda

SIZE, K, DEVICE = (64, 96), 3, "cuda:0"
LEVELS = ["p3", "p4", "p5", "p6", "p7"]


@pytest.fixture(scope="module")
def cfg(street_root):
    return tiny_config(street_root)


def make_head(cfg: CfgNode, name: str, **keys):
    cfg = cfg.clone()
    for key, value in keys.items():
        cfg.TASKS.DETECTION[key] = value
    shapes = {f: ShapeSpec(channels=64, stride=8 * 2**i) for i, f in enumerate(LEVELS)}
    torch.manual_seed(0)
    return DETECTION_HEAD_REGISTRY.get(name)(cfg, "detection", list("abc"), shapes).eval()


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([96.0, 64.0])
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 1], dim=1)


def targets() -> list[Instances]:
    """Images with several boxes, weights, ignored boxes among others or alone, and none."""
    made = []
    for seed, ignore in enumerate(([0, 0, 1, 0, 1], [0, 0], [], [1, 1], [1, 0, 0])):
        count = len(ignore)
        classes = torch.arange(count) % K
        ignored = torch.tensor(ignore, dtype=torch.bool)
        made.append(boxes_target(SIZE, random_boxes(count, seed), classes, ignored))
    made[1].gt_weights = torch.tensor([0.25, 0.5])
    return made


def plain_retinanet(head, target: Instances, matcher: Matcher, background: float):
    """Assign as Detectron2's RetinaNet, one image and box after the other."""
    anchors = Boxes.cat(head.anchors(SIZE))
    objects, regions = target[~target.gt_ignore], target[target.gt_ignore]
    index, match = matcher(pairwise_iou(objects.gt_boxes, anchors))
    labels = torch.full_like(index, K)
    boxes, weights = torch.zeros_like(anchors.tensor), torch.full((len(index),), background)
    if len(objects):
        labels, boxes = objects.gt_classes[index], objects.gt_boxes.tensor[index]
        labels[match == 0], labels[match == -1] = K, IGNORED
        box_weights = objects.gt_weights[index] if objects.has("gt_weights") else 1.0
        weights = torch.where(match == 1, box_weights, weights)
    for region in regions.gt_boxes if len(regions) else ():
        covered = pairwise_ioa(Boxes(region[None]), anchors)[0] > 0.5
        labels[(labels == K) & covered] = IGNORED
    if background == 0:
        labels[labels == K] = IGNORED
    return labels, boxes, weights


@pytest.mark.parametrize(("is_pseudo", "background"), [(False, 1.0), (True, 0.0), (True, 0.5)])
def test_assignment_is_that_of_detectron2(cfg, is_pseudo, background):
    keys = {"BACKGROUND_WEIGHT": background} if is_pseudo else {}
    head = make_head(cfg, "RetinaNetHead", **keys, PSEUDO_LOW_QUALITY=False)
    matcher = head.pseudo_matcher if is_pseudo else head.detector.anchor_matcher
    found = head.assign(targets(), [is_pseudo] * 5, SIZE)
    positives = 0
    for target, assigned in zip(targets(), found, strict=True):
        expected = plain_retinanet(head, target, matcher, background)
        assert all(map(torch.equal, assigned.tensors, expected))
        assert assigned.count == ((expected[0] >= 0) & (expected[0] < K)).sum()
        positives += int(assigned.count)
    assert positives > 10


@pytest.mark.parametrize("name", ["RetinaNetHead", "FCOSHead"])
def test_a_gpu_assigns_all_images_at_once_as_a_cpu_does_one_by_one(cfg, name):
    head, kinds = make_head(cfg, name), [False, False, False, True, True]
    expected = head.assign(targets(), kinds, SIZE)
    with pretended_cuda():
        found = head.to(DEVICE).assign(targets(), kinds, SIZE)
        for one, other in zip(found, expected, strict=True):
            pairs = zip((*one.tensors, one.count), (*other.tensors, other.count), strict=True)
            assert all(x.is_cuda and torch.equal(x.cpu(), y) for x, y in pairs)


@pytest.mark.parametrize("name", ["RetinaNetHead", "FCOSHead"])
def test_a_gpu_computes_the_losses_and_predictions_of_a_cpu(cfg, name):
    head, weights = make_head(cfg, name), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    torch.manual_seed(1)
    count = sum(map(len, head.anchors(SIZE)))
    outputs = tuple(torch.randn(5, count, width) for width in head.output_widths())
    assigned = head.assign(targets(), [False] * 5, SIZE)
    losses = {k: float(v) for k, v in head.losses(outputs, assigned, SIZE, weights).items()}
    expected = head.predict(outputs, SIZE, 0.7)
    assert sum(map(len, expected)) > 10
    with pretended_cuda():
        head, weights = head.to(DEVICE), weights.to(DEVICE)
        outputs = tuple(x.to(DEVICE) for x in outputs)
        assigned = head.assign(targets(), [False] * 5, SIZE)
        found = {k: float(v) for k, v in head.losses(outputs, assigned, SIZE, weights).items()}
        predicted = head.predict(outputs, SIZE, 0.7)
    assert found == pytest.approx(losses, rel=1e-5)
    for one, other in zip(predicted, expected, strict=True):
        assert one.pred_classes.tolist() == other.pred_classes.tolist()
        assert torch.equal(one.scores, other.scores)
        assert torch.allclose(one.pred_boxes.tensor, other.pred_boxes.tensor, rtol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_boxes_are_decoded_as_by_detectron2_to_the_last_bit(weights):
    transform, anchors = Box2BoxTransform(weights), random_boxes(200, 0)
    results = []
    for decode in (
        lambda x: decode_boxes(transform, x, anchors),
        lambda x: transform.apply_deltas(x, anchors),
    ):
        torch.manual_seed(0)
        deltas = (3 * torch.randn(200, 4)).requires_grad_()  # some beyond the clamp
        boxes = decode(deltas)
        (boxes * torch.linspace(-1, 1, 4)).sum().backward()
        results.append((boxes.detach(), deltas.grad))
    assert all(map(torch.equal, *results))


def test_giou_is_fvcores_to_the_last_bit():
    a, b = random_boxes(200, 0), random_boxes(200, 1)
    b[:50] = a[:50]
    b[50:60] += 1000  # apart from each other
    results = []
    for function in (giou_loss, fvcore.nn.giou_loss):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        loss = function(x, y)
        loss.sum().backward()
        results.append((loss.detach(), x.grad, y.grad))
    assert all(map(torch.equal, *results))
    assert giou_loss(a[:1] * float("inf"), b[:1]).isnan()
