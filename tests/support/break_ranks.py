"""Trainings in which one of two ranks dies or stalls; it must be named and all must end."""

import json
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from detectron2.engine.launch import _find_free_port
from detectron2.utils import comm
from torch import multiprocessing

from mtfixmatch.engine import evaluation
from mtfixmatch.engine.step import MultiTaskStep
from mtfixmatch.runtime import rank_watch
from mtfixmatch.runtime.signals import STOPPED
from tests.support.short_training import (
    STEPS,
    TRAIN_NET,
    StepPipe,
    Tally,
    arguments,
    children_of,
    make_data,
    run_child,
)

KILLED, STOPPED_RANK, ASLEEP = "rank killed", "rank stopped (SIGSTOP)", "rank asleep in a step"
RAISES, MACHINE = "exception on a rank", "machine killed"
BUSY, SIGTERM = "rank 0 alone busy in an evaluation", "SIGTERM on one of two machines"
KINDS = (KILLED, STOPPED_RANK, ASLEEP, RAISES, MACHINE, BUSY, SIGTERM)
SECONDS = 60  # from the fault to the end of all processes


def sabotage(kind: str, rank: int, step: int, seconds: float) -> None:
    """Make a rank fail or stall in the processes that are forked from this one."""
    label, mean = MultiTaskStep.pseudo_label, evaluation.geometric_mean

    def wrong_label(trainer, *given):
        if (comm.get_rank(), trainer.iter) == (rank, step):
            if kind == RAISES:
                raise ValueError("planned")
            time.sleep(1000)
        return label(trainer, *given)

    def slow_mean(values):
        time.sleep(seconds)
        return mean(values)

    if kind in (ASLEEP, RAISES):
        MultiTaskStep.pseudo_label = wrong_label
    if kind == BUSY:
        evaluation.geometric_mean = slow_mean


