import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances

from mtfixmatch.augmentation import geometry
from mtfixmatch.tasks.coco_ap import CocoApEvaluator
from mtfixmatch.tasks.config import set_classes
from mtfixmatch.tasks.dense_head import IGNORED
from mtfixmatch.tasks.detection import Detection, boxes_target
from mtfixmatch.tasks.retinanet import RetinaNetHead
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import tiny_config

SIZE = (32, 32)
# One anchor of 16 x 16 at each of 4 x 4 places, centres at 0, 8, 16, 24: anchor 4 * row + column.
ANCHORS = 16
MIDDLE, MIDDLE_BOX = 10, [8.0, 8.0, 24.0, 24.0]  # anchor 10 is centred at (16, 16)
K = 2
ONE_LEVEL = [
    *("MODEL.RETINANET.IN_FEATURES", ["p3"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16]]),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
]


@pytest.fixture(scope="module")
def cfg(street_root):
    return tiny_config(street_root, *ONE_LEVEL)


@pytest.fixture(scope="module")
def make_head(cfg):
    def make(**keys):
        own = cfg.clone()
        for key, value in keys.items():
            own.TASKS.DETECTION[key] = value
        shapes = {"p3": ShapeSpec(channels=32, stride=8)}
        return RetinaNetHead(own, "detection", ["a", "b"], shapes)

    return make


@pytest.fixture(scope="module")
def make_task(cfg):
    def make(**keys):
        own = cfg.clone()
        for key, value in keys.items():
            own.TASKS.DETECTION[key] = value
        return Detection(own, "detection")

    return make


def target(*boxes, classes=None, ignore=None, size=SIZE):
    count = len(boxes)
    return boxes_target(
        size,
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(classes if classes is not None else [1] * count, dtype=torch.long),
        torch.tensor(ignore if ignore is not None else [False] * count, dtype=torch.bool),
    )


def raw_outputs(logits, deltas=None, requires_grad=False):
    """For one image; logits (R, K)."""
    deltas = torch.zeros(1, ANCHORS, 4) if deltas is None else deltas
    raw = torch.as_tensor(logits, dtype=torch.float32).view(1, ANCHORS, K).clone(), deltas.clone()
    return tuple(x.requires_grad_(requires_grad) for x in raw)


def focal(logit, positive):
    """Focal loss of one logit with alpha .25 and gamma 2, by its definition."""
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return -0.25 * (1 - p) ** 2 * math.log(p)
    return -0.75 * p**2 * math.log(1 - p)


def random_logits(seed=0):
    return np.random.default_rng(seed).normal(0, 2, (ANCHORS, K))


ONE = torch.ones(1)  # weight of one image


def test_anchors_of_the_tests(make_head):
    (anchors,) = make_head().anchors(SIZE)
    assert len(anchors) == ANCHORS
    assert anchors.tensor[MIDDLE].tolist() == MIDDLE_BOX
    assert anchors.tensor[0].tolist() == [-8, -8, 8, 8]
    assert anchors.tensor[7].tolist() == [16, 0, 32, 16]


def test_assignment_by_hand(make_head):
    (assigned,) = make_head().assign([target(MIDDLE_BOX)], [False], SIZE)
    labels, boxes, weights = assigned.tensors
    # The anchors next to it overlap by 8 * 16 / (512 - 128) = 1 / 3: background.
    expected = [K] * ANCHORS
    expected[MIDDLE] = 1
    assert labels.tolist() == expected
    assert boxes[MIDDLE].tolist() == MIDDLE_BOX
    assert assigned.count == 1 and (weights == 1).all()


def test_anchors_between_the_thresholds_are_ignored(make_head):
    # Shifted by 6, a box overlaps its anchor by 10 * 16 / (512 - 160) = .4545: neither.
    # Its best anchor, shifted by 2: 14 * 16 / (512 - 224) = .7778.
    box = [14.0, 8.0, 30.0, 24.0]
    labels = make_head().assign([target(box)], [False], SIZE)[0].tensors[0]
    assert labels[MIDDLE] == IGNORED and labels[MIDDLE + 1] == 1
    assert sorted(labels.tolist()) == sorted([IGNORED, 1] + [K] * 14)


