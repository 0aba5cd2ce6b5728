"""The folder of a new dataset: whole or not there, and nothing of killed runs."""

import errno
import fcntl
import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest

from mtfixmatch.inference import output_folder
from mtfixmatch.inference.output_folder import new_folder
from mtfixmatch.utils.errors import InputError
from mtfixmatch.utils.files import remove_temporaries, temporary_path

LEFT = re.compile(r"new\.[0-9a-f]{8}\.tmp")


def start(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def _die(output):
    with new_folder(output) as folder:
        with open(os.path.join(folder, "map.png"), "wb") as file:
            file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_next_run_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        output_folder.logger, "warning", lambda text, *args: told.append(text % args)
    )
    output = str(tmp_path / "new")
    process = start(_die, output)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert LEFT.fullmatch(left) and "map.png" in os.listdir(tmp_path / left)
    kept = {"newer.01234567.tmp", "new.0123.tmp", "new.mine.tmp"}  # of others
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / "new.01234567.tmp").write_text("a file")
    with new_folder(output) as folder, open(os.path.join(folder, "x"), "w") as file:
        file.write("x")
    assert set(os.listdir(tmp_path)) == {"new", "new.01234567.tmp", *kept}
    assert os.listdir(output) == ["x"]
    assert told == [f"{tmp_path / left}: a run left it that did not end; removed"]


def _hold(output, ready, leave):
    with new_folder(output):
        ready.set()
        leave.wait(60)


def test_the_folder_of_a_running_process_stays(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    output = str(tmp_path / "new")
    holder = start(_hold, output, ready, leave)
    assert ready.wait(60)
    (left,) = os.listdir(tmp_path)
    with pytest.raises(InputError) as error, new_folder(output):
        pass
    assert str(error.value).startswith(
        f"--output {tmp_path / left} is in use by process {holder.pid} on "
    )
    assert str(error.value).endswith(": wait for it, or set another --output")
    assert os.listdir(tmp_path) == [left]
    leave.set()
    holder.join()
    assert os.listdir(tmp_path) == ["new"]


def test_without_locks_a_leftover_is_named(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    told = []
    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(
        output_folder.logger, "warning", lambda text, *args: told.append(text % args)
    )
    left = tmp_path / "new.01234567.tmp"
    left.mkdir()
    with new_folder(str(tmp_path / "new")):
        pass
    assert told == [
        f"{left}: a run left it that did not end; remove it if no other run writes there"
    ]
    assert left.is_dir() and os.listdir(tmp_path / "new") == []


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), new_folder(str(tmp_path / "new")) as folder:
        open(os.path.join(folder, "x"), "w").close()
        raise KeyError
    assert not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"^--output .*file/new.* cannot be written: Not a dir"),
        new_folder(str(tmp_path / "file" / "new")),
    ):
        pass


def test_a_run_in_the_folder_above_leaves_a_folder_that_is_being_made(tmp_path):
    folder, file = (Path(temporary_path(str(tmp_path / x))) for x in ("labeled", "results.json"))
    folder.mkdir()
    file.touch()
    remove_temporaries(str(tmp_path))
    assert list(tmp_path.iterdir()) == [folder]
