"""What a loss is a mean over, Eq. 3-4 of the paper."""

import pytest
import torch

from mtfixmatch.engine.normalizer import Normalizer
from tests.support.engine_helpers import (
    NO_MIXING,
    build_trainer,
    losses_of,
    make_batch,
    run_config,
    run_step,
)

# Three images have losses, summed over their elements, of 6, 8 and 5, and 3, 1 and no elements.
LOSSES = torch.tensor([6.0, 8.0, 5.0])
COUNTS = [torch.tensor(n) for n in (3, 1, 0)]


def divisor_of(normalizer, count, num_images, *, is_pseudo=False):
    numbers = torch.tensor([count, num_images], dtype=torch.float64)
    return normalizer.divisor(*numbers, is_pseudo=is_pseudo)


def mean_of(kind):
    normalizer = Normalizer(kind)
    divisor = divisor_of(normalizer, 4, 3)
    return float((LOSSES * normalizer.image_weights(COUNTS, divisor)).sum())


def test_normalizers_by_hand():
    assert mean_of("image") == pytest.approx((6 / 3 + 8 / 1 + 5 / 1) / 3)
    assert mean_of("batch") == pytest.approx((6 + 8 + 5) / 4)
    assert mean_of("running") == pytest.approx((6 + 8 + 5) / (0.9 * 100 + 0.1 * 4))


def test_parts_of_a_batch_add_up():
    normalizer = Normalizer("image")
    divisor = divisor_of(normalizer, 4, 3, is_pseudo=False)
    first = LOSSES[:2] * normalizer.image_weights(COUNTS[:2], divisor)
    last = LOSSES[2:] * normalizer.image_weights(COUNTS[2:], divisor)
    assert float(first.sum() + last.sum()) == pytest.approx(mean_of("image"))


@pytest.mark.parametrize("kind", ["image", "batch"])
def test_nothing_to_divide_by(kind):
    normalizer = Normalizer(kind)
    assert divisor_of(normalizer, 0, 0, is_pseudo=True) == 1
    assert not normalizer.state_dict()


def test_running_means_by_hand():
    normalizer = Normalizer("running")
    assert divisor_of(normalizer, 50, 2, is_pseudo=False) == pytest.approx(0.9 * 100 + 0.1 * 50)
    assert divisor_of(normalizer, 50, 2, is_pseudo=False) == pytest.approx(0.9 * 95 + 0.1 * 50)
    # The other one has not moved, and images without an element count as 1.
    assert divisor_of(normalizer, 0, 1, is_pseudo=True) == pytest.approx(90.1)
    assert normalizer.state_dict()["means"].tolist() == pytest.approx([90.5, 90.1])


def test_a_batch_without_an_image_does_not_move_a_running_mean():
    normalizer = Normalizer("running")
    assert divisor_of(normalizer, 0, 0, is_pseudo=False) == 100
    assert normalizer.state_dict()["means"].tolist() == [100, 100]


def step_losses(trainer, batch, state):
    trainer._trainer.student.load_state_dict(state)
    trainer.teacher.load_state_dict(state)
    return losses_of(run_step(trainer, batch))


@pytest.mark.parametrize("kind", ["image", "batch"])
def test_the_losses_of_a_step_are_means_over_its_images_or_elements(street_root, tmp_path, kind):
    """Without norms that mix images, the losses of a batch follow from those of its images."""
    keys = [f"TASKS.{name}.NORMALIZER" for name in ("DETECTION", "SEGMENTATION")]
    opts = [x for key in keys for x in (key, kind)]
    opts += ["INPUT.TRAIN_SIZE", (128, 256), "INPUT.SCALE_RANGE", (1.0, 1.0)]  # whole images
    cfg = run_config(street_root, tmp_path, *NO_MIXING, *opts, "FIXMATCH.METHOD", "Supervised")
    trainer = build_trainer(cfg)
    state = {k: v.clone() for k, v in trainer.teacher.state_dict().items()}
    batch = make_batch(trainer, "bbb")
    whole = step_losses(trainer, batch, state)
    alone = [step_losses(trainer, [item], state) for item in batch]
    counts = {"detection": [], "segmentation": []}
    for item in batch:
        for task in trainer.tasks:
            target = item["targets"][task.name]
            head = trainer._trainer.student.head(task.name)
            size = tuple(item["image"].shape[1:])
            (assigned,) = head.assign([target], [False], size)
            counts[task.name].append(max(int(assigned.count), 1))
    for key in ("loss_detection_cls", "loss_detection_box", "loss_segmentation_ce"):
        elements = counts[key.split("_")[1]]
        shares = elements if kind == "batch" else [1, 1, 1]
        expected = sum(n * x[key] for n, x in zip(shares, alone, strict=True)) / sum(shares)
        assert whole[key] == pytest.approx(expected, rel=1e-5), key
    assert len(set(counts["detection"])) > 1  # else both kinds would be the same