def test_supervised_loss_by_hand(make_head):
    head, logits = make_head(), random_logits()
    deltas = torch.zeros(1, ANCHORS, 4)
    deltas[0, MIDDLE, 0] = 0.25  # the centre moves by .25 * 16 = 4 pixels
    assigned = head.assign([target(MIDDLE_BOX)], [False], SIZE)
    losses = head.losses(raw_outputs(logits, deltas), assigned, SIZE, ONE)
    expected = sum(
        focal(logits[a, c], (a, c) == (MIDDLE, 1)) for a in range(ANCHORS) for c in range(K)
    )
    assert set(losses) == {"cls", "box"}
    assert float(losses["cls"]) == pytest.approx(expected, rel=1e-5)
    # [12, 8, 28, 24] against [8, 8, 24, 24]: IoU = 192 / 320, the hull is the union.
    assert float(losses["box"]) == pytest.approx(1 - 192 / 320, rel=1e-5)


def test_giou_of_boxes_apart_by_hand(make_head):
    head = make_head()
    deltas = torch.zeros(1, ANCHORS, 4)
    deltas[0, MIDDLE] = torch.tensor([1.0, 1.0, math.log(0.5), math.log(0.5)])
    assigned = head.assign([target(MIDDLE_BOX)], [True], SIZE)
    losses = head.losses(raw_outputs(random_logits(), deltas), assigned, SIZE, ONE)
    # [28, 28, 36, 36]: no overlap; hull [8, 8, 36, 36] of 784, union 256 + 64 = 320.
    assert float(losses["box"]) == pytest.approx(1 + (784 - 320) / 784, rel=1e-5)


