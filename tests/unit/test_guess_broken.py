"""Files that cannot be read: the guess leaves them out, counts them and says so."""

import pytest

from mtfixmatch.utils.errors import InputError
from tests.support.box_writers import write_voc
from tests.support.layouts import CLASSES, LAYOUTS, SIZE, make_images
from tests.unit.test_guess import as_yaml, error, guess


@pytest.fixture
def root(tmp_path):
    (tmp_path / "output").mkdir()
    return tmp_path / "data"


LEFT_OUT = (
    "files of the training that cannot be read, left out with their images "
    "(DATALOADER.SKIP_BROKEN): 1 ("
)


def the_remark(found, start):
    (line,) = [x for x in found.remarks if x.startswith(start)]
    return line


def is_skipping(found):
    return as_yaml(found)["DATALOADER"].get("SKIP_BROKEN", False)


def test_an_image_that_cannot_be_read_is_left_out_and_counted(root):
    LAYOUTS["detectron2"](root)
    broken = root / "train2017" / "img0.jpg"
    broken.write_bytes(b"no image")
    found = guess(root)
    assert str(broken) in the_remark(found, LEFT_OUT)
    assert len(found.train_images()) == 4
    assert [len(x.labeled) for x in found.train.labels] == [3]
    assert is_skipping(found)


def test_sound_data_skips_nothing(root):
    assert not is_skipping(guess(LAYOUTS["detectron2"](root)))


def test_a_broken_image_of_validation_is_said_to_be_needed(root):
    LAYOUTS["detectron2"](root)
    broken = root / "val2017" / "img101.jpg"
    broken.write_bytes(b"")
    found = guess(root)
    assert str(broken) in the_remark(found, "files of validation that cannot be read, but must be")
    assert not is_skipping(found)


def test_images_that_cannot_be_read_at_all_are_an_error(root):
    for name in make_images(root, 2):
        (root / name).write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        guess(root)
    assert [str(root / "img0.jpg") in x for x in caught.value.messages] == [True, False]


def test_a_map_that_cannot_be_read_is_left_out(root):
    LAYOUTS["masks"](root)
    broken = root / "masks" / "img1_mask.png"
    broken.write_bytes(b"no map")
    found = guess(root)
    assert str(broken) in the_remark(found, LEFT_OUT)
    assert [len(x.labeled) for x in found.train.labels] == [3]
    assert is_skipping(found)


def test_a_label_file_that_cannot_be_read_is_left_out(root):
    images = make_images(root / "images", 4)
    folder = write_voc(root, images, CLASSES, SIZE)
    broken = sorted((root / folder).iterdir())[0]
    broken.write_text("<annotation>")
    found = guess(root)
    assert str(broken) in the_remark(found, LEFT_OUT)
    assert [len(x.labeled) for x in found.train.labels] == [2]


def test_a_folder_of_files_that_cannot_be_read_is_no_folder_of_labels(root):
    images = make_images(root / "images", 4)
    folder = write_voc(root, images, CLASSES, SIZE)
    files = sorted((root / folder).iterdir())
    for path in files[:-1]:
        path.write_text("<annotation>")
    assert str(files[0]) in error(root)
