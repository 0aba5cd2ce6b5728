import os

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from mtfixmatch.data.datasets.cityscapes import (
    cityscapes_metadata,
    label_id_lut,
    load_cityscapes,
    mask_extents,
    scan_instances,
)
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.notes import Notes

HEIGHT, WIDTH = 20, 30
ROAD, LICENSE_PLATE, PERSON, CAR, CARAVAN = 7, 255, 24, 26, 29


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def instance_map():
    ids = np.full((HEIGHT, WIDTH), ROAD, np.uint16)
    ids[2:6, 3:10] = 26000  # a car
    ids[15, 29] = 26001  # another, of one pixel, in two parts
    ids[17, 25] = 26001
    ids[10:14, 1:3] = 24005  # a person
    ids[0:2, 20:30] = PERSON  # a group in two components ...
    ids[8:12, 20:25] = PERSON
    ids[18:20, 0:5] = PERSON  # ... and a speck of 10 pixels
    ids[5, 15:26] = CAR  # a group of 11 pixels
    ids[14:16, 10:14] = 29000  # a caravan is no thing class
    return ids


EXPECTED_BOXES = [
    [0, 0, 1, 10, 3, 14],
    [2, 0, 3, 2, 10, 6],
    [2, 0, 25, 15, 30, 18],
    [0, 1, 20, 0, 30, 2],
    [0, 1, 20, 8, 25, 12],
    [2, 1, 15, 5, 26, 6],
]


def add_image(root, name, *, instances=True, labels=True, size=(HEIGHT, WIDTH)):
    city = name.split("_")[0]
    save(
        root / "leftImg8bit/train" / city / f"{name}_leftImg8bit.png",
        np.zeros((*size, 3), np.uint8),
    )
    folder = root / "gtFine/train" / city
    if instances:
        save(folder / f"{name}_gtFine_instanceIds.png", instance_map())
    if labels:
        ids = np.full((HEIGHT, WIDTH), ROAD, np.uint8)
        ids[3] = LICENSE_PLATE
        save(folder / f"{name}_gtFine_labelIds.png", ids)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "cityscapes"
    add_image(root, "ulm_000001_000019")
    add_image(root, "aachen_000000_000019", instances=False)
    add_image(root, "bonn_000000_000019", labels=False)
    add_image(root, "aachen_000002_000019", instances=False, labels=False)
    return root


def load(root, labels=("annotations", "sem_seg_file_name"), **options):
    scan = FileScanner(**options)
    return load_cityscapes(root=str(root), split="train", scan=scan, labels=labels)


def test_records(tree):
    records = load(tree)
    assert [record["image_id"] for record in records] == [
        "aachen_000000_000019",
        "aachen_000002_000019",
        "bonn_000000_000019",
        "ulm_000001_000019",
    ]
    labeled = [[key in r for key in ("annotations", "sem_seg_file_name")] for r in records]
    assert labeled == [[False, True], [False, False], [True, False], [True, True]]
    last = records[-1]
    assert (last["height"], last["width"]) == (HEIGHT, WIDTH)
    assert os.path.isfile(last["file_name"]) and os.path.isfile(last["sem_seg_file_name"])
    assert last["sem_seg_file_name"].endswith("ulm/ulm_000001_000019_gtFine_labelIds.png")


def test_boxes_are_extents_of_masks(tree):
    annotations = load(tree)[-1]["annotations"]
    found = [[a["category_id"], a["iscrowd"], *a["bbox"]] for a in annotations]
    assert found == EXPECTED_BOXES
    assert all(a["bbox_mode"] == BoxMode.XYXY_ABS for a in annotations)
    assert all(isinstance(x, float) for a in annotations for x in a["bbox"])


def test_what_is_ignored_is_counted(tree):
    """Two groups of persons and one of cars; the third of persons is a speck; a caravan."""
    expected = {"group region": 3, "speck of a group region": 1, "caravan or trailer": 1}
    assert [r.get("ignored") for r in load(tree)] == [None, None, expected, expected]


def test_no_instances_is_an_empty_list(tmp_path):
    add_image(tmp_path, "ulm_000001_000019")
    path = tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    save(path, np.full((HEIGHT, WIDTH), ROAD, np.uint16))
    (record,) = load(tmp_path)
    assert record["annotations"] == [] and "ignored" not in record


def test_the_cache_gives_the_same_records(tree, tmp_path):
    options = {"cache_dir": str(tmp_path / "cache"), "workers": 2}
    first = load(tree, **options)
    assert load(tree, **options) == first == load(tree)
    assert len(os.listdir(tmp_path / "cache")) == 3


def test_a_changed_map_is_seen_in_spite_of_the_cache(tree, tmp_path):
    options = {"cache_dir": str(tmp_path / "cache")}
    load(tree, **options)
    path = tree / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    ids = np.full((HEIGHT, WIDTH), ROAD, np.uint16)
    ids[4, 5] = 33007
    save(path, ids)
    (annotation,) = load(tree, **options)[-1]["annotations"]
    assert (annotation["category_id"], annotation["bbox"]) == (7, [5.0, 4.0, 6.0, 5.0])


