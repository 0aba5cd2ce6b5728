import json
import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from detectron2.structures import BoxMode

from mtfixmatch.data.datasets.own_data import TRAIN, VAL
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import REPOSITORY
from tests.support.own_data import HEIGHT, WIDTH, Dataset, annotation, black, listed, own_data, save

COCO_SMALL = REPOSITORY.parent / "shared" / "data" / "coco_small"
KEY = "DATASETS.COCO_STYLE.TRAIN"


@pytest.fixture
def data(tmp_path):
    return Dataset(tmp_path)


def test_what_is_labeled(data):
    records = data.load()
    assert [record["image_id"] for record in records] == ["a.jpg", "c.jpg", "d.jpg", "sub/b.png"]
    labels = [["annotations" in r, "sem_seg_file_name" in r] for r in records]
    assert labels == [[True, True], [False, True], [False, False], [True, False]]
    assert records[3]["annotations"] == []
    assert all((r["height"], r["width"]) == (HEIGHT, WIDTH) for r in records)
    assert records[3]["file_name"] == str(data.images / "sub/b.png")
    assert not any("labeled_classes" in record for record in records)


def test_boxes_become_corners_inside_the_image(data):
    assert data.load()[0]["annotations"] == [
        {
            "bbox": [2.0, 3.0, 12.0, 8.0],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 1,
            "iscrowd": 0,
        },
        {
            "bbox": [0.0, 0.0, 30.0, 20.0],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "iscrowd": 1,
        },
    ]
    (note,) = data.notes.messages()
    assert "listed images without a box" in note


def test_only_what_the_tasks_need_is_read(data):
    (data.maps / "a.png").write_bytes(b"broken")
    assert not any("sem_seg_file_name" in r for r in data.load(tasks=("detection",)))
    data.boxes.unlink()
    gone = {"BOXES": str(data.root / "gone.json")}
    (data.maps / "a.png").unlink()
    records = data.load(tasks=("segmentation",), files=gone)
    assert [r["image_id"] for r in records if "sem_seg_file_name" in r] == ["c.jpg"]
    assert not any("annotations" in record for record in records)


def test_files_without_labels(data):
    records = data.load(files={"BOXES": None, "MAPS": ""})
    assert [len(record) for record in records] == [4] * 4


def test_lut(data):
    lut = np.frombuffer(data.load()[0]["sem_seg_lut"], np.uint8)
    assert lut.tolist() == [0, 1, *[254] * 253, 255]
    records = data.load(SEM_SEG_CLASSES=[f"{i}" for i in range(254)])
    assert np.frombuffer(records[0]["sem_seg_lut"], np.uint8).tolist() == [*range(254), 254, 255]


def test_another_ignore_label(data):
    save(data.maps / "a.png", np.full((HEIGHT, WIDTH), 2, np.uint8))
    (data.maps / "c.png").unlink()
    lut = np.frombuffer(data.load(IGNORE_LABEL=2)[0]["sem_seg_lut"], np.uint8)
    assert lut.tolist() == [0, 1, 255, *[254] * 253]


def test_the_cache_gives_the_same_records_and_sees_changes(data, tmp_path):
    scan = FileScanner(cache_dir=str(tmp_path / "cache"), workers=2)
    first = data.load(scan=scan)
    assert data.load(scan=scan) == first == data.load()
    data.content["annotations"].pop()
    assert len(data.load(scan=scan)[0]["annotations"]) == 1
    save(data.maps / "a.png", np.full((HEIGHT, WIDTH), 9, np.uint8))
    assert "sem_seg_file_name" not in data.load(scan=scan)[0]


# Boxes


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ([25, 3, 7, 5], [25, 3, 30, 8]),
        ([2, 3, 5, 19], [2, 3, 7, 20]),
        ([-2, 0, 5, 5], [0, 0, 3, 5]),
    ],
)
def test_a_box_over_the_border_is_clipped_and_counted(data, box, clipped):
    data.content["annotations"].append(annotation(99, 11, box))
    assert clipped in data.boxes_of()
    note = data.note("over the border")
    assert f"clipped: 1 ({data.boxes}: annotation 99: x0, y0, x1, y1 = {box[0]}, {box[1]}" in note
    assert f"{data.images / 'a.jpg'} of 30x20 pixels" in note


