import numpy as np
import pytest

from mtfixmatch.formats.shapes import PackedShapes
from tests.support.fuzz.maps import SAYS, MapFolder, map_complaints, same


@pytest.mark.parametrize("name", SAYS)
def test_corrupt_labels_are_read_as_they_are_or_named(name, tmp_path):
    assert map_complaints(name, count=540, seed=0, folder=tmp_path) == []


@pytest.mark.parametrize("name", SAYS)
def test_sound_labels_are_read(name, tmp_path):
    """Otherwise the comparisons above would prove nothing."""
    data = MapFolder(tmp_path, name)
    said = SAYS[name](data.content, tmp_path)
    assert all(same(data.before[x], said[x]) for x in said) and data.before["c.png"] is None
    assert {1, 2} <= set(np.unique(data.before["a.png"]).tolist())
    assert data.complaint(data.content) == ""


@pytest.mark.parametrize("name", ["coco", "labelme"])
def test_complaints_name_what_is_wrong(name, tmp_path, monkeypatch):
    data = MapFolder(tmp_path, name)
    pack = PackedShapes.pack
    monkeypatch.setattr(PackedShapes, "pack", lambda rows: pack(rows[::-1]))
    assert "was read wrongly, without a note" in data.complaint(data.content)
