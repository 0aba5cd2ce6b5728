import logging
import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from mtfixmatch.data import loader as loader_module
from mtfixmatch.data.loader import build_eval_loader, eval_records, labeled_tasks
from mtfixmatch.data.mapper import EvalMapper
from mtfixmatch.engine import evaluation
from mtfixmatch.engine.evaluation import (
    _image_losses,
    class_notes,
    detectron2_table,
    evaluate,
    evaluate_losses,
    flat_results,
    geometric_mean,
    log_results,
    mean_name,
    per_class_table,
)
from mtfixmatch.engine.report import _draw_axis, _results, _task_tables
from mtfixmatch.engine.testing import test as evaluate_on_test
from mtfixmatch.modeling import MultiTaskNet
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import tiny_config

NAN = float("nan")
RESULTS = {
    "detection": {
        **{"mAP": 0.25, "per_class": {"car": 0.3, "bus": NAN}, "std": 0.0},
        "detectron2": {"AP": 25.0, "APs": NAN, "AP-car": 30.0, "AP-bus": NAN},
    },
    "segmentation": {"mIoU": NAN, "per_class": {"road": 0.9}},
    "geometric_mean": 0.5,
}


class Stub(DatasetEvaluator):
    """Counts the images it saw and returns given figures."""

    def __init__(self, results):
        self.results, self.seen = results, []

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [
            (image["image_id"], output) for image, output in zip(inputs, outputs, strict=True)
        ]

    def evaluate(self):
        return dict(self.results)


class Echo(nn.Module):
    """Gives back the image ids, and remembers how it was called."""

    def __init__(self):
        super().__init__()
        self.modes = set()

    def forward(self, inputs):
        self.modes.add((self.training, torch.is_grad_enabled()))
        return [x["image_id"] for x in inputs]


def stub_task(name, metric, value, per_class):
    stub = Stub({metric: value, "per_class": per_class})
    return SimpleNamespace(name=name, metric=metric, evaluator=lambda records: stub, stub=stub)


def stub_tasks(first=0.25, second=0.64):
    return [
        stub_task("boxes", "mAP", first, {"a": 0.1, "b": 0.4, "c": NAN}),
        stub_task("maps", "mIoU", second, {"x": 0.64}),
    ]


LOADER = [[{"image_id": i}] for i in range(8)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.25, 0.64], 0.4), ([0.3], 0.3), ([0.1, 0.2, 0.4], 0.2), ([0.0, 0.9], 0.0), ([1, 1], 1)],
)
def test_geometric_mean(values, expected):
    assert geometric_mean(values) == pytest.approx(expected)


def test_geometric_mean_of_nothing_known():
    assert math.isnan(geometric_mean([0.5, NAN]))


def test_evaluate_by_hand():
    tasks = stub_tasks()
    found = evaluate(Echo(), LOADER, [], tasks)
    assert list(found) == ["boxes", "maps", "geometric_mean"]
    assert found["geometric_mean"] == pytest.approx(0.4)
    assert found["boxes"]["mAP"] == 0.25 and found["maps"]["mIoU"] == 0.64
    # Over the classes that occur: .1 and .4.
    assert found["boxes"]["std"] == pytest.approx(0.15)
    assert found["maps"]["std"] == 0
    for task in tasks:
        assert task.stub.seen == [(i, i) for i in range(8)]


def test_standard_deviation_of_classes_that_never_occur():
    tasks = [stub_task("boxes", "mAP", NAN, {"a": NAN})]
    found = evaluate(Echo(), LOADER, [], tasks)
    assert math.isnan(found["boxes"]["std"]) and math.isnan(found["geometric_mean"])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_and_left_in_its_mode(training):
    model = Echo().train(training)
    evaluate(model, LOADER, [], stub_tasks())
    assert model.modes == {(False, False)} and model.training == training


def test_flat_results_have_no_nan_and_each_class_once():
    assert flat_results(RESULTS, "teacher") == {
        "teacher/detection/mAP": 0.25,
        "teacher/detection/per_class/car": 0.3,
        "teacher/detection/std": 0.0,
        "teacher/detection/detectron2/AP": 25.0,
        "teacher/segmentation/per_class/road": 0.9,
        "teacher/geometric_mean": 0.5,
    }


