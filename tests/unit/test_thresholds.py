"""Thresholds by measured precision, on scores made by hand."""

import math

import numpy as np
import pytest

from mtfixmatch.inference.measure import Settings, fold_of
from mtfixmatch.inference.thresholds import choose_threshold, threshold_table, wilson_interval
from mtfixmatch.tasks.auto_labels import ClassScores
from mtfixmatch.utils.errors import InputError
from tests.support.auto_labels import make_tasks, threshold


def scores(*rows, labeled=10, trials=None):
    """Rows of (score, predictions, right ones)."""
    values, total, right = (np.array(x) for x in zip(*rows, strict=True)) if rows else ([],) * 3
    return ClassScores(
        scores=np.array(values, float),
        total=np.array(total, int),
        right=np.array(right, int),
        reached=np.array(right, int),
        whole=labeled,
        support=labeled,
        trials=trials,
    )


# Precision from each score on: 1, 1, 2/3, 3/4, 3/5.
FIVE = [(0.9, 1, 1), (0.8, 1, 1), (0.7, 1, 0), (0.6, 1, 1), (0.5, 1, 0)]


@pytest.mark.parametrize(
    "precision, upper, measured",
    [(1.0, 0.8, 1.0), (0.75, 0.6, 0.75), (0.7, 0.6, 0.75), (0.6, 0.5, 0.6), (0.1, 0.5, 0.6)],
)
def test_the_least_score_with_the_precision(precision, upper, measured):
    for rows in (FIVE, FIVE[::-1], [FIVE[i] for i in (3, 0, 4, 2, 1)]):
        found = choose_threshold([scores(*rows)], precision, precision, 1)
        assert (found.upper, found.lower) == (upper, upper)
        assert found.precision == pytest.approx(measured)
        assert found.share == pytest.approx(sum(r for s, _, r in FIVE if s >= upper) / 10)
        assert found.support == 10


def test_the_lower_threshold_has_a_precision_of_its_own():
    found = choose_threshold([scores(*FIVE)], 1.0, 0.7, 1)
    assert (found.upper, found.lower) == (0.8, 0.6)


def test_a_class_below_the_precision_has_no_threshold():
    assert choose_threshold([scores((0.9, 1, 0), (0.8, 4, 4))], 0.9, 0.3, 1) is None
    assert choose_threshold([scores((0.9, 1, 0), (0.8, 4, 4))], 0.8, 0.3, 1).upper == 0.8
    assert choose_threshold([scores()], 0.1, 0.1, 1) is None


def test_a_precision_rests_on_enough_predictions():
    assert choose_threshold([scores(*FIVE)], 1.0, 1.0, 2).upper == 0.8
    assert choose_threshold([scores(*FIVE)], 1.0, 1.0, 3) is None
    # The pixels of an image are one trial.
    pixels = [(0.9, 1000, 999), (0.5, 1000, 0)]
    assert choose_threshold([scores(*pixels, trials=4)], 0.9, 0.9, 5) is None
    assert choose_threshold([scores(*pixels, trials=4)], 0.9, 0.9, 4).upper == 0.9


def test_predictions_of_one_score_are_taken_together():
    found = choose_threshold([scores((0.9, 1, 1), (0.8, 1, 1), (0.8, 1, 0))], 1.0, 1.0, 1)
    assert found.upper == 0.9


def test_wilson_interval_by_hand():
    # 9 of 10: (.9 + .19208) / 1.38416 = .78898; 1.96 sqrt(.009 + .009604) / 1.38416 = .19314
    low, high = wilson_interval(0.9, 10)
    assert (low, high) == (pytest.approx(0.59585, abs=1e-4), pytest.approx(0.98212, abs=1e-4))
    low, high = wilson_interval(1.0, 1)
    assert high == 1.0 and low == pytest.approx(1 / (1 + 1.96**2))
    assert wilson_interval(0.0, 5)[0] == 0.0
    low, high = wilson_interval(0.5, 10**8)
    assert math.isclose(low, 0.5, abs_tol=1e-3) and math.isclose(high, 0.5, abs_tol=1e-3)


def test_the_interval_of_pixels_is_that_of_their_images():
    found = choose_threshold([scores((0.9, 1000, 900), trials=10)], 0.9, 0.9, 1)
    assert found.interval == wilson_interval(0.9, 10)


# Cross-fitting

# Chosen on all: from .6 on, 7 of 8 are right, so .6 is the threshold of a precision of .8.
PARTS = [
    scores((0.9, 2, 2), (0.6, 1, 1), labeled=5),
    scores((0.8, 1, 1), (0.7, 2, 1), labeled=4),
    scores((0.75, 1, 1), (0.6, 1, 1), (0.5, 4, 1), labeled=6),
]


