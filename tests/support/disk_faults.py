"""Disk errors and deaths of a process in the middle of a write, and a small checkpoint to write."""

import builtins
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
import torch

from mtfixmatch.engine.checkpoint import MultiTaskCheckpointer
from mtfixmatch.utils import files

FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "read-only": errno.EROFS}


class _File:
    """Writes until a byte count shared by all files is used up, then calls `act`."""

    def __init__(self, file, left: list[int], act: Callable[[], NoReturn]):
        self._file, self._left, self._act = file, left, act

    def write(self, block) -> int:
        fits = len(block) <= self._left[0]
        self._file.write(block[: max(self._left[0], 0)])
        self._left[0] -= len(block)
        if not fits:
            self._file.flush()  # the bytes before the fault reach the disk
            self._act()
        return len(block)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@contextmanager
def at_byte(offset: int, act: Callable[[], NoReturn]) -> Iterator[None]:
    """Call `act` in the write of `mtfixmatch.utils.files` that passes a byte, over all files."""
    left = [offset]

    def opened(path, mode="r", **kwargs):
        file = builtins.open(path, mode, **kwargs)  # noqa: SIM115
        return _File(file, left, act) if "w" in mode else file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open", opened, raising=False)
        yield


@contextmanager
def at_call(name: str, number: int, act: Callable[[], NoReturn]) -> Iterator[None]:
    """Call `act` instead of os.<name> in its call `number`, counted from 0."""
    left = [number]
    original = getattr(os, name)

    def call(*args, **kwargs):
        left[0] -= 1
        return act() if left[0] == -1 else original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, call)
        yield


def raising(number: int) -> Callable[[], NoReturn]:
    """Return a function that raises the OSError of an errno."""

    def act() -> NoReturn:
        raise OSError(number, os.strerror(number))

    return act


# Checkpoints of a small network


class Step:
    """State of a trainer that is nothing but its step."""

    def __init__(self, step):
        self.step = step

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


def checkpointer(folder, value=0.0, step=-1):
    model = torch.nn.Linear(60, 60)
    torch.nn.init.constant_(model.weight, value)
    return MultiTaskCheckpointer(model, str(folder), trainer=Step(step))


def save(folder, step):
    checkpointer(folder, float(step), step).save(f"model_{step:07d}", iteration=step)


def resumed(folder):
    """The step that a run in the folder resumes from; checks that its weights are of that step."""
    loaded = checkpointer(folder)
    loaded.resume_or_load("", resume=True)
    step = loaded.checkpointables["trainer"].step
    assert (loaded.model.weight == step).all()
    return step


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bytes_of_a_save(folder):
    """Number of bytes that one save writes: the checkpoint, the index and last_checkpoint."""
    folder.mkdir()
    save(folder, 1)
    first = sum(map(len, contents(folder).values()))
    save(folder, 2)
    return sum(map(len, contents(folder).values())) - first
