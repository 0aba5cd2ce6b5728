"""A block of records as a file, which all processes of a node map into memory.

The file has no pickled object but plain values and box modes, and loading it cannot run code: a
cache may lie in a folder that others write to.

    8 bytes MAGIC, 8 bytes length of the header, the header (MessagePack), then the arrays
"""

import io
import os
import pickle
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
from detectron2.structures import BoxMode

from ..utils.errors import InputError
from ..utils.files import replacing
from .record_block import TEXTS, Kind, RecordBlock, Strings

MAGIC = b"mtfm-r01"
START = struct.Struct("<8sQ")
ALIGNMENT = 64  # bytes
CRC_BYTES = 1 << 24  # per part of a checksum
Arrays = dict[str, np.ndarray]


class NotPlainError(Exception):
    """Records have values that a file cannot hold."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (BoxMode.__module__, BoxMode.__qualname__):
            return BoxMode
        raise pickle.UnpicklingError(f"{module}.{name}")


def load_plain(row: memoryview) -> tuple:
    """Load a pickled row of plain values; UnpicklingError for others."""
    return _PlainUnpickler(io.BytesIO(row)).load()


def write_block(path: str, block: RecordBlock, header: Mapping[str, Any], extra: Arrays) -> int:
    """Write a block, a header of plain values, and arrays of one's own; return the checksum.

    Raises:
        NotPlainError: the records have other values than strings, numbers, bytes, box modes, and
            lists and dicts of them.
        OSError: the file cannot be written, for example because the disk is full.
    """
    _check_plain(block)
    arrays = {name: np.ascontiguousarray(x) for name, x in (_arrays(block) | extra).items()}
    places: dict[str, list] = {}
    offset = 0
    for name, x in arrays.items():
        places[name] = [x.dtype.str, list(x.shape), offset]
        offset += -(-x.nbytes // ALIGNMENT) * ALIGNMENT
    checksum = 0
    for x in arrays.values():
        checksum = _checksum(x, checksum)
    kinds = [asdict(kind) for kind in block.kinds]
    content = {**header, "kinds": kinds, "arrays": places, "size": offset, "checksum": checksum}
    head = msgspec.msgpack.encode(content)
    with replacing(path) as file:
        file.write(START.pack(MAGIC, len(head)) + head)
        start = _align(file.tell())
        for name, x in arrays.items():
            file.seek(start + places[name][2])
            file.write(x.reshape(-1).view(np.uint8).data)
        file.truncate(start + offset)
    return checksum


def read_block(path: str, *, verify: bool) -> tuple[RecordBlock, dict[str, Any], Arrays]:
    """Map a file of `write_block`; return the block, the header and one's own arrays.

    Args:
        path: path of the file.
        verify: whether to compare the checksum, for which the whole file is read.

    Raises:
        InputError: the file is damaged, or was written by another version.
        OSError: it cannot be read.
    """
    header, start = _read_header(path)
    if os.path.getsize(path) != start + header["size"]:
        raise InputError(f"{path}: has another size than it should have")
    data = np.memmap(path, np.uint8, "r") if header["size"] else np.zeros(start, np.uint8)
    arrays = {}
    for name, (dtype, shape, offset) in header["arrays"].items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        # A plain view: each slice of a memmap would be an object of its slower class.
        raw = data[start + offset : start + offset + size].view(np.ndarray)
        arrays[name] = raw.view(dtype).reshape(shape)
    if verify:
        checksum = 0
        for x in arrays.values():
            checksum = _checksum(x, checksum)
        if checksum != header["checksum"]:
            raise InputError(f"{path}: its checksum is not right")
    return _block(arrays, header.pop("kinds")), header, arrays


def _read_header(path: str) -> tuple[dict[str, Any], int]:
    """Return the header of a file, and where its arrays begin."""
    with open(path, "rb") as file:
        try:
            magic, length = START.unpack(file.read(START.size))
            if magic != MAGIC:
                raise ValueError("it is of another version")
            header = msgspec.msgpack.decode(file.read(length))
            return header, _align(START.size + length)
        except (struct.error, ValueError, OverflowError, MemoryError) as error:
            raise InputError(f"{path}: is damaged ({error})") from None


def _arrays(block: RecordBlock) -> Arrays:
    strings = {**block.texts, "rows": block.rows}
    arrays = {"kind_of": block.kind_of, "sizes": block.sizes}
    for name, x in strings.items():
        arrays |= {f"{name} data": x.data, f"{name} ends": x.ends}
    return arrays


def _block(arrays: Arrays, kinds: list[dict[str, Any]]) -> RecordBlock:
    strings = {
        x: Strings(arrays.pop(f"{x} data"), arrays.pop(f"{x} ends")) for x in (*TEXTS, "rows")
    }
    return RecordBlock(
        kinds=[msgspec.convert(kind, Kind) for kind in kinds],
        kind_of=arrays.pop("kind_of"),
        rows=strings.pop("rows"),
        texts=strings,
        sizes=arrays.pop("sizes"),
        load_row=load_plain,
    )


def _check_plain(block: RecordBlock) -> None:
    if any(not isinstance(x, bytes) for kind in block.kinds for x in kind.shared.values()):
        raise NotPlainError
    with_rows = np.flatnonzero(np.diff(block.rows.ends, prepend=0))
    try:
        for index in with_rows.tolist():
            load_plain(block.rows[index])
    except pickle.UnpicklingError:
        raise NotPlainError from None


def _checksum(x: np.ndarray, value: int) -> int:
    data = x.reshape(-1).view(np.uint8).data
    for begin in range(0, len(data), CRC_BYTES):
        value = zlib.crc32(data[begin : begin + CRC_BYTES], value)
    return value


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
