"""Save a checkpoint and stop at SIGTERM or SIGUSR1, which clusters send before they take a node."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from ..utils.distributed import sum_on_host

# Signals that ask a training to save and to stop.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Exit status of a run that was stopped and can go on (EX_TEMPFAIL of sysexits.h).
STOPPED = 75


def in_main_thread() -> bool:
    """Whether this is the main thread, which alone can handle signals."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handling(numbers: Sequence[int], handler) -> Iterator[None]:
    """Handle signals while in the block; in a thread other than the main one, do nothing."""
    before = {x: signal.signal(x, handler) for x in (numbers if in_main_thread() else ())}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)


class StopRequest:
    """Records stop signals while it is listening; the training asks for them once per step."""

    _signal = 0  # number of the last stop signal, 0: none

    def listening(self) -> AbstractContextManager[None]:
        """Record signals while in the block; in a thread other than the main one, do nothing."""
        return handling(STOP_SIGNALS, self._record)

    def _record(self, number: int, frame: object) -> None:
        self._signal = number

    def agreed(self) -> str:
        """Return the name of a signal that any rank has received, or "": the same on all ranks."""
        # Ranks may have received different signals: all agree on the first of STOP_SIGNALS.
        own = self._signal
        counts = sum_on_host([own == stop for stop in STOP_SIGNALS])
        return next((x.name for x, n in zip(STOP_SIGNALS, counts, strict=True) if n), "")


def forwarding() -> AbstractContextManager[None]:
    """Forward the signals to the child processes that this process waits for."""

    def forward(number: int, frame: object) -> None:
        for pid in filter(None, (child.pid for child in multiprocessing.active_children())):
            os.kill(pid, number)

    return handling(STOP_SIGNALS, forward)
