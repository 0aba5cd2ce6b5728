import json
import logging
import os
import shutil

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from mtfixmatch.data.datasets import bdd100k
from mtfixmatch.data.datasets.bdd100k import bdd100k_metadata, load_bdd100k
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.data.partial_labels import count_labels
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.notes import Notes

HEIGHT, WIDTH = 20, 30
KEYS = ["annotations", "sem_seg_file_name"]
# The parts of each split; "e" is for training in the one and for validation in the other.
IMAGES = {"100k/train": "abcd", "100k/val": "ef", "10k/train": "bceg", "10k/val": "h"}


def make_label(category="car", box=(2, 3, 9, 5), **fields):
    box2d = dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    return {"category": category, "box2d": box2d} | fields


# Frames of a and b for training are labeled, c's is not, and d has none.
FRAMES = {
    "train": [
        {"name": "a.jpg", "labels": [make_label()]},
        {"name": "b.jpg", "labels": []},
        {"name": "c.jpg"},
    ],
    "val": [
        {"name": "e.jpg", "labels": [make_label("pedestrian", (0, 0, 29, 19))]},
        {"name": "f.jpg", "labels": []},
    ],
}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_map(path, *, ids=(0, 18, 255), size=(HEIGHT, WIDTH)):
    save(path, np.resize(np.array(ids, np.uint8), size))


def save_frames(root, frames, split="train"):
    path = root / f"labels/det_20/det_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(frames))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "bdd"
    for i, (part, names) in enumerate(IMAGES.items()):
        for name in names:
            save(root / f"images/{part}/{name}.jpg", np.full((HEIGHT, WIDTH, 3), i, np.uint8))
    for split, frames in FRAMES.items():
        save_frames(root, frames, split)
        for name in IMAGES[f"10k/{split}"]:
            save_map(root / f"labels/sem_seg/masks/{split}/{name}.png")
    return root


def load(root, split="train", labels=tuple(KEYS), **options):
    return load_bdd100k(root=str(root), split=split, scan=FileScanner(**options), labels=labels)


def note_of(root, kind, labels=tuple(KEYS)):
    """The message of the only kind of note with these words, after reading the training split."""
    notes = Notes()
    load(root, labels=labels, notes=notes)
    (message,) = [x for x in notes.messages() if kind in x]
    assert "\n" not in message
    return message


def message_of(root, split="train", labels=tuple(KEYS)):
    with pytest.raises(InputError) as error:
        load(root, split, labels)
    assert "\n" not in str(error.value)
    return str(error.value)


def labels_of(records):
    return {r["image_id"]: [key in r for key in KEYS] for r in records}


def test_both_parts_of_train_are_merged(root):
    records = load(root)
    assert labels_of(records) == {
        "a": [True, False],
        "b": [True, True],
        "c": [False, True],
        "d": [False, False],
        "g": [False, True],
    }
    assert count_labels(records, KEYS) == {KEYS[0]: 2, KEYS[1]: 3, "all": 1, "none": 1}
    assert [r["image_id"] for r in records] == list("abcdg")
    files = [os.path.relpath(r["file_name"], root / "images") for r in records]
    assert files == [f"100k/train/{x}.jpg" for x in "abcd"] + ["10k/train/g.jpg"]
    assert all((r["height"], r["width"]) == (HEIGHT, WIDTH) for r in records)
    assert not any("ignored" in r for r in records)


def test_both_parts_of_val_are_disjoint(root):
    records = load(root, "val")
    assert labels_of(records) == {"e": [True, False], "f": [True, False], "h": [False, True]}
    assert count_labels(records, KEYS) == {KEYS[0]: 2, KEYS[1]: 1, "all": 0, "none": 0}


