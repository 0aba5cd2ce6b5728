"""Name a rank that dies or stalls, and end all ranks instead of letting them wait for it.

Each rank sends a heartbeat with the number of collectives that it has begun, through the store of
the process group, which works across machines and with any backend. A rank that waits in a
collective has begun it; a rank with a smaller number keeps its peers waiting.
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
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from .signals import in_main_thread

BEAT = 2.0  # seconds between two heartbeats of a rank
# Seconds in which the rank that failed may end first, so that its launcher shows its traceback.
GRACE = 10.0
# Seconds for the work of a single rank, such as the metrics of an evaluation or a checkpoint. After
# half an hour PyTorch gives up by itself, without naming a rank.
LONG = 25 * 60.0
# Exceptions whose message is complete; of an exception in a process, only the name is known.
SHOWN = ("InputError", "InputErrors", "FloatingPointError")


class RankWatch:
    """Watches all ranks while it is `running`; with a single process it does nothing."""

    def __init__(self, seconds: float, *, compiles: bool = False):
        """Set the limits.

        Args:
            seconds: time that a rank may keep its peers waiting or send no heartbeat; 0: no limit.
            compiles: whether networks are compiled, which may take minutes in any step.
        """
        self.seconds = seconds
        self.compiles = compiles
        self._enabled = bool(seconds) and comm.get_world_size() > 1
        # What the main thread does, for how many seconds it may, and how often it made progress.
        self._stage, self._stage_limit, self._progress = "the start", LONG, 0
        self._status = ""  # "", "done", or why this rank failed
        self._ended = threading.Event()
        host = socket.gethostname()
        self._name = f"rank {comm.get_rank()} (process {os.getpid()} on {host})"
        # Ranks with the same launcher: one process has started them and waits for them.
        self._launcher = f"{host} {os.getppid()}"
        self._heartbeats: dict[int, dict] = {}  # the last one by rank
        self._received: dict[int, float] = {}  # when that was
        self._last_progress: tuple = ()
        self._stalled_since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch until the block is left; all ranks must enter it together."""
        if not self._enabled:
            yield
            return
        store = dist.distributed_c10d._get_default_store()
        # Use a connection of our own if PyTorch can clone it: others may block theirs.
        self._store = store.clone() if hasattr(store, "clone") else store
        self._send_heartbeat()
        comm.synchronize()
        self._exchange_heartbeats()
        for work in (self._keep_exchanging, self._keep_checking):
            threading.Thread(target=work, daemon=True).start()
        try:
            with self._knowing_of_compilations() if self.compiles else nullcontext():
                yield
        except SystemExit:
            self._finish("done")
            raise
        except BaseException as error:
            self._handle_failure(error)
            raise
        self._finish("done")

    @contextmanager
    def stepping(self, stage: str) -> Iterator[None]:
        """Limit a stage of the main thread, by name, that takes seconds on every rank."""
        self._enter(stage, self.seconds)
        yield
        self._enter(f"what follows {stage}", LONG)

    @contextmanager
    def _knowing_of_compilations(self) -> Iterator[None]:
        """Let PyTorch say when it compiles, and give it as much time as an evaluation's metrics."""
        from torch._dynamo.callback import callback_handler  # takes a second

        interrupted: list[tuple[str, float]] = []

        def start(*args: object) -> None:
            interrupted.append((self._stage, self._stage_limit))
            self._enter("the compilation of a network", LONG)

        def end(*args: object) -> None:
            self._enter(*interrupted.pop())

        callback_handler.register_start_callback(start)
        callback_handler.register_end_callback(end)
        try:
            yield
        finally:
            callback_handler.remove_start_callback(start)
            callback_handler.remove_end_callback(end)

    def callbacks(self) -> dict[str, Callable[[], None]]:
        """Callbacks for Detectron2's `inference_on_dataset`: each image is progress."""
        enter_images = partial(self._enter, "the evaluation's images", self.seconds)
        enter_metrics = partial(self._enter, "the evaluation's metrics", LONG)
        return {"on_start": enter_images, "after_inference": enter_images, "on_end": enter_metrics}

    def _enter(self, stage: str, limit: float) -> None:
        self._stage, self._stage_limit = stage, limit
        self._progress += 1

    def _keep_exchanging(self) -> None:
        """Exchange heartbeats, in a thread of their own."""
        with suppress(RuntimeError):  # rank 0 holds the store: without it, this rank is silent too
            while not self._ended.wait(BEAT):
                self._exchange_heartbeats()

    def _send_heartbeat(self) -> None:
        beat = {"sent": time.monotonic(), "collectives": _num_collectives(), "status": self._status}
        beat |= {"name": self._name, "launcher": self._launcher, "pid": os.getpid()}
        self._store.set(f"watch/{comm.get_rank()}", json.dumps(beat))

    def _exchange_heartbeats(self) -> None:
        self._send_heartbeat()
        keys = [f"watch/{rank}" for rank in range(comm.get_world_size())]
        for rank, beat in enumerate(map(json.loads, self._store.multi_get(keys))):
            if beat != self._heartbeats.get(rank):
                self._heartbeats[rank], self._received[rank] = beat, time.monotonic()

    def _keep_checking(self) -> None:
        """Check the heartbeats, in another thread."""
        now = 0.0
        while not self._ended.wait(BEAT):
            last, now = now, time.monotonic()
            if now - last > 3 * BEAT:  # this process itself was stopped or got no CPU time
                self._received = dict.fromkeys(self._received, now)
                self._stalled_since = now
            for heartbeat in self._heartbeats.values():
                if heartbeat["status"] not in ("", "done") and not self._ended.wait(GRACE):
                    self._terminate(heartbeat["status"])
            self._check_own_progress(now)
            for rank, received in list(self._received.items()):
                if self._heartbeats[0]["status"] == "done":  # rank 0 ends, and the store with it
                    break
                if now - received > self.seconds and self._heartbeats[rank]["status"] != "done":
                    self._end_silent_peer(self._heartbeats[rank], now - received)

    def _check_own_progress(self, now: float) -> None:
        """End all ranks if this one has stalled while a peer has begun more collectives."""
        own = (_num_collectives(), self._progress)
        most = max((beat["collectives"] for beat in self._heartbeats.values()), default=0)
        if own != self._last_progress or own[0] >= most:
            self._last_progress, self._stalled_since = own, now
        if now - self._stalled_since > self._stage_limit:
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            stack = "".join(traceback.format_stack(frame))
            stalled = f"{_duration(now - self._stalled_since)}, in {self._stage}"
            self._finish(f"{self._name} keeps its peers waiting {stalled}:\n{stack}")
            self._terminate(self._status)

    def _end_silent_peer(self, peer: dict, silent: float) -> None:
        beats = [beat for beat in self._heartbeats.values() if beat != peer]
        pids = [beat["pid"] for beat in beats if beat["launcher"] == self._launcher]
        if peer["launcher"] == self._launcher:  # a stopped process would outlive the others
            with suppress(ProcessLookupError):
                os.kill(peer["pid"], signal.SIGKILL)
            time.sleep(BEAT)
        message = f"{peer['name']} sent no heartbeat {_duration(silent)}"
        self._terminate(message if os.getpid() == min(pids) else "")  # one rank of each launcher

    def _terminate(self, message: str) -> None:
        if message:
            print(f"error: {message}", file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)

    def _finish(self, status: str) -> None:
        """Send a last heartbeat, if possible, that says that or why this rank ends."""
        self._status = status
        with suppress(RuntimeError):
            self._send_heartbeat()
        self._ended.set()
        if status != "done" and comm.is_main_process():
            time.sleep(2 * BEAT)  # rank 0 holds the store, where its peers have to read the status

    def _handle_failure(self, error: BaseException) -> None:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            text = "".join(traceback.format_exception(error))
            self._finish(f"{self._name} failed in {self._stage}:\n{text}")
            return
        # A peer is gone: the launcher knows which one, or the checking thread finds out.
        if in_main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.seconds = min(self.seconds, GRACE)
        self._ended.wait(self.seconds + GRACE + 3 * BEAT)


def _num_collectives() -> int:
    """Number of collectives that this rank has begun, on the host (gloo) and on the GPUs (NCCL)."""
    groups: list[Any] = list(dist.distributed_c10d._world.pg_map)
    return sum(group._get_sequence_number_for_group() for group in groups)


def _duration(seconds: float) -> str:
    return f"for {seconds:.0f} s, since {datetime.now() - timedelta(seconds=seconds):%H:%M:%S}"


def failure_of(error: ProcessException, first_rank: int) -> str:
    """Message of an error of torch.multiprocessing, by the lowest rank on this machine."""
    rank, host = first_rank + error.error_index, socket.gethostname()
    process = f"rank {rank} (process {error.error_pid} on {host})"
    if isinstance(error, ProcessExitedException):
        return f"{process} ended with {error.signal_name or f'exit status {error.exit_code}'}"
    text = error.msg.split("error:\n", 1)[-1].strip()
    name, _, message = text.splitlines()[-1].partition(": ")
    return message if name.split(".")[-1] in SHOWN else f"{process} failed:\n{text}"