@pytest.mark.parametrize("box", [[40, 3, 5, 5], [30.5, 3, 0.4, 5], [2, 3, 0, 5], [2, 3, 5, -1]])
def test_a_box_without_an_area_is_left_out_and_counted(data, box):
    data.content["annotations"].append(annotation(99, 11, box))
    assert len(data.boxes_of()) == 2
    assert f"left out: 1 ({data.boxes}: annotation 99: " in data.note("without an area")


def test_mostly_wrong_boxes_are_an_error(data):
    """Corners where width and height are expected."""
    data.content["annotations"] = [annotation(i, 11, [20, 10, 25 + i, 15]) for i in range(4)]
    message = data.message()
    assert "4 of 4 boxes are not inside their images, more than DATASETS.MAX_FAULTS 0.5" in message


def test_the_same_box_twice_counts_once(data):
    data.content["annotations"].append(annotation(99, 11, [2, 3, 10, 5]))
    assert len(data.boxes_of()) == 2
    note = data.note("boxes that an image has twice")
    assert "taken once: 1 (" in note and "annotation 99" in note


# Classes


def test_thing_classes_set_the_order(data):
    records = data.load(THING_CLASSES=["dog", "cat"])
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1]


def test_thing_classes_select(data):
    records = data.load(THING_CLASSES=["cat"])
    assert [a["category_id"] for a in records[0]["annotations"]] == [0]
    assert f"left out: 1 ({data.boxes}: 'dog' (1 boxes))" in data.note("not trained")
    assert "labeled_classes" not in records[0]


def test_a_listed_class_that_no_file_has(data):
    message = data.message(THING_CLASSES=["dog", "horse", "cow"])
    assert "DATASETS.COCO_STYLE.THING_CLASSES names ['horse', 'cow']" in message
    assert str(data.boxes) in message and "has only ['cat', 'dog']" in message


def test_thing_classes_named_twice(data):
    assert "THING_CLASSES names a class twice" in data.message(THING_CLASSES=["dog", "cat", "cat"])


def add_validation(data, categories, boxes):
    black(data.root / "val/v.jpg")
    content = {
        "images": [listed(1, "v.jpg")],
        "categories": [{"id": i, "name": x} for i, x in enumerate(categories)],
        "annotations": [annotation(i, 1, [0, 0, 5 + i, 5], x) for i, x in enumerate(boxes)],
    }
    path = data.root / "val.json"
    path.write_text(json.dumps(content))
    data.load()  # writes the training file
    files = {"IMAGES": str(data.root / "val"), "BOXES": str(path)}
    train = {"IMAGES": str(data.images), "BOXES": str(data.boxes)}
    return lambda **keys: own_data(("detection",), TRAIN=train, VAL=files, **keys).load(
        VAL, FileScanner(notes=data.notes)
    )


def test_validation_has_the_classes_of_training(data):
    """Other ids, one class less, and one more without a box."""
    (record,) = add_validation(data, ["dog", "cow"], [0])()
    assert [a["category_id"] for a in record["annotations"]] == [1]
    assert record["labeled_classes"] == [1]


def test_boxes_of_a_class_unknown_to_training_are_an_error(data):
    load = add_validation(data, ["dog", "cow"], [0, 1, 1])
    with pytest.raises(InputError, match=r"val\.json: 'cow' \(2 boxes\): training does not know"):
        load()
    (record,) = load(THING_CLASSES=["dog"])
    assert len(record["annotations"]) == 1


def test_files_that_are_whole_for_their_own_classes(data):
    """Dogs were drawn in a and b, birds in a and c: a has the union."""
    birds = {
        "images": [listed(1, "a.jpg"), listed(2, "c.jpg")],
        "categories": [{"id": 1, "name": "bird"}],
        "annotations": [annotation(1, 2, [1, 1, 4, 4], 1)],
    }
    second = data.root / "birds.json"
    second.write_text(json.dumps(birds))
    del data.content["categories"][1], data.content["annotations"][1]
    records = data.load(files={"BOXES": [str(data.boxes), str(second)]})
    labels = {r["image_id"]: r.get("labeled_classes") for r in records if "annotations" in r}
    assert labels == {"a.jpg": None, "c.jpg": [1], "sub/b.png": [0]}
    assert [len(r.get("annotations", "")) for r in records] == [1, 1, 0, 0]
    assert records[1]["annotations"][0]["category_id"] == 1


