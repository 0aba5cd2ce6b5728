"""Records in a few arrays: no dict is made before its record is asked for.

Ten million dicts take six gigabytes in every process that makes them. The arrays take one, which
data workers share with their parent, and with a file (see `record_file`) all processes of a node.
"""

import copyreg
import io
import pickle
from array import array
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from .records import Record

TEXTS = ("file_name", "image_id")  # strings with an array each
SIZES = ("height", "width")  # integers with an array each
# Values of other types, such as look-up tables and readers of maps, are kept once for all records.
OWN_TYPES = (str, int, float, list, dict, set, tuple, type(None), np.ndarray, np.generic)
CHUNK = 1 << 16  # strings that are looked up at once
MAX_SHARED = 256  # kinds of records with shared values; a reader of maps may be one for each image


@dataclass(frozen=True)
class Kind:
    """What many records have in common.

    Attributes:
        keys: all keys, in their order.
        texts: keys of the values in the arrays of TEXTS.
        sizes: keys of the values in the arrays of SIZES.
        rows: keys of the values that are pickled for each record.
        shared: keys and values that all these records share.
    """

    keys: tuple[str, ...]
    texts: tuple[str, ...]
    sizes: tuple[str, ...]
    rows: tuple[str, ...]
    shared: dict[str, Any]

    @classmethod
    def of(cls, record: Record, share: bool) -> "Kind":
        """Return the kind of a record; `share` whether others may have the same objects."""
        texts = tuple(key for key in TEXTS if type(record.get(key)) is str)
        sizes = tuple(key for key in SIZES if type(record.get(key)) is int)
        others = [key for key in record if key not in texts + sizes]
        shared = {x: record[x] for x in others if share and not isinstance(record[x], OWN_TYPES)}
        rows = tuple(key for key in others if key not in shared)
        return cls(tuple(record), texts, sizes, rows, shared)


@dataclass(frozen=True)
class Strings:
    """Strings of bytes in one array.

    Attributes:
        data: (B,) uint8, all bytes one after the other.
        ends: (N,) int64, where each string ends.
    """

    data: np.ndarray
    ends: np.ndarray

    def __getitem__(self, index: int) -> memoryview:
        begin = self.ends[index - 1] if index else 0
        return self.data.data[begin : self.ends[index]]

    def some(self, indices: np.ndarray) -> Iterator[memoryview]:
        """Yield some of the strings, in a third of the time."""
        data = self.data.data
        for first in range(0, len(indices), CHUNK):
            part = indices[first : first + CHUNK]
            begins = np.where(part > 0, self.ends[part - 1], 0).tolist()
            for begin, end in zip(begins, self.ends[part].tolist(), strict=True):
                yield data[begin:end]


@dataclass(frozen=True)
class RecordBlock:
    """The records of a dataset.

    Attributes:
        kinds: kinds of the records.
        kind_of: (N,) uint32, index of each record's kind.
        texts: key of TEXTS -> its values, "" where a record has none.
        sizes: (N, 2) int64, the values of SIZES, 0 where a record has none.
        rows: pickled tuple of the other values, empty where there are none.
        load_row: function that loads such a tuple.
    """

    kinds: list[Kind]
    kind_of: np.ndarray
    texts: dict[str, Strings]
    sizes: np.ndarray
    rows: Strings
    load_row: Callable[[memoryview], tuple] = pickle.loads

    @classmethod
    def of(cls, records: Iterable[Record]) -> "RecordBlock":
        """Return a block of records, whose values must survive pickling."""
        kinds, texts, sizes, rows = _Kinds(), {key: _Bytes() for key in TEXTS}, array("q"), _Bytes()
        kind_of = array("I")
        for record in records:
            index, kind = kinds.find(record)
            kind_of.append(index)
            for key, strings in texts.items():
                strings.add(encode(record[key]) if key in kind.texts else b"")
            sizes.extend([record[key] if key in kind.sizes else 0 for key in SIZES])
            values = tuple([record[key] for key in kind.rows])
            rows.add(_pickled(values) if values else b"")
        return cls(
            kinds=kinds.kinds,
            kind_of=np.frombuffer(kind_of, np.uint32),
            texts={key: strings.strings() for key, strings in texts.items()},
            sizes=np.frombuffer(sizes, np.int64).reshape(-1, len(SIZES)),
            rows=rows.strings(),
        )

    def __len__(self) -> int:
        return len(self.kind_of)

    def record(self, index: int) -> Record:
        """Return a new dict of a record."""
        kind = self.kinds[self.kind_of[index]]
        values = dict(zip(SIZES, self.sizes[index].tolist(), strict=True)) | kind.shared
        for key in kind.texts:
            values[key] = decode(self.texts[key][index])
        if kind.rows:
            values |= zip(kind.rows, self.load_row(self.rows[index]), strict=True)
        return {key: values[key] for key in kind.keys}

    def has(self, key: str) -> np.ndarray:
        """Return which records have a key, (N,) bool."""
        return np.array([key in kind.keys for kind in self.kinds], bool)[self.kind_of]

    def values(self, key: str, indices: np.ndarray) -> Iterator[Any]:
        """Yield the values of a key of some records, which all have it."""
        if all(key in kind.texts for kind in self.kinds):
            return map(decode, self.texts[key].some(indices))
        return (self.record(i)[key] for i in indices.tolist())


def encode(text: str) -> bytes:
    """Return the bytes of any string, of a file name that is not UTF-8 as well."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: memoryview) -> str:
    """The inverse of `encode`."""
    return str(data, "utf-8", "surrogatepass")


# Python 3.11.2 pickles a value of an enum by `getattr`, which `record_file` does not load.
_REDUCERS: ChainMap[Any, Any] = ChainMap(
    {BoxMode: lambda mode: (BoxMode, (int(mode),))}, copyreg.dispatch_table
)


def _pickled(values: tuple) -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=5)
    pickler.dispatch_table = _REDUCERS
    pickler.dump(values)
    return file.getvalue()


class _Bytes:
    """Collects strings of bytes."""

    def __init__(self):
        self.data, self.ends = bytearray(), array("q")

    def add(self, value: bytes) -> None:
        self.data += value
        self.ends.append(len(self.data))

    def strings(self) -> Strings:
        return Strings(np.frombuffer(self.data, np.uint8), np.frombuffer(self.ends, np.int64))


class _Kinds:
    """Finds the kinds of records."""

    def __init__(self):
        self.kinds: list[Kind] = []
        self._indices: dict[tuple, int] = {}  # signature -> index
        self._num_shared = 0

    def find(self, record: Record) -> tuple[int, Kind]:
        """Return index and kind of a record."""
        # A shared object lives as long as its kind, so no other one has its id.
        own = [type(x) if isinstance(x, OWN_TYPES) else id(x) for x in record.values()]
        signature = (*record, *own)
        is_full = self._num_shared >= MAX_SHARED
        if signature not in self._indices and is_full:
            signature = (*record, *map(type, record.values()))
        if signature not in self._indices:
            self._indices[signature] = len(self.kinds)
            self.kinds.append(Kind.of(record, share=not is_full))
            self._num_shared += bool(self.kinds[-1].shared)
        index = self._indices[signature]
        return index, self.kinds[index]
