import pytest

from mtfixmatch.data.datasets.own_data import VAL
from tests.support.label_folder import LabelFolder

NAMES = "car\nperson\n\n"
BOX, PIXELS = "1 0.5 0.5 0.2 0.4\n", (40.0, 15.0, 60.0, 35.0)  # of an image of 100x50 pixels


@pytest.fixture
def data(tmp_path):
    folder = LabelFolder(tmp_path)
    folder.write("labels/classes.txt", NAMES)
    folder.write("labels/a.txt", BOX)
    return folder


def test_boxes_are_shares_of_the_image(data):
    assert data.boxes() == [(1, 0, *PIXELS)]
    assert data.boxes("b.png") is None  # it has no file


def test_an_empty_file_is_an_image_without_objects(data):
    data.write("labels/b.txt", "")
    assert data.boxes("b.png") == []
    data.write("labels/b.txt", "\r\n \n")
    assert data.boxes("b.png") == []
    assert data.boxes("b.png", UNANNOTATED="unlabeled") is None


@pytest.mark.parametrize(("value", "boxes"), [("auto", None), ("unlabeled", None), ("empty", [])])
def test_unannotated_says_what_an_image_without_a_file_is(data, value, boxes):
    assert data.boxes("b.png", UNANNOTATED=value) == boxes
    kind = "images without a label file, not labeled"
    if value == "auto":
        assert f"{data.images / 'b.png'} (if they show no objects, set" in data.note(kind)
    else:
        assert not any(kind in x for x in data.notes.messages())


@pytest.mark.parametrize(
    "text",
    [
        "1 .5 .5 .2 .4",
        "1\t0.5\t0.5 0.2  0.4 \r\n",
        "\ufeff1 0.5 0.5 0.2 0.4\r",
        "1.0 5e-1 0.5 0.2 0.4",
        "1 0.4 0.3 0.6 0.3 0.6 0.7\n",  # a triangle
        "1 0.4 0.3 0.6 0.3 0.6 0.7 0.4 0.7",  # a rotated box
    ],
)
def test_forms_of_a_row(data, text):
    data.write("labels/a.txt", text)
    assert data.boxes() == [(1, 0, *map(pytest.approx, PIXELS))]
    assert data.notes.lines.keys() == {"images without a label file, not labeled"} | {
        "classes that never occur in the labels of the training"
    }


@pytest.mark.parametrize("row", ["1 0.5 0.5 0.2 0.4 0.93", "1 0.5 0.5 0.2 0.4 17"])
def test_a_further_column_is_not_read_and_that_is_said(data, row):
    data.write("labels/a.txt", row)
    assert data.boxes() == [(1, 0, *PIXELS)]
    assert str(data.labels / "a.txt") in data.note("a confidence or a track")
    data.write("labels/a.txt", "1 0.4 0.3 0.6 0.3 0.6 0.7 0.93")
    assert data.boxes() == [(1, 0, *map(pytest.approx, PIXELS))]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("1 0,5 0,5 0,2 0,4", "expected 'class x y width height'"),
        ("1 nan 0.5 0.2 0.4", "'1 nan 0.5 0.2 0.4'"),
        ("1 0.5 inf 0.2 0.4", "from 0 to 1"),
        ("1 0.5 0.5 0.2", "'1 0.5 0.5 0.2'"),
        ("1 0.5 0.5 0.2 0.4_0", "0.4_0"),
        ("1 \u0660.5 0.5 0.2 0.4", "expected"),
        ("1 50 25 20 20", "(are these pixels?)"),
        ("1 0.5 -0.5 0.2 0.4", "from 0 to 1"),
        ("-1 0.5 0.5 0.2 0.4", "'-1 0.5 0.5 0.2 0.4'"),
        ("1.5 0.5 0.5 0.2 0.4", "'1.5 0.5 0.5 0.2 0.4'"),
        ("car 0.5 0.5 0.2 0.4", "'car 0.5 0.5 0.2 0.4'"),
        ("2 0.5 0.5 0.2 0.4", "has class 2, which has no name in"),
        ("1 0.5 0.5 0.2 0.4 high", "'1 0.5 0.5 0.2 0.4 high'"),
        ("# a comment", "'# a comment'"),
    ],
)
def test_a_faulty_row_is_left_out_and_named(data, row, expected):
    data.write("labels/a.txt", f"{BOX}{row}\n")
    assert data.boxes() == [(1, 0, *PIXELS)]
    note = data.note("left out")
    assert f"{data.labels / 'a.txt'}: row 2 " in note and expected in note


