"""Ranks as threads of one process, whose collectives work and are noted."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from detectron2.utils import comm

HOST = "host"  # the group of collectives in which no GPU takes part


class ThreadRanks:
    """Stands for the default process group of `torch.distributed`, and for that of the hosts.

    Attributes:
        sent: for each rank, group, operation, type and shape of each collective.
    """

    def __init__(self, size: int):
        """Set the number of ranks."""
        self.size = size
        self.sent: list[list[tuple]] = [[] for _ in range(size)]
        self._local = threading.local()
        self._given: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=120)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Run `work` with its number on every rank, and return the results."""
        with self._patched(), ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(lambda rank: self._as_rank(rank, work), range(self.size)))

    def _as_rank(self, rank: int, work: Callable[[int], Any]) -> Any:
        self._local.rank = rank
        try:
            return work(rank)
        except BaseException:
            self._barrier.abort()  # the others need not wait for it
            raise

    @contextmanager
    def _patched(self) -> Iterator[None]:
        replaced = {
            "is_initialized": lambda: True,
            "get_backend": lambda group=None: "gloo",
            "get_world_size": lambda group=None: self.size,
            "get_rank": lambda group=None: self._local.rank,
            "all_reduce": self._all_reduce,
            "all_gather": self._all_gather,
            "all_gather_object": self._all_gather_object,
        }
        group = mock.patch.object(comm, "_get_global_gloo_group", lambda: HOST)
        with mock.patch.multiple(dist, **replaced), group:
            yield

    def _exchange(self, value: Any, *note: Any) -> list[Any]:
        """Return what all ranks give to this collective."""
        self.sent[self._local.rank].append(note)
        self._given[self._local.rank] = value
        self._barrier.wait()
        given = list(self._given)
        self._barrier.wait()
        return given

    def _all_reduce(self, x: torch.Tensor, op: Any = None, group: Any = None, **_: Any) -> None:
        given = self._exchange(x.clone(), group, "all_reduce", x.dtype, tuple(x.shape))
        x.copy_(torch.stack(given).sum(dim=0))

    def _all_gather(
        self, out: Sequence[torch.Tensor], x: torch.Tensor, group: Any = None, **_: Any
    ) -> None:
        given = self._exchange(x.clone(), group, "all_gather", x.dtype, tuple(x.shape))
        for to, value in zip(out, given, strict=True):
            to.copy_(value)

    def _all_gather_object(self, out: list, value: Any, group: Any = None) -> None:
        out[:] = self._exchange(value, group, "all_gather_object")
