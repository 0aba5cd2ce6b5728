import math

import numpy as np
import pytest
import torch
from detectron2.data.transforms import HFlipTransform
from hypothesis import given, settings
from hypothesis import strategies as st

from mtfixmatch.augmentation import geometry
from mtfixmatch.street.scene import draw_scene

SIZE = (96, 110)  # height, width
FILL = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)

sides = st.integers(6, 32)
angles = st.floats(-30, 30)
tilts = st.floats(-17, 17)
shifts = st.floats(-14, 14)
flips = st.booleans()
modest = settings(max_examples=60, deadline=None)


def rectangle(box, size=SIZE):
    x0, y0, x1, y1 = box
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def extent(mask):
    """(1, 4) box of the pixels that are 1."""
    ys, xs = np.nonzero(mask.numpy() == 1)
    return torch.tensor([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]).double()


def as_boxes(box):
    return torch.tensor([box]).double()


@st.composite
def central_boxes(draw):
    x0, y0 = draw(st.integers(36, 46)), draw(st.integers(30, 40))
    return x0, y0, x0 + draw(sides), y0 + draw(sides)


@st.composite
def matrices(draw):
    """Rotation, both shears, a shift and a flip, composed; nothing central leaves the frame."""
    matrix = geometry.rotation(draw(angles)) @ geometry.shear(draw(tilts), 0)
    matrix = geometry.about_center(matrix @ geometry.shear(0, draw(tilts)), SIZE)
    matrix = geometry.translation(draw(shifts), draw(shifts)) @ matrix
    return geometry.horizontal_flip(SIZE[1]) @ matrix if draw(flips) else matrix


@modest
@given(central_boxes(), matrices())
def test_bounds_contain_the_moved_mask_and_are_tight(box, matrix):
    moved = extent(geometry.warp_map(rectangle(box), matrix, SIZE, ignore=0))
    bounds = geometry.warp_boxes(as_boxes(box), matrix)
    outside = (moved - bounds) * torch.tensor([1, 1, -1, -1])  # positive: the mask is inside
    assert outside.min() > -1
    # Sharp corners lose their tips to the pixel grid, no more.
    assert outside.max() < 2.5


@modest
@given(
    st.tuples(st.integers(0, 20), st.integers(0, 20), sides, sides),
    st.integers(-20, 20),
    st.integers(-20, 20),
    flips,
)
def test_flips_and_whole_shifts_give_the_very_extent(corner, x, y, flip):
    size = (40, 51)
    box = (corner[0], corner[1], min(corner[0] + corner[2], 51), min(corner[1] + corner[3], 40))
    matrix = geometry.translation(x, y)
    if flip:
        matrix = geometry.horizontal_flip(size[1]) @ matrix
    mask = geometry.warp_map(rectangle(box, size), matrix, size, ignore=0)
    bounds = geometry.clip_boxes(geometry.warp_boxes(as_boxes(box), matrix), size)
    if geometry.box_areas(bounds) > 0:
        assert torch.equal(bounds, extent(mask))
    else:
        assert not mask.any()


def test_a_flipped_box_by_hand():
    flip = geometry.horizontal_flip(100)
    found = geometry.warp_boxes(torch.tensor([[44.0, 3, 56, 7], [0, 0, 10, 5]]), flip)
    assert found.tolist() == [[44, 3, 56, 7], [90, 0, 100, 5]]


@modest
@given(central_boxes())
def test_flip_is_that_of_detectron2(box):
    expected = HFlipTransform(SIZE[1]).apply_box(np.array([box], dtype=float))
    found = geometry.warp_boxes(as_boxes(box), geometry.horizontal_flip(SIZE[1]))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_flip_and_quarter_turn_of_images_and_maps():
    image = torch.randint(0, 256, (1, 3, 8, 8)).float()
    flip = geometry.horizontal_flip(8)
    turn = geometry.about_center(geometry.rotation(90), (8, 8))
    for matrix, expected in [
        (flip, image.flip(3)),
        (turn, image.rot90(-1, (2, 3))),  # positive: clockwise on the screen
        (turn @ flip, image.flip(3).rot90(-1, (2, 3))),
    ]:
        found = geometry.warp(image, matrix[None], (8, 8), mode="bilinear", fill=FILL)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
        label_map = image[0, 0].to(torch.uint8)
        moved = geometry.warp_map(label_map, matrix, (8, 8), ignore=255)
        assert torch.equal(moved, expected[0, 0].to(torch.uint8))


