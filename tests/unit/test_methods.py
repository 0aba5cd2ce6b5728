"""New methods are one class each, and nothing else of the package changes for them."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtfixmatch.methods import METHOD_REGISTRY, DenseFixMatch, FixMatch, build_method
from mtfixmatch.utils.distributed import sum_over_ranks
from mtfixmatch.utils.errors import InputError
from tests.support.engine_helpers import (
    NO_MIXING,
    build_trainer,
    make_batch,
    run_config,
    run_step,
    same_state,
    train_and_record,
)

STEPS = 10
ALL_LABELS = ("TASKS.DETECTION.LABELS", -1, "TASKS.SEGMENTATION.LABELS", -1)


class AdaptiveThresholds(DenseFixMatch):
    """The threshold of a class follows the running mean of the teacher's confidence in it."""

    DECAY, CLASSES = 0.9, 32

    def __init__(self, cfg):
        super().__init__(cfg)
        for name, threshold in self.thresholds.items():
            self.register_buffer(f"{name}_means", torch.full((self.CLASSES,), float(threshold)))

    def threshold(self, task):
        return self.get_buffer(f"{task.name}_means")

    def pseudo_labels(self, task, head, outputs, size, valid):
        everything = head.predict(outputs, size, 0.0)
        if isinstance(everything, Tensor):  # logits (N, K, H, W)
            scores, classes = everything.softmax(dim=1).max(dim=1)
        else:
            scores = torch.cat([x.scores for x in everything])
            classes = torch.cat([x.pred_classes for x in everything])
        ones = torch.ones_like(scores).flatten()
        counts, sums = (
            torch.zeros(self.CLASSES).index_add(0, classes.flatten(), x)
            for x in (ones, scores.flatten())
        )
        total = torch.tensor(sum_over_ranks(torch.stack([counts, sums]), scores.device))
        seen = total[0] > 0
        means = self.threshold(task)
        means[seen] = means[seen].lerp(total[1][seen] / total[0][seen], 1 - self.DECAY)
        return super().pseudo_labels(task, head, outputs, size, valid)


class ConfidenceWeights(DenseFixMatch):
    """Each pseudo-box and each pixel weighs as much as the teacher is confident in it."""

    def pseudo_labels(self, task, head, outputs, size, valid):
        threshold = self.threshold(task)
        predictions = head.predict(outputs, size, task.least_score(threshold))
        targets = task.pseudo_labels(predictions, threshold, valid)
        if isinstance(predictions, Tensor):
            confidence, classes = predictions.softmax(dim=1).max(dim=1, keepdim=True)
            weights = torch.zeros_like(predictions).scatter(1, classes, confidence)
            ignored = torch.stack(targets) == 255
            return list(weights.masked_fill(ignored[:, None], 0.0))
        for target, instances in zip(targets, predictions, strict=True):
            target.gt_weights = instances.scores
        return targets


class SoftTargets(FixMatch):
    """The teacher's probabilities are the targets of segmentation; they move bilinearly."""

    geometric = True

    def pseudo_labels(self, task, head, outputs, size, valid):
        targets = super().pseudo_labels(task, head, outputs, size, valid)
        if not task.fills_pixels:
            return targets
        probabilities = head.predict(outputs, size, 0.0).softmax(dim=1)
        ignored = torch.stack(targets) == 255
        return list(probabilities.masked_fill(ignored[:, None], 0.0))


METHODS = (AdaptiveThresholds, ConfidenceWeights, SoftTargets)


@pytest.fixture(autouse=True)
def registered():
    for method in METHODS:
        METHOD_REGISTRY.register(method)
    yield
    for method in METHODS:
        del METHOD_REGISTRY._obj_map[method.__name__]


def config(root: Path, output: Path, method: type, *opts):
    labels = ("TASKS.DETECTION.LABELS", 8, "TASKS.SEGMENTATION.LABELS", 8)
    steps = ("SOLVER.MAX_ITER", STEPS, "SOLVER.CHECKPOINT_PERIOD", 4)
    return run_config(root, output, "FIXMATCH.METHOD", method.__name__, *labels, *steps, *opts)


