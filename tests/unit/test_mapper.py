import numpy as np
import pytest
import torch
from PIL import Image

from mtfixmatch.augmentation import geometry
from mtfixmatch.data.mapper import EvalMapper, TrainMapper, read_rgb
from mtfixmatch.data.samplers import Draw
from mtfixmatch.methods import build_method
from mtfixmatch.tasks import build_tasks
from mtfixmatch.utils.errors import InputError
from tests.support.helpers import tiny_config

HEIGHT, WIDTH = 48, 64
BOX = (20, 12, 44, 30)
IGNORE = 255
STEPS = range(30)


def make_record(folder, picture=None, **changes):
    """A black image with a white rectangle, that rectangle's box and its map."""
    ids = np.full((HEIGHT, WIDTH), 3, np.uint8)
    ids[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 7
    if picture is None:
        picture = np.where(ids == 7, 255, 0).astype(np.uint8)[..., None].repeat(3, 2)
    Image.fromarray(picture).save(folder / "image.png")
    Image.fromarray(ids).save(folder / "map.png")
    lut = bytearray([IGNORE] * 256)
    lut[3], lut[7] = 0, 1
    annotation = {"bbox": list(map(float, BOX)), "category_id": 2, "iscrowd": 0}
    record = {
        "file_name": str(folder / "image.png"),
        "image_id": "image",
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [annotation],
        "sem_seg_file_name": str(folder / "map.png"),
        "sem_seg_lut": bytes(lut),
    }
    return record | changes


@pytest.fixture(scope="module")
def cfg(street_root):
    return tiny_config(street_root, "SEED", 5)


@pytest.fixture(scope="module")
def tasks(cfg):
    return build_tasks(cfg)


@pytest.fixture
def record(tmp_path):
    return make_record(tmp_path)


def build(tasks, **changes):
    options = {
        "tasks": tasks,
        "scale_range": (0.5, 2.0),
        "size": (64, 96),
        "flip_prob": 0.5,
        "fill": (9.0, 20.0, 30.0),
        "diagnostics_period": 20,
        "seed": 5,
    }
    return TrainMapper(**{**options, **changes})


def frozen(item):
    boxes = item["targets"]["detection"]
    return (
        item["image"].numpy().tobytes(),
        item["valid"].numpy().tobytes(),
        boxes.gt_boxes.tensor.numpy().tobytes(),
        item["targets"]["segmentation"].numpy().tobytes(),
    )


def extent(mask):
    ys, xs = mask.nonzero(as_tuple=True)
    edges = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    return torch.tensor([float(x) for x in edges])


def test_an_item_is_a_function_of_seed_step_and_position(record, tasks):
    first = frozen(build(tasks)(record, Draw(0, 7, 2)))
    assert frozen(build(tasks)(record, Draw(0, 7, 2))) == first
    assert frozen(build(tasks)(record, Draw(99, 7, 2))) == first  # not of the index
    for other in (
        build(tasks)(record, Draw(0, 7, 3)),
        build(tasks)(record, Draw(0, 8, 2)),
        build(tasks, seed=6)(record, Draw(0, 7, 2)),
    ):
        assert frozen(other)[0] != first[0]


def test_what_an_item_holds(record, tasks):
    item = build(tasks)(record, Draw(4, 7, 2))
    assert item["image"].shape == (3, 64, 96) and item["image"].dtype == torch.uint8
    assert item["valid"].shape == (4,)
    assert item["targets"]["segmentation"].shape == (64, 96)
    assert item["targets"]["detection"].image_size == (64, 96)
    assert (item["draw"], item["file_name"]) == (Draw(4, 7, 2), record["file_name"])


def test_channels_are_rgb(tmp_path, tasks):
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:] = 200, 100, 50
    record = make_record(tmp_path, picture)
    assert read_rgb(record)[:, 0, 0].tolist() == [200, 100, 50]
    mapper = build(tasks, scale_range=(2.0, 2.0), size=(32, 32))
    view = mapper(record, Draw(0, 0, 0))["image"][:, 16, 16]
    assert view.tolist() == [200, 100, 50]


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.0])
def test_valid_is_the_extent_of_what_is_not_padding(tmp_path, tasks, scale):
    record = make_record(tmp_path, np.full((HEIGHT, WIDTH, 3), 255, np.uint8))
    mapper = build(tasks, scale_range=(scale, scale))
    places = set()
    for step in STEPS:
        item = mapper(record, Draw(0, step, 0))
        shown = item["image"][0] > 128
        assert torch.equal(extent(shown), item["valid"])
        assert item["valid"][2:].sub(item["valid"][:2]).tolist() == [WIDTH * scale, HEIGHT * scale]
        assert torch.equal(item["targets"]["segmentation"] != IGNORE, shown)
        away = geometry.warp_map(shown.to(torch.uint8), geometry.identity(), (64, 96), ignore=0)
        padding = item["image"][:, away == 0]
        assert (padding == torch.tensor([[9], [20], [30]])).all()
        places.add(tuple(item["valid"].tolist()))
    assert len(places) > 10