def test_points_move_as_the_names_say():
    def move(matrix):
        x, y, one = (matrix @ torch.tensor([2.0, 10.0, 1.0], dtype=torch.float64)).tolist()
        assert one == 1
        return pytest.approx((x, y))

    assert move(geometry.translation(3, -4)) == (5, 6)
    assert move(geometry.scaling(2, 0.5)) == (4, 5)
    assert move(geometry.rotation(90)) == (-10, 2)
    assert move(geometry.shear(45, 0)) == (12, 10)
    assert move(geometry.shear(0, -45)) == (2, 8)
    assert move(geometry.horizontal_flip(20)) == (18, 10)
    # About the centre (10, 5) of 20 x 10 pixels, the point lies at (-8, 5).
    assert move(geometry.about_center(geometry.rotation(90), (10, 20))) == (5, -3)
    assert move(geometry.about_center(geometry.scaling(2, 2), (10, 20))) == (-6, 15)


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (5, 130)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_identity_moves_nothing(size, mode):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=generator)
    still = geometry.identity()
    both = torch.stack([still, geometry.horizontal_flip(size[1])])
    found = geometry.warp(images, both, size, mode=mode, fill=FILL)
    assert torch.equal(found[0], images[0])
    assert not torch.equal(found[1], images[1])
    label_map = torch.randint(0, 256, size, generator=generator).to(torch.uint8)
    assert torch.equal(geometry.warp_map(label_map, still, size, ignore=255), label_map)
    boxes = torch.rand(5, 4, generator=generator).cumsum(1) * 10
    torch.testing.assert_close(geometry.warp_boxes(boxes, still), boxes)


@modest
@given(matrices(), matrices(), st.floats(-50, 150), st.floats(-50, 150))
def test_a_product_of_matrices_moves_points_twice(first, second, x, y):
    point = as_boxes((x, y, x, y))
    twice = geometry.warp_boxes(geometry.warp_boxes(point, first), second)
    torch.testing.assert_close(geometry.warp_boxes(point, second @ first), twice)


@modest
@given(central_boxes(), matrices(), matrices(), shifts, flips)
def test_a_product_of_matrices_moves_boxes_twice(box, first, second, shift, flip):
    boxes = as_boxes(box)
    upright = geometry.translation(shift, 2 * shift) @ geometry.scaling(-1 if flip else 1, 1.5)
    for a, b in ((upright, second), (first, upright)):
        twice = geometry.warp_boxes(geometry.warp_boxes(boxes, a), b)
        torch.testing.assert_close(geometry.warp_boxes(boxes, b @ a), twice)
    # Bounds of bounds can only grow.
    grown = geometry.warp_boxes(geometry.warp_boxes(boxes, first), second)
    once = geometry.warp_boxes(boxes, second @ first)
    assert (once[:, :2] >= grown[:, :2] - 1e-9).all() and (once[:, 2:] <= grown[:, 2:] + 1e-9).all()


@modest
@given(matrices())
def test_maps_get_no_new_class_and_the_outside_is_ignored(matrix):
    label_map = torch.tensor([[3, 200], [17, 90]], dtype=torch.uint8)
    label_map = label_map.repeat_interleave(48, 0).repeat_interleave(55, 1)
    moved = geometry.warp_map(label_map, matrix, SIZE, ignore=255)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {3, 17, 90, 200, 255}
    inverse = torch.linalg.inv(matrix)
    ys, xs = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    centers = torch.stack([xs + 0.5, ys + 0.5, torch.ones(SIZE)], dim=-1).double()
    x, y, _ = (centers @ inverse.T).unbind(-1)
    outside = torch.stack([-x, x - SIZE[1], -y, y - SIZE[0]]).amax(0)
    assert (moved[outside > 1e-3] == 255).all()
    assert (moved[outside < -1e-3] != 255).all()