def test_each_part_is_measured_with_the_threshold_of_the_others():
    found = choose_threshold(PARTS, 0.8, 0.5, 1)
    # Without the first part: right of predicted from .8 on 1 of 1, .75 2 of 2, .7 3 of 4, .6 4 of
    # 5, so .6 (.8), which keeps 3 of 3. Without the second: .9 2 of 2, .75 3 of 3, .6 5 of 5, .5 6
    # of 9, so .6, which keeps 2 of 3. Without the third: .6 5 of 6, so .6, which keeps 2 of 2.
    assert found.upper == 0.6 and found.lower == 0.5
    assert found.precision == pytest.approx(7 / 8)
    assert found.interval == wilson_interval(7 / 8, 8)
    assert found.share == pytest.approx(7 / 15) and found.support == 15


def test_figures_of_the_images_that_chose_the_threshold_are_too_good():
    """A wrong prediction of a high score counts, though it moves the threshold of all images."""
    parts = [scores((0.9, 5, 5)), scores((0.8, 1, 0)), scores((0.7, 4, 4))]
    together = choose_threshold([scores((0.9, 5, 5), (0.8, 1, 0), (0.7, 4, 4))], 1.0, 0.1, 1)
    assert (together.upper, together.precision, together.share) == (0.9, 1.0, 0.5)
    # The others choose none, .7 and .9, which keep none, 0 of 1 and none.
    assert choose_threshold(parts, 1.0, 0.1, 1) is None
    found = choose_threshold(parts, 0.8, 0.1, 1)
    # All have 9 of 10 from .7 on. The others choose .7, .7 and .8: 5 of 5, 0 of 1 and none.
    assert (found.upper, found.precision) == (0.7, pytest.approx(5 / 6))
    assert found.share == pytest.approx(5 / 30)


def test_a_class_of_a_single_part_has_no_threshold():
    parts = [scores((0.9, 50, 50)), scores(), scores()]
    assert choose_threshold(parts, 0.9, 0.3, 1) is None
    assert choose_threshold(parts[:1], 0.9, 0.3, 1).upper == 0.9


def test_a_cross_fitted_precision_rests_on_enough_predictions():
    parts = [scores((0.9, 6, 6)), scores((0.9, 4, 4))]
    assert choose_threshold(parts, 0.9, 0.9, 4).upper == 0.9
    # The others of the first part are 4 and choose nothing, so that 4 are measured.
    assert choose_threshold(parts, 0.9, 0.9, 5) is None


def test_pixels_of_a_part_are_as_many_trials_as_its_images():
    parts = [scores((0.9, 1000, 900), trials=3), scores((0.9, 500, 500), trials=2)]
    found = choose_threshold(parts, 0.9, 0.9, 2)
    assert found.interval == wilson_interval(14 / 15, 5)


def test_a_class_whose_whole_interval_is_below_the_precision_is_left_out():
    parts = [scores((0.9, 100, 100), (0.8, 100, 0)), scores((0.7, 900, 900), (0.6, 900, 0))]
    assert choose_threshold([scores((0.9, 100, 100), (0.8, 100, 0))], 1.0, 1.0, 1).upper == 0.9
    # The first part is measured from .7 on: 100 of 200.
    assert choose_threshold(parts, 1.0, 1.0, 1) is None


def test_parts_do_not_depend_on_the_other_images():
    parts = [fold_of({"image_id": i}, 5) for i in range(1000)]
    assert parts == [fold_of({"image_id": i}, 5) for i in range(1000)]
    counts = np.bincount(parts, minlength=5)
    assert len(counts) == 5 and counts.min() > 150
    # The hash of a begins so.
    assert fold_of({"image_id": "a"}, 10) == int("ca978112ca1bbdca", 16) % 10
    assert {fold_of({"image_id": i}, 1) for i in range(20)} == {0}


def test_the_table_names_classes_below_the_precision():
    task = make_tasks()["detection"]
    found = threshold(0.5, 0.25)  # of a measured precision of .9
    text = threshold_table(task, [found, None, found], 0.95)
    assert "detection, measured below 0.95, which is inside the interval: cat, cow" in text
    assert "or rests on too few: dog" in text
    assert "inside" not in threshold_table(task, [found, None, found], 0.9)


@pytest.mark.parametrize("folds", [0, -1, 101])
def test_a_number_of_parts_that_cannot_be(folds):
    with pytest.raises(InputError, match=f"folds {folds}: expected 1 to 100"):
        Settings(folds=folds)
