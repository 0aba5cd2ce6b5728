"""Our evaluators against Detectron2's own, to the last digit."""

import math

import numpy as np
import pytest
from detectron2.evaluation import COCOEvaluator

from mtfixmatch.tasks.coco_ap import CocoApEvaluator
from mtfixmatch.tasks.mean_iou import MeanIoUEvaluator
from mtfixmatch.tasks.segmentation import load_map
from tests.support.evaluators import (
    NAMES,
    our_figures,
    random_answers,
    random_records,
    stock_boxes,
    stock_boxes_of_file,
    stock_map_evaluator,
    stock_maps,
)

BOX_NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def same(found, expected):
    """Whether names and values are equal, bit by bit, and nan where nan is."""
    equal = np.array_equal(list(found.values()), list(expected.values()), equal_nan=True)
    return list(found) == list(expected) and equal


def only(records, answers, *keys):
    """The images with these labels, and their answers."""
    pairs = zip(records, answers, strict=True)
    labeled = [(r, a) for r, a in pairs if all(key in r for key in keys)]
    return tuple(zip(*labeled, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_where_all_images_have_all_labels_the_figures_are_detectron2s(tmp_path, seed):
    records = random_records(tmp_path, 25, seed)
    answers = random_answers(records, seed)
    boxes, maps = our_figures(records, answers)
    assert same(boxes["detectron2"], stock_boxes(records, answers, tmp_path))
    assert same(maps["detectron2"], stock_maps(records, answers))
    # The figures are not trivial, and all are there.
    assert list(boxes["detectron2"]) == BOX_NAMES + [f"AP-{name}" for name in NAMES]
    assert all(1 < boxes["detectron2"][name] < 99 for name in BOX_NAMES)
    assert all(1 < maps["detectron2"][name] < 99 for name in ("mIoU", "fwIoU", "mACC", "pACC"))
    figures = (boxes["detectron2"] | maps["detectron2"]).items()
    nan = [name for name, value in figures if math.isnan(value)]
    assert nan == ["AP-never", "IoU-never", "ACC-never"]


@pytest.mark.parametrize("seed", [51, 209])
def test_boxes_are_not_rounded(tmp_path, seed):
    """As in a file of the user; the file that Detectron2 writes has three digits."""
    records = random_records(tmp_path, 15, seed)
    answers = random_answers(records, seed)
    rng = np.random.default_rng([seed, 9])
    for a in (a for record in records for a in record["annotations"]):
        a["bbox"] = (np.array(a["bbox"]) + np.tile(rng.random(2), 2)).tolist()
    found = our_figures(records, answers)[0]["detectron2"]
    assert same(found, stock_boxes_of_file(records, answers, tmp_path / "boxes.json"))
    assert not same(found, stock_boxes(records, answers, tmp_path))


def test_on_partial_labels_the_figures_are_detectron2s_of_the_labeled_images(tmp_path):
    records = random_records(tmp_path, 24)
    answers = random_answers(records)
    for i, record in enumerate(records):
        if i % 4 in (0, 3):
            del record["annotations"]
        if i % 4 in (1, 3):
            del record["sem_seg_file_name"]
    found, labeled = our_figures(records, answers), only(records, answers, "annotations")
    assert len(labeled[0]) == 12
    assert same(found[0]["detectron2"], stock_boxes(*labeled, tmp_path))
    assert same(found[1]["detectron2"], stock_maps(*only(records, answers, "sem_seg_file_name")))
    # The other images matter to Detectron2's evaluator.
    everything = stock_boxes(records, answers, tmp_path)
    assert everything["AP"] < found[0]["detectron2"]["AP"]


def test_figures_in_percent_are_those_of_the_training(tmp_path):
    """All but the mIoU: Detectron2 leaves out a class that is predicted and never occurs."""
    records = random_records(tmp_path, 20)
    boxes, maps = our_figures(records, random_answers(records))
    figures = boxes["detectron2"]
    assert (figures["AP"], figures["AP50"]) == (100 * boxes["mAP"], 100 * boxes["AP50"])
    percent = [100 * boxes["per_class"][name] for name in NAMES[:3]]
    assert percent == [figures[f"AP-{name}"] for name in NAMES[:3]]
    iou = [maps["per_class"][name] for name in NAMES]
    assert [100 * x for x in iou[:3]] == [maps["detectron2"][f"IoU-{name}"] for name in NAMES[:3]]
    assert iou[3] == 0 and math.isnan(maps["detectron2"]["IoU-never"])
    assert maps["mIoU"] == pytest.approx(sum(iou[:3]) / 4)
    assert maps["detectron2"]["mIoU"] == pytest.approx(100 * sum(iou[:3]) / 3)


def test_figures_of_maps_by_hand(tmp_path):
    """Pixels of the three classes, and how many are right: 4 of 6, 1 of 2, 0 of 0."""
    evaluator = MeanIoUEvaluator([], ["a", "b", "c"], load_map)
    evaluator._conf_matrix[:3, :3] = [[4, 0, 0], [1, 1, 0], [1, 1, 0]]  # rows: predictions
    found = evaluator.evaluate()["detectron2"]
    iou = (4 / 6, 1 / 3)
    assert found == pytest.approx(
        {
            **{"mIoU": 50, "fwIoU": 100 * (iou[0] * 6 + iou[1] * 2) / 8},
            **{"IoU-a": 100 * iou[0], "IoU-b": 100 * iou[1], "IoU-c": math.nan},
            **{"mACC": 100 * (4 / 6 + 1 / 2) / 2, "pACC": 100 * 5 / 8},
            **{"ACC-a": 100 * 4 / 6, "ACC-b": 50, "ACC-c": math.nan},
        },
        nan_ok=True,
    )


def test_without_detections_detectron2_has_no_figures(tmp_path):
    """Its names are those of the means; mAP is 0."""
    records = random_records(tmp_path, 4)
    answers = [{**a, "instances": a["instances"][:0]} for a in random_answers(records)]
    boxes, _ = our_figures(records, answers)
    assert boxes["mAP"] == 0
    assert same(boxes["detectron2"], dict.fromkeys(BOX_NAMES, math.nan))
    assert same(boxes["detectron2"], stock_boxes(records, answers, tmp_path))


def test_without_labeled_images_nothing_is_measured(tmp_path, recwarn):
    records = random_records(tmp_path, 2)
    answers = random_answers(records)
    for record in records:
        del record["annotations"], record["sem_seg_file_name"]
    boxes, maps = our_figures(records, answers)
    assert math.isnan(boxes["mAP"]) and boxes["detectron2"] == {}
    assert math.isnan(maps["mIoU"]) and all(map(math.isnan, maps["per_class"].values()))
    figures = maps["detectron2"]
    assert all(math.isnan(figures[name]) for name in ("mIoU", "mACC", "pACC", "IoU-car"))
    assert [w for w in recwarn if issubclass(w.category, RuntimeWarning)] == []


def test_detections_are_not_changed(tmp_path):
    records = random_records(tmp_path, 1)
    (answer,) = random_answers(records)
    before = answer["instances"].pred_boxes.tensor.clone()
    our_figures(records, [answer])
    after = answer["instances"].pred_boxes.tensor
    assert after.dtype == before.dtype and (after == before).all()


def test_tables_are_logged_and_nothing_is_printed(tmp_path, caplog, capsys):
    records = random_records(tmp_path, 3)
    with caplog.at_level("INFO"):
        our_figures(records, random_answers(records))
    assert "Evaluation results for bbox" in caplog.text
    assert "| category   | AP" in caplog.text
    assert "ACC-rider" not in caplog.text  # the base class would log all figures in one line
    assert capsys.readouterr().out == ""


def test_all_fields_of_detectron2s_evaluators_are_set(tmp_path):
    """Our constructors stand for those of the base classes, which another version may change."""
    records = random_records(tmp_path, 1)
    stock = stock_map_evaluator(records)
    stock.reset()
    unset = vars(stock).keys() - vars(MeanIoUEvaluator(records, NAMES, load_map)).keys()
    # They belong to predictions in COCO's format.
    assert unset == {"_dataset_name", "_contiguous_id_to_dataset_id"}

    names = COCOEvaluator.__init__.__code__.co_names + COCOEvaluator.reset.__code__.co_names
    fields = {name for name in names if name.startswith("_") and not name.startswith("__")}
    # `_truth` stands for the first.
    assert fields - vars(CocoApEvaluator(records, NAMES)).keys() == {"_coco_api", "_cpu_device"}
