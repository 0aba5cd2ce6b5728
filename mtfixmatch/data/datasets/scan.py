"""Look into every file of a dataset once, in parallel, and remember what was found."""

import functools
import gzip
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from ...utils.errors import InputError, InputErrors
from ...utils.files import write_atomically
from ...utils.images import read_label_map

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Contiguous ids in a record's `sem_seg_lut` that are no class.
IGNORE_LABEL = 255
INVALID_LABEL = 254

# A folder of generated data has this file, which is written last: such data are whole, and no
# official download.
MARK = "street.json"

MAX_NUMBER = 1e9

# Raise this when what a scanned function returns changes its meaning.
CACHE_VERSION = 2
# Below this many files a pool of processes takes longer to start than it saves.
MIN_FILES_FOR_PROCESSES = 32


def scan_files(
    paths: Sequence[str],
    function: Callable[[str], Any],
    cache_file: str | None,
    workers: int,
    broken: dict[str, str] | None = None,
) -> list[Any]:
    """Run `function` on every file, or recall its result for files that did not change.

    Args:
        paths: the files.
        function: picklable; its result consists of what JSON holds (lists, not tuples).
        cache_file: a .json.gz file with the results under (path, size, modification time);
            None = no cache.
        workers: number of processes.
        broken: takes file -> message for files of which `function` raised InputError, whose result
            is then None; without it they are errors.

    Returns:
        one result per path, in the same order.

    Raises:
        InputErrors: for all files of which `function` raised InputError; the others are remembered.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    cache = _load_cache(cache_file, name)
    errors: dict[str, str] = {}
    stamps = {}
    for path in paths:
        stamps[path], errors[path] = Guarded(_stamp)(path)
    known = {path: cache[path] for path in stamps if cache.get(path, [])[:2] == stamps[path]}
    todo = [path for path in stamps if path not in known and not errors[path]]
    for path, (result, errors[path]) in zip(
        todo, _run(Guarded(function), todo, workers), strict=True
    ):
        if not errors[path]:
            known[path] = [*stamps[path], result]
    if cache_file and (todo or len(known) != len(cache)):
        _save_cache(cache_file, name, known)
    errors = {path: error for path, error in errors.items() if error}
    if broken is not None:
        broken |= errors
    elif errors:
        raise InputErrors(list(errors.values()))
    return [known[path][2] if path in known else None for path in paths]


class Guarded:
    """Gives [result, ""] or [None, message]: a bad file must not hide the next one."""

    def __init__(self, function: Callable[[str], Any]):
        """Wrap a function of a path; it keeps its name, which caches ask for."""
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, path: str) -> list:
        """Call the function."""
        try:
            return [self.function(path), ""]
        except InputError as error:
            return [None, str(error)]


def cache_path(cache_dir: str, what: str, source: str) -> str:
    """Name the cache file for `what` was found in the file or folder `source`."""
    digest = hashlib.sha256(os.path.abspath(source).encode()).hexdigest()[:12]
    return os.path.join(cache_dir, f"{what}_{digest}.json.gz")


def scan_label_map(path: str) -> list:
    """Return [height, width, [ids that occur]] of a semantic map."""
    ids = read_label_map(path)
    return [*ids.shape, np.flatnonzero(np.bincount(ids.ravel())).tolist()]


def is_number(value: Any) -> bool:
    """Whether what JSON held is a finite number; neither true nor false is one.

    Larger than any picture, it is refused like infinity, which JSON may say in many ways.
    """
    return type(value) in (int, float) and -MAX_NUMBER < value < MAX_NUMBER


def shown_json(value: Any) -> str:
    """A value as it stands in a JSON file, its beginning if it is long."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_map_size(image: str, size: list[int], label_map: str, map_size: list[int]) -> None:
    """Raise InputError unless a map has the [height, width] of its image."""
    if size != map_size:
        raise InputError(
            f"{label_map} is {map_size[1]}x{map_size[0]} pixels, "
            f"but its image {image} is {size[1]}x{size[0]}"
        )


def _stamp(path: str) -> list[int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return [status.st_size, status.st_mtime_ns]


def _run(function: Callable[[str], T], paths: list[str], workers: int) -> Iterator[T]:
    if len(paths) >= MIN_FILES_FOR_PROCESSES:
        logger.info("Scanning %d files, from %s on", len(paths), paths[0])
    # On a terminal a bar appears after two seconds.
    progress = {"total": len(paths), "delay": 2, "disable": None, "desc": "scanning"}
    if workers <= 1 or len(paths) < MIN_FILES_FOR_PROCESSES:
        yield from tqdm(map(function, paths), **progress)
        return
    chunk = max(1, min(64, len(paths) // (4 * workers)))
    with ProcessPoolExecutor(workers, initializer=_use_one_thread) as pool:
        yield from tqdm(pool.map(function, paths, chunksize=chunk), **progress)


def _use_one_thread() -> None:
    # OpenCV's own threads neither survive a fork nor help beside other processes.
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
        logger.warning("%s: cannot be used (%s) and is made anew", cache_file, error)
    return {}


def _save_cache(cache_file: str, name: str, files: dict[str, list[Any]]) -> None:
    folder = os.path.dirname(os.path.abspath(cache_file))
    content = {"version": CACHE_VERSION, "function": name, "files": files}
    try:
        os.makedirs(folder, exist_ok=True)
        # A reader sees the old file or the new one, never a part of it.
        write_atomically(cache_file, gzip.compress(json.dumps(content).encode(), compresslevel=1))
    except (OSError, InputError) as error:
        logger.warning("%s: cannot be written (%s), so nothing is kept", cache_file, error)
