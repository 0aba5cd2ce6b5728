"""One run at a time in a folder."""

import fcntl
import multiprocessing
import os

import pytest

from mtfixmatch.runtime import lock
from mtfixmatch.runtime.lock import LOCK, locked
from mtfixmatch.utils.errors import InputError


def _hold(folder, ready, leave):
    with locked(folder):
        ready.set()
        leave.wait(60)


def test_the_lock_is_given_back_and_says_who_has_it(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    folder = str(tmp_path / "new")
    holder = context.Process(target=_hold, args=(folder, ready, leave))
    holder.start()
    ready.wait(60)
    with pytest.raises(InputError, match=f"in use by process {holder.pid} on "), locked(folder):
        pass
    leave.set()
    holder.join()
    with locked(folder):
        assert f"process {os.getpid()} " in (tmp_path / "new" / LOCK).read_text()


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(InputError, match="OUTPUT_DIR .*file/x cannot be written")
    with refused, locked(str(tmp_path / "file" / "x")):
        pass


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(37, "No locks available")

    told = []
    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(lock.logger, "warning", lambda text, *args: told.append(text % args))
    with locked(str(tmp_path)):
        assert len(told) == 1 and "No locks available" in told[0] and str(tmp_path) in told[0]
