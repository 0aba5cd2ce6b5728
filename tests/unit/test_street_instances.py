"""The label files of projects/class_subsets, read back as a training reads them."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

from mtfixmatch.data.datasets.cityscapes import THING_LABELS, load_cityscapes
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.street.instances import PEOPLE, VEHICLES, write_instances
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import REPOSITORY
from tests.support.own_data import own_data

NAMES = [x.name for x in THING_LABELS]
SCRIPT = REPOSITORY / "projects" / "class_subsets" / "make_data.py"


@pytest.fixture(scope="module")
def written(street_root, tmp_path_factory):
    """The folder that the script writes."""
    folder = tmp_path_factory.mktemp("class_subsets")
    script = runpy.run_path(str(SCRIPT))
    words = ["--root", str(street_root / "street"), "--output", str(folder)]
    script["main"](script["parse_args"](words))
    return folder


@pytest.fixture(scope="module")
def files(written):
    return {path.stem: json.loads(path.read_text()) for path in written.iterdir()}


def images_of(content):
    return {x["id"]: x["file_name"] for x in content["images"]}


def classes_of(content):
    return {x["name"] for x in content["categories"]}


def boxes_of(content, classes=NAMES):
    """The annotations by id, with the names of their classes."""
    names = {x["id"]: x["name"] for x in content["categories"]}
    boxes = {a["id"]: a | {"category_id": names[a["category_id"]]} for a in content["annotations"]}
    assert len(boxes) == len(content["annotations"])
    return {i: box for i, box in boxes.items() if box["category_id"] in classes}


def read(street_root, split, *paths):
    """The records of a split by the name of the image, from these label files."""
    folder = street_root / "street" / "leftImg8bit" / split.lower()
    files = {"IMAGES": str(folder), "BOXES": [str(path) for path in paths]}
    own = own_data(("detection",), THING_CLASSES=NAMES, **{split: files})
    return {Path(r["file_name"]).name: r for r in own.load(split, FileScanner())}


def test_the_halves_have_other_images_and_other_classes(files):
    vehicles, people, whole = files["vehicles"], files["people"], files["all"]
    assert classes_of(vehicles) == set(VEHICLES) and classes_of(people) == set(PEOPLE)
    assert sorted(VEHICLES + PEOPLE) == sorted(NAMES)
    assert len(images_of(vehicles)) == len(images_of(people)) == 8
    assert images_of(vehicles) | images_of(people) == images_of(whole)
    for content, classes in ((vehicles, VEHICLES), (people, PEOPLE)):
        listed = images_of(content)
        expected = {i: a for i, a in boxes_of(whole, classes).items() if a["image_id"] in listed}
        assert boxes_of(content) == expected and len(expected) > 5


def test_the_merged_file_has_the_boxes_of_the_halves_and_claims_all_classes(files):
    merged, whole = files["merged"], files["all"]
    assert boxes_of(merged) == boxes_of(files["vehicles"]) | boxes_of(files["people"])
    assert boxes_of(merged).items() < boxes_of(whole).items()
    assert merged["categories"] == whole["categories"] and merged["images"] == whole["images"]


@pytest.mark.parametrize("split, name", [("TRAIN", "all"), ("VAL", "val")])
def test_all_boxes_are_those_of_the_scenes(street_root, written, split, name):
    records = read(street_root, split, written / f"{name}.json")
    root = str(street_root / "street")
    scenes = load_cityscapes(root=root, split=split.lower(), scan=FileScanner())
    expected = {Path(r["file_name"]).name: r["annotations"] for r in scenes}
    assert {image: r["annotations"] for image, r in records.items()} == expected
    assert not any("labeled_classes" in r for r in records.values())


def test_a_training_knows_which_classes_an_image_is_labeled_for(street_root, written, files):
    halves = read(street_root, "TRAIN", written / "vehicles.json", written / "people.json")
    merged = read(street_root, "TRAIN", written / "merged.json")
    for content, classes in ((files["vehicles"], VEHICLES), (files["people"], PEOPLE)):
        ids = sorted(map(NAMES.index, classes))
        for name in map(Path, images_of(content).values()):
            assert halves[name.name]["labeled_classes"] == ids
            assert halves[name.name]["annotations"] == merged[name.name]["annotations"]
            assert "labeled_classes" not in merged[name.name]


def test_a_scene_without_its_map_is_in_no_file(street_root, tmp_path):
    shutil.copytree(street_root / "street", tmp_path / "street")
    lost = min((tmp_path / "street" / "gtFine" / "train").rglob("*_instanceIds.png"))
    lost.unlink()
    files = write_instances(tmp_path / "street", tmp_path / "labels")
    name = lost.name.replace("_gtFine_instanceIds", "_leftImg8bit")
    assert files.pop("val.json")["images"]  # other scenes of the same names
    for content in files.values():
        assert name not in {Path(x).name for x in images_of(content).values()}
    assert len(files["all.json"]["images"]) == 15


def test_a_folder_that_cannot_be_written_is_named(street_root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"{tmp_path}/file: cannot be written: "):
        write_instances(street_root / "street", tmp_path / "file")