def test_unsupervised_loss_by_hand(make_head):
    head, logits = make_head(), random_logits(1)
    assigned = head.assign([target(MIDDLE_BOX)], [True], SIZE)
    losses = head.losses(raw_outputs(logits), assigned, SIZE, ONE)
    assert (assigned[0].tensors[0] == IGNORED).sum() == ANCHORS - 1
    expected = focal(logits[MIDDLE, 0], False) + focal(logits[MIDDLE, 1], True)
    assert float(losses["cls"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses["box"]) == pytest.approx(0, abs=1e-6)
    assert assigned[0].count == 1


def test_unsupervised_loss_does_not_see_the_background(make_head):
    head, logits = make_head(), random_logits(2)
    assigned = head.assign([target(MIDDLE_BOX)], [True], SIZE)
    before = head.losses(raw_outputs(logits), assigned, SIZE, ONE)
    other = np.random.default_rng(9).normal(0, 5, logits.shape)
    other[MIDDLE] = logits[MIDDLE]
    raw = raw_outputs(other, requires_grad=True)
    after = head.losses(raw, assigned, SIZE, ONE)
    assert all(torch.equal(before[part], after[part]) for part in before)
    (after["cls"] + after["box"]).backward()
    away = torch.arange(ANCHORS) != MIDDLE
    for x in raw:
        assert (x.grad[0, away] == 0).all()
    assert (raw[0].grad[0, MIDDLE] != 0).all()


def test_supervised_loss_does_see_the_background(make_head):
    head = make_head()
    raw = raw_outputs(random_logits(2), requires_grad=True)
    assigned = head.assign([target(MIDDLE_BOX)], [False], SIZE)
    head.losses(raw, assigned, SIZE, ONE)["cls"].backward()
    assert (raw[0].grad != 0).all()


def test_background_weight_by_hand(make_head):
    head, logits = make_head(BACKGROUND_WEIGHT=0.3), random_logits(3)
    uncertain = [0.0, 0.0, 16.0, 16.0]  # anchor 5
    boxes = target(MIDDLE_BOX, uncertain, ignore=[False, True])
    assigned = head.assign([boxes], [True], SIZE)
    expected = 0.0
    for a in range(ANCHORS):
        for c in range(K):
            weight = 1 if a == MIDDLE else 0 if a == 5 else 0.3
            expected += weight * focal(logits[a, c], (a, c) == (MIDDLE, 1))
    losses = head.losses(raw_outputs(logits), assigned, SIZE, ONE)
    assert float(losses["cls"]) == pytest.approx(expected, rel=1e-5)
    assert assigned[0].count == 1
    (supervised,) = head.assign([target(MIDDLE_BOX)], [False], SIZE)
    assert (supervised.tensors[2] == 1).all()


def test_anchors_under_ignored_boxes_are_ignored(make_head):
    # It covers anchor 5 whole, its neighbours by a half or a quarter.
    boxes = target(MIDDLE_BOX, [0.0, 0.0, 16.0, 16.0], ignore=[False, True])
    labels = make_head().assign([boxes], [False], SIZE)[0].tensors[0]
    expected = [K] * ANCHORS
    expected[MIDDLE], expected[5] = 1, IGNORED
    assert labels.tolist() == expected


def test_an_ignored_box_takes_no_positive_anchor_away(make_head):
    everything = [-50.0, -50.0, 90.0, 90.0]
    boxes = target(MIDDLE_BOX, everything, ignore=[False, True])
    labels = make_head().assign([boxes], [False], SIZE)[0].tensors[0]
    assert labels[MIDDLE] == 1
    assert (labels[torch.arange(ANCHORS) != MIDDLE] == IGNORED).all()


def test_only_ignored_boxes(make_head):
    boxes = target(MIDDLE_BOX, ignore=[True])
    (assigned,) = make_head().assign([boxes], [False], SIZE)
    assert assigned.count == 0
    assert assigned.tensors[0][MIDDLE] == IGNORED
    assert (assigned.tensors[0] == K).sum() == ANCHORS - 1


@pytest.mark.parametrize("unsupervised", [False, True])
def test_empty_targets(make_head, unsupervised):
    head, logits = make_head(), random_logits(4)
    assigned = head.assign([target(classes=[])], [unsupervised], SIZE)
    assert assigned[0].count == 0
    raw = raw_outputs(logits, requires_grad=True)
    losses = head.losses(raw, assigned, SIZE, ONE)
    everything = sum(focal(x, False) for x in logits.flatten())
    assert losses["cls"].item() == pytest.approx(0 if unsupervised else everything, rel=1e-5)
    assert losses["box"].item() == 0
    sum(losses.values()).backward()
    assert all(x.grad.isfinite().all() for x in raw)
    assert (raw[1].grad == 0).all()


def test_no_images(make_head):
    assert make_head().assign([], [], SIZE) == []


def test_confidence_weights_by_hand(make_head):
    """A weight multiplies both terms of the anchors that match the box."""
    head, logits = make_head(), random_logits(5)
    deltas = torch.zeros(1, ANCHORS, 4)
    deltas[0, [MIDDLE, 0], 0] = 0.25
    boxes = target(MIDDLE_BOX, [-8.0, -8, 8, 8])
    boxes.gt_weights = torch.tensor([0.5, 0.25])
    assigned = head.assign([boxes], [True], SIZE)
    losses = head.losses(raw_outputs(logits, deltas), assigned, SIZE, ONE)
    each = [sum(focal(logits[a, c], c == 1) for c in range(K)) for a in (MIDDLE, 0)]
    assert float(losses["cls"]) == pytest.approx(0.5 * each[0] + 0.25 * each[1], rel=1e-5)
    assert float(losses["box"]) == pytest.approx(0.75 * (1 - 192 / 320), rel=1e-5)


@pytest.mark.parametrize(("low_quality", "count"), [(True, 1), (False, 0)])
def test_low_quality_matches_of_pseudo_boxes(make_head, low_quality, count):
    small = target([14.0, 14.0, 18.0, 18.0])  # IoU 16 / 256 with its best anchor
    head = make_head(PSEUDO_LOW_QUALITY=low_quality)
    assert head.assign([small], [True], SIZE)[0].count == count
    assert head.assign([small], [False], SIZE)[0].count == 1


def test_diverged_boxes_give_nan_in_place_of_an_assertion(make_head):
    head = make_head()
    deltas = torch.full((1, ANCHORS, 4), float("nan"))
    assigned = head.assign([target(MIDDLE_BOX)], [False], SIZE)
    losses = head.losses(raw_outputs(random_logits(), deltas), assigned, SIZE, ONE)
    assert math.isnan(losses["box"]) and math.isfinite(losses["cls"])


def detections(make_head, make_task, scores, **keys):
    """Pseudo-boxes from scores of class 0 at anchors 0, 3, 12, 15, which do not overlap."""
    logits = np.full((ANCHORS, K), -20.0)
    for anchor, logit in zip((0, 3, 12, 15), scores, strict=False):
        logits[anchor, 0] = logit
    return pseudo_boxes(make_head, make_task, raw_outputs(logits), **keys)


def pseudo_boxes(make_head, make_task, outputs, **keys):
    """As a method makes them."""
    task, threshold = make_task(**keys), keys.get("THRESHOLD", 0.5)
    predictions = make_head(**keys).predict(outputs, SIZE, task.least_score(threshold))
    (boxes,) = task.pseudo_labels(predictions, threshold, torch.tensor([[0.0, 0, 32, 32]]))
    return boxes


def test_pseudo_boxes_have_scores_over_the_threshold(make_head, make_task):
    # sigmoid(0) is .5 itself, which is not over it.
    found = detections(make_head, make_task, [0.0, 0.01, -0.01, 3.0])
    assert found.gt_boxes.tensor.tolist() == [[16, 16, 32, 32], [16, 0, 32, 8]]
    assert found.gt_classes.tolist() == [0, 0]
    assert found.gt_ignore.tolist() == [False, False]
    assert found.image_size == SIZE


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_no_pseudo_boxes_over_a_threshold_of_more_than_one(make_head, make_task, weight):
    keys = {"THRESHOLD": 1.01, "UNCERTAIN_THRESHOLD": 1.01, "BACKGROUND_WEIGHT": weight}
    assert len(detections(make_head, make_task, [50.0, 50, 50, 50], **keys)) == 0


def test_pseudo_boxes_are_clipped_and_suppressed(make_head, make_task):
    logits = np.full((ANCHORS, K), -20.0)
    logits[MIDDLE, 1], logits[MIDDLE + 1, 1], logits[0, 1] = 2.0, 1.0, 3.0
    deltas = torch.zeros(1, ANCHORS, 4)
    deltas[0, MIDDLE + 1, 0] = -0.4  # overlaps the better one by 14.4 / 17.6
    raw = raw_outputs(logits, deltas)
    found = pseudo_boxes(make_head, make_task, raw)
    assert found.gt_boxes.tensor.tolist() == [[0, 0, 8, 8], MIDDLE_BOX]


def test_a_threshold_for_each_class(make_head, make_task):
    logits = np.full((ANCHORS, K), -20.0)
    logits[0, 0], logits[3, 1], logits[12, 1] = 1.0, 1.0, 3.0  # .73, .73, .95
    task, threshold = make_task(), torch.tensor([0.5, 0.9])
    assert task.least_score(threshold) == 0.5
    predictions = make_head().predict(raw_outputs(logits), SIZE, 0.5)
    (found,) = task.pseudo_labels(predictions, threshold, torch.tensor([[0.0, 0, 32, 32]]))
    assert sorted(found.gt_classes.tolist()) == [0, 1] and not found.gt_ignore.any()


def test_uncertain_boxes_are_ignored_with_a_background_weight(make_head, make_task):
    scores = [3.0, 0.0, -2.0, -2.5]  # .95, .5, .119, .076
    found = detections(make_head, make_task, scores, BACKGROUND_WEIGHT=0.5)
    assert found.gt_ignore.tolist() == [False, True, True]
    assert len(detections(make_head, make_task, scores)) == 1


def test_the_losses_of_images_have_their_weights(make_head):
    """A loss of two images is the weighted sum of those of each."""
    head, targets = make_head(), [target(MIDDLE_BOX), target([14.0, 8.0, 30.0, 24.0])]
    raw = tuple(
        torch.cat(x) for x in zip(*(raw_outputs(random_logits(i)) for i in (1, 2)), strict=True)
    )
    assigned = head.assign(targets, [False, False], SIZE)
    both = head.losses(raw, assigned, SIZE, torch.tensor([0.5, 3.0]))
    alone = [
        head.losses(tuple(x[i : i + 1] for x in raw), assigned[i : i + 1], SIZE, ONE)
        for i in (0, 1)
    ]
    for part, value in both.items():
        expected = 0.5 * float(alone[0][part]) + 3 * float(alone[1][part])
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_group_regions_are_ignored_or_background(make_task):
    box = {"bbox": [8.0, 8.0, 24.0, 24.0], "category_id": 1}
    record = {"height": 32, "width": 32, "image_id": 7}
    record["annotations"] = [box, {**box, "iscrowd": 1}]
    assert make_task().load_target(record).gt_ignore.tolist() == [False, True]
    background = make_task(GROUP_REGIONS="background")
    assert background.load_target(record).gt_ignore.tolist() == [False]
    assert len(record["annotations"]) == 2  # the record itself is as it was


@pytest.mark.parametrize(("groups", "precision"), [("ignore", 1.0), ("background", 0.5)])
def test_detections_in_group_regions_are_ignored_or_wrong(make_task, groups, precision):
    """A better scored detection in a group region halves the precision where that is background."""
    box = {"bbox": [40.0, 0.0, 60.0, 20.0], "category_id": 1}
    group = {"bbox": [0.0, 0.0, 32.0, 32.0], "category_id": 1, "iscrowd": 1}
    record = {"height": 64, "width": 64, "image_id": 7, "annotations": [box, group]}
    instances = Instances((64, 64))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0, 32, 32], [40, 0, 60, 20]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([1, 1])
    evaluator = make_task(GROUP_REGIONS=groups).evaluator([record])
    evaluator.reset()
    evaluator.process([{"image_id": 7}], [{"instances": instances}])
    assert evaluator.evaluate()["mAP"] == pytest.approx(precision)


