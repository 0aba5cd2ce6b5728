"""Keep the records of a large dataset as a file, so that a start neither lists nor scans again."""

import functools
import hashlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...formats.image_files import IMAGE_SUFFIXES, expand
from ...utils.errors import InputError
from ...utils.files import ABSENT, Stamp, note_read, recording_reads, stamp
from ..record_block import RecordBlock, Strings
from ..record_file import Arrays, NotPlainError, read_block, write_block

logger = logging.getLogger(__name__)

MIN_RECORDS = 200_000  # smaller datasets are read in seconds
SOURCE_SUFFIXES = (".json", ".txt")  # label files, lists of images
CODE = ("data", "formats", "tasks", "utils")  # packages whose code decides what the records are
CHUNK = 1 << 16  # files that a process looks at in one go


@dataclass(frozen=True)
class RecordCache:
    """The file with the records of a dataset, and all that they depend on.

    It is used as long as every file and folder that was read has its size and modification time.

    Attributes:
        path: the file.
        settings: what the records depend on besides files, as text.
        sources: folders and files of the dataset, of both splits.
        workers: processes that look at the files.
        get_state: returns what reading leaves besides the records, as plain values.
        set_state: sets it when the records come from the file.
        reads: file or folder -> its stamp from before it was read.
    """

    path: str
    settings: str
    sources: Sequence[str]
    workers: int
    get_state: Callable[[], Any]
    set_state: Callable[[Any], None]
    reads: dict[str, Stamp] = field(default_factory=dict)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is read; the sources themselves belong to it in any case."""
        with recording_reads(self.reads):
            for source in self.sources:
                note_read(os.path.abspath(expand(source)))
            yield

    def load(self, token: int | None = None) -> tuple[RecordBlock, int] | None:
        """Return the records and their token, or None if they must be read.

        Args:
            token: that of the file which another process has compared with the dataset just now;
                None: compare it.
        """
        if not os.path.exists(self.path):
            return None
        try:
            block, header, arrays = read_block(self.path, verify=token is None)
            if header["settings"] != self._digest() or token not in (None, header["checksum"]):
                return None
            if token is None and not self._is_unchanged(len(arrays["stamps"])):
                return None
            self.set_state(header["state"])
        except (OSError, InputError, KeyError, ValueError, TypeError) as error:
            logger.warning("%s: the cache cannot be used (%s) and is built again", self.path, error)
            return None
        return block, header["checksum"]

    def save(self, block: RecordBlock) -> int | None:
        """Write the file and return its token; None: the dataset is small or of another kind."""
        try:
            if len(block) < MIN_RECORDS or not self._can_be_kept():
                return None
            arrays = _stamp_arrays(self.reads)
        finally:
            self.reads.clear()
        header = {"settings": self._digest(), "state": self.get_state()}
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            return write_block(self.path, block, header, arrays)
        except (NotPlainError, UnicodeError):  # such as names of files that are not UTF-8
            return None
        except OSError as error:
            logger.warning("%s: the cache cannot be written (%s)", self.path, error)
            return None

    def _can_be_kept(self) -> bool:
        """Whether the records depend on folders and files that were recorded, and on no other.

        Formats with a text file for each image look for more files, such as the names of classes,
        in places that depend on what there is.
        """
        sources = {x for source in self.sources for x in (expand(source), os.path.abspath(source))}
        if not all(os.path.isdir(x) or x.lower().endswith(SOURCE_SUFFIXES) for x in sources):
            return False
        others = [x for x in self.reads if not x.lower().endswith(IMAGE_SUFFIXES)]
        return all(x in sources or os.path.isdir(x) or self.reads[x] == ABSENT for x in others)

    def _digest(self) -> str:
        text = f"{self.settings}\n{os.getcwd()}\n{[expand(x) for x in self.sources]}\n{_code()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _is_unchanged(self, count: int) -> bool:
        """Compare the stamps of all files and folders that were read."""
        starts = range(0, count, CHUNK)
        check = functools.partial(_is_chunk_unchanged, self.path)
        if self.workers <= 1 or len(starts) <= 1:
            return all(map(check, starts))
        with ProcessPoolExecutor(self.workers) as pool:
            return all(pool.map(check, starts))


def _stamp_arrays(reads: dict[str, Stamp]) -> Arrays:
    """Return the paths that were read and their stamps."""
    paths = [os.fsencode(path) for path in reads]
    return {
        "read data": np.frombuffer(b"".join(paths), np.uint8),
        "read ends": np.cumsum([len(path) for path in paths], dtype=np.int64),
        "stamps": np.array(list(reads.values()), np.int64).reshape(-1, 2),
    }


def _is_chunk_unchanged(path: str, start: int) -> bool:
    """Return whether the files of a chunk have their stamps."""
    _, _, arrays = read_block(path, verify=False)
    stamps = arrays["stamps"][start : start + CHUNK]
    paths = Strings(arrays["read data"], arrays["read ends"])
    found = [stamp(bytes(paths[i])) for i in range(start, start + len(stamps))]
    return bool((np.array(found) == stamps).all())


@functools.cache
def _code() -> str:
    """Return a digest of the code that makes records."""
    package = Path(__file__).parents[2]
    files = sorted(path for name in CODE for path in (package / name).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def code_of(kinds: Mapping[str, type]) -> dict[str, str]:
    """Return name -> digest of the source file of its class, which a user may have written."""
    files = {name: inspect.getsourcefile(kind) or "" for name, kind in kinds.items()}
    return {
        name: f"{kinds[name].__qualname__} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"
        for name, file in files.items()
        if os.path.isfile(file)
    }
