"""Thresholds by measured precision, on scores made by hand."""

import math

import numpy as np
import pytest

from mtfixmatch.inference.thresholds import choose_threshold, wilson_interval
from mtfixmatch.tasks.auto_labels import ClassScores


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
        found = choose_threshold(scores(*rows), precision, precision, 1)
        assert (found.upper, found.lower) == (upper, upper)
        assert found.precision == pytest.approx(measured)
        assert found.share == pytest.approx(sum(r for s, _, r in FIVE if s >= upper) / 10)
        assert found.support == 10


def test_the_lower_threshold_has_a_precision_of_its_own():
    found = choose_threshold(scores(*FIVE), 1.0, 0.7, 1)
    assert (found.upper, found.lower) == (0.8, 0.6)


def test_a_class_below_the_precision_has_no_threshold():
    assert choose_threshold(scores((0.9, 1, 0), (0.8, 4, 4)), 0.9, 0.3, 1) is None
    assert choose_threshold(scores((0.9, 1, 0), (0.8, 4, 4)), 0.8, 0.3, 1).upper == 0.8
    assert choose_threshold(scores(), 0.1, 0.1, 1) is None


def test_a_precision_rests_on_enough_predictions():
    assert choose_threshold(scores(*FIVE), 1.0, 1.0, 2).upper == 0.8
    assert choose_threshold(scores(*FIVE), 1.0, 1.0, 3) is None
    # The pixels of an image are one trial.
    pixels = [(0.9, 1000, 999), (0.5, 1000, 0)]
    assert choose_threshold(scores(*pixels, trials=4), 0.9, 0.9, 5) is None
    assert choose_threshold(scores(*pixels, trials=4), 0.9, 0.9, 4).upper == 0.9


def test_predictions_of_one_score_are_taken_together():
    found = choose_threshold(scores((0.9, 1, 1), (0.8, 1, 1), (0.8, 1, 0)), 1.0, 1.0, 1)
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
    found = choose_threshold(scores((0.9, 1000, 900), trials=10), 0.9, 0.9, 1)
    assert found.interval == wilson_interval(0.9, 10)
