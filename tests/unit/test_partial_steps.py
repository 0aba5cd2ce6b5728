"""Steps on images that are labeled for some of the classes, or have a map that is not finished."""

import pytest
import torch
from detectron2.structures import Instances

from mtfixmatch.engine.replay import read_step, replay
from mtfixmatch.tasks.box_target import PartialInstances
from mtfixmatch.utils.labels import IGNORE_LABEL
from tests.support.engine_helpers import build_trainer, make_batch, run_config, run_step
from tests.support.faulty_steps import NARROW, into_loss
from tests.support.partial import OTHERS, PEOPLE, partial_dataset

SUBSETS = (None, PEOPLE, OTHERS, None)  # of the four images; the last one has no labels


@pytest.fixture(scope="module")
def trainer(street_root, tmp_path_factory):
    """With one image for each of SUBSETS; its teacher finds boxes of all classes."""
    output = tmp_path_factory.mktemp("partial")
    opts = ("FIXMATCH.DIAGNOSTICS_PERIOD", 1, "SOLVER.NONFINITE", "skip", *NARROW)
    with partial_dataset(street_root) as dataset:
        trainer = build_trainer(run_config(street_root, output, *opts, *dataset))
    trainer.records = [
        next(r for r in trainer.records if r["annotations"] and r.get("labeled_classes") == subset)
        for subset in SUBSETS
    ]
    return trainer


def pseudo_labels(trainer, step=0):
    """The record of a step, and the pseudo-labels of each task by image."""
    run_step(trainer, make_batch(trainer, "bbbn", step=step), step=step)
    record = trainer._trainer.record
    return record, {
        task.name: [labels.get(task.name) for labels in record.pseudo_labels]
        for task in trainer.tasks
    }


def shares(target):
    """Whether a target has boxes of people, and of the other classes."""
    classes = target.gt_classes.tolist()
    return any(c in PEOPLE for c in classes), any(c in OTHERS for c in classes)


def labeled_of(target):
    return target.labeled.nonzero().flatten().tolist()


def test_the_teacher_labels_what_the_labels_leave(trainer):
    record, pseudo = pseudo_labels(trainer)
    boxes = pseudo["detection"]
    assert boxes[0] is None  # the label is for all classes
    assert [shares(x) for x in boxes[1:]] == [(False, True), (True, False), (True, True)]
    assert [labeled_of(x) for x in boxes[1:3]] == [OTHERS, PEOPLE]
    assert type(boxes[3]) is Instances
    for weak, found in zip(record.weak[:3], pseudo["segmentation"], strict=False):
        label = weak.targets["segmentation"].target
        assert (found[label != IGNORE_LABEL] == IGNORE_LABEL).all()
        assert (found != IGNORE_LABEL).any()


def test_a_partially_labeled_image_has_a_weak_and_a_strong_view(trainer):
    record, _ = pseudo_labels(trainer)
    for weak, strong, labeled, left in zip(
        record.weak[1:3], record.strong[1:3], (PEOPLE, OTHERS), (OTHERS, PEOPLE), strict=True
    ):
        label, pseudo = weak.targets["detection"], strong.targets["detection"]
        assert (label.is_pseudo, pseudo.is_pseudo) == (False, True)
        assert labeled_of(label.target) == labeled and labeled_of(pseudo.target) == left
        assert shares(pseudo.target) == (left is PEOPLE, left is OTHERS)


def test_a_method_that_labels_all_images_labels_all_classes(trainer, monkeypatch):
    monkeypatch.setattr(trainer.method, "unsupervised_on", "all")
    _, pseudo = pseudo_labels(trainer)
    assert [type(x) for x in pseudo["detection"]] == [Instances] * 4
    assert [shares(x) for x in pseudo["detection"]] == [(True, True)] * 4
    assert all((x != IGNORE_LABEL).all() for x in pseudo["segmentation"])


def test_without_a_pseudo_label_there_is_the_supervised_loss_alone(trainer, monkeypatch):
    monkeypatch.setattr(trainer.method, "burn_in_steps", 100)
    record, _ = pseudo_labels(trainer)
    assert record.strong == [None] * 4
    assert record.losses["loss_detection_cls"] > 0
    assert record.losses["loss_detection_cls_unsup"] == 0


def test_a_step_with_such_labels_is_replayed(trainer):
    batch = make_batch(trainer, "bbbn", step=3)
    undo = into_loss(trainer, batch)
    assert run_step(trainer, batch, step=3)["skipped_steps"] == 1
    undo()
    found = read_step(f"{trainer.cfg.OUTPUT_DIR}/bad_step_0000003.pth")
    for old, new in zip(batch, found["batch"], strict=True):
        assert new["partial"] == old["partial"]
        if isinstance(old["targets"]["detection"], PartialInstances):
            labeled = new["targets"]["detection"].labeled
            assert torch.equal(labeled, old["targets"]["detection"].labeled)
    assert replay(found) == ""  # without what spoiled it, all is finite
