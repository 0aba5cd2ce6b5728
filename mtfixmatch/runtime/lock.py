"""A lock that allows one run at a time in a folder."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import IO

from detectron2.utils import comm

from ..utils.errors import InputError

logger = logging.getLogger(__name__)

LOCK = "run.lock"


@contextmanager
def locked(folder: str, key: str = "OUTPUT_DIR") -> Iterator[bool]:
    """Lock a folder for this run, on all ranks together; create it if it does not exist.

    Messages call the folder by `key`, the name of the option that sets it. The block gets whether
    this process holds the lock; some file systems have none.

    The main process holds the lock, and the kernel releases it however that process ends. It is a
    POSIX lock, which data workers do not inherit: they may outlive a main process that was killed.

    Raises:
        InputError: on every rank, if another run holds the lock or the folder is not writable.
    """
    file, error, held = _acquire(folder, key) if comm.is_main_process() else (None, "", False)
    if error := comm.all_gather(error)[0]:
        raise InputError(error)
    with file or nullcontext():
        yield held


def _acquire(folder: str, key: str) -> tuple[IO[bytes] | None, str, bool]:
    """Return the file, "" and whether it is locked, or None and the reason."""
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, LOCK), "a+b", buffering=0)  # noqa: SIM115
    except OSError as error:
        return None, f"{key} {folder} cannot be written: {error.strerror}", False
    held = True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        with file:
            file.seek(0)
            holder = file.read().decode(errors="replace") or "another process"
        hint = f"wait for it, or set another {key}"
        return None, f"{key} {folder} is in use by {holder}: {hint}", False
    except OSError as error:
        hint = "make sure that no other run writes there"
        logger.warning("%s %s cannot be locked (%s): %s", key, folder, error.strerror, hint)
        held = False
    with suppress(OSError):  # the text only serves the message of another run
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file, "", held
