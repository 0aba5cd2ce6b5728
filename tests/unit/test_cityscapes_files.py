import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.data.datasets import cityscapes_files, folders
from mtfixmatch.data.datasets.cityscapes import load_cityscapes
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.utils.errors import InputError

TRAIN = ("aachen_000000_000019", "hamburg_000000_000042", "ulm_000001_000019")


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def add_image(root, folder, name):
    path = root / folder / name.split("_")[0] / f"{name}_leftImg8bit.png"
    save(path, np.zeros((4, 6, 3), np.uint8))
    return path


def add_labels(root, folder, name):
    stem = f"gtFine/{folder}/{name.split('_')[0]}/{name}_gtFine"
    save(root / f"{stem}_instanceIds.png", np.full((4, 6), 7, np.uint16))
    save(root / f"{stem}_labelIds.png", np.full((4, 6), 7, np.uint8))


@pytest.fixture
def tree(tmp_path):
    """Three cities of "train" with an image each; the frames around two of these."""
    root = tmp_path / "cityscapes"
    for name in TRAIN:
        add_image(root, "leftImg8bit/train", name)
        add_labels(root, "train", name)
    for name in ("bonn_000000_000019", "bonn_000001_000019"):
        add_image(root, "leftImg8bit/train_extra", name)
    for frame in (18, 19, 20):
        add_image(root, "leftImg8bit_sequence/train", f"aachen_000000_{frame:06d}")
        add_image(root, "leftImg8bit_sequence/train", f"hamburg_000000_{frame + 23:06d}")
    return root


@pytest.fixture
def official(monkeypatch):
    """The official counts are those of `tree`."""
    counts = {"train": 3, "train_extra": 2, "sequence": 4}
    monkeypatch.setattr(cityscapes_files, "OFFICIAL_COUNTS", counts)


def load(root, split="train"):
    return load_cityscapes(root=str(root), split=split, scan=FileScanner())


def message(root, split="train"):
    with pytest.raises(InputError) as error:
        load(root, split)
    return str(error.value)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_train_extra_has_no_labels(tree, official, caplog):
    add_labels(tree, "train_extra", "bonn_000000_000019")
    folder = tree / "leftImg8bit/train_extra/bonn"
    assert load(tree, "train_extra") == [
        {
            "file_name": str(folder / f"bonn_{i:06d}_000019_leftImg8bit.png"),
            "image_id": f"bonn_{i:06d}_000019",
            "height": 4,
            "width": 6,
        }
        for i in (0, 1)
    ]
    assert warnings(caplog) == []


def test_sequence_lacks_the_frames_of_train(tree, official, caplog):
    """The annotated frame is found by its name: it is not number 19 in every city."""
    records = load(tree, "sequence")
    assert [r["image_id"] for r in records] == [
        "aachen_000000_000018",
        "aachen_000000_000020",
        "hamburg_000000_000041",
        "hamburg_000000_000043",
    ]
    assert {key for r in records for key in r} == {"file_name", "image_id", "height", "width"}
    name = "leftImg8bit_sequence/train/aachen/aachen_000000_000018_leftImg8bit.png"
    assert records[0]["file_name"] == str(tree / name)
    assert warnings(caplog) == []


def test_image_ids_are_unique_over_the_splits(tree):
    ids = [
        r["image_id"] for split in ("train", "train_extra", "sequence") for r in load(tree, split)
    ]
    assert len(ids) == len(set(ids)) == 3 + 2 + 4


def test_sequence_needs_train(tree):
    shutil.rmtree(tree / "leftImg8bit/train")
    text = message(tree, "sequence")
    assert f"there is no folder {tree}/leftImg8bit/train;" in text
    assert "the annotated frames, which the sequences exclude" in text
    assert "leftImg8bit_trainvaltest.zip" in text


@pytest.mark.parametrize(
    ("split", "folder", "package"),
    [
        ("val", "leftImg8bit/val", "leftImg8bit_trainvaltest.zip"),
        ("train_extra", "leftImg8bit/train_extra", "leftImg8bit_trainextra.zip"),
        ("sequence", "leftImg8bit_sequence", "leftImg8bit_sequence_trainvaltest.zip"),
    ],
)
def test_a_missing_split_names_its_package(tree, split, folder, package):
    shutil.rmtree(tree / folder, ignore_errors=True)
    text = message(tree, split)
    assert f"there is no folder {tree}/{folder};" in text
    assert f"with {package} unzipped in it" in text


def test_official_counts():
    assert cityscapes_files.OFFICIAL_COUNTS == {
        "train": 2975,
        "val": 500,
        "train_extra": 19998,
        "sequence": 86275,
    }


@pytest.mark.parametrize(
    ("split", "count", "where", "expected"),
    [
        ("train", 3, "leftImg8bit/train/*/*_leftImg8bit.png", 2975),
        ("train_extra", 2, "leftImg8bit/train_extra/*/*_leftImg8bit.png", 19998),
        ("sequence", 4, "leftImg8bit_sequence/train/*/*_leftImg8bit.png without the", 86275),
    ],
)
def test_another_count_is_one_warning(tree, caplog, split, count, where, expected):
    load(tree, split)
    (text,) = warnings(caplog)
    assert text.startswith(f"{tree}: found {count} images in {where}")
    assert text.endswith(f"the official Cityscapes has {expected}")