def test_table_of_classes():
    task = SimpleNamespace(name="boxes", metric="mAP")
    found = {"boxes": {"mAP": 0.25, "per_class": {"car": 0.3, "bus": 0.2}, "std": 0.05}}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in per_class_table(found, task).splitlines()
    ]
    assert rows[0] == ["class", "boxes"]
    assert rows[2:] == [["car", "0.300"], ["bus", "0.200"], ["mean ± std", "0.250 ± 0.050"]]


def test_table_of_detectron2s_means():
    rows = detectron2_table(RESULTS, SimpleNamespace(name="detection")).splitlines()
    assert [row.replace(" ", "") for row in (rows[0], rows[2])] == ["|AP|APs|", "|25.000|nan|"]
    assert detectron2_table(RESULTS, SimpleNamespace(name="segmentation")) == ""


def test_curves_leave_out_classes_and_percentages():
    plotted = []
    axis = MagicMock(plot=lambda *_, label, **__: plotted.append(label))
    history = [{"iteration": 9, **flat_results(RESULTS, "teacher")}]
    _draw_axis(axis, history, "teacher/detection/", "detection: metric")
    assert plotted == ["mAP", "std"]


def test_logged_figures(caplog):
    tasks = stub_tasks()
    with caplog.at_level("INFO", "mtfixmatch.engine.evaluation"):
        log_results(evaluate(Echo(), LOADER, [], tasks), tasks, "teacher")
    for text in ("Evaluation of the teacher", "boxes of the teacher", "0.400", "0.250 ± 0.150"):
        assert text in caplog.text


# Labels for some of the tasks or classes


def test_a_mean_over_fewer_classes_is_never_without_a_note():
    tasks = stub_tasks()
    results = {
        "boxes": {"mAP": 0.25, "per_class": {"a": 0.1, "b": NAN, "c": 0.4, "d": NAN}},
        "maps": {"mIoU": 0.6, "per_class": {"x": 0.6, "y": NAN}},
    }
    assert class_notes(results, tasks) == [
        "mAP is a mean over 2 of 4 classes: b, d never occur in DATASETS.TEST",
        "mIoU is a mean over 1 of 2 classes: y never occurs in DATASETS.TEST",
    ]
    assert class_notes({"boxes": {"mAP": 0.5}}, tasks[:1]) == []  # a kind without classes
    assert class_notes({"maps": {"mIoU": 0.0, "per_class": {"x": 0.0}}}, tasks) == []


def test_notes_of_two_tasks_with_one_metric_name_the_task():
    tasks = [stub_task(name, "mIoU", 0.5, {"x": 0.5, "y": NAN}) for name in ("road", "lane")]
    found = class_notes(evaluate(Echo(), LOADER, [], tasks), tasks)
    assert [note.split(" is ")[0] for note in found] == ["road mIoU", "lane mIoU"]


def test_the_geometric_mean_is_named_by_what_it_is_over(caplog):
    tasks = stub_tasks()
    found = evaluate(Echo(), LOADER, [], tasks[:1])
    assert found.keys() == {"boxes", "geometric_mean"}
    assert found["geometric_mean"] == pytest.approx(0.25)
    assert mean_name(found, tasks) == "geometric mean of boxes alone"
    assert mean_name(found, tasks[:1]) == "geometric mean"  # the network has no other task
    with caplog.at_level("INFO", "mtfixmatch.engine.evaluation"):
        log_results(found, tasks, "teacher")
    assert "geometric mean of boxes alone" in caplog.text and "maps of the" not in caplog.text
    assert "mAP is a mean over 2 of 3 classes: c never occurs in DATASETS.TEST" in caplog.text


def test_the_report_says_what_is_not_evaluated():
    tasks = stub_tasks()
    teacher = evaluate(Echo(), LOADER, [], tasks[:1])
    text = _results({"teacher": teacher, "student": teacher}, tasks)
    assert "geometric mean of boxes alone |" in text and "mIoU" not in text
    assert text.endswith(
        "mAP is a mean over 2 of 3 classes: c never occurs in DATASETS.TEST.\n\n"
        "No image of DATASETS.TEST is labeled for maps."
    )
    assert _task_tables(teacher, tasks)[0] == "## Boxes" and len(_task_tables(teacher, tasks)) == 2
    assert _results({}, tasks) == "DATASETS.TEST is empty: there was no evaluation."
    assert _task_tables({}, tasks) == []


def labeled_by(**keys):
    names = {"is_partial": lambda record: False, "partial_field": ""}
    return [SimpleNamespace(name=name, label_key=key, **names) for name, key in keys.items()]


def records_with(*labels):
    return [{"image_id": str(i), **dict.fromkeys(keys)} for i, keys in enumerate(labels)]


