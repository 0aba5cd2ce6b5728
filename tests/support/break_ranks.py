"""Trainings of several processes in which one dies or stalls: it is named and all of them end."""

import json
import os
import random
import re
import runpy
import signal
import sys
import time
import traceback
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
from mtfixmatch.engine import trainer as trainer_module
from mtfixmatch.engine.step import MultiTaskStep
from mtfixmatch.runtime import rank_watch
from mtfixmatch.runtime.signals import STOPPED
from tests.support.helpers import REPOSITORY
from tests.support.kill_training import Tally
from tests.support.lives import STEPS, _Tell, arguments, make_data

KILLED, STOPPED_RANK, ASLEEP = "rank killed", "rank stopped (SIGSTOP)", "rank asleep in a step"
RAISES, MACHINE = "exception on a rank", "machine killed"
BUSY, ASKED = "rank 0 alone busy in an evaluation", "SIGTERM on one of two machines"
SECONDS = 60  # from the fault to the end of all processes


def sabotage(kind: str, rank: int, step: int, seconds: float) -> None:
    """Make a rank misbehave, in the processes that are forked from this one."""
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
    """The command on one machine, in a session of its own, and what it says of its steps."""

    args: list[str]
    log: Path
    prepare: Callable[[], None] = lambda: None
    steps: list[int] = field(default_factory=list)
    status: int | None = None

    def __post_init__(self) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._run(writing)
        os.close(writing)
        os.set_blocking(reading, False)
        self._pipe = reading

    def _run(self, pipe: int) -> None:
        status = 1
        try:
            os.setsid()
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            self.prepare()
            hooks = trainer_module.MultiTaskTrainer.build_hooks
            trainer_module.MultiTaskTrainer.build_hooks = lambda t: [*hooks(t), _Tell(pipe)]
            multiprocessing.start_processes = partial(
                multiprocessing.start_processes, start_method="fork"
            )
            sys.argv = ["train_net.py", *self.args]
            runpy.run_path(str(REPOSITORY / "projects" / "train_net.py"), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
            print("" if isinstance(stop.code, int) else stop.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def look(self) -> None:
        """Take in what has happened."""
        with suppress(BlockingIOError):
            text = os.read(self._pipe, 65536).decode()
            self.steps += [int(x) for x in re.findall(r"done (\d+)", text)]
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None

    def ranks(self) -> list[int]:
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as file:
            return sorted(int(x) for x in file.read().split())

    def gone(self) -> bool:
        """Nothing of it runs, not even a data worker."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def wait_until(done: Callable[[], bool], launches: Iterable[Launch], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for launch in launches:
            launch.look()
        if done():
            return True
        time.sleep(0.02)
    return False


@dataclass
class Breaker:
    """Breaks trainings in a folder, at random steps, on random ranks.

    Attributes:
        folder: for data and trainings.
        seed: of what is random.
        seconds: SOLVER.STALL_SECONDS.
    """

    folder: Path
    seed: int
    seconds: float
    tallies: dict[str, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        if self.seconds < 20:  # what would take a minute then takes seconds
            rank_watch.BEAT, rank_watch.GRACE = 0.5, 3.0
        self.rng = random.Random(self.seed)
        make_data(self.folder / "data")

    def launch(self, kind: str, name: str, machines: int, step: int, rank: int) -> list[Launch]:
        """The command on each machine, with two ranks in all."""
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
        """One training with one fault."""
        number = sum(tally.tries for tally in self.tallies.values())
        machines = 2 if kind in (MACHINE, ASKED) else self.rng.choice((1, 2))
        step, rank = self.rng.randrange(1, 4), self.rng.randrange(2)
        launches = self.launch(kind, f"training_{number}", machines, step, rank)
        wrong = self._wrong(kind, launches, step, rank)
        for launch in launches:
            launch.kill()
        logs = "\n".join(launch.log.read_text()[-1500:] for launch in launches)
        tally = self.tallies.setdefault(kind, Tally())
        tally.tries += 1
        tally.survived += not wrong
        tally.wrong += [f"{kind}, rank {rank} of {machines} machines: {wrong}\n{logs}"] * bool(
            wrong
        )

    def _wrong(self, kind: str, launches: list[Launch], step: int, rank: int) -> str:
        """What is not as promised."""

        def started() -> bool:
            ended = any(launch.status is not None for launch in launches)
            return ended or sum(len(launch.steps) for launch in launches) >= 2 * step

        def pids() -> list[int]:
            return [pid for launch in launches for pid in launch.ranks()]

        # Who fails by itself may be gone when the others have got that far.
        wait_until(lambda: len(pids()) == 2, launches, 120)
        ranks = pids()
        if not wait_until(started, launches, 120) or any(x.status is not None for x in launches):
            return "it did not start"
        time.sleep(self.rng.uniform(0, 0.3))
        broken = launches[rank] if len(launches) == 2 else launches[0]
        if kind in (KILLED, STOPPED_RANK):
            os.kill(ranks[rank], signal.SIGKILL if kind == KILLED else signal.SIGSTOP)
        elif kind == MACHINE:
            broken.kill()
        elif kind == ASKED:
            os.kill(broken.pid, signal.SIGTERM)
        # On the machine of a process that is stopped, and alone there, nobody is left to act.
        lost = kind == MACHINE or (kind == STOPPED_RANK and len(launches) == 2)
        others = [x for x in launches if not (lost and x is broken)]
        start = time.monotonic()
        if not wait_until(lambda: all(x.status is not None for x in others), launches, SECONDS):
            return f"not all have ended after {SECONDS} s"
        print(f"{kind}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        if not wait_until(lambda: all(x.gone() for x in others), launches, 15):
            return "processes are left"
        return self._wrong_end(kind, others, ranks[rank], rank)

    def _wrong_end(self, kind: str, launches: list[Launch], pid: int, rank: int) -> str:
        statuses = [launch.status for launch in launches]
        if kind in (BUSY, ASKED):
            expected = STOPPED if kind == ASKED else 0
            last = {max(launch.steps) for launch in launches}
            good = statuses == [expected] * len(launches) and len(last) == 1
            return "" if good else f"statuses {statuses}, last steps {last}"
        if any(status in (0, STOPPED) for status in statuses):
            return f"statuses {statuses}"
        for launch in launches:
            text = launch.log.read_text()
            if f"rank {rank} (process {pid} on " not in text:
                return "it is not named"
            stack = {ASLEEP: "time.sleep(1000)", RAISES: "ValueError: planned"}.get(kind, "")
            if stack not in text:
                return "there is no traceback"
        return ""

    def run(self, tries: dict[str, int]) -> None:
        """Break so many trainings in each way."""
        for kind, count in tries.items():
            for _ in range(count):
                self.break_one(kind)


def main() -> None:
    """FOLDER SEED SECONDS TRIES, the last one as JSON: print the tallies as JSON."""
    folder, seed, seconds, tries = sys.argv[1:]
    breaker = Breaker(Path(folder), int(seed), float(seconds))
    breaker.run(json.loads(tries))
    print(json.dumps({kind: vars(tally) for kind, tally in breaker.tallies.items()}))


if __name__ == "__main__":
    main()
