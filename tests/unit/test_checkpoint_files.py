"""Checkpoints on disks that fail, files that were cut off or changed, pickles that bite."""

import errno
import json
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mtfixmatch.engine import checkpoint as checkpoint_module
from mtfixmatch.engine.checkpoint import MultiTaskCheckpointer
from mtfixmatch.runtime.checkpoint_files import (
    INDEX,
    full_checkpoints,
    remove_old,
    start_anew,
    write_checkpoint,
)
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.files import remove_temporaries, write_atomically
from tests.support.disk_faults import (
    FAULTS,
    at_byte,
    at_call,
    bytes_of_a_save,
    checkpointer,
    contents,
    raising,
    resumed,
    save,
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_write_that_fails_at_any_byte_is_told_and_leaves_the_checkpoint_before(tmp_path, fault):
    folder = tmp_path / "run"
    total = bytes_of_a_save(tmp_path / "size")
    folder.mkdir()
    save(folder, 1)
    before = set(contents(folder))
    offsets = [total * i // 20 for i in range(20)]
    for offset in offsets:
        with at_byte(offset, raising(FAULTS[fault])), pytest.raises(InputError) as caught:
            save(folder, 2)
        message = str(caught.value)
        assert str(folder) in message and os.strerror(FAULTS[fault]) in message
        assert "cannot be written" in message and "\n" not in message
        assert not [name for name in contents(folder) if name.endswith(".tmp")]
        assert resumed(folder) == 1
        # Only a checkpoint that is whole may be there beside the one before.
        assert set(contents(folder)) - before <= {"model_0000002.pth"}
    save(folder, 2)
    assert resumed(folder) == 2


@pytest.mark.parametrize("name, calls", [("fsync", 6), ("replace", 3)])
def test_no_failing_call_is_passed_over(tmp_path, name, calls):
    save(tmp_path, 1)
    for number in range(calls):
        with at_call(name, number, raising(errno.EIO)), pytest.raises(InputError, match="output"):
            save(tmp_path, 2)
        assert not [x for x in contents(tmp_path) if x.endswith(".tmp")]
        # The last fsync is that of the folder, when last_checkpoint has moved on already.
        assert resumed(tmp_path) == (2 if name == "fsync" and number == calls - 1 else 1)
        write_atomically(tmp_path / "last_checkpoint", "model_0000001.pth")
    with at_call(name, calls, raising(errno.EIO)):
        save(tmp_path, 2)


def warnings_of(monkeypatch):
    told = []
    monkeypatch.setattr(checkpoint_module.logger, "warning", lambda text, *a: told.append(text % a))
    return told


def test_a_checkpoint_cut_off_anywhere_gives_way_to_the_one_before(tmp_path, monkeypatch):
    told = warnings_of(monkeypatch)
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = tmp_path / "model_0000002.pth"
    whole = newest.read_bytes()
    assert resumed(tmp_path) == 2 and not told
    for i in range(50):
        newest.write_bytes(whole[: len(whole) * i // 50])
        assert resumed(tmp_path) == 1
        assert len(told) == 1
        assert "Resuming from model_0000001.pth" in told[0]
        assert str(newest) in told[0] and f"{len(whole) * i // 50} bytes of {len(whole)}" in told[0]
        told.clear()
    newest.write_bytes(whole)
    assert resumed(tmp_path) == 2


def test_a_changed_byte_is_seen(tmp_path, monkeypatch):
    told = warnings_of(monkeypatch)
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = tmp_path / "model_0000002.pth"
    content = bytearray(newest.read_bytes())
    content[5000] ^= 1
    newest.write_bytes(content)
    assert resumed(tmp_path) == 1
    assert "sha256" in told[0]
    with pytest.raises(InputError, match="0000002.pth is damaged.*sha256"):
        checkpointer(tmp_path).load(str(newest))


def test_without_any_whole_checkpoint_all_are_named(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
        (tmp_path / f"model_{step:07d}.pth").write_bytes(b"x")
    with pytest.raises(InputError, match=r"0000002\.pth.*0000001\.pth.*without --resume|anew"):
        resumed(tmp_path)


def test_a_missing_checkpoint_gives_way_too(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    os.remove(tmp_path / "model_0000002.pth")
    assert resumed(tmp_path) == 1


def test_a_file_of_ones_own_loads_unchecked(tmp_path):
    torch.save(
        {"model": {"weight": torch.ones(60, 60), "bias": torch.ones(60)}}, tmp_path / "x.pth"
    )
    found = checkpointer(tmp_path)
    found.load(str(tmp_path / "x.pth"))
    assert (found.model.weight == 1).all()


def test_a_file_that_is_written_again_is_known_at_any_time(tmp_path):
    path = str(tmp_path / "model_best.pth")
    write_checkpoint({"model": {"a": torch.zeros(9)}}, path)
    before = contents(tmp_path)["model_best.pth"]

    class Killed(BaseException):
        pass

    def die():
        raise Killed

    for number in range(2):  # before the index is renamed; before the checkpoint is
        with at_call("replace", number, die), pytest.raises(Killed):
            write_checkpoint({"model": {"a": torch.ones(9)}}, path)
        assert contents(tmp_path)["model_best.pth"] == before
        assert checkpoint_module.damage_of(path) == ""
    write_checkpoint({"model": {"a": torch.ones(9)}}, path)
    assert checkpoint_module.damage_of(path) == ""
    assert contents(tmp_path)["model_best.pth"] != before


def test_the_newest_stay_and_others_files_too(tmp_path):
    for name in ("model_best.pth", "model_final.pth"):
        write_checkpoint({"model": {}}, str(tmp_path / name))
    (tmp_path / "notes.tmp").write_text("mine")
    (tmp_path / "model_0000009.pth").write_text("of an earlier run")
    (tmp_path / "model_0000002.pth.0123abcd.tmp").write_text("half")
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
        remove_old(str(tmp_path), 2)
    names = {"model_0000003.pth", "model_0000004.pth", "model_best.pth", "model_final.pth"}
    assert {x for x in contents(tmp_path) if x.endswith(".pth")} == names
    assert "notes.tmp" in contents(tmp_path) and not list(tmp_path.glob("*.pth.*"))
    assert full_checkpoints(str(tmp_path)) == ["model_0000004.pth", "model_0000003.pth"]
    save(tmp_path, 5)
    assert set(json.loads((tmp_path / INDEX).read_text())) == names | {"model_0000005.pth"}


def test_after_a_step_back_the_damaged_checkpoint_is_no_longer_among_the_newest(tmp_path):
    for step in (10, 20):
        save(tmp_path, step)
    (tmp_path / "model_0000020.pth").write_bytes(b"")
    assert resumed(tmp_path) == 10
    save(tmp_path, 15)
    remove_old(str(tmp_path), 2)
    assert {x for x in contents(tmp_path) if x.endswith(".pth")} == {
        "model_0000010.pth",
        "model_0000015.pth",
    }
    assert resumed(tmp_path) == 15


def test_a_new_start_forgets_the_earlier_run(tmp_path):
    save(tmp_path, 30)
    start_anew(str(tmp_path))
    found = checkpointer(tmp_path)
    assert not found.has_checkpoint()
    save(tmp_path, 10)
    (tmp_path / "model_0000010.pth").write_bytes(b"")
    with pytest.raises(InputError, match="anew"):
        resumed(tmp_path)


def test_an_index_that_is_no_json_is_named(tmp_path):
    save(tmp_path, 1)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(InputError, match=INDEX):
        resumed(tmp_path)


def test_small_files_are_whole_or_as_they_were(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, "old")
    for offset in range(4):
        fault = at_byte(offset, raising(errno.ENOSPC))
        with fault, pytest.raises(InputError, match=r"results\.json cannot be written: No space"):
            write_atomically(path, "fresh")
        assert contents(tmp_path) == {"results.json": b"old"}
    write_atomically(path, b"\xff")
    assert contents(tmp_path) == {"results.json": b"\xff"}
    (tmp_path / "results.json.89abcdef.tmp").write_text("half")
    remove_temporaries(str(tmp_path))
    assert contents(tmp_path) == {"results.json": b"\xff"}


# Files that can run code


class Bite:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def bitten(path, mark):
    content = {"model": {"weight": Bite(mark)}, "__author__": "somebody"}
    if path.suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("name", ["x.pkl", "x.pth"])
def test_a_file_that_runs_code_is_refused_and_runs_nothing(tmp_path, name):
    mark, path = tmp_path / "mark", tmp_path / name
    bitten(path, mark)
    with pytest.raises(InputError) as caught:
        checkpointer(tmp_path).load(str(path))
    assert not mark.exists()
    message = str(caught.value)
    assert "posix.system" in message and "MODEL.TRUST_PICKLE" in message and "\n" not in message
    trusting = MultiTaskCheckpointer(torch.nn.Linear(60, 60), trust=True)
    with pytest.raises((InputError, AttributeError, ValueError)):  # a status is no weight
        trusting.load(str(path))
    assert mark.exists()


def test_a_pycls_file_is_not_read_unguarded(tmp_path):
    torch.save({"model_state": {}}, tmp_path / "x.pyth")
    with pytest.raises(InputError, match=r"x\.pyth.*TRUST_PICKLE"):
        checkpointer(tmp_path).load(str(tmp_path / "x.pyth"))


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("kind", ["detectron2", "caffe2", "detectron1"])
def test_the_model_zoos_pickles_load(tmp_path, protocol, kind):
    weight = np.random.default_rng(0).random((60, 60)).astype(np.float32)
    weights = OrderedDict(weight=weight, bias=np.full(60, 2, np.float32))
    weights["weight_momentum"] = weight
    content = {
        "detectron2": {"model": weights, "__author__": "a", "lr": np.float64(0.1)},
        "caffe2": weights,
        "detectron1": {"blobs": weights},
    }[kind]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    found = checkpointer(tmp_path)
    loaded = found._load_file(str(tmp_path / "x.pkl"))
    assert np.array_equal(loaded["model"]["weight"], weight)
    assert (loaded["model"]["bias"] == 2).all()
    assert ("weight_momentum" in loaded["model"]) == (kind == "detectron2")
    assert loaded.get("matching_heuristics", False) == (kind != "detectron2")


@pytest.mark.parametrize("name", ["x.pkl", "x.pth"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x04]", b"PK\x03\x04"])
def test_what_is_no_checkpoint_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*cannot be read") as caught:
        checkpointer(tmp_path).load(str(tmp_path / name))
    assert "\n" not in str(caught.value)
