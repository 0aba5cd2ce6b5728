"""Scan every file of a dataset once, in parallel, and cache the results."""

import functools
import gzip
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from ...utils.errors import InputError, InputErrors
from ...utils.files import reading, write_atomically
from ...utils.images import read_label_map

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Raise this when the results of a scanned function change their meaning.
CACHE_VERSION = 2
# For fewer files, starting a pool of processes takes longer than it saves.
MIN_FILES_FOR_PROCESSES = 32


@dataclass(frozen=True)
class FileScanner:
    """Scans the files of a dataset for its reader.

    Attributes:
        cache_dir: folder of the caches; None = no cache.
        workers: number of processes that scan files which are not in the cache.
        broken: takes file -> message for files that cannot be used; None = they are errors.
    """

    cache_dir: str | None = None
    workers: int = 1
    broken: dict[str, str] | None = None

    def __call__(
        self, paths: Iterable[str], function: Callable[[str], Any], *, name: str, source: str
    ) -> dict[str, Any]:
        """Run a function on every file, or recall its result from the cache.

        Args:
            paths: files.
            function: see `scan_files`.
            name: kind of the scan; with `source` it names the cache file.
            source: file or folder of the dataset.

        Returns:
            file -> result; broken files are absent.

        Raises:
            InputErrors: files cannot be used, and `broken` is None.
        """
        paths = list(paths)
        cache_file = self.cache_dir and cache_path(self.cache_dir, name, source)
        results = scan_files(paths, function, cache_file, self.workers, self.broken)
        return {path: x for path, x in zip(paths, results, strict=True) if x is not None}


def scan_files(
    paths: Sequence[str],
    function: Callable[[str], Any],
    cache_file: str | None,
    workers: int,
    broken: dict[str, str] | None = None,
) -> list[Any]:
    """Run a function on every file, or recall its result for files that did not change.

    Args:
        paths: files.
        function: picklable function of a path. Its result, never None, must survive JSON (lists,
            not tuples). It raises InputError for a file that cannot be used.
        cache_file: .json.gz file that maps a path to its size, modification time and result;
            None = no cache.
        workers: number of processes.
        broken: takes file -> message for files that cannot be used; None = they are errors.

    Returns:
        One result per path, in the same order; None for a broken file.

    Raises:
        InputErrors: files cannot be used, and `broken` is None. The results of the other files are
            in the cache nevertheless.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    cache = _load_cache(cache_file, name)
    stamps, errors = _stamp_files(paths)
    current = {path: cache[path] for path in stamps if cache.get(path, [])[:2] == stamps[path]}
    todo = [path for path in stamps if path not in current]
    for path, (result, error) in zip(todo, _run(_Guarded(function), todo, workers), strict=True):
        if error:
            errors[path] = error
        else:
            current[path] = [*stamps[path], result]
    if cache_file and (todo or len(current) != len(cache)):
        _save_cache(cache_file, name, current)
    if errors and broken is None:
        raise InputErrors(*[errors[x] for x in dict.fromkeys(paths) if x in errors])
    if broken is not None:
        broken |= errors
    return [current[path][2] if path in current else None for path in paths]


class _Guarded:
    """Makes a function return [result, ""] or [None, message], so that one bad file stops no other.

    An instance is picklable and can run in other processes.
    """

    def __init__(self, function: Callable[[str], Any]):
        """Wrap a function of a path."""
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, path: str) -> list:
        """Call the function."""
        try:
            return [self.function(path), ""]
        except InputError as error:
            return [None, str(error)]


def cache_path(cache_dir: str, name: str, source: str) -> str:
    """Return the cache file for a kind of scan of the file or folder `source`."""
    digest = hashlib.sha256(os.path.abspath(source).encode()).hexdigest()[:12]
    return os.path.join(cache_dir, f"{name}_{digest}.json.gz")


def scan_label_map(path: str) -> list:
    """Return [height, width, [ids that occur]] of a semantic map."""
    ids = read_label_map(path)
    return [*ids.shape, np.flatnonzero(np.bincount(ids.ravel())).tolist()]


def _stamp_files(paths: Sequence[str]) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Return file -> [size, modification time], and file -> message for unreadable files."""
    stamps, errors = {}, {}
    for path in paths:
        stamp, error = _Guarded(_stamp)(path)
        if error:
            errors[path] = error
        else:
            stamps[path] = stamp
    return stamps, errors


def _stamp(path: str) -> list[int]:
    with reading(path):
        status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _run(function: Callable[[str], T], paths: list[str], workers: int) -> Iterator[T]:
    if len(paths) >= MIN_FILES_FOR_PROCESSES:
        logger.info("Scanning %d files, from %s on", len(paths), paths[0])
    # On a terminal, a progress bar appears after two seconds.
    progress = {"total": len(paths), "delay": 2, "disable": None, "desc": "scanning"}
    if workers <= 1 or len(paths) < MIN_FILES_FOR_PROCESSES:
        yield from tqdm(map(function, paths), **progress)
        return
    chunk = max(1, min(64, len(paths) // (4 * workers)))
    with ProcessPoolExecutor(workers, initializer=_use_one_thread) as pool:
        yield from tqdm(pool.map(function, paths, chunksize=chunk), **progress)


def _use_one_thread() -> None:
    # OpenCV's threads do not survive a fork, and the pool already uses all cores.
    cv2.setNumThreads(0)


def _load_cache(cache_file: str | None, name: str) -> dict[str, list]:
    if not cache_file or not os.path.isfile(cache_file):
        return {}
    try:
        with gzip.open(cache_file, "rt", encoding="utf-8") as file:
            content = json.load(file)
        if [content["version"], content["function"]] == [CACHE_VERSION, name]:
            return dict(content["files"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: the cache cannot be used (%s) and is built again", cache_file, error)
    return {}


def _save_cache(cache_file: str, name: str, files: dict[str, list[Any]]) -> None:
    folder = os.path.dirname(os.path.abspath(cache_file))
    content = {"version": CACHE_VERSION, "function": name, "files": files}
    try:
        os.makedirs(folder, exist_ok=True)
        write_atomically(cache_file, gzip.compress(json.dumps(content).encode(), compresslevel=1))
    except (OSError, InputError) as error:
        logger.warning("%s: the cache cannot be written (%s)", cache_file, error)
