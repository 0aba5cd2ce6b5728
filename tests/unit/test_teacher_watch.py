"""A teacher that goes wrong is warned of once, and a checkpoint from before it stays."""

import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mtfixmatch.engine import teacher_watch as watch_module
from mtfixmatch.engine.samples import Sample, SampleTarget
from mtfixmatch.engine.teacher_watch import TeacherWatch
from mtfixmatch.tasks import build_tasks
from tests.support.engine_helpers import build_trainer, run_config
from tests.support.faulty_steps import NARROW
from tests.support.helpers import tiny_config

KEYS = ("loss_detection_cls", "loss_detection_box")
HEALTHY = {"model_0000001.pth": 0}


class Fake:
    """A task whose targets are lists of classes."""

    name, loss_parts, tuning_keys = "detection", ("cls", "box"), ("THRESHOLD", "LOSS_WEIGHT")
    unit, class_names, fills_pixels = "objects", ["car", "person", "rider"], False

    def count_classes(self, targets):
        return [sum(target.count(c) for target in targets) for c in range(3)]

    def count_images(self, targets):
        return [len(targets)] * 3


def losses(supervised, unsupervised):
    return {k: supervised for k in KEYS} | {f"{k}_unsup": unsupervised for k in KEYS}


def record(pseudo, labels):
    """Of a batch of as many images with pseudo-labels as in `pseudo`, and with labels."""
    image = torch.zeros(3, 1, 1)
    targets = [{"detection": SampleTarget(label, is_pseudo=False)} for label in labels]
    return SimpleNamespace(
        weak=[Sample(image, 0, x) for x in targets] or [Sample(image, 0)],
        pseudo_labels=[{"detection": target} for target in pseudo],
    )


def watch(
    values, records=lambda step: None, steps=150, burn_in=0, task=None, saves=HEALTHY, cut=None
):
    """Run TeacherWatch over the losses of each step; return its warnings as (step, text).

    `saves` are checkpoints by name, with the step after which they're written; at the step `cut`
    the run is interrupted and goes on from its state.
    """
    told = []
    hook = TeacherWatch()
    with EventStorage() as storage, pytest.MonkeyPatch.context() as patch:
        tell = lambda text, *args: told.append((storage.iter, text % args))  # noqa: E731
        patch.setattr(watch_module.logger, "warning", tell)
        trainer = SimpleNamespace(storage=storage, tasks=[task or Fake()])
        trainer.cfg = SimpleNamespace(OUTPUT_DIR="out")
        for step in range(steps):
            if step == cut:
                state = json.loads(json.dumps(hook.state_dict()))
                hook = TeacherWatch()
                hook.load_state_dict(state)
            hook.trainer = trainer
            weight = lambda task, step: float(step >= burn_in)  # noqa: E731
            trainer.method, trainer.iter = SimpleNamespace(unsupervised_weight=weight), step
            trainer.step_record = records(step)
            storage.put_scalars(**values(step))
            hook.after_step()
            for name in [name for name, saved in saves.items() if saved == step]:
                hook.note_checkpoint(name)
            storage.step()
    return told


def test_an_unsupervised_loss_of_zero_is_warned_of_once():
    ((step, text),) = watch(lambda step: losses(1.0, 0.0 if step else 0.5))
    assert step == 100
    assert "The teacher of detection may have gone wrong" in text
    assert "its unsupervised loss has been 0 for 100 steps" in text
    assert "Look at TASKS.DETECTION.THRESHOLD, TASKS.DETECTION.LOSS_WEIGHT;" in text
    assert text.endswith("out/model_0000001.pth is from before it and is kept")
    assert watch(lambda step: losses(1.0, 0.0), steps=99) == []
    assert watch(lambda step: losses(1.0, 0.1 if step == 60 else 0.0)) == []
    assert watch(lambda step: losses(1.0, 0.0), burn_in=51) == []
    assert len(watch(lambda step: losses(1.0, 0.0), burn_in=50)) == 1


def test_a_warning_comes_again_after_a_recovery_only():
    told = watch(lambda step: losses(1.0, 0.5 if step in (0, 120) else 0.0), steps=330)
    assert [step for step, _ in told] == [100, 220]


