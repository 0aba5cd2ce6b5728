"""Rows of `make faults`: processes that fail each other, and random mixes of labels over them."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mtfixmatch.street import generate as street
from tests.support.break_ranks import ASKED, ASLEEP, BUSY, KILLED, MACHINE, RAISES, STOPPED_RANK
from tests.support.clusters import Cluster
from tests.support.compare_runs import differences
from tests.support.helpers import REPOSITORY
from tests.support.kill_training import Tally
from tests.support.ranks import CASES, differs

# SOLVER.STALL_SECONDS -> tries; the last one is the default, and takes a minute each time.
TRIES = {
    "7": {KILLED: 10, STOPPED_RANK: 5, ASLEEP: 5, RAISES: 10, MACHINE: 5, BUSY: 3, ASKED: 5},
    "40": {STOPPED_RANK: 1, ASLEEP: 1, MACHINE: 1},
}
MIXES = 34  # of each case
RESTARTS = 5  # by torchrun, and of a job of SLURM


def break_ranks(folder: Path, seed: int) -> dict[str, Tally]:
    """Tallies of all of it, by what went wrong."""
    tallies: dict[str, Tally] = {}
    for seconds, tries in TRIES.items():
        place = folder / f"ranks_{seconds}"
        place.mkdir()
        out = _run("break_ranks", place, seed, seconds, json.dumps(tries))
        for kind, found in json.loads(out.splitlines()[-1]).items():
            tally = tallies.setdefault(kind, Tally())
            tally.tries += found["tries"]
            tally.survived += found["survived"]
            tally.wrong += found["wrong"]
    tallies["labels mixed over 2 ranks"] = mix_labels(folder, seed)
    return tallies | start_again(folder / "cluster", seed)


def start_again(folder: Path, seed: int) -> dict[str, Tally]:
    """Trainings that a cluster's tools start again."""
    folder.mkdir()
    rng, cluster = random.Random(seed), Cluster(folder)
    whole, killed, asked = cluster.launch("whole"), Tally(), Tally()
    for i in range(RESTARTS):
        rank, delay = rng.randrange(2), rng.uniform(0, 0.5)
        again = partial(cluster.kill_under_torchrun, f"killed_{i}", rank, delay)
        count(killed, again, whole)
        number, delay = rng.choice((signal.SIGTERM, signal.SIGUSR1)), rng.uniform(0, 0.5)
        count(asked, partial(cluster.queue_again, f"asked_{i}", number, delay), whole)
    return {"rank killed under torchrun": killed, "job stopped and queued again": asked}


def count(tally: Tally, again: Callable[[], Path], whole: Path) -> None:
    """One try, which should have left the same as the whole training."""
    try:
        wrong = ", ".join(differences(whole, again()))
    except AssertionError as error:
        wrong = str(error)
    tally.tries += 1
    tally.survived += not wrong
    tally.wrong += [wrong] * bool(wrong)


def mix_labels(folder: Path, seed: int) -> Tally:
    """Steps of two processes that are those of one."""
    root, output = folder / "mixes_data", folder / "mixes"
    output.mkdir()
    street.generate(root / "street", num_train=16, num_val=6, size=(256, 128), seed=1)
    _run("ranks", root, output, MIXES, 0, seed)
    single, *ranks = (
        torch.load(output / f"mixes_{name}.pth") for name in ("0_of_1", "0_of_2", "1_of_2")
    )
    good = [
        not any(differs(rank[case][i], single[case][i]) for rank in ranks)
        for case in CASES
        for i in range(MIXES)
    ]
    return Tally(len(good), sum(good))


def _run(script: str, *args) -> str:
    command = [sys.executable, "-W", "ignore", "-m", f"tests.support.{script}", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout
