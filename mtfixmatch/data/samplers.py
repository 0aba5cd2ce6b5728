"""Choose the images of each batch."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..formats.image_files import expand, files_of
from ..utils.errors import InputError
from ..utils.files import real_paths
from .record_table import RecordTable, has_labels
from .records import Records

SAMPLINGS = ("uniform", "implicit", "explicit")


class Draw(NamedTuple):
    """One image of a batch; all its random choices are keyed on the step and the position."""

    index: int  # type: ignore[assignment]  # of the record; hides tuple.index
    step: int  # training step
    position: int  # in the global batch of all ranks


@dataclass(frozen=True, kw_only=True)
class MixedBatchSampler:
    """Endless batches with a fixed number of images from each of several pools.

    The batch of a step is a function of (seed, step), so a resumed run needs only the step. Each
    pool is an endless stream of its permutations: every image is drawn once before any is drawn
    again. A batch may contain the end of one permutation and the beginning of the next.

    Raises:
        InputError: a count is no multiple of the number of processes.
    """

    pools: Sequence[Sequence[int] | np.ndarray]  # record indices
    counts: Sequence[int]  # images per global batch from each pool, of which each rank has a share
    seed: int  # of the permutations, the same on all ranks
    start_step: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if any(count % self.world_size for count in self.counts):
            raise InputError(
                f"SOLVER.IMS_PER_BATCH and DATALOADER.LABELED_PER_BATCH make batches of "
                f"{' + '.join(map(str, self.counts))} images, which {self.world_size} processes "
                f"cannot share equally: use multiples of {self.world_size}"
            )

    def __iter__(self) -> Iterator[list[Draw]]:
        return map(self.batch, itertools.count(self.start_step))

    def batch(self, step: int) -> list[Draw]:
        """Return the draws of this rank for a step."""
        return [
            Draw(self._index(pool, step * count + j), step, sum(self.counts[:pool]) + j)
            for pool, count in enumerate(self.counts)
            for j in range(self.rank, count, self.world_size)
        ]

    def _index(self, pool: int, place: int) -> int:
        """Return the record index at a place in the endless stream of a pool."""
        members = self.pools[pool]
        epoch, place = divmod(place, len(members))
        return int(members[_permutation(len(members), self.seed, pool, epoch)[place]])


# Only one or two permutations per pool are in use at a time.
@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, pool: int, epoch: int) -> np.ndarray:
    places = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
    np.random.default_rng([seed, pool, epoch]).shuffle(places)
    return places


def labeled_indices(records: Records, keys: dict[str, str], which: str) -> np.ndarray:
    """Return the indices of the records that count as labeled, (L,) int64.

    Args:
        records: dataset records.
        keys: task name -> label key.
        which: "any" label, "all" labels, that of the task of this name, or the path of a text file
            (.txt) that lists the images, one path in each line.

    Raises:
        InputError: `which` is something else, or the file cannot be read.
    """
    choices = ["any", "all", *keys]
    if which.endswith(".txt"):
        files = files_of(expand(which), "DATALOADER.LABELED")
        listed = set(real_paths(x.path for x in files))
        paths = RecordTable.of(records).values("file_name")
        return np.flatnonzero([path in listed for path in real_paths(paths)])
    if which not in choices:
        expected = f"{', '.join(choices)}, or a text file (.txt) with the paths of images"
        raise InputError(f"DATALOADER.LABELED is {which!r}, expected one of {expected}")
    label_keys = [keys[which]] if which in keys else list(keys.values())
    present = has_labels(records, label_keys)
    return np.flatnonzero(present.any(axis=1) if which == "any" else present.all(axis=1))


def build_pools(
    records: Records,
    keys: dict[str, str],
    *,
    sampling: str,
    labeled: str,
    batch_size: int,
    labeled_per_batch: int,
) -> tuple[list[np.ndarray], list[int]]:
    """Return the pools of record indices, and the number of images per batch from each pool.

    Paper Sec. 3, "Mini-batch sampling".

    Args:
        records: dataset records.
        keys: task name -> label key.
        sampling: "uniform" draws from the labeled images, "implicit" from all images, "explicit" a
            fixed number of labeled images and the rest from the other images.
        labeled: images that count as labeled, see `labeled_indices`.
        batch_size: images per global batch.
        labeled_per_batch: labeled images among them if `sampling` is "explicit".

    Raises:
        InputError: a setting is unknown, or a pool would be empty.
    """
    if sampling not in SAMPLINGS:
        expected = ", ".join(SAMPLINGS)
        raise InputError(f"DATALOADER.SAMPLING is {sampling!r}, expected one of {expected}")
    everything, counts = np.arange(len(records)), [batch_size]
    setting = f"(DATALOADER.LABELED is {labeled!r})"
    if sampling == "implicit":
        pools = {"there is no image": everything}  # by what an empty pool means
    elif sampling == "uniform":
        pools = {f"there is no labeled image {setting}": labeled_indices(records, keys, labeled)}
    else:
        pool = labeled_indices(records, keys, labeled)
        others = np.delete(everything, pool)
        pools = {f"no image is labeled {setting}": pool, f"no image is unlabeled {setting}": others}
        counts = [labeled_per_batch, batch_size - labeled_per_batch]
        if min(counts) < 1:
            raise InputError(
                f"DATALOADER.LABELED_PER_BATCH is {labeled_per_batch}, expected 1 to "
                f"{batch_size - 1} (SOLVER.IMS_PER_BATCH is {batch_size}) when DATALOADER.SAMPLING "
                "is 'explicit'"
            )
    for problem, indices in pools.items():
        if not len(indices):
            raise InputError(f"DATALOADER.SAMPLING is {sampling!r}, but {problem}")
    return list(pools.values()), counts
