"""SIGTERM and SIGUSR1, as clusters send before they take a node away: save, then stop."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from detectron2.utils import comm

from ..utils.distributed import sum_over_ranks

# What asks a training to save and to stop.
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
    """Notes the signals while it is entered; the run asks for it once per step."""

    def __init__(self) -> None:
        self._signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals; a thread other than the main one cannot, and goes without."""
        in_main = threading.current_thread() is threading.main_thread()
        with _handling(self._note) if in_main else nullcontext():
            yield

    def _note(self, number: int, frame: object) -> None:
        self._signal = number

    def agreed(self, device: torch.device) -> str:
        """Name of the signal if any rank has got one, else "": the same on all ranks."""
        number = self._signal
        if comm.get_world_size() > 1:
            # Ranks may have got different ones: any will do, as long as all know.
            flags = [float(number == known) for known in STOP_SIGNALS]
            counts = sum_over_ranks(flags, device)
            number = next((x for x, n in zip(STOP_SIGNALS, counts, strict=True) if n), 0)
        return signal.Signals(number).name if number else ""


@contextmanager
def forwarding() -> Iterator[None]:
    """Hand the signals on to the processes that this one has started and waits for."""

    def forward(number: int, frame: object) -> None:
        for child in multiprocessing.active_children():
            if child.pid:
                os.kill(child.pid, number)

    with _handling(forward):
        yield