def test_lut():
    lut = np.frombuffer(label_id_lut(), np.uint8)
    assert lut.shape == (256,)
    expected = {0: 255, 7: 0, 8: 1, 11: 2, 23: 10, 24: 11, 26: 13, 29: 255, 33: 18, 34: 254}
    assert {i: int(lut[i]) for i in expected} == expected
    assert lut[LICENSE_PLATE] == 255
    assert sorted(lut[lut < 254].tolist()) == list(range(19))


def test_metadata():
    metadata = cityscapes_metadata()
    things = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert metadata["thing_classes"] == things
    assert metadata["stuff_classes"][11:] == things
    assert metadata["stuff_classes"][:2] == ["road", "sidewalk"]
    assert len(metadata["stuff_classes"]) == len(metadata["stuff_colors"]) == 19
    assert metadata["thing_colors"][2] == [0, 0, 142]
    assert metadata["ignore_label"] == 255


@settings(max_examples=50, deadline=None)
@given(arrays(np.int32, (6, 9), elements=st.integers(0, 4)))
def test_extents_agree_with_one_mask_at_a_time(ids):
    wanted = np.setdiff1d(np.unique(ids), [0])
    expected = []
    for value in wanted:
        ys, xs = np.where(ids == value)
        expected.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert mask_extents(ids, wanted) == expected


@pytest.mark.parametrize("unknown", [34, 7001, 34001, 65535])
def test_an_unknown_instance_id_is_named(tmp_path, unknown):
    ids = instance_map()
    ids[0, 0] = unknown
    path = tmp_path / "x.png"
    save(path, ids)
    with pytest.raises(InputError, match=rf"x\.png: instance id {unknown} belongs to no"):
        scan_instances(str(path))


def test_an_unknown_label_id_names_both_files(tree):
    path = tree / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png"
    save(path, np.full((HEIGHT, WIDTH), 99, np.uint8))
    notes = Notes()
    load(tree, notes=notes)
    (message,) = notes.messages()
    assert str(path) in message and "ulm_000001_000019_leftImg8bit.png" in message
    assert "id 99 is no label id of Cityscapes" in message


@pytest.mark.parametrize("kind", ["instances", "labels"])
def test_another_size_of_image_and_map_names_both_files(tmp_path, kind):
    only = {"instances": kind == "instances", "labels": kind == "labels"}
    add_image(tmp_path, "ulm_000001_000019", size=(HEIGHT, WIDTH + 1), **only)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    message = str(error.value)
    assert f"_gtFine_{'instanceIds' if kind == 'instances' else 'labelIds'}.png" in message
    assert "ulm_000001_000019_leftImg8bit.png is 31x20" in message and "is 30x20" in message


def test_a_color_map_in_place_of_ids_is_refused(tree):
    path = tree / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    save(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(InputError, match=r"instanceIds\.png: expected a 16-bit .* 8 bits, RGB"):
        load(tree)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: looked for images in leftImg8bit/train/\*/"):
        load(tmp_path / "nowhere")


def test_the_wrong_level_is_explained(tree):
    with pytest.raises(InputError) as error:
        load(tree / "leftImg8bit")
    assert f"no folder {tree}/leftImg8bit/leftImg8bit" in str(error.value)
    assert "the folder that holds leftImg8bit and gtFine" in str(error.value)


def test_a_missing_split_is_named(tree):
    with pytest.raises(InputError, match=r"there is no folder .*leftImg8bit/val"):
        load_cityscapes(root=str(tree), split="val", scan=FileScanner())


def test_a_split_without_images_is_named(tree):
    (tree / "leftImg8bit/val/ulm").mkdir(parents=True)
    with pytest.raises(InputError, match=r"there is no image leftImg8bit/val/\*/\*_leftImg8bit"):
        load_cityscapes(root=str(tree), split="val", scan=FileScanner())


@pytest.mark.parametrize(
    ("key", "unread"),
    [("annotations", "labelIds"), ("sem_seg_file_name", "instanceIds")],
)
def test_one_label_needs_its_maps_alone(tree, key, unread, caplog):
    """Files of the other kind may be absent or broken; there is no warning about them."""
    name = "gtFine/train/ulm/ulm_000001_000019_gtFine_"
    expected = [record.get(key) for record in load(tree)]
    (tree / f"{name}{unread}.png").write_bytes(b"broken")
    for path in tree.glob(f"gtFine/train/bonn/*{unread}.png"):
        path.unlink()
    caplog.clear()
    found = load(tree, labels=[key])
    assert [record.get(key) for record in found] == expected
    assert not any("sem_seg_lut" in r for r in found if key == "annotations")
    assert unread not in caplog.text