def test_a_file_without_a_class_that_is_trained_labels_nothing(data):
    birds = {
        "images": [listed(1, "c.jpg")],
        "categories": [{"id": 1, "name": "bird"}],
        "annotations": [annotation(1, 1, [1, 1, 4, 4], 1)],
    }
    second = data.root / "birds.json"
    second.write_text(json.dumps(birds))
    files = {"BOXES": [str(data.boxes), str(second)]}
    records = data.load(files=files, THING_CLASSES=["dog", "cat"])
    assert [r["image_id"] for r in records if "annotations" in r] == ["a.jpg", "sub/b.png"]
    assert f"{second}: 'bird' (1 boxes)" in data.note("not trained")


def test_a_class_that_never_occurs_is_named(data):
    data.content["annotations"].pop()
    data.load()
    assert data.note("never occur") == (
        "classes that never occur in the labels of the training: 1 ('cat' (detection))"
    )


# What an image without a box is


@pytest.mark.parametrize(("unannotated", "empty"), [("auto", 1), ("empty", 1), ("unlabeled", 0)])
def test_a_listed_image_without_a_box(data, unannotated, empty):
    records = data.load(UNANNOTATED=unannotated)
    assert [r.get("annotations") for r in records].count([]) == empty
    assert len(data.notes.messages()) == (unannotated == "auto")
    if unannotated == "auto":
        note = data.note("listed images without a box")
        assert "'sub/b.png' (if nobody looked" in note and "UNANNOTATED to unlabeled" in note


def test_an_unknown_value_of_unannotated(data):
    assert "UNANNOTATED is 'nothing': it must be one of auto" in data.message(UNANNOTATED="nothing")


# Names


@pytest.mark.parametrize(
    "name",
    ["images\\a.jpg", "./a.jpg", "/data/images/a.jpg", "C:\\photos\\a.jpg", "A.JPG", "x/y/a.jpg"],
)
def test_names_of_an_image(data, name):
    data.content["images"][0]["file_name"] = name
    data.content["images"].pop()
    assert len(data.boxes_of()) == 2 and data.notes.messages() == []


def test_a_name_without_the_folder_of_the_image(data):
    data.content["images"][1]["file_name"] = "b.png"
    assert data.boxes_of("sub/b.png") == []


@pytest.mark.parametrize(("on_disk", "in_file"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_forms_of_unicode(data, on_disk, in_file):
    name = "stra\u00dfe_\u00e9.jpg"
    black(data.images / unicodedata.normalize(on_disk, name))
    data.content["images"][0]["file_name"] = unicodedata.normalize(in_file, name)
    assert len(data.boxes_of(unicodedata.normalize(on_disk, name))) == 2


def test_of_two_names_the_one_with_more_folders_is_right(data):
    data.content["images"].append(listed(13, "other/a.jpg"))
    data.content["images"][0]["file_name"] = "images/a.jpg"
    data.content["annotations"].append(annotation(3, 13, [0, 0, 3, 3]))
    assert len(data.boxes_of()) == 2
    note = data.note("do not exist")
    assert f"'other/a.jpg' is one of several names of {data.images / 'a.jpg'}" in note


def test_two_entries_for_one_image_are_taken_together(data):
    data.content["images"].append(listed(13, "./a.jpg"))
    data.content["annotations"].append(annotation(3, 13, [0, 0, 3, 3]))
    assert len(data.boxes_of()) == 3
    assert "'a.jpg'" in data.note("taken together")


def test_a_missing_image_is_counted_and_the_nearest_is_named(data):
    data.content["images"][1]["file_name"] = "c.png"
    data.load()
    expected = f"image 'c.png' is not in {data.images} (the nearest is 'c.jpg'))"
    assert f"1 ({data.boxes}: {expected}" in data.note("do not exist")


def test_an_image_of_an_unread_suffix_is_named(data):
    (data.images / "e.heic").write_bytes(b"")
    data.content["images"][1]["file_name"] = "e.heic"
    data.load()
    assert "images of the suffix of" in data.note("do not exist")
    assert f"{KEY}.IMAGES: 1 ({data.images / 'e.heic'})" in data.note("suffix that is not read")


def test_mostly_missing_images_are_an_error(data):
    for image in data.content["images"]:
        image["file_name"] = f"gone_{image['id']}.jpg"
    message = data.message()
    assert f"{data.boxes}: 2 of 2 images that a label file lists but that do not exist" in message
    assert "more than DATASETS.MAX_FAULTS 0.5 allows, such as: " in message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"width": 31}, "has 31x20 pixels, but"), ({"height": 30, "width": 20}, "EXIF orientation")],
)
def test_labels_for_another_size_are_left_out(data, fields, expected):
    data.content["images"][0] |= fields
    assert "annotations" not in data.load()[0]
    note = data.note("another size")
    assert f"{data.boxes}: image 'a.jpg' has" in note and expected in note


