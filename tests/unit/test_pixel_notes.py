"""16-bit images: the note on a small range, and the way of INPUT.RANGE_16BIT to the pixels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mtfixmatch.check.files import FileScan, find_namesakes
from mtfixmatch.data.datasets.own_data import TRAIN
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.data.loader import eval_records, train_records
from mtfixmatch.data.mapper import EvalMapper, TrainMapper
from mtfixmatch.data.records import make_annotation, make_record
from mtfixmatch.data.samplers import Draw
from mtfixmatch.engine.visualize import truth_tiles
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.notes import Notes
from tests.support.helpers import tiny_config
from tests.support.own_data import own_data

HEIGHT, WIDTH = 40, 60


def save(path, low, high, dtype=np.uint16):
    """An image whose left half has the value `low` and whose right half has `high`."""
    values = np.full((HEIGHT, WIDTH), low, dtype)
    values[:, WIDTH // 2 :] = high
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return str(path)


@pytest.fixture
def notes_of(tmp_path):
    """Return the notes on the images of the folder `images`."""

    def notes_of(range_16bit=(0, 65535), **scan):
        own = own_data(TRAIN={"IMAGES": str(tmp_path / "images")})
        own = replace(own, range_16bit=range_16bit)
        notes = Notes()
        records = own.load(TRAIN, FileScanner(notes=notes, **scan))
        assert all((x["height"], x["width"]) == (HEIGHT, WIDTH) for x in records)
        return notes.messages()

    return notes_of


def test_a_small_part_of_16_bits_is_noted(tmp_path, notes_of):
    first = save(tmp_path / "images" / "a.png", 2000, 3000)
    save(tmp_path / "images" / "b.tif", 2500, 4000)
    save(tmp_path / "images" / "c.png", 0, 255, np.uint8)
    (note,) = notes_of()
    assert note == (
        "16-bit images that use a small part of INPUT.RANGE_16BIT (0, 65535) and so have little "
        f"contrast: 2 (the first: {first}); values in a sample of 2 are from 2000 to 4000: set "
        "INPUT.RANGE_16BIT to (2000, 4000)"
    )
    cache = {"cache_dir": str(tmp_path / "cache")}
    assert notes_of(**cache) == notes_of(**cache) == [note]
    assert notes_of((2000, 4000)) == notes_of((0, 4095)) == []


@pytest.mark.parametrize(
    ("range_16bit", "is_noted"),
    [((0, 4000), False), ((0, 4003), True), ((2900, 3500), False), ((3500, 9000), True)],
)
def test_which_part_is_small(tmp_path, notes_of, range_16bit, is_noted):
    """1000 of 4000 values are a quarter."""
    save(tmp_path / "images" / "a.png", 2900, 3900)
    assert len(notes_of(range_16bit)) == is_noted


def test_images_of_14_bits_are_noted_and_those_of_15_are_not(tmp_path, notes_of):
    save(tmp_path / "images" / "a.png", 0, 2**14 - 1)
    assert "set INPUT.RANGE_16BIT to (0, 16383)" in notes_of()[0]
    save(tmp_path / "images" / "a.png", 0, 2**15 - 1)
    assert notes_of() == []


def test_images_of_one_value_get_a_range_that_can_be_set(tmp_path, notes_of):
    save(tmp_path / "images" / "a.png", 7, 7)
    assert "set INPUT.RANGE_16BIT to (7, 8)" in notes_of()[0]


def test_an_even_sample_is_decoded(tmp_path, notes_of):
    """39 images: each second one, the first and the last among them."""
    for i in range(39):
        save(tmp_path / "images" / f"{i:02}.png", 500 + i, 65535 if i % 2 else 600 + i)
    assert "in a sample of 20 are from 500 to 638:" in notes_of()[0]


def test_further_pages_are_noted(tmp_path, notes_of):
    path = tmp_path / "images" / "a.tif"
    path.parent.mkdir()
    pages = [Image.new("RGB", (WIDTH, HEIGHT), x) for x in ("red", "blue")]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    (note,) = notes_of()
    assert note == f"images of several pages or frames, of which the first is read: 1 ({path})"


def write_own_data(root):
    """A dataset of one image for each split, of 12 bits, with a box and a map; its config."""
    opts = {
        "DATASETS.TRAIN": ("coco_style_train",),
        "DATASETS.TEST": ("coco_style_val",),
        "DATASETS.COCO_STYLE.SEM_SEG_CLASSES": ["road", "sky"],
    }
    size = {"height": HEIGHT, "width": WIDTH}
    for split, low in (("TRAIN", 1024), ("VAL", 512)):
        save(root / split / "a.png", low, 4095)
        save(root / f"{split}_maps" / "a.png", 0, 1, np.uint8)
        content = {
            "images": [{"id": 1, "file_name": "a.png", **size}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9]}],
            "categories": [{"id": 1, "name": "car"}],
        }
        (root / f"{split}.json").write_text(json.dumps(content))
        files = {"IMAGES": split, "BOXES": f"{split}.json", "MAPS": f"{split}_maps"}
        for key, name in files.items():
            opts[f"DATASETS.COCO_STYLE.{split}.{key}"] = str(root / name)
    return [x for pair in opts.items() for x in pair]


def grey_levels(image):
    return set(torch.as_tensor(image).unique().tolist())


@pytest.mark.parametrize(
    ("opts", "train_levels", "val_levels"),
    [((), {4, 15}, {2, 15}), (("INPUT.RANGE_16BIT", (0, 4095)), {64, 255}, {32, 255})],
)
def test_the_range_reaches_training_evaluation_and_pictures(
    tmp_path, opts, train_levels, val_levels
):
    still = ("INPUT.SCALE_RANGE", (4.0, 4.0), "INPUT.TRAIN_SIZE", (96, 96))
    cfg = tiny_config(tmp_path, *write_own_data(tmp_path), *still, *opts)
    tasks = build_tasks(cfg)
    (train,), (val,) = train_records(cfg, tasks), eval_records(cfg, tasks)
    mapper = TrainMapper(cfg, tasks)
    # A crop of 96 of 240 x 160 pixels shows the left half or the right one, or the edge of both.
    levels = set().union(*(grey_levels(mapper(train, Draw(0, i, 0))["image"]) for i in range(9)))
    assert levels >= train_levels
    assert grey_levels(EvalMapper()(val)["image"]) == val_levels
    (tile,) = truth_tiles([{k: v for k, v in val.items() if k != "annotations"}], tasks[:1])
    assert grey_levels(tile) == val_levels


def test_the_range_reaches_datasets_of_own_code(tmp_path, street_root):
    """A range of their records comes first."""
    path = save(tmp_path / "a.png", 0, 4095)
    box = {"annotations": [make_annotation([2, 2, 9, 9], 0, 0)]}
    record = make_record(path, "a", [HEIGHT, WIDTH]) | box
    records = [record, record | {"image_id": "b", "range_16bit": (0, 8191)}]
    name = "my_thermal_data"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["car"])
    try:
        opts = ("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "MODEL.TASKS", ["detection"])
        cfg = tiny_config(street_root, *opts, "INPUT.RANGE_16BIT", (0, 4095))
        a, b = eval_records(cfg, build_tasks(cfg))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert grey_levels(EvalMapper()(a)["image"]) == {0, 255}
    assert grey_levels(EvalMapper()(b)["image"]) == {0, 127}
    assert "range_16bit" not in record


def test_images_of_one_name_and_a_small_range_are_compared_by_what_they_show(tmp_path):
    """Over all 16 bits they would be black, and so the same."""
    paths = [save(tmp_path / x / "a.png", *y) for x, y in (("t", (90, 120)), ("v", (120, 90)))]
    train, val = ([make_record(path, "a", [HEIGHT, WIDTH])] for path in paths)
    scan = FileScan(str(tmp_path / "cache"), workers=1)
    assert find_namesakes(train, val, scan) == ([], [tuple(paths)])
    save(tmp_path / "v" / "a.png", 91, 121)
    assert find_namesakes(train, val, scan) == ([tuple(paths)], [])