def test_an_unsupervised_loss_that_runs_away_is_warned_of_once():
    ((step, text),) = watch(lambda step: losses(1.0, 11.0))
    assert step == 38  # 20 steps for the first medians, 20 medians in a row
    assert "its unsupervised loss (22) is over 10 times the supervised one (2)" in text
    assert watch(lambda step: losses(1.0, 9.0)) == []
    assert watch(lambda step: losses(1.0, 50.0 if step % 20 == 0 else 1.0)) == []
    assert watch(lambda step: dict.fromkeys(KEYS, 1.0)) == []


def test_a_skipped_step_is_no_look():
    values = lambda step: {} if step == 50 else losses(1.0, 0.0)  # noqa: E731
    ((step, _),) = watch(values)
    assert step == 100


def fine(step):
    return losses(1.0, 0.5)


MIXED, CARS = [[0, 1, 2], [0, 1]], [[0, 0, 0], [0, 0]]


def test_pseudo_labels_of_one_class_are_warned_of_once():
    sick = lambda step: record(CARS if step >= 5 else MIXED, MIXED)  # noqa: E731
    ((step, text),) = watch(fine, sick, steps=60)
    # 10 measurements are of one class at step 14, and 10 in a row are so at step 23.
    assert step == 23
    assert "100.0% of its objects are car, in the labels 40.0%" in text
    assert "model_0000001.pth is from before it" in text
    assert watch(fine, lambda step: record(MIXED, MIXED), steps=60) == []
    # 1 in 40 is another class: 97.5 %.
    rare = lambda step: record([[0] * 4 + [1]] + [[0] * 5] * 7, MIXED)  # noqa: E731
    assert watch(fine, rare, steps=60) == []
    # What labels are, pseudo-labels may be.
    assert watch(fine, lambda step: record(CARS, CARS), steps=60) == []
    assert watch(fine, lambda step: record(CARS, []), steps=60) == []
    # 10 boxes say too little.
    assert watch(fine, lambda step: record([[0]], [[0], [1]]), steps=60) == []
    assert [step for step, _ in watch(fine, sick, steps=60, burn_in=41)] == [59]
    assert watch(fine, sick, steps=60, burn_in=42) == []


def test_a_number_that_runs_away_is_warned_of_once():
    ((step, text),) = watch(fine, lambda step: record([[0, 1] * 4], [[0, 1]]), steps=60)
    assert step == 18
    assert "it has 8 objects per image, a labeled image has 2" in text
    assert watch(fine, lambda step: record([[0, 1] * 3], [[0, 1]]), steps=60) == []
    # The same number in twice as many images.
    assert watch(fine, lambda step: record([[0, 1] * 4, []], [[0, 1]]), steps=60) == []
    flat = Fake()
    flat.fills_pixels = True
    assert watch(fine, lambda s: record([[0, 1] * 4], [[0, 1]]), steps=60, task=flat) == []


class PartialFake(Fake):
    """A task whose targets are a list of classes, and the classes that it is for."""

    def count_classes(self, targets):
        return super().count_classes([objects for objects, _ in targets])

    def count_images(self, targets):
        return [sum(c in covered for _, covered in targets) for c in range(3)]


def test_only_classes_that_labels_and_pseudo_labels_are_for_are_compared():
    """Of 61 images, 60 are labeled for people, and one for cars; the teacher labels the rest."""
    labels = [([1, 1], [1])] * 60 + [([0, 0], [0])]

    def warnings(cars, riders=()):
        pseudo = [(cars, [0, 2])] * 60 + [([1, 1, *riders], [1, 2])]
        return watch(fine, lambda step: record(pseudo, labels), steps=60, task=PartialFake())

    # 120 of the 122 pseudo-boxes are cars, and 120 of the labels people: two per image for them.
    assert warnings([0, 0]) == []
    # No label says how many riders there are.
    assert warnings([0, 0], [2] * 600) == []
    ((_, text),) = warnings([0] * 11)
    assert "it has 13 objects per image, a labeled image has 4" in text