@pytest.mark.parametrize(
    ("records", "evaluated", "kept"),
    [
        (records_with(["a"], [], ["a", "b"], ["b"]), ["first", "second"], "023"),
        (records_with(["a"], [], ["other"]), ["first"], "0"),
    ],
)
def test_tasks_without_a_label_in_validation_are_left_out(
    monkeypatch, caplog, records, evaluated, kept
):
    tasks = labeled_by(first="a", second="b")
    cfg = SimpleNamespace(
        DATASETS=SimpleNamespace(TEST=("own_val",)),
        INPUT=SimpleNamespace(RANGE_16BIT=(0, 65535)),
    )
    monkeypatch.setattr(loader_module, "get_records", lambda names: records)
    monkeypatch.setattr(logging.getLogger("mtfixmatch"), "propagate", True)
    assert "".join(record["image_id"] for record in eval_records(cfg, tasks)) == kept
    assert [task.name for task in labeled_tasks(tasks, records)] == evaluated
    text = "no image of ['own_val'] is labeled for second, which is not evaluated"
    assert set(caplog.messages) == (set() if len(evaluated) == 2 else {text})


def test_validation_without_any_label_is_an_error(monkeypatch):
    tasks = labeled_by(boxes="boxes", maps="maps")
    cfg = SimpleNamespace(
        DATASETS=SimpleNamespace(TEST=("own_val",)),
        INPUT=SimpleNamespace(RANGE_16BIT=(0, 65535)),
    )
    for records in (records_with(["depth"]), []):
        monkeypatch.setattr(loader_module, "get_records", lambda names, found=records: found)
        with pytest.raises(InputError, match=r"no image of \['own_val'\] is .* for boxes, maps: "):
            eval_records(cfg, tasks)


def test_no_validation_is_said(monkeypatch, caplog):
    cfg = SimpleNamespace(DATASETS=SimpleNamespace(TEST=()))
    monkeypatch.setattr(logging.getLogger("mtfixmatch"), "propagate", True)
    assert eval_records(cfg, []) == []
    assert "DATASETS.TEST is empty: nothing is evaluated" in caplog.text


class Oracle(nn.Module):
    """Answers with the labels, as Detectron2's results."""

    def __init__(self, records, tasks):
        super().__init__()
        self.records = {record["image_id"]: record for record in records}
        self.tasks = {task.name: task for task in tasks}

    def forward(self, inputs):
        return [self.answer(self.records[x["image_id"]]) for x in inputs]

    def answer(self, record):
        known = self.tasks["detection"].load_target(record)
        known = known[~known.gt_ignore]
        found = Instances(known.image_size, pred_boxes=Boxes(known.gt_boxes.tensor))
        found.pred_classes, found.scores = known.gt_classes, torch.ones(len(known))
        labels = self.tasks["segmentation"].load_target(record).long()
        labels[labels == 255] = 0
        maps = nn.functional.one_hot(labels, 19).permute(2, 0, 1)
        return {"instances": found, "sem_seg": maps}


@pytest.fixture(scope="module")
def cfg(street_root):
    return tiny_config(street_root)


def test_perfect_answers_on_real_records(cfg, caplog):
    tasks = build_tasks(cfg)
    records = eval_records(cfg, tasks)
    found = evaluate(Oracle(records, tasks), build_eval_loader(cfg, records), records, tasks)
    with caplog.at_level("INFO"):
        log_results(found, tasks, "teacher")
    assert "Task: teacher/detection" in caplog.text and "AP,AP50,AP75,APs,APm,APl" in caplog.text
    assert "Task: teacher/segmentation" in caplog.text
    assert "mIoU,fwIoU,mACC,pACC" in caplog.text
    assert "100.0000,100.0000,100.0000,100.0000" in caplog.text
    assert found["detection"]["detectron2"]["AP75"] == pytest.approx(100)
    assert len(records) == 6
    assert found["geometric_mean"] == pytest.approx(1)
    assert found["detection"]["mAP"] == pytest.approx(1)
    assert found["segmentation"]["mIoU"] == 1
    assert (found["detection"]["std"], found["segmentation"]["std"]) == pytest.approx((0, 0))
    assert len(found["detection"]["per_class"]) == 8
    assert len(found["segmentation"]["per_class"]) == 19