def test_boxes_include_their_last_pixel(root):
    a, b, *_ = load(root)
    assert a["annotations"] == [
        {
            "bbox": [2.0, 3.0, 10.0, 6.0],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 2,
            "iscrowd": 0,
        }
    ]
    assert b["annotations"] == []
    (whole,) = load(root, "val")[0]["annotations"]
    assert (whole["bbox"], whole["category_id"]) == ([0.0, 0.0, 30.0, 20.0], 0)
    assert all(isinstance(x, float) for x in whole["bbox"])


def test_maps_have_one_table(root):
    records = [r for r in load(root) if "sem_seg_lut" in r]
    assert [os.path.relpath(r["sem_seg_file_name"], root) for r in records] == [
        f"labels/sem_seg/masks/train/{x}.png" for x in "bcg"
    ]
    lut = records[0]["sem_seg_lut"]
    assert all(r["sem_seg_lut"] is lut for r in records)
    assert list(lut) == [*range(19), *[254] * 236, 255]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((4.5, 5, 4.5, 8.25), [4.5, 5.0, 5.5, 9.25]),
        ((-1, -1, 30, 20), [0.0, 0.0, 30.0, 20.0]),
        ((-1.0005, 0, 30.0005, 19), [0.0, 0.0, 30.0, 20.0]),
        ((5, 5, 4.5, 8), None),
        ((5, 5, 8, 4), None),
        ((30, 5, 30, 8), None),
        ((29.5, 5, 29.5, 8), None),
    ],
)
def test_boxes_are_clipped_by_a_pixel_and_left_out_below_one(root, box, expected):
    save_frames(root, [{"name": "a.jpg", "labels": [make_label(box=box)]}])
    record = load(root)[0]
    assert [a["bbox"] for a in record["annotations"]] == ([expected] if expected else [])
    assert record.get("ignored") == (None if expected else {"degenerate box": 1})


@pytest.mark.parametrize(
    "box", [(-1.5, 3, 9, 5), (2, -1.5, 9, 5), (2, 3, 30.5, 5), (2, 3, 9, 21), (9, 3, 7, 5)]
)
def test_a_box_outside_or_swapped_names_file_frame_and_box(root, box):
    save_frames(root, [{"name": "a.jpg", "labels": [make_label(box=box)]}])
    message = note_of(root, "without an area" if box[0] > box[2] else "over the border")
    assert f": 1 ({root}/labels/det_20/det_train.json: frame 'a.jpg': x1, y1, x2, y2 = " in message
    assert str(list(box)) in message and "100k/train/a.jpg of 30x20 pixels" in message
    assert len(load(root)[0]["annotations"]) == (box[0] < box[2])


def test_what_is_ignored_is_counted_by_image(root):
    lane = {"category": "lane/road curb", "poly2d": []}
    crowd = make_label("bus", attributes={"crowd": True})
    labels = [lane, make_label("other vehicle"), crowd, make_label(box=(5, 5, 4.5, 8)), lane]
    save_frames(root, [{"name": "a.jpg", "labels": labels}, {"name": "b.jpg", "labels": []}])
    a, b, *_ = load(root)
    assert [(x["category_id"], x["iscrowd"]) for x in a["annotations"]] == [(2, 1), (4, 1)]
    assert a["ignored"] == {"lane": 2, "other vehicle": 1, "crowd": 1, "degenerate box": 1}
    assert "ignored" not in b


def move_to_old_names(root):
    for split in FRAMES:
        old = root / f"labels/bdd100k_labels_images_{split}.json"
        (root / f"labels/det_20/det_{split}.json").rename(old)
        (root / "seg/images").mkdir(parents=True, exist_ok=True)
        (root / f"images/10k/{split}").rename(root / f"seg/images/{split}")
        for path in (root / f"labels/sem_seg/masks/{split}").iterdir():
            target = root / f"seg/labels/{split}/{path.stem}_train_id.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    shutil.rmtree(root / "images/10k")
    shutil.rmtree(root / "labels/sem_seg")
    shutil.rmtree(root / "labels/det_20")


def move_lists_to_root(root):
    for path in root.glob("labels/bdd100k_labels_images_*.json"):
        path.rename(root / path.name)