def test_measurements_of_an_older_checkpoint_are_dropped():
    hook = TeacherWatch()
    old = [[5.0, 0.0, 0.0, 2.0, 2.0, 1.0, 2.0, 2.0]] * 10  # with the numbers of all images
    hook.load_state_dict({"streaks": {}, "counts": {"detection": old}, "healthy": ""})
    hook._watch_labels(Fake(), record(CARS, MIXED))
    assert hook._counts["detection"] == [[5, 0, 0, 2, 2, 1, 2, 2, 2, 2, 2, 2]]


def test_a_task_without_classes_is_left_alone():
    plain = Fake()
    plain.count_classes = plain.count_images = lambda targets: []
    assert watch(fine, lambda step: record(CARS, MIXED), steps=60, task=plain) == []


def test_a_checkpoint_in_the_middle_of_it_is_not_healthy():
    zero = lambda step: losses(1.0, 0.5 if step < 10 else 0.0)  # noqa: E731
    ((_, text),) = watch(zero, saves={"a.pth": 5, "b.pth": 9, "c.pth": 10, "d.pth": 60})
    assert text.endswith("out/b.pth is from before it and is kept")
    ((_, text),) = watch(zero, saves={"c.pth": 10})
    assert text.endswith("there is no checkpoint from before it")


@pytest.mark.parametrize("cut", [4, 9, 17, 18, 19, 60])
def test_a_resumed_run_warns_at_the_same_step(cut):
    sick = lambda step: record([[0] * 10], MIXED)  # noqa: E731
    whole = watch(fine, sick, steps=70)
    assert len(whole) == 2
    assert watch(fine, sick, steps=70, cut=cut) == whole


def test_tasks_count_their_classes(street_root):
    detection, segmentation = build_tasks(tiny_config(street_root))
    classes = torch.tensor([2, 0, 2, 1])
    boxes = Instances((8, 8), gt_boxes=Boxes(torch.zeros(4, 4)), gt_classes=classes)
    boxes.gt_ignore = torch.tensor([False, False, False, True])
    assert detection.count_classes([boxes, boxes[:1]])[:4] == [1, 0, 3, 0]
    assert len(detection.count_classes([])) == len(detection.class_names)
    labels = torch.tensor([[0, 0, 3], [255, 3, 0]], dtype=torch.uint8)
    counts = segmentation.count_classes([labels, labels])
    assert counts[:4] == [6, 0, 0, 4] and sum(counts) == 10
    assert sum(segmentation.count_classes([])) == 0


def test_a_run_whose_teacher_goes_wrong_keeps_its_last_healthy_checkpoint(
    street_root, tmp_path, monkeypatch
):
    """From step 6 on, the teacher sees one class everywhere; measured and saved at every step.

    Two measurements are taken together, so that the sign is there from step 7 on.
    """
    opts = ("SOLVER.MAX_ITER", 13, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINTS_TO_KEEP", 1)
    labels = ("TASKS.SEGMENTATION.LABELS", 8, "FIXMATCH.DIAGNOSTICS_PERIOD", 1)
    opts = (*opts, *labels, *NARROW, "MODEL.TASKS", ["segmentation"])
    cfg = run_config(street_root, tmp_path, *opts)
    told = []
    monkeypatch.setattr(TeacherWatch, "MEASUREMENTS", 2)
    monkeypatch.setattr(
        watch_module.logger, "warning", lambda text, *args: told.append(text % args)
    )
    trainer = build_trainer(cfg)
    trainer.evaluate = lambda: {"teacher": {"geometric_mean": 0.0}}
    head = trainer.teacher.heads["segmentation"]

    def spoil(_, args, raw):
        offset = torch.zeros_like(raw[0])
        offset[:, 3] = 1000.0
        # Before, what it sees depends on the pixel.
        noise = torch.linspace(0, 50, offset.numel()).sin().view_as(offset) * 1000
        return (raw[0] + (offset if trainer.iter >= 6 else noise),)

    head.register_forward_hook(spoil)
    trainer.train()
    (text,) = [x for x in told if "100.0%" in x]
    assert f"are {trainer.tasks[0].class_names[3]}" in text
    assert f"{tmp_path}/model_0000006.pth is from before it and is kept" in text
    kept = sorted(path.name for path in tmp_path.glob("model_0*.pth"))
    assert kept == ["model_0000006.pth", "model_0000012.pth"]
    resumed = build_trainer(cfg, resume=True)
    assert resumed._watch.healthy == "model_0000006.pth"
