"""What is said of a folder is true, and following it works."""

import json

import pytest

from mtfixmatch.check.label_guess import MAPS
from tests.support.box_writers import write_coco
from tests.support.layouts import CLASSES, SIZE, make_images, make_map
from tests.unit.test_guess import error, guess, save_colors


@pytest.fixture
def root(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "data"


def make_maps(folder, count):
    for i in range(count):
        make_map(folder / f"img{i}_mask.png", (0, 1))


def test_maps_beside_images_are_a_glob_that_passes_the_images_over(root):
    make_images(root, 3)
    make_maps(root, 2)
    (maps,) = guess(root).train.of(MAPS)
    assert maps.path == str(root / "**" / "*.png")
    assert len(maps.labeled) == 2


def test_the_hint_for_maps_among_images_of_their_format_works(root):
    images = make_images(root, 3, suffix=".png")
    make_maps(root, 3)
    hint = "name the images by a glob or a list, and the maps by --labels"
    assert error(root).endswith(hint)
    listed = root / "images.txt"
    listed.write_text("".join(f"{name}\n" for name in images))
    found = guess(root, listed, labels=[root / "*_mask.png"])
    assert [len(x.labeled) for x in found.train.of(MAPS)] == [3]


@pytest.mark.parametrize("crowds, is_said", [((1, 1), True), ((0, 1), False)])
def test_boxes_that_all_are_ignored_regions_are_said(root, crowds, is_said):
    path = write_coco(root, make_images(root, 3), CLASSES, SIZE)
    content = json.loads((root / "boxes.json").read_text())
    for annotation, crowd in zip(content["annotations"], crowds, strict=True):
        annotation["iscrowd"] = crowd
    (root / "boxes.json").write_text(json.dumps(content))
    text = f"{path}: all 2 boxes are ignored regions (iscrowd), so there is no object to train on"
    assert (text in guess(root).remarks) == is_said


def test_maps_as_jpeg_are_said_to_be_none(root):
    make_images(root / "images", 2)
    make_images(root / "masks", 2)
    assert error(root).endswith(f"{root / 'masks'}: maps are read as .png, these files are .jpg")


NAMES = ["sky", "road", "tree"]


@pytest.mark.parametrize(
    "place, content",
    [
        ("masks/classes.txt", "sky\nroad\n\ntree\n"),
        ("masks/labels.json", json.dumps(NAMES)),
        ("sem_seg_classes.json", json.dumps({"2": "tree", "0": "sky", "1": "road"})),
        ("my-mask-labels.json", json.dumps({"tree": 2, "sky": 0, "road": 1})),
    ],
)
def test_a_file_beside_the_maps_names_their_values(root, place, content):
    make_images(root / "images", 3)
    make_map(root / "masks" / "img0.png", (0, 1, 255))
    (root / place).write_text(content)
    found = guess(root)
    (maps,) = found.train.of(MAPS)
    assert maps.options["SEM_SEG_CLASSES"] == NAMES and "MAP_VALUES" not in maps.options
    remark = f"{root / 'masks'}: {root / place} names the classes; 255 counts as ignored"
    assert remark in found.remarks


@pytest.mark.parametrize(
    "files",
    [
        {"classes.txt": "sky\nroad"},  # above the maps: it may be of boxes
        {"masks/classes.txt": "sky"},  # the map has two values
        {"masks/classes.txt": "sky\nsky"},
        {"masks/classes.txt": "sky\nroad", "masks/labels.txt": "cat\ndog"},
        {"masks/labelmap.txt": "sky:0,0,0::\nroad:1,1,1::"},  # names of colors
    ],
)
def test_other_files_do_not_name_values(root, files):
    make_images(root / "images", 3)
    make_map(root / "masks" / "img0.png", (0, 1))
    for name, content in files.items():
        (root / name).write_text(content)
    (maps,) = guess(root).train.of(MAPS)
    assert maps.options["SEM_SEG_CLASSES"] == ["class_0", "class_1"]


def test_values_with_gaps_have_the_names_of_a_file(root):
    make_images(root / "images", 3)
    make_map(root / "masks" / "img0.png", (0, 90))
    (root / "masks" / "classes.json").write_text('{"0": "sky", "90": "road", "7": "tree"}')
    (maps,) = guess(root).train.of(MAPS)
    assert maps.options["MAP_VALUES"] == [[0, "sky"], [7, "tree"], [90, "road"]]


def test_colors_have_the_names_of_a_labelmap(root):
    save_colors(root)
    text = "# label:color_rgb:parts:actions\nsky:200,0,100::\nground:0,0,0::\ncar:9,9,9::\n"
    (root / "labelmap.txt").write_text(text)
    (maps,) = guess(root).train.of(MAPS)
    expected = [[[0, 0, 0], "ground"], [[200, 0, 100], "sky"], [[9, 9, 9], "car"]]
    assert sorted(maps.options["MAP_VALUES"]) == sorted(expected)
