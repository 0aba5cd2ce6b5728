"""The picture of which images are labeled for what."""

import itertools

import numpy as np
import pytest
from PIL import Image

from mtfixmatch.data.partial_labels import hide_labels
from mtfixmatch.engine.label_sets import (
    MIN_SHARE,
    LabelSets,
    draw_label_sets,
    group_widths,
    label_figure,
    label_sets,
)

KEYS = {"boxes": "a", "maps": "b"}
NONE = (False, False)


def make_records(count):
    return [{"file_name": f"{i}.png", "image_id": str(i), "a": [], "b": ""} for i in range(count)]


def subsets(count, mode, **counts):
    return label_sets("x", hide_labels(make_records(count), counts, mode=mode, seed=0), KEYS)


def test_the_settings_of_the_paper():
    """(a), (b), (d): nested subsets; a hidden label is none. All labeled images stand first."""
    a, b, d = (subsets(1200, "nested", a=x, b=y) for x, y in ((-1, 8), (8, 8), (32, 8)))
    assert list(a.groups.items()) == [((True, False), 1192), ((True, True), 8)]
    assert list(b.groups.items()) == [((True, True), 8), (NONE, 1192)]
    assert list(d.groups.items()) == [((True, False), 24), ((True, True), 8), (NONE, 1168)]
    # (c): 300 and 600 of 1,200 images drawn independently have about 150 in common.
    c = subsets(1200, "random", a=300, b=600)
    order = [(True, False), (True, True), (False, True), NONE]
    assert list(c.groups) == order and c.num_images == 1200
    assert c.groups[True, True] + c.groups[True, False] == 300
    assert c.groups[True, True] + c.groups[False, True] == 600
    assert 100 < c.groups[True, True] < 200


def test_neighbors_differ_in_one_task():
    """In all combinations of three tasks; those without a label come last."""
    records = [
        {key: None for key, labeled in zip("abc", labels, strict=True) if labeled}
        for labels in itertools.product([True, False], repeat=3)
    ]
    order = list(label_sets("x", records, {"x": "a", "y": "b", "z": "c"}).groups)
    assert len(order) == 8 and order[-1] == (False, False, False)
    for before, after in itertools.pairwise(order):
        assert sum(x != y for x, y in zip(before, after, strict=True)) == 1


@pytest.mark.parametrize("counts", [[8, 1192], [66881, 2972, 3574, 143], [1] * 16, [5], [1, 10**6]])
def test_widths_of_the_groups(counts):
    widths = group_widths(counts)
    assert widths.sum() == pytest.approx(1)
    assert min(widths) > min(MIN_SHARE, 0.8 / len(counts)) - 1e-9
    # Beyond the minimum they are in proportion: 0.85 * 8 / 1200 for the first.
    extra = widths - min(MIN_SHARE, 0.8 / len(counts))
    assert extra * sum(counts) == pytest.approx(np.array(counts) * extra.sum())


def test_the_numbers_in_the_picture():
    many = subsets(70_000, "nested", a=-1, b=6546)
    few = subsets(1200, "nested", a=32, b=8)
    first, second = label_figure([many, few]).axes
    assert [text.get_text() for text in first.texts] == ["63,454", "6,546"] * 2
    assert [text.get_text() for text in second.texts] == ["24", "8", "1,168"] * 2
    names = [[label.get_text() for label in axis.get_yticklabels()] for axis in (first, second)]
    assert names == [["boxes: 70,000", "maps: 6,546"], ["boxes: 32", "maps: 8"]]
    assert second.get_title(loc="left") == "x: 1,200 images"


def test_the_numbers_fit_into_their_groups():
    """Numbers of five digits in groups of the least width."""
    groups = {(True, True): 10_000, (True, False): 10_000, (False, False): 980_000}
    figure = label_figure([LabelSets("x", ["boxes", "maps"], groups)])
    figure.draw_without_rendering()
    (axis,) = figure.axes
    for text, bar in zip(axis.texts, axis.patches, strict=True):
        inside, outside = text.get_window_extent(), bar.get_window_extent()
        assert outside.x0 < inside.x0 and inside.x1 < outside.x1


def test_the_bars_are_colored_where_labeled(tmp_path):
    """Two of three groups, each with a minimum of .075, have boxes, and one of them has maps."""
    draw_label_sets([subsets(1200, "nested", a=32, b=8)], tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    shares = []
    grey = (pixels == 230).all(axis=2)
    for color in ((31, 119, 180), (255, 127, 14)):
        colored = (pixels == color).all(axis=2)
        row = np.flatnonzero(colored.any(axis=1))[2]  # near the top of the bar, above the text
        shares.append(colored[row].sum() / (colored[row].sum() + grey[row].sum()))
    assert shares[0] == pytest.approx(0.15 + 0.775 * 32 / 1200, abs=0.01)
    assert shares[1] == pytest.approx(0.075 + 0.775 * 8 / 1200, abs=0.01)
