"""A task is a named instance of a kind: two of one kind, a kind without classes, another head."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from mtfixmatch.check.dataset import check_data
from mtfixmatch.check.report import check_report
from mtfixmatch.engine.setup import load_config, resolve_config
from mtfixmatch.model_zoo import get, publish
from mtfixmatch.tasks import TASK_REGISTRY, build_tasks
from mtfixmatch.utils.errors import InputError
from tests.support.brightness import Brightness
from tests.support.engine_helpers import (
    build_trainer,
    losses_of,
    make_batch,
    run_config,
    run_step,
    train_and_record,
)
from tests.support.helpers import CONFIGS, SMALL, tiny_config

GROUND = [0, 1, 8, 9]  # classes of Cityscapes: road, sidewalk, vegetation, terrain
DRIVABLE = ["road", "other ground"]


# Two tasks of one kind


@pytest.fixture(scope="module")
def two_maps(street_root, tmp_path_factory):
    """A config file with a second segmentation task, and datasets with its labels."""
    cfg = tiny_config(street_root)
    lut = np.full(256, 255, np.uint8)
    for split in ("train", "val"):
        records = []
        for record in DatasetCatalog.get(f"street_{split}"):
            own = np.frombuffer(record["sem_seg_lut"], np.uint8)
            lut = np.select([own == 0, np.isin(own, GROUND)], [0, 1], 255).astype(np.uint8)
            more = {
                "drivable_sem_seg_file_name": record["sem_seg_file_name"],
                "drivable_sem_seg_lut": lut.tobytes(),
            }
            records.append(record | more)
        name = f"two_maps_{split}"
        DatasetCatalog.register(name, lambda records=records: records)
        metadata = MetadataCatalog.get(f"street_{split}").as_dict()
        known = {key: metadata[key] for key in ("thing_classes", "stuff_classes", "stuff_colors")}
        MetadataCatalog.get(name).set(**known, drivable_stuff_classes=DRIVABLE)
    path = tmp_path_factory.mktemp("two_maps") / "two_maps.yaml"
    path.write_text(
        f'_BASE_: "{CONFIGS / "street" / "resnet18.yaml"}"\n'
        "MODEL: {TASKS: [detection, segmentation, drivable]}\n"
        "DATASETS: {TRAIN: [two_maps_train], TEST: [two_maps_val]}\n"
        "TASKS: {DRIVABLE: {KIND: Segmentation, LABELS: 5, LOSS_WEIGHT: 2.0}}\n"
    )
    yield path, cfg
    for split in ("train", "val"):
        DatasetCatalog.remove(f"two_maps_{split}")
        MetadataCatalog.remove(f"two_maps_{split}")


def two_maps_config(two_maps, street_root, output, *opts):
    path, _ = two_maps
    places = {"DATASETS.ROOT": str(street_root), "OUTPUT_DIR": str(output)}
    more = {"DATALOADER.SAMPLING": "implicit", "SOLVER.MAX_ITER": 3, "TEST.PICTURES": 2}
    given = [x for pair in (SMALL | places | more).items() for x in pair]
    return load_config(str(path), [*given, "SOLVER.AMP.ENABLED", False, *opts])


def test_two_segmentation_tasks_train_in_one_network(two_maps, street_root, tmp_path):
    cfg = two_maps_config(two_maps, street_root, tmp_path)
    assert list(cfg.TASKS.DRIVABLE.CLASSES) == DRIVABLE
    (tmp_path / "config.yaml").write_text(cfg.dump())
    trainer = build_trainer(cfg)
    labeled = [sum(t.label_key in r for r in trainer.records) for t in trainer.tasks]
    assert labeled == [16, 16, 5]
    results = trainer.train()["teacher"]
    assert set(results["drivable"]["per_class"]) == set(DRIVABLE)
    assert len(results["segmentation"]["per_class"]) == 19
    product = np.prod([results[x][m] for x, m in METRICS.items()])
    assert results["geometric_mean"] == pytest.approx(product ** (1 / 3))
    history = trainer.storage.latest()
    assert {"loss_drivable_ce", "loss_drivable_ce_unsup", "loss_segmentation_ce"} <= set(history)
    report = (tmp_path / "report.md").read_text()
    assert "segmentation mIoU" in report and "drivable mIoU" in report
    assert (tmp_path / "predictions.png").stat().st_size > 1000
    check_publication(tmp_path, tmp_path / "zoo")


def check_publication(run, root):
    facts = publish.publish(run, "two_maps", str(root))
    assert facts["classes"]["drivable"] == DRIVABLE and facts["labels"]["drivable"]["count"] == 5
    assert facts["command"] is None and facts["not_in_package"][0] == "task drivable"
    header, _, row, *notes = publish.zoo_table(str(root)).splitlines()
    where = "17 of 19 classes: truck, train never occur in DATASETS.TEST"
    assert f"two_maps: segmentation mIoU is a mean over {where}" in notes
    titles, cells = ([c.strip() for c in x.split("|")[1:-1]] for x in (header, row))
    labels = [f"{task} labels" for task in METRICS]
    assert titles[1:7] == [*labels, "mAP", "segmentation mIoU", "drivable mIoU"]
    assert cells[1:4] == ["16", "16", "5"]
    assert "not in this package: task drivable, dataset two_maps_train" in row
    model = get("two_maps", trained=True, root=root, device="cpu")
    assert list(model.heads) == list(METRICS)


METRICS = {"detection": "mAP", "segmentation": "mIoU", "drivable": "mIoU"}


def test_each_task_has_its_own_place_in_the_result(two_maps, street_root, tmp_path):
    cfg = two_maps_config(two_maps, street_root, tmp_path)
    (result,) = build_model(cfg).eval()([{"image": torch.zeros(3, 32, 64)}])
    assert result["sem_seg"].shape == (19, 32, 64)
    assert result["drivable_sem_seg"].shape == (2, 32, 64)
    assert set(result) == {"instances", "sem_seg", "drivable_sem_seg"}


def test_tasks_of_a_config_file_are_checked(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("TASKS: {DRIVABLE: {LABELS: 5}}\n")
    with pytest.raises(InputError, match="TASKS.DRIVABLE.KIND is '': it must be one of Detection"):
        resolve_config(str(path), [])
    path.write_text("TASKS: {DRIVABLE: {KIND: Segmentation, LABELZ: 5}}\n")
    with pytest.raises(InputError, match="TASKS.DRIVABLE: .*LABELZ"):
        resolve_config(str(path), [])


# A kind without classes


@pytest.fixture
def brightness():
    TASK_REGISTRY.register(Brightness)
    yield
    del TASK_REGISTRY._obj_map["Brightness"]


def test_a_kind_without_classes_trains_reports_and_is_published(brightness, street_root, tmp_path):
    tasks = ("MODEL.TASKS", ["detection", "brightness"], "SOLVER.MAX_ITER", 3)
    labels = ("TASKS.BRIGHTNESS.LABELS", 6, "TEST.PICTURES", 1)
    cfg = run_config(street_root, tmp_path / "run", *tasks, *labels)
    assert "classes" not in str(build_tasks(cfg)[1].class_names)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    losses = train_and_record(cfg)
    assert all({"loss_brightness_l2", "loss_brightness_l2_unsup"} <= set(x) for x in losses)
    results = json.loads((tmp_path / "run" / "results.json").read_text())["teacher"]
    assert 0 <= results["brightness"]["closeness"] <= 1
    assert "per_class" not in results["brightness"] and "std" not in results["brightness"]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| closeness | " in report and "## Brightness" in report

    findings = check_data(cfg, str(tmp_path / "check"), decode_all=False)
    assert findings.errors == []
    text = check_report(findings, [])
    assert "labeled for brightness" in text and "maps" in text

    facts = publish.publish(tmp_path / "run", "bright", str(tmp_path / "zoo"))
    assert facts["classes"]["brightness"] == []
    assert "closeness" in publish.zoo_table(str(tmp_path / "zoo"))
    model = get("bright", trained=True, root=tmp_path / "zoo", device="cpu")
    (result,) = model([{"image": torch.zeros(3, 64, 64)}])
    assert result["grid"].shape == (64, 64)


# Another head for detection


def fcos_config(root: Path, output: Path, *opts):
    head = ("TASKS.DETECTION.HEAD", "FCOSHead", "MODEL.FCOS.NUM_CONVS", 1)
    return run_config(root, output, *head, "TASKS.DETECTION.LABELS", 6, *opts)


def test_fcos_trains_pseudo_labels_and_evaluates(street_root, tmp_path):
    cfg = fcos_config(street_root, tmp_path, "SOLVER.MAX_ITER", 6, "TEST.EVAL_LOSSES", True)
    losses = train_and_record(cfg)
    names = [f"loss_detection_{part}" for part in ("cls", "box", "centerness")]
    assert all(name in losses[0] for name in [*names, *(f"{name}_unsup" for name in names)])
    assert any(step["loss_detection_centerness_unsup"] > 0 for step in losses)
    results = json.loads((tmp_path / "results.json").read_text())["teacher"]
    assert 0 <= results["detection"]["mAP"] <= 1
    assert set(results["detection"]["losses"]) == {"cls", "box", "centerness"}


def test_fcos_learns_a_batch_by_heart(street_root, tmp_path):
    opts = ("FIXMATCH.METHOD", "Supervised", "TASKS.DETECTION.LABELS", -1)
    more = ("SOLVER.BASE_LR", 0.02, "MODEL.TASKS", ["detection"], "MODEL.RESNETS.NORM", "GN")
    size = ("INPUT.TRAIN_SIZE", (128, 256), "INPUT.SCALE_RANGE", (1.0, 1.0))
    trainer = build_trainer(fcos_config(street_root, tmp_path, *opts, *more, *size))
    batch = make_batch(trainer, "dd")
    total = [losses_of(run_step(trainer, batch, step=step))["total_loss"] for step in range(30)]
    assert np.mean(total[-3:]) < 0.8 * np.mean(total[:3])


def test_fcos_assigns_by_center_and_size(street_root, tmp_path):
    """A box of 40 x 40 belongs to stride 8 (sizes up to 64): the locations near its center."""
    model = build_model(fcos_config(street_root, tmp_path))
    head = model.head("detection")
    task = build_tasks(fcos_config(street_root, tmp_path))[0]
    record = {"height": 64, "width": 64}
    box = {"bbox": [12, 12, 52, 52], "category_id": 2}
    target = task.load_target(record | {"annotations": [box]})
    (assigned,) = head.assign([target], [False], (64, 64))
    positive = (assigned.tensors[0] == 2).nonzero().flatten().tolist()
    # The center is (32, 32), the radius 1.5 strides = 12: locations at 28 and 36, not 20 or 44.
    assert positive == [8 * row + column for row in (3, 4) for column in (3, 4)]
    assert int(assigned.count) == 4
    (pseudo,) = head.assign([target], [True], (64, 64))
    assert (pseudo.tensors[0] == -1).sum() == len(pseudo.tensors[0]) - 4
