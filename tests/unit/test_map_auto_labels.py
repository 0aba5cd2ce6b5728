"""Maps of a network as labels: what is right, and unsure pixels."""

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.tasks.auto_labels import HUMAN
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.images import read_label_map
from mtfixmatch.utils.labels import IGNORE_LABEL
from tests.support.auto_labels import SIZE, logits, make_tasks, record, threshold

ROAD, SKY = range(2)
NETWORK = "net@0123456789ab"
SHAPE = (SIZE[0] // 2, SIZE[1])


@pytest.fixture
def task():
    return make_tasks()["segmentation"]


def halves(upper, lower):
    """A map (H, W) with one value in its upper half and another in its lower one."""
    return np.concatenate([np.full(SHAPE, upper), np.full(SHAPE, lower)])


def human_map(tmp_path, pixels, **labels):
    path = tmp_path / "human.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    lut = bytes(range(256))
    return record(sem_seg_file_name=str(path), sem_seg_lut=lut, **labels)


def test_right_and_wrong_pixels_by_confidence(task, tmp_path):
    meter = task.score_meter()
    classes, confidence = halves(ROAD, SKY), halves(0.9005, 0.6005)
    labels = halves(ROAD, ROAD)
    labels[-1] = SKY
    labels[0] = IGNORE_LABEL
    meter.add(human_map(tmp_path, labels), {"sem_seg": logits(classes, confidence)})
    road, sky = meter.scores()
    width, height = SIZE[1], SHAPE[0]
    assert np.flatnonzero(road.total).tolist() == [900] and road.scores[900] == 0.9
    assert (road.total[900], road.right[900]) == (width * (height - 1), width * (height - 1))
    assert np.flatnonzero(sky.total).tolist() == [600]
    assert (sky.total[600], sky.right[600]) == (width * height, width)
    assert (road.whole, road.support, road.trials) == (width * (height - 1), 1, 1)


def test_certain_pixels_are_in_the_last_bin(task, tmp_path):
    meter = task.score_meter()
    exact = logits(halves(ROAD, ROAD), 1.0)
    meter.add(human_map(tmp_path, halves(ROAD, ROAD)), {"sem_seg": exact})
    assert np.flatnonzero(meter.scores()[ROAD].total).tolist() == [999]


def label(task, tmp_path, record_of_image, classes, confidence, thresholds=None):
    limits = thresholds or [threshold(0.9, 0.9), threshold(0.6, 0.6)]
    labeler = task.auto_labeler(limits, str(tmp_path), NETWORK)
    result = None if classes is None else {"sem_seg": logits(classes, confidence)}
    made = labeler.label(record_of_image, result, "a.jpg")
    return made, read_label_map(made.map_file) if made.map_file else None, labeler


def test_unsure_pixels_are_ignored(task, tmp_path):
    classes, confidence = halves(ROAD, SKY), halves(0.8995, 0.6005)
    confidence[0] = 0.9005
    made, pixels, labeler = label(task, tmp_path, record(), classes, confidence)
    expected = halves(IGNORE_LABEL, SKY)
    expected[0] = ROAD
    assert np.array_equal(pixels, expected)
    assert np.array_equal(task.load_map(record(**made.keys)), expected)
    road, sky = made.review
    assert (road.class_name, sky.class_name, sky.unsure) == ("road", "sky", 0.0)
    assert road.unsure == pytest.approx(9 / 20)
    assert road.score == pytest.approx((9 * 0.899 + 0.9) / 10)
    labeler.write([])
    rows = (tmp_path / "segmentation_provenance.csv").read_text().splitlines()
    header = "image,map,provenance,human_share,network_share,ignored_share,network_confidence"
    assert rows[0] == header
    # One row of pixels in bin 900, ten rows in bin 600.
    assert rows[1] == f"/data/a.jpg,segmentation/data/a.png,{NETWORK},0.0000,0.5500,0.4500,0.6273"


def test_a_class_without_a_threshold_is_ignored(task, tmp_path):
    limits = [None, threshold(0.6, 0.6)]
    args = (task, tmp_path, record(), halves(ROAD, SKY), 0.99, limits)
    assert np.array_equal(label(*args)[1], halves(IGNORE_LABEL, SKY))


def test_a_map_without_a_sure_pixel_is_no_label(task, tmp_path):
    made, pixels, labeler = label(task, tmp_path, record(), halves(ROAD, SKY), 0.55)
    assert made.keys == {} and pixels is None and len(made.review) == 2
    assert labeler.write([]).files == []
    assert label(task, tmp_path, record(), None, None)[0].keys == {}


def test_a_human_map_is_copied_with_its_ignored_pixels(task, tmp_path):
    human = halves(SKY, IGNORE_LABEL)
    made, pixels, _ = label(task, tmp_path, human_map(tmp_path, human), halves(ROAD, ROAD), 0.99)
    assert np.array_equal(pixels, human) and made.provenance == HUMAN and not made.review


def test_a_partial_map_is_filled_where_it_is_ignored(task, tmp_path):
    own = human_map(tmp_path, halves(SKY, IGNORE_LABEL), sem_seg_partial=True)
    confidence = halves(0.99, 0.99)
    confidence[-1] = 0.6
    made, pixels, _ = label(task, tmp_path, own, halves(ROAD, ROAD), confidence)
    expected = halves(SKY, ROAD)
    expected[-1] = IGNORE_LABEL
    assert np.array_equal(pixels, expected)
    assert made.provenance == f"{HUMAN}+{NETWORK}"
    assert [x.class_name for x in made.review] == ["road"]


def test_two_images_with_one_stem(task, tmp_path):
    labeler = task.auto_labeler([threshold(0.5, 0.5)] * 2, str(tmp_path), NETWORK)
    result = {"sem_seg": logits(halves(ROAD, SKY), 0.9)}
    labeler.label(record("a.jpg"), result, "a.jpg")
    with pytest.raises(InputError, match=r"^/data/a\.png: another image has its name"):
        labeler.label(record("a.png"), result, "a.png")
