import pytest

from mtfixmatch.data.datasets.own_data import VAL
from tests.support.label_folder import LabelFolder

BOX = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
PIXELS = (10.0, 5.0, 30.0, 20.0)  # of BOX
SIZE = "<size><width>100</width><height>50</height><depth>3</depth></size>"


def thing(name="car", more="", box=BOX):
    return f"<object><name>{name}</name>{more}{box}</object>"


def annotation(*objects, size=SIZE, filename="a.png"):
    head = f"<folder>x</folder><filename>{filename}</filename>{size}"
    return f"<annotation>{head}{''.join(objects)}</annotation>"


@pytest.fixture
def data(tmp_path):
    folder = LabelFolder(tmp_path)
    folder.write("labels/a.xml", annotation(thing(), thing("person", box=BOX.replace("6", "1"))))
    return folder


def test_pixels_are_counted_from_1_and_ends_are_inside(data):
    assert data.boxes() == [(0, 0, *PIXELS), (1, 0, 10.0, 0.0, 30.0, 20.0)]
    assert data.boxes(THING_CLASSES=["person", "car"])[0] == (1, 0, *PIXELS)
    assert data.boxes("b.png") is None
    whole = "<bndbox><xmax>100</xmax><ymax>50.0</ymax><xmin> 1 </xmin><ymin>1</ymin></bndbox>"
    data.write("labels/b.xml", annotation(thing(box=whole)))
    assert data.boxes("b.png") == [(0, 0, 0.0, 0.0, 100.0, 50.0)]


def test_a_file_without_objects_is_an_image_without_objects(data):
    data.write("labels/b.xml", annotation())
    assert data.boxes("b.png") == []
    (data.labels / "b.xml").unlink()
    assert data.boxes("b.png", UNANNOTATED="empty") == []


def test_counts_from_0_are_clipped_without_a_note(data):
    data.write("labels/a.xml", annotation(thing(box=BOX.replace("11", "0").replace("6", "0.5"))))
    assert data.boxes() == [(0, 0, 0.0, 0.0, 30.0, 20.0)]
    assert not any("clipped" in kind for kind in data.notes.lines)


def test_difficult_objects_are_ignored_regions(data):
    things = [thing(more=f"<difficult>{x}</difficult>") for x in ("1", " 0 ")]
    data.write("labels/a.xml", annotation(*things))
    assert [box[1] for box in data.boxes()] == [1, 0]


def test_parts_are_no_objects(data):
    part = f"<part><name>wheel</name>{BOX.replace('11', '2')}</part>"
    data.write("labels/a.xml", annotation(thing(more=part)))
    assert data.boxes() == [(0, 0, *PIXELS)]
    assert not data.notes.lines.keys() & {"entries without a usable box, left out"}


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>x</width></size>",
    ],
)
def test_a_size_that_is_not_there_is_that_of_the_image(data, size):
    data.write("labels/a.xml", annotation(thing(), size=size))
    assert data.boxes() == [(0, 0, *PIXELS)]


def test_labels_for_another_size(data):
    data.write("labels/a.xml", annotation(thing(), size=SIZE.replace("50", "60")))
    assert data.boxes() is None
    note = data.note("images whose labels are for another size")
    assert f"{data.labels / 'a.xml'}: image 'a' has 100x60 pixels, but" in note


# Names of images


def test_the_name_of_the_file_comes_before_the_name_in_it(data):
    data.write("labels/a.xml", annotation(thing(), filename="old name.jpg"))
    assert data.boxes() == [(0, 0, *PIXELS)]
    data.write("labels/a.xml", annotation(thing(), filename="b.png"))
    assert data.boxes() == [(0, 0, *PIXELS)]
    note = data.note("label files that name another image")
    assert note.endswith(f"{data.labels / 'a.xml'}: 'b')")


@pytest.mark.parametrize("filename", ["b.png", "b.jpg", "b", "..\\images\\b.png", "C:\\x\\b.png"])
def test_the_name_in_a_file_is_the_second_one(data, filename):
    data.write("labels/0001.xml", annotation(thing(), filename=filename))
    data.write("labels/0002.xml", annotation(thing(), filename=filename))
    assert data.boxes("b.png") == [(0, 0, *PIXELS)]
    note = data.note("label files of images that do not exist")  # of two, the first has it
    assert f"{data.labels / '0002.xml'}: '0002' is not in" in note


