"""Maps from polygons and masks, and several sources of maps."""

import base64
import io

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.data.datasets.builtin import own_data as from_config
from mtfixmatch.data.datasets.own_data import TRAIN, VAL
from mtfixmatch.data.datasets.scan import FileScanner
from mtfixmatch.data.partial_labels import hide_labels
from mtfixmatch.tasks.config import complete_task_config
from mtfixmatch.tasks.segmentation import Segmentation
from mtfixmatch.utils.labels import IGNORE_LABEL
from tests.support.helpers import tiny_config
from tests.support.map_folder import HEIGHT, WIDTH, MapFolder, box, full
from tests.support.own_data import own_data

X = IGNORE_LABEL
LEFT, RIGHT = box(0, 0, 3, 4), box(3, 0, 6, 4)
UNPAINTED = "DATASETS.COCO_STYLE.UNPAINTED"


@pytest.fixture
def data(tmp_path):
    return MapFolder(tmp_path)


def test_keys_on_the_command_line():
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    values = "[[0, 'road'], [255, 'sky']]"
    cfg.merge_from_list(["DATASETS.COCO_STYLE.MAP_VALUES", values])
    cfg.merge_from_list(["DATASETS.COCO_STYLE.UNPAINTED", "road"])
    assert cfg.DATASETS.COCO_STYLE.MAP_VALUES == [[0, "road"], [255, "sky"]]


# COCO JSON


def test_what_no_polygon_covers_is_a_partial_map(data):
    """Images without a polygon are not labeled."""
    maps = data.coco(("a", "sky", [LEFT]))
    records = data.records(maps)
    assert [x for x in records if "sem_seg_file_name" in records[x]] == ["a"]
    assert records["a"]["sem_seg_file_name"] == maps and records["a"]["sem_seg_partial"] is True
    assert data.read(maps)["a"][0].tolist() == [1, 1, 1, X, X, X]


def test_what_no_polygon_covers_is_a_class(data):
    maps = data.coco(("a", "sky", [LEFT]), ("b", "tree", [RIGHT]), listed="ab")
    records = data.records(maps, UNPAINTED="road")
    assert not any("sem_seg_partial" in x for x in records.values())
    found = data.read(maps, UNPAINTED="road")
    assert found["a"][0].tolist() == [1, 1, 1, 0, 0, 0]
    assert found["b"][0].tolist() == [0, 0, 0, 2, 2, 2] and "c" not in found
    assert data.notes.messages() == []


def test_many_images_without_a_polygon_are_said(data):
    maps = data.coco(("a", "sky", [LEFT]))
    found = data.read(maps, UNPAINTED="road")
    assert (found["b"] == 0).all() and (found["c"] == 0).all()
    note = data.note("images without a shape")
    assert f": 2 (the first: {data.images / 'b.png'} (if nobody" in note
    assert f"set {UNPAINTED} to ''" in note


def test_the_order_of_the_file_counts_and_so_do_other_classes(data):
    shapes = ("a", "sky", [box(0, 0, 4, 4)]), ("a", "tree", [box(2, 0, 6, 4)])
    assert data.read(data.coco(*shapes))["a"][0].tolist() == [1, 1, 2, 2, 2, 2]
    assert data.read(data.coco(*shapes[::-1]))["a"][0].tolist() == [1, 1, 1, 1, 2, 2]
    maps = data.coco(*shapes, ("a", "dragon", [box(0, 0, 6, 4)]), ("b", "dragon", [LEFT]))
    assert data.read(maps)["a"][0].tolist() == [1, 1, 2, 2, 2, 2]
    assert f": 1 ({maps}: 'dragon' (2 shapes))" in data.note("not trained")
    assert "b" not in data.read(maps) and (data.read(maps, UNPAINTED="sky")["b"] == 1).all()


@pytest.mark.parametrize(("unpainted", "expected"), [("", []), ("tree", []), ("sea", ["sea"])])
def test_classes_of_the_file(data, unpainted, expected):
    """Those of its categories by id, and in front what no shape covers."""
    maps = data.coco(("a", "tree", [LEFT]), ("b", "moon", [LEFT]))
    files = {"IMAGES": str(data.images), "MAPS": maps}
    own = own_data(("segmentation",), TRAIN=files, UNPAINTED=unpainted)
    assert own.class_names("segmentation", FileScanner()) == [*expected, "moon", "tree"]
    found = data.read(maps, SEM_SEG_CLASSES=[], UNPAINTED=unpainted)
    assert found["a"][0, 0] == len(expected) + 1