def move_below_bdd100k(root):
    (root / "bdd100k").mkdir()
    for name in set(os.listdir(root)) - {"bdd100k"}:
        (root / name).rename(root / "bdd100k" / name)


def without_paths(records):
    paths = ("file_name", "sem_seg_file_name")
    return [{k: k if k in paths else v for k, v in record.items()} for record in records]


@pytest.mark.parametrize(
    "moves",
    [
        [move_to_old_names],
        [move_to_old_names, move_lists_to_root],
        [move_below_bdd100k],
        [move_to_old_names, move_lists_to_root, move_below_bdd100k],
    ],
)
def test_older_names_and_a_folder_on_top_give_the_same(root, moves):
    expected = {split: without_paths(load(root, split)) for split in FRAMES}
    for move in moves:
        move(root)
    for split, records in expected.items():
        found = load(root, split)
        assert without_paths(found) == records
        files = [r[key] for r in found for key in ("file_name", *KEYS[1:]) if key in r]
        assert files and all(map(os.path.isfile, files))


def test_newer_names_go_first_and_that_is_said(root, caplog):
    old = root / "labels/bdd100k_labels_images_train.json"
    old.write_text("[]")
    with caplog.at_level(logging.INFO):
        assert len(load(root)[0]["annotations"]) == 1
    assert f"boxes are read from {root}/labels/det_20/det_train.json, not from {old}" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_the_cache_gives_the_same_records(root, tmp_path, workers):
    options = {"cache_dir": str(tmp_path / "cache"), "workers": workers}
    first = load(root, **options)
    assert load(root, **options) == first == load(root)
    assert len(os.listdir(tmp_path / "cache")) == 3


def test_a_changed_file_is_seen_in_spite_of_the_cache(root, tmp_path):
    options = {"cache_dir": str(tmp_path / "cache")}
    load(root, **options)
    save_frames(root, [{"name": "a.jpg", "labels": [make_label("truck", (0, 0, 0, 0))]}])
    save_map(root / "labels/sem_seg/masks/train/g.png", ids=[99])
    records = {record["image_id"]: record for record in load(root, **options)}
    assert "sem_seg_file_name" not in records["g"]
    save_map(root / "labels/sem_seg/masks/train/g.png", ids=[3])
    (annotation,) = load(root, **options)[0]["annotations"]
    assert (annotation["category_id"], annotation["bbox"]) == (3, [0.0, 0.0, 1.0, 1.0])


def test_numbers_other_than_the_papers_are_told_in_one_line(root, caplog):
    load(root)
    (warning,) = caplog.messages
    expected = "boxes 2/69853, maps 3/6546, both 1/2972, neither 1/143"
    assert str(root) in warning and "train" in warning and warning.endswith(expected)
    caplog.clear()
    load(root, "val")
    assert caplog.messages[0].endswith("boxes 2/10000, maps 1/1000, both 0/0, neither 0/0")


def test_numbers_are_not_told_of_generated_or_complete_data(root, caplog, monkeypatch):
    counts = {KEYS[0]: 2, KEYS[1]: 3, "all": 1, "none": 1}
    with monkeypatch.context() as patch:
        patch.setitem(bdd100k.OFFICIAL, "train", counts)
        load(root)
    (root / "street.json").write_text("{}")
    load(root)
    assert caplog.messages == []


def test_the_papers_numbers_agree_with_each_other():
    train = bdd100k.OFFICIAL["train"]
    labeled = train[KEYS[0]] + train[KEYS[1]] - train["all"]
    assert labeled == 73_427 and train[KEYS[1]] == 7_000 - 454
    # Of the 147 images of the 100K part without boxes the others are in the 10K part.
    assert 70_000 - train[KEYS[0]] == 147 and labeled + train["none"] == 73_570