@dataclass
class Launch:
    """The command on one machine, in a session of its own, and the steps that it reports.

    Attributes:
        args: arguments of the command.
        log: file for what it prints.
        prepare: called in the child before the command.
        status: exit status, negative for a signal; None while it runs.
    """

    args: list[str]
    log: Path
    prepare: Callable[[], None] = lambda: None
    status: int | None = None

    def __post_init__(self) -> None:
        self._pipe = StepPipe()
        self.pid = os.fork()
        if not self.pid:
            run_child(self._run, self.log)

    @property
    def steps(self) -> list[int]:
        """Completed steps, of all its ranks."""
        return self._pipe.completed

    def _run(self) -> None:
        os.setsid()
        self.prepare()
        self._pipe.report_from_here()
        multiprocessing.start_processes = partial(
            multiprocessing.start_processes, start_method="fork"
        )
        sys.argv = ["train_net.py", *self.args]
        runpy.run_path(str(TRAIN_NET), run_name="__main__")

    def poll(self) -> None:
        """Update `steps` and `status`."""
        self._pipe.read()
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None

    def ranks(self) -> list[int]:
        """Process ids of its ranks, in their order."""
        return children_of(self.pid)

    def gone(self) -> bool:
        """Whether all its processes have ended, data workers too."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def kill(self) -> None:
        """Kill all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def wait_until(done: Callable[[], bool], launches: Iterable[Launch], seconds: float) -> bool:
    """Poll the launches until `done` holds; False if it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for launch in launches:
            launch.poll()
        if done():
            return True
        time.sleep(0.02)
    return False


@dataclass
class Breaker:
    """Breaks trainings at random steps and on random ranks.

    Attributes:
        folder: where the data and the trainings are.
        seed: seed of the steps and ranks.
        seconds: SOLVER.STALL_SECONDS.
        tallies: results by kind of fault.
    """

    folder: Path
    seed: int
    seconds: float
    tallies: dict[str, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        if self.seconds < 20:  # ranks that stall are then found in seconds
            rank_watch.BEAT, rank_watch.GRACE = 0.5, 3.0
        self.rng = random.Random(self.seed)
        make_data(self.folder / "data")

    def launch(self, kind: str, name: str, machines: int, step: int, rank: int) -> list[Launch]:
        """Start the command on each of one or two machines, with two ranks in all."""
        url = f"tcp://127.0.0.1:{_find_free_port()}"
        workers = self.rng.randrange(2)
        args = arguments(self.folder / "data", self.folder / name, "implicit", workers)
        args += ["SOLVER.STALL_SECONDS", str(self.seconds), "SOLVER.CHECKPOINT_PERIOD", "100"]
        args += ["SOLVER.IMS_PER_BATCH", "4", "INPUT.TRAIN_SIZE", "(64, 64)"]
        steps, period = (STEPS, 0) if kind == BUSY else (10000, 3)
        args += ["TEST.EVAL_PERIOD", str(period), "SOLVER.MAX_ITER", str(steps)]
        prepare = partial(sabotage, kind, rank, step, 1.3 * self.seconds)
        launches = []
        for machine in range(machines):
            places = ["--num-machines", str(machines), "--machine-rank", str(machine)]
            given = ["--num-gpus", str(2 // machines), "--dist-url", url, *places, *args]
            log = self.folder / f"{name}_{machine}.log"
            launches.append(Launch(given, log, prepare))
        return launches

    def break_one(self, kind: str) -> None:
        """Break one training and count the result."""
        number = sum(tally.tries for tally in self.tallies.values())
        machines = 2 if kind in (MACHINE, SIGTERM) else self.rng.choice((1, 2))
        step, rank = self.rng.randrange(1, 4), self.rng.randrange(2)
        launches = self.launch(kind, f"training_{number}", machines, step, rank)
        problem = self._break(kind, launches, step, rank)
        for launch in launches:
            launch.kill()
        logs = "\n".join(launch.log.read_text()[-1500:] for launch in launches)
        where = f"{kind}, rank {rank} of {machines} machines"
        self.tallies.setdefault(kind, Tally()).add(problem and f"{where}: {problem}\n{logs}")

    def _break(self, kind: str, launches: list[Launch], step: int, rank: int) -> str:
        """Cause the fault after a step and wait for the end; returns what went wrong, or ""."""
        ranks = self._wait_for_step(launches, step)
        if not ranks:
            return "it did not start"
        time.sleep(self.rng.uniform(0, 0.3))
        broken = launches[rank] if len(launches) == 2 else launches[0]
        if kind in (KILLED, STOPPED_RANK):
            os.kill(ranks[rank], signal.SIGKILL if kind == KILLED else signal.SIGSTOP)
        elif kind == MACHINE:
            broken.kill()
        elif kind == SIGTERM:
            os.kill(broken.pid, signal.SIGTERM)
        # A stopped process that is alone on its machine has nobody there to end it.
        lost = kind == MACHINE or (kind == STOPPED_RANK and len(launches) == 2)
        others = [x for x in launches if not (lost and x is broken)]
        start = time.monotonic()
        if not wait_until(lambda: all(x.status is not None for x in others), launches, SECONDS):
            return f"not all have ended after {SECONDS} s"
        print(f"{kind}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        if not wait_until(lambda: all(x.gone() for x in others), launches, 15):
            return "processes are left"
        return self._check_end(kind, others, ranks[rank], rank)

    def _wait_for_step(self, launches: list[Launch], step: int) -> list[int]:
        """Process ids of both ranks once they have completed so many steps; [] if they do not."""

        def pids() -> list[int]:
            return [pid for launch in launches for pid in launch.ranks()]

        def complete() -> bool:
            ended = any(launch.status is not None for launch in launches)
            return ended or sum(len(launch.steps) for launch in launches) >= 2 * step

        # Taken at once: a rank that fails by itself may be gone by the time of that step.
        wait_until(lambda: len(pids()) == 2, launches, 120)
        ranks = pids()
        good = wait_until(complete, launches, 120) and all(x.status is None for x in launches)
        return ranks if good else []

    def _check_end(self, kind: str, launches: list[Launch], pid: int, rank: int) -> str:
        """What is wrong with the exit statuses and logs, or ""."""
        statuses = [launch.status for launch in launches]
        if kind in (BUSY, SIGTERM):
            expected = STOPPED if kind == SIGTERM else 0
            last = {max(launch.steps) for launch in launches}
            good = statuses == [expected] * len(launches) and len(last) == 1
            return "" if good else f"statuses {statuses}, last steps {last}"
        if any(status in (0, STOPPED) for status in statuses):
            return f"statuses {statuses}"
        for launch in launches:
            text = launch.log.read_text()
            if f"rank {rank} (process {pid} on " not in text:
                return "the log does not name the rank"
            stack = {ASLEEP: "time.sleep(1000)", RAISES: "ValueError: planned"}.get(kind, "")
            if stack not in text:
                return "the log has no traceback"
        return ""

    def run(self, tries: dict[str, int]) -> None:
        """Break trainings, as many of each kind as `tries` says."""
        for kind, count in tries.items():
            for _ in range(count):
                self.break_one(kind)


def main() -> None:
    """Arguments FOLDER SEED SECONDS TRIES, the last one as JSON; prints the tallies as JSON."""
    folder, seed, seconds, tries = sys.argv[1:]
    breaker = Breaker(Path(folder), int(seed), float(seconds))
    breaker.run(json.loads(tries))
    print(json.dumps({kind: vars(tally) for kind, tally in breaker.tallies.items()}))


if __name__ == "__main__":
    main()
