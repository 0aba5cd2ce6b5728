import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from mtfixmatch.augmentation import geometry, strong
from mtfixmatch.augmentation.strong import GEOMETRIC, PHOTOMETRIC, StrongAugmentation
from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.methods import build_method

# Table 10 of the paper.
TABLE_10 = {
    "autocontrast": None,
    "equalize": None,
    "invert": None,
    "solarize": (0.1, 1.0),
    "posterize": (4, 8),
    "saturation": (0.1, 1.9),
    "contrast": (0.1, 1.9),
    "brightness": (0.1, 1.9),
    "sharpness": (0.1, 1.9),
    "shear_x": (-17, 17),
    "shear_y": (-17, 17),
    "translate_x": (-0.15, 0.15),
    "translate_y": (-0.15, 0.15),
    "rotate": (-30, 30),
}
MOVES = ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"]
SIZE = (32, 40)


def config(method="DenseFixMatch", *opts):
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.merge_from_list(["FIXMATCH.METHOD", method, "SEED", 3, *opts])
    return cfg


def augmentation(**changes):
    options = {
        "operations": list(TABLE_10),
        "num_operations": 2,
        "flip_prob": 0.5,
        "cutout_area": (0.1, 0.3),
        "fill": (0.485, 0.456, 0.406),
        "seed": 3,
    }
    return StrongAugmentation(**{**options, **changes})


def photograph(seed=1, height=40, width=50):
    """A smooth picture (H, W, 3) uint8 that does not use the full range."""
    noise = np.random.default_rng(seed).random((height, width, 3)) ** 2 * 200 + 20
    return cv2.GaussianBlur(noise, (0, 0), 2).astype(np.uint8)


def tensor(picture):
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 255


def batch(count=4, size=SIZE):
    return torch.cat([tensor(photograph(i, *size)) for i in range(count)])


def apply(name, picture, *values):
    found = PHOTOMETRIC[name][0](tensor(picture), *(torch.tensor([v]) for v in values))
    return found[0].permute(1, 2, 0).numpy() * 255


FACTORS = [0.1, 0.7, 1.0, 1.9]
PILLOW = {
    "autocontrast": (lambda image: ImageOps.autocontrast(image), [None], 1.0),
    "equalize": (lambda image: ImageOps.equalize(image), [None], 0.01),
    "invert": (lambda image: ImageOps.invert(image), [None], 0.01),
    "solarize": (lambda image, v: ImageOps.solarize(image, round(v * 255)), [0.1, 0.25, 0.4], 0.01),
    "posterize": (lambda image, v: ImageOps.posterize(image, int(v)), [4.0, 5.9, 6.5, 8.9], 0.01),
    "saturation": (lambda image, v: ImageEnhance.Color(image).enhance(v), FACTORS, 1.6),
    "contrast": (lambda image, v: ImageEnhance.Contrast(image).enhance(v), FACTORS, 1.6),
    "brightness": (lambda image, v: ImageEnhance.Brightness(image).enhance(v), FACTORS, 1.0),
    "sharpness": (lambda image, v: ImageEnhance.Sharpness(image).enhance(v), FACTORS, 1.6),
}


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, (_, values, _) in PILLOW.items() for v in values]
)
def test_photometric_operations_are_pillows(name, value):
    definition, _, tolerance = PILLOW[name]
    values = () if value is None else (value,)
    picture = photograph()
    expected = np.asarray(definition(Image.fromarray(picture), *values)).astype(float)
    # Pillow cuts off decimals: up to one grey level, and one more where it does so twice.
    np.testing.assert_allclose(apply(name, picture, *values), expected, atol=tolerance)
    if name not in ("posterize", "saturation", "contrast", "brightness", "sharpness"):
        assert np.abs(expected - picture).max() > 20  # the operation did something


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 1.9))
def test_enhancements_by_their_formulas(seed, factor):
    picture = photograph(seed)
    image = picture.astype(float)
    gray = image @ [0.299, 0.587, 0.114]
    for name, degenerate in [
        ("saturation", gray[..., None]),
        ("contrast", gray.mean()),
        ("brightness", 0.0),
    ]:
        expected = (degenerate + factor * (image - degenerate)).clip(0, 255)
        np.testing.assert_allclose(apply(name, picture, factor), expected, atol=0.05)


def test_every_photometric_operation_is_compared():
    assert set(PILLOW) == set(PHOTOMETRIC)