def test_metadata():
    metadata = bdd100k_metadata()
    assert metadata["thing_classes"] == [
        *("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
        *("traffic light", "traffic sign"),
    ]
    assert metadata["stuff_classes"][:2] == ["road", "sidewalk"]
    assert metadata["stuff_classes"][5:8] == ["pole", "traffic light", "traffic sign"]
    assert len(metadata["stuff_classes"]) == len(metadata["stuff_colors"]) == 19
    assert metadata["thing_colors"][0] == metadata["stuff_colors"][11] == [220, 20, 60]
    assert metadata["thing_colors"][8:] == metadata["stuff_colors"][6:8]
    assert metadata["ignore_label"] == 255


def test_labels_without_an_image_are_noted(root):
    (root / "images/100k/train/a.jpg").unlink()
    (root / "images/10k/train/g.jpg").unlink()
    assert labels_of(load(root)) == {"b": [True, True], "c": [False, True], "d": [False, False]}
    maps, boxes = root / "labels/sem_seg/masks/train", root / "labels/det_20/det_train.json"
    notes = Notes()
    load(root, notes=notes)
    assert notes.lines["images that have labels but do not exist, left out"] == [
        f"{maps}: 'g' is not in {root}/images/10k/train",
        f"{boxes}: 'a' is not in {root}/images/100k/train",
    ]


def delete(*places):
    def change(root):
        for place in places:
            path = root / place
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def empty(place):
    def change(root):
        shutil.rmtree(root / place)
        (root / place).mkdir()
        (root / place / "._x.jpg").touch()

    return change


def truncate(root):
    path = root / "labels/det_20/det_train.json"
    path.write_text(path.read_text()[:70])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (delete("images/100k/train"), "the images of the 100K part in images/100k/train and bdd1"),
        (delete("images/10k"), "images/10k/train and bdd100k/images/10k/train and seg/images/trai"),
        (delete("labels/det_20"), "the boxes in labels/det_20/det_train.json and bdd100k/labels/"),
        (delete("labels/sem_seg"), "the maps in labels/sem_seg/masks/train and bdd100k/labels/se"),
        (delete("labels"), "give the folder that holds images and labels"),
        (empty("images/100k/train"), "100k/train: expected the images of the 100K part, found no"),
        (empty("labels/sem_seg/masks/train"), "expected the maps, found no file that ends in .png"),
        (lambda root: (root / "leftImg8bit").mkdir(), "expected BDD100K alone, but leftImg8bit"),
        (lambda root: (root / "gtFine").mkdir(), "but gtFine belongs to Cityscapes; give each dat"),
        (truncate, "det_train.json: is truncated"),
        (
            delete("images/100k/train/a.jpg", "images/100k/train/b.jpg"),
            "det_train.json: 2 of 3 images that have labels but do not exist, left out",
        ),
        (
            delete(*(f"images/10k/train/{x}.jpg" for x in "bce")),
            "masks/train: 3 of 4 images that have labels but do not exist, left out",
        ),
    ],
)
def test_what_is_missing_or_mixed_up_is_named(root, change, expected):
    change(root)
    message = message_of(root)
    assert message.startswith(str(root)) and expected in message


@pytest.mark.parametrize("level", ["nowhere", "images", "images/100k", "labels"])
def test_another_level_is_explained(root, level):
    message = message_of(root / level)
    assert message.startswith(f"{root / level}: looked for the images of the 100K part in images/1")
    assert message.endswith("give the folder that holds images and labels")


@pytest.mark.parametrize("unknown", [19, 33, 254])
def test_an_unknown_id_in_a_map_is_named(root, unknown):
    path = root / "labels/sem_seg/masks/train/c.png"
    save_map(path, ids=(0, unknown))
    assert f"1 ({path}: id {unknown} is no class of BDD100K, expected 0" in note_of(root, "unknown")


def test_a_map_of_another_size_names_both_files(root):
    path = root / "labels/sem_seg/masks/train/c.png"
    save_map(path, size=(HEIGHT, WIDTH + 1))
    expected = f"{path} is 31x20 pixels, but its image {root}/images/100k/train/c.jpg is 30x20"
    assert f"1 ({expected})" in note_of(root, "do not fit their image")