@pytest.mark.parametrize("method", METHODS)
def test_a_new_method_trains_ten_steps(street_root, tmp_path, method):
    losses = train_and_record(config(street_root, tmp_path, method))
    assert len(losses) == STEPS
    assert any(step["loss_segmentation_ce_unsup"] > 0 for step in losses)
    assert any(step["loss_detection_cls_unsup"] > 0 for step in losses)


def test_the_state_of_a_method_survives_a_kill_bit_by_bit(street_root, tmp_path):
    opts = ("TASKS.DETECTION.THRESHOLD", 0.01)
    whole = build_trainer(config(street_root, tmp_path / "whole", AdaptiveThresholds, *opts))
    whole.train()
    cfg = config(street_root, tmp_path / "killed", AdaptiveThresholds, *opts)
    killed = build_trainer(cfg)
    update_student = killed._trainer.update_student

    def die_at_step_6():
        if killed.iter == 6:
            raise KeyboardInterrupt
        update_student()

    killed._trainer.update_student = die_at_step_6
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = build_trainer(cfg, resume=True)
    assert resumed.start_iter == 4
    resumed.train()
    state, expected = resumed.method.state_dict(), whole.method.state_dict()
    assert same_state(state, expected)
    assert len(state["segmentation_means"].unique()) > 2  # they have moved, and apart
    assert same_state(resumed.teacher.state_dict(), whole.teacher.state_dict())


def test_the_state_of_a_method_is_rolled_back_with_its_step(street_root, tmp_path, caplog):
    opts = (*NO_MIXING, *ALL_LABELS, "SOLVER.NONFINITE", "skip")
    trainer = build_trainer(config(street_root, tmp_path, AdaptiveThresholds, *opts))
    before = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    head = trainer._trainer.student.heads["segmentation"]
    head.losses = lambda *args: {"ce": torch.tensor(float("nan"))}
    caplog.set_level(logging.ERROR, logger="mtfixmatch")
    assert run_step(trainer, make_batch(trainer, "bdsn"))["skipped_steps"] == 1
    assert same_state(trainer.method.state_dict(), before)
    del head.losses
    run_step(trainer, make_batch(trainer, "bdsn"))
    assert not same_state(trainer.method.state_dict(), before)


def test_confidence_weighs_the_loss(street_root, tmp_path):
    """Weights below 1 lower the losses of the same pseudo-labels, boxes and pixels alike."""
    still = ("FIXMATCH.STRONG.NUM_OPERATIONS", 0, "FIXMATCH.STRONG.FLIP_PROB", 0.0)
    logged = {}
    for method in (DenseFixMatch, ConfidenceWeights, SoftTargets):
        output = tmp_path / method.__name__
        trainer = build_trainer(config(street_root, output, method, *still, *ALL_LABELS))
        logged[method] = run_step(trainer, make_batch(trainer, "bnnn"))
    for name in (
        "loss_detection_cls_unsup",
        "loss_detection_box_unsup",
        "loss_segmentation_ce_unsup",
    ):
        assert 0 < logged[ConfidenceWeights][name] < logged[DenseFixMatch][name]
    soft, hard = (logged[m]["loss_segmentation_ce_unsup"] for m in (SoftTargets, DenseFixMatch))
    assert soft != hard and soft > 0


def test_an_unknown_method_is_named_with_those_there_are(street_root, tmp_path):
    with pytest.raises(InputError, match="FIXMATCH.METHOD is 'Mean': it must be one of Supervised"):
        run_config(street_root, tmp_path, "FIXMATCH.METHOD", "Mean")


def test_the_flips_and_operations_of_the_papers_methods(street_root, tmp_path):
    methods = {
        name: build_method(run_config(street_root, tmp_path, "FIXMATCH.METHOD", name))
        for name in ("Supervised", "FixMatch", "DenseFixMatch")
    }
    assert [m.weak_flip_prob for m in methods.values()] == [0.5, 0.0, 0.5]
    assert [m.is_semi_supervised for m in methods.values()] == [False, True, True]
    operations = {name: m.strong_augmentation.operations for name, m in list(methods.items())[1:]}
    moves = set(operations["DenseFixMatch"]) - set(operations["FixMatch"])
    assert moves == {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