def test_valid_at_any_scale(tmp_path, tasks):
    record = make_record(tmp_path, np.full((HEIGHT, WIDTH, 3), 255, np.uint8))
    for step in STEPS:
        item = build(tasks)(record, Draw(0, step, 0))
        # Half a source pixel at the border is mixed with the padding.
        assert (extent(item["image"][0] > 128) - item["valid"]).abs().max() <= 1


def test_image_map_and_box_move_together(record, tasks):
    checked = 0
    for step in STEPS:
        item = build(tasks)(record, Draw(0, step, 0))
        bright = item["image"][0] > 128
        mapped = item["targets"]["segmentation"] == 1
        boxes = item["targets"]["detection"].gt_boxes.tensor
        if bright.sum() > 50:
            checked += 1
            assert (bright != mapped).sum() <= 0.12 * mapped.sum()
            assert (extent(bright) - boxes[0]).abs().max() <= 1
            assert (extent(mapped) - boxes[0]).abs().max() <= 1
    assert checked > 15


def test_without_scale_all_is_exact(record, tasks):
    for step in STEPS:
        item = build(tasks, scale_range=(1.0, 1.0))(record, Draw(0, step, 0))
        bright = item["image"][0] == 255
        assert torch.equal(bright, item["targets"]["segmentation"] == 1)
        assert torch.equal(extent(bright), item["targets"]["detection"].gt_boxes.tensor[0])


def test_scale_range(tasks):
    mapper = build(tasks, flip_prob=0.0)
    matrices = [mapper._view_matrix((48, 64), Draw(0, s, p)) for s in range(40) for p in range(10)]
    scales = np.array([float(m[0, 0]) for m in matrices])
    assert scales.min() >= 0.5 and scales.max() <= 2.0
    assert scales.min() < 0.53 and scales.max() > 1.97 and abs(scales.mean() - 1.25) < 0.08
    assert all(m[0, 0] == m[1, 1] and m[0, 1] == m[1, 0] == 0 for m in matrices)


@pytest.mark.parametrize(("mode", "below_one"), [("image", 1 / 3), ("crop", 2 / 3)])
def test_distribution_of_zooms(tasks, mode, below_one):
    """What is uniform in [.5, 2] is the scale of the image, or the size of the crop.

    P(zoom < 1) is P(scale < 1) = .5 / 1.5, or P(size > 1) = 1 / 1.5. Over 900 draws the share has a
    standard deviation of .016; each of the six classes is compared in the same way.
    """
    mapper = build(tasks, flip_prob=0.0, scale_mode=mode)
    draws = [Draw(0, step, place) for step in range(90) for place in range(10)]
    zooms = np.array([float(mapper._view_matrix((48, 64), draw)[0, 0]) for draw in draws])
    assert zooms.min() >= 0.5 and zooms.max() <= 2.0
    assert abs((zooms < 1).mean() - below_one) < 0.06
    uniform = zooms if mode == "image" else 1 / zooms
    counts = np.histogram(uniform, bins=6, range=(0.5, 2.0))[0]
    assert counts.sum() == 900 and abs(counts - 150).max() < 50  # 4.5 standard deviations


def test_a_crop_of_twice_the_size_shows_twice_as_much(record, tasks):
    """Range [2, 2]: the view is a crop of twice its size, at half the scale."""
    crop = build(tasks, scale_range=(2.0, 2.0), scale_mode="crop", flip_prob=0.0)
    image = build(tasks, scale_range=(0.5, 0.5), flip_prob=0.0)
    draw = Draw(0, 3, 1)
    assert torch.equal(crop(record, draw)["image"], image(record, draw)["image"])


def test_crops_lie_in_the_image_and_reach_its_borders(tasks):
    mapper = build(tasks, scale_range=(2.0, 2.0), flip_prob=0.0)  # 96 x 128 shown as 64 x 96
    offsets = [mapper._view_matrix((48, 64), Draw(0, step, 0))[:2, 2] for step in range(600)]
    x, y = -torch.stack(offsets).T
    assert (x.min(), x.max(), y.min(), y.max()) == (0, 32, 0, 32)


def test_a_smaller_image_lies_anywhere_in_the_view(tasks):
    mapper = build(tasks, scale_range=(0.5, 0.5), flip_prob=0.0)  # 24 x 32 shown in 64 x 96
    offsets = [mapper._view_matrix((48, 64), Draw(0, step, 0))[:2, 2] for step in range(900)]
    x, y = torch.stack(offsets).T
    assert (x.min(), x.max(), y.min(), y.max()) == (0, 64, 0, 40)