def test_a_class_that_training_does_not_know(data):
    train = data.coco(("a", "sky", [LEFT]), ("a", "road", [RIGHT]))
    val = str(data.write("val.json", {}))
    data.json.rename(val)
    files = {"IMAGES": str(data.images), "MAPS": train}
    data.coco(("a", "sky", [LEFT]))
    assert f"{val}: 'road' (1 shapes): training does not know the class" in data.message(
        val, split=VAL, TRAIN=files, SEM_SEG_CLASSES=[]
    )
    assert data.read(val, split=VAL, TRAIN=files, SEM_SEG_CLASSES=["sky"])["a"][0, 0] == 0


def test_a_class_that_no_shape_has_is_said(data):
    data.read(data.coco(("a", "sky", [LEFT])), UNPAINTED="road")
    assert "1 ('tree' (segmentation))" in data.note("never occur")


def test_an_unknown_class_for_what_is_not_painted(data):
    maps = data.coco(("a", "sky", [LEFT]))
    expected = "one of the classes ['road', 'sky', 'tree'], or '' for ignored"
    assert data.message(maps, UNPAINTED="sea") == f"{UNPAINTED} is 'sea': expected {expected}"


FAULTS = [
    (None, "no polygons or runs (Expected"),
    ([], "no polygon of at least 3 points"),
    ([[1, 2, 3]], "a polygon with an odd number of coordinates"),
    ({"size": [4, 7], "counts": [28]}, "a mask of size [4, 7] in an image of [4, 6]"),
    ({"size": [4, 6], "counts": [25]}, "runs that do not fill their mask of size [4, 6]"),
    ({"size": [4, 6], "counts": "oo"}, "compressed runs that are broken"),
]


@pytest.mark.parametrize(("shape", "reason"), FAULTS)
def test_a_faulty_shape_is_left_out_and_named(data, shape, reason):
    maps = data.coco(("a", "sky", [LEFT]), ("a", "tree", shape), ("b", "tree", shape))
    found = data.read(maps, UNPAINTED="road")
    assert found["a"][0].tolist() == [1, 1, 1, 0, 0, 0]
    assert "b" not in found  # each shape is faulty, so that nothing is known
    note = data.note("annotations without polygons")
    assert f": 2 (the first: {maps}: annotation 2 has {reason}" in note
    assert f": 1 ({maps}: image 'b.png')" in data.note("each annotation is faulty")
    faulty = data.coco(*[("a", "sky", shape)] * 9)
    assert "9 of 13 annotations without polygons" in data.message(faulty)


def test_entries_that_do_not_fit_each_other(data):
    maps = data.coco(("a", "sky", [LEFT]), ("z", "sky", [LEFT]), listed="a")
    data.read(maps)
    assert f'{maps}: annotation 2 has image_id "z"' in data.note("that is not listed")


def test_shapes_at_the_border(data):
    far = box(-100, -100, 3, 100)
    shapes = [far], [box(50, 0, 60, 4)], [box(0, 0, 6.5, 1)]
    maps = data.coco(*(("a", "tree", x) for x in shapes))
    assert data.read(maps)["a"].tolist() == [[2] * 6, *[[2, 2, 2, X, X, X]] * 3]
    image = f"in {data.images / 'a.png'} of 6x4 pixels"
    assert f": 1 ({maps}: annotation 1 {image})" in data.note("over the border")
    assert f": 1 ({maps}: annotation 2 {image})" in data.note("outside their image")


def test_the_size_of_the_image_may_be_that_of_a_mask(data):
    images = [{"id": "a", "file_name": "a.png"}]
    mask = {"size": [HEIGHT, WIDTH], "counts": [0, 12, 12]}
    maps = data.coco(("a", "sky", mask), images=images)
    assert data.read(maps)["a"][0].tolist() == [1, 1, 1, X, X, X]
    wide = {"size": [HEIGHT, WIDTH + 1], "counts": [0, 12, 16]}
    assert data.read(data.coco(("a", "sky", wide), images=images)) == {}
    assert "image 'a.png' has 7x4 pixels, but" in data.note("another size")


def test_an_image_that_is_listed_twice_has_the_shapes_of_both(data):
    images = [{"id": i, "file_name": name} for i, name in (("a", "a.png"), ("b", "./a.png"))]
    maps = data.coco(("b", "tree", [RIGHT]), ("a", "sky", [LEFT]), images=images)
    assert data.read(maps)["a"][0].tolist() == [1, 1, 1, 2, 2, 2]
    assert "taken together" in data.note("listed twice")