def test_boxes_that_end_outside_the_image(data):
    """Rounded ones are clipped, others are clipped and noted, those without an area left out."""
    data.write("labels/a.txt", "0 0.5 0.5 1.004 1\n0 0.9 0.5 0.4 0.2\n0 0.5 0.5 0 0.2\n1 1 1 .1 .1")
    assert data.boxes(max_faults=1) == [
        (0, 0, 0.0, 0.0, 100.0, 50.0),
        (0, 0, 70.0, 20.0, 100.0, 30.0),
        (1, 0, 95.0, 47.5, 100.0, 50.0),
    ]
    assert "2 (the first" in data.note("clipped") and "a.txt: row 2: x0" in data.note("clipped")
    assert "a.txt: row 3: x0" in data.note("without an area")


def test_an_image_of_which_all_rows_are_faulty_is_not_labeled(data):
    data.write("labels/b.txt", "car 0.5\n")
    assert data.boxes("b.png") is None
    assert str(data.labels / "b.txt") in data.note("images of which each entry is faulty")


def test_too_many_faults_are_an_error(data):
    data.write("labels/b.txt", "1 50 25 20 20\n1 10 25 20 20\n")
    message = data.message()
    assert "2 of 3 entries without a usable box" in message and "are these pixels?" in message


@pytest.mark.parametrize("content", [BOX.encode("utf-16"), b"\0\0\0\0"])
def test_a_file_that_is_no_text(data, content):
    path = data.write("labels/b.txt", content)
    assert f"{path}: is no text in UTF-8" in data.message()
    records = data.load(skip_broken=True)
    assert records.keys() == {"a.png"} and list(data.broken) == [str(path)]


# Names of classes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels/data.yaml", "names: [car, person]\n"),
        ("data.yaml", "nc: 2\nnames:\n  0: car\n  1: person\n"),
        ("dataset.yaml", "names: {'0': car, 1: person}"),
        ("classes.txt", "\ufeffcar\r\nperson \r\n"),
        ("obj.names", "car\nperson"),
    ],
)
def test_where_names_are(data, name, text):
    (data.labels / "classes.txt").unlink()
    data.write(name, text)
    assert data.boxes(THING_CLASSES=["person", "car"]) == [(0, 0, *PIXELS)]


def test_names_in_the_config(data):
    (data.labels / "classes.txt").unlink()
    message = data.message()
    assert "expected a data.yaml, classes.txt, obj.names in" in message
    assert "or THING_CLASSES" in message
    assert data.boxes(THING_CLASSES=["car", "person"]) == [(1, 0, *PIXELS)]
    data.write("labels/b.txt", "2 0.5 0.5 0.2 0.4\n" + BOX * 2)
    data.load(THING_CLASSES=["car", "person"])
    assert "has no name in DATASETS.COCO_STYLE.THING_CLASSES" in data.note(
        "class id without a name"
    )


def test_names_that_yaml_would_change(data):
    data.write("labels/data.yaml", "names: [no, 1]\n")
    assert data.boxes(THING_CLASSES=["1", "no"]) == [(0, 0, *PIXELS)]


def test_a_name_of_two_ids_is_one_class(data):
    data.write("labels/classes.txt", "car\ncar\nperson")
    data.write("labels/a.txt", f"{BOX}0 0.5 0.5 0.2 0.2\n")
    assert [box[0] for box in data.boxes(THING_CLASSES=["person", "car"])] == [1, 1]
    assert data.note("of the same name").endswith(f"1 ({data.labels / 'classes.txt'}: 1 ('car'))")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: car", "expected 'names', a list"),
        ("names: [[a], b]", "'names' has 0: ['a']"),
        ("names: {x: car}", "'names' has 'x': 'car'"),
        ("- car", "expected the data.yaml of YOLO"),
        ("names: [car", "is not valid YAML"),
        (b"\xff\xfe", "is not valid YAML"),
        ("[" * 500, "is not valid YAML"),
    ],
)
def test_a_wrong_data_yaml(data, text, expected):
    path = data.write("data.yaml", text)
    (data.labels / "classes.txt").unlink()
    assert f"{path}: {expected}" in data.message()


# Files and folders


def test_files_that_are_no_labels(data):
    data.write("labels/README.roboflow.txt", "https://example.com")
    data.write("labels/notes.json", '{"categories": []}')
    data.write("labels/list.json", "[]")
    data.add_image("labels/a.png")
    assert data.boxes() == [(1, 0, *PIXELS)]
    assert len(data.notes.lines) == 2


def test_labels_of_other_images_are_noted(data):
    data.write("labels/c.txt", BOX)
    assert data.boxes() == [(1, 0, *PIXELS)]
    assert f"{data.labels / 'c.txt'}: 'c' is not in" in data.note("images that do not exist")
    data.write("labels/a.txt", "").unlink()
    assert "no label file is named like an image" in data.message()


