import numpy as np
import pytest

from mtfixmatch.tasks.box_drawing import draw_boxes

RED, GREEN = (255, 0, 0), (0, 255, 0)


def drawn(*boxes, names=None, size=(60, 90), colors=None):
    image = np.full((*size, 3), 9, np.uint8)
    colors = colors or [RED] * len(boxes)
    return draw_boxes(
        image, np.array(boxes, float).reshape(-1, 4), names or [""] * len(boxes), colors
    )


def test_the_border_of_a_box_is_inside_it():
    picture = drawn([10, 20, 14, 23])
    is_red = (picture == RED).all(axis=2)
    expected = np.zeros((60, 90), bool)
    expected[20:23, 10:14] = True
    expected[21, 11:13] = False
    assert np.array_equal(is_red, expected)
    assert (picture[~is_red] == 9).all()


def test_a_picture_without_boxes_is_as_before():
    assert (drawn() == 9).all()


@pytest.mark.parametrize("box", [[10, 20, 10, 20], [10.4, 20.4, 10.6, 20.6]])
def test_a_box_without_an_area_is_seen(box):
    is_red = (drawn(box) == RED).all(axis=2)
    assert is_red[20, 10] and is_red.sum() <= 4


def test_what_is_outside_of_the_picture_is_not_drawn():
    is_red = (drawn([-5, -5, 3, 200]) == RED).all(axis=2)
    assert is_red[:, 2].all() and is_red.sum() == 60


def test_small_boxes_are_drawn_over_large_ones():
    boxes = [[20, 20, 30, 30], [10, 20, 40, 50]]
    picture = drawn(*boxes, colors=[GREEN, RED])
    assert (picture[20, 20:30] == GREEN).all() and (picture[20, 10:20] == RED).all()


@pytest.mark.parametrize("top", [40, 3])
def test_a_name_is_above_its_box_or_inside_if_there_is_no_room(top):
    picture = drawn([10, top, 80, top + 15], names=["Straße"], size=(80, 90))
    rows = np.flatnonzero((picture == 0).all(axis=2).any(axis=1))
    assert len(rows) > 5
    assert rows.max() < top if top == 40 else rows.min() == top
    assert (picture == 0).all(axis=2)[:, :10].sum() == 0
    letters = (picture[..., 0] > 128) & (picture[..., 1] < 60)
    assert letters[rows.min() : rows.max() + 1].sum() > 20


def test_lines_and_names_grow_with_the_picture():
    def red(size):
        picture = drawn([50, 50, 250, 250], size=(size, size))
        return (picture == RED).all(axis=2).sum()

    assert red(300) == 4 * 199  # a line of one pixel around 200 x 200
    assert red(900) == 200**2 - 194**2
