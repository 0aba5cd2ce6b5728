"""The check of the data: counts known by hand, planted faults, the real command."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mtfixmatch.augmentation.strong import StrongAugmentation
from mtfixmatch.check import dataset
from mtfixmatch.check import files as check
from mtfixmatch.check.dataset import check_data, count_ignored
from mtfixmatch.check.findings import READERS, Findings, ReaderWarnings, Split, limit_lines
from mtfixmatch.check.report import check_report
from mtfixmatch.check.sheet import SAMPLES, label_name, pick_samples, take_snapshot
from mtfixmatch.data.datasets import get_records
from mtfixmatch.data.loader import train_records
from mtfixmatch.data.mapper import TrainMapper
from mtfixmatch.data.samplers import Draw
from mtfixmatch.engine.visualize import GAP, MIN_WIDTH, TITLE
from mtfixmatch.tasks import build_tasks
from mtfixmatch.tasks.base import Statistics
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import CONFIGS, REPOSITORY, SMALL, tiny_config
from tests.support.partial import partial_dataset

COMMAND = REPOSITORY / "projects" / "check_data.py"
RESNET18 = CONFIGS / "street" / "resnet18.yaml"
SIZE = (96, 128)  # height, width of the images
WIDE = (64, 160)
CLASSES = ("cat", "dog", "horse")


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path, **options)


def noise(seed, size=SIZE):
    """A picture that no other seed's is like, in coarse patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3))
    return patches.repeat(8, axis=0).repeat(8, axis=1)


def striped_map(counts, size=SIZE):
    """A map with that many pixels of each id, in reading order; the rest is to be ignored."""
    flat = np.full(size[0] * size[1], 255)
    ids = np.repeat(list(counts), list(counts.values()))
    flat[: len(ids)] = ids
    return flat.reshape(size)


