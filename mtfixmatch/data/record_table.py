"""A sequence of records that makes a dict only when one is asked for."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .record_block import RecordBlock
from .records import Record, Records


@dataclass(frozen=True, eq=False)
class RecordTable(Sequence[Record]):
    """The records of one dataset or of several, some of their labels hidden.

    Each record that is asked for is a new dict. Questions about all records are answered from
    arrays, see `has` and `values`.

    Attributes:
        blocks: the records of the datasets, one after the other.
        rows: (N,) int64, indices of the records in these blocks; None: all of them.
        hidden: label key -> (N,) bool, records whose label is in record["hidden"] instead.
        defaults: keys and values of the records that do not have the keys.
    """

    blocks: Sequence[RecordBlock]
    rows: np.ndarray | None = None
    hidden: Mapping[str, np.ndarray] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> "RecordTable":
        """Return a table of records; a table stays what it is."""
        return records if isinstance(records, cls) else cls([RecordBlock.of(records)])

    def __len__(self) -> int:
        return sum(map(len, self.blocks)) if self.rows is None else len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        index = range(len(self))[operator.index(index)]
        block, row = self._place(index)
        record = {**self.defaults, **block.record(row)}
        if keys := [key for key, mask in self.hidden.items() if mask[index]]:
            record["hidden"] = record.get("hidden", {}) | {key: record.pop(key) for key in keys}
        return record

    def _place(self, index: int) -> tuple[RecordBlock, int]:
        """Return the block of a record, and its index there."""
        row = index if self.rows is None else int(self.rows[index])
        for block in self.blocks:
            if row < len(block):
                return block, row
            row -= len(block)
        raise IndexError(index)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(map(operator.eq, self, other))

    def has(self, key: str) -> np.ndarray:
        """Return which records have a key, (N,) bool; a hidden label counts as none."""
        if key in self.defaults:
            return np.ones(len(self), bool)
        found = np.concatenate([np.zeros(0, bool), *(block.has(key) for block in self.blocks)])
        found = found if self.rows is None else found[self.rows]
        return found & ~self.hidden[key] if key in self.hidden else found

    def values(self, key: str, indices: np.ndarray | None = None) -> Iterator[Any]:
        """Yield the values of a key of some records, or of all, which all have it from the start.

        Args:
            key: key that is no default, and no label that is hidden.
            indices: (M,) int, the records; None: all of them.
        """
        rows = np.arange(len(self)) if indices is None else indices
        rows = rows if self.rows is None else self.rows[rows]
        starts = np.cumsum([0, *map(len, self.blocks)])
        blocks = np.searchsorted(starts, rows, side="right") - 1
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(blocks)) + 1):
            if len(part):
                block = blocks[part[0]]
                yield from self.blocks[block].values(key, rows[part] - starts[block])

    def select(self, indices: np.ndarray) -> "RecordTable":
        """Return a table of some of the records."""
        return replace(
            self,
            rows=indices if self.rows is None else self.rows[indices],
            hidden={key: mask[indices] for key, mask in self.hidden.items()},
        )

    def hide(self, masks: Mapping[str, np.ndarray]) -> "RecordTable":
        """Return a table with hidden labels: label key -> (N,) bool, records that have it."""
        old = self.hidden
        merged = {key: mask | old[key] if key in old else mask for key, mask in masks.items()}
        return replace(self, hidden={**old, **merged})

    def with_defaults(self, values: Record) -> "RecordTable":
        """Return a table whose records have these keys and values unless they have others."""
        return replace(self, defaults={**values, **self.defaults})


def has_labels(records: Records | Iterable[Record], keys: Sequence[str]) -> np.ndarray:
    """Return which records have which labels, (N, K) bool for K label keys."""
    if isinstance(records, RecordTable):
        columns = [records.has(key) for key in keys]
        return np.array(columns, bool).reshape(len(keys), len(records)).T
    rows = [[key in record for key in keys] for record in records]
    return np.array(rows, bool).reshape(len(rows), len(keys))
