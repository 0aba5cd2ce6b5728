"""Detect data workers that die or hang, and name the file that they were reading."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from ..utils.errors import InputError
from .signals import handling, in_main_thread

_END = object()


class _Row(ctypes.Structure):
    # When the worker began or finished its last file, and the file's name, empty between two files.
    _fields_ = (("time", ctypes.c_double), ("name", ctypes.c_char * 4096))


class _WorkerFailure(BaseException):
    """A worker died or hangs; no Exception, which a reader would catch as a broken file."""


class WatchedMapper:
    """A mapper that records the file that it reads, in memory shared by all processes."""

    def __init__(self, mapper: Callable[..., Any], num_workers: int):
        """Wrap a function of (record, ...) with record["file_name"]; 0 workers: this process."""
        self._mapper = mapper
        self.rows = RawArray(_Row, max(num_workers, 1))

    def __call__(self, record: dict, *args) -> Any:
        """Return what the mapper returns."""
        worker = get_worker_info()
        row = self.rows[worker.id if worker else 0]
        row.time, row.name = time.monotonic(), os.fsencode(record["file_name"])[:4095]
        try:
            return self._mapper(record, *args)
        finally:
            row.time, row.name = time.monotonic(), b""


class WatchedLoader:
    """A DataLoader that reports workers that die or hang.

    It raises an InputError that is an item of a batch: PyTorch rewrites one that a worker raises.
    While it waits for a batch, it checks the workers once a second, and gives up after `timeout`
    seconds without progress, 0: never. Outside of the main thread, which alone handles signals, it
    checks them only when PyTorch reports a failure.
    """

    def __init__(
        self,
        loader: DataLoader,
        mapper: WatchedMapper,
        timeout: int,
        unpack: Callable[[Any], list] = list,
    ):
        """Watch a loader whose data set calls the mapper; `unpack` gets the items of a batch."""
        self._loader, self._rows, self._timeout = loader, mapper.rows, timeout
        self._unpack = unpack

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        # PyTorch installs its own handler, which raises errors at any place: this undoes that.
        with handling([signal.SIGCHLD], signal.SIG_DFL):
            batches = iter(self._loader)
        while (batch := self._next(batches)) is not _END:
            items = self._unpack(batch)
            for item in items:
                if isinstance(item, InputError):
                    del batches  # ends the workers, which the error's traceback would keep
                    raise item
            yield items

    def _next(self, batches: Iterator):
        workers: list[BaseProcess] = getattr(batches, "_workers", [])
        check = _WorkerCheck(self._rows, workers, self._timeout)
        try:
            with _every_second(check) if in_main_thread() else nullcontext():
                return next(batches, _END)
        except _WorkerFailure as failure:
            message = str(failure)
        except (RuntimeError, OSError, EOFError):  # a worker died while PyTorch read its batch
            # Its connection breaks before its sentinel, and that before it has an exit code.
            ended = wait([worker.sentinel for worker in workers], timeout=5)
            dead = [i for i, worker in enumerate(workers) if worker.sentinel in ended]
            if not dead:
                raise
            workers[dead[0]].join(5)
            message = _death(workers[dead[0]], self._rows[dead[0]])
        _kill(workers)
        raise InputError(message)


def _kill(workers: list[BaseProcess]) -> None:
    """Kill all workers at once; PyTorch would ask each to end and wait for it.

    If another loader has installed PyTorch's handler of SIGCHLD, it must find none of them.
    """
    with handling([signal.SIGCHLD], signal.SIG_DFL):
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(5)


class _WorkerCheck:
    """Checks the workers at each call while the loader waits for a batch.

    It counts calls, not seconds, so that a suspended machine is no failure.
    """

    def __init__(self, rows, workers: list[BaseProcess], timeout: int):
        self._rows, self._workers, self._timeout = rows, workers, timeout
        self._seen = [(0.0, b"")] * len(rows)
        self._unchanged = [0] * len(rows)

    def __call__(self) -> None:
        for worker, row in zip(self._workers, self._rows, strict=False):
            if worker.exitcode:  # 0: the worker has finished
                raise _WorkerFailure(_death(worker, row))
        for i, row in enumerate(self._rows):
            now = (row.time, row.name)
            self._unchanged[i] = self._unchanged[i] + 1 if now == self._seen[i] else 0
            self._seen[i] = now
        if self._timeout:
            self._find_hanging()

    def _find_hanging(self) -> None:
        long = [count >= self._timeout for count in self._unchanged]
        reading = [i for i, (_, name) in enumerate(self._seen) if long[i] and name]
        if not reading and not all(long):
            return
        pids = [worker.pid for worker in self._workers] or [os.getpid()]
        reasons = [f"process {pids[i]} hangs {_activity(self._rows[i])}" for i in reading]
        reasons += [f"process {pid} is stopped" for pid in pids if _is_stopped(pid)]
        reason = "; ".join(reasons) or f"no data worker of {pids} responds"
        raise _WorkerFailure(f"no data for {self._timeout} s (DATALOADER.TIMEOUT): {reason}")


def _death(worker: BaseProcess, row: _Row) -> str:
    code = worker.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    hint = "; if memory is short, lower DATALOADER.NUM_WORKERS" if code == -signal.SIGKILL else ""
    return f"the data worker {worker.pid} {how} {_activity(row)}{hint}"


def _activity(row: _Row) -> str:
    name = os.fsdecode(row.name)
    return f"while reading {name} or its labels" if name else "between two images"


def _is_stopped(pid: int | None) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    return False


@contextmanager
def _every_second(act: Callable[[], None]) -> Iterator[None]:
    with handling([signal.SIGALRM], lambda *_: act()):
        timer = signal.setitimer(signal.ITIMER_REAL, 1, 1)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
