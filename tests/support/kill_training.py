"""Trainings that are killed again and again, resume, and end as one that nobody interrupted.

A warm process that has imported everything forks a child for each start of the command. Nothing
here starts a thread before a fork.
"""

import importlib.util
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.engine import defaults as detectron2_defaults
from torch.utils import tensorboard  # noqa: F401

from mtfixmatch.engine import trainer as trainer_module
from mtfixmatch.engine.history import MetricsWriter
from mtfixmatch.runtime.signals import STOPPED
from tests.support.disk_faults import at_byte, at_call
from tests.support.short_training import (
    SAMPLERS,
    STEPS,
    TRAIN_NET,
    StepPipe,
    Tally,
    arguments,
    differences,
    make_data,
    run_child,
)

SIGKILL, SIGKILL_IN_WRITE = "SIGKILL at any moment", "SIGKILL inside a write"
SIGTERM = "SIGTERM"


@dataclass(frozen=True)
class Kill:
    """When and how one start of the command is killed; by default it is not.

    The parent sends a signal once `steps` steps of this start are complete, or once the step `last`
    is, or the child kills itself in a write or a system call.

    Attributes:
        kind: name of the row that it counts for.
        steps: number of steps that this start completes before the signal; -1: no signal by this.
        last: number of the step after which the signal is sent; -1: no signal by this.
        delay: seconds between that step and the signal.
        signal: the signal that is sent.
        byte: the child dies in the write that passes this byte of all that it writes; -1: never.
        call: name and number (from 0) of the call of `os` in which the child dies.
    """

    kind: str = ""
    steps: int = -1
    last: int = -1
    delay: float = 0.0
    signal: int = signal.SIGKILL
    byte: int = -1
    call: tuple[str, int] | None = None

    def is_due(self, pipe: StepPipe) -> bool:
        """Whether the step before the signal is complete."""
        last = max(pipe.completed, default=-1)
        return 0 <= self.steps <= len(pipe.completed) or 0 <= self.last <= last

    def armed(self) -> AbstractContextManager:
        """Context, in the child, in which it dies at `byte` or in `call`."""
        if self.byte >= 0:
            return at_byte(self.byte, _die)
        return at_call(*self.call, _die) if self.call else nullcontext()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Start:
    """One start of the command, as the parent saw it.

    Attributes:
        first: step that it started from; -1: it did not get so far.
        last: last step that it completed; -1: none.
        status: exit status, negative for a signal.
    """

    first: int = -1
    last: int = -1
    status: int = 0

    @property
    def interrupted(self) -> bool:
        # SIGTERM itself ends a process that does not train yet.
        return self.status in (-signal.SIGKILL, -signal.SIGTERM, STOPPED)


def start(args: list[str], kill: Kill, log: Path) -> Start:
    """Run the command in a child until it ends or is killed."""
    pipe = StepPipe()
    child = os.fork()
    if child == 0:
        run_child(partial(_train, args, kill, pipe), log)
    deadline = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        pipe.read()
        if pid:
            break
        if deadline is None and kill.is_due(pipe):
            deadline = time.monotonic() + kill.delay
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, kill.signal)
            deadline = math.inf
        time.sleep(0.003)
    pipe.close()
    status = os.waitstatus_to_exitcode(status)
    return Start(pipe.start, max(pipe.completed, default=-1), status)


def _train(args: list[str], kill: Kill, pipe: StepPipe) -> None:
    with kill.armed():
        spec = importlib.util.spec_from_file_location("train_net", TRAIN_NET)
        assert spec and spec.loader
        command = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(command)
        pipe.report_from_here()
        # Write metrics.json at every step, or at steps without a checkpoint.
        trainer_module.MetricsWriter = partial(MetricsWriter, period=1 if "explicit" in args else 3)
        # Collecting facts about the machine takes seconds.
        detectron2_defaults.collect_env_info = str
        command.launch_main(default_argument_parser().parse_args(args))