class Data:
    """A data set in COCO's style.

    Training: a.png has boxes and a map, b.png boxes (none is there), c.png a map, d.png nothing.
    Validation: e.png has both, f.png boxes.
    """

    def __init__(self, root):
        self.root = root
        for i, (split, name) in enumerate(
            zip(("train",) * 4 + ("val",) * 2, "abcdef", strict=True)
        ):
            save(root / "images" / split / f"{name}.png", noise(i, WIDE if name == "d" else SIZE))
        save(root / "maps" / "train" / "a.png", striped_map({0: 5000, 1: 3000}))
        save(root / "maps" / "train" / "c.png", striped_map({1: 1000, 255: 288}))
        save(root / "maps" / "val" / "e.png", striped_map({2: 12288}))
        boxes = [(1, 1, [0, 0, 10, 20], 0), (2, 2, [5, 5, 32, 32], 0), (3, 2, [0, 0, 30, 34], 0)]
        self.write_boxes("train", "ab", [*boxes, (4, 1, [0, 0, 50, 50], 1)])
        self.write_boxes("val", "ef", [(1, 3, [0, 0, 96, 96], 0), (2, 3, [8, 8, 95, 87], 0)])

    def write_boxes(self, split, names, boxes):
        """All boxes go to the first image; a box is (id, category, [x, y, w, h], iscrowd)."""
        images = [
            {"id": i, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]}
            for i, name in enumerate(names)
        ]
        annotations = [
            {"id": i, "image_id": 0, "category_id": c, "bbox": box, "iscrowd": crowd}
            for i, c, box, crowd in boxes
        ]
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (self.root / f"{split}.json").write_text(json.dumps(content))

    def image(self, name, split="train"):
        return self.root / "images" / split / f"{name}.png"

    def opts(self):
        """Of the config."""
        opts = {
            "DATASETS.TRAIN": ("coco_style_train",),
            "DATASETS.TEST": ("coco_style_val",),
            "DATASETS.COCO_STYLE.SEM_SEG_CLASSES": ["road", "sky", "sea"],
        }
        for split in ("train", "val"):
            key = f"DATASETS.COCO_STYLE.{split.upper()}"
            opts[f"{key}.IMAGES"] = str(self.root / "images" / split)
            opts[f"{key}.BOXES"] = str(self.root / f"{split}.json")
            opts[f"{key}.MAPS"] = str(self.root / "maps" / split)
        return opts

    def check(self, *opts, **flags):
        pairs = [x for pair in self.opts().items() for x in pair]
        cfg = tiny_config(self.root, *pairs, *opts)
        return check_data(cfg, str(self.root / "out"), **{"decode_all": False, **flags})

    def report(self, *opts):
        return check_report(self.check(*opts), [])


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def cut(path):
    """Leave the first two thirds of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def cells(report, first):
    """The table row whose first cell has this text."""
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in report.splitlines()]
    (found,) = [row[1:] for row in rows if row and row[0] == first]
    return found


def test_sound_data_has_no_errors_and_no_warnings(data):
    found = data.check()
    assert (found.errors, found.warnings, found.num_decoded) == ([], [], 6)


def test_labels(data):
    train, val = data.check().splits
    assert (train.name, train.datasets, train.images) == ("training", ["coco_style_train"], 4)
    assert train.labels == {"annotations": 2, "sem_seg_file_name": 2, "all": 1, "none": 1}
    assert (val.name, val.datasets, val.images) == ("validation", ["coco_style_val"], 2)
    assert val.labels == {"annotations": 2, "sem_seg_file_name": 1, "all": 1, "none": 0}
    assert set(train.hidden.values()) == set(val.hidden.values()) == {0}


def test_hidden_labels_do_not_count(data):
    train = data.check("TASKS.SEGMENTATION.LABELS", 1).splits[0]
    assert train.labels["sem_seg_file_name"] == train.hidden["sem_seg_file_name"] == 1
    assert sum(train.statistics["segmentation"].counts.values()) in (8000, 1000)


def test_objects_of_each_class(data):
    train, val = (side.statistics["detection"] for side in data.check().splits)
    assert train.counts == {"cat": 1, "dog": 2, "horse": 0}
    assert val.counts == {"cat": 0, "dog": 0, "horse": 2}
    assert train.figures == {
        "images without objects": 1,
        "ignored regions": 1,
        "objects per image: mean, most": "1.5, 3",
        "small boxes (area below 32²)": 2,  # 10 x 20 and 30 x 34
        "medium boxes (below 96²)": 1,  # 32 x 32
        "large boxes": 0,
        "median box, width x height": "30 x 32",
        "smallest box, width x height": "10 x 20",
        "largest box, width x height": "32 x 32",
    }
    assert val.figures["large boxes"] == 1 and val.figures["medium boxes (below 96²)"] == 1
    assert val.figures["median box, width x height"] == "95.5 x 91.5"


def test_pixels_of_each_class(data):
    train, val = (side.statistics["segmentation"] for side in data.check().splits)
    assert train.counts == {"road": 5000, "sky": 4000, "sea": 0}
    assert val.counts == {"road": 0, "sky": 0, "sea": 12288}
    assert train.figures == {
        "maps without a class": 0,
        "classes per map: mean, most": "1.5, 2",
        "ignored pixels, %": "63.4",  # 24576 pixels, 9000 of them with a class
    }
    assert val.figures["ignored pixels, %"] == "0.0"


def test_a_map_may_hold_nothing_and_a_task_no_label(data):
    save(data.root / "maps" / "train" / "c.png", striped_map({}))
    train = data.check().splits[0].statistics["segmentation"]
    assert train.figures["maps without a class"] == 1
    task = build_tasks(tiny_config(data.root, *(x for p in data.opts().items() for x in p)))[0]
    assert sum(task.statistics([], None).counts.values()) == 0


def test_only_what_a_training_draws_is_counted(data):
    opts = ("DATALOADER.SAMPLING", "uniform", "DATALOADER.LABELED", "segmentation")
    found = data.check(*opts)
    assert [len(pool.indices) for pool, _ in found.pools] == [2]  # a, c
    assert found.splits[0].statistics["detection"].figures["images without objects"] == 0


def test_the_composition_of_a_batch(data):
    (labeled, first), (others, second) = data.check().pools
    assert (labeled.per_batch, labeled.indices.tolist()) == (2, [0, 1, 2])
    assert (others.per_batch, others.indices.tolist()) == (2, [3])
    assert first == {"annotations": 2, "sem_seg_file_name": 2, "all": 1, "none": 0}
    assert second == {"annotations": 0, "sem_seg_file_name": 0, "all": 0, "none": 1}
    report = data.report()
    assert cells(report, "labeled images (any)") == ["2", "3", "1.5", "2", "2", "0"]
    assert cells(report, "the others") == ["2", "1", "0.5", "0", "0", "1"]


def test_the_report_sets_training_beside_validation(data):
    report = data.report()
    assert cells(report, "images") == ["4", "2"]
    assert cells(report, "labeled for detection") == ["2", "2"]
    assert cells(report, "labeled for all tasks") == ["1", "1"]
    assert cells(report, "labeled for no task") == ["1", "0"]
    assert cells(report, "dog") == ["2", "66.67", "0", "0.00"]
    assert cells(report, "sky") == ["4000", "44.44", "0", "0.00"]
    assert cells(report, "128 x 96") == ["3", "2"]
    assert cells(report, "160 x 64") == ["1", "0"]
    assert cells(report, "all (sizes: 2)") == ["4", "2"]
    lines = report.splitlines()
    assert "- never occurs in training: horse (detection), sea (segmentation)" in lines
    missing = "cat (detection), dog (detection), road (segmentation), sky (segmentation)"
    assert f"- never occurs in validation: {missing}" in lines
    assert "Of 6 images 6 were decoded." in lines


def test_a_task_without_classes_has_figures_alone():
    depth = SimpleNamespace(name="depth", label_key="depth_file_name", class_names=[], unit="maps")
    labels = {depth.label_key: 1, "all": 1, "none": 0}
    splits = [
        Split(name, [name], 1, labels, {depth.label_key: 0}, Counter({(8, 4): 1}), statistics)
        for name, statistics in (
            ("training", {"depth": Statistics({}, {"median depth, m": "7.5"})}),
            ("validation", {"depth": Statistics({})}),
        )
    ]
    report = check_report(Findings([depth], splits), [])
    assert "## Depth: maps\n\n|" in report and "| class" not in report
    assert cells(report, "median depth, m") == ["7.5", ""]
    assert "never occurs" not in report


def test_images_of_each_class_are_counted_where_labels_are_for_some_classes(street_root, tmp_path):
    """Of 16 images, 6 are for all classes, 5 for the first two and 5 for the other six."""
    with partial_dataset(street_root) as opts:
        cfg = tiny_config(street_root, *opts, "DATALOADER.SAMPLING", "implicit")
        found = check_data(cfg, str(tmp_path), decode_all=False)
        assert found.errors == []
        names = [label_name(found.tasks[0], r) for r in get_records(cfg.DATASETS.TRAIN)[:3]]
    assert names == ["detection", "detection (person, rider)", "detection (6 of 8 classes)"]
    report = check_report(found, [])
    header = next(line for line in report.splitlines() if line.startswith("| class"))
    columns = ["class", "training", "%", "labeled images", "validation", "%"]
    assert [x.strip() for x in header.split("|")[1:-1]] == columns
    boxes, maps = report.split("## Segmentation")
    assert cells(boxes, "rider")[2] == cells(boxes, "truck")[2] == "11"
    assert "labeled images |" not in maps and cells(maps, "partial maps") == ["16", ""]


def test_training_data_alone(data):
    found = data.check("DATASETS.TEST", ())
    assert (found.errors, found.num_decoded) == ([], 4)
    assert [split.name for split in found.splits] == ["training"]
    report = check_report(found, [])
    assert cells(report, "images") == ["4"] and cells(report, "sky") == ["4000", "44.44"]
    assert "validation" not in report
    assert (data.root / "out" / "labels.png").is_file()


def test_validation_with_labels_for_one_task(data):
    with ReaderWarnings() as reader_warnings:
        found = data.check("DATASETS.COCO_STYLE.VAL.MAPS", "")
    assert found.errors == []
    assert found.splits[1].labels == {"annotations": 2, "sem_seg_file_name": 0, "all": 0, "none": 0}
    expected = "no image of ['coco_style_val'] is labeled for segmentation, which is not evaluated"
    assert reader_warnings.messages.count(expected) == 1


def test_validation_without_a_label_is_an_error(data):
    none = ("DATASETS.COCO_STYLE.VAL.MAPS", "", "DATASETS.COCO_STYLE.VAL.BOXES", "")
    (error,) = data.check(*none).errors
    assert error.startswith("no image of ['coco_style_val'] is labeled for detection, segmentation")


def test_the_ten_most_frequent_sizes_are_listed(data):
    for i in range(12):
        save(data.root / "images" / "train" / f"more{i}.png", noise(i + 50, (64, 64 + 8 * i)))
    found = data.check()
    assert len(found.splits[0].sizes) == 14
    rows = [x for x in check_report(found, []).splitlines() if " x " in x and x.startswith("| ")]
    assert len([row for row in rows if row[2].isdigit()]) == 10


def test_what_the_readers_ignored_is_summed(data):
    records = [{"ignored": {"lane": 2, "no box": 1}}, {}, {"ignored": {"lane": 3}}]
    counts = count_ignored(records)
    assert counts == {"lane": 5, "no box": 1}
    found = data.check()
    assert "## Ignored by the readers" not in check_report(found, [])
    found.ignored["coco_style_train"] = counts
    assert cells(check_report(found, []), "lane") == ["5", "0"]


def test_what_the_readers_said_is_shown_once():
    reader = logging.getLogger("mtfixmatch.data.datasets.some_reader")
    with ReaderWarnings() as said:
        for _ in range(2):
            reader.warning("%d boxes were clipped", 3)
            reader.info("news")
    reader.warning("later")
    assert said.messages == ["3 boxes were clipped"]
    assert logging.getLogger(READERS).propagate


def test_warnings_of_the_readers_are_part_of_the_report(data):
    assert "## Warnings of the readers\n\n- 3 boxes were clipped\n" in check_report(
        data.check(), ["3 boxes were clipped"]
    )


def test_a_copy_in_validation_is_an_error(data):
    shutil.copy(data.image("b"), data.image("z", "val"))
    found = data.check()
    line = f"{data.image('z', 'val')} (validation) is a copy of {data.image('b')} (training)"
    assert (found.errors, found.warnings) == ([line], [])


def test_one_name_and_one_picture_in_validation_is_an_error(data):
    array = np.asarray(Image.open(data.image("c"))).astype(int)
    save(data.image("c", "val"), (array + 1).clip(0, 255))
    found = data.check()
    assert found.errors == [
        f"{data.image('c', 'val')} (validation) has the name and the picture of "
        f"{data.image('c')} (training)"
    ]
    assert found.warnings == []


def test_a_copy_of_the_same_name_is_one_error(data):
    shutil.copy(data.image("c"), data.image("c", "val"))
    assert len(data.check().errors) == 1


def test_one_name_of_different_pictures_is_a_warning(data):
    save(data.image("c", "val"), noise(99))
    found = data.check()
    assert found.errors == []
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("1 validation images have the name of a training image")


def test_a_copy_within_training_is_a_warning(data):
    shutil.copy(data.image("b"), data.image("z"))
    found = data.check()
    assert found.errors == []
    assert found.warnings == [
        f"training has the same image 2 times: {data.image('b')}, {data.image('z')}"
    ]


def test_files_of_a_size_of_their_own_are_not_read(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, content in zip(paths, (b"12", b"123", b"123"), strict=True):
        path.write_bytes(content)
    read = []

    def scan(files, function, name):
        read.extend(files)
        return [function(file) for file in files]

    records = [{"file_name": str(path)} for path in paths]
    leaks, repeats = check.find_copies(records[:2], records[2:], scan)
    assert read == [str(path) for path in paths[1:]]
    assert leaks == [(str(paths[1]), str(paths[2]))] and repeats == []


def test_each_broken_image_is_an_error(data):
    for name in ("a", "d"):
        cut(data.image(name))
    found = data.check()
    assert len(found.errors) == 2
    for error, name in zip(found.errors, ("a", "d"), strict=True):
        assert error.startswith(f"cannot read the image {data.image(name)}: ")
    assert found.splits[0].statistics["detection"].counts["dog"] == 2  # the rest was checked


def test_a_sample_is_decoded_unless_all_are_asked_for(data, monkeypatch):
    monkeypatch.setattr("mtfixmatch.check.dataset.MAX_DECODED", 3)
    monkeypatch.setattr("mtfixmatch.check.sheet.SAMPLES", 0)
    assert data.check().num_decoded == 3
    assert data.check(decode_all=True).num_decoded == 6


def test_many_lines_of_one_kind_are_cut():
    lines = [str(i) for i in range(25)]
    assert limit_lines(lines) == [*lines[:20], "and 5 more like the last one"]
    assert limit_lines(lines[:20]) == lines[:20]


def test_a_config_that_cannot_train_is_an_error_beside_others(data):
    shutil.copy(data.image("b"), data.image("z", "val"))
    opts = ("TASKS.DETECTION.LABELS", 3, "DATALOADER.LABELED_PER_BATCH", 4)
    found = data.check(*opts)
    assert len(found.errors) == 3
    assert "annotations = 3, but only 2 images have it" in found.errors[0]
    assert "LABELED_PER_BATCH is 4, expected 1 to 3" in found.errors[1]
    assert "is a copy of" in found.errors[2]
    assert found.splits[0].images == 4 and found.pools == []


def fail_beside(path):
    """For a scan: fails while a file "bad" is in the folder."""
    if os.path.exists(os.path.join(os.path.dirname(path), "bad")):
        raise InputError(f"{path} is bad")
    return 7


def test_a_scan_collects_errors_and_tries_them_again(tmp_path):
    (tmp_path / "bad").touch()
    files = [str(tmp_path / "bad")]
    scan = check.FileScan(str(tmp_path / "cache"), workers=0)
    assert scan(files, fail_beside, "x") == [None]
    assert scan.errors == [f"{files[0]} is bad"]
    good = tmp_path / "good" / "file"
    good.parent.mkdir()
    good.touch()
    (good.parent / "bad").touch()
    assert scan([str(good)], fail_beside, "y") == [None]
    (good.parent / "bad").unlink()
    assert scan([str(good)], fail_beside, "y") == [7]


def test_samples_show_each_combination_of_labels_first():
    kinds = [(), ("x",), ("y",), ("x", "y")]
    records = [dict.fromkeys(kinds[min(i % 7, 3)], 0) | {"i": i} for i in range(70)]
    picked = pick_samples(records, ["x", "y"], 10, seed=0)
    shown = [[key for key in "xy" if key in record] for record in picked]
    assert shown == [["x", "y"], ["x"], ["y"], []] * 2 + [["x", "y"], ["x"]]
    assert len({record["i"] for record in picked}) == 10
    assert len(pick_samples(records, ["x", "y"], 1, seed=0)) == 4


def take_one(street_root, *opts):
    cfg = tiny_config(street_root, "FIXMATCH.STRONG.CUTOUT_AREA", (0.0, 0.0), *opts)
    tasks = build_tasks(cfg)
    item = TrainMapper(cfg, tasks)(train_records(cfg, tasks)[0], Draw(0, 0, 0))
    return item, take_snapshot([item], tasks, StrongAugmentation(cfg, geometric=True))


def test_labels_move_with_the_strong_view(street_root):
    opts = ("FIXMATCH.STRONG.FLIP_PROB", 1.0, "FIXMATCH.STRONG.NUM_OPERATIONS", 0)
    item, shot = take_one(street_root, *opts)
    assert np.abs(shot.strong[0].astype(int) - shot.weak[0, :, ::-1]).max() <= 1
    labels, moved = item["targets"], shot.warped[0]
    assert torch.equal(moved["segmentation"], labels["segmentation"].flip(1))
    boxes = labels["detection"].gt_boxes.tensor
    assert len(boxes)
    mirrored = torch.stack([64 - boxes[:, 2], boxes[:, 1], 64 - boxes[:, 0], boxes[:, 3]], dim=1)
    assert torch.allclose(moved["detection"].gt_boxes.tensor, mirrored)


def test_the_sheet_has_a_row_for_each_sample(data):
    data.check()
    tile = MIN_WIDTH  # views of 64 pixels are drawn four times as large
    with Image.open(data.root / "out" / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * (tile + GAP), TITLE + GAP + 4 * (TITLE + tile + GAP))
    data.check("FIXMATCH.METHOD", "Supervised", "DATALOADER.SAMPLING", "uniform")
    with Image.open(data.root / "out" / "contact_sheet.png") as sheet:
        assert sheet.size == (2 * (tile + GAP), TITLE + GAP + 3 * (TITLE + tile + GAP))


def test_a_broken_image_is_left_out_of_the_sheet(data):
    cut(data.image("d"))
    data.check()
    with Image.open(data.root / "out" / "contact_sheet.png") as sheet:
        assert sheet.height == TITLE + GAP + 3 * (TITLE + MIN_WIDTH + GAP)


def test_the_labels_are_drawn(data, monkeypatch):
    """Training: a and b have boxes, a and c maps, d nothing. Validation: e has both, f boxes."""
    drawn = []
    monkeypatch.setattr(dataset, "draw_label_sets", lambda panels, path: drawn.append(panels))
    report = data.report()
    training, validation = drawn[0]
    order = [(True, False), (True, True), (False, True), (False, False)]
    assert list(training.groups.items()) == [(labels, 1) for labels in order]
    assert list(validation.groups.items()) == [((True, False), 1), ((True, True), 1)]
    assert "![which images are labeled for what](labels.png)" in report


def test_a_wrong_name_of_a_picture_is_an_error(data):
    assert data.check("TEST.PICTURE_FILES", ["f.png", "e.png"]).errors == []
    (error,) = data.check("TEST.PICTURE_FILES", ["f.png", "a.png"]).errors
    assert error.startswith("TEST.PICTURE_FILES: 0 test images have") and "'a.png'" in error


def command(root, output, opts):
    places = {"DATASETS.ROOT": root, "DATASETS.CACHE_DIR": root / "cache"}
    pairs = [str(x) for pair in (SMALL | places | opts).items() for x in pair]
    args = ["--config-file", str(RESNET18), "--output", str(output), *pairs]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(COMMAND), *args],
        cwd=root, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_command_on_generated_data(street_root, tmp_path):
    opts = {"TASKS.DETECTION.LABELS": 6, "TASKS.SEGMENTATION.LABELS": 4}
    done = command(street_root, tmp_path / "new" / "folder", opts)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "new" / "folder"
    assert sorted(os.listdir(folder)) == [
        "cache",
        "check_data.md",
        "contact_sheet.png",
        "labels.png",
    ]
    report = (folder / "check_data.md").read_text()
    assert done.stdout.strip() == report.strip()
    assert cells(report, "labeled for detection") == ["6", "6"]
    assert cells(report, "label hidden for segmentation") == ["12", "0"]
    assert cells(report, "256 x 128") == ["16", "6"]
    assert "](labels.png)" in report
    # The generator counts each split's scenes from 0.
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: 6 validation images have the name of a training image")
    with Image.open(folder / "contact_sheet.png") as sheet:
        rows = SAMPLES * (TITLE + MIN_WIDTH + GAP)
        assert sheet.size == (4 * (MIN_WIDTH + GAP), TITLE + GAP + rows)


def test_the_command_names_all_errors(data):
    cut(data.image("d"))
    shutil.copy(data.image("b"), data.image("z", "val"))
    opts = {key: repr(value) for key, value in data.opts().items()}
    done = command(data.root, data.root / "out", opts)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    for line in done.stderr.splitlines():
        assert line.startswith("error: ") and f"- {line}" in done.stdout.splitlines()
    assert (
        "is a copy of" in done.stderr and f"cannot read the image {data.image('d')}" in done.stderr
    )


@pytest.mark.parametrize("fault", ["map", "key"])
def test_the_command_says_in_a_line_where_it_had_to_stop(data, fault):
    path = data.root / "maps" / "train" / "a.png"
    opts = {key: repr(value) for key, value in data.opts().items()}
    if fault == "map":
        cut(path)
    else:
        opts["NO.SUCH.KEY"] = "1"
    done = command(data.root, data.root / "out", opts)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and (str(path) if fault == "map" else "NO.SUCH") in line
