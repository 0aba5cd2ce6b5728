"""Save a checkpoint and stop at SIGTERM or SIGUSR1, which clusters send before they take a node."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from detectron2.utils import comm

from ..utils.distributed import sum_over_ranks

# Signals that ask a training to save and to stop.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Exit status of a run that was stopped and can go on (EX_TEMPFAIL of sysexits.h).
STOPPED = 75


@contextmanager
def _handling(handler: Callable[[int, object], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class StopRequest:
    """Records stop signals while it is listening; the training asks for them once per step."""

    def __init__(self) -> None:
        self._signal = 0  # number of the last stop signal, 0: none

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals; in a thread other than the main one, which cannot, do nothing."""
        in_main = threading.current_thread() is threading.main_thread()
        with _handling(self._record) if in_main else nullcontext():
            yield

    def _record(self, number: int, frame: object) -> None:
        self._signal = number

    def agreed(self, device: torch.device) -> str:
        """Return the name of a signal that any rank has received, or "": the same on all ranks."""
        number = self._signal
        if comm.get_world_size() > 1:
            # Ranks may have received different signals: all agree on the first of STOP_SIGNALS.
            flags = [float(number == stop) for stop in STOP_SIGNALS]
            counts = sum_over_ranks(flags, device)
            number = next((x for x, n in zip(STOP_SIGNALS, counts, strict=True) if n), 0)
        return signal.Signals(number).name if number else ""


@contextmanager
def forwarding() -> Iterator[None]:
    """Forward the signals to the child processes that this process waits for."""

    def forward(number: int, frame: object) -> None:
        for child in multiprocessing.active_children():
            if child.pid:
                os.kill(child.pid, number)

    with _handling(forward):
        yield