def flipped_share(mapper):
    signs = [mapper._view_matrix((48, 64), Draw(0, step, 1))[0, 0] < 0 for step in range(400)]
    return float(torch.stack(signs).double().mean())


def test_flips(tasks, street_root):
    assert 0.42 < flipped_share(build(tasks)) < 0.58
    assert flipped_share(build(tasks, flip_prob=0.0)) == 0
    assert flipped_share(build(tasks, flip_prob=1.0)) == 1
    for method, share in (("FixMatch", 0), ("DenseFixMatch", 1), ("Supervised", 1)):
        cfg = tiny_config(street_root, "FIXMATCH.METHOD", method, "INPUT.FLIP_PROB", 1.0)
        assert flipped_share(TrainMapper(cfg, tasks, build_method(cfg).weak_flip_prob)) == share


def test_configured_values_reach_the_mapper(cfg, tasks):
    mapper = TrainMapper(cfg, tasks)
    assert (mapper.scale_range, mapper.size, mapper.flip_prob) == ((0.5, 2.0), (64, 64), 0.5)
    assert (mapper.diagnostics_period, mapper.seed) == (20, 5)
    assert mapper.fill == (123.675, 116.28, 103.53)


def test_an_unlabeled_image_has_no_target(record, tasks):
    del record["annotations"]
    targets = build(tasks)(record, Draw(0, 1, 0))["targets"]
    assert targets["detection"] is None and targets["segmentation"] is not None
    del record["sem_seg_file_name"]
    targets = build(tasks)(record, Draw(0, 1, 0))["targets"]
    assert targets == {"detection": None, "segmentation": None}


def test_labeled_without_objects_is_not_unlabeled(record, tasks):
    record["annotations"] = []
    found = build(tasks)(record, Draw(0, 1, 0))["targets"]["detection"]
    assert len(found) == 0 and found.gt_boxes.tensor.shape == (0, 4)


def test_hidden_labels_are_read_at_measured_steps_alone(record, tasks):
    full = build(tasks)(record, Draw(0, 40, 0))["targets"]
    hidden = {key: record.pop(key) for key in ("annotations", "sem_seg_file_name")}
    record["hidden"] = hidden
    nothing = {"detection": None, "segmentation": None}
    for step in (0, 20, 40):
        item = build(tasks)(record, Draw(0, step, 0))
        assert item["targets"] == nothing
        assert all(item["hidden_targets"][name] is not None for name in nothing)
    known = item["hidden_targets"]
    assert torch.equal(known["segmentation"], full["segmentation"])
    assert torch.equal(known["detection"].gt_boxes.tensor, full["detection"].gt_boxes.tensor)
    for step in (1, 19, 21):
        assert build(tasks)(record, Draw(0, step, 0))["hidden_targets"] == nothing
    assert build(tasks, diagnostics_period=0)(record, Draw(0, 40, 0))["hidden_targets"] == nothing


def test_what_is_not_hidden_is_not_known(record, tasks):
    nothing = {"detection": None, "segmentation": None}
    assert build(tasks)(record, Draw(0, 0, 0))["hidden_targets"] == nothing


@pytest.mark.parametrize("content", ["missing", "empty", "text", "truncated"])
def test_an_unreadable_image_is_named(record, tasks, tmp_path, content):
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    if content == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[:900]}[content])
    for mapper in (lambda: build(tasks)(record, Draw(0, 1, 0)), lambda: EvalMapper()(record)):
        with pytest.raises(InputError) as error:
            mapper()
        assert str(path) in str(error.value)


@pytest.mark.parametrize("changes", [{"height": 47}, {"width": 65}])
def test_another_size_than_recorded_is_named(tmp_path, tasks, changes):
    record = make_record(tmp_path, **changes)
    with pytest.raises(InputError, match=r"image\.png is \(48, 64\), not"):
        build(tasks)(record, Draw(0, 1, 0))


def test_whole_images_for_evaluation(record):
    item = EvalMapper()(record)
    assert item["image"].shape == (3, HEIGHT, WIDTH) and item["image"].dtype == torch.uint8
    assert torch.equal(item["image"], read_rgb(record))
    expected = {"image_id": "image", "height": HEIGHT, "width": WIDTH}
    assert {key: item[key] for key in expected} == expected
    assert item["file_name"] == record["file_name"] and item["labels"] == {}


def test_labels_for_evaluators(record, tasks):
    labels = EvalMapper(tasks)(record)["labels"]
    expected = {task.label_key: task for task in tasks if task.label_key in record}
    assert labels.keys() == expected.keys() and labels
    for key, task in expected.items():
        assert (labels[key] is None) == (task.evaluation_label(record) is None)
    assert torch.equal(labels["sem_seg_file_name"], tasks[1].load_target(record))
