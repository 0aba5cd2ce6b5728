"""The config of a labeled dataset, for tasks of any name."""

import pytest

from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.inference.dataset_config import write_dataset_config
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.auto_labels import LabeledImage, WrittenLabels
from tests.support.helpers import CONFIGS

TEXT = f"""
_BASE_: "{CONFIGS}/Base-Small.yaml"
MODEL: {{TASKS: [detection, people]}}
DATASETS: {{TRAIN: ["street_train"], TEST: ["street_val"], ROOT: "data"}}
TASKS:
  DETECTION: {{CLASSES: [car], LABELS: 5}}
  PEOPLE: {{KIND: Detection, CLASSES: [person], LABELS: 5, GROUP_REGIONS: background}}
FIXMATCH: {{METHOD: DenseFixMatch}}
DATALOADER: {{SAMPLING: explicit, LABELED: all}}
"""


def image(name, **labels):
    return LabeledImage(record=labels, path=f"/data/{name}", name=name, size=(4, 6), labels={})


IMAGES = [image("a.png", annotations=[]), image("b.png"), image("c.png", annotations=[])]


def test_each_task_has_its_files_and_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "old.yaml"
    path.write_text(TEXT)
    cfg = resolve_config(str(path), [])
    labels = {
        "detection": WrittenLabels(files=["d.json"], options={"THING_CLASSES": ["car"]}),
        "people": WrittenLabels(
            files=["p.json", "p_2.json"],
            options={"THING_CLASSES": ["person"]},
            config={"GROUP_REGIONS": "ignore"},
        ),
    }
    tasks, before = build_tasks(cfg), cfg.dump()
    write_dataset_config(cfg, tasks, IMAGES, labels, None, folder=str(tmp_path), output="out")
    assert cfg.dump() == before
    new = resolve_config(str(tmp_path / "config.yaml"), [])
    own, out = new.DATASETS.COCO_STYLE, tmp_path / "out"
    assert str(out / "images.txt") == own.TRAIN.IMAGES
    assert [str(out / "d.json")] == own.TRAIN.BOXES
    assert [str(out / "p.json"), str(out / "p_2.json")] == own.TRAIN.PEOPLE_BOXES
    assert (own.THING_CLASSES, own.PEOPLE_THING_CLASSES) == (["car"], ["person"])
    assert not own.VAL.IMAGES and tuple(new.DATASETS.TEST) == ("street_val",)
    assert str(tmp_path / "data") == new.DATASETS.ROOT
    assert (new.TASKS.DETECTION.LABELS, new.TASKS.PEOPLE.LABELS) == (-1, -1)
    assert new.TASKS.PEOPLE.GROUP_REGIONS == "ignore"
    assert new.FIXMATCH.METHOD == "DenseFixMatch"
    assert new.DATALOADER.SAMPLING == "explicit"
    assert str(out / "human_images.txt") == new.DATALOADER.LABELED
    assert (tmp_path / "human_images.txt").read_text() == "/data/a.png\n/data/c.png\n"
    assert str(out / "training") == new.OUTPUT_DIR


def test_validation_has_a_folder_of_its_own(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(TEXT)
    cfg = resolve_config(str(path), ["MODEL.TASKS", "['detection']"])
    labels = {"detection": WrittenLabels(files=["d.json"], options={})}
    args = (cfg, build_tasks(cfg), IMAGES, labels, labels)
    write_dataset_config(*args, folder=str(tmp_path), output=str(tmp_path))
    own = resolve_config(str(tmp_path / "config.yaml"), []).DATASETS.COCO_STYLE
    assert str(tmp_path / "val" / "images.txt") == own.VAL.IMAGES
    assert [str(tmp_path / "val" / "d.json")] == own.VAL.BOXES


@pytest.mark.parametrize(
    "opts, expected",
    [
        (["SOLVER.IMS_PER_BATCH", 6, "DATALOADER.LABELED_PER_BATCH", 5], ("explicit", 5)),
        (["SOLVER.IMS_PER_BATCH", 7, "DATALOADER.SAMPLING", "implicit"], ("explicit", 3)),
        (["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.SAMPLING", "uniform"], ("explicit", 1)),
        (["SOLVER.IMS_PER_BATCH", 1, "DATALOADER.SAMPLING", "uniform"], ("uniform", 8)),
    ],
)
def test_human_labels_in_each_batch(tmp_path, opts, expected):
    assert sampling(tmp_path, IMAGES, *opts) == expected


@pytest.mark.parametrize("images", [IMAGES[:1], IMAGES[1:2]])
def test_labels_of_one_kind_are_drawn_alike(tmp_path, images):
    assert sampling(tmp_path, images)[0] == "uniform"
    assert not (tmp_path / "human_images.txt").exists()


def sampling(tmp_path, images, *opts):
    path = tmp_path / "old.yaml"
    path.write_text(TEXT)
    per_batch = ("DATALOADER.LABELED_PER_BATCH", 8)
    cfg = resolve_config(str(path), ["MODEL.TASKS", "['detection']", *per_batch, *opts])
    labels = {"detection": WrittenLabels(files=["d.json"], options={})}
    args = (cfg, build_tasks(cfg), images, labels, None)
    write_dataset_config(*args, folder=str(tmp_path), output=str(tmp_path))
    loader = resolve_config(str(tmp_path / "config.yaml"), []).DATALOADER
    return loader.SAMPLING, loader.LABELED_PER_BATCH
