"""Checkpoint files: written atomically, verified by size and SHA-256, and the oldest removed."""

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

# Maps the name of each checkpoint to its fingerprints, {"bytes", "sha256"}, the newest first; the
# names are in the order they were written.
INDEX = "checkpoints.json"
LAST = "last_checkpoint"
_FULL = re.compile(r"model_\d+\.pth")

Fingerprint = dict[str, int | str]


class _HashingWriter:
    """File that passes on what is written and computes its fingerprint."""

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

    def fingerprint(self) -> Fingerprint:
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}


def write_checkpoint(data: dict, path: str) -> None:
    """Write a checkpoint atomically, and its fingerprint into the index of its folder.

    Raises:
        InputError: if it cannot be written; an earlier file of this name is unharmed.
        FloatingPointError: if it contains a value that is not finite; likewise.
    """
    bad = not_finite(_tensors_in(data, ""))
    if bad:
        raise FloatingPointError(f"the checkpoint {path} is not written: in it, {bad[0]}")
    try:
        with replacing(path) as file:
            writer = _HashingWriter(file)
            torch.save(data, cast(BinaryIO, writer))
            # The index is written first and keeps the fingerprint of the file that is replaced, so
            # that it knows the file on the disk at any time.
            _add_to_index(path, writer.fingerprint())
    except (OSError, RuntimeError) as error:
        # torch reports where writing failed; the context of its error says why.
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


def _add_to_index(path: str, fingerprint: Fingerprint) -> None:
    folder, name = os.path.split(path)
    index = read_index(folder)
    before = index.pop(name, [])[:1]
    kept = {x: y for x, y in index.items() if os.path.exists(os.path.join(folder, x))}
    text = json.dumps({**kept, name: [fingerprint, *before]}, indent=1)
    write_atomically(os.path.join(folder, INDEX), text + "\n")


def read_index(folder: str) -> dict[str, list[Fingerprint]]:
    """Read the fingerprints of a folder's checkpoints, the newest checkpoint last.

    Returns:
        Fingerprints by name of the file; {} without an index.

    Raises:
        InputError: if the index cannot be read.
    """
    path = os.path.join(folder, INDEX)
    try:
        with open(path) as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}; delete it to load checkpoints unchecked"
        ) from None


def damage_of(path: str) -> str:
    """Describe the damage of a checkpoint; "" for one that is whole or not in the index."""
    folder, name = os.path.split(path)
    expected = read_index(folder).get(name, [])
    try:
        size = os.path.getsize(path)
        if not expected or {"bytes": size, "sha256": sha256_of(path)} in expected:
            return ""
    except OSError as error:
        return str(error.strerror)
    sizes = [fingerprint["bytes"] for fingerprint in expected]
    if size not in sizes:
        return f"it has {size} bytes of {sizes[0]}"
    return "its content has changed since it was written (sha256)"


def full_checkpoints(folder: str) -> list[str]:
    """Names of the checkpoints that a run can resume from, the newest first."""
    listed = [name for name in reversed(read_index(folder)) if _FULL.fullmatch(name)]
    existing = [name for name in listed if os.path.exists(os.path.join(folder, name))]
    # A checkpoint of a later step than the newest was damaged: the run resumed from an earlier one.
    return [name for name in existing if _step(name) <= _step(existing[0])]


def _step(name: str) -> int:
    return int(name[len("model_") : -len(".pth")])


def remove_old(folder: str, keep: int, healthy: str = "") -> None:
    """Delete old full checkpoints and incomplete files.

    Checkpoints of another run, which are not in the index, are deleted first.

    Args:
        folder: of the checkpoints.
        keep: number of checkpoints to keep, the newest ones; at least 1.
        healthy: name of one more checkpoint to keep, if it exists.
    """
    newest = full_checkpoints(folder)[: max(keep, 1)]
    others = set(filter(_FULL.fullmatch, os.listdir(folder))).difference(newest, [healthy])
    excess = len(others) + len(newest) - max(keep, 1)
    for name in sorted(others)[: max(excess, 0)]:
        os.remove(os.path.join(folder, name))
    remove_temporaries(folder)


def start_anew(folder: str) -> None:
    """Forget the checkpoints of an earlier run, so that this run never resumes from them."""
    for name in (LAST, INDEX):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    remove_temporaries(folder)
