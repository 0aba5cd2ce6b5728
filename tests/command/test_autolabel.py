"""A dataset labeled by a network: what it holds, and that a training starts on it."""

import csv
import errno
import json
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from mtfixmatch.check.dataset import check_data
from mtfixmatch.data.datasets import get_records
from mtfixmatch.data.loader import train_records
from mtfixmatch.engine import load_config
from mtfixmatch.inference.autolabel import autolabel
from mtfixmatch.inference.label_images import image_names
from mtfixmatch.inference.measure import Settings
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.auto_labels import HUMAN, AutoLabeled
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.labels import IGNORE_LABEL
from tests.support.engine_helpers import build_trainer, run_config
from tests.support.helpers import REPOSITORY, tiny_config
from tests.support.own_data import annotation, black, listed, save
from tests.support.partial import NAME, partial_dataset

NETWORK = "oracle@0123456789ab"
STRICT = Settings(precision=1.0, lower=0.5, least=1)
RIGHT, WRONG = 0.875, 0.25  # scores
SHORT = ("SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 0)


class Oracle:
    """A network that knows the labels, has them at a high score, and a wrong box at a low one."""

    def __init__(self, cfg, names=("street_train", "street_val")):
        self.tasks = {task.name: task for task in build_tasks(cfg)}
        self.records = {x["file_name"]: x for name in names for x in get_records([name])}
        self.seen = []

    def __call__(self, inputs):
        (image,) = inputs
        self.seen.append(image["file_name"])
        record = self.records[image["file_name"]]
        return [{"instances": self.boxes(record), "sem_seg": self.logits(record)}]

    def boxes(self, record):
        annotations = [a for a in record.get("annotations", ()) if not a["iscrowd"]]
        rows = [a["bbox"] for a in annotations] + [[0, 0, 2, 2]]
        boxes = Instances((record["height"], record["width"]))
        boxes.pred_boxes = Boxes(torch.tensor(rows, dtype=torch.float32))
        boxes.scores = torch.tensor([RIGHT] * len(annotations) + [WRONG])
        boxes.pred_classes = torch.tensor([a["category_id"] for a in annotations] + [0])
        return boxes

    def logits(self, record):
        """Logits that are sure of the label, and unsure in the first column."""
        task = self.tasks["segmentation"]
        labels = torch.from_numpy(task.load_map(record)).long()
        labels[labels == IGNORE_LABEL] = 0
        logits = torch.nn.functional.one_hot(labels, len(task.class_names)).permute(2, 0, 1) * 20.0
        logits[:, :, 0] = 0.0
        logits[-1, :, 0] = 0.1
        return logits


def predictor(cfg, model, **other):
    tasks, size = build_tasks(cfg), tuple(cfg.INPUT.RANGE_16BIT)
    known = {"name": "oracle", "identity": NETWORK, "range_16bit": size, "tasks": tasks}
    return SimpleNamespace(**{**known, "model": model, **other})


def config(root, *opts):
    return tiny_config(root, "TASKS.DETECTION.LABELS", 5, "TASKS.SEGMENTATION.LABELS", 4, *opts)


def run(cfg, output, settings=STRICT, names=("street_train", "street_val")):
    model = Oracle(cfg, names)
    return autolabel(predictor(cfg, model), cfg, str(output), settings), model


def reload(output, root, *opts):
    """The config of a new dataset, and its training images by file."""
    cache = ("DATASETS.CACHE_DIR", str(root / "cache"))
    cfg = load_config(str(output / "config.yaml"), [*cache, *opts])
    tasks = build_tasks(cfg)
    records = {x["file_name"]: x for x in train_records(cfg, tasks)}
    return cfg, {task.name: task for task in tasks}, records


@pytest.fixture(scope="module")
def labeled(street_root, tmp_path_factory):
    """Street labeled by an oracle, with the images as the training had them, and all labels."""
    cfg = config(street_root)
    output = tmp_path_factory.mktemp("auto") / "new"
    report, model = run(cfg, output)
    hidden = {x["file_name"]: x for x in train_records(cfg, build_tasks(cfg))}
    truth = {x["file_name"]: x for x in get_records(["street_train"])}
    parts = {"cfg": cfg, "output": output, "report": report, "model": model}
    return SimpleNamespace(**parts, hidden=hidden, truth=truth, root=street_root)


def test_human_labels_are_unchanged(labeled):
    _, tasks, records = reload(labeled.output, labeled.root)
    assert records.keys() == labeled.truth.keys()
    boxes = [name for name, x in labeled.hidden.items() if "annotations" in x]
    maps = [name for name, x in labeled.hidden.items() if "sem_seg_file_name" in x]
    assert (len(boxes), len(maps)) == (5, 4)
    for name in boxes:
        assert records[name]["annotations"] == labeled.truth[name]["annotations"]
        assert "labeled_classes" not in records[name]
    for name in maps:
        pair = [tasks["segmentation"].load_map(x[name]) for x in (records, labeled.truth)]
        assert pair[0].tobytes() == pair[1].tobytes()


def test_the_network_fills_what_is_missing(labeled):
    _, tasks, records = reload(labeled.output, labeled.root)
    # Classes that validation does not have are not measured, so they are left out.
    measured = {a["category_id"] for x in get_records(["street_val"]) for a in x["annotations"]}
    for name, record in records.items():
        if "annotations" in labeled.hidden[name]:
            continue
        truth = [a for a in labeled.truth[name]["annotations"] if not a["iscrowd"]]
        kept = [a for a in truth if a["category_id"] in measured]
        own = record["annotations"]
        assert [a["category_id"] for a in own] == [a["category_id"] for a in kept]
        assert np.allclose([a["bbox"] for a in own], [a["bbox"] for a in kept], atol=1e-4)
        assert not any(a["iscrowd"] for a in own)
        assert record.get("labeled_classes", sorted(measured)) == sorted(measured)
    task = tasks["segmentation"]
    filled = [x for x in records if "sem_seg_file_name" not in labeled.hidden[x]]
    assert len(filled) == 12
    for name in filled:
        pixels, truth = task.load_map(records[name]), task.load_map(labeled.truth[name])
        assert (pixels[:, 0] == IGNORE_LABEL).all()
        kept = pixels != IGNORE_LABEL
        assert kept.mean() > 0.9
        assert (pixels[kept] == np.where(truth == IGNORE_LABEL, 0, truth)[kept]).all()


def test_the_network_sees_images_that_lack_a_label(labeled):
    seen = labeled.model.seen
    lacking = [
        name
        for name, x in labeled.hidden.items()
        if not {"annotations", "sem_seg_file_name"} <= x.keys()
    ]
    assert seen[:6] == [x["file_name"] for x in get_records(["street_val"])]
    assert seen[6:] == lacking and len(lacking) == 12


def test_provenance_scores_and_report(labeled):
    boxes = [
        box
        for path in labeled.output.glob("detection*.json")
        for box in json.loads(path.read_text())["annotations"]
    ]
    assert {x["provenance"] for x in boxes} == {HUMAN, NETWORK}
    assert {x.get("score") for x in boxes} == {None, RIGHT}
    with open(labeled.output / "segmentation_provenance.csv") as file:
        rows = list(csv.DictReader(file))
    assert sorted(x["provenance"] for x in rows) == [HUMAN] * 4 + [NETWORK] * 12
    assert all((labeled.output / x["map"]).is_file() for x in rows)
    report = labeled.report
    assert report == (labeled.output / "autolabel.md").read_text()
    assert "| car " in report and "16 of 16 images are labeled, 5 by humans" in report
    assert "16 of 16 images are labeled, 4 by humans" in report


def test_least_certain_first(labeled):
    with open(labeled.output / "review.csv") as file:
        rows = list(csv.DictReader(file))
    unsure = [float(x["unsure"]) for x in rows]
    assert unsure == sorted(unsure, reverse=True) and unsure[0] > 0
    assert {x["image"] for x in rows} <= labeled.truth.keys()
    with Image.open(labeled.output / "contact_sheet.png") as sheet:
        assert sheet.width == 2 * 256 + 2 * 4


def test_the_data_check_passes_and_a_training_starts(labeled, tmp_path):
    output = ("OUTPUT_DIR", str(tmp_path / "run"))
    cfg, *_ = reload(labeled.output, labeled.root, *SHORT, *output, "SOLVER.AMP.ENABLED", False)
    assert not check_data(cfg, str(tmp_path / "check"), decode_all=True).errors
    assert cfg.FIXMATCH.METHOD == "Supervised" and cfg.DATASETS.TEST == ("street_val",)
    build_trainer(cfg).train()
    assert (tmp_path / "run" / "model_final.pth").exists()


def test_measured_on_hidden_labels(street_root, tmp_path):
    """What is measured on is a human label, too."""
    cfg = config(street_root, "DATASETS.TEST", ())
    hidden = Settings(precision=1.0, lower=0.5, least=1, source="hidden")
    report, model = run(cfg, tmp_path / "new", hidden)
    assert "16 of 16 images are labeled, 16 by humans" in report
    assert len(model.seen) == 12 == len(set(model.seen))
    _, _, records = reload(tmp_path / "new", street_root)
    truth = {x["file_name"]: x for x in get_records(["street_train"])}
    assert all(x["annotations"] == truth[name]["annotations"] for name, x in records.items())


def test_partial_labels_are_completed(street_root, tmp_path):
    with partial_dataset(street_root) as opts:
        cfg = tiny_config(street_root, *opts)
        partial = {x["file_name"]: x for x in get_records([NAME])}
        run(cfg, tmp_path / "new")
        task = build_tasks(cfg)[1]
        maps = {name: task.load_map(x) for name, x in partial.items()}
    _, tasks, records = reload(tmp_path / "new", street_root)
    truth = {x["file_name"]: x for x in get_records(["street_train"])}
    measured = {a["category_id"] for x in get_records(["street_val"]) for a in x["annotations"]}
    assert records.keys() == partial.keys() and any(
        "labeled_classes" in x for x in partial.values()
    )
    for name, record in records.items():
        human, classes = partial[name]["annotations"], partial[name].get("labeled_classes")
        own = record["annotations"]
        assert own[: len(human)] == human
        if classes is not None:
            others = [a for a in truth[name]["annotations"] if a["category_id"] not in classes]
            kept = [a for a in others if a["category_id"] in measured and not a["iscrowd"]]
            added = [a["category_id"] for a in own[len(human) :]]
            assert added == [a["category_id"] for a in kept]
            assert set(record.get("labeled_classes", range(8))) == {*classes, *measured}
        pixels, known = tasks["segmentation"].load_map(record), maps[name] != IGNORE_LABEL
        assert (pixels[known] == maps[name][known]).all()
        assert (pixels[~known] != IGNORE_LABEL).any()


# The user's own data


ROAD, SKY = 7, 9  # values in the maps


@pytest.fixture
def own(tmp_path, street_root):
    """Boxes in a, a map in b, c unlabeled, d broken; v and w are those of validation."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        black(tmp_path / "train" / name)
    save(tmp_path / "val" / "v.jpg", np.full((20, 30, 3), 128, np.uint8))
    broken = tmp_path / "train" / "d.jpg"
    save(broken, np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    broken.write_bytes(broken.read_bytes()[:-300])  # after its header
    pixels = np.array([[ROAD] * 15 + [SKY] * 15] * 20, np.uint8)
    pixels[0] = 255
    save(tmp_path / "maps" / "b_mask.png", pixels)
    save(tmp_path / "val_maps" / "v_mask.png", pixels)
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    for name, image in (("boxes", "a.jpg"), ("val_boxes", "v.jpg")):
        boxes = [annotation(1, 11, [2.1, 3, 10.3, 5]), annotation(2, 11, [0, 0, 9, 9], iscrowd=1)]
        content = {"images": [listed(11, image)], "categories": categories, "annotations": boxes}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    place = "DATASETS.COCO_STYLE"
    opts = {
        "DATASETS.TRAIN": ("coco_style_train",),
        "DATASETS.TEST": ("coco_style_val",),
        f"{place}.MAP_VALUES": [[ROAD, "road"], [SKY, "sky"]],
        f"{place}.MAP_NAMES": "{stem}_mask.png",
    }
    for split, images, boxes, maps in (
        ("TRAIN", "train", "boxes.json", "maps"),
        ("VAL", "val", "val_boxes.json", "val_maps"),
    ):
        files = {"IMAGES": images, "BOXES": boxes, "MAPS": maps}
        opts |= {f"{place}.{split}.{key}": str(tmp_path / x) for key, x in files.items()}
    pairs = [x for pair in opts.items() for x in pair]
    return SimpleNamespace(cfg=tiny_config(street_root, *pairs), root=tmp_path)


class Fixed(Oracle):
    """A network with the same results for every image: a dog, and road beside sky."""

    def __call__(self, inputs):
        return super().__call__([inputs[0] | {"file_name": self.model_image}])


def run_own(own, settings=STRICT):
    model = Fixed(own.cfg, ("coco_style_val",))
    model.model_image = next(iter(model.records))
    report = autolabel(predictor(own.cfg, model), own.cfg, str(own.root / "new"), settings)
    return report, *reload(own.root / "new", own.root)


def test_own_data_with_its_validation(own):
    before = {x["file_name"]: x for x in get_records(["coco_style_val"])}
    train = {Path(x["file_name"]).name: x for x in get_records(["coco_style_train"])}
    old = build_tasks(own.cfg)[1]
    maps = {name: old.load_map(x) for name, x in before.items()}
    report, cfg, tasks, records = run_own(own)
    assert (
        "detection, left out because the precision is not reached, or rests on too few: cat"
        in report
    )
    assert "images that cannot be read, left out: 1 (cannot read the image" in report
    after = {x["file_name"]: x for x in get_records(["coco_style_val"])}
    assert after.keys() == before.keys()
    for name, record in after.items():
        assert record["annotations"] == before[name]["annotations"]
        assert np.array_equal(tasks["segmentation"].load_map(record), maps[name])
    named = {Path(name).name: record for name, record in records.items()}
    assert named.keys() == {"a.jpg", "b.jpg", "c.jpg"}
    assert named["a.jpg"]["annotations"] == train["a.jpg"]["annotations"]
    dog = tasks["detection"].class_names.index("dog")
    for name in ("b.jpg", "c.jpg"):
        assert named[name]["labeled_classes"] == [dog]
        assert [x["category_id"] for x in named[name]["annotations"]] == [dog]
    human = tasks["segmentation"].load_map(named["b.jpg"])
    assert (human[0] == IGNORE_LABEL).all() and human[1, 0] == 0
    filled = tasks["segmentation"].load_map(named["c.jpg"])
    assert (filled[:, 0] == IGNORE_LABEL).all() and (filled[:, 1:15] == 0).all()
    findings = check_data(cfg, str(own.root / "check"), decode_all=True)
    assert not findings.errors


# Bad input


def message(cfg, output, settings=STRICT, model=None, **other):
    with pytest.raises(InputError) as error:
        autolabel(predictor(cfg, model or Oracle(cfg), **other), cfg, str(output), settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_network_of_other_data(street_root, tmp_path):
    cfg = config(street_root)
    detection, segmentation = build_tasks(cfg)
    assert message(cfg, tmp_path / "new", tasks=[detection]) == (
        "oracle has the tasks detection (Detection), but the config segmentation (Segmentation) "
        "in MODEL.TASKS"
    )
    detection.class_names = detection.class_names[::-1]
    text = message(cfg, tmp_path / "new", tasks=[detection, segmentation])
    assert text.startswith("oracle has the classes ['bicycle', ") and "the same are needed" in text
    text = message(cfg, tmp_path / "new", range_16bit=(0, 4095))
    assert text.startswith("INPUT.RANGE_16BIT is (0, 65535) in the config, but oracle")
    assert not os.listdir(tmp_path)


def test_an_output_that_is_there(street_root, tmp_path):
    cfg = config(street_root)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("mine")
    text = message(cfg, tmp_path / "new")
    assert text == f"--output {tmp_path / 'new'}: the folder is not empty; name another one"
    text = message(cfg, tmp_path / "new" / "mine.txt")
    assert text.endswith("it is a file, expected a folder")
    assert (tmp_path / "new" / "mine.txt").read_text() == "mine"


def test_nothing_to_measure_on(street_root, tmp_path):
    text = message(config(street_root, "DATASETS.TEST", ()), tmp_path / "new")
    assert text.startswith("no labeled image to measure on (test): name a labeled dataset in DATA")
    hidden = Settings(source="hidden")
    text = message(tiny_config(street_root), tmp_path / "new", hidden)
    assert text.startswith("no labeled image to measure on (hidden)")


def test_measured_images_are_not_those_of_the_training(street_root, tmp_path):
    text = message(config(street_root, "DATASETS.TEST", ("street_train",)), tmp_path / "new")
    assert text.startswith("5 images of DATASETS.TEST are labeled training images, such as /")


def test_a_measured_image_that_cannot_be_read(own):
    (image,) = get_records(["coco_style_val"])
    path = Path(image["file_name"])
    save(path, np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-300])
    model = Oracle(own.cfg, ("coco_style_val",))
    assert message(own.cfg, own.root / "new", model=model).startswith(
        f"cannot read the image {path}"
    )


@pytest.mark.parametrize("name", ["a $HOME.jpg", "a\\b.jpg", "a\nb.jpg", "a.jpg "])
def test_names_that_a_list_cannot_hold(name):
    with pytest.raises(InputError, match="a list of files cannot hold it"):
        image_names([{"file_name": f"/data/{name}"}])


def test_names_below_the_folder_that_images_share():
    names = image_names([{"file_name": x} for x in ("/data/x/a.jpg", "/data/x/y/a.jpg")])
    assert names == {"/data/x/a.jpg": "a.jpg", "/data/x/y/a.jpg": "y/a.jpg"}


def test_no_class_reaches_the_precision(street_root, tmp_path):
    text = message(config(street_root), tmp_path / "new", Settings(least=10**9))
    assert text.startswith("no class reaches a precision of 0.9 on 6 images with 1000000000 pred")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"precision": 1.5}, "expected 0 < lower <= precision <= 1"),
        ({"precision": 0.5, "lower": 0.6}, "expected 0 < lower <= precision <= 1"),
        ({"least": 0}, "expected 1 or more"),
    ],
)
def test_settings_that_cannot_be_used(values, words):
    with pytest.raises(InputError, match=words):
        Settings(**values)


def test_a_full_disk_leaves_nothing_behind(street_root, tmp_path, monkeypatch):
    cfg, model = config(street_root), Oracle(config(street_root))
    calls, replace = [], os.replace

    def fill(source, target):
        calls.append(target)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr("mtfixmatch.utils.files.os.replace", fill)
    text = message(cfg, tmp_path / "new", model=model)
    assert text.endswith("cannot be written: No space left on device")
    assert len(calls) == 11 and not os.listdir(tmp_path)


def test_a_kind_that_cannot_be_autolabeled():
    kind = type("Depth", (AutoLabeled,), {"name": "depth"})
    for attempt in (kind().score_meter, lambda: kind().auto_labeler([], "", "")):
        with pytest.raises(InputError, match=r"^depth: tasks of the kind Depth cannot be autolab"):
            attempt()


# The command


def test_the_command_labels_what_a_training_left(street_root, tmp_path, monkeypatch, capsys):
    steps = ("SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 30)
    limits = ("TASKS.DETECTION.LABELS", 5, "TASKS.SEGMENTATION.LABELS", 8)
    method = ("FIXMATCH.METHOD", "Supervised", "DATALOADER.SAMPLING", "uniform")
    cfg = run_config(street_root, tmp_path / "run", *steps, *limits, *method)
    Path(cfg.OUTPUT_DIR).mkdir()
    config_file = Path(cfg.OUTPUT_DIR, "config.yaml")
    config_file.write_text(cfg.dump())
    build_trainer(cfg).train()
    words = [
        cfg.OUTPUT_DIR,
        "--config-file",
        str(config_file),
        "--output",
        "new",
        "--device",
        "cpu",
    ]
    # A constant map is right in more than a third of the pixels, which are road.
    words += ["--precision", "0.2", "--lower", "0.1", "--least", "3", "--to", "coco", "cvat"]
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *words) is None
    printed = capsys.readouterr().out
    assert "16 of 16 images are labeled, 8 by humans" in printed
    assert printed.endswith("--config-file new/config.yaml\n")
    names = {x.name for x in (tmp_path / "new").iterdir()}
    assert {"config.yaml", "review.csv", "contact_sheet.png", "coco", "cvat"} <= names
    with open(tmp_path / "new" / "segmentation_provenance.csv") as file:
        sources = {x["provenance"] for x in csv.DictReader(file)}
    assert HUMAN in sources and any(x.startswith("run@") for x in sources)
    error = command(monkeypatch, *words)
    assert error == "error: --output new: the folder is not empty; name another one"


def command(monkeypatch, *words):
    """What the command exits with."""
    script = str(REPOSITORY / "projects" / "autolabel.py")
    monkeypatch.setattr(sys, "argv", [script, *words])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code
    return None