def test_maps_of_another_task_have_its_keys(data):
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.TASKS.GROUND = CfgNode({"KIND": "Segmentation"})
    cfg.MODEL.TASKS = ["ground"]
    complete_task_config(cfg)
    node = cfg.DATASETS.COCO_STYLE
    node.TRAIN.IMAGES = str(data.images)
    node.TRAIN.GROUND_MAPS = data.coco(("a", "sky", [LEFT]))
    node.GROUND_UNPAINTED = ""
    record, *_ = from_config(cfg).load(TRAIN, FileScanner())
    names = ("file_name", "reader", "partial")
    assert {f"ground_sem_seg_{x}" for x in names} == {x for x in record if "sem_seg" in x}


# labelme


def shape(label, kind, *points, **fields):
    return {"label": label, "shape_type": kind, "points": [list(x) for x in points], **fields}


def test_shapes_of_labelme(data):
    polygon = shape("sky", None, (0, 0), (3, 0), (3, 2), (0, 2))
    rectangle = shape("tree", "rectangle", (6, 4), (4, 3))
    maps = data.labelme("a", polygon, rectangle)
    assert data.read(maps)["a"].tolist() == [
        *[[1, 1, 1, X, X, X]] * 2,
        [X] * 6,
        [X, X, X, X, 2, 2],
    ]
    assert data.records(maps)["a"]["sem_seg_file_name"].endswith("labels/a.json")
    assert set(data.read(maps, UNPAINTED="road")) == {"a"}  # the others have no file


def test_a_circle(data):
    """Its pixels are those whose centers are inside, up to a few at the rim."""
    for name in "abc":
        data.save(f"images/{name}.png", np.zeros((100, 120, 3), np.uint8))
    maps = data.labelme("a", shape("sky", "circle", (50, 40), (50, 70)), imageHeight=100)
    data.labelme("a", shape("sky", "circle", (50, 40), (50, 70)), imageHeight=100, imageWidth=120)
    y, x = np.mgrid[:100, :120] + 0.5
    expected = (x - 50) ** 2 + (y - 40) ** 2 <= 30**2
    found = data.read(maps)["a"] == 1
    assert (found != expected).sum() < 0.02 * expected.sum()
    assert abs(int(found.sum()) - int(expected.sum())) < 0.01 * expected.sum()


