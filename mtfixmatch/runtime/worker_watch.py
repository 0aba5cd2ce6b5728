"""Notice data workers that die or hang, and say what they were reading."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray

from torch.utils.data import DataLoader, get_worker_info

from ..utils.errors import InputError

_END = object()


class _Row(ctypes.Structure):
    # A time, that of the start or the end of the last file, and a name, empty between two files.
    _fields_ = (("time", ctypes.c_double), ("name", ctypes.c_char * 4096))


class _Lost(BaseException):
    """Not an Exception: it may interrupt a reader, which would take that for a broken file."""


class WatchedMapper:
    """A mapper that leaves word of the file that it is at, in memory shared by all processes."""

    def __init__(self, mapper: Callable[..., dict], num_workers: int):
        """Wrap a mapper of (record, ...) for so many workers; for 0, the process itself."""
        self._mapper = mapper
        self.rows = RawArray(_Row, max(num_workers, 1))

    def __call__(self, record: dict, *args) -> dict:
        """What the mapper gives."""
        worker = get_worker_info()
        row = self.rows[worker.id if worker else 0]
        row.time, row.name = time.monotonic(), os.fsencode(record["file_name"])[:4095]
        try:
            return self._mapper(record, *args)
        finally:
            row.time, row.name = time.monotonic(), b""


class WatchedLoader:
    """A DataLoader whose workers do not vanish or hang without a word.

    The workers are looked at once a second while a batch is waited for; outside of the main thread,
    where there are no signals, only when PyTorch misses one.
    """

    def __init__(self, loader: DataLoader, mapper: WatchedMapper, timeout: int):
        """Watch a loader.

        Args:
            loader: to iterate over.
            mapper: that its data set calls.
            timeout: seconds of waiting without any sign of life after which to give up; 0: never.
        """
        self._loader = loader
        self._mapper = mapper
        self._timeout = timeout

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        with _without_sigchld_handler():
            batches = iter(self._loader)
        while (batch := self._next(batches)) is not _END:
            yield batch

    def _next(self, batches: Iterator):
        workers: list[BaseProcess] = getattr(batches, "_workers", [])
        try:
            with _every_second(_Look(self._mapper.rows, workers, self._timeout)):
                return next(batches, _END)
        except _Lost as lost:
            _kill(workers)
            raise InputError(str(lost)) from None
        except (RuntimeError, OSError, EOFError):  # of PyTorch, if one died while it handed over
            # Its connections break before the sentinel, and that before its end can be asked for.
            ended = wait([worker.sentinel for worker in workers], timeout=5)
            dead = [i for i, worker in enumerate(workers) if worker.sentinel in ended]
            if not dead:
                raise
            workers[dead[0]].join(5)
            _kill(workers)
            raise InputError(_death(workers[dead[0]], self._mapper.rows[dead[0]])) from None


class _Look:
    """Looks at the workers, at each call while one batch is waited for.

    It counts calls, not seconds: when all processes have been suspended, nobody hangs.
    """

    def __init__(self, rows, workers: list[BaseProcess], timeout: int):
        self._rows, self._workers, self._timeout = rows, workers, timeout
        self._seen = [(0.0, b"")] * len(rows)
        self._unchanged = [0] * len(rows)

    def __call__(self) -> None:
        for worker, row in zip(self._workers, self._rows, strict=False):
            if worker.exitcode:  # those that are through end with 0
                raise _Lost(_death(worker, row))
        for i, row in enumerate(self._rows):
            now = (row.time, row.name)
            self._unchanged[i] = self._unchanged[i] + 1 if now == self._seen[i] else 0
            self._seen[i] = now
        if self._timeout:
            self._find_stuck()

    def _find_stuck(self) -> None:
        long = [count >= self._timeout for count in self._unchanged]
        reading = [i for i, (_, name) in enumerate(self._seen) if long[i] and name]
        if not reading and not all(long):
            return
        pids = [worker.pid for worker in self._workers] or [os.getpid()]
        found = [f"process {pids[i]} hangs, {_at_work(self._rows[i])}" for i in reading]
        found += [f"process {pid} is stopped" for pid in pids if _is_stopped(pid)]
        raise _Lost(
            f"no data for {self._timeout} s (DATALOADER.TIMEOUT): "
            + ("; ".join(found) or f"none of the data workers {pids} answers")
        )


def _death(worker: BaseProcess, row: _Row) -> str:
    code = worker.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    hint = "; if memory is short, lower DATALOADER.NUM_WORKERS" if code == -signal.SIGKILL else ""
    return f"the data worker {worker.pid} {how}, {_at_work(row)}{hint}"


def _at_work(row: _Row) -> str:
    return f"at work on {os.fsdecode(row.name)} or its labels" if row.name else "between two images"


def _is_stopped(pid: int | None) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    return False


def _kill(workers: list[BaseProcess]) -> None:
    """End them now: PyTorch asks politely and waits for each."""
    for worker in workers:
        worker.kill()


@contextmanager
def _without_sigchld_handler() -> Iterator[None]:
    """Keep PyTorch from installing its own, which raises errors anywhere in the training."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _every_second(act: Callable[[], None]):
    in_main = threading.current_thread() is threading.main_thread()
    return _alarms(act) if in_main else nullcontext()


@contextmanager
def _alarms(act: Callable[[], None]) -> Iterator[None]:
    handler = signal.signal(signal.SIGALRM, lambda *_: act())
    timer = signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
