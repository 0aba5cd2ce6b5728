import json

import pytest

from tests.support.label_folder import LabelFolder

CORNERS = [[30, 20], [10, 5.5]]
PIXELS = (10.0, 5.5, 30.0, 20.0)  # of CORNERS


def shape(label="car", points=CORNERS, kind="rectangle", **more):
    fields = {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}}
    return fields | more


def content(*shapes, **more):
    fields = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": "a.png"}
    return json.dumps(fields | {"imageData": None, "imageHeight": 50, "imageWidth": 100} | more)


@pytest.fixture
def data(tmp_path):
    folder = LabelFolder(tmp_path)
    folder.write("labels/a.json", content(shape()))
    return folder


def test_corners_are_in_any_order(data):
    assert data.boxes() == [(0, 0, *PIXELS)]
    assert all(isinstance(x, float) for x in data.boxes()[0][2:])
    assert data.boxes("b.png") is None


@pytest.mark.parametrize(
    ("kind", "points", "expected"),
    [
        ("polygon", [[10, 6], [30, 8], [20, 20]], (10, 6, 30, 20)),
        (None, [[10, 6], [30, 8], [20, 20]], (10, 6, 30, 20)),
        ("rectangle", [[10, 6], [30, 6], [30, 20], [10, 20]], (10, 6, 30, 20)),
        ("rotation", [[20, 6], [30, 13], [20, 20], [10, 13]], (10, 6, 30, 20)),
        ("circle", [[20, 20], [23, 24]], (15, 15, 25, 25)),
        ("mask", [[10, 6], [29, 19]], (10, 6, 30, 20)),
    ],
)
def test_shapes_with_an_area(data, kind, points, expected):
    data.write("labels/a.json", content(shape(points=points, kind=kind)))
    assert data.boxes() == [(0, 0, *expected)]


@pytest.mark.parametrize("kind", ["point", "line", "linestrip", "points", "cuboid", 3])
def test_shapes_without_an_area_are_counted(data, kind):
    data.write("labels/a.json", content(shape(), shape(kind=kind, points=[[1, 1]])))
    assert data.boxes() == [(0, 0, *PIXELS)]
    expected = f"{data.labels / 'a.json'}: shape 2 has shape_type {json.dumps(kind)}"
    assert expected in data.note("shapes without an area, such as points and lines")
    data.write("labels/b.json", content(shape(kind=kind)))
    assert data.boxes("b.png", max_faults=0) == []


def test_a_file_without_shapes_is_an_image_without_objects(data):
    data.write("labels/b.json", content())
    assert data.boxes("b.png") == []


def test_a_group_is_one_object(data):
    shapes = [
        shape(group_id=1),
        shape("person", group_id=1),
        shape(group_id=1, kind="polygon", points=[[40, 30], [50, 30], [50, 40]]),
        shape(group_id=2, points=[[1, 1], [3, 3]]),
        shape(points=[[1, 1], [4, 4]]),
        shape(points=[[1, 1], [5, 5]]),
    ]
    data.write("labels/a.json", content(*shapes))
    assert data.boxes() == [
        (0, 0, 10, 5.5, 50, 40),
        (1, 0, *PIXELS),
        (0, 0, 1, 1, 3, 3),
        (0, 0, 1, 1, 4, 4),
        (0, 0, 1, 1, 5, 5),
    ]


def test_labels_that_are_no_class(data):
    shapes = [shape(" car "), shape("__ignore__"), shape("_background_")]
    data.write("labels/a.json", content(*shapes))
    assert data.boxes() == [(0, 0, *PIXELS)]
    assert "2 (the first: " in data.note("shapes labeled __ignore__ or _background_")


@pytest.mark.parametrize("sizes", [{"imageHeight": None}, {"imageWidth": 0}, {"imageHeight": "50"}])
def test_a_size_that_is_not_there_is_that_of_the_image(data, sizes):
    data.write("labels/a.json", content(shape(), **sizes))
    assert data.boxes() == [(0, 0, *PIXELS)]


def test_labels_for_another_size(data):
    data.write("labels/a.json", content(shape(), imageHeight=100, imageWidth=50))
    assert data.boxes() is None
    assert "it may be rotated by its EXIF orientation" in data.note("for another size")


def test_the_name_in_a_file_is_the_second_one(data):
    data.write("labels/0001.json", content(shape(), imagePath="..\\images\\b.png"))
    assert data.boxes("b.png") == [(0, 0, *PIXELS)]
    data.write("labels/0001.json", content(shape(), imagePath=None))
    assert data.boxes("b.png") is None
    assert "'0001' is not in" in data.note("label files of images that do not exist")


def test_the_image_in_a_file_is_not_kept(data, tmp_path):
    from mtfixmatch.formats.labelme import labelme_boxes

    path = data.write("labels/a.json", content(shape(), imageData="A" * 10_000))
    assert len(json.dumps(labelme_boxes(str(path)))) < 1000
    assert data.boxes() == [(0, 0, *PIXELS)]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (shape(""), 'has label "", expected a name'),
        (shape(3), "has label 3, expected a name"),
        ({"points": CORNERS}, "has label null"),
        (shape(points=None), "has points null, expected at least 2 points [x, y] for a rectangle"),
        (shape(points=[[1, 2]]), "has points [[1, 2]]"),
        (shape(points=[[1, 2], [3]]), "has points [[1, 2], [3]]"),
        (shape(points=[[1, 2], [3, float("nan")]]), "has points [[1, 2], [3, null]]"),
        (shape(points=[[1, 2], [3, "4"]]), 'has points [[1, 2], [3, "4"]]'),
        (shape(points=[1, 2]), "has points [1, 2]"),
        (shape(kind="polygon"), "expected at least 3 points [x, y] for a polygon"),
        ([], "is [], no object"),
        (None, "is null, no object"),
    ],
)
def test_a_faulty_shape_is_left_out_and_named(data, entry, expected):
    data.write("labels/a.json", content(shape(), entry))
    assert data.boxes() == [(0, 0, *PIXELS)]
    note = data.note("entries without a usable box")
    assert f"{data.labels / 'a.json'}: shape 2 " in note and expected in note


def test_a_number_that_is_too_large(data):
    text = content(shape(), shape(points=[[1, 2], [3, 123]]))
    data.write("labels/a.json", json.dumps(json.loads(text), indent=1).replace("123", "9e999"))
    assert data.boxes() == [(0, 0, *PIXELS)]
    assert 'a.json: shape 2 is { "label": "car",' in data.note("entries without a usable box")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not valid JSON"),
        ("[]", "has another form than expected"),
        ("{}", "expected a file of labelme with a list 'shapes' (a COCO instances JSON is named"),
        ('{"shapes": 3}', "has another form than expected"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
def test_a_file_of_another_kind(data, text, expected):
    path = data.write("labels/b.json", text)
    assert f"{path}: {expected}" in data.message()
    assert data.load(skip_broken=True).keys() == {"a.png"}


def test_labels_beside_images_and_a_list_of_classes(data):
    data.write("images/a.json", content(shape()))
    data.write("images/classes.txt", "car\n")
    assert data.boxes(files={"BOXES": str(data.images)}) == [(0, 0, *PIXELS)]