def test_names_with_dots(data):
    data.add_image("images/c.v2.png")
    data.write("labels/c.v2.xml", annotation(thing(), filename="c.v2"))
    assert data.boxes("c.v2.png") == [(0, 0, *PIXELS)]
    assert not any("name another image" in x for x in data.notes.messages())


# Faults


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        (thing(""), "has no <name>"),
        (f"<object>{BOX}</object>", "has no <name>"),
        (thing(box=""), "has a <bndbox> of xmin '', ymin '', xmax '', ymax '', expected numbers"),
        (thing(box=BOX.replace("6", "nan")), "ymin 'nan'"),
        (thing(box=BOX.replace("30", "3,5")), "xmax '3,5'"),
        (thing(box=BOX.replace("<xmax>30</xmax>", "")), "xmax ''"),
        (thing(box=BOX.replace("30", "1e12")), "xmax '1e12'"),
        (thing(more="<difficult>yes</difficult>"), "has <difficult> 'yes', expected 0 or 1"),
        (f"<item>{thing()}</item>", "is a <item>"),
    ],
)
def test_a_faulty_object_is_left_out_and_named(data, element, expected):
    data.write("labels/a.xml", annotation(thing(), element))
    assert data.boxes() == [(0, 0, *PIXELS)]
    note = data.note("left out")
    assert f"{data.labels / 'a.xml'}: object 2 " in note and expected in note


def test_swapped_corners_have_no_area(data):
    swapped = thing(box=BOX.replace("11", "40"))
    data.write("labels/a.xml", annotation(thing(), swapped))
    assert data.boxes() == [(0, 0, *PIXELS)]
    assert "a.xml: object 2: x0, y0, x1, y1 = 39, 5, 30, 20 in" in data.note("without an area")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is not valid XML (no element found"),
        ("<annotation>", "is not valid XML (no element found"),
        ("\0", "is not valid XML (unclosed token"),
        ('<?xml version="1.0" encoding="gbk"?><annotation/>', "multi-byte encodings"),
        ('<?xml version="1.0" encoding="x-none"?><annotation/>', "unknown encoding"),
        ("<html></html>", "expected Pascal VOC's <annotation>, found <html>"),
        ("<annotations></annotations>", "CVAT's own XML is not read"),
    ],
)
def test_a_file_of_another_kind(data, content, expected):
    path = data.write("labels/b.xml", content)
    message = data.message()
    assert f"{path}: " in message and expected in message
    assert data.load(skip_broken=True).keys() == {"a.png"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_encodings(data, encoding):
    declared = encoding.removesuffix("-sig")
    text = f'<?xml version="1.0" encoding="{declared}"?>\n{annotation(thing("Müll"))}'
    data.write("labels/a.xml", text.encode(encoding))
    assert data.boxes(THING_CLASSES=["Müll"]) == [(0, 0, *PIXELS)]


def test_a_doctype_is_refused_before_its_entities_grow(data):
    entities = '<!ENTITY x0 "lol">'
    for i in range(1, 12):
        entities += f'<!ENTITY x{i} "{f"&x{i - 1};" * 10}">'
    bomb = f'<?xml version="1.0"?><!DOCTYPE lolz [{entities}]>{annotation(thing("&x11;"))}'
    path = data.write("labels/b.xml", bomb)
    assert data.message() == f"{path}: is not valid XML (a DOCTYPE is not read)"


# Classes


def test_an_image_is_labeled_for_all_classes_that_are_trained(data):
    """Its files have no list of classes, so none has to occur."""
    data.add_image("val/c.png")
    data.write("val/c.xml", annotation(thing("person")))
    train = {"IMAGES": str(data.images), "BOXES": str(data.labels)}
    records = data.load(VAL, dict.fromkeys(train, str(data.root / "val")), TRAIN=train)
    (record,) = records.values()
    assert [x["category_id"] for x in record["annotations"]] == [1]
    assert "labeled_classes" not in record


def test_a_listed_class_may_be_absent_but_not_all(data):
    assert [x[0] for x in data.boxes(THING_CLASSES=["bus", "person", "car"])] == [2, 1]
    assert "'bus'" in data.note("never occur")
    assert "names ['bus'], but" in data.message(THING_CLASSES=["bus"])
