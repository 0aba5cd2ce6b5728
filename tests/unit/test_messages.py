"""What a user is told about data that cannot be used as they are: each input with its message."""

import json

import numpy as np
import pytest

from mtfixmatch.utils.errors import InputError
from tests.support.own_data import (
    HEIGHT,
    WIDTH,
    Dataset,
    annotation,
    black,
    listed,
    save,
)


def add(data, **fields):
    data.content["annotations"].append(annotation(9, 11, [1, 1, 4, 4]) | fields)


def change(data, section, index, **fields):
    data.content[section][index] |= fields


def paint(data, *values):
    for name in ("a", "c"):
        save(
            data.maps / f"{name}.png",
            np.array([values] * HEIGHT, np.uint8).repeat(WIDTH // len(values), 1),
        )


def files(**paths):
    return lambda data: {"files": {key: str(data.root / x) for key, x in paths.items()}}


def write(data, path, text):
    (data.root / path).parent.mkdir(parents=True, exist_ok=True)
    (data.root / path).write_text(text)


def yolo(data, text, name="a"):
    write(data, f"labels/{name}.txt", text)
    return {"files": {"BOXES": str(data.root / "labels")}, "THING_CLASSES": ["cat", "dog"]}


def voc(data, body):
    write(data, "xml/a.xml", f"<annotation><filename>a.jpg</filename>{body}</annotation>")
    return {"files": {"BOXES": str(data.root / "xml")}}


def voc_object(x):
    box = f"<xmin>{x}</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    return f"<object><name>cat</name><bndbox>{box}</bndbox></object>"


def two_folders(data):
    black(data.root / "more/a.jpg")
    return {"files": {"IMAGES": [str(data.images), str(data.root / "more")]}}


def labelme(data, **shape):
    defaults = {"label": "cat", "shape_type": "rectangle", "points": [[1, 1], [5, 5]]}
    good = {**defaults, "points": [[0, 0], [3, 3]]}
    write(
        data, "json/a.json", json.dumps({"shapes": [good, defaults | shape], "imagePath": "a.jpg"})
    )
    return {"files": {"BOXES": str(data.root / "json")}}


CASES = {
    # Boxes in COCO's JSON
    "box over the border": (
        lambda d: add(d, bbox=[25, 3, 9, 5]),
        "boxes that reached over the border of their image, clipped: 1 "
        "({root}/boxes.json: annotation 9: x0, y0, x1, y1 = 25, 3, 34, 8 in "
        "{root}/images/a.jpg of 30x20 pixels)",
    ),
    "box of no height": (
        lambda d: add(d, bbox=[5, 3, 9, 0]),
        "boxes without an area inside their image, left out: 1 ({root}/boxes.json: "
        "annotation 9: x0, y0, x1, y1 = 5, 3, 14, 3 in {root}/images/a.jpg of 30x20 "
        "pixels)",
    ),
    "box of three numbers": (
        lambda d: add(d, bbox=[1, 2, 3]),
        "annotations without a usable box, left out: 1 ({root}/boxes.json: annotation 9 "
        "has bbox [1, 2, 3], expected [x, y, width, height], finite numbers)",
    ),
    "box with nan": (
        lambda d: add(d, bbox=[1, 2, float("nan"), 3]),
        "annotations without a usable box, left out: 1 ({root}/boxes.json: annotation 9 "
        "has bbox [1, 2, null, 3], expected [x, y, width, height], finite numbers)",
    ),
    "box twice": (
        lambda d: add(d, bbox=[2, 3, 10, 5]),
        "boxes that an image has twice, taken once: 1 ({root}/boxes.json: annotation 9 "
        "in {root}/images/a.jpg)",
    ),
    "unknown image": (
        lambda d: add(d, image_id=99),
        "annotations of an image or a category that is not listed, left out: 1 "
        "({root}/boxes.json: annotation 9 has image_id 99)",
    ),
    "annotation that is a number": (
        lambda d: d.content["annotations"].append(7),
        "entries of a wrong form, left out: 1 ({root}/boxes.json: 'annotations' entry 7 "
        "is no object of COCO's form)",
    ),
    "category without a name": (
        lambda d: d.content["categories"].append({"id": 5}),
        "entries of a wrong form, left out: 1 ({root}/boxes.json: category {id: 5, name: "
        "null} needs an id and a name)",
    ),
    "category of two names": (
        lambda d: d.content["categories"].append({"id": 7, "name": "wolf"}),
        "{root}/boxes.json: category id 7 has two names, 'dog' and 'wolf'",
    ),
    "image id twice": (
        lambda d: d.content["images"].append(listed(11, "c.jpg")),
        "images whose id another one has, left out: 2 (the first: {root}/boxes.json: "
        "image id 11 is that of 'a.jpg' and others)",
    ),
    "image twice": (
        lambda d: d.content["images"].append(listed(13, "./a.jpg")),
        "images that are listed twice, whose labels are taken together: 1 "
        "({root}/boxes.json: 'a.jpg')",
    ),
    "missing image": (
        lambda d: change(d, "images", 1, file_name="z.jpg"),
        "images that a label file lists but that do not exist, left out: 1 "
        "({root}/boxes.json: image 'z.jpg' is not in {root}/images (the nearest is "
        "'d.jpg'))",
    ),
    "image of another suffix": (
        lambda d: change(d, "images", 1, file_name="c.png"),
        "images that a label file lists but that do not exist, left out: 1 "
        "({root}/boxes.json: image 'c.png' is not in {root}/images (the nearest is "
        "'c.jpg'))",
    ),
    "all images missing": (
        lambda d: [change(d, "images", i, file_name=f"z{i}.jpg") for i in (0, 1)] and None,
        "{root}/boxes.json: 2 of 2 images that a label file lists but that do not exist, "
        "left out, more than DATASETS.MAX_FAULTS 0.5 allows, such as: {root}/boxes.json: "
        "image 'z0.jpg' is not in {root}/images (the nearest is 'd.jpg'); "
        "{root}/boxes.json: image 'z1.jpg' is not in {root}/images",
    ),
    "another size": (
        lambda d: change(d, "images", 0, width=31),
        "images whose labels are for another size, not labeled: 1 ({root}/boxes.json: "
        "image 'a.jpg' has 31x20 pixels, but {root}/images/a.jpg has 30x20)",
    ),
    "size turned": (
        lambda d: change(d, "images", 0, width=HEIGHT, height=WIDTH),
        "images whose labels are for another size, not labeled: 1 ({root}/boxes.json: "
        "image 'a.jpg' has 20x30 pixels, but {root}/images/a.jpg has 30x20 (it may be "
        "rotated by its EXIF orientation: save it rotated))",
    ),
    "corners as sizes": (
        lambda d: [add(d, bbox=[20, 10, 25 + i, 15]) for i in range(4)] and None,
        "{root}/boxes.json: 4 of 6 boxes are not inside their images, more than "
        "DATASETS.MAX_FAULTS 0.5 allows: does the file have boxes in pixels, in the "
        "order of its format?",
    ),
    "no list of images": (
        lambda d: d.content.pop("images") and None,
        "{root}/boxes.json: expected a COCO instances file with a list 'images'",
    ),
    "listed without a box": (
        lambda d: None,
        "listed images without a box, which count as images without objects: 1 "
        "({root}/boxes.json: 'sub/b.png' (if nobody looked at them yet, set "
        "DATASETS.COCO_STYLE.UNANNOTATED to unlabeled))",
    ),
    # Classes
    "class of no file": (
        lambda d: {"THING_CLASSES": ["dog", "horse"]},
        "DATASETS.COCO_STYLE.THING_CLASSES names ['horse'], but {root}/boxes.json has "
        "only ['cat', 'dog']",
    ),
    "class twice": (
        lambda d: {"THING_CLASSES": ["dog", "dog"]},
        "DATASETS.COCO_STYLE.THING_CLASSES names a class twice: ['dog', 'dog']",
    ),
    "class left out": (
        lambda d: {"THING_CLASSES": ["dog"]},
        "boxes of classes that are not trained, left out: 1 ({root}/boxes.json: 'cat' (1 boxes))",
    ),
    "class that never occurs": (
        lambda d: d.content["annotations"].pop() and None,
        "classes that never occur in the labels of the training: 1 ('cat' (detection))",
    ),
    "unannotated": (
        lambda d: {"UNANNOTATED": "nothing"},
        "DATASETS.COCO_STYLE.UNANNOTATED is 'nothing': it must be one of auto, empty, unlabeled",
    ),
    # Other formats of boxes
    "YOLO row of four": (
        lambda d: yolo(d, "0 .5 .5 .1\n0 .5 .5 .1 .1\n"),
        "entries without a usable box, left out: 1 ({root}/labels/a.txt: row 1 is '0 .5 "
        ".5 .1', expected 'class x y width height' or a polygon, in shares of the image "
        "from 0 to 1)",
    ),
    "YOLO in pixels": (
        lambda d: yolo(d, "0 15 10 5 5\n0 .5 .5 .1 .1\n"),
        "entries without a usable box, left out: 1 ({root}/labels/a.txt: row 1 is '0 15 "
        "10 5 5', expected 'class x y width height' or a polygon, in shares of the image "
        "from 0 to 1 (are these pixels?))",
    ),
    "YOLO class out of range": (
        lambda d: yolo(d, "7 .5 .5 .1 .1\n0 .5 .5 .1 .1\n"),
        "boxes of a class id without a name, left out: 1 ({root}/labels/a.txt: row 1 has "
        "class 7, which has no name in DATASETS.COCO_STYLE.THING_CLASSES)",
    ),
    "YOLO decimal comma": (
        lambda d: yolo(d, "0 0,5 .5 .1 .1\n0 .5 .5 .1 .1\n"),
        "entries without a usable box, left out: 1 ({root}/labels/a.txt: row 1 is '0 0,5 "
        ".5 .1 .1', expected 'class x y width height' or a polygon, in shares of the "
        "image from 0 to 1)",
    ),
    "YOLO without names": (
        lambda d: yolo(d, "0 .5 .5 .1 .1\n") | {"THING_CLASSES": []},
        "DATASETS.COCO_STYLE.TRAIN.BOXES: the classes have no names: expected a "
        "data.yaml, classes.txt, obj.names in {root}/labels or up to two folders above, "
        "or THING_CLASSES",
    ),
    "YOLO for no image": (
        lambda d: yolo(d, "0 .5 .5 .1 .1\n", name="z"),
        "{root}/labels: no label file is named like an image: {root}/labels/z.txt: 'z' "
        "is not in {root}/images",
    ),
    "VOC box of text": (
        lambda d: voc(d, voc_object("a") + voc_object(1)),
        "entries without a usable box, left out: 1 ({root}/xml/a.xml: object 1 has a "
        "<bndbox> of xmin 'a', ymin '1', xmax '5', ymax '5', expected numbers)",
    ),
    "VOC not closed": (
        lambda d: voc(d, "<object>"),
        "{root}/xml/a.xml: is not valid XML (mismatched tag: line 1, column 48)",
    ),
    "labelme line": (
        lambda d: labelme(d, shape_type="line"),
        "shapes without an area, such as points and lines, left out: 1 "
        '({root}/json/a.json: shape 2 has shape_type "line")',
    ),
    "labelme of one point": (
        lambda d: labelme(d, points=[[1, 1]]),
        "entries without a usable box, left out: 1 ({root}/json/a.json: shape 2 has "
        "points [[1, 1]], expected at least 2 points [x, y] for a rectangle)",
    ),
    "unknown format": (
        lambda d: write(d, "boxes.csv", "a,b") or files(BOXES="boxes.csv")(d),
        "DATASETS.COCO_STYLE.TRAIN.BOXES: {root}/boxes.csv has no known format: expected "
        "a COCO JSON, the data.yaml of YOLO, or a folder of YOLO's .txt, Pascal VOC's "
        ".xml or labelme's .json",
    ),
    # Maps
    "map of another size": (
        lambda d: save(d.maps / "c.png", np.zeros((HEIGHT, WIDTH - 1), np.uint8)),
        "maps of another size than their image, left out: 1 ({root}/maps/c.png is 29x20 "
        "pixels, but its image {root}/images/c.jpg is 30x20)",
    ),
    "map with an unknown value": (
        lambda d: save(d.maps / "c.png", np.full((HEIGHT, WIDTH), 7, np.uint8)),
        "maps with values that are no class, left out: 1 ({root}/maps/c.png: id 7 is "
        "neither a class of DATASETS.COCO_STYLE.SEM_SEG_CLASSES nor its IGNORE_LABEL "
        "(600 pixels) (image: {root}/images/c.jpg))",
    ),
    "all maps with an unknown value": (
        lambda d: paint(d, 0, 1, 2),
        "DATASETS.COCO_STYLE.TRAIN.MAPS: {root}/maps: 2 of 2 maps with values that are "
        "no class, left out, more than DATASETS.MAX_FAULTS 0.5 allows, such as: "
        "{root}/maps/a.png: id 2 is neither a class of "
        "DATASETS.COCO_STYLE.SEM_SEG_CLASSES nor its IGNORE_LABEL (200 pixels) (image: "
        "{root}/images/a.jpg); {root}/maps/c.png: id 2 is neither a class of "
        "DATASETS.COCO_STYLE.SEM_SEG_CLASSES nor its IGNORE_LABEL (200 pixels) (image: "
        "{root}/images/c.jpg)",
    ),
    "map of no image": (
        lambda d: (d.maps / "c.png").rename(d.maps / "z.png") and None,
        "maps that belong to no image, left out: 1 ({root}/maps/z.png: 'z' is not in "
        "{root}/images)",
    ),
    "maps called otherwise": (
        lambda d: [(d.maps / f"{x}.png").rename(d.maps / f"{x}_mask.png") for x in "ac"] and None,
        "DATASETS.COCO_STYLE.TRAIN.MAPS: no map in {root}/maps is named like an image: "
        "{root}/maps/a_mask.png: 'a_mask' is not in {root}/images; "
        "DATASETS.COCO_STYLE.MAP_NAMES '{stem}_mask.png' would fit",
    ),
    "masks of 0 and 255": (
        lambda d: paint(d, 0, 255),
        "DATASETS.COCO_STYLE.TRAIN.MAPS: the maps hold 0 and 255 alone. 255 is "
        "DATASETS.COCO_STYLE.IGNORE_LABEL, so 'sky' never occurs; if it is 'sky', set "
        "DATASETS.COCO_STYLE.MAP_VALUES to [[0, 'road'], [255, 'sky']]",
    ),
    "mostly ignored": (
        lambda d: paint(d, 0, 1, 255, 255, 255, 255),
        "DATASETS.COCO_STYLE.TRAIN.MAPS: 67 % of the pixels of the maps in {root}/maps "
        "have the value 255, which is DATASETS.COCO_STYLE.IGNORE_LABEL",
    ),
    "two maps of one image": (
        lambda d: save(d.maps / "a.PNG", np.zeros((HEIGHT, WIDTH), np.uint8)),
        "DATASETS.COCO_STYLE.TRAIN.MAPS: {root}/maps/a.PNG and {root}/maps/a.png are "
        "maps of one image",
    ),
    "map names without stem": (
        lambda d: {"MAP_NAMES": "mask.png"},
        "DATASETS.COCO_STYLE.MAP_NAMES is 'mask.png': it must hold {stem} once",
    ),
    "no classes of maps": (
        lambda d: {"SEM_SEG_CLASSES": []},
        "DATASETS.COCO_STYLE.SEM_SEG_CLASSES is empty: name the classes of the maps in "
        "DATASETS.COCO_STYLE.TRAIN.MAPS",
    ),
    "ignore label of a class": (
        lambda d: {"IGNORE_LABEL": 1},
        "DATASETS.COCO_STYLE.IGNORE_LABEL is 1, expected 2 to 255: the ids below are the "
        "classes of DATASETS.COCO_STYLE.SEM_SEG_CLASSES",
    ),
    # Files and folders
    "no images": (
        lambda d: {"files": {"IMAGES": ""}},
        "DATASETS.COCO_STYLE.TRAIN.IMAGES is empty: name the folders of the images",
    ),
    "no such folder": (
        files(IMAGES="nowhere"),
        "DATASETS.COCO_STYLE.TRAIN.IMAGES: there is no folder '{root}/nowhere'",
    ),
    "no such file of boxes": (
        files(BOXES="nowhere.json"),
        "DATASETS.COCO_STYLE.TRAIN.BOXES: there is no file or folder '{root}/nowhere.json'",
    ),
    "no match of a glob": (
        files(IMAGES="images/*.webp"),
        "DATASETS.COCO_STYLE.TRAIN.IMAGES: no file matches '{root}/images/*.webp'",
    ),
    "folder without images": (
        lambda d: (d.root / "empty").mkdir() or files(IMAGES="empty")(d),
        "DATASETS.COCO_STYLE.TRAIN.IMAGES: no file in {root}/empty ends in .jpg, .jpeg, "
        ".png, .bmp, .webp, .tif, .tiff",
    ),
    "list with a missing file": (
        lambda d: write(d, "train.txt", "images/gone.jpg") or files(IMAGES="train.txt")(d),
        "DATASETS.COCO_STYLE.TRAIN.IMAGES: {root}/train.txt: 1 of 1 files that a list names but "
        "that do not exist, left out, more than DATASETS.MAX_FAULTS 0.5 allows, such as: "
        "{root}/images/gone.jpg",
    ),
    "image of an unread suffix": (
        lambda d: (d.images / "e.heic").touch(),
        "files of a suffix that is not read in DATASETS.COCO_STYLE.TRAIN.IMAGES: 1 "
        "({root}/images/e.heic)",
    ),
    "image that is cut off": (
        lambda d: (d.images / "d.jpg").write_bytes((d.images / "d.jpg").read_bytes()[:40]) and None,
        "cannot read the image {root}/images/d.jpg: Truncated File Read",
    ),
    "broken JSON": (
        lambda d: write(d, "cut.json", "{") or files(BOXES="cut.json")(d),
        "{root}/cut.json: is not valid JSON (Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1))",
    ),
    "JSON of another kind": (
        lambda d: write(d, "list.json", "[1]") or files(BOXES="list.json")(d),
        "{root}/list.json: has another form than expected (Expected `object`, got `array`)",
    ),
    "one name in two folders": (
        two_folders,
        "file names that several folders have: labels belong to the image of the first "
        "folder: 1 ({root}/images/a.jpg and {root}/more/a.jpg)",
    ),
    "one stem for two images": (
        lambda d: black(d.images / "a.png"),
        "maps that belong to no image, left out: 1 ({root}/maps/a.png: 'a' is the name "
        "of {root}/images/a.jpg and {root}/images/a.png)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_message_for_an_input(tmp_path, name):
    change, expected = CASES[name]
    data = Dataset(tmp_path)
    keys = change(data)
    try:
        data.load(**keys if isinstance(keys, dict) else {})
        messages = data.notes.messages()
    except InputError as error:
        messages = [str(error)]
    assert expected.replace("{root}", str(tmp_path)) in messages
    assert not any("\n" in message for message in messages)


def test_there_are_many():
    assert len(CASES) >= 40