def test_labels_in_folders(data):
    for split in ("train", "val"):
        data.add_image(f"images/{split}/c.png")
        data.write(f"labels/{split}/c.txt", BOX.replace("1", "0" if split == "val" else "1", 1))
    assert data.boxes("train/c.png") == [(1, 0, *PIXELS)]
    assert data.boxes("val/c.png") == [(0, 0, *PIXELS)]
    places = {"IMAGES": str(data.images / "val"), "BOXES": str(data.labels / "val")}
    names = ["car", "person"]
    assert data.boxes("c.png", split=VAL, files=places, THING_CLASSES=names) == [(0, 0, *PIXELS)]
    assert data.boxes("val/c.png", files={"BOXES": str(data.root)}) == [(0, 0, *PIXELS)]


def test_labels_beside_images_of_a_glob(data):
    data.write("images/a.jpg.txt", BOX)
    (data.images / "a.png").rename(data.images / "a.jpg")
    data.write("images/a.xml", "<annotation/>")
    message = data.message(files={"BOXES": str(data.images)})
    assert "found 1 .txt and 1 .xml; a glob such as" in message
    (data.labels / "classes.txt").rename(data.images / "classes.txt")
    assert data.boxes("a.jpg", files={"BOXES": f"{data.images}/*.txt"}) == [(1, 0, *PIXELS)]


def test_no_label_files(data):
    (data.labels / "a.txt").unlink()
    expected = "expected label files of one format (.txt, .xml, .json)"
    assert expected in data.message() and "found none" in data.message()


def test_key_points_are_not_read(data):
    data.write("data.yaml", "kpt_shape: [2, 3]\nnames: [car, person]")
    (data.labels / "classes.txt").unlink()
    data.write("labels/a.txt", "1 0.5 0.5 0.2 0.4 0.9 0.9 2 0 0 0")
    assert data.boxes() == [(1, 0, *PIXELS)]
    assert not any("confidence" in x for x in data.notes.messages())


# data.yaml

LISTED = "train/images/c.png"


def split_data(data, entries, names="names: [car, person]\n"):
    """A data.yaml for the folders train and valid, each with images and labels; c is labeled."""
    for split, number in (("train", 0), ("valid", 1)):
        for name in ("c.png", "d.png"):
            data.add_image(f"{split}/images/{name}")
        data.write(f"{split}/labels/c.txt", f"{number}{BOX[1:]}")
    data.write("train.txt", "./train/images/c.png\n")
    return {key: str(data.write("data.yaml", entries + names)) for key in ("IMAGES", "BOXES")}


@pytest.mark.parametrize(
    "entries",
    [
        "train: train/images\nval: valid/images\n",
        "train: ../train/images\nval: ../valid/images\n",
        "path: {root}\ntrain: train/images\nvalidation: valid/images\n",
        "path: /content/other\ntrain: [train/images]\nval: valid\n",
        "path: .\ntrain: train.txt\nval: [.\\valid\\images]\ntest:\n",
    ],
)
def test_splits_of_a_data_yaml(data, entries):
    files = split_data(data, entries.replace("{root}", str(data.root)))
    train = data.load(files=files)
    first, *others = train.values()
    assert [x["category_id"] for x in first["annotations"]] == [0]
    assert not any("annotations" in record for record in others)
    assert train.keys() == ({LISTED} if "txt" in entries else {"c.png", "d.png"})
    assert data.load(files=files, VAL=files).keys() == train.keys()
    first, second = data.load(VAL, files, THING_CLASSES=["car", "person"]).values()
    assert [x["category_id"] for x in first["annotations"]] == [1]
    assert "annotations" not in second


def test_folders_with_the_same_names(data):
    """Each label belongs to the image of its own folder."""
    files = split_data(data, "train: [train/images, valid/images]\n")
    records = data.load(files=files)
    classes = {
        name: [x["category_id"] for x in r.get("annotations", ())] for name, r in records.items()
    }
    assert classes == {
        "train/images/c.png": [0],
        "train/images/d.png": [],
        "valid/images/c.png": [1],
        "valid/images/d.png": [],
    }


def test_labels_beside_the_images_of_a_data_yaml(data):
    data.add_image("all/c.png")
    data.write("all/c.txt", BOX)
    files = split_data(data, "train: all\n")
    assert data.boxes("c.png", files=files) == [(1, 0, *PIXELS)]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("val: valid/images\n", "has no folder or list of images for 'train'"),
        ("train:\n", "has no folder or list of images for 'train'"),
        ("train: [[a]]\n", "has no folder or list of images for 'train'"),
        ("train: gone\n", "names 'gone', but there is no"),
    ],
)
def test_a_data_yaml_without_a_split(data, entries, expected):
    files = split_data(data, entries)
    message = data.message(files=files)
    assert "DATASETS.COCO_STYLE.TRAIN.IMAGES: " in message and expected in message


def test_a_data_yaml_without_label_files(data):
    files = split_data(data, "train: train/images\n")
    (data.root / "train/labels/c.txt").unlink()
    assert "has no label file (.txt) for the images in" in data.message(files=files)