def test_a_colour_map_is_refused(root):
    path = root / "labels/sem_seg/masks/train/c.png"
    save(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert message_of(root).startswith(f"{path}: expected a single-channel or palette PNG")


# One of the two parts alone


PART_OF_BOXES = ("images/100k", "labels/det_20")
PART_OF_MAPS = ("images/10k", "labels/sem_seg")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("key", "absent", "ids"),
    [
        ("annotations", PART_OF_MAPS, {"train": "abcd", "val": "ef"}),
        ("sem_seg_file_name", PART_OF_BOXES, {"train": "bceg", "val": "h"}),
    ],
)
def test_one_label_needs_its_part_alone(root, split, key, absent, ids):
    expected = {x["image_id"]: x for x in without_paths(load(root, split))}
    delete(*absent)(root)
    found = load(root, split, [key])
    assert [r["image_id"] for r in found] == list(ids[split])
    (other,) = set(KEYS) - {key}
    assert not any(other in record for record in found)
    for record in without_paths(found):
        if record["image_id"] in expected:
            assert record.get(key) == expected[record["image_id"]].get(key)


def test_without_the_100k_part_no_image_with_a_map_is_held_out(root, caplog):
    delete(*PART_OF_BOXES)(root)
    assert all(KEYS[1] in record for record in load(root, labels=KEYS[1:]))
    assert caplog.messages[0].endswith("number of train images found/expected: maps 4/7000")


def test_images_of_the_other_part_are_unlabeled(root, caplog):
    """Also with one label, an image that is held out for validation stays out of the training."""
    boxes = labels_of(load(root, labels=KEYS[:1]))
    assert boxes == {x: [x in "ab", False] for x in "abcdg"}
    maps = labels_of(load(root, labels=KEYS[1:]))
    assert maps == {x: [False, x in "bcg"] for x in "abcdg"}
    assert labels_of(load(root, "val", KEYS[:1])) == {x: [x in "ef", False] for x in "efh"}
    assert [x.split("expected: ")[1] for x in caplog.messages] == [
        "boxes 2/69853",
        "maps 3/6546",
        "boxes 2/10000",
    ]


def test_files_of_the_other_label_are_not_opened(root):
    truncate(root)
    assert labels_of(load(root, labels=KEYS[1:]))["c"] == [False, True]
    save_frames(root, FRAMES["train"])
    save_map(root / "labels/sem_seg/masks/train/c.png", ids=[99])
    assert labels_of(load(root, labels=KEYS[:1]))["a"] == [True, False]


@pytest.mark.parametrize(
    ("key", "absent", "expected"),
    [
        (KEYS[0], "images/100k", "looked for the images of the 100K part in images/100k/train"),
        (KEYS[0], "labels/det_20", "looked for the boxes in labels/det_20/det_train.json"),
        (KEYS[1], "images/10k", "looked for the images of the 10K part in images/10k/train"),
        (KEYS[1], "labels/sem_seg", "looked for the maps in labels/sem_seg/masks/train"),
    ],
)
def test_a_part_that_is_needed_is_missed(root, key, absent, expected):
    delete(absent)(root)
    assert message_of(root, labels=[key]).startswith(f"{root}: {expected}")


def test_an_empty_folder_of_the_other_part_is_as_none(root):
    empty("images/10k/train")(root)
    assert [r["image_id"] for r in load(root, labels=KEYS[:1])] == list("abcd")


def test_training_without_the_images_for_validation_says_what_it_trains_on(root, caplog):
    delete("images/100k/val")(root)
    assert [r["image_id"] for r in load(root)] == list("abcdeg")
    expected = "no images of the 100K part for validation, so those in the 10K part are trained on"
    assert expected in caplog.messages[0]
    assert caplog.messages[1].endswith("boxes 2/69853, maps 4/7000, both 1/2972, neither 1/143")
