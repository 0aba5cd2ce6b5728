import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.data.datasets.bdd100k import load_bdd100k
from mtfixmatch.data.datasets.cityscapes import load_cityscapes
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.data.partial_labels import count_labels
from mtfixmatch.street import generate as street
from mtfixmatch.street.layouts import bdd100k_splits
from mtfixmatch.street.scene import draw_scene
from mtfixmatch.tasks.segmentation import load_map
from mtfixmatch.utils.errors import InputError

SIZE, SEED = (256, 128), 5
COUNTS = {"num_train": 20, "num_val": 4}
KEYS = ["annotations", "sem_seg_file_name"]
LIGHT, SIGN = 8, 9
LABEL_IDS = {LIGHT: 19, SIGN: 20}


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    top = tmp_path_factory.mktemp("layouts")
    street.generate(top / "cityscapes", size=SIZE, seed=SEED, **COUNTS)
    street.generate(top / "bdd100k", size=SIZE, seed=SEED, layout="bdd100k", **COUNTS)
    return top


@pytest.fixture(scope="module")
def pairs(top):
    """The records of each scene in BDD100K's and in Cityscapes' layout, by its split and number."""

    def number(image_id):
        return int(image_id.split("_")[1])

    city = {
        (split, number(r["image_id"])): r
        for split in street.SPLITS
        for r in load_cityscapes(root=str(top / "cityscapes"), split=split, scan=FileScanner())
    }
    return {
        (split, r["image_id"]): (r, city[drawn_for, int(index)])
        for split in street.SPLITS
        for r in load_bdd100k(root=str(top / "bdd100k"), split=split, scan=FileScanner())
        for drawn_for, index in [r["image_id"].split("-")]
    }


def boxes_of(record, classes):
    return sorted(
        [a["category_id"], a["iscrowd"], *a["bbox"]]
        for a in record["annotations"]
        if a["category_id"] in classes
    )


def test_both_layouts_have_the_same_boxes(pairs):
    compared = Counter()
    for bdd, city in pairs.values():
        if "annotations" in bdd:
            boxes = boxes_of(bdd, range(8))
            assert boxes == boxes_of(city, range(8))
            compared.update(iscrowd for _, iscrowd, *_ in boxes)
            assert bdd.get("ignored", {}).get("crowd", 0) == sum(box[1] for box in boxes)
    assert compared[0] > 60 and compared[1] > 0


def test_both_layouts_have_the_same_maps(pairs):
    compared = 0
    for bdd, city in pairs.values():
        if "sem_seg_file_name" in bdd:
            classes = load_map(bdd)
            assert np.array_equal(classes, load_map(city))
            assert set(np.unique(classes)) <= {*range(19), 255}
            compared += 1
    assert compared == 9