def test_a_task_is_measured_on_its_labeled_images(cfg):
    """Hidden labels of two images for each task change what is measured, not the images seen."""
    tasks = build_tasks(cfg)
    records = eval_records(cfg, tasks)
    partly = [dict(record) for record in records]
    for record in partly[:2]:
        del record["annotations"]
    for record in partly[2:4]:
        del record["sem_seg_file_name"]
    oracle = Oracle(records, tasks)
    found = evaluate(oracle, build_eval_loader(cfg, partly), partly, tasks)
    assert found["geometric_mean"] == pytest.approx(1)


def test_only_the_labeled_tasks_are_measured_with_their_losses(street_root):
    """The figures of the maps are those of an evaluation that knows no boxes at all."""
    cfg = tiny_config(street_root, "TEST.EVAL_LOSSES", True)
    tasks = build_tasks(cfg)
    records = [dict(record) for record in eval_records(cfg, tasks)]
    for record in records:
        del record["annotations"]
    torch.manual_seed(0)
    model = build_model(cfg)
    ranks = SimpleNamespace(callbacks=lambda: {})
    found = evaluate_on_test(cfg, model, tasks, records, "teacher", ranks)
    assert found.keys() == {"segmentation", "geometric_mean"}
    assert found["geometric_mean"] == pytest.approx(found["segmentation"]["mIoU"])
    losses = {key: found["segmentation"].pop(key) for key in ("losses", "image_losses")}
    loader = build_eval_loader(cfg, records)
    expected = flat_results(evaluate(model, loader, records, tasks[1:]), "teacher")
    assert flat_results(found, "teacher") == pytest.approx(expected)
    assert losses == evaluate_losses(model, loader, records, tasks[1:], 6)["segmentation"]


def test_an_untrained_network_is_measured(cfg):
    tasks = build_tasks(cfg)
    records = eval_records(cfg, tasks)
    torch.manual_seed(0)
    model = build_model(cfg)
    found = evaluate(model, build_eval_loader(cfg, records), records, tasks)
    assert 0 <= found["detection"]["mAP"] < 0.05 and 0 < found["segmentation"]["mIoU"] < 0.2
    expected = math.sqrt(found["detection"]["mAP"] * found["segmentation"]["mIoU"])
    assert found["geometric_mean"] == pytest.approx(expected)


class Results(nn.Module):
    """A network with Detectron2's results alone."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(inputs)


def test_figures_are_those_of_detectron2s_results(cfg):
    """Bit by bit: neither maps from data workers nor classes instead of logits change them."""
    tasks = build_tasks(cfg)
    records = eval_records(cfg, tasks)
    torch.manual_seed(1)
    model = build_model(cfg)
    found = evaluate(model, build_eval_loader(cfg, records, tasks), records, tasks)
    expected = evaluate(Results(model), build_eval_loader(cfg, records), records, tasks)
    assert repr(found) == repr(expected) and found["segmentation"]["mIoU"] > 0
    (inputs,) = next(iter(build_eval_loader(cfg, records, tasks)))
    (brief,) = model.eval().inference([inputs], for_evaluators=True)
    height, width = inputs["image"].shape[1:]
    assert brief["sem_seg"].shape == (height, width) and brief["sem_seg"].dtype == torch.uint8


def test_the_precision_of_the_training_if_the_config_says_so(street_root, monkeypatch):
    """The features of the network are in it, its outputs and results in float32."""
    seen = []
    features = MultiTaskNet._features

    def watched(self, images):
        found = features(self, images)
        seen.append({x.dtype for x in found.values()})
        return found

    monkeypatch.setattr(MultiTaskNet, "_features", watched)
    ranks = SimpleNamespace(callbacks=lambda: {})
    opts = ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "bfloat16"]
    figures = {}
    for precision in ("float32", "training"):
        cfg = tiny_config(street_root, *opts, "TEST.PRECISION", precision, "TEST.EVAL_LOSSES", True)
        tasks = build_tasks(cfg)
        torch.manual_seed(0)
        model = build_model(cfg)
        args = (eval_records(cfg, tasks)[:2], "teacher", ranks)
        figures[precision] = evaluate_on_test(cfg, model, tasks, *args)["segmentation"]
    assert seen[:4] == [{torch.float32}] * 4 and seen[4:] == [{torch.bfloat16}] * 4
    losses = [figures[x]["losses"]["ce"] for x in figures]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_broken_map_is_one_clear_error(street_root, tmp_path):
    """A data worker reads it; PyTorch would add the worker's traceback."""
    cfg = tiny_config(street_root, "DATALOADER.NUM_WORKERS", 1)
    tasks = build_tasks(cfg)
    records = [dict(record) for record in eval_records(cfg, tasks)]
    records[1]["sem_seg_file_name"] = str(tmp_path / "missing.png")
    loader = build_eval_loader(cfg, records, tasks)
    with pytest.raises(InputError) as error:
        evaluate(build_model(cfg), loader, records, tasks)
    assert "missing.png" in str(error.value) and "\n" not in str(error.value)


