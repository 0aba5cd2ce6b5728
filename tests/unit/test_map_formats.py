"""Maps of generated scenes, written in each format and read back."""

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.check.files import FileScan
from mtfixmatch.data.datasets import scan
from mtfixmatch.data.datasets.cityscapes import label_id_lut
from mtfixmatch.data.datasets.own_data import TRAIN, VAL
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.street.scene import draw_scene
from mtfixmatch.tasks.segmentation import Segmentation, count_classes, load_map
from mtfixmatch.utils.labels import IGNORE_LABEL
from mtfixmatch.utils.notes import Notes
from tests.support.helpers import tiny_config
from tests.support.map_writers import SHAPE_WRITERS, WRITERS
from tests.support.own_data import own_data

HEIGHT, WIDTH = 96, 144
CLASSES = [f"class {i}" for i in range(19)]
NOT_LABELED = "3.png"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Folder with four images, and image -> classes; one is not labeled."""
    folder = tmp_path_factory.mktemp("scenes")
    lut, maps = np.frombuffer(label_id_lut(), np.uint8), {}
    for number in range(4):
        scene = draw_scene(np.random.default_rng(number), WIDTH, HEIGHT)
        Image.fromarray(scene.rgb).save(folder / f"{number}.png")
        ids = np.where(scene.ids >= 1000, scene.ids // 1000, scene.ids)
        maps[f"{number}.png"] = lut[ids]
        maps[f"{number}.png"][2:5, 3:9] = IGNORE_LABEL
    maps[NOT_LABELED] = None
    assert len(np.unique(np.stack([x for x in maps.values() if x is not None]))) >= 8
    return folder, maps


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_read(name, workers, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "MIN_FILES_FOR_PROCESSES", 2)
    folder, maps = scenes
    path, keys = WRITERS[name](tmp_path, maps, CLASSES)
    files = {"IMAGES": str(folder), "MAPS": path}
    own = own_data(("segmentation",), SEM_SEG_CLASSES=CLASSES, TRAIN=files, **keys)
    for _ in range(2):  # the second time from the cache
        notes = Notes()
        records = own.load(TRAIN, FileScanner(str(tmp_path / "cache"), workers, notes=notes))
        assert len(records) == len(maps)
        for record in records:
            expected = maps[record["image_id"]]
            assert ("sem_seg_file_name" in record) == (expected is not None)
            if expected is not None:
                found = load_map(record)
                assert found.dtype == np.uint8 and found.flags.c_contiguous
                assert np.array_equal(found, expected)
                assert record.get("sem_seg_partial", False) == (name in SHAPE_WRITERS)
        assert {kind.split(" that")[0] for kind in notes.lines} == {"classes"}  # never occur
        assert notes.texts == []
    assert own.class_names("segmentation", FileScanner()) == CLASSES


@pytest.mark.parametrize("name", ["index", "colors", "polygons", "panoptic"])
def test_the_statistics_are_those_of_the_pixels(name, scenes, tmp_path, monkeypatch, street_root):
    monkeypatch.setattr(scan, "MIN_FILES_FOR_PROCESSES", 2)
    folder, maps = scenes
    path, keys = WRITERS[name](tmp_path, maps, CLASSES)
    files = {"IMAGES": str(folder), "MAPS": path}
    own = own_data(("segmentation",), SEM_SEG_CLASSES=CLASSES, TRAIN=files, **keys)
    records = [r for r in own.load(TRAIN, FileScanner()) if "sem_seg_file_name" in r]
    task = Segmentation(tiny_config(street_root), "segmentation")
    task.class_names = CLASSES
    file_scan = FileScan(str(tmp_path / "cache"), workers=2)
    found = task.statistics(records, lambda x, function: file_scan(x, function, "train"))
    pixels = np.concatenate([x.ravel() for x in maps.values() if x is not None])
    counts = np.bincount(pixels, minlength=256)
    assert list(found.counts.values()) == counts[:19].tolist()
    share = 100 * counts[IGNORE_LABEL] / counts.sum()
    assert found.figures["ignored pixels, %"] == f"{share:.1f}"
    assert file_scan.errors == []


def test_a_map_that_cannot_be_read_is_an_error_of_the_check(scenes, tmp_path):
    folder, maps = scenes
    path, keys = WRITERS["colors"](tmp_path, maps, CLASSES)
    files = {"IMAGES": str(folder), "MAPS": path}
    own = own_data(("segmentation",), SEM_SEG_CLASSES=CLASSES, TRAIN=files, **keys)
    record = own.load(TRAIN, FileScanner())[0]
    Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(record["sem_seg_file_name"])
    item = (record["sem_seg_reader"], record["sem_seg_file_name"], (HEIGHT, WIDTH))
    file_scan = FileScan(str(tmp_path / "cache"), workers=1)
    assert file_scan([item], count_classes, "train") == [None]
    (error,) = file_scan.errors
    assert error == f"{record['sem_seg_file_name']} has the color [1, 2, 3], which is no class"


def test_both_tasks_read_one_panoptic_file(scenes, tmp_path):
    folder, maps = scenes
    path, _ = WRITERS["panoptic"](tmp_path, maps, CLASSES)
    own = own_data(VAL={"IMAGES": str(folder), "MAPS": path, "BOXES": path})
    scanner = FileScanner()
    records = {r["image_id"]: r for r in own.load(VAL, scanner)}
    assert own.class_names("segmentation", scanner) == CLASSES
    assert own.class_names("detection", scanner) == CLASSES[1::2]
    for name, ids in maps.items():
        assert ("annotations" in records[name]) == (ids is not None)
        if ids is not None:
            things = [x for x in np.unique(ids) if x % 2 and x != IGNORE_LABEL]
            boxes = [(2 * x["category_id"] + 1, x["bbox"]) for x in records[name]["annotations"]]
            assert [i for i, _ in boxes] == things
            for i, (x0, y0, x1, y1) in boxes:
                ys, xs = np.nonzero(ids == i)
                assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
