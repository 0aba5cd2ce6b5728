"""Guesses that could be silently wrong: labels of other images, splits that do not agree."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.check.agree import agreeing_labels, unknown_classes
from mtfixmatch.check.guess import seen_table
from mtfixmatch.check.label_guess import BOXES, MAPS, Labels
from mtfixmatch.check.write_config import config_text
from tests.support.box_writers import write_coco, write_voc, write_yolo
from tests.support.layouts import CLASSES, LAYOUTS, SIZE, make_images, make_map
from tests.unit.test_guess import as_yaml, error, guess, summary


@pytest.fixture
def root(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "data"


def own_data(found):
    return as_yaml(found)["DATASETS"]["COCO_STYLE"]


# Where labels are looked for


@pytest.mark.parametrize("images", ["images", "images/train", "train/images", "JPEGImages", ""])
@pytest.mark.parametrize("name", ["cars", "my_train_data", "coco_val"])
def test_labels_of_another_dataset_are_not_taken(root, name, images):
    dataset = root / name
    named = make_images(dataset / (images or "images"), 3)
    write_yolo(root, named, CLASSES, SIZE)  # of the same names, beside the dataset
    make_map(root / "masks" / "img0.png", (0, 1))
    write_coco(root, named, CLASSES, SIZE)
    assert "no labels were recognized" in error(root, dataset / images)


def test_labels_beside_the_folder_of_a_split_are_those_of_its_images(root):
    write_yolo(root, make_images(root / "train2017" / "images", 3), CLASSES, SIZE)
    found = guess(root, root / "train2017" / "images")
    assert summary(found.train, root) == {(BOXES, "YOLO", "labels", 2)}


def test_a_broken_file_does_not_make_way_for_that_of_others(root):
    LAYOUTS["detectron2"](root / "cars")
    write_coco(root, make_images(root / "others", 5), CLASSES, SIZE)
    path = root / "cars" / "annotations" / "instances_train2017.json"
    path.write_text("{")
    assert f"; {path}: is not valid JSON" in error(root, root / "cars")


def test_labels_beside_a_folder_of_any_name_are_taken_and_said(root):
    images = make_images(root / "photos", 3)
    write_yolo(root, images, CLASSES, SIZE)
    make_map(root / "masks" / "img0.png", (0, 1))
    found = guess(root, root / "photos")
    assert {x.key for x in found.train.labels} == {BOXES, MAPS}
    beside = [x for x in found.remarks if "lies beside the images and has their names" in x]
    assert [x.split(":")[0] for x in beside] == [str(root / "labels"), str(root / "masks")]
    (root / "labels").rename(root / "photos" / "labels")
    found = guess(root, root / "photos")
    assert summary(found.train, root) == {(BOXES, "YOLO", "photos/labels", 2)}
    assert not any("beside" in x for x in found.remarks)


def test_labels_of_a_split_are_found_beside_folders_of_any_name(root):
    for split, seed in (("train", 0), ("val", 10)):
        images = make_images(root / "photos" / split, 3, seed)
        write_yolo(root / split, images, CLASSES, SIZE)
        (root / "labels").mkdir(exist_ok=True)
        (root / split / "labels").rename(root / "labels" / split)
    found = guess(root, root / "photos" / "train")
    assert summary(found.train, root) == {(BOXES, "YOLO", "labels/train", 2)}
    assert found.val is not None
    assert summary(found.val, root) == {(BOXES, "YOLO", "labels/val", 2)}


def test_images_that_do_not_exist_name_the_option(root):
    assert error(root, root / "none") == f"--images: there is no file or folder '{root / 'none'}'"
    make_images(root / "images", 2)
    message = error(root, root / "images", val_images=[root / "*.tiff"])
    assert message == f"--val-images: there is no file or folder '{root / '*.tiff'}'"


def test_the_images_of_validation_in_a_shared_folder_are_counted(root):
    images = make_images(root / "images", 6)
    for split, names in (("train", list(images)[:3]), ("val", list(images)[3:5])):
        write_coco(root, {name: images[name] for name in names}, CLASSES, SIZE)
        (root / "boxes.json").rename(root / f"{split}.json")
    found = guess(root)
    rows = [x.split("|")[1:6] for x in seen_table(found).splitlines() if "| images " in x]
    counts = {row[0].strip(): row[3].strip() for row in rows[1:]}
    assert counts == {"training": "4", "validation": "2"}


# Maps of both splits


def save_maps(root, **splits):
    """Images and maps with these values in the folders of each split."""
    for seed, (split, values) in enumerate(splits.items()):
        make_images(root / "images" / split, 1, 10 * seed)
        make_map(root / "masks" / split / f"img{10 * seed}.png", values)


def test_classes_of_maps_are_those_of_the_values_of_both_splits(root):
    # Alone, the values of validation would be a table without those of the training.
    save_maps(root, train=range(12), val=(3, 11, 255))
    found = guess(root)
    assert own_data(found)["SEM_SEG_CLASSES"] == [f"class_{i}" for i in range(12)]
    assert "MAP_VALUES" not in own_data(found)
    assert found.val is not None
    assert found.val.of(MAPS)[0].classes == found.train.of(MAPS)[0].classes
    assert len([x for x in found.remarks if "the maps have the values" in x]) == 1


def test_masks_of_0_and_255_in_one_split_alone(root):
    save_maps(root, train=(0, 255), val=(0, 1, 2, 255))
    assert own_data(guess(root))["SEM_SEG_CLASSES"] == ["class_0", "class_1", "class_2"]
    save_maps(root, train=(0, 255), val=(0, 255))
    found = guess(root)
    assert own_data(found)["MAP_VALUES"] == [[0, "class_0"], [255, "class_1"]]
    assert any("if 255 means ignored, take it out of MAP_VALUES" in x for x in found.remarks)


def test_maps_of_validation_with_colors_are_not_used(root):
    save_maps(root, train=(0, 1), val=(0, 1))
    colors = np.zeros((*SIZE, 3), np.uint8)
    colors[:50] = 200, 0, 100
    Image.fromarray(colors).save(root / "masks" / "val" / "img10.png")
    found = guess(root)
    assert found.val is None and "TEST: ()" in config_text(found, "/output", "base.yaml", "cpu")
    why = "not used for validation: its maps are PNG, colors, those of the training PNG, values"
    assert found.ignored[str(root / "masks" / "val")] == why


def test_maps_of_validation_with_other_names_are_not_used(root):
    save_maps(root, train=(0, 1), val=(0, 1))
    folder = root / "masks" / "val"
    (folder / "img10.png").rename(folder / "img10_gt.png")
    found = guess(root)
    assert found.val is None and "{stem}_gt.png" in found.ignored[str(folder)]


@pytest.mark.parametrize("count, is_error", [(254, False), (255, True)])
def test_maps_have_at_most_254_classes(root, count, is_error):
    make_images(root / "images", 1)
    values = np.resize(np.arange(count, dtype=np.uint8), SIZE)
    (root / "masks").mkdir()
    Image.fromarray(values).save(root / "masks" / "img0.png")
    if is_error:
        assert "the maps have more than 254 values" in error(root)
    else:
        assert len(own_data(guess(root))["SEM_SEG_CLASSES"]) == count


# Classes of boxes


def yolo_splits(root):
    """YOLO in labels/train and labels/val, where only the training has names of the classes."""
    for split, seed in (("train", 0), ("val", 10)):
        images = make_images(root / "images" / split, 3, seed)
        write_yolo(root / split, images, CLASSES, SIZE)
        (root / "labels").mkdir(exist_ok=True)
        (root / split / "labels").rename(root / "labels" / split)
        (root / split).rmdir()
    (root / "labels" / "val" / "classes.txt").unlink()


def test_numbers_without_names_are_those_of_the_training(root):
    yolo_splits(root)
    found = guess(root)
    assert found.val is not None and found.val.of(BOXES)[0].classes == list(CLASSES)
    assert own_data(found)["THING_CLASSES"] == list(CLASSES)
    assert not any("left out" in x or "rename" in x for x in found.remarks)
    where = f"{root / 'labels' / 'val'}: the numbers of classes are taken as in"
    assert f"{where} {root / 'labels' / 'train'}" in found.remarks


def test_numbers_without_names_are_not_classes_of_another_format(root):
    yolo_splits(root)
    shutil.rmtree(root / "labels" / "train")
    (root / "w").mkdir()
    images = make_images(root / "images" / "train", 3)
    Path(write_voc(root / "w", images, CLASSES, SIZE)).rename(root / "Annotations")
    found = guess(root)
    assert summary(found.train, root) == {(BOXES, "Pascal VOC", "Annotations", 2)}
    assert found.val is None
    why = found.ignored[str(root / "labels" / "val")]
    assert why.endswith("none of its classes class_0, class_1 is in the training")


def labels(format, classes, key=BOXES):
    return Labels(f"{format}-{len(classes)}", key, format, {"1"}, classes, remarks=["rename"])


def test_a_number_above_those_of_the_training_keeps_its_invented_name():
    train = [labels("YOLO", ["cat", "dog"])]
    val = [labels("YOLO", ["class_0", "class_1", "class_2"])]
    assert agreeing_labels(train, val, {}.__setitem__) == val
    assert val[0].classes == ["cat", "dog", "class_2"]
    assert unknown_classes(train, val) == ["class_2"]


@pytest.mark.parametrize(
    "train, val, is_used",
    [
        (["cat", "dog"], ["cat"], True),
        (["cat"], ["cat", "bird"], True),
        (["cat"], ["bird"], False),
        (["cat"], [], True),  # files of images without objects
    ],
)
def test_boxes_of_validation_need_a_class_of_the_training(train, val, is_used):
    ignored = {}
    val = [labels("COCO", val)]
    kept = agreeing_labels([labels("COCO", train)], val, ignored.__setitem__)
    assert kept == (val if is_used else [])
    assert len(ignored) == (not is_used)