def test_each_image_of_a_batch_has_its_own_parameter():
    pictures = [photograph(i) for i in range(3)]
    images = torch.cat([tensor(p) for p in pictures])
    for name, (function, limits) in PHOTOMETRIC.items():
        if limits is not None:
            values = torch.tensor([limits[0], sum(limits) / 2, limits[1] - 0.5])
            found = function(images, values)
            for i, picture in enumerate(pictures):
                alone = apply(name, picture, float(values[i]))
                np.testing.assert_allclose(found[i].permute(1, 2, 0) * 255, alone, atol=1e-3)


def test_a_constant_channel_has_no_contrast_to_stretch():
    images = torch.full((2, 3, 6, 7), 0.3)
    images[1, 0, 2:4] = 0.8
    found = strong.auto_contrast(images)
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1, 1:], images[1, 1:])
    expected = torch.zeros(6, 7)
    expected[2:4] = 1.0
    torch.testing.assert_close(found[1, 0], expected)


def test_ranges_are_those_of_the_paper():
    found = {name: limits for name, (_, limits) in (PHOTOMETRIC | GEOMETRIC).items()}
    # Bits are drawn as floor(uniform): the limit 9 is never reached.
    assert found == TABLE_10 | {"posterize": (4, 9)}
    assert list(GEOMETRIC) == MOVES


@pytest.mark.parametrize("name", [n for n, limits in TABLE_10.items() if limits])
def test_drawn_parameters_fill_the_range(name, monkeypatch):
    drawn = []
    if name in PHOTOMETRIC:

        def record(images, values):
            drawn.extend(values.tolist())
            return images

        monkeypatch.setitem(PHOTOMETRIC, name, (record, PHOTOMETRIC[name][1]))
    else:

        def note(value, size):
            drawn.append(value)
            return geometry.identity()

        monkeypatch.setitem(GEOMETRIC, name, (note, GEOMETRIC[name][1]))
    augment = augmentation(operations=[name], num_operations=1, flip_prob=0.0)
    images = torch.zeros(40, 3, 4, 4)
    for step in range(10):
        augment(images, step=step, positions=range(40))
    low, high = TABLE_10[name]
    assert len(drawn) == 400 and low <= min(drawn)
    if name == "posterize":
        assert {int(v) for v in drawn} == {4, 5, 6, 7, 8}
    else:
        width = high - low
        assert max(drawn) <= high
        assert min(drawn) < low + 0.03 * width and max(drawn) > high - 0.03 * width
        assert abs(np.mean(drawn) - (low + high) / 2) < 0.05 * width


def test_posterize_bits_reach_the_picture_as_integers():
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, 2)
    for bits in (4, 5, 6, 7, 8):
        for value in (bits, bits + 0.99):
            found = apply("posterize", picture, float(value)).round()
            assert len(np.unique(found)) == 2**bits


def test_matrices_by_hand():
    size = (100, 200)

    def move(name, value, x, y):
        matrix = GEOMETRIC[name][0](value, size)
        return pytest.approx((matrix @ torch.tensor([x, y, 1.0]).double())[:2].tolist())

    assert move("translate_x", 0.1, 3, 4) == (23, 4)
    assert move("translate_y", -0.1, 3, 4) == (3, -6)
    assert move("rotate", 30, 110, 50) == (100 + 10 * 3**0.5 / 2, 55)
    tan = np.tan(np.radians(17))
    assert move("shear_x", 17, 100, 60) == (100 + 10 * tan, 60)
    assert move("shear_y", -17, 110, 50) == (110, 50 - 10 * tan)


def test_operations_belong_to_the_step_and_differ_within_it():
    augment = augmentation()
    drawn = [augment._draw_operations(step) for step in range(400)]
    assert all(len(set(names)) == 2 for names in drawn)
    assert {name for names in drawn for name in names} == set(TABLE_10)
    assert len({tuple(names) for names in drawn}) > 100
    assert drawn == [augmentation()._draw_operations(step) for step in range(400)]
    assert drawn != [augmentation(seed=4)._draw_operations(step) for step in range(400)]
    counts = np.array([sum(name in names for names in drawn) for name in TABLE_10])
    assert counts.min() > 30 and counts.max() < 90  # 400 * 2 / 14 = 57