def test_what_leaves_the_frame_by_hand():
    label_map = torch.arange(12, dtype=torch.uint8).view(3, 4)
    moved = geometry.warp_map(label_map, geometry.translation(2, -1), (3, 4), ignore=255)
    assert moved.tolist() == [[255, 255, 4, 5], [255, 255, 8, 9], [255, 255, 255, 255]]
    other = geometry.warp_map(label_map, geometry.identity(), (2, 5), ignore=7)
    assert other.tolist() == [[0, 1, 2, 3, 7], [4, 5, 6, 7, 7]]


@modest
@given(st.integers(-9, 9), st.integers(-9, 9))
def test_whole_shifts_of_images_are_exact(x, y):
    generator = torch.Generator().manual_seed(x + 100 * y)
    image = torch.randint(0, 256, (1, 3, 20, 30), generator=generator).float()
    fill = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1)
    matrix = geometry.translation(x, y)[None]
    found = geometry.warp(image, matrix, (20, 30), mode="bilinear", fill=fill)
    expected = fill.expand(1, 3, 60, 70).clone()
    expected[:, :, 20 + y : 40 + y, 20 + x : 50 + x] = image
    torch.testing.assert_close(found, expected[:, :, 20:40, 20:50], atol=2e-3, rtol=0)


def test_half_a_pixel_is_the_mean_of_two():
    image = torch.tensor([0.0, 4.0, 10.0]).view(1, 1, 1, 3)
    matrix = geometry.translation(0.5, 0)[None]
    found = geometry.warp(image, matrix, (1, 3), mode="bilinear", fill=torch.tensor(8.0))
    torch.testing.assert_close(found.flatten(), torch.tensor([4.0, 2.0, 7.0]))


@modest
@given(central_boxes(), matrices())
def test_bounds_of_the_ellipse_lie_inside_those_of_the_box(box, matrix):
    boxes = as_boxes(box)
    outer = geometry.warp_boxes(boxes, matrix)
    inner = geometry.warp_boxes(boxes, matrix, shape="ellipse")
    assert (inner[:, :2] >= outer[:, :2] - 1e-9).all()
    assert (inner[:, 2:] <= outer[:, 2:] + 1e-9).all()
    torch.testing.assert_close(inner[:, :2] + inner[:, 2:], outer[:, :2] + outer[:, 2:])
    upright = geometry.horizontal_flip(SIZE[1]) @ geometry.scaling(0.7, 1.3)
    torch.testing.assert_close(
        geometry.warp_boxes(boxes, upright, shape="ellipse"), geometry.warp_boxes(boxes, upright)
    )


@pytest.mark.parametrize("degrees", [30, -30])
def test_bounds_at_30_degrees_by_hand(degrees):
    square, long = as_boxes((-1, -1, 1, 1)), as_boxes((-2, -1, 2, 1))
    turn = geometry.rotation(degrees)
    c, s = math.sqrt(3) / 2, 0.5

    def half(boxes, shape):
        return pytest.approx(geometry.warp_boxes(boxes, turn, shape=shape)[0, 2:].tolist())

    assert half(square, "box") == [c + s, c + s]
    assert half(long, "box") == [2 * c + s, 2 * s + c]
    assert half(square, "ellipse") == [1, 1]
    assert half(long, "ellipse") == [math.sqrt(4 * c**2 + s**2), math.sqrt(4 * s**2 + c**2)]


def test_areas_against_moved_masks_of_objects():
    rng = np.random.default_rng(0)
    ratios = []
    for i in range(10):
        ids = draw_scene(np.random.default_rng([0, 0, i]), 512, 256).ids
        for value in np.unique(ids[ids >= 1000]):
            ys, xs = np.nonzero(ids == value)
            whole = (ids == value)[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            mask = torch.from_numpy(whole.astype(np.uint8))
            height, width = mask.shape
            turn = geometry.about_center(geometry.rotation(rng.uniform(-30, 30)), mask.shape)
            matrix = geometry.translation(height, width) @ turn
            frame = (height + 2 * width, width + 2 * height)
            moved = extent(geometry.warp_map(mask, matrix, frame, ignore=0))
            bounds = torch.cat(
                [geometry.warp_boxes(extent(mask), matrix, shape=s) for s in ("box", "ellipse")]
            )
            ratios.append(geometry.box_areas(bounds) / geometry.box_areas(moved))
    assert len(ratios) > 30
    box, ellipse = torch.stack(ratios).mean(0).tolist()
    assert 1.25 < box < 1.45
    assert 0.85 < ellipse < 0.99


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="'box' or 'ellipse', not 'circle'"):
        geometry.warp_boxes(as_boxes((0, 0, 1, 1)), geometry.identity(), shape="circle")