@pytest.mark.parametrize(
    "size", [{}, {"width": None}, {"width": 30.0, "height": 20.0}, {"width": 0}]
)
def test_sizes_may_be_absent(data, size):
    data.content["images"][0] = {"id": 11, "file_name": "a.jpg"} | size
    assert len(data.boxes_of()) == 2


# Folders


def test_missing_files_are_named(data, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    expected = f"no folder {nowhere!r}"
    assert f"{KEY}.IMAGES: there is {expected}" in data.message(files={"IMAGES": nowhere})
    assert f"{KEY}.MAPS: there is {expected}" in data.message(files={"MAPS": nowhere})
    assert f"{KEY}.BOXES: there is no file" in data.message(files={"BOXES": nowhere})
    assert f"{KEY}.IMAGES is empty" in data.message(files={"IMAGES": ""})
    Path(nowhere).mkdir()
    assert f"{KEY}.IMAGES: no file in {nowhere}" in data.message(files={"IMAGES": nowhere})


def test_hidden_folders_and_links_to_a_folder(data):
    black(data.images / ".thumbnails/a.jpg")
    (data.images / "again").symlink_to(data.images)
    assert len(data.load()) == 4


def test_home_and_variables_in_paths(data, monkeypatch):
    monkeypatch.setenv("HOME", str(data.root))
    monkeypatch.setenv("PLACE", str(data.root))
    assert len(data.load(files={"IMAGES": "~/images", "BOXES": "$PLACE/boxes.json"})) == 4


def test_several_folders_with_the_same_names(data):
    black(data.root / "more/a.jpg")
    black(data.root / "more/e.jpg")
    folders = [str(data.images), str(data.root / "more")]
    records = {r["image_id"]: r for r in data.load(files={"IMAGES": folders})}
    assert [x for x in records if x.startswith("more")] == ["more/a.jpg", "more/e.jpg"]
    assert len(records["images/a.jpg"]["annotations"]) == 2
    assert "sem_seg_file_name" in records["images/a.jpg"]
    assert len(records["more/a.jpg"]) == len(records["more/e.jpg"]) == 4
    assert f"{data.images / 'a.jpg'} and {data.root / 'more/a.jpg'}" in data.note("several folders")


@pytest.mark.parametrize("pattern", ["*.jpg", "**/*.jpg"])
def test_globs(data, pattern):
    records = data.load(files={"IMAGES": str(data.images / pattern)})
    assert [r["image_id"] for r in records] == ["a.jpg", "c.jpg", "d.jpg"]


def test_a_text_file_with_paths(data):
    path = data.root / "train.txt"
    path.write_text(f"images/a.jpg\r\n\n{data.images}\\sub\\b.png\n")
    records = data.load(files={"IMAGES": str(path)})
    assert [r["image_id"] for r in records] == ["images/a.jpg", "images/sub/b.png"]
    assert len(records[0]["annotations"]) == 2


def test_missing_files_of_a_list_are_counted(data):
    path = data.root / "train.txt"
    path.write_text("images/a.jpg\nimages/gone.jpg")
    assert len(data.load(files={"IMAGES": str(path)})) == 1
    assert f"left out: 1 ({data.root}/images/gone.jpg)" in data.note("files that a list names")
    path.write_text("images/a.jpg\nimages/gone.jpg\nimages/lost.jpg")
    assert "2 of 3 files that a list names" in data.message(files={"IMAGES": str(path)})


def test_equal_stems_matter_only_for_labels_by_stem(data):
    black(data.images / "a.png")
    records = {r["image_id"]: r for r in data.load()}
    assert len(records["a.jpg"]["annotations"]) == 2
    assert "sem_seg_file_name" not in records["a.jpg"]
    assert "'a' is the name of" in data.note("belong to no image")


def test_an_unreadable_image_is_named(data):
    (data.images / "d.jpg").write_bytes(b"no image")
    assert f"cannot read the image {data.images / 'd.jpg'}: " in data.message()


# Training and validation in one folder


def one_folder(data, val_names, **val):
    content = data.content | {"images": [listed(i, x) for i, x in enumerate(val_names)]}
    content["annotations"] = [annotation(1, 0, [0, 0, 5, 5])]
    path = data.root / "val.json"
    path.write_text(json.dumps(content))
    data.load()
    shared = {"IMAGES": str(data.images), "MAPS": str(data.maps)}
    return own_data(
        SEM_SEG_CLASSES=["road", "sky"],
        TRAIN=shared | {"BOXES": str(data.boxes)},
        VAL=shared | {"BOXES": str(path)} | val,
    )


def test_what_validation_lists_takes_no_part_in_training(data):
    own = one_folder(data, ["c.jpg", "d.jpg"])
    train = own.load(TRAIN, FileScanner(notes=data.notes))
    val = own.load(VAL, FileScanner())
    assert [r["image_id"] for r in train] == ["a.jpg", "sub/b.png"]
    assert [r["image_id"] for r in val] == ["c.jpg", "d.jpg"]
    note = data.note("left out of the training")
    assert f": 2 (the first: {data.images / 'c.jpg'})" in note


def test_a_shared_folder_without_a_list_of_validation_is_an_error(data):
    own = one_folder(data, ["c.jpg"], BOXES=None)
    for split in (TRAIN, VAL):
        with pytest.raises(InputError, match=r"TRAIN and VAL have the same images, and no label"):
            own.load(split, FileScanner())


def test_a_folder_of_maps_for_validation_alone_lists_its_images(data):
    save(data.root / "val_maps/d.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    own = one_folder(data, ["c.jpg"], BOXES=None, MAPS=str(data.root / "val_maps"))
    assert [r["image_id"] for r in own.load(VAL, FileScanner())] == ["d.jpg"]
    train = own.load(TRAIN, FileScanner())
    assert [r["image_id"] for r in train] == ["a.jpg", "c.jpg", "sub/b.png"]


def test_validation_by_a_text_file_of_paths(data):
    path = data.root / "val.txt"
    path.write_text("images/d.jpg")
    own = one_folder(data, ["c.jpg", "d.jpg"], IMAGES=str(path), MAPS=None)
    assert [r["image_id"] for r in own.load(VAL, FileScanner())] == ["images/d.jpg"]
    train = own.load(TRAIN, FileScanner())
    assert [r["image_id"] for r in train] == ["a.jpg", "c.jpg", "sub/b.png"]


# Maps


def test_a_map_of_another_size_is_left_out_and_names_both_files(data):
    save(data.maps / "c.png", np.zeros((HEIGHT, WIDTH - 1), np.uint8))
    assert "sem_seg_file_name" not in data.load()[1]
    note = data.note("maps of another size")
    assert f"{data.maps / 'c.png'} is 29x20" in note and f"{data.images / 'c.jpg'} is 30x20" in note


@pytest.mark.parametrize("unknown", [2, 254])
def test_a_map_with_an_unknown_id_is_left_out_and_named(data, unknown):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4, 4] = unknown
    save(data.maps / "c.png", ids)
    assert "sem_seg_file_name" not in data.load()[1]
    note = data.note("no class")
    assert f"{data.maps / 'c.png'}: id {unknown} is" in note
    assert "SEM_SEG_CLASSES" in note and "IGNORE_LABEL" in note
    save(data.maps / "a.png", ids)
    assert "2 of 2 maps with values that are no class" in data.message()


def test_the_share_of_ignored_pixels_is_logged(data, caplog):
    """Of the two maps, 90 of 1,200 pixels have the ignored value."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[:3] = 255
    save(data.maps / "a.png", ids)
    save(data.maps / "c.png", 0 * ids)
    with caplog.at_level(logging.INFO, logger="mtfixmatch"):
        data.load()
    assert "2 for segmentation (7.5 % of the pixels of PNGs are ignored)" in caplog.text


def test_maps_that_belong_to_no_image(data):
    (data.maps / "c.png").rename(data.maps / "c_mask.png")
    assert "sem_seg_file_name" not in data.load()[1]
    note = data.note("belong to no image")
    assert f"1 ({data.maps / 'c_mask.png'}: 'c_mask' is not in {data.images}" in note
    (data.maps / "a.png").rename(data.maps / "a_mask.png")
    assert f"{KEY}.MAPS: no map in {data.maps} is named like an image" in data.message()
    assert "sem_seg_file_name" in data.load(MAP_NAMES="{stem}_mask.png")[1]


def test_the_names_of_maps_are_guessed_in_a_message(data):
    black(data.images / "street_1.jpg")
    (data.maps / "c.png").rename(data.maps / "street_1_mask.png")
    data.load()
    expected = "DATASETS.COCO_STYLE.MAP_NAMES '{stem}_mask.png' would fit"
    assert expected in data.note("belong to no image")


def test_maps_that_do_not_follow_map_names(data):
    (data.maps / "c.png").rename(data.maps / "c_mask.png")
    assert "sem_seg_file_name" not in data.load(MAP_NAMES="{stem}_mask.png")[0]
    assert f"1 ({data.maps / 'a.png'} (expected" in data.note("not named as")


@pytest.mark.parametrize("pattern", ["mask.png", "{stem}{stem}.png"])
def test_map_names_need_one_stem(data, pattern):
    assert f"MAP_NAMES is {pattern!r}" in data.message(MAP_NAMES=pattern)


def test_two_maps_of_one_image(data):
    save(data.maps / "a.PNG", np.zeros((HEIGHT, WIDTH), np.uint8))
    message = data.message()
    assert f"{KEY}.MAPS" in message
    assert str(data.maps / "a.PNG") in message and str(data.maps / "a.png") in message


def test_masks_of_0_and_255_lose_their_class(data):
    for name in ("a", "c"):
        save(data.maps / f"{name}.png", np.array([[0, 0, 255]] * HEIGHT, np.uint8).repeat(10, 1))
    data.load()
    note = data.note("the maps hold 0 and 255 alone")
    assert "'sky' never occurs" in note and "MAP_VALUES to [[0, 'road'], [255, 'sky']]" in note


def test_mostly_ignored_pixels_are_said(data):
    row = [0, 1, 255, 255, 255, 255]
    for name in ("a", "c"):
        save(data.maps / f"{name}.png", np.array([row] * HEIGHT, np.uint8).repeat(5, 1))
    data.load()
    assert (
        f"{KEY}.MAPS: 67 % of the pixels of the maps in {data.maps} have the value 255"
        in data.note("67 %")
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"SEM_SEG_CLASSES": []},
            f"SEM_SEG_CLASSES is empty: name the classes of the maps in {KEY}",
        ),
        ({"SEM_SEG_CLASSES": ["a", "a"]}, "SEM_SEG_CLASSES lists 2 classes, expected different"),
        ({"SEM_SEG_CLASSES": [f"{i}" for i in range(255)]}, "lists 255 classes"),
        ({"IGNORE_LABEL": 1}, "IGNORE_LABEL is 1, expected 2 to 255"),
        ({"IGNORE_LABEL": 256}, "IGNORE_LABEL is 256, expected 2 to 255"),
    ],
)
def test_bad_classes_of_maps(data, options, expected):
    assert expected in data.message(**options)


# More


def test_an_unknown_key_is_named():
    with pytest.raises(InputError, match=r"a key of DATASETS.COCO_STYLE is 'MAP_NAME'.* MAP_NAMES"):
        own_data(MAP_NAME="x")
    with pytest.raises(InputError, match=r"a key of DATASETS.COCO_STYLE.TRAIN is 'BOX'.* BOXES"):
        own_data(TRAIN={"BOX": "x"})


@pytest.mark.skipif(not COCO_SMALL.is_dir(), reason=f"no data in {COCO_SMALL}")
@pytest.mark.parametrize(
    ("split", "images", "boxes", "crowds"), [("train", 26, 181, 1), ("val", 27, 174, 2)]
)
def test_real_data(tmp_path, split, images, boxes, crowds):
    files = {
        "IMAGES": str(COCO_SMALL / "images" / split),
        "BOXES": str(COCO_SMALL / f"instances_{split}.json"),
        "MAPS": str(COCO_SMALL / "sem_seg" / split),
    }
    sem_seg_classes = json.loads((COCO_SMALL / "sem_seg_classes.json").read_text())
    own = own_data(SEM_SEG_CLASSES=sem_seg_classes, TRAIN=files)
    scan = FileScanner(cache_dir=str(tmp_path), workers=2)
    records = own.load(TRAIN, scan)
    classes = own.class_names("detection", scan)
    annotations = [a for record in records for a in record["annotations"]]
    assert (len(records), len(annotations)) == (images, boxes)
    assert sum(a["iscrowd"] for a in annotations) == crowds
    assert len(classes) == 12 and classes[0] == "accessory" and classes[-1] == "vehicle"
    for record in records:
        name = os.path.basename(record["sem_seg_file_name"])
        assert name == f"{record['image_id'][:-4]}.png"
        for x0, y0, x1, y1 in (a["bbox"] for a in record["annotations"]):
            assert 0 <= x0 < x1 <= record["width"] and 0 <= y0 < y1 <= record["height"]
