"""Scan the files of a dataset: decode images, and find copies of training images."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from ..data.datasets.scan import run_each, scan_files
from ..data.records import Records
from ..utils.files import reading, sha256_of
from ..utils.images import (
    RANGE_16BIT,
    read_image_header,
    read_image_size,
    read_rgb_pixels,
    read_value_range,
)

Pair = tuple[str, str]  # files of a training image and of a validation image

THUMBNAIL_SIZE = 16  # pixels, both sides
# Mean difference of two thumbnails in grey levels, 0-255. Compressing or scaling an image changes
# its thumbnail by about 1; even frames of the same street differ by more than this.
SAME_IMAGE = 3.0


@dataclass
class FileScan:
    """Runs functions on many files in parallel, with cached results, and collects the errors."""

    folder: str  # of the caches
    workers: int
    errors: list[str] = field(default_factory=list)

    def __call__(self, items: Sequence[Any], function: Callable[[Any], Any], name: str) -> list:
        """Return the results for paths, or for items that are more than a path.

        Those of paths are results of `scan_files`; each named set of files has its cache.
        """
        if not all(isinstance(x, str) for x in items):
            found = run_each(items, function, self.workers)
            self.errors += [error for _, error in found if error]
            return [result for result, _ in found]
        broken: dict[str, str] = {}
        cache_file = os.path.join(self.folder, f"{name}.{function.__name__}.json.gz")
        results = scan_files(items, function, cache_file, self.workers, broken)
        self.errors += broken.values()
        return results


def decode(path: str) -> list[int]:
    """Return the [height, width] of an image after reading it completely, as a training does."""
    height, width = read_image_size(path)
    read_rgb_pixels(path, [height, width])
    return [height, width]


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file, or raise InputError."""
    with reading(path):
        return sha256_of(path)


def thumbnail(path: str) -> list[int]:
    """Return the grey levels (0-255) of an image, scaled to THUMBNAIL_SIZE², in rows."""
    height, width, bits, _ = read_image_header(path)
    # Over all 16 bits, different images of a small range would look alike.
    range_16bit = read_value_range(path) if bits > 8 else RANGE_16BIT
    grey = read_rgb_pixels(path, [height, width], range_16bit).mean(axis=2)
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA).round().astype(int).ravel().tolist()


def find_copies(train: Records, val: Records, scan: FileScan) -> tuple[list[Pair], list[list[str]]]:
    """Return pairs of equal training and validation files, and groups of equal training files."""
    files = [record["file_name"] for record in [*train, *val]]
    sizes = [os.path.getsize(file) for file in files]
    frequency = Counter(sizes)
    # A file of a unique size is no copy, so it need not be read.
    suspects = [i for i, size in enumerate(sizes) if frequency[size] > 1]
    hashes = scan([files[i] for i in suspects], hash_file, "images")
    groups: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for i, digest in zip(suspects, hashes, strict=True):
        if digest is not None:
            groups[digest][i >= len(train)].append(files[i])
    leaks = [(t[0], path) for t, v in groups.values() if t for path in v]
    return leaks, [t for t, _ in groups.values() if len(t) > 1]


def find_namesakes(train: Records, val: Records, scan: FileScan) -> tuple[list[Pair], list[Pair]]:
    """Return pairs of one image id that show the same scene, and pairs that do not.

    The same scene may be compressed or scaled. Datasets may number the images of each split from 0;
    then equal ids mean nothing.
    """
    files = {record["image_id"]: record["file_name"] for record in train}
    pairs = [(files[r["image_id"]], r["file_name"]) for r in val if r["image_id"] in files]
    train_thumbnails = scan([file for file, _ in pairs], thumbnail, "training")
    val_thumbnails = scan([file for _, file in pairs], thumbnail, "validation")
    same: list[Pair] = []
    different: list[Pair] = []
    for pair, a, b in zip(pairs, train_thumbnails, val_thumbnails, strict=True):
        readable = a is not None and b is not None
        alike = readable and np.abs(np.subtract(a, b)).mean() < SAME_IMAGE
        (same if alike else different).append(pair)
    return same, different
