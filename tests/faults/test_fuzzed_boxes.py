import pytest

from mtfixmatch.formats import label_files
from tests.support.fuzz.boxes import SAYS, BoxFolder, box_complaints


@pytest.mark.parametrize("name", SAYS)
def test_corrupt_labels_are_read_as_they_are_or_named(name, tmp_path):
    assert box_complaints(name, count=540, seed=0, folder=tmp_path) == []


@pytest.mark.parametrize("name", SAYS)
def test_sound_labels_are_read(name, tmp_path):
    """Otherwise the comparisons above would prove nothing."""
    data = BoxFolder(tmp_path, name)
    assert SAYS[name](data.content) == data.expected["a.png"]
    assert len(data.expected["a.png"]) == 3 and len(data.expected["b.png"]) == 1
    assert data.expected["c.png"] is None
    assert data.complaint(data.content) == ""


@pytest.mark.parametrize("name", SAYS)
def test_complaints_name_what_is_wrong(name, tmp_path, monkeypatch):
    data = BoxFolder(tmp_path, name)
    add = label_files.LabelFile.fault
    monkeypatch.setattr(label_files.LabelFile, "fault", lambda self, *args: None)
    wrong = data.content.replace(b"0.406250", b"x").replace(b"35", b"x").replace(b"person", b"")
    assert "was read wrongly, without a note" in data.complaint(wrong)
    monkeypatch.setattr(label_files.LabelFile, "fault", add)
    assert data.complaint(wrong) == ""

    def shifted(label, ids, names_in):
        return [[ids[box[0]], *box[1:4], 60.0, *box[5:]] for box in label.boxes]

    monkeypatch.setattr(label_files, "_set_classes", shifted)
    assert "changed the labels of another image" in data.complaint(data.content)
