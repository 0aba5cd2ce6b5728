"""Boxes of a network as labels: what is right, and the three states."""

import json

import numpy as np
import pytest

from mtfixmatch.formats.coco_writer import ImageBoxes, coco_boxes
from mtfixmatch.tasks.auto_labels import HUMAN, LabeledImage
from tests.support.auto_labels import (
    BOX_CLASSES,
    SIZE,
    annotation,
    make_tasks,
    record,
    result,
    threshold,
)

CAT, DOG, COW = range(3)
NETWORK = "net@0123456789ab"


@pytest.fixture
def task():
    return make_tasks()["detection"]


def measure(task, annotations, *boxes, **labels):
    meter = task.score_meter()
    meter.add(record(annotations=annotations, **labels), result(*boxes))
    return meter.scores()


def rows(scores):
    return sorted(zip(scores.scores.tolist(), scores.right.tolist(), strict=True), reverse=True)


def test_a_label_makes_one_box_right_the_best(task):
    labels = [annotation(CAT, 0, 0, 10, 10), annotation(CAT, 20, 0, 30, 10)]
    boxes = [
        (CAT, 0.5, 0, 0, 10, 10),  # a second one on the first label
        (CAT, 0.75, 0, 0, 10, 9),  # IoU .9
        (CAT, 0.25, 22, 0, 30, 5),  # IoU .4
        (DOG, 0.875, 20, 0, 30, 10),  # of another class
    ]
    cat, dog, cow = measure(task, labels, *boxes)
    assert rows(cat) == [(0.75, 1), (0.5, 0), (0.25, 0)]
    assert rows(dog) == [(0.875, 0)]
    assert (cat.whole, cat.support, dog.whole, rows(cow)) == (2, 2, 0, [])
    assert cat.reached.tolist() == cat.right.tolist() and cat.total.tolist() == [1, 1, 1]


def test_a_box_with_two_labels_takes_the_nearer(task):
    labels = [annotation(CAT, 0, 0, 10, 10), annotation(CAT, 0, 0, 10, 8)]
    cat = measure(task, labels, (CAT, 0.9, 0, 0, 10, 8), (CAT, 0.8, 0, 0, 10, 8))[CAT]
    assert cat.right.tolist() == [1, 1]


def test_a_box_in_an_ignored_region_does_not_count(task):
    labels = [annotation(CAT, 0, 0, 20, 20, crowd=1), annotation(CAT, 0, 0, 10, 10)]
    boxes = [
        (CAT, 0.75, 0, 0, 10, 10),  # right, although it is inside the region
        (CAT, 0.5, 10, 10, 20, 20),  # inside
        (CAT, 0.25, 15, 0, 30, 10),  # a third is inside
        (DOG, 0.5, 10, 10, 20, 20),  # inside a region of another class
    ]
    cat, dog, _ = measure(task, labels, *boxes)
    assert rows(cat) == [(0.75, 1), (0.25, 0)] and cat.whole == 1
    assert rows(dog) == [(0.5, 0)]


def test_an_image_counts_for_the_classes_it_is_labeled_for(task):
    labels = [annotation(CAT, 0, 0, 10, 10)]
    boxes = [(CAT, 0.5, 0, 0, 10, 10), (DOG, 0.75, 0, 0, 10, 10)]
    cat, dog, _ = measure(task, labels, *boxes, labeled_classes=[CAT])
    assert rows(cat) == [(0.5, 1)] and rows(dog) == []


def test_an_image_without_objects_counts(task):
    cat, *_ = measure(task, [], (CAT, 0.5, 0, 0, 10, 10))
    assert rows(cat) == [(0.5, 0)] and cat.whole == 0


def labeler(task, tmp_path, thresholds=None):
    limits = thresholds or [threshold(0.75, 0.5), threshold(0.9, 0.25), None]
    return task.auto_labeler(limits, str(tmp_path), NETWORK)


def test_three_states(task, tmp_path):
    boxes = [
        (CAT, 0.875, 0, 0, 10, 10),
        (CAT, 0.75, 1, 0, 10, 10),  # the threshold itself is enough
        (CAT, 0.625, 2, 0, 10, 10),
        (CAT, 0.5, 3, 0, 10, 10),
        (CAT, 0.4375, 4, 0, 10, 10),  # below the lower threshold
        (DOG, 0.875, 5, 0, 10, 10),
        (COW, 0.96875, 6, 0, 10, 10),  # of a class without a threshold
    ]
    label = labeler(task, tmp_path).label(record(), result(*boxes), "a.jpg")
    states = [(x["bbox"][0], x["category_id"], x["iscrowd"]) for x in label.boxes]
    assert states == [(0, CAT, 0), (1, CAT, 0), (2, CAT, 1), (3, CAT, 1), (5, DOG, 1)]
    assert {x["provenance"] for x in label.boxes} == {NETWORK}
    assert [x["score"] for x in label.boxes] == [0.875, 0.75, 0.625, 0.5, 0.875]
    # Nothing is said about the class that is left out.
    assert label.keys == {"annotations": label.boxes, "labeled_classes": [CAT, DOG]}
    assert [tuple(x) for x in label.review] == [("cat", 0.5, 0.5), ("dog", 1.0, 0.875)]
    target = task.load_target(record(**label.keys))
    assert target.gt_ignore.tolist() == [False, False, True, True, True]


