"""The folder of a new dataset, which appears when it is complete."""

import glob
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from ..runtime.lock import LOCK, locked
from ..utils.errors import InputError
from ..utils.files import is_temporary, temporary_path

logger = logging.getLogger(__name__)

OPTION = "--output"


@contextmanager
def new_folder(output: str) -> Iterator[str]:
    """Make a locked folder beside `output` that takes its place after the block.

    After an error it is removed, and after a kill by the next run with this output.

    Raises:
        InputError: `output` is there and not empty, another process is writing it, or it cannot be
            written.
    """
    _check(output)
    output = os.path.abspath(output)
    _remove_leftovers(output)
    folder = temporary_path(output)
    try:
        with locked(folder, OPTION):
            yield folder
            with writing(output):
                os.replace(folder, output)
                os.remove(os.path.join(output, LOCK))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(output: str) -> Iterator[None]:
    """Turn an OSError into an InputError that names the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{OPTION} {output} cannot be written: {reason}") from None


def _check(output: str) -> None:
    if os.path.exists(output) and not os.path.isdir(output):
        raise InputError(f"{OPTION} {output}: it is a file, expected a folder")
    if os.path.isdir(output) and os.listdir(output):
        raise InputError(f"{OPTION} {output}: the folder is not empty; name another one")


def _remove_leftovers(output: str) -> None:
    """Remove the folders of killed runs; the lock tells them from that of a running one."""
    for path in filter(is_temporary, glob.glob(f"{glob.escape(output)}.*")):
        if not os.path.isdir(path):
            continue
        with locked(path, OPTION) as is_ours, writing(output):
            if is_ours:
                shutil.rmtree(path)
        hint = "removed" if is_ours else "remove it if no other run writes there"
        logger.warning("%s: a run left it that did not end; %s", path, hint)
