"""An image that is labeled for some of the classes says nothing of the others."""

import io
import math
import pickle

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mtfixmatch.augmentation import geometry
from mtfixmatch.data import loader
from mtfixmatch.data.datasets import get_records
from mtfixmatch.data.loader import eval_records, train_records
from mtfixmatch.data.mapper import EvalMapper, TrainMapper
from mtfixmatch.data.record_table import RecordTable
from mtfixmatch.data.samplers import Draw
from mtfixmatch.engine.evaluation import evaluate_losses
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.box_target import PartialInstances, boxes_target
from mtfixmatch.tasks.detection import Detection
from mtfixmatch.tasks.fcos import FCOSHead
from mtfixmatch.tasks.retinanet import RetinaNetHead
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import tiny_config
from tests.support.partial import OTHERS, PEOPLE, partial_dataset, partial_record

CAR, PERSON = 0, 1
SIZE = (8, 24)
# Three anchors of 8 x 8 in a row, centered as the locations of FCOS are.
LEFT, MIDDLE, RIGHT = [0.0, 0, 8, 8], [8.0, 0, 16, 8], [16.0, 0, 24, 8]
THREE_ANCHORS = (
    *("MODEL.RETINANET.IN_FEATURES", ["p3"], "MODEL.FCOS.IN_FEATURES", ["p3"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8]], "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
    *("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5, "MODEL.FCOS.CENTER_SAMPLING_RADIUS", 0.4),
)
LOGITS = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.2]])  # (3 anchors, car and person)
ONE = torch.ones(1)  # weight of one image
HEADS = [RetinaNetHead, FCOSHead]


@pytest.fixture(scope="module")
def cfg(street_root):
    own = tiny_config(street_root, *THREE_ANCHORS)
    own.TASKS.DETECTION.CLASSES = ["car", "person"]
    return own


@pytest.fixture(scope="module")
def task(cfg):
    return Detection(cfg, "detection")


def make_head(cfg, head_class=RetinaNetHead, **keys):
    own = cfg.clone()
    for key, value in keys.items():
        own.TASKS.DETECTION[key] = value
    shapes = {"p3": ShapeSpec(channels=64, stride=8)}
    return head_class(own, "detection", ["car", "person"], shapes)


def target(boxes, classes, labeled=None, ignore=None):
    mask = None if labeled is None else torch.tensor([i in labeled for i in (CAR, PERSON)])
    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    flags = torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool)
    return boxes_target(SIZE, corners, torch.tensor(classes, dtype=torch.long), flags, mask)


def outputs(head, images=1):
    """LOGITS for each image, and boxes; for FCOS a centerness as well."""
    others = (torch.zeros(images, 3, width) for width in head.output_widths()[1:])
    return (LOGITS.repeat(images, 1, 1), *others)


def focal(logit, positive):
    """Focal loss of one logit with alpha .25 and gamma 2, by its definition."""
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return -0.25 * (1 - p) ** 2 * math.log(p)
    return -0.75 * p**2 * math.log(1 - p)


# Losses


@pytest.mark.parametrize("head_class", HEADS)
def test_focal_loss_of_the_labeled_class_by_hand(cfg, head_class):
    head = make_head(cfg, head_class)
    assigned = head.assign([target([MIDDLE], [PERSON], labeled=[PERSON])], [False], SIZE)
    assert assigned[0].tensors[0].tolist() == [2, PERSON, 2] and assigned[0].count == 1
    losses = head.losses(outputs(head), assigned, SIZE, ONE)
    expected = focal(-1.0, False) + focal(0.3, True) + focal(1.2, False)
    assert float(losses["cls"]) == pytest.approx(expected, rel=1e-5)
    # The losses of boxes know no classes.
    whole = head.assign([target([MIDDLE], [PERSON])], [False], SIZE)
    of_whole = head.losses(outputs(head), whole, SIZE, ONE)
    assert all(losses[part] == of_whole[part] for part in losses if part != "cls")
    cars = focal(0.5, False) + focal(2.0, False) + focal(-0.7, False)
    assert float(of_whole["cls"]) == pytest.approx(expected + cars, rel=1e-5)