# Losses on whole images


def test_losses_are_means_over_all_labeled_images_together(street_root):
    """The same as those of one batch with both images."""
    cfg = tiny_config(street_root)
    tasks = build_tasks(cfg)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    first, second = [r for r in eval_records(cfg, tasks) if r["annotations"]][:2]
    second = dict(second)
    del second["sem_seg_file_name"]
    records = [first, second]
    found = evaluate_losses(model, build_eval_loader(cfg, records), records, tasks, 2)

    images = torch.stack([EvalMapper()(record)["image"] for record in records]).float() / 255
    size = (128, 256)
    outputs, _ = model(images, {"detection": [True, True], "segmentation": [True, False]})
    for task, labeled in zip(tasks, ([first, second], [first]), strict=True):
        head = model.head(task.name)
        targets = [task.load_target(record) for record in labeled]
        assigned = head.assign(targets, [False] * len(targets), size)
        count = float(sum(x.count for x in assigned))
        losses = head.losses(outputs[task.name], assigned, size, torch.ones(len(targets)))
        for part, value in losses.items():
            expected = pytest.approx(float(value) / count, rel=1e-4)
            assert found[task.name]["losses"][part] == expected


def test_losses_as_means_over_all_images(cfg, monkeypatch):
    """Sums of 6 and 3 over 2 and 0 boxes of two of five images; a map with 8 over 4 pixels."""
    tasks = build_tasks(cfg)
    given = iter(
        [
            {"detection": {"cls": 6.0, "box": 2.0, "count": 2.0}},
            {
                "detection": {"cls": 3.0, "box": 0.0, "count": 0.0},
                "segmentation": {"ce": 8.0, "count": 4.0},
            },
        ]
    )
    monkeypatch.setattr(evaluation, "_image_losses", lambda *args: next(given))
    loader = [[{"image_id": i, "image": None}] for i in range(2)]
    records = [{"image_id": i} for i in range(2)]
    found = evaluate_losses(Echo(), loader, records, tasks, 5)
    assert found["detection"]["losses"] == {"cls": 9 / 2, "box": 2 / 2}
    # (6 / 2 + 3 / 1) / 5 and (2 / 2 + 0) / 5: an image without a box counts with its sum.
    assert found["detection"]["image_losses"] == pytest.approx({"cls": 6 / 5, "box": 1 / 5})
    assert found["segmentation"] == {"losses": {"ce": 2.0}, "image_losses": {"ce": 2 / 5}}


def test_the_images_of_a_single_task_are_all_test_images(street_root):
    """Three of six images are evaluated, as if the others had no map, but the mean is over six."""
    cfg = tiny_config(street_root, "TEST.EVAL_LOSSES", True, "MODEL.TASKS", ["segmentation"])
    tasks = build_tasks(cfg)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    records = eval_records(cfg, tasks)
    ranks = SimpleNamespace(callbacks=lambda: {})
    losses = evaluate_on_test(cfg, model, tasks, records[:3], "x", ranks)["segmentation"]
    loader = build_eval_loader(cfg, records[:3])
    of_three = evaluate_losses(model, loader, records[:3], tasks, 3)["segmentation"]
    assert losses["losses"] == pytest.approx(of_three["losses"])
    assert losses["image_losses"]["ce"] == pytest.approx(of_three["image_losses"]["ce"] / 2)


def test_padding_takes_no_part_in_the_losses(street_root, tmp_path):
    """An image of 100 x 250 is padded to 128 x 256; nothing is known there."""
    cfg = tiny_config(street_root)
    tasks = build_tasks(cfg)
    model = build_model(cfg).eval()
    Image.fromarray(np.zeros((100, 250, 3), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.full((100, 250), 7, np.uint8)).save(tmp_path / "map.png")
    record = {
        **eval_records(cfg, tasks)[0],
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "map.png"),
        "height": 100,
        "width": 250,
    }
    del record["annotations"]
    found = _image_losses(model, EvalMapper()(record)["image"], record, tasks)
    assert list(found) == ["segmentation"]
    assert found["segmentation"]["count"] == 100 * 250
