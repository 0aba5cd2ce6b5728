"""hotcoco against pycocotools, to the last bit, over random and odd boxes."""

import contextlib
import io
import os
import select
import signal

import numpy as np
import pytest

from mtfixmatch.tasks import average_precision
from mtfixmatch.tasks.average_precision import Truth, evaluate_boxes

LIMITS = (0, 10, 31.999, 32, 32.001, 96, 200)  # sides, at the limits of COCO's ranges of areas


def truth_of(rows, images, classes):
    """Of rows (image, x, y, width, height, class, is crowd)."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    names = [f"class {i}" for i in range(classes)]
    ids, kinds = table[:, 0].astype(np.int64), table[:, 5].astype(np.int64)
    return Truth(images, names, ids, kinds, table[:, 1:5], table[:, 6].astype(bool))


def tables(truth, detections):
    """Counts and means by the installed package."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = evaluate_boxes(truth, np.array(detections, dtype=np.float64).reshape(-1, 7))
    return found.eval["precision"], found.eval["recall"], found.stats


def judge(monkeypatch, truth, detections):
    """The same by pycocotools."""
    with monkeypatch.context() as patch:
        patch.setattr(average_precision, "hotcoco", None)
        return tables(truth, detections)


def check(monkeypatch, truth, detections):
    """Assert equality, and return the mAP, -1 if there is none."""
    found, expected = tables(truth, detections), judge(monkeypatch, truth, detections)
    assert found[0].shape == (10, 101, len(truth.class_names), 4, 3)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    return found[2][0]


def random_case(seed):
    """Boxes on a grid or anywhere, near detections and far ones, few or many, tied or not."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.choice([1, 2, 5, 12])), int(rng.choice([1, 2, 3, 8]))
    on_grid, many, crowds = rng.random() < 0.5, rng.random() < 0.2, rng.choice([0, 0.1, 0.6])
    digits = int(rng.choice([0, 1, 7]))  # of the scores: few make ties
    truth, detections = [], []
    for image in range(1, images + 1):
        boxes = [_box(rng, on_grid) for _ in range(rng.integers(0, 9) * (rng.random() < 0.9))]
        kinds = rng.integers(0, classes, len(boxes)).tolist()
        truth += [
            [image, *box, kind, rng.random() < crowds]
            for box, kind in zip(boxes, kinds, strict=True)
        ]
        for _ in range(rng.integers(100, 150) if many else rng.integers(0, 16)):
            if boxes and rng.random() < 0.75:
                i = int(rng.integers(len(boxes)))
                x, y, w, h = boxes[i]
                kind = kinds[i] if rng.random() < 0.8 else int(rng.integers(classes))
                # On the grid, overlaps are multiples of .05: some are the thresholds themselves.
                share = rng.integers(10, 21) / 20 if on_grid else rng.uniform(0.6, 1.3)
                box = [x, y, w * share, h] if on_grid else [x + rng.normal(), y, w * share, h]
            else:
                box, kind = _box(rng, on_grid), int(rng.integers(classes))
            detections.append([image, *box, np.float32(round(rng.random(), digits)), kind])
    rng.shuffle(detections)
    return truth_of(truth, images, classes), detections


def _box(rng, on_grid):
    if on_grid:
        return [*(rng.integers(0, 8, 2) * 10.0), *rng.choice(LIMITS, 2)]
    return [*rng.uniform(0, 300, 2), *np.float32(np.exp(rng.uniform(0, 6, 2)))]


@pytest.mark.parametrize("seeds", [range(i, i + 12) for i in range(0, 60, 12)])
def test_random_boxes(monkeypatch, seeds):
    assert average_precision.hotcoco is not None
    means = [check(monkeypatch, *random_case(seed)) for seed in seeds]
    assert sum(0 < mean < 1 for mean in means) >= 6  # the cases are not trivial


BOX = [1, 10, 10, 40, 40]  # in image 1


@pytest.mark.parametrize(
    ("truth", "detections", "mean"),
    [
        ([], [], -1),
        ([], [[*BOX, 0.9, 0]], -1),
        ([[*BOX, 0, 0]], [], 0),
        ([[*BOX, 0, 0]], [[*BOX, 0.9, 0]], 1),
        ([[*BOX, 0, 0]], [[*BOX, 0.9, 1]], 0),
        ([[*BOX, 0, 1]], [[*BOX, 0.9, 0]], -1),  # a group region alone
        ([[*BOX, 0, 1], [1, 200, 0, 9, 9, 0, 0]], [[*BOX, 0.9, 0], [1, 200, 0, 9, 9, 0.8, 0]], 1),
        # Two equal detections of one box, scored the same: the second comes after full recall.
        ([[*BOX, 0, 0]], [[*BOX, 0.5, 0], [*BOX, 0.5, 0]], 1),
        # A wrong one scored the same: the order of the list decides.
        ([[*BOX, 0, 0]], [[*BOX, 0.5, 0], [1, 300, 0, 9, 9, 0.5, 0]], 1),
        ([[*BOX, 0, 0]], [[1, 300, 0, 9, 9, 0.5, 0], [*BOX, 0.5, 0]], 0.5),
        # The 101st detection of an image does not count.
        ([[*BOX, 0, 0]], [*[[1, 300, 0, 9, 9, 0.5, 0]] * 100, [*BOX, 0.4, 0]], 0),
        # An IoU of 20 / 40 is the first threshold itself.
        ([[*BOX, 0, 0]], [[1, 10, 10, 20, 40, 0.5, 0]], 0.1),
    ],
)
def test_odd_cases_by_hand(monkeypatch, truth, detections, mean):
    assert check(monkeypatch, truth_of(truth, 2, 2), detections) == pytest.approx(mean)


def test_no_images(monkeypatch):
    assert check(monkeypatch, truth_of([], 0, 2), []) == -1


def test_recalls_that_are_the_thresholds(monkeypatch):
    """With 100 boxes, each recall i / 100 is rounded as a threshold is, or not."""
    rows = [[1, 50 * i, 0, 20, 20] for i in range(100)]
    right = [[*row, 1 - i / 200, 0] for i, row in enumerate(rows) if i % 3]
    wrong = [[1, 50 * i + 25, 0, 20, 20, 1 - i / 200, 0] for i in range(0, 100, 3)]
    mean = check(monkeypatch, truth_of([[*row, 0, 0] for row in rows], 1, 1), right + wrong)
    assert 0.3 < mean < 0.7


def test_a_forked_process_does_not_wait_for_threads_of_its_parent():
    """A fork copies hotcoco's threads' state, but not the threads."""
    truth, detections = random_case(0)
    expected = tables(truth, detections)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            same = all(map(np.array_equal, tables(truth, detections), expected))
            os.write(writer, b"same" if same else b"other")
        finally:
            os._exit(0)
    os.close(writer)
    answered = select.select([reader], [], [], 60)[0]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert answered and os.read(reader, 10) == b"same"