def test_all_images_of_a_batch_get_the_operations_of_the_step(monkeypatch):
    seen = []

    def follow(name, function):
        def record(images, *values):
            seen.append((name, len(images)))
            return function(images, *values)

        return record

    for name, (function, limits) in list(PHOTOMETRIC.items()):
        monkeypatch.setitem(PHOTOMETRIC, name, (follow(name, function), limits))
    augment = augmentation(operations=list(PHOTOMETRIC))
    for step in range(10):
        seen.clear()
        augment(batch(3), step=step, positions=[0, 5, 6])
        assert seen == [(name, 3) for name in augment._draw_operations(step)]


def test_a_view_is_a_function_of_seed_step_and_position():
    images = batch(2)
    first = augmentation()(images, step=7, positions=[0, 1])
    again = augmentation()(images, step=7, positions=[0, 1])
    for name in ("images", "matrices", "erased"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    for changed in (
        augmentation()(images, step=8, positions=[0, 1]),
        augmentation()(images, step=7, positions=[2, 3]),
        augmentation(seed=4)(images, step=7, positions=[0, 1]),
    ):
        assert not torch.equal(changed.erased, first.erased)
        assert not torch.equal(changed.images, first.images)


def test_an_image_gives_the_same_view_alone_as_in_a_batch():
    images = batch(4)
    for step in range(30):
        together = augmentation()(images, step=step, positions=[3, 8, 1, 6])
        for i, position in enumerate([3, 8, 1, 6]):
            alone = augmentation()(images[i : i + 1], step=step, positions=[position])
            assert torch.equal(alone.matrices[0], together.matrices[i])
            assert torch.equal(alone.erased[0], together.erased[i])
            torch.testing.assert_close(alone.images[0], together.images[i], atol=1e-6, rtol=0)


def test_cutout_is_one_grey_square_of_the_stated_area():
    height, width = SIZE
    shares, corners = [], set()
    augment = augmentation(operations=["brightness"], num_operations=1, flip_prob=0.0)
    for step in range(20):
        view = augment(torch.ones(10, 3, *SIZE), step=step, positions=range(10))
        grey = (view.images == 0.5).all(dim=1)
        assert view.erased.dtype == torch.bool
        assert (grey >= view.erased).all()
        for mask in view.erased:
            ys, xs = mask.nonzero(as_tuple=True)
            side = int(ys.max() - ys.min()) + 1
            assert int(xs.max() - xs.min()) + 1 == side
            assert int(mask.sum()) == side * side
            shares.append(side * side / (height * width))
            corners.add((int(ys.min()), int(xs.min())))
    # The side is rounded to whole pixels.
    low, high = ((a * height * width) ** 0.5 for a in (0.1, 0.3))
    assert (low - 0.5) ** 2 <= min(shares) * height * width
    assert max(shares) * height * width <= (high + 0.5) ** 2
    assert min(shares) < 0.12 and max(shares) > 0.28
    assert len(corners) > 100


def test_pixels_outside_cutout_are_the_augmented_ones():
    augment = augmentation(operations=["invert"], num_operations=1, flip_prob=0.0)
    images = batch(3)
    view = augment(images, step=0, positions=range(3))
    expected = torch.where(view.erased[:, None], torch.tensor(0.5), 1 - images)
    torch.testing.assert_close(view.images, expected)


def test_cutout_can_be_turned_off():
    augment = augmentation(operations=["invert"], num_operations=1, cutout_area=(0.0, 0.0))
    assert not augment(batch(2), step=0, positions=[0, 1]).erased.any()


def test_fixmatch_moves_no_pixel(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("FixMatch* must not move an image")

    monkeypatch.setattr(geometry, "warp", fail)
    augment = build_method(config("FixMatch")).strong_augmentation
    assert augment.operations == [n for n in TABLE_10 if n not in MOVES]
    images = torch.full((2, 3, 24, 24), 0.5)
    images[:, 0, :, :6], images[:, 1, 4:9] = 0.9, 0.1
    still = geometry.identity().expand(2, 3, 3)
    for step in range(60):
        view = augment(images, step=step, positions=[0, 1])
        assert torch.equal(view.matrices, still)
        # Equal pixels with equal neighbours stay equal: rows differ where they did before.
        for found, erased in zip(view.images, view.erased, strict=True):
            kept = ~erased[12:22, 8:22]
            values = found[:, 12:22, 8:22][:, kept]
            assert values.numel() == 0 or float((values - values[:, :1]).abs().max()) < 1e-5


def test_dense_fixmatch_moves_and_flips_about_half():
    augment = build_method(config("DenseFixMatch")).strong_augmentation
    assert augment.operations == list(TABLE_10)
    matrices = torch.stack(
        [
            augment(torch.zeros(8, 3, 8, 8), step=step, positions=range(8)).matrices
            for step in range(60)
        ]
    )
    flipped = torch.linalg.det(matrices) < 0
    assert 0.42 < flipped.double().mean() < 0.58
    assert flipped.any(dim=1).sum() > 50 and (~flipped).any(dim=1).sum() > 50  # per image
    # With 2 of 14 operations drawn, 1 - (9 / 14) * (8 / 13) = 60 % of the steps move something.
    upright = torch.where(flipped, -matrices[..., 0, 0], matrices[..., 0, 0])
    turned = (upright != 1) | (matrices[..., 0, 1] != 0) | (matrices[..., 1, 0] != 0)
    shifted = (matrices[..., 1, 2] != 0) | ((matrices[..., 0, 2] % 8) != 0)
    assert 0.4 < (turned | shifted).any(dim=1).double().mean() < 0.8


def test_configured_values_reach_the_augmentation():
    opts = ["FIXMATCH.STRONG.NUM_OPERATIONS", 3, "FIXMATCH.STRONG.CUTOUT_AREA", (0.2, 0.25)]
    cfg = config("DenseFixMatch", *opts, "FIXMATCH.STRONG.FLIP_PROB", 0.25)
    augment = build_method(cfg).strong_augmentation
    assert (augment.num_operations, augment.flip_prob) == (3, 0.25)
    assert (augment.cutout_area, augment.seed) == ((0.2, 0.25), 3)
    assert len(augment._draw_operations(0)) == 3
    expected = torch.tensor(cfg.MODEL.PIXEL_MEAN) / 255
    torch.testing.assert_close(augment.fill.flatten(), expected)
    assert build_method(config("FixMatch")).strong_augmentation.flip_prob == 0
    assert not augment.photometric_first
    opts = ["FIXMATCH.STRONG.ORDER", "photometric_first", "FIXMATCH.STRONG.FILL", "black"]
    augment = build_method(config("DenseFixMatch", *opts)).strong_augmentation
    assert augment.photometric_first and (augment.fill == 0).all()


@pytest.mark.parametrize(
    ("value", "methods"),
    [("always", {"FixMatch", "DenseFixMatch"}), ("geometric", {"DenseFixMatch"}), ("never", set())],
)
def test_methods_that_ignore_pixels_under_cutout(value, methods):
    for name in ("FixMatch", "DenseFixMatch"):
        method = build_method(config(name, "FIXMATCH.STRONG.IGNORE_ERASED", value))
        view = method.strong_augmentation(batch(1), step=0, positions=[0])
        assert view.ignore_erased == (name in methods) and view.erased.any()


def test_moves_come_in_the_order_drawn_and_the_flip_last(monkeypatch):
    moves = {"shear_x": geometry.shear(10, 0), "translate_x": geometry.translation(4, 0)}
    moves["rotate"] = geometry.rotation(20)
    for name, matrix in moves.items():
        monkeypatch.setitem(GEOMETRIC, name, (lambda v, size, m=matrix: m, (0, 1)))
    augment = augmentation(operations=list(moves), num_operations=3, flip_prob=1.0)
    orders = set()
    for step in range(20):
        first, second, third = augment._draw_operations(step)
        view = augment(torch.zeros(1, 3, 8, 8), step=step, positions=[0])
        expected = geometry.horizontal_flip(8) @ moves[third] @ moves[second] @ moves[first]
        torch.testing.assert_close(view.matrices[0], expected)
        orders.add((first, second, third))
    assert len(orders) > 3


def uncovered_column(view):
    """Index of a column that only a translation along x has uncovered; None: it is too small."""
    shift = float(view.matrices[0, 0, 2])
    return None if abs(shift) < 1.5 else 0 if shift > 0 else -1


@pytest.mark.parametrize("photometric_first", [False, True])
def test_operations_are_applied_in_the_order_drawn(photometric_first):
    """What a move uncovers is inverted only if the inversion comes later."""
    fill = torch.tensor([0.2, 0.5, 0.9])
    options = {"flip_prob": 0.0, "cutout_area": (0.0, 0.0), "fill": fill.tolist()}
    names = ["translate_x", "invert"]
    augment = augmentation(operations=names, photometric_first=photometric_first, **options)
    drawn = augmentation(operations=names)._draw_operations
    seen = set()
    for step in range(20):
        view = augment(batch(1), step=step, positions=[0])
        column = uncovered_column(view)
        if column is not None:
            moved_first = drawn(step)[0] == "translate_x" and not photometric_first
            expected = 1 - fill if moved_first else fill
            torch.testing.assert_close(view.images[0, :, 0, column], expected)
            seen.add(moved_first)
    assert seen == ({False} if photometric_first else {False, True})


def test_moves_that_follow_each_other_are_one_warp(monkeypatch):
    """The flip, which comes last, is one with the moves before it."""
    warp, calls = geometry.warp, []
    monkeypatch.setattr(
        geometry, "warp", lambda *args, **more: (calls.append(1), warp(*args, **more))[1]
    )
    names = ["rotate", "shear_x", "brightness"]
    augment = augmentation(operations=names, num_operations=3, flip_prob=1.0)
    seen = set()
    for step in range(30):
        calls.clear()
        augment(batch(2), step=step, positions=[0, 1])
        place = augment._draw_operations(step).index("brightness")
        assert len(calls) == {0: 1, 1: 2, 2: 2}[place]
        seen.add(place)
    assert seen == {0, 1, 2}


def test_a_photometric_operation_between_moves_leaves_the_matrix_alone():
    """Pixels that are resampled twice still lie where the one matrix says."""
    size = (64, 80)
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[20:44, 28:52] = 1
    names = ["rotate", "brightness", "translate_x"]
    options = {"num_operations": 3, "cutout_area": (0.0, 0.0), "fill": (0, 0, 0)}
    augment = augmentation(operations=names, **options)
    between = 0
    for step in range(30):
        between += augment._draw_operations(step)[1] == "brightness"
        view = augment(mask.float().expand(1, 3, *size), step=step, positions=[0])
        moved = geometry.warp_map(mask, view.matrices[0], size, ignore=255) == 1
        bright = view.images[0, 0] > view.images.max() / 2
        assert (moved & bright).sum() / (moved | bright).sum() > 0.9
    assert between > 3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_the_matrix_says_where_the_pixels_went(step):
    size = (64, 80)
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[26:38, 30:48] = 1
    images = mask.float().expand(1, 3, *size)
    augment = augmentation(operations=MOVES, cutout_area=(0.0, 0.0), fill=(0, 0, 0))
    view = augment(images, step=step, positions=[0])
    moved = geometry.warp_map(mask, view.matrices[0], size, ignore=255)
    bright = view.images[0, 0] > 0.5
    both = ((moved == 1) & bright).sum()
    either = ((moved == 1) | bright).sum()
    assert both > 100 and both / either > 0.93
    ys, xs = bright.nonzero(as_tuple=True)
    found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).double()
    bounds = geometry.warp_boxes(torch.tensor([[30.0, 26, 48, 38]]), view.matrices[0])
    assert (found - geometry.clip_boxes(bounds, size)[0]).abs().max() < 2.5


def test_what_a_move_uncovers_has_the_mean_colour():
    fill = (0.2, 0.5, 0.8)
    augment = augmentation(
        operations=["rotate"], num_operations=1, cutout_area=(0.0, 0.0), fill=fill, flip_prob=0.0
    )
    images = torch.full((1, 3, 64, 64), 1.0)
    view = augment(images, step=2, positions=[0])
    valid = torch.zeros(64, 64, dtype=torch.uint8)
    moved = geometry.warp_map(valid, view.matrices[0], (64, 64), ignore=255)
    corner = view.images[0, :, 0, 0]
    assert moved[0, 0] == 255
    torch.testing.assert_close(corner, torch.tensor(fill))
    torch.testing.assert_close(view.images[0, :, 32, 32], torch.ones(3))


@pytest.mark.parametrize(
    "bad", [{"operations": ["invert", "blur"]}, {"operations": ["invert"], "num_operations": 2}]
)
def test_what_cannot_be_drawn_is_refused(bad):
    with pytest.raises(ValueError, match="cannot draw 2 operations"):
        augmentation(**bad)
