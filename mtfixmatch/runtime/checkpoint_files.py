"""Checkpoint files: written atomically, verified by size and SHA-256, and the oldest removed."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from ..utils.errors import InputError
from ..utils.files import remove_temporaries, replacing, sha256_of, write_atomically
from .nonfinite import not_finite

# Maps each checkpoint's name, in the order they were written, to its fingerprints, newest first.
INDEX = "checkpoints.json"
LAST = "last_checkpoint"
_FULL = re.compile(r"model_(\d+)\.pth")

Fingerprint = dict[str, int | str]


def write_checkpoint(data: dict, path: str) -> None:
    """Write a checkpoint atomically, and its fingerprint into the index of its folder.

    Raises:
        InputError: if it cannot be written; an earlier file of this name is unharmed.
        FloatingPointError: if it contains a value that is not finite; likewise.
    """
    if bad := not_finite(_tensors_in(data, "")):
        raise FloatingPointError(f"the checkpoint {path} is not written: in it, {bad[0]}")
    try:
        with replacing(path) as file:
            torch.save(data, file)
            file.flush()
            # The index is written first and keeps the fingerprint of the file that is replaced, so
            # that it knows the file on the disk at any time.
            _add_to_index(path, {"bytes": file.tell(), "sha256": sha256_of(file.name)})
    except (OSError, RuntimeError) as error:
        # torch reports where writing failed; the context of its error says why.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        why = reason.strerror or reason
        raise InputError(f"the checkpoint {path} cannot be written: {why}") from None


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
    """Read a folder's fingerprints by name of the checkpoint, the newest last; {} without index."""
    path = os.path.join(folder, INDEX)
    try:
        with open(path) as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        hint = "delete it to load checkpoints unchecked"
        raise InputError(f"{path} cannot be read: {error}; {hint}") from None


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
    if size not in (sizes := [fingerprint["bytes"] for fingerprint in expected]):
        return f"it has {size} bytes of {sizes[0]}"
    return "its content has changed since it was written (sha256)"


def full_checkpoints(folder: str) -> list[str]:
    """Names of the checkpoints that a run can resume from, the newest first."""
    found = filter(None, map(_FULL.fullmatch, reversed(read_index(folder))))
    steps = {x[0]: int(x[1]) for x in found if os.path.exists(os.path.join(folder, x[0]))}
    # A checkpoint of a later step than the newest was damaged: the run resumed from an earlier one.
    return [name for name, step in steps.items() if step <= next(iter(steps.values()))]


def remove_old(folder: str, keep: int, healthy: str = "") -> None:
    """Delete full checkpoints, those that are not in the index first, and incomplete files.

    The newest `keep`, at least 1, stay, and the one of the name `healthy`, if it exists.
    """
    keep = max(keep, 1)
    newest = full_checkpoints(folder)[:keep]
    others = set(filter(_FULL.fullmatch, os.listdir(folder))).difference(newest, [healthy])
    for name in sorted(others)[: max(len(others) + len(newest) - keep, 0)]:
        os.remove(os.path.join(folder, name))
    remove_temporaries(folder)


def start_anew(folder: str) -> None:
    """Forget the checkpoints of an earlier run, so that this run never resumes from them."""
    for name in (LAST, INDEX):
        with suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))
    remove_temporaries(folder)
