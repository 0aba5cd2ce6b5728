"""Keep decoded images on a local disk, where mapping one takes a hundredth of decoding it."""

import hashlib
import logging
import mmap
import os
import shutil
import struct
from collections.abc import Sequence
from ctypes import c_bool
from multiprocessing.sharedctypes import RawValue

import numpy as np
from detectron2.config import CfgNode

from ..utils.errors import InputError
from ..utils.files import write_atomically
from ..utils.images import RANGE_16BIT, read_rgb_pixels

logger = logging.getLogger(__name__)

KEY = "DATALOADER.DECODED_STORE"
# Share of the disk that stays free, for the checkpoints of the training.
LEAST_FREE = 0.05
# What a file begins with: this mark, size and modification time of the image file, the range of its
# 16 bits, height and width.
_HEADER, _MARK = struct.Struct("<16s6q"), b"mtfixmatch RGB 1"


class DecodedStore:
    """A folder with the pixels of images, one file each.

    Several processes and runs can share it, and it may be deleted at any time. A file that does not
    fit its image, because the image has changed or a process was killed, is replaced.
    """

    def __init__(self, folder: str):
        """Create the folder; InputError if that fails."""
        self.folder = os.path.expanduser(folder)
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{KEY} {folder}: the folder cannot be created ({reason})") from None
        self._has_failed = RawValue(c_bool, False)  # shared with the data workers

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "DecodedStore | None":
        """Return the store of DATALOADER.DECODED_STORE; None if that is empty."""
        return cls(cfg.DATALOADER.DECODED_STORE) if cfg.DATALOADER.DECODED_STORE else None

    def read(
        self, path: str, size: Sequence[int], range_16bit: Sequence[int] = RANGE_16BIT
    ) -> np.ndarray:
        """Return what `read_rgb_pixels` returns, or raise its error; the pixels are read-only."""
        try:
            status = os.stat(path)
        except OSError:
            return read_rgb_pixels(path, [*size], range_16bit)
        stamp = (status.st_size, status.st_mtime_ns)
        header = _HEADER.pack(_MARK, *stamp, *range_16bit, *size)
        digest = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()
        file = os.path.join(self.folder, digest[:2], digest)
        pixels = _map_pixels(file, header, size)
        if pixels is None:
            pixels = read_rgb_pixels(path, [*size], range_16bit)
            self._keep(file, header, pixels)
        return pixels

    def _keep(self, file: str, header: bytes, pixels: np.ndarray) -> None:
        """Write a file, unless one has failed before, which one process warns of."""
        if self._has_failed.value:
            return
        try:
            os.makedirs(os.path.dirname(file), exist_ok=True)
            usage = shutil.disk_usage(self.folder)
            if usage.free >= LEAST_FREE * usage.total:
                write_atomically(file, header + pixels.tobytes())
                return
            reason = f"less than {LEAST_FREE:.0%} of the disk is free"
        except (OSError, InputError) as error:
            reason = str(error)
        self._has_failed.value = True
        logger.warning("%s: no more images are kept (%s)", KEY, reason)


def _map_pixels(file: str, header: bytes, size: Sequence[int]) -> np.ndarray | None:
    """Map the pixels in a file of the store; None if it is missing or has another header."""
    try:
        with open(file, "rb") as opened:
            if opened.read(len(header)) != header:
                return None
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return None
    if len(mapped) != len(header) + 3 * size[0] * size[1]:
        return None
    return np.frombuffer(mapped, np.uint8, offset=len(header)).reshape(*size, 3)
