"""The config of a labeled dataset, for tasks of any name."""

from mtfixmatch.engine.setup import resolve_config
from mtfixmatch.inference.dataset_config import write_dataset_config
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.auto_labels import WrittenLabels
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
    write_dataset_config(cfg, tasks, labels, None, folder=str(tmp_path), output="out")
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
    assert (new.FIXMATCH.METHOD, new.DATALOADER.SAMPLING) == ("Supervised", "uniform")
    assert str(out / "training") == new.OUTPUT_DIR


def test_validation_has_a_folder_of_its_own(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(TEXT)
    cfg = resolve_config(str(path), ["MODEL.TASKS", "['detection']"])
    labels = {"detection": WrittenLabels(files=["d.json"], options={})}
    args = (cfg, build_tasks(cfg), labels, labels)
    write_dataset_config(*args, folder=str(tmp_path), output=str(tmp_path))
    own = resolve_config(str(tmp_path / "config.yaml"), []).DATASETS.COCO_STYLE
    assert str(tmp_path / "val" / "images.txt") == own.VAL.IMAGES
    assert [str(tmp_path / "val" / "d.json")] == own.VAL.BOXES