def test_a_prediction_outside_the_view_is_no_pseudo_box(make_task):
    """Clipped to the border it is a line, of which a rotation would make a box."""
    predictions = Instances((800, 800))
    predictions.pred_boxes = Boxes(torch.tensor([[-60.0, 300, -5, 400], [-60.0, 300, 5, 400]]))
    predictions.scores, predictions.pred_classes = torch.ones(2), torch.ones(2, dtype=torch.long)
    (found,) = make_task().pseudo_labels([predictions], 0.5, torch.zeros(1, 4))
    assert found.gt_boxes.tensor.tolist() == [[0.0, 300.0, 5.0, 400.0]]


def test_agreement_by_hand(make_head):
    head = make_head()
    two = [target(MIDDLE_BOX, [16.0, 0.0, 32.0, 16.0], classes=[1, 0])]
    assigned = head.assign(two, [True], SIZE)
    logits = np.zeros((ANCHORS, K))
    logits[MIDDLE], logits[7] = [0, 1], [0, 1]
    assert head.agreement(raw_outputs(logits), assigned) == 0.5
    nothing = head.assign([target(classes=[])], [True], SIZE)
    assert math.isnan(head.agreement(raw_outputs(logits), nothing))


def test_results_at_the_size_of_the_image(make_head):
    logits = np.full((ANCHORS, K), -20.0)
    logits[MIDDLE, 1] = 2.0
    (found,) = make_head().inference(raw_outputs(logits), SIZE, (32, 32), [(64, 16)])
    assert found.image_size == (64, 16)
    assert found.pred_boxes.tensor.tolist() == [[4, 16, 12, 48]]
    assert found.pred_classes.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-2))])


