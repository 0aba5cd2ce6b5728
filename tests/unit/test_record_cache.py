import json
import logging
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.data import record_file
from mtfixmatch.data.datasets import (
    catalog,
    get_records,
    reader_notes,
    record_cache,
    register_datasets,
)
from mtfixmatch.data.datasets.own_data import OwnData
from mtfixmatch.data.record_block import RecordBlock
from mtfixmatch.data.record_file import NotPlainError, read_block, write_block
from mtfixmatch.data.record_table import RecordTable
from mtfixmatch.data.records import make_annotation, make_record
from mtfixmatch.tasks.config import complete_task_config
from mtfixmatch.utils.errors import InputError

TRAIN, VAL = "coco_style_train", "coco_style_val"
NAMES = ("b/0.png", "a/1.png", "a/2.png")
OWN = "coco_style"


def write_data(root):
    """Three images of which two are labeled, one with a box that reaches over the border."""
    for split in ("train", "val"):
        for name in NAMES:
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 8 + len(split), 3), 7, np.uint8))
        write_boxes(root, split, [[1, 1, 3, 3], [6, 1, 90, 3]])


def write_boxes(root, split, boxes, categories=("cat", "dog")):
    content = {
        "images": [{"id": i, "file_name": NAMES[i], "height": 8, "width": 13} for i in range(2)],
        "annotations": [
            {"id": i, "image_id": i % 2, "category_id": i % 2 + 1, "bbox": box, "area": 1}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(categories)],
    }
    (root / f"{split}.json").write_text(json.dumps(content))


def make_cfg(root, opts=()):
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.DATASETS.CACHE_DIR = str(root / "cache")
    cfg.MODEL.TASKS = ["detection"]
    for split in ("train", "val"):
        node = cfg.DATASETS.COCO_STYLE[split.upper()]
        node.IMAGES, node.BOXES = str(root / split), str(root / f"{split}.json")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(list(opts))
    complete_task_config(cfg)
    return cfg


def read(root, opts=(), name=TRAIN):
    """Return the records of a new start."""
    register_datasets(make_cfg(root, opts))
    return [*get_records([name])]


@pytest.fixture
def loads(tmp_path, monkeypatch):
    """Write data whose records are kept; return the splits that are read from their files."""
    write_data(tmp_path)
    monkeypatch.setattr(record_cache, "MIN_RECORDS", 1)
    found, load = [], OwnData.load

    def count(self, split, scan):
        found.append(split)
        return load(self, split, scan)

    monkeypatch.setattr(OwnData, "load", count)
    return found


def kept_files(root):
    return sorted((root / "cache").glob("*.records"))


def test_a_later_start_reads_nothing(tmp_path, loads):
    first = read(tmp_path)
    notes, metadata = reader_notes([TRAIN])[TRAIN].messages(), MetadataCatalog.get(TRAIN).as_dict()
    assert any("reached over the border" in x for x in notes)
    assert metadata["thing_classes"] == ["cat", "dog"] and loads == ["TRAIN"]
    assert read(tmp_path) == first and len(first) == 3
    assert reader_notes([TRAIN])[TRAIN].messages() == notes
    assert MetadataCatalog.get(TRAIN).as_dict() == metadata and loads == ["TRAIN"]
    (path,) = kept_files(tmp_path)
    assert path.name.startswith("coco_style_train_")
    read(tmp_path, name=VAL)
    assert len(kept_files(tmp_path)) == 2 and read(tmp_path, name=VAL)[0]["width"] == 11


def test_small_datasets_are_not_kept(tmp_path, loads, monkeypatch):
    monkeypatch.setattr(record_cache, "MIN_RECORDS", 4)
    assert read(tmp_path) == read(tmp_path) and loads == ["TRAIN"] * 2
    assert not kept_files(tmp_path)


def test_validation_does_not_list_the_kept_images_of_training(tmp_path, loads, monkeypatch):
    read(tmp_path)
    monkeypatch.setattr(OwnData, "_paths", None)
    register_datasets(make_cfg(tmp_path))
    assert len(get_records([TRAIN, VAL])) == 6 and loads == ["TRAIN", "VAL"]


