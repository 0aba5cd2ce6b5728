"""Files that are either whole or not there, whatever ends the process or the machine."""

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from .errors import InputError

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp$")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Give a file that takes the place of `path` once all of it is on the disk.

    It is written aside, in the same folder, under a name of its own, so that several processes can
    write at the same time. After an error the old file is there as it was.
    """
    target = os.fspath(path)
    temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
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


def write_atomically(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a whole file in the place of `path`; text as UTF-8.

    Raises:
        InputError: if it cannot be written; what was there before is unharmed.
    """
    try:
        with replacing(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def sha256_of(path: str | os.PathLike) -> str:
    """The digest of a file, hexadecimal; OSError if it cannot be read."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def remove_temporaries(folder: str) -> None:
    """Delete what a process left that was killed in `replacing`; nobody may be writing there."""
    for name in os.listdir(folder):
        if _TEMPORARY.search(name):
            os.remove(os.path.join(folder, name))


def _sync_folder(folder: str) -> None:
    """Put a new name on the disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot, and need not
            raise
    finally:
        os.close(handle)
