"""Look at records and files before a training does: counts, copies, files that cannot be read."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.config import CfgNode

from ..data.datasets.scan import Guarded, scan_files
from ..data.loader import train_pools
from ..data.mapper import read_rgb
from ..tasks import Task
from ..utils.errors import InputError
from ..utils.files import sha256_of
from ..utils.images import read_image_size

Record = dict[str, Any]

READERS = "mtfixmatch.data"  # the logger above those of the readers and of the loader
THUMBNAIL = 16  # pixels, both sides
# Mean difference of two thumbnails in grey levels, 0-255. Compressing or scaling a picture changes
# its thumbnail by about 1; even scenes of one and the same street differ by more than this.
SAME_PICTURE = 3.0


class FileScan:
    """Runs functions on many files, in parallel, and remembers the results in a folder.

    Attributes:
        errors: what was wrong with files, a sentence each.
    """

    def __init__(self, folder: str, workers: int):
        self.folder = folder
        self.workers = max(workers, 1)
        self.errors: list[str] = []

    def __call__(self, paths: Sequence[str], function: Callable[[str], Any], name: str) -> list:
        """One result per path, None where there was an error.

        Args:
            paths: of the files.
            function: as `scan_files` takes it; it raises InputError for a file that is bad.
            name: of this set of files; each has a cache of its own.
        """
        guarded = Guarded(function)
        cache_file = os.path.join(self.folder, f"{name}_{function.__name__}.json.gz")
        results = []
        scanned = scan_files(paths, guarded, cache_file, self.workers)
        for path, (result, error) in zip(paths, scanned, strict=True):
            if error:  # perhaps mended since, with no change to the file: its rights, the disk
                result, error = guarded(path)
            if error:
                self.errors.append(error)
            results.append(result)
        return results


class ReaderMessages(logging.Handler):
    """While it is entered, takes what the readers log: warnings are kept, news dropped."""

    def __init__(self):
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning once, however often the files are read."""
        message = record.getMessage()
        if record.levelno >= logging.WARNING and message not in self.messages:
            self.messages.append(message)

    def __enter__(self) -> "ReaderMessages":
        readers = logging.getLogger(READERS)
        readers.addHandler(self)
        readers.propagate = False
        return self

    def __exit__(self, *_) -> None:
        readers = logging.getLogger(READERS)
        readers.removeHandler(self)
        readers.propagate = True


class Pool(NamedTuple):
    """Images that a batch draws from."""

    name: str
    per_batch: int
    indices: list[int]  # of the records


class Pair(NamedTuple):
    """Files of a training and a validation image."""

    train: str
    val: str


def batch_pools(cfg: CfgNode, tasks: Sequence[Task], records: Sequence[Record]) -> list[Pool]:
    """What a training's batches are made of.

    Raises:
        InputError: if the config asks for batches that cannot be made.
    """
    pools, counts = train_pools(cfg, tasks, records)
    labeled = f"labeled images ({cfg.DATALOADER.LABELED})"
    implicit = cfg.DATALOADER.SAMPLING == "implicit"
    names = ["all images"] if implicit else [labeled, "the others"]
    return [Pool(*pool) for pool in zip(names, counts, pools, strict=False)]


def image_sizes(records: Sequence[Record]) -> Counter:
    """(width, height) -> number of images."""
    return Counter((record["width"], record["height"]) for record in records)


def ignored_counts(records: Sequence[Record]) -> Counter:
    """Reason -> number of things in the files that a reader left out for it."""
    counts: Counter = Counter()
    for record in records:
        counts.update(record.get("ignored", {}))
    return counts


def pick_samples(
    records: Sequence[Record], keys: Sequence[str], count: int, seed: int
) -> list[Record]:
    """Some of the images, drawn so that each combination of labels occurs in turn.

    Args:
        records: to pick from.
        keys: of the labels.
        count: how many; more if there are more combinations.
        seed: of the choice.
    """
    kinds: dict[tuple[bool, ...], list[Record]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(records)):
        kinds[tuple(key in records[i] for key in keys)].append(records[i])
    # Labeled for most tasks first, in the order of the tasks.
    order = sorted(kinds, key=lambda kind: (sum(kind), kind), reverse=True)
    turns = zip_longest(*(kinds[kind] for kind in order))
    picked = [record for turn in turns for record in turn if record is not None]
    return picked[: max(count, len(kinds))]


def decode(path: str) -> list[int]:
    """[height, width] of an image, after all of it was read as a training reads it.

    Raises:
        InputError: if it cannot be.
    """
    return list(_pixels(path).shape[1:])


def hash_file(path: str) -> str:
    """SHA-256 of a file.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def thumbnail(path: str) -> list[int]:
    """Grey levels 0-255 of an image reduced to THUMBNAIL x THUMBNAIL pixels, row after row.

    Raises:
        InputError: if it cannot be read.
    """
    grey = _pixels(path).mean(axis=0)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return small.round().astype(int).ravel().tolist()


def _pixels(path: str) -> np.ndarray:
    height, width = read_image_size(path)
    return read_rgb({"file_name": path, "height": height, "width": width}).numpy()


def find_copies(
    train: Sequence[Record], val: Sequence[Record], scan: FileScan
) -> tuple[list[Pair], list[list[str]]]:
    """Files that are the same byte by byte.

    Returns:
        Each validation image with one of training that it copies; groups of equal training images.
    """
    files = [record["file_name"] for record in [*train, *val]]
    sizes = [os.path.getsize(file) for file in files]
    frequency = Counter(sizes)
    # A file of a size that no other has is no copy: it need not be read.
    suspects = [i for i, size in enumerate(sizes) if frequency[size] > 1]
    hashes = scan([files[i] for i in suspects], hash_file, "images")
    groups: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for i, digest in zip(suspects, hashes, strict=True):
        if digest is not None:
            groups[digest][i >= len(train)].append(files[i])
    leaks = [Pair(t[0], path) for t, v in groups.values() if t for path in v]
    return leaks, [t for t, _ in groups.values() if len(t) > 1]


def find_namesakes(
    train: Sequence[Record], val: Sequence[Record], scan: FileScan
) -> tuple[list[Pair], list[Pair]]:
    """Images of training and validation that have one name.

    Data sets may number the images of each split anew; then the name alone says nothing.

    Returns:
        Those that show the same picture, perhaps compressed or scaled; those that do not.
    """
    file_of = {record["image_id"]: record["file_name"] for record in train}
    pairs = [Pair(file_of[r["image_id"]], r["file_name"]) for r in val if r["image_id"] in file_of]
    left = scan([pair.train for pair in pairs], thumbnail, "training")
    right = scan([pair.val for pair in pairs], thumbnail, "validation")
    same: list[Pair] = []
    different: list[Pair] = []
    for pair, a, b in zip(pairs, left, right, strict=True):
        (same if _look_alike(a, b) else different).append(pair)
    return same, different


def _look_alike(a: list[int] | None, b: list[int] | None) -> bool:
    if a is None or b is None:
        return False
    return bool(np.abs(np.subtract(a, b)).mean() < SAME_PICTURE)