def test_clip_and_areas():
    boxes = torch.tensor([[-5.0, 2, 8, 30], [3, 4, 5, 6], [-9, -9, -2, -1], [25, 0, 40, 5]])
    clipped = geometry.clip_boxes(boxes, (10, 20))
    assert clipped.tolist() == [[0, 2, 8, 10], [3, 4, 5, 6], [0, 0, 0, 0], [20, 0, 20, 5]]
    assert geometry.box_areas(clipped).tolist() == [64, 4, 0, 0]
    assert geometry.box_areas(torch.tensor([[4.0, 4, 1, 9], [4, 4, 1, 1]])).tolist() == [0, 0]


def test_no_boxes():
    none = torch.zeros(0, 4)
    for shape in ("box", "ellipse"):
        assert geometry.warp_boxes(none, geometry.rotation(10), shape=shape).shape == (0, 4)
    assert geometry.clip_boxes(none, (3, 3)).shape == (0, 4)
    assert geometry.box_areas(none).shape == (0,)


# The faster ways for images of bytes and for label maps, against `warp`


def upright_matrices(rng, source, size):
    """Scales and shifts as in a weak view, some with ties between two pixels, some flipped."""
    for i in range(40):
        scale = (
            rng.choice([0.25, 0.5, 2 / 3, 1.0, 1.5, 2.0]) if i % 4 == 0 else rng.uniform(0.4, 2.2)
        )
        other = rng.uniform(0.4, 2.2) if i % 5 == 0 else scale
        x, y = (rng.integers(-side, side + 1) for side in (source[1], source[0]))
        matrix = geometry.translation(x / 2, y / 2) @ geometry.scaling(scale, other)
        if i % 2:
            matrix = geometry.horizontal_flip(size[1]) @ matrix
        yield (
            geometry.translation(0, size[0]) @ geometry.scaling(1, -1) @ matrix
            if i % 7 == 0
            else matrix
        )
    if source == size:
        yield geometry.identity()


SIZES = [((96, 110), (64, 64)), ((1, 1), (8, 9)), ((333, 517), (200, 31)), ((64, 64), (64, 64))]


@pytest.mark.parametrize(("source", "size"), SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_a_map_without_rotation_is_warped_as_by_grid_sample(source, size, dtype):
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 255, source)).to(dtype)
    for matrix in upright_matrices(rng, source, size):
        warped = geometry.warp_map(labels, matrix, size, ignore=255)
        fill = torch.tensor(255.0)
        images = labels[None, None].float()
        plain = geometry.warp(images, matrix[None], size, mode="nearest", fill=fill)
        assert warped.dtype == dtype and torch.equal(warped, plain[0, 0].to(dtype))


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_bytes_are_warped_within_a_grey_level(source, size):
    rng = np.random.default_rng(0)
    pixels = 255 * rng.integers(0, 2, (*source, 3), dtype=np.uint8)  # the largest contrasts
    images = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float()
    turned = geometry.about_center(geometry.rotation(13) @ geometry.shear(7, 3), source)
    for matrix in (*upright_matrices(rng, source, size), turned):
        warped = geometry.warp_pixels(pixels, matrix, size, (123.675, 116.28, 103.53))
        fill = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
        plain = geometry.warp(images, matrix[None], size, mode="bilinear", fill=fill)[0]
        assert warped.shape == (*size, 3) and warped.dtype == np.uint8
        assert np.abs(warped.transpose(2, 0, 1) - plain.round().numpy()).max() <= 1


def test_bytes_that_do_not_move_are_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    assert np.array_equal(
        geometry.warp_pixels(pixels, geometry.identity(), (30, 41), (0,) * 3), pixels
    )
    shift, flip = geometry.translation(3, -2), geometry.horizontal_flip(41)
    warped = geometry.warp_pixels(pixels, flip @ shift, (30, 41), (9.0, 20.0, 30.0))
    assert np.array_equal(warped[:28, :38], pixels[2:, 37::-1])
    assert (warped[28:] == [9, 20, 30]).all() and (warped[:, 38:] == [9, 20, 30]).all()