def test_records_become_targets(make_task):
    record = {
        "height": 10,
        "width": 20,
        "annotations": [
            {"bbox": [1, 2, 3, 4], "category_id": 5, "iscrowd": 0},
            {"bbox": [0, 0, 20, 10], "category_id": 0, "iscrowd": 1},
            {"bbox": [2, 2, 4, 4], "category_id": 1},
        ],
    }
    found = make_task().load_target(record)
    assert found.image_size == (10, 20)
    assert found.gt_boxes.tensor.tolist() == [[1, 2, 3, 4], [0, 0, 20, 10], [2, 2, 4, 4]]
    assert found.gt_classes.tolist() == [5, 0, 1]
    assert found.gt_ignore.tolist() == [False, True, False]


def test_moved_boxes_are_clipped_ignored_or_dropped(make_task):
    boxes = target(
        [0.0, 0, 10, 10],  # 6 of 10 columns stay
        [20.0, 0, 30, 10],  # exactly a quarter stays
        [21.0, 0, 31, 10],  # less than a quarter
        [23.0, 0, 30, 5],  # touches the border from outside
        [40.0, 0, 50, 5],
        [5.0, 5, 6, 6],
        classes=[0, 1, 2, 3, 4, 5],
        ignore=[False, False, False, False, False, True],
    )
    shift = geometry.translation(9.5, 0)
    found = make_task().warp_target(boxes, shift, (32, 32))
    expected = [[9.5, 0, 19.5, 10], [29.5, 0, 32, 10], [30.5, 0, 32, 10], [14.5, 5, 15.5, 6]]
    assert found.gt_boxes.tensor.tolist() == expected
    assert found.gt_classes.tolist() == [0, 1, 2, 5]
    assert found.gt_ignore.tolist() == [False, False, True, True]
    assert found.image_size == (32, 32)
    stricter = make_task(MIN_VISIBLE=0.3).warp_target(boxes, shift, (32, 32))
    assert stricter.gt_ignore.tolist() == [False, True, True, True]


