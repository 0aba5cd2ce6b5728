"""What is guessed of a folder: splits, labels, names and values of maps; the config."""

import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from mtfixmatch.check.guess import guess_data, seen_table
from mtfixmatch.check.label_guess import BOXES, MAPS, Labels, best_labels
from mtfixmatch.check.layouts import find_layout, named_like_maps, split_of
from mtfixmatch.check.write_config import CONFIG, config_text, crop_size, write_config
from mtfixmatch.tasks.png_maps import guess_names
from mtfixmatch.utils.errors import InputError
from tests.support.box_writers import Box, write_coco, write_yolo
from tests.support.layouts import CLASSES, LAYOUTS, SIZE, make_image, make_images, make_map
from tests.support.map_writers import write_panoptic


@pytest.fixture
def root(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "data"


def guess(root, *images, **options):
    paths = [str(x) for x in images] or [str(root)]
    places = {"output": str(root.parent / "output"), "cache_dir": str(root.parent / "cache")}
    return guess_data(paths, **places, **{k: [str(x) for x in v] for k, v in options.items()})


def error(*args, **options):
    with pytest.raises(InputError) as caught:
        guess(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def summary(split, root):
    """Key, format, path below the root and number of labeled images of all labels."""
    return {(x.key, x.format, os.path.relpath(x.path, root), len(x.labeled)) for x in split.labels}


def as_yaml(found, device="cpu"):
    return yaml.safe_load(config_text(found, "/output", "base.yaml", device))


@pytest.mark.parametrize(
    "name, split",
    [
        ("instances_train2017.json", "train"),
        ("valid", "val"),
        ("Validation", "val"),
        ("val2017", "val"),
        ("test", "test"),
        ("training.json", "train"),
        ("trainval.txt", ""),
        ("train_val.json", ""),
        ("constraint", ""),
        ("_annotations.coco.json", ""),
    ],
)
def test_a_split_is_known_by_a_word_of_the_name(name, split):
    assert split_of(name) == split


EXPECTED = {
    "detectron2": {("BOXES", "COCO", "annotations/instances_train2017.json", 4)},
    "roboflow": {("BOXES", "COCO", "train/_annotations.coco.json", 4)},
    "ultralytics": {("BOXES", "YOLO", "data.yaml", 4)},
    "voc2012": {
        ("BOXES", "Pascal VOC", "Annotations", 5),
        ("MAPS", "PNG, values", "SegmentationClass", 2),
    },
    "labelme": {("BOXES", "labelme", ".", 4)},
    "masks": {("MAPS", "PNG, values", "masks", 4)},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_common_layouts_are_recognized(root, name):
    found = guess(LAYOUTS[name](root))
    assert summary(found.train, root) == EXPECTED[name]
    assert len(found.train.images.paths) == 5
    if name in ("labelme", "masks"):
        assert found.val is None
    else:
        assert found.val is not None and len(found.val.images.paths) == 2
        assert {x.key for x in found.val.labels} == {x.key for x in found.train.labels}
    assert [x.classes for x in found.train.of(BOXES)] in ([], [["cat", "dog"]])


def test_a_folder_of_training_images_finds_those_of_validation(root):
    LAYOUTS["ultralytics"](root)
    found = guess(root, root / "images" / "train")
    assert found.train.sources == [str(root / "images" / "train")]
    assert found.val is not None and found.val.sources == [str(root / "images" / "val")]
    assert summary(found.val, root) == {("BOXES", "YOLO", "labels/val", 1)}


def test_files_of_both_splits_share_a_folder(root):
    images = make_images(root / "images", 6)
    for split, names in (("train", list(images)[:3]), ("val", list(images)[3:5])):
        write_coco(root, {name: images[name] for name in names}, CLASSES, SIZE)
        (root / "boxes.json").rename(root / f"{split}.json")
    found = guess(root)
    assert summary(found.train, root) == {("BOXES", "COCO", "train.json", 3)}
    assert found.val is not None and found.val.sources == found.train.sources
    assert summary(found.val, root) == {("BOXES", "COCO", "val.json", 2)}
    assert len(found.train_images()) == 4  # and one image that no file lists
    assert "3 of 4 images are labeled" in config_text(found, "/output", "base.yaml", "cpu")


def test_given_labels_and_their_part_for_validation(root):
    LAYOUTS["detectron2"](root)
    (root / "annotations").rename(root / "elsewhere")
    found = guess(root, root / "train2017", labels=[root / "elsewhere"])
    assert summary(found.train, root) == {
        ("BOXES", "COCO", "elsewhere/instances_train2017.json", 4)
    }
    assert found.val is not None
    assert summary(found.val, root) == {("BOXES", "COCO", "elsewhere/instances_val2017.json", 1)}
    assert any(path.endswith("captions_train2017.json") for path in found.ignored)


def test_validation_that_is_named(root):
    LAYOUTS["labelme"](root)
    images = make_images(root.parent / "more", 3, seed=50)
    write_yolo(root.parent, images, CLASSES, SIZE)
    labels = root.parent / "labels"
    found = guess(root, val_images=[root.parent / "more"], val_labels=[labels])
    assert found.val is not None
    assert summary(found.val, root.parent) == {("BOXES", "YOLO", "labels", 2)}


def test_images_of_neither_split_are_said_not_used(root):
    LAYOUTS["roboflow"](root)
    make_images(root / "unlabeled", 2, seed=300)
    found = guess(root)
    assert list(found.ignored) == [str(root / "test"), str(root / "unlabeled")]
    assert f"- not used: {root / 'test'}: other images: as an entry of IM" in seen_table(found)


def test_a_single_folder_of_images_is_looked_into(root):
    LAYOUTS["labelme"](root / "export" / "set1")
    assert find_layout(str(root)).train == [str(root / "export" / "set1")]
    assert len(guess(root).train.labeled(BOXES)) == 4


def test_validation_without_labels_is_said_not_used(root):
    LAYOUTS["roboflow"](root)
    (root / "valid" / "_annotations.coco.json").unlink()
    found = guess(root)
    assert found.val is None
    assert "no labels of them for what is trained" in found.ignored[str(root / "valid")]


def test_classes_that_validation_alone_has_are_said(root):
    LAYOUTS["roboflow"](root)
    images = {f"img{i}.jpg": [Box("bird", (8, 8, 50, 50))] for i in (100, 101)}
    write_coco(root, images, ["cat", "bird"], SIZE)
    (root / "boxes.json").rename(root / "valid" / "_annotations.coco.json")
    assert any(x.endswith("are left out: bird") for x in guess(root).remarks)


def test_nothing_recognized_is_one_error(root):
    make_images(root, 2)
    message = error(root)
    assert message.startswith(f"{root}: no labels were recognized inside or beside: expected boxes")
    for name in ("COCO", "YOLO", "Pascal VOC", "labelme", ".png", "--labels"):
        assert name in message
    (root / "a.json").write_text('{"hello": 1}')
    assert f"; {root / 'a.json'}: expected a COCO instances file" in error(root)


def test_given_labels_that_are_not_recognized_say_why(root):
    make_images(root / "images", 2)
    (root / "boxes.txt").write_text("hello world\n")
    message = error(root, root / "images", labels=[root / "boxes.txt"])
    assert message.startswith(f"--labels {root / 'boxes.txt'}: no labels were recognized")
    assert "there is no file or folder" in error(root, root / "images", labels=[root / "none"])


def test_labels_of_other_images_are_not_taken(root):
    make_images(root / "images", 3)
    write_coco(root, make_images(root.parent / "others", 3, seed=10), CLASSES, SIZE)
    assert "0 of its 2 images are there" in error(root, root / "images")


def test_classes_of_yolo_without_names_are_invented(root):
    write_yolo(root, make_images(root / "images", 3), CLASSES, SIZE)
    (root / "labels" / "classes.txt").unlink()
    found = guess(root)
    assert as_yaml(found)["DATASETS"]["COCO_STYLE"]["THING_CLASSES"] == ["class_0", "class_1"]
    assert any("rename class_0" in x for x in found.remarks)


def test_images_listed_without_a_box_are_counted(root):
    images = make_images(root / "images", 4)
    write_coco(root, images | {"img3.jpg": []}, CLASSES, SIZE)
    found = guess(root)
    assert any("1 of 4 images are listed without a box" in x for x in found.remarks)
    text = config_text(found, "/output", "base.yaml", "cpu")
    assert "UNANNOTATED: auto  # 1 labeled images have no box, 0 are not labeled" in text


def test_labels_in_two_formats_are_taken_once():
    ignored = {}
    a = Labels("a.json", BOXES, "COCO", {"1", "2"}, ["cat"])
    same = Labels("labels", BOXES, "YOLO", {"1"}, ["cat"])
    others = Labels("b.json", BOXES, "COCO", {"1", "2"}, ["dog"])
    assert best_labels([same, a, others], ignored.__setitem__) == [a, others]
    assert list(ignored) == ["labels"] and "a.json" in ignored["labels"]
    # COCO's key points are those of the same people.
    points = Labels("person_keypoints_train2017.json", BOXES, "COCO", {"1", "2"}, ["cat"])
    instances = Labels("instances_train2017.json", BOXES, "COCO", {"1"}, ["cat"])
    assert best_labels([points, instances], ignored.__setitem__) == [instances]


@pytest.mark.parametrize(
    "maps, images, expected",
    [
        (["a", "b"], ["a.jpg", "b.jpg"], "{stem}.png"),
        (["a_mask", "ab_mask", "x"], ["a", "ab"], "{stem}_mask.png"),
        (["gt_1", "gt_12"], ["1", "12"], "gt_{stem}.png"),
        (["sub/a_1"], ["sub/a"], "{stem}_1.png"),
        (["x"], ["a"], "{stem}.png"),
    ],
)
def test_names_of_maps_are_the_most_common_difference(maps, images, expected):
    assert guess_names(maps, [x.removesuffix(".jpg") for x in images]) == expected


def maps_of(root, *values):
    """The images and a folder of maps, one for each tuple of values."""
    make_images(root / "images", len(values))
    for i, row in enumerate(values):
        make_map(root / "masks" / f"img{i}.png", row)
    return guess(root).train.of(MAPS)[0].options


def test_values_of_maps_without_gaps_are_classes(root):
    options = maps_of(root, (0, 1, 3), (255, 4))
    assert options["SEM_SEG_CLASSES"] == [f"class_{i}" for i in range(5)]
    assert "MAP_VALUES" not in options and options["MAP_NAMES"] == "{stem}.png"


@pytest.mark.parametrize("values", [(0, 255), (0, 90), (0, 90, 255)])
def test_other_values_get_a_table(root, values):
    table = maps_of(root, values)["MAP_VALUES"]
    known = [x for x in values if x != 255 or values == (0, 255)]
    assert table == [[x, f"class_{i}"] for i, x in enumerate(known)]


def test_maps_of_both_splits_have_one_list_of_classes(root):
    for split, values in (("train", (0, 1)), ("val", (0, 2))):
        make_images(root / "images" / split, 2)
        make_map(root / "masks" / split / "img0.png", values)
    options = as_yaml(guess(root))["DATASETS"]["COCO_STYLE"]
    assert options["SEM_SEG_CLASSES"] == ["class_0", "class_1", "class_2"]
    for split, values in (("train", (10, 200)), ("val", (100, 200))):
        make_map(root / "masks" / split / "img0.png", values)
    options = as_yaml(guess(root))["DATASETS"]["COCO_STYLE"]
    assert options["MAP_VALUES"] == [[10, "class_0"], [100, "class_1"], [200, "class_2"]]


def test_panoptic_annotations_are_maps_beside_the_instances(root):
    images = make_images(root / "train2017", 3)
    folder = root / "annotations"
    folder.mkdir()
    ids = np.arange(SIZE[1], dtype=np.uint8)[None].repeat(SIZE[0], axis=0) // 64
    write_panoptic(folder, dict.fromkeys(["img0.jpg", "img1.jpg"], ids), ["sky", "cat"])
    (folder / "panoptic.json").rename(folder / "panoptic_train2017.json")
    (folder / "panoptic").rename(folder / "panoptic_train2017")
    write_coco(root, images, CLASSES, SIZE)
    (root / "boxes.json").rename(folder / "instances_train2017.json")
    found = guess(root)
    assert summary(found.train, folder) == {
        ("BOXES", "COCO", "instances_train2017.json", 2),
        ("MAPS", "COCO panoptic", "panoptic_train2017.json", 2),
    }
    assert found.train.of(MAPS)[0].classes == ["sky", "cat"]
    assert "its boxes are for the same" in found.ignored[str(folder / "panoptic_train2017.json")]


def test_polygons_mean_boxes_and_it_is_said(root):
    write_coco(root, make_images(root / "images", 3), CLASSES, SIZE)
    content = json.loads((root / "boxes.json").read_text())
    assert not guess(root).remarks
    content["annotations"][0]["segmentation"] = [[8, 8, 56, 8, 56, 60]]
    (root / "boxes.json").write_text(json.dumps(content))
    found = guess(root)
    assert summary(found.train, root) == {("BOXES", "COCO", "boxes.json", 2)}
    assert any("they are maps, too, with MAPS:" in x for x in found.remarks)


def save_colors(root):
    make_image(root / "images" / "a.jpg", 0)
    colors = np.zeros((*SIZE, 3), np.uint8)
    colors[:50] = 200, 0, 100
    (root / "masks").mkdir()
    Image.fromarray(colors).save(root / "masks" / "a.png")


def test_each_color_is_a_class(root):
    save_colors(root)
    (maps,) = guess(root).train.of(MAPS)
    assert maps.options["MAP_VALUES"] == [[[0, 0, 0], "class_0"], [[200, 0, 100], "class_1"]]


def test_photos_are_no_maps(root):
    make_images(root / "images", 2)
    make_images(root / "masks", 2, suffix=".png")
    assert "the maps have more than 254 colors" in error(root)


def test_maps_beside_images_of_another_format(root):
    make_images(root, 3)
    for i in range(2):
        make_map(root / f"img{i}_mask.png", (0, 1))
    found = guess(root)
    assert found.train.sources == [str(root / "*.jpg")]
    assert found.train.of(MAPS)[0].options["MAP_NAMES"] == "{stem}_mask.png"


def test_maps_among_the_images_are_an_error(root):
    make_images(root, 3, suffix=".png")
    for i in range(3):
        make_map(root / f"img{i}_mask.png", (0, 1))
    assert "3 of 6 images are named like maps" in error(root)
    assert named_like_maps(["a.png", "a_mask.png", "b_mask.png"]) == ["a_mask.png"]


def test_a_data_yaml_without_validation(root):
    LAYOUTS["ultralytics"](root)
    text = (root / "data.yaml").read_text().replace("val: images/val\n", "")
    (root / "data.yaml").write_text(text)
    assert find_layout(str(root)).val == []
    assert guess(root).val is None


# The config


def test_sampling_fits_the_labels(root):
    make_images(root / "images", 3)
    images = {f"img{i}.jpg": [Box("cat", (8, 8, 50, 50))] for i in range(3)}
    write_coco(root, dict(list(images.items())[:2]), CLASSES, SIZE)
    assert as_yaml(guess(root))["DATALOADER"]["SAMPLING"] == "explicit"
    write_coco(root, images, CLASSES, SIZE)
    config = as_yaml(guess(root))
    assert config["DATALOADER"] == {"SAMPLING": "implicit"}
    assert config["FIXMATCH"] == {"METHOD": "Supervised"}
    make_map(root / "masks" / "img0.png", (0, 1))  # the others are unlabeled for maps
    config = as_yaml(guess(root))
    assert config["MODEL"]["TASKS"] == ["detection", "segmentation"] and "FIXMATCH" not in config


def test_without_validation_the_config_says_how_to_add_it(root):
    found = guess(LAYOUTS["masks"](root))
    text = config_text(found, "/output", "base.yaml", "cpu")
    assert "TEST: ()  # no validation was found: add COCO_STYLE.VAL" in text
    assert yaml.safe_load(text)["OUTPUT_DIR"] == "/output/training"


@pytest.mark.parametrize(
    "size, device, expected",
    [((1080, 1920), "cuda", [800, 800]), ((100, 300), "cpu", [96, 288]), ((9, 9), "cpu", [32, 32])],
)
def test_crops_are_multiples_of_32(root, size, device, expected):
    found = guess(LAYOUTS["masks"](root))
    found.train.images.sizes = {"a": list(size)}
    assert crop_size(found.train, device) == expected


def test_a_small_range_of_16_bits_is_written(root):
    values = np.linspace(100, 4000, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    (root / "images").mkdir(parents=True)
    Image.fromarray(values).save(root / "images" / "a.png")
    write_coco(root, {"a.png": [Box("cat", (8, 8, 50, 50))]}, CLASSES, SIZE)
    low, high = as_yaml(guess(root))["INPUT"]["RANGE_16BIT"]
    assert 100 <= low < 110 and 3990 < high <= 4000


def test_another_config_is_not_overwritten(root):
    output = str(root.parent / "output")
    found = guess(LAYOUTS["masks"](root))
    path = write_config(found, output, "base.yaml", "cpu")
    assert path == os.path.join(output, CONFIG)
    assert write_config(found, output, "base.yaml", "cpu") == path  # the same text
    with open(path, "a") as file:
        file.write("SEED: 1\n")
    with pytest.raises(InputError, match="is not overwritten: name another folder with --output"):
        write_config(found, output, "base.yaml", "cpu")


def test_names_of_classes_survive_the_config(root):
    names = ["no", "a: b", 'say "hi"', "日本", "1"]
    make_image(root / "images" / "a.jpg", 0)
    write_coco(root, {"a.jpg": [Box(x, (8, 8, 50, 50)) for x in names]}, names, SIZE)
    assert as_yaml(guess(root))["DATASETS"]["COCO_STYLE"]["THING_CLASSES"] == names
    assert json.loads((root / "boxes.json").read_text())["categories"][0]["name"] == "no"