def test_an_image_without_boxes_is_labeled_as_empty(task, tmp_path):
    label = labeler(task, tmp_path).label(record(), result(), "a.jpg")
    assert label.keys == {"annotations": [], "labeled_classes": [CAT, DOG]}
    everything = [threshold(0.5, 0.5)] * 3
    label = labeler(task, tmp_path, everything).label(record(), result(), "a.jpg")
    assert label.keys == {"annotations": []}


def test_without_thresholds_nothing_is_labeled(task, tmp_path):
    box = (CAT, 1.0, 0, 0, 10, 10)
    label = labeler(task, tmp_path, [None] * 3).label(record(), result(box), "a.jpg")
    assert (label.keys, label.boxes) == ({}, None)
    assert labeler(task, tmp_path).label(record(), None, "a.jpg").keys == {}


def test_boxes_are_clipped_and_have_an_area(task, tmp_path):
    boxes = [(CAT, 0.9, -5, -5, 40, 10), (CAT, 0.9, 30, 0, 40, 10)]
    label = labeler(task, tmp_path).label(record(), result(*boxes), "a.jpg")
    assert [x["bbox"] for x in label.boxes] == [[0, 0, SIZE[1], 10]]


def test_a_human_label_wins(task, tmp_path):
    human = [annotation(CAT, 0.1, 0.2, 10.3, 10), annotation(COW, 1, 1, 5, 5, crowd=1)]
    box = (CAT, 1.0, 20, 0, 30, 10)
    label = labeler(task, tmp_path).label(record(annotations=human), result(box), "a.jpg")
    assert label.boxes == [{**x, "provenance": HUMAN} for x in human]
    assert label.keys == {"annotations": label.boxes} and label.review == []
    label = labeler(task, tmp_path).label(record(annotations=[]), result(box), "a.jpg")
    assert label.keys == {"annotations": []}


def test_a_partial_label_gets_the_other_classes(task, tmp_path):
    human = [annotation(CAT, 0, 0, 10, 10)]
    boxes = [(CAT, 1.0, 20, 0, 30, 10), (DOG, 1.0, 1, 1, 9, 9), (COW, 1.0, 1, 1, 9, 9)]
    own = record(annotations=human, labeled_classes=[CAT])
    label = labeler(task, tmp_path).label(own, result(*boxes), "a.jpg")
    assert [(x["category_id"], x["provenance"]) for x in label.boxes] == [
        (CAT, HUMAN),
        (DOG, NETWORK),
    ]
    assert label.keys["labeled_classes"] == [CAT, DOG] and label.num_classes == 2


def image(name, label):
    return LabeledImage(
        record=record(name), path=f"/data/{name}", name=name, size=SIZE, labels={"detection": label}
    )


def test_a_file_for_each_set_of_classes(task, tmp_path):
    make = labeler(task, tmp_path)
    human = [annotation(COW, 0.1, 0.2, 10.3, 10)]
    images = [
        image("a.jpg", make.label(record(), result((CAT, 1.0, 0, 0, 10, 10)), "a.jpg")),
        image("b.jpg", make.label(record(annotations=human), None, "b.jpg")),
        image("c.jpg", make.label(record(), None, "c.jpg")),  # without a label
    ]
    written = make.write(images)
    assert written.files == ["detection.json", "detection_2.json"]
    whole, part = (json.loads((tmp_path / x).read_text()) for x in written.files)
    assert [x["file_name"] for x in whole["images"]] == ["/data/b.jpg"]
    assert [(x["id"], x["name"]) for x in whole["categories"]] == list(enumerate(BOX_CLASSES, 1))
    assert [x["name"] for x in part["categories"]] == ["cat", "dog"]
    (box,) = part["annotations"]
    assert (box["score"], box["provenance"], box["iscrowd"]) == (1.0, NETWORK, 0)
    (box,) = whole["annotations"]
    assert box["provenance"] == HUMAN and "score" not in box and box["category_id"] == COW + 1
    x, y, width, height = box["bbox"]
    assert [x, y, x + width, y + height] == human[0]["bbox"]
    assert written.options["THING_CLASSES"] == BOX_CLASSES


def test_corners_that_were_made_of_widths_survive_to_the_last_bit():
    starts, lengths = np.random.default_rng(0).uniform(0, 1024, (2, 2000))
    starts, lengths = np.append(starts, starts.round(1)), np.append(lengths, lengths.round(1))
    corners = np.stack([starts, starts, starts + lengths, starts + lengths], axis=1).tolist()
    boxes = [annotation(CAT, *box) for box in corners]
    content = json.loads(coco_boxes([ImageBoxes("a.jpg", SIZE, boxes)], {CAT: "cat"}))
    widths = [x["bbox"] for x in content["annotations"]]
    assert [[x, y, x + w, y + h] for x, y, w, h in widths] == corners


def test_regions_are_ignored_in_the_next_training(tmp_path):
    task = make_tasks(GROUP_REGIONS="background")["detection"]
    assert labeler(task, tmp_path).write([]).config == {"GROUP_REGIONS": "ignore"}