@pytest.mark.parametrize("head_class", HEADS)
def test_a_car_in_an_image_labeled_for_people_is_never_pushed_down(cfg, task, head_class):
    head = make_head(cfg, head_class)
    label = target([MIDDLE], [PERSON], labeled=[PERSON])  # the car on the right has no label
    logits = [x.requires_grad_() for x in outputs(head)]
    supervised = head.losses(logits, head.assign([label], [False], SIZE), SIZE, ONE)
    sum(supervised.values()).backward()
    assert (logits[0].grad[0, :, CAR] == 0).all()
    assert (logits[0].grad[0, :, PERSON] != 0).all()
    # The teacher's box raises its score, and no other one.
    pseudo = task.restrict_pseudo_label(target([MIDDLE, RIGHT], [PERSON, CAR]), label)
    logits = [x.requires_grad_() for x in outputs(head)]
    unsupervised = head.losses(logits, head.assign([pseudo], [True], SIZE), SIZE, ONE)
    sum(unsupervised.values()).backward()
    raised = logits[0].grad[0] < 0
    assert raised.nonzero().tolist() == [[2, CAR]] and (logits[0].grad[0][~raised] == 0).all()


def test_background_of_pseudo_labels_is_that_of_the_other_classes(cfg, task):
    head = make_head(cfg, BACKGROUND_WEIGHT=0.5)
    label = target([], [], labeled=[PERSON])
    pseudo = task.restrict_pseudo_label(target([RIGHT], [CAR]), label)
    losses = head.losses(outputs(head), head.assign([pseudo], [True], SIZE), SIZE, ONE)
    expected = 0.5 * focal(0.5, False) + 0.5 * focal(2.0, False) + focal(-0.7, True)
    assert float(losses["cls"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("head_class", HEADS)
def test_a_batch_of_images_with_different_labels_is_their_sum(cfg, head_class):
    head = make_head(cfg, head_class)
    targets = [
        target([LEFT], [CAR]),
        target([LEFT], [CAR], labeled=[CAR]),
        target([], [], labeled=[PERSON]),
    ]
    weights = torch.tensor([0.5, 3.0, 2.0])
    assigned = head.assign(targets, [False] * 3, SIZE)
    found = head.losses(outputs(head, 3), assigned, SIZE, weights)
    alone = [head.losses(outputs(head), assigned[i : i + 1], SIZE, ONE) for i in range(3)]
    for part, value in found.items():
        expected = sum(w * float(x[part]) for w, x in zip(weights.tolist(), alone, strict=True))
        assert float(value) == pytest.approx(expected, rel=1e-5)
    # Without such an image there is nothing to multiply with.
    assert head._labeled_classes(assigned[:1]) is None
    assert head._labeled_classes(assigned).tolist() == [[True] * 2, [True, False], [False, True]]


# Targets


def test_the_classes_of_a_target_survive_all_that_is_done_with_it(task):
    label = target([LEFT, MIDDLE], [CAR, CAR], labeled=[CAR])
    flipped = task.warp_target(label, geometry.horizontal_flip(24), SIZE)
    assert flipped.gt_boxes.tensor.tolist() == [RIGHT, MIDDLE]
    buffer = io.BytesIO()
    torch.save(label, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals(list(task.target_types)):
        loaded = torch.load(buffer, weights_only=True)
    left = label[label.gt_boxes.tensor[:, 0] < 4]
    copies = [flipped, left, label[0], label.to("cpu"), pickle.loads(pickle.dumps(label)), loaded]
    assert [len(x) for x in copies] == [2, 1, 1, 2, 2, 2]
    for copy in copies:
        assert isinstance(copy, PartialInstances) and copy.labeled.tolist() == [True, False]
    outside = task.warp_target(label, geometry.translation(100, 0), SIZE)
    assert len(outside) == 0 and outside.labeled.tolist() == [True, False]


def test_a_pseudo_label_is_restricted_to_the_other_classes(task):
    label = target([], [], labeled=[PERSON])
    pseudo = target(
        [LEFT, MIDDLE, RIGHT, LEFT],
        [PERSON, CAR, PERSON, CAR],
        ignore=[False, False, True, True],
    )
    pseudo.gt_weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = task.restrict_pseudo_label(pseudo, label)
    assert found.labeled.tolist() == [True, False]
    assert found.gt_boxes.tensor.tolist() == [MIDDLE, LEFT]
    assert found.gt_ignore.tolist() == [False, True]
    assert found.gt_weights.tolist() == pytest.approx([0.2, 0.4])
    assert len(pseudo) == 4 and type(pseudo) is Instances


def test_pseudo_boxes_are_measured_on_classes_that_both_labels_are_for(task):
    pseudo = target([LEFT, MIDDLE, RIGHT], [CAR, PERSON, PERSON])
    label = target([MIDDLE], [PERSON], labeled=[PERSON])
    found = task.diagnose([pseudo], [label])
    assert found == {"pseudo_boxes_per_image": 3.0, "precision": 1 / 2, "recall": 1.0}
    # Nothing is known of what the teacher adds to the label itself.
    restricted = task.restrict_pseudo_label(pseudo, label)
    assert task.diagnose([restricted], [label]) == {"pseudo_boxes_per_image": 1.0}


def test_images_of_each_class_are_counted(task):
    targets = [target([], []), target([], [], labeled=[CAR]), target([], [], labeled=[CAR])]
    assert task.count_images(targets) == [3, 1]
    assert task.count_images([]) == [0, 0]


# Records


def record(labeled=None, classes=(), key="labeled_classes"):
    boxes = [{"bbox": LEFT, "category_id": c} for c in classes]
    found = {"file_name": "a.png", "image_id": "a", "height": 8, "width": 24, "annotations": boxes}
    return found if labeled is None else found | {key: labeled}


def test_records_become_targets(task):
    partial = task.load_target(record([PERSON], [PERSON]))
    assert partial.labeled.tolist() == [False, True] and partial.gt_classes.tolist() == [PERSON]
    assert task.is_partial(record([PERSON])) and task.labeled_classes(record([CAR])) == [CAR]
    for whole in (record(classes=[CAR]), record([CAR, PERSON], [CAR])):
        assert type(task.load_target(whole)) is Instances
        assert not task.is_partial(whole) and task.labeled_classes(whole) is None


def test_another_task_has_its_own_key(cfg):
    own = cfg.clone()
    own.TASKS.SIGNS = own.TASKS.DETECTION.clone()
    signs = Detection(own, "signs")
    assert signs.labeled_classes(record([CAR], key="signs_labeled_classes")) == [CAR]
    assert signs.labeled_classes(record([CAR])) is None


@pytest.mark.parametrize("value", [[], [2], [-1], ["car"], (0,), 0, "0", [[0]]])
def test_values_that_cannot_be_used_name_the_record(task, value):
    with pytest.raises(InputError) as error:
        task.is_partial(record(value))
    expected = f"the record of a.png: labeled_classes is {value!r}, expected a list of class ids"
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


def test_a_box_of_a_class_without_labels_is_an_error(task):
    with pytest.raises(InputError, match=r"a\.png: labeled_classes is \[0\], but .* of class 1"):
        task.load_target(record([CAR], [CAR, PERSON]))


def test_statistics_have_the_images_of_each_class(task):
    records = [record([CAR], [CAR]), record([PERSON]), record(classes=[PERSON, PERSON]), record()]
    found = task.statistics(records, scan=None)
    assert found.images == {"car": 3, "person": 3} and found.counts == {"car": 1, "person": 2}
    assert task.statistics([*records[1:2], record([PERSON])], scan=None).images["car"] == 0
    assert task.statistics(records[2:], scan=None).images == {}


def test_a_dataset_of_ones_own_is_trained_and_checked(street_root, caplog, monkeypatch):
    with partial_dataset(street_root) as opts, caplog.at_level("INFO"):
        cfg = tiny_config(street_root, *opts)
        tasks = build_tasks(cfg)
        records = train_records(cfg, tasks)
        assert "Of these labels, partial: {'detection': 10, 'segmentation': 16}" in caplog.text
        items = [TrainMapper(cfg, tasks)(r, Draw(0, 0, 0)) for r in records[:3]]
        both = ["detection", "segmentation"]
        assert [item["partial"] for item in items] == [["segmentation"], both, both]
        masks = [item["targets"]["detection"].labeled.nonzero().flatten() for item in items[1:]]
        assert [mask.tolist() for mask in masks] == [PEOPLE, OTHERS]
        faulty = [*get_records(cfg.DATASETS.TRAIN)]
        faulty[1]["labeled_classes"] = [9]
        monkeypatch.setattr(loader, "get_records", lambda names: RecordTable.of(faulty))
        with pytest.raises(InputError, match=r"labeled_classes is \[9\], expected a list of class"):
            train_records(cfg, tasks)


def test_a_hidden_label_keeps_its_classes(street_root):
    """It is not there for the training, and still says which classes it is for."""
    with partial_dataset(street_root) as opts:
        cfg = tiny_config(street_root, *opts, "TASKS.DETECTION.LABELS", 1)
        tasks = build_tasks(cfg)
        hidden = [r for r in train_records(cfg, tasks) if "annotations" not in r]
        record = next(r for r in hidden if "labeled_classes" in r)
        item = TrainMapper(cfg, tasks)(record, Draw(0, 0, 0))
    assert item["targets"]["detection"] is None and "detection" not in item["partial"]
    labeled = item["hidden_targets"]["detection"].labeled.nonzero().flatten().tolist()
    assert labeled == record["labeled_classes"]


# Evaluation: of two images, one labeled for cars, the other for people

TRUTH = {"a": ([[0.0, 0, 40, 40]], [CAR]), "b": ([[10.0, 10, 30, 70], [50.0, 0, 90, 30]], [1, 1])}
LABELED = {"a": [CAR], "b": [PERSON]}
FOUND = {  # boxes, scores, classes
    "a": (
        [[0.0, 0, 40, 36], [50.0, 50, 70, 70], [5.0, 5, 25, 65], [60.0, 0, 99, 30]],
        [0.8, 0.9, 0.99, 0.95],
        [CAR, CAR, PERSON, PERSON],
    ),
    "b": (
        [[10.0, 10, 30, 66], [0.0, 0, 9, 9], [50.0, 0, 84, 30], [40.0, 40, 90, 90]],
        [0.7, 0.6, 0.5, 0.99],
        [PERSON, PERSON, PERSON, CAR],
    ),
}


def validation(labeled=LABELED):
    return [
        {
            **{"image_id": image, "file_name": f"{image}.png", "labeled_classes": labeled[image]},
            "annotations": [{"bbox": x, "category_id": c} for x, c in zip(*boxes, strict=True)],
        }
        for image, boxes in TRUTH.items()
    ]


def evaluate(task, records):
    evaluator = task.evaluator(records)
    for image, (boxes, scores, classes) in FOUND.items():
        instances = Instances((100, 100), pred_boxes=Boxes(torch.tensor(boxes)))
        instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes)
        evaluator.process([{"image_id": image}], [{"instances": instances}])
    return evaluator.evaluate()


def stock_ap(image, category):
    """COCO's own evaluation of a class on the one image that is labeled for it."""
    boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in TRUTH[image][0]]
    common = {"image_id": 1, "category_id": category}
    truth, found = COCO(), COCO()
    truth.dataset = {"images": [{"id": 1}], "categories": [{"id": category}]}
    truth.dataset["annotations"] = [
        {**common, "id": i, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(boxes, start=1)
    ]
    truth.createIndex()
    rows = zip(*FOUND[image], strict=True)
    found = truth.loadRes(
        [
            {**common, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
            for (x0, y0, x1, y1), score, c in rows
            if c == category
        ]
    )
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, -1].mean()


def test_an_image_counts_for_the_classes_that_it_is_labeled_for(task):
    found = evaluate(task, validation())
    expected = {"car": stock_ap("a", CAR), "person": stock_ap("b", PERSON)}
    assert found["per_class"] == pytest.approx(expected)
    assert found["mAP"] == pytest.approx(np.mean(list(expected.values())))
    assert found["detectron2"]["AP"] == pytest.approx(100 * found["mAP"])
    # By hand: a false car before the right one, of IoU .9, for 9 of 10 thresholds.
    assert found["per_class"]["car"] == pytest.approx(0.9 * 0.5)
    # Labeled for both, each image has false positives.
    whole = evaluate(task, validation({"a": [0, 1], "b": [0, 1]}))
    assert all(whole["per_class"][name] < value for name, value in expected.items())


def test_a_class_that_no_image_is_labeled_for_has_no_figure(task):
    records = [r for r in validation() if r["image_id"] == "a"]
    found = evaluate(task, records)
    assert math.isnan(found["per_class"]["person"])
    assert found["mAP"] == found["per_class"]["car"] > 0


@torch.no_grad()
def test_evaluated_losses_are_those_of_the_labeled_classes(street_root):
    cfg = tiny_config(street_root, "MODEL.TASKS", ["detection"])
    (task,) = tasks = build_tasks(cfg)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    record = eval_records(cfg, tasks)[0]
    item = EvalMapper()(record)
    raw, _ = model(item["image"][None] / 255, {"detection": [True]})
    p = raw["detection"][0][0].double().sigmoid()
    for classes in (PEOPLE, OTHERS):
        labels = partial_record(record, classes)
        target = task.load_target(labels)
        (assigned,) = model.head("detection").assign([target], [False], target.image_size)
        rows = assigned.tensors[0]
        is_class = rows[:, None] == torch.arange(p.shape[1])
        losses = torch.where(is_class, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
        expected = losses[rows >= 0][:, classes].sum() / assigned.count.clamp(min=1)
        found = evaluate_losses(model, [[item]], [labels], tasks, 1)["detection"]["losses"]
        assert found["cls"] == pytest.approx(float(expected), rel=1e-4)
