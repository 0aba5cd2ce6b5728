"""Read files with errors that name them, and write files that are never left half written."""

import errno
import functools
import hashlib
import json
import mmap
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from .errors import InputError, first_line

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp$")


Stamp = tuple[int, int]  # size and modification time in nanoseconds
ABSENT: Stamp = (-1, -1)  # there is no file
# The files and folders that are read, with their stamps from before; None: they are not recorded.
_read: dict[str, Stamp] | None = None


def stamp(path: str | os.PathLike | bytes) -> Stamp:
    """Return the stamp of a file or folder: that of a folder changes with the names in it."""
    try:
        status = os.stat(path)
    except OSError:
        return ABSENT
    return status.st_size, status.st_mtime_ns


@contextmanager
def recording_reads(into: dict[str, Stamp]) -> Iterator[None]:
    """Record the files and folders that this process reads, with their stamps from before."""
    global _read
    before, _read = _read, into
    try:
        yield
    finally:
        _read = before


def note_read(path: str | os.PathLike) -> None:
    """Record that a file or folder is going to be read or looked for, see `recording_reads`."""
    if _read is not None and (name := os.fspath(path)) not in _read:
        _read[name] = stamp(name)


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError into an InputError that names the file or folder."""
    note_read(path)
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_json(path: str | os.PathLike) -> Any:
    """Return the content of a JSON file; raise InputError if it is no valid JSON or unreadable."""
    with reading(path), open(path, "rb") as file:
        content = file.read()
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({first_line(error)})") from error


def is_path(value: Any) -> bool:
    """Return whether a value can be the path of a file; strings of JSON may hold anything."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def real_paths(paths: Iterable[str]) -> Iterator[str]:
    """Yield what os.path.realpath gives for each path, looking at each folder only once."""
    real_folder = functools.cache(os.path.realpath)
    for path in paths:
        folder, name = os.path.split(path)
        is_plain = name not in ("", os.curdir, os.pardir) and not os.path.islink(path)
        yield os.path.join(real_folder(folder), name) if is_plain else os.path.realpath(path)


def contains(path: str | os.PathLike, text: bytes) -> bool:
    """Return whether a file holds a text; raise InputError if it is unreadable."""
    with reading(path), open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when it is completely on the disk.

    Several processes can write at the same time. After an error the old file is unchanged.
    """
    target = os.fspath(path)
    temporary = temporary_path(target)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise
    _sync_folder(os.path.dirname(target) or ".")


def write_atomically(path: str | os.PathLike, content: bytes | str | Iterable[str]) -> None:
    """Replace `path` as a whole, text as UTF-8, or raise InputError and leave the old file.

    Args:
        path: path of the file.
        content: bytes, text, or parts of a text, which need not be in memory together.
    """
    parts: Iterable[bytes | str] = [content] if isinstance(content, bytes | str) else content
    try:
        with replacing(path) as file:
            for part in parts:
                file.write(part.encode() if isinstance(part, str) else part)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; raise OSError if it cannot be read."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def temporary_path(path: str) -> str:
    """Return the path of a temporary file or folder that is to replace `path`."""
    return f"{path}.{uuid.uuid4().hex[:8]}.tmp"


def is_temporary(path: str) -> bool:
    """Return whether a path is one of `temporary_path`."""
    return bool(_TEMPORARY.search(path))


def remove_temporaries(folder: str) -> None:
    """Delete the temporary files of killed processes; no process may be writing to the folder.

    Temporary folders stay: another run may be making them, as `new_folder` does.
    """
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if is_temporary(name) and not os.path.isdir(path):
            os.remove(path)


def _sync_folder(folder: str) -> None:
    """Make the new file name in a folder survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not support it
            raise
    finally:
        os.close(handle)