def touch(path):
    os.utime(path, ns=(1, 1))


CHANGES = {
    "an image": lambda root: touch(root / "train/a/1.png"),
    "an image of validation": lambda root: (root / "val/a/1.png").unlink(),
    "a new image": lambda root: (root / "train/b/0.png").rename(root / "train/b/9.png"),
    "a new folder": lambda root: (root / "train/c").mkdir(),
    "a folder in a folder": lambda root: (root / "train/a/c").mkdir(),
    "a lost image": lambda root: (root / "train/a/2.png").unlink(),
    "the boxes": lambda root: write_boxes(root, "train", [[1, 1, 2, 2]]),
    "the boxes of validation": lambda root: write_boxes(root, "val", [[1, 1, 2, 2]]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(tmp_path, loads, change):
    if change == "a new image":
        write_boxes(tmp_path, "train", [])
    read(tmp_path)
    CHANGES[change](tmp_path)
    again = read(tmp_path)
    assert loads == ["TRAIN"] * 2
    for path in kept_files(tmp_path):
        path.unlink()
    assert again == read(tmp_path)
    assert read(tmp_path) == again and loads == ["TRAIN"] * 3


def test_settings_and_code_are_seen(tmp_path, loads, monkeypatch):
    first = read(tmp_path)
    own = "DATASETS.COCO_STYLE"
    for opts in (("DATASETS.MAX_FAULTS", 0.9), (f"{own}.UNANNOTATED", "unlabeled")):
        read(tmp_path, opts)
    assert len(loads) == len(kept_files(tmp_path)) == 3
    swapped = read(tmp_path, ("TASKS.DETECTION.CLASSES", ["dog", "cat"]))
    ids = [record["annotations"][0]["category_id"] for record in (first[-1], swapped[-1])]
    assert ids == [0, 1] and len(loads) == 4
    monkeypatch.setattr(record_cache, "_code", lambda: "new")
    assert read(tmp_path) == first and len(loads) == 5


def cut(path, content):
    path.write_bytes(content[:-1])


def flip(path, content):
    place = content.rindex(b"a/1.png")
    path.write_bytes(content[:place] + b"c" + content[place + 1 :])


DAMAGES = {
    "cut": cut,
    "cut short": lambda path, content: path.write_bytes(content[:40]),
    "empty": lambda path, _: path.write_bytes(b""),
    "flipped": flip,
    "another file": lambda path, _: path.write_bytes(b"x" * 100),
    "another header": lambda path, content: path.write_bytes(content[:16] + b"\x01" + content[17:]),
    "a long header": lambda path, content: path.write_bytes(content[:8] + b"\xff" * 8),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_built_again(tmp_path, loads, caplog, damage):
    first = read(tmp_path)
    (path,) = kept_files(tmp_path)
    content = path.read_bytes()
    DAMAGES[damage](path, content)
    assert read(tmp_path) == first and loads == ["TRAIN"] * 2
    (line,) = [x.getMessage() for x in caplog.records if "cannot be used" in x.getMessage()]
    assert str(path) in line and "built again" in line
    assert read(tmp_path) == first and loads == ["TRAIN"] * 2


def test_a_full_disk_is_one_warning(tmp_path, loads, monkeypatch, caplog):
    def fail(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record_file, "replacing", fail)
    with caplog.at_level(logging.WARNING):
        records = read(tmp_path)
    assert len(records) == 3 and not kept_files(tmp_path)
    assert sum("cannot be written" in x.getMessage() for x in caplog.records) == 1


def test_sources_that_are_searched_are_not_kept(tmp_path, loads):
    """A glob, and a folder with a text file for each image, beside which names are looked for."""
    read(tmp_path, ("DATASETS.COCO_STYLE.TRAIN.IMAGES", str(tmp_path / "tr*")))
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "1.txt").write_text("0 .5 .5 .2 .2")
    (labels / "classes.txt").write_text("cat")
    read(tmp_path, ("DATASETS.COCO_STYLE.TRAIN.BOXES", str(labels)))
    assert loads == ["TRAIN"] * 2 and not kept_files(tmp_path)


def test_images_of_a_list(tmp_path, loads):
    (tmp_path / "mine.txt").write_text("train/a/1.png\ntrain/b/0.png\n")
    opts = ("DATASETS.COCO_STYLE.TRAIN.IMAGES", str(tmp_path / "mine.txt"))
    first = read(tmp_path, opts)
    assert read(tmp_path, opts) == first and len(first) == 2 and loads == ["TRAIN"]
    (tmp_path / "mine.txt").write_text("train/b/0.png\n")
    assert len(read(tmp_path, opts)) == 1 and loads == ["TRAIN"] * 2


def test_another_rank_maps_the_file_without_comparing(tmp_path, loads, monkeypatch):
    """The main process sends its token; a file of another one is compared with the dataset."""
    first = read(tmp_path)
    token = catalog._loaded[TRAIN][2]
    compared, stamp = [], record_cache.stamp
    monkeypatch.setattr(record_cache, "stamp", lambda path: compared.append(path) or stamp(path))
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    for sent in (token, token + 1):
        assert not compared
        monkeypatch.setattr(comm, "all_gather", lambda mine, x=sent: [([], {TRAIN: x}), mine])
        assert read(tmp_path) == first and loads == ["TRAIN"]
    assert str(tmp_path / "train/a/1.png") in map(os.fsdecode, compared)
    (block,) = get_records([TRAIN]).blocks
    assert not block.kind_of.flags.writeable  # it is mapped


RECORDS = [
    make_record("a.png", "a", [3, 4]),
    make_record("b\udc80.png", "b", [3, 4])
    | {"annotations": [make_annotation([0, 1, 2, 3], 1, 0)]},
    make_record("c.png", "c", [3, 4]) | {"sem_seg_lut": bytes(256), "ignored": {"crowd": 2}},
]


@pytest.mark.parametrize("records", [[], RECORDS, RECORDS * 5])
def test_a_file_has_the_records(tmp_path, records):
    path = str(tmp_path / "x.records")
    extra = {"mine": np.arange(6).reshape(3, 2)}
    token = write_block(path, RecordBlock.of(records), {"state": {"x": [1]}}, extra)
    block, header, arrays = read_block(path, verify=True)
    assert RecordTable([block]) == records
    assert header["state"] == {"x": [1]} and header["checksum"] == token
    assert (arrays["mine"] == extra["mine"]).all() and not block.kind_of.flags.writeable
    table = RecordTable([block])
    assert table == pickle.loads(pickle.dumps(table))


class Trap:
    """Runs code when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch trapped",)


@pytest.mark.parametrize("value", [Trap(), [Trap()], Path("x"), np.zeros(2)])
def test_a_file_holds_plain_values_only(tmp_path, value, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = RecordBlock.of([RECORDS[0] | {"label": value}])
    with pytest.raises(NotPlainError):
        write_block("x.records", block, {}, {})
    assert os.listdir() == []


def test_a_file_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record_file, "_check_plain", lambda block: None)
    write_block("x.records", RecordBlock.of([RECORDS[0] | {"label": [Trap()]}]), {}, {})
    block, _, _ = read_block("x.records", verify=True)
    with pytest.raises(pickle.UnpicklingError, match="system"):
        block.record(0)
    assert os.listdir() == ["x.records"]


def test_a_file_of_another_version_is_refused(tmp_path, monkeypatch):
    path = str(tmp_path / "x.records")
    monkeypatch.setattr(record_file, "MAGIC", b"mtfm-r00")
    write_block(path, RecordBlock.of(RECORDS), {}, {})
    monkeypatch.undo()
    with pytest.raises(InputError, match="of another version"):
        read_block(path, verify=False)
