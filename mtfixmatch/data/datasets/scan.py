"""Scan every file of a dataset once, in parallel, and cache the results."""

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import cv2
import msgspec
import numpy as np
from tqdm import tqdm

from ...utils.errors import InputError, InputErrors
from ...utils.files import reading, write_atomically
from ...utils.images import read_label_map
from ...utils.notes import Notes

logger = logging.getLogger(__name__)

# Raise this when the results of a scanned function change their meaning.
CACHE_VERSION = 3
# For fewer files, starting a pool of processes takes longer than it saves.
MIN_FILES_FOR_PROCESSES = 32


@dataclass(frozen=True)
class FileScanner:
    """Scans the files of a dataset for its reader."""

    cache_dir: str | None = None  # folder of the caches; None = no cache
    workers: int = 1  # processes that scan files which are not in the cache
    broken: dict[str, str] | None = None  # see `scan_files`
    notes: Notes = field(default_factory=Notes)  # on the dataset, for its reader

    def __call__(
        self,
        paths: Iterable[str],
        function: Callable[[str], Any],
        *,
        name: str,
        source: str,
        strict: bool = False,
    ) -> dict[str, Any]:
        """Return file -> result of `scan_files`; broken files are absent, or errors if `strict`.

        The kind of the scan, `name`, and the dataset's file or folder `source` name the cache.
        """
        paths = list(paths)
        cache_file = self.cache_dir and cache_path(self.cache_dir, name, source)
        broken = None if strict else self.broken
        results = scan_files(paths, function, cache_file, self.workers, broken)
        return {path: x for path, x in zip(paths, results, strict=True) if x is not None}

    def without_notes(self) -> "FileScanner":
        """Return the same scanner with notes and broken files of its own, which nobody reads."""
        unread: dict[str, str] | None = None if self.broken is None else {}
        return replace(self, notes=Notes(self.notes.max_faults), broken=unread)


def scan_files(
    paths: Sequence[str],
    function: Callable[[str], Any],
    cache_file: str | None,
    workers: int,
    broken: dict[str, str] | None = None,
) -> list[Any]:
    """Return the result of a function for each file, recalled for files that did not change.

    The picklable `function` raises InputError for a file that cannot be used. Its result is never
    None and must survive JSON (lists, not tuples). The .json.gz file `cache_file` holds path ->
    [size, modification time, result]; None = no cache.

    A file that cannot be used has the result None and its message in `broken`. If that is None,
    InputErrors names all such files; the others are in the cache.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    cache = _load_cache(cache_file, name)
    stamped = {path: _guard(_stamp, path) for path in paths}
    stamps = {path: stamp for path, (stamp, error) in stamped.items() if not error}
    errors = {path: error for path, (_, error) in stamped.items() if error}
    current = {path: cache[path] for path in stamps if cache.get(path, [])[:2] == stamps[path]}
    todo = [path for path in stamps if path not in current]
    if len(todo) >= MIN_FILES_FOR_PROCESSES:
        logger.info("Scanning %d files, from %s on", len(todo), todo[0])
    results = _run(partial(_guard, function), todo, workers)
    for path, (result, error) in zip(todo, results, strict=True):
        if error:
            errors[path] = error
        else:
            current[path] = [*stamps[path], result]
    if cache_file and (todo or len(current) != len(cache)):
        _save_cache(cache_file, name, current)
    if broken is not None:
        broken |= errors
    elif errors:
        raise InputErrors(*[errors[x] for x in dict.fromkeys(paths) if x in errors])
    return [current[path][2] if path in current else None for path in paths]


def run_each(items: Sequence[Any], function: Callable[[Any], Any], workers: int) -> list[list]:
    """Return [result, ""] or [None, message of an InputError] of a function for each item.

    Items and function are picklable; the results are not cached.
    """
    logger.info("Reading %d labels", len(items))
    return list(_run(partial(_guard, function), items, workers))


def _guard(function: Callable[[Any], Any], item: Any) -> list:
    """Return [result, ""] or [None, message], so that one bad file stops no other."""
    try:
        return [function(item), ""]
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


def _stamp(path: str) -> list[int]:
    """Return [size, modification time]."""
    with reading(path):
        status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _run(function: Callable[[Any], list], items: Sequence[Any], workers: int) -> Iterator[list]:
    # On a terminal, a progress bar appears after two seconds.
    progress = {"total": len(items), "delay": 2, "disable": None, "desc": "scanning"}
    if workers <= 1 or len(items) < MIN_FILES_FOR_PROCESSES:
        yield from tqdm(map(function, items), **progress)
        return
    chunk = max(1, min(64, len(items) // (4 * workers)))
    # OpenCV's threads do not survive a fork, and the pool already uses all cores.
    with ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from tqdm(pool.map(function, items, chunksize=chunk), **progress)


def _load_cache(cache_file: str | None, name: str) -> dict[str, list]:
    if not cache_file or not os.path.isfile(cache_file):
        return {}
    try:
        with gzip.open(cache_file) as file:
            content = msgspec.json.decode(file.read())
        if [content["version"], content["function"]] == [CACHE_VERSION, name]:
            return dict(content["files"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: the cache cannot be used (%s) and is built again", cache_file, error)
    return {}


def _save_cache(cache_file: str, name: str, files: dict[str, list[Any]]) -> None:
    content = {"version": CACHE_VERSION, "function": name, "files": files}
    try:
        os.makedirs(os.path.dirname(os.path.abspath(cache_file)), exist_ok=True)
        write_atomically(cache_file, gzip.compress(msgspec.json.encode(content), compresslevel=1))
    except (OSError, InputError) as error:
        logger.warning("%s: the cache cannot be written (%s)", cache_file, error)
