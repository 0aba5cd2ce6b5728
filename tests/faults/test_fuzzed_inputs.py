from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.utils import images
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.images import read_image_size, read_label_map, read_rgb_pixels
from tests.support.fuzz.cases import complaint, file_cases, label_cases
from tests.support.fuzz.dataset import (
    HEIGHT,
    LAYOUTS,
    OBJECTS,
    WIDTH,
    encoded,
    map_of,
    picture_of,
    read_all,
    tree_of,
    write_tree,
)
from tests.support.fuzz.files import Source, with_size

CLASS = {"person": 0, "car": 2}  # of Cityscapes and of BDD100K


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzing")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sound_files_are_read_as_they_were_drawn(layout, folder):
    """Otherwise the comparisons below would prove nothing."""
    root = folder / layout
    write_tree(tree_of(layout), root)
    examples = read_all(layout, root)
    assert examples.keys() == OBJECTS.keys()
    for name, example in examples.items():
        number = {"person": 0, "car": 1} if layout == "coco_style" else CLASS
        assert example.boxes == sorted([*b, number[t], 0] for b, t in OBJECTS[name])
        assert np.array_equal(example.classes, map_of(name))
        lossy = layout == "bdd100k" or (layout == "coco_style" and name == "b")
        assert np.abs(example.image - picture_of(name).astype(int)).mean() <= 4 * lossy
        assert example.is_sane()


@pytest.mark.parametrize("case", file_cases(), ids=str)
def test_a_corrupt_file_is_read_correctly_or_named(case, folder):
    assert complaint(case, seed=1, folder=folder) == ""


@pytest.mark.parametrize("case", label_cases(), ids=str)
def test_a_corrupt_annotation_is_named(case, folder):
    assert [complaint(case, seed, folder) for seed in (1, 2)] == ["", ""]


@pytest.mark.parametrize("fault", ["a wrong pixel", "a box out of the picture", "no error"])
def test_complaints_name_what_is_wrong(fault, folder, monkeypatch):
    case = next(x for x in label_cases() if x.mutate.__name__ == "coco_no_crowd")
    if fault == "no error":
        case = next(x for x in file_cases() if str(x) == "coco_style, json, json_nested")
        monkeypatch.setitem(
            LAYOUTS, "coco_style", (LAYOUTS["coco_style"][0], lambda root, notes: [])
        )
        assert complaint(case, 1, folder).endswith("was read without an error")
        return
    assert complaint(case, 1, folder) == ""
    read = LAYOUTS["coco_style"][1]

    def read_wrongly(root, notes):
        records = read(root, notes=notes)
        if fault == "a wrong pixel":
            records[0]["sem_seg_lut"] = bytes([1]) + records[0]["sem_seg_lut"][1:]
        else:
            records[0]["annotations"][0]["bbox"][2] = 65.0
        return records

    monkeypatch.setitem(LAYOUTS, "coco_style", (LAYOUTS["coco_style"][0], read_wrongly))
    expected = "was read wrongly" if fault == "a wrong pixel" else "invalid labels"
    assert expected in complaint(case, 1, folder)


# Too many pixels


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("sides", [(9_500, 9_420), (30_000, 30_000)])
def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch, kind, sides):
    """89,490,000 pixels, of which Pillow warns, and 900,000,000, for which it fails."""
    path = tmp_path / f"bomb.{kind}"
    content = encoded(picture_of("a"), kind.upper())
    path.write_bytes(with_size(Source(kind, "a", content), *sides))

    def load(self):
        raise AssertionError("it is decoded")

    Image.init()  # loading plugins decodes images of their own
    monkeypatch.setattr(Image.Image, "load", load)
    for read in (
        read_image_size,
        read_label_map,
        lambda file: read_rgb_pixels(file, [sides[1], sides[0]]),
    ):
        with pytest.raises(InputError) as caught:
            read(str(path))
        message = str(caught.value)
        assert str(path) in message and "pixels" in message and "\n" not in message


def test_the_limit_itself_is_read(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    path.write_bytes(encoded(map_of("a"), "PNG"))
    monkeypatch.setattr(images, "MAX_PIXELS", HEIGHT * WIDTH)
    assert np.array_equal(read_label_map(str(path)), map_of("a"))
    monkeypatch.setattr(images, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(InputError, match=r"map\.png: its header claims 64x48 pixels, more than"):
        read_label_map(str(path))


# What the readers leave out


@pytest.mark.parametrize("broken_files", ["images", "maps"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reader_may_leave_out_broken_files(layout, broken_files, folder):
    root = folder / f"{layout}_{broken_files}"
    write_tree(tree_of(layout), root)
    read = LAYOUTS[layout][1]
    whole = {Path(r["file_name"]).name[0]: r for r in read(root)}
    path = Path(whole["b"]["file_name" if broken_files == "images" else "sem_seg_file_name"])
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(InputError, match=f"cannot read the image {path}"):
        read(root)
    broken = {}
    left = {Path(r["file_name"]).name[0]: r for r in read(root, broken=broken)}
    assert left == {name: whole[name] for name in "ac"}
    assert list(broken) == [str(path)] and str(path) in broken[str(path)]


def test_a_broken_label_file_of_all_images_is_an_error_all_the_same(folder):
    root = folder / "wrong_labels"
    write_tree(tree_of("coco_style") | {"boxes.json": b"{"}, root)
    with pytest.raises(InputError, match=r"boxes\.json: is not valid JSON"):
        LAYOUTS["coco_style"][1](root, broken={})
    write_tree(tree_of("bdd100k") | {"labels/det_20/det_train.json": b"["}, root / "bdd")
    with pytest.raises(InputError, match=r"det_train\.json: is truncated"):
        LAYOUTS["bdd100k"][1](root / "bdd", broken={})