def test_boxes_under_erased_pixels_stay(make_task):
    erased = torch.ones(32, 32, dtype=torch.bool)
    moved = make_task().warp_target(target(MIDDLE_BOX), geometry.identity(), SIZE, erased)
    assert moved.gt_boxes.tensor.tolist() == [MIDDLE_BOX]
    assert moved.gt_ignore.tolist() == [False]


def test_shape_of_moved_boxes_is_a_choice(make_task):
    turn = geometry.about_center(geometry.rotation(30), SIZE)
    half = 8 * (3**0.5 + 1) / 2
    for shape, side in (("box", half), ("ellipse", 8.0)):
        moved = make_task(MOVED_BOX=shape).warp_target(target(MIDDLE_BOX), turn, SIZE)
        expected = [16 - side, 16 - side, 16 + side, 16 + side]
        assert moved.gt_boxes.tensor[0].tolist() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match=r"TASKS\.DETECTION\.MOVED_BOX is 'circle'"):
        make_task(MOVED_BOX="circle")


def test_number_of_classes_comes_from_the_data(cfg):
    own = cfg.clone()
    assert len(own.TASKS.DETECTION.CLASSES) == 8
    with pytest.raises(InputError, match=r"TASKS\.DETECTION\.CLASSES is .*'car'.*has \['a'\]"):
        set_classes(own, "detection", ["a"])
    own.TASKS.DETECTION.CLASSES, own.MODEL.RETINANET.NUM_CLASSES = [], 8
    with pytest.raises(InputError, match=r"MODEL\.RETINANET\.NUM_CLASSES is 8, but .* has 3"):
        set_classes(own, "detection", ["a", "b", "c"])


def test_diagnosis_by_hand(make_task):
    known = target(
        [0.0, 0, 10, 10], [20.0, 0, 30, 10], [0.0, 20, 10, 30], classes=[0, 0, 1],
        ignore=[False, False, True],
    )  # fmt: skip
    pseudo = target(
        [0.0, 0, 10, 9],  # a hit
        [0.0, 1, 10, 10],  # the same again
        [20.0, 0, 30, 10],  # another class
        [0.0, 20, 10, 30],  # an ignored one
        [5.0, 5, 8, 8],  # uncertain: does not count
        classes=[0, 0, 1, 1, 0],
        ignore=[False, False, False, False, True],
    )
    found = make_task().diagnose([pseudo], [known])
    assert found == {"pseudo_boxes_per_image": 4.0, "precision": 1 / 4, "recall": 1 / 2}
    two = make_task().diagnose([pseudo, target(classes=[])], [None, known])
    assert two == {"pseudo_boxes_per_image": 2.0, "recall": 0.0}
    assert make_task().diagnose([], []) == {"pseudo_boxes_per_image": 0.0}


def test_results_as_targets_for_pictures(make_task):
    result = instances([[0.0, 0, 5, 5], [1.0, 1, 2, 2]], [0.5, 0.6], [1, 2])
    found = make_task().result_target({"instances": result}, 0.5)
    assert found.gt_boxes.tensor.tolist() == [[1, 1, 2, 2]]
    assert found.gt_classes.tolist() == [2] and found.gt_ignore.tolist() == [False]


NAMES = ["car", "person", "train"]
BOXES = {"a": [([0, 0, 40, 40], 0, 0), ([50, 50, 90, 60], 1, 0)], "b": [([10, 10, 30, 70], 0, 0)]}


def instances(boxes, scores, classes):
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    found.scores = torch.tensor(scores, dtype=torch.float32)
    found.pred_classes = torch.tensor(classes, dtype=torch.long)
    return found


def records(boxes=BOXES):
    return [
        {
            "image_id": image,
            "annotations": [
                {"bbox": list(box), "category_id": c, "iscrowd": crowd} for box, c, crowd in found
            ],
        }
        for image, found in boxes.items()
    ]