def test_generated_data_may_have_any_count(street_root, caplog):
    assert len(load(street_root / "street")) == 16
    assert warnings(caplog) == []


def test_absent_maps_are_counted(tree, official, caplog):
    path = tree / "gtFine/train/hamburg/hamburg_000000_000042_gtFine_instanceIds.png"
    path.unlink()
    assert ["annotations" in r for r in load(tree)] == [True, False, True]
    (text,) = warnings(caplog)
    assert "1 of 3 images of train have no *_gtFine_instanceIds.png" in text
    assert text.endswith(f"(the first: {path})")


def test_missing_labels_are_an_unfinished_download(tree):
    shutil.rmtree(tree / "gtFine")
    text = message(tree)
    assert text.startswith(f"{tree}/gtFine/train: expected the maps of the 3 cities")
    assert "3 have no folder there (the first: aachen)" in text
    assert "gtFine_trainvaltest.zip" in text


def test_labels_of_most_cities_are_enough(tree):
    """One city of three is unlabeled; two of three are an error."""
    shutil.rmtree(tree / "gtFine/train/ulm")
    assert ["annotations" in r for r in load(tree)] == [True, True, False]
    shutil.rmtree(tree / "gtFine/train/hamburg")
    assert "2 have no folder there (the first: hamburg)" in message(tree)


def test_generated_data_may_lack_all_labels(tree, caplog):
    shutil.rmtree(tree / "gtFine")
    (tree / folders.MARK).touch()
    assert [set(r) for r in load(tree)] == [{"file_name", "image_id", "height", "width"}] * 3
    assert [text.split(": ")[1][:25] for text in warnings(caplog)] == [
        "3 of 3 images of train ha"
    ] * 2


@pytest.mark.parametrize("level", ["..", "leftImg8bit", "leftImg8bit/train", "cityscapes"])
def test_the_wrong_level_names_the_right_one(tree, level):
    root = (tree / level).resolve()
    text = message(root)
    assert text.startswith(f"{root}: looked for images in leftImg8bit/train/*/*_leftImg8bit.png")
    assert f"the folder that holds leftImg8bit and gtFine, which is {tree} (" in text


def test_a_relative_root_at_the_wrong_level(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert f"which is {tree} (" in message("leftImg8bit")
    monkeypatch.chdir(tree.parent)
    assert len(load("cityscapes")) == 3


@pytest.mark.parametrize("folder", ["cityscapes", "."])
def test_zip_files_are_named(tmp_path, folder):
    root = tmp_path / "cityscapes"
    root.mkdir()
    zips = [root.parent / folder / f"{x}_trainvaltest.zip" for x in ("gtFine", "leftImg8bit")]
    for path in (*zips, tmp_path / "other.zip"):
        path.touch()
    text = message(root)
    assert f"found as zip files: {zips[0]}, {zips[1]})" in text
    assert f"there is no folder {root}/leftImg8bit;" in text


def test_a_zip_file_of_the_labels_is_named(tree):
    shutil.rmtree(tree / "gtFine")
    path = tree / "gtFine_trainvaltest.zip"
    path.touch()
    assert f"unzipped in it (found as zip files: {path})" in message(tree)


@pytest.mark.parametrize("folder", ["images/100k", "images/10k", "labels/det_20"])
def test_two_layouts_in_one_folder_are_refused(tree, folder):
    (tree / folder).mkdir(parents=True)
    assert message(tree) == (
        f"{tree}: expected Cityscapes alone, but {folder} belongs to BDD100K; "
        "give each dataset a folder of its own"
    )


def test_images_outside_of_city_folders(tmp_path):
    save(tmp_path / "leftImg8bit/train/ulm_1_leftImg8bit.png", np.zeros((4, 6, 3), np.uint8))
    assert "there is no image leftImg8bit/train/*/*_leftImg8bit.png" in message(tmp_path)


def test_the_size_comes_from_the_header_of_an_image(tree):
    path = add_image(tree, "leftImg8bit/train", TRAIN[0])
    data = path.read_bytes()
    path.write_bytes(data[:50])  # signature, IHDR and a part of the pixels
    assert (load(tree)[0]["height"], load(tree)[0]["width"]) == (4, 6)
    for size in (0, 20):
        path.write_bytes(data[:size])
        assert message(tree).startswith(f"cannot read the image {path}: ")


@pytest.mark.parametrize("suffix", ["instanceIds", "labelIds"])
def test_a_truncated_map_is_named(tree, suffix):
    path = Path(tree / f"gtFine/train/ulm/ulm_000001_000019_gtFine_{suffix}.png")
    path.write_bytes(path.read_bytes()[:50])
    assert message(tree).startswith(f"cannot read the image {path}: ")