def regions_of(mask):
    """Boxes of the 8-connected regions of more than 10 pixels, by walking from pixel to pixel."""
    left = set(zip(*(x.tolist() for x in np.nonzero(mask)), strict=True))
    while left:
        region = front = {left.pop()}
        while front:
            near = {(y + i, x + j) for y, x in front for i in (-1, 0, 1) for j in (-1, 0, 1)}
            front = near & left
            left -= front
            region = region | front
        ys, xs = zip(*region, strict=True)
        if len(region) > 10:
            yield [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def test_lights_and_signs_are_connected_regions(pairs):
    found = Counter()
    for bdd, city in pairs.values():
        ids = np.asarray(Image.open(city["sem_seg_file_name"]))
        for category, label_id in LABEL_IDS.items():
            expected = [[category, 0, *box] for box in regions_of(ids == label_id)]
            if "annotations" in bdd:
                assert boxes_of(bdd, [category]) == sorted(expected)
                found[category] += len(expected)
    assert found[LIGHT] > 5 and found[SIGN] > 5


def test_scenes_are_spread_over_the_parts(pairs):
    records = {s: [bdd for (x, _), (bdd, _) in pairs.items() if x == s] for s in street.SPLITS}
    # Of 20: 0, 5, 10, 15 in both parts; 3, 7, 13, 17 with a map alone; 9 held out; 19 with nothing.
    expected = {KEYS[0]: 14, KEYS[1]: 8, "all": 4, "none": 1}
    assert count_labels(records["train"], KEYS) == expected and len(records["train"]) == 19
    # Of 4: 1 with a map; and the boxes of the one held out.
    expected = {KEYS[0]: 4, KEYS[1]: 1, "all": 0, "none": 0}
    assert count_labels(records["val"], KEYS) == expected
    assert ("val", "train-000009") in pairs and ("train", "train-000009") not in pairs


def test_parts():
    train = Counter(bdd100k_splits("train", i) for i in range(100))
    assert train == {
        ("train", ""): 55,
        ("train", "train"): 20,
        ("", "train"): 20,
        ("val", "train"): 5,
    }
    assert [bdd100k_splits("val", i) for i in range(3)] == [("val", ""), ("", "val"), ("val", "")]


def test_pictures_are_jpegs_of_the_scenes(top):
    paths = sorted((top / "bdd100k/images").rglob("*.jpg"))
    # 15 + 4 in 100k (one of them held out), 9 + 1 in 10k.
    assert Counter(str(p.parent.relative_to(top / "bdd100k/images")) for p in paths) == {
        "100k/train": 15,
        "100k/val": 4,
        "10k/train": 9,
        "10k/val": 1,
    }
    assert all(Image.open(path).format == "JPEG" for path in paths)
    expected = Image.fromarray(draw_scene(np.random.default_rng([SEED, 0, 5]), *SIZE).rgb)
    for part in ("100k", "10k"):
        found = Image.open(top / f"bdd100k/images/{part}/train/train-000005.jpg")
        # Brightness; of colours JPEG keeps a quarter of the pixels.
        error = np.subtract(found.convert("L"), expected.convert("L"), dtype=float)
        assert np.abs(error).mean() < 2


def test_what_the_json_says_is_inclusive_and_whole(top):
    (frame, *_) = json.loads((top / "bdd100k/labels/det_20/det_train.json").read_text())
    ids = draw_scene(np.random.default_rng([SEED, 0, 0]), *SIZE).ids
    first = int(min(ids[ids >= 1000]))
    rows, columns = np.nonzero(ids == first)
    assert frame["name"] == "train-000000.jpg"
    assert frame["labels"][0]["box2d"] == {
        "x1": columns.min(),
        "y1": rows.min(),
        "x2": columns.max(),
        "y2": rows.max(),
    }


def read(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_bytes_do_not_depend_on_workers(tmp_path):
    options = {"num_train": 6, "num_val": 2, "size": (64, 32), "seed": 1, "layout": "bdd100k"}
    street.generate(tmp_path / "one", **options)
    street.generate(tmp_path / "two", workers=2, **options)
    assert read(tmp_path / "one") == read(tmp_path / "two")
    assert not street.generate(tmp_path / "one", **options)


def test_a_root_of_the_other_layout_is_left_alone(top):
    with pytest.raises(InputError, match="other arguments"):
        street.generate(top / "cityscapes", size=SIZE, seed=SEED, layout="bdd100k", **COUNTS)
    with pytest.raises(InputError, match="other arguments"):
        street.generate(top / "bdd100k", size=SIZE, seed=SEED, **COUNTS)
    with pytest.raises(InputError, match="layout must be one of cityscapes, bdd100k, got 'coco'"):
        street.generate(top / "x", size=SIZE, seed=SEED, layout="coco", **COUNTS)


def test_command(tmp_path, capsys, caplog):
    root = tmp_path / "street_bdd100k"
    arguments = ["--root", str(root), "--layout", "bdd100k", "--train", "6", "--val", "2"]
    assert street.main([*arguments, "--size", "64x32", "--workers", "1"]) == 0
    assert json.loads((root / street.MARK).read_text())["layout"] == "bdd100k"
    assert len(load_bdd100k(root=str(root), split="train", scan=FileScanner())) == 6
    assert caplog.messages == []
    assert street.main(["--root", str(tmp_path / "x"), "--layout", "coco"]) == 2
    assert "coco" in capsys.readouterr().err
