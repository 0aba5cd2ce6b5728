"""The files of checkpoints: written whole, known by size and digest, the oldest ones removed."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

import torch

from ..utils.errors import InputError
from ..utils.files import remove_temporaries, replacing, sha256_of, write_atomically
from .nonfinite import not_finite

# Name of a checkpoint -> what it may be: {"bytes", "sha256"}, in the order they were written.
INDEX = "checkpoints.json"
LAST = "last_checkpoint"
_FULL = re.compile(r"model_\d+\.pth")

Facts = dict[str, int | str]


class _Hashed:
    """Passes on what is written to a file and takes its digest."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, block: bytes) -> int:
        self._sha256.update(block)
        self._bytes += len(block)
        return self._file.write(block)

    def flush(self) -> None:
        self._file.flush()

    def facts(self) -> Facts:
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


def write_checkpoint(data: dict, path: str) -> None:
    """Write a file that is either whole or not there, and its facts into the index beside it.

    Raises:
        InputError: if it cannot be written; what was there before is unharmed.
        FloatingPointError: if it holds a value that is not finite; likewise.
    """
    bad = not_finite(_tensors_in(data, ""))
    if bad:
        raise FloatingPointError(f"the checkpoint {path} is not written: in it, {bad[0]}")
    try:
        with replacing(path) as file:
            hashed = _Hashed(file)
            torch.save(data, cast(BinaryIO, hashed))
            # The index comes first and keeps what the name stood for: at no time is there a file
            # that it does not know.
            _note(path, hashed.facts())
    except (OSError, RuntimeError) as error:
        # torch says where it was when writing failed; why is in the error that it met.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        message = f"the checkpoint {path} cannot be written: {reason.strerror or reason}"
        raise InputError(message) from None


def _tensors_in(data: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(data, torch.Tensor):
        yield name, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _tensors_in(value, f"{name}.{key}" if name else str(key))


def _note(path: str, facts: Facts) -> None:
    folder, name = os.path.split(path)
    index = read_index(folder)
    before = index.pop(name, [])[:1]
    kept = {x: found for x, found in index.items() if os.path.exists(os.path.join(folder, x))}
    text = json.dumps({**kept, name: [facts, *before]}, indent=1)
    write_atomically(os.path.join(folder, INDEX), text + "\n")


def read_index(folder: str) -> dict[str, list[Facts]]:
    """The facts of the checkpoints in a folder, the newest last; none where there is no index."""
    path = os.path.join(folder, INDEX)
    try:
        with open(path) as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}; without it checkpoints load unchecked"
        ) from None


def damage_of(path: str) -> str:
    """What is wrong with a checkpoint, "" if nothing is known to be: other files have no facts."""
    folder, name = os.path.split(path)
    expected = read_index(folder).get(name, [])
    try:
        size = os.path.getsize(path)
        if not expected or {"bytes": size, "sha256": sha256_of(path)} in expected:
            return ""
    except OSError as error:
        return str(error.strerror)
    sizes = [facts["bytes"] for facts in expected]
    if size not in sizes:
        return f"it has {size} bytes of {sizes[0]}"
    return "its content has changed since it was written (sha256)"


def full_checkpoints(folder: str) -> list[str]:
    """Names in the index of what a run can go on from, the newest first."""
    listed = [name for name in reversed(read_index(folder)) if _FULL.fullmatch(name)]
    there = [name for name in listed if os.path.exists(os.path.join(folder, name))]
    # A step after that of the newest: damaged, and the run went on from one before it.
    return [name for name in there if _step(name) <= _step(there[0])]


def _step(name: str) -> int:
    return int(name[len("model_") : -len(".pth")])


def remove_old(folder: str, keep: int, healthy: str = "") -> None:
    """Delete all full checkpoints but the newest `keep` and one more, and what is half-written.

    Those of another run, which the index does not know, go first.
    """
    newest = full_checkpoints(folder)[: max(keep, 1)]
    others = set(filter(_FULL.fullmatch, os.listdir(folder))).difference(newest, [healthy])
    excess = len(others) + len(newest) - max(keep, 1)
    for name in sorted(others)[: max(excess, 0)]:
        os.remove(os.path.join(folder, name))
    remove_temporaries(folder)


def start_anew(folder: str) -> None:
    """Forget the checkpoints of an earlier run, so that this one can never go on from them."""
    for name in (LAST, INDEX):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    remove_temporaries(folder)
