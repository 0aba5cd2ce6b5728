"""A rank that dies or stalls is named, and takes the others down instead of letting them wait.

The ranks tell each other through the store of the process group, which works on any machines and
with any backend, that they live and how many collectives they have begun. Who waits in one has
begun it; who is behind keeps the others waiting. Threads do it, so a step takes no longer.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

BEAT = 2.0  # seconds between two messages of a rank
# Seconds for the rank that failed to end first: what started it shows its traceback.
GRACE = 10.0
# Seconds for what one rank does alone, as the figures of an evaluation or a checkpoint. After half
# an hour PyTorch gives up, and names nobody.
LONG = 25 * 60.0
# Errors that say all there is to say; of a process, only the name is known.
SHOWN = ("InputError", "InputErrors", "FloatingPointError")


class RankWatch:
    """Looks after the ranks while it is `running`; with a single process it does nothing."""

    def __init__(self, seconds: float):
        """Set the time that a rank may keep others waiting or be silent; 0: as long as it likes."""
        self.seconds = seconds
        self._on = bool(seconds) and comm.get_world_size() > 1
        self._place, self._limit, self._ticks = "the start", LONG, 0
        self._note, self._beats = "", 0
        self._ended = threading.Event()
        host = socket.gethostname()
        self._name = f"rank {comm.get_rank()} (process {os.getpid()} on {host})"
        # Ranks that have this in common were started by one process, which waits for them.
        self._family = f"{host} {os.getppid()}"
        self._peers: dict[int, dict] = {}
        self._heard: dict[int, float] = {}
        self._last: tuple = ()
        self._since = self._judged = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch, until the block is left; on all ranks together."""
        if not self._on:
            yield
            return
        store = dist.distributed_c10d._get_default_store()
        # A connection of its own, where PyTorch can: others may wait on theirs.
        self._store = store.clone() if hasattr(store, "clone") else store
        self._tell()
        comm.synchronize()
        self._exchange()
        for work in (self._talk, self._look):
            threading.Thread(target=work, daemon=True).start()
        try:
            yield
        except SystemExit:
            self._end("done")
            raise
        except BaseException as error:
            self._fail(error)
            raise
        self._end("done")

    @contextmanager
    def stepping(self, place: str) -> Iterator[None]:
        """The main thread is at something that takes seconds on every rank."""
        self._go_to(place, self.seconds)
        yield
        self._go_to(f"what follows {place}", LONG)

    def callbacks(self) -> dict[str, Callable[[], None]]:
        """For Detectron2's `inference_on_dataset`: each image is progress."""
        return {
            "on_start": lambda: self._go_to("the evaluation's images", self.seconds),
            "after_inference": self._tick,
            "on_end": lambda: self._go_to("the evaluation's figures", LONG),
        }

    def _go_to(self, place: str, limit: float) -> None:
        self._place, self._limit = place, limit
        self._tick()

    def _tick(self) -> None:
        self._ticks += 1

    # The threads

    def _talk(self) -> None:
        with suppress(RuntimeError):  # rank 0 keeps the store: if that is gone, it is silent
            while not self._ended.wait(BEAT):
                self._exchange()

    def _look(self) -> None:
        while not self._ended.wait(BEAT):
            self._judge()

    def _tell(self) -> None:
        self._beats += 1
        state = {
            **{"beats": self._beats, "collectives": _collectives(), "note": self._note},
            **{"name": self._name, "family": self._family, "pid": os.getpid()},
        }
        self._store.set(f"watch/{comm.get_rank()}", json.dumps(state))

    def _exchange(self) -> None:
        self._tell()
        keys = [f"watch/{rank}" for rank in range(comm.get_world_size())]
        for rank, text in enumerate(self._store.multi_get(keys)):
            state = json.loads(text)
            if state != self._peers.get(rank):
                self._peers[rank], self._heard[rank] = state, time.monotonic()

    def _judge(self) -> None:
        before, self._judged = self._judged, time.monotonic()
        now = self._judged
        if now - before > 3 * BEAT:  # this process itself was stopped, or had no time
            self._heard = dict.fromkeys(self._heard, now)
            self._since = now
        for state in self._peers.values():
            if state["note"] not in ("", "done") and not self._ended.wait(GRACE):
                self._take_down(state["note"])
        self._judge_myself(now)
        for rank, heard in list(self._heard.items()):
            if self._peers[0]["note"] == "done":  # it takes the store along
                return
            if now - heard > self.seconds and self._peers[rank]["note"] != "done":
                self._bury(self._peers[rank], now - heard)

    def _judge_myself(self, now: float) -> None:
        mine = (_collectives(), self._ticks)
        furthest = max((state["collectives"] for state in self._peers.values()), default=0)
        if mine != self._last or mine[0] >= furthest:
            self._last, self._since = mine, now
        if now - self._since > self._limit:
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            stack = "".join(traceback.format_stack(frame))
            waited = _since(now - self._since)
            self._end(f"{self._name} keeps the others waiting {waited}, in {self._place}:\n{stack}")
            self._take_down(self._note)

    def _bury(self, state: dict, silent: float) -> None:
        kin = [s for s in self._peers.values() if s["family"] == self._family and s != state]
        message = f"{state['name']} has not been heard of {_since(silent)}"
        if state["family"] == self._family:  # a process that is stopped would outlive the others
            with suppress(ProcessLookupError):
                os.kill(state["pid"], signal.SIGKILL)
            time.sleep(BEAT)
        first = min(s["pid"] for s in kin) == os.getpid()
        self._take_down(message if first else "")

    def _take_down(self, message: str) -> None:
        if message:
            print(f"error: {message}", file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)

    # The end

    def _end(self, note: str) -> None:
        """Tell the others, as far as that is possible, that this rank ends, and why."""
        self._note = note
        with suppress(RuntimeError):
            self._tell()
        self._ended.set()
        if note != "done" and comm.is_main_process():
            time.sleep(2 * BEAT)  # it keeps the store, in which the others have to read this

    def _fail(self, error: BaseException) -> None:
        if not _of_a_peer(error):
            text = "".join(traceback.format_exception(error))
            self._end(f"{self._name} failed in {self._place}:\n{text}")
            return
        # Somebody is gone. What started this process knows who, or the thread finds out.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.seconds = min(self.seconds, GRACE)
        self._ended.wait(self.seconds + GRACE + 3 * BEAT)


def _collectives() -> int:
    group = dist.distributed_c10d._get_default_group()
    return group._get_sequence_number_for_group()  # type: ignore[attr-defined]


def _of_a_peer(error: BaseException) -> bool:
    """Whether a collective has failed, because another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _since(seconds: float) -> str:
    start = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
    return f"for {seconds:.0f} s, since {start}"


def failure_of(error: ProcessException, first_rank: int) -> str:
    """Why a run of several processes ended, as the first one that failed said it.

    Args:
        error: of torch.multiprocessing.
        first_rank: of the processes on this machine.
    """
    rank, host = first_rank + error.error_index, socket.gethostname()
    who = f"rank {rank} (process {error.error_pid} on {host})"
    if isinstance(error, ProcessExitedException):
        return f"{who} ended with {error.signal_name or f'exit status {error.exit_code}'}"
    text = error.msg.split("error:\n", 1)[-1].strip()
    name, _, message = text.splitlines()[-1].partition(": ")
    return message if name.split(".")[-1] in SHOWN else f"{who} failed:\n{text}"