@dataclass
class Campaign:
    """Kills trainings at random moments and counts which of them end as if nothing had happened.

    Attributes:
        folder: where the data, the references and the trainings are.
        seed: seed of the moments.
        tallies: results by kind of kill and number of data workers.
    """

    folder: Path
    seed: int
    tallies: dict[str, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.rng = random.Random(self.seed)
        self.root = self.folder / "data"
        make_data(self.root)

    def reference(self, sampler: str) -> Path:
        """Folder of a training that nobody interrupted."""
        output = self.folder / f"reference_{sampler}"
        if not output.exists():
            log = self.folder / f"reference_{sampler}.log"
            status = start(arguments(self.root, output, sampler, 0), Kill(), log).status
            assert status == 0, log.read_text()[-3000:]
        return output

    def random_kill(self, kind: str) -> Kill:
        """A kill of this kind at a random moment."""
        if kind != SIGKILL_IN_WRITE:
            number = signal.SIGTERM if kind == SIGTERM else signal.SIGKILL
            steps, delay = self.rng.randrange(4), self.rng.uniform(0, 0.5)
            return Kill(kind, steps=steps, delay=delay, signal=number)
        if self.rng.random() < 0.3:
            name = self.rng.choice(("replace", "fsync", "remove"))
            return Kill(kind, call=(name, self.rng.randrange(3, 14)))
        sizes = [p.stat().st_size for p in self.reference("explicit").glob("model_0*.pth")]
        return Kill(kind, byte=self.rng.randrange(2 * min(sizes)))

    def train(self, sampler: str, workers: int, kills: Iterable[Kill], name: str) -> None:
        """Restart one training after each kill, let it end, and compare it with the reference."""
        expected = self.reference(sampler)
        output, log = self.folder / name, self.folder / f"{name}.log"
        args = arguments(self.root, output, sampler, workers)
        kinds: list[str] = []
        repeated: list[int] = []
        last, status = -1, 0
        for kill in [*kills, Kill()]:
            seen = start(args, kill, log)
            if repeated and seen.first >= 0:
                repeated[-1] = max(last + 1 - seen.first, 0)
            last = max(seen.last, last if seen.first < 0 else seen.first - 1)
            status = seen.status
            if not seen.interrupted:
                break
            kinds.append(f"{kill.kind}, {workers} workers")
            repeated.append(0)
        wrong = differences(expected, output) if status == 0 else [log.read_text()[-2000:]]
        for kind, steps in zip(kinds, repeated, strict=True):
            tally = self.tallies.setdefault(kind, Tally())
            tally.add("\n".join(wrong))
            tally.repeated.append(steps)
        if not wrong:
            shutil.rmtree(output)

    def run(self, kills: int, shares: dict[str, float], per_training: int = 8) -> None:
        """Kill trainings of all samplers and numbers of workers.

        Args:
            kills: number of kills in all.
            shares: share of each kind of kill.
            per_training: most kills of one training.
        """
        number = 0
        while (done := sum(t.tries for t in self.tallies.values())) < kills:
            sampler = SAMPLERS[number % 3]
            workers = (number // 3 + number) % 3
            count = min(per_training, kills - done)
            kinds = self.rng.choices(list(shares), list(shares.values()), k=count - 1)
            # The last one when the last checkpoint is there, but perhaps not the report.
            end = Kill(SIGKILL, last=STEPS - 1, delay=self.rng.uniform(0, 1))
            self.train(sampler, workers, [*map(self.random_kill, kinds), end], f"training_{number}")
            number += 1


def main() -> None:
    """Arguments FOLDER KILLS SEED; prints the tallies as JSON."""
    folder, kills, seed = sys.argv[1:]
    campaign = Campaign(Path(folder), int(seed))
    campaign.run(int(kills), {SIGKILL: 0.6, SIGKILL_IN_WRITE: 0.4})
    print(json.dumps({kind: vars(tally) for kind, tally in campaign.tallies.items()}))


if __name__ == "__main__":
    main()