def average_precision(detections, truth=None):
    """Of {image: [(box, score, class)]}."""
    evaluator = CocoApEvaluator(truth or records(), NAMES)
    evaluator.reset()
    for image, found in detections.items():
        columns = [[row[i] for row in found] for i in range(3)]
        evaluator.process([{"image_id": image}], [{"instances": instances(*columns)}])
    return evaluator.evaluate()


def perfect():
    return {i: [(box, 0.9, c) for box, c, crowd in found] for i, found in BOXES.items()}


def test_perfect_detections():
    found = average_precision(perfect())
    assert (found["mAP"], found["AP50"]) == pytest.approx((1, 1))
    assert (found["per_class"]["car"], found["per_class"]["person"]) == pytest.approx((1, 1))
    # It never occurs, and has no part in the mean.
    assert math.isnan(found["per_class"]["train"])


def test_average_precision_by_hand():
    # A false car scored between the two right ones: recall .5 at precision 1, then 2 / 3.
    found = perfect()
    found["a"][0] = ([0, 0, 40, 40], 0.95, 0)
    found["a"].append(([60, 0, 90, 30], 0.93, 0))
    result = average_precision(found)
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert result["per_class"]["car"] == pytest.approx(expected)
    assert result["mAP"] == pytest.approx((expected + 1) / 2)


def test_looser_boxes_count_at_lower_overlaps():
    found = perfect()
    found["a"][1] = ([50, 50, 82.5, 60], 0.9, 1)  # IoU 32.5 / 40 = .8125: 7 of the 10 thresholds
    result = average_precision(found)
    assert result["per_class"]["person"] == pytest.approx(0.7)
    assert result["AP50"] == pytest.approx(1)


def test_detections_of_a_class_that_never_occurs_are_left_out():
    found = perfect()
    found["a"].append(([0, 0, 9, 9], 0.99, 2))
    result = average_precision(found)
    assert result["mAP"] == pytest.approx(1) and math.isnan(result["per_class"]["train"])


def test_unlabeled_images_give_no_false_positives():
    found = perfect() | {"c": [([0, 0, 20, 20], 0.99, 0)]}
    truth = [*records(), {"image_id": "c", "sem_seg_file_name": "c.png"}]
    assert average_precision(found, truth)["mAP"] == pytest.approx(1)
    # Labeled with nothing, it does.
    truth[-1] = {"image_id": "c", "annotations": []}
    assert average_precision(found, truth)["mAP"] < 0.99


def test_an_ignored_box_is_drawn_grey_and_without_a_name(make_task):
    boxes, classes = torch.tensor([[20.0, 20, 60, 60]]), torch.tensor([2])
    image = np.zeros((80, 80, 3), dtype=np.uint8)
    pictures = {}
    for ignored in (True, False):
        target = boxes_target((80, 80), boxes, classes, torch.tensor([ignored]))
        pictures[ignored] = make_task().draw(image, target).astype(int)
    grey = pictures[True]
    assert (grey.max(axis=2) == grey.min(axis=2)).all() and grey[40, 18:23].max() > 60
    assert grey[26:54, 26:54].max() == 0  # no name inside
    assert (pictures[False].max(axis=2) - pictures[False].min(axis=2)).max() > 30


def test_crowds_are_ignored():
    with_crowd = {"a": [*BOXES["a"], ([60, 0, 100, 40], 0, 1)], "b": BOXES["b"]}
    found = perfect()
    found["a"] += [([62, 2, 80, 20], 0.99, 0), ([80, 20, 99, 39], 0.98, 0)]
    assert average_precision(found, records(with_crowd))["mAP"] == pytest.approx(1)
    assert average_precision(found)["mAP"] < 0.99


def test_no_detections():
    found = average_precision({"a": [], "b": []})
    assert (found["mAP"], found["AP50"], found["per_class"]["car"]) == (0, 0, 0)
    assert math.isnan(found["per_class"]["train"])


def test_reset_forgets():
    evaluator = CocoApEvaluator(records(), NAMES)
    wrong = instances([[0, 0, 5, 5]], [0.9], [0])
    evaluator.process([{"image_id": "a"}], [{"instances": wrong}])
    evaluator.reset()
    for image, found in perfect().items():
        columns = [[row[i] for row in found] for i in range(3)]
        evaluator.process([{"image_id": image}], [{"instances": instances(*columns)}])
    assert evaluator.evaluate()["mAP"] == pytest.approx(1)