def encoded(mask):
    file = io.BytesIO()
    Image.fromarray(np.array(mask, np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_mask_of_labelme(data):
    mask = encoded([[1, 0, 1], [1, 1, 1]])
    maps = data.labelme("a", shape("sky", "mask", (2, 1), (4, 2), mask=mask))
    assert data.read(maps)["a"].tolist() == [
        [X] * 6,
        [X, X, 1, X, 1, X],
        [X, X, 1, 1, 1, X],
        [X] * 6,
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mask": "x"}, "has a mask that is no PNG in base64"),
        ({"mask": None}, "has a mask that is no PNG in base64"),
        ({"mask": encoded([[1, 1]])}, "has a mask of 2x1 pixels, other than its points say"),
        ({"points": [[4, 1], [6, 2]]}, "has a mask that reaches over the border of its image"),
        ({"points": [[4, 1]]}, "has points [[4, 1]], expected at least 2 points"),
    ],
)
def test_a_faulty_mask_of_labelme(data, fields, reason):
    good = shape("tree", "rectangle", (0, 0), (1, 1))
    bad = shape("sky", "mask", (2, 1), (4, 2), mask=encoded([[1, 0, 1], [1, 1, 1]]))
    maps = data.labelme("a", bad | fields, good)
    assert data.read(maps)["a"][0].tolist() == [2, X, X, X, X, X]
    assert f"labels/a.json: shape 1 {reason}" in data.note("without a usable")
    maps = data.labelme("a", bad, good, imageHeight=None)
    data.read(maps)
    assert "a mask, which needs the right imageHeight" in data.note("without a usable")


def test_ignored_shapes_of_labelme(data):
    """They are ignored, also where every other pixel has a class."""
    ignored = shape("__ignore__", "rectangle", (0, 0), (3, 4))
    tree = shape("tree", "rectangle", (2, 0), (4, 4))
    maps = data.labelme("a", ignored, tree)
    found = data.read(maps, UNPAINTED="road")["a"]
    assert found[0].tolist() == [X, X, 2, 2, 0, 0]
    assert not [x for x in data.notes.lines if "not trained" in x]
    files = {"IMAGES": str(data.images), "MAPS": maps}
    own = own_data(("segmentation",), TRAIN=files)
    assert own.class_names("segmentation", FileScanner()) == ["tree"]


def test_shapes_without_an_area_are_counted(data):
    line = shape("tree", "line", (0, 0), (1, 1))
    maps = data.labelme("a", shape("sky", "rectangle", (0, 0), (3, 4)), line)
    data.read(maps)
    assert 'labels/a.json: shape 2 has shape_type "line"' in data.note("without an area")


def test_a_file_of_faulty_shapes_and_one_without_shapes(data):
    maps = data.labelme("a", shape("", "rectangle", (0, 0), (3, 4)))
    data.labelme("b")
    data.labelme("c", *[shape("sky", "rectangle", (0, 0), (3, 4))] * 3)
    found = data.read(maps, UNPAINTED="road")
    assert set(found) == {"b", "c"} and (found["b"] == 0).all()
    assert "labels/a.json" in data.note("each entry is faulty")


def test_images_and_labels_side_by_side(data):
    content = {"shapes": [shape("sky", "rectangle", (0, 0), (3, 4))], "imageData": "x" * 9}
    data.write("images/b.json", content | {"imagePath": "b.png"})
    assert data.read(str(data.images))["b"][0].tolist() == [1, 1, 1, X, X, X]
    pattern = str(data.images / "*.json")
    assert data.read(pattern)["b"][0].tolist() == [1, 1, 1, X, X, X]


def test_a_folder_of_other_json_files(data):
    folder = str(data.write("labels/coco.json", {"images": []}).parent)
    message = data.message(folder)
    assert f"MAPS: {folder} has no maps, expected a folder of .png maps or of labelme's" in message
    assert "a COCO JSON is named itself, not its folder" in message


# Several sources


def test_the_first_source_with_a_map_of_an_image_counts(data):
    data.save("maps/a.png", full(2))
    path = data.coco(("a", "sky", [LEFT]), ("b", "sky", [RIGHT]))
    labels = data.labelme("b", shape("tree", "rectangle", (0, 0), (6, 4)))
    data.labelme("c", shape("tree", "rectangle", (0, 0), (6, 4)))
    found = data.read([str(data.maps), path, labels])
    assert (found["a"] == 2).all()
    assert found["b"][0].tolist() == [X, X, X, 1, 1, 1]
    assert (found["c"] == 2).all()
    note = data.note("an earlier entry of MAPS")
    assert f": 2 (the first: {path}: that of {data.images / 'a.png'})" in note
    records = data.records([str(data.maps), path, labels])
    assert [x.get("sem_seg_partial", False) for x in records.values()] == [False, True, True]


@pytest.mark.parametrize("kind", ["labelme", "png"])
def test_images_with_a_broken_map_may_be_left_out(data, kind):
    if kind == "png":
        folder = str(data.save("maps/b.png", full(1)).parent)
        broken = data.write("maps/a.png", b"x")
    else:
        folder = data.labelme("b", shape("sky", "rectangle", (0, 0), (6, 4)))
        broken = data.write("labels/a.json", b'{"shapes": [')
    assert str(broken) in data.message(folder)
    files = {"IMAGES": str(data.images), "MAPS": folder}
    own = own_data(("segmentation",), SEM_SEG_CLASSES=["road", "sky"], TRAIN=files)
    found = {}
    records = own.load(TRAIN, FileScanner(broken=found))
    assert [x["image_id"] for x in records] == ["b.png", "c.png"]
    assert list(found) == [str(broken)]


def test_validation_has_the_images_that_its_file_lists(data):
    path = data.coco(("b", "sky", [LEFT]), listed="b")
    files = {"IMAGES": str(data.images), "MAPS": path}
    train = {"IMAGES": str(data.images)}
    assert set(data.records(path, split=VAL, TRAIN=train)) == {"b"}
    assert set(data.records(None, split=TRAIN, VAL=files, TRAIN=train)) == {"a", "c"}


def test_hidden_maps_can_be_read(data, street_root):
    maps = data.coco(("a", "sky", [LEFT]), ("b", "sky", [LEFT]))
    records = list(data.records(maps).values())
    hidden = hide_labels(records, {"sem_seg_file_name": 0}, mode="nested", seed=0)[0]
    task = Segmentation(tiny_config(street_root), "segmentation")
    assert "sem_seg_file_name" not in hidden
    target = task.load_target(hidden | hidden["hidden"])
    assert target[0].tolist() == [1, 1, 1, X, X, X]
