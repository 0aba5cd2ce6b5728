"""Rows of `make faults`: processes that fail each other, and random mixes of labels over them."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from break_ranks import ASKED, ASLEEP, BUSY, KILLED, MACHINE, RAISES, STOPPED_RANK
from helpers import REPOSITORY
from kill_training import Tally
from ranks import CASES, differs

from mtfixmatch.data.datasets import street

# SOLVER.STALL_SECONDS -> tries; the last one is the default, and takes a minute each time.
TRIES = {
    "7": {KILLED: 10, STOPPED_RANK: 5, ASLEEP: 5, RAISES: 10, MACHINE: 5, BUSY: 3, ASKED: 5},
    "40": {STOPPED_RANK: 1, ASLEEP: 1, MACHINE: 1},
}
MIXES = 34  # of each case


def break_ranks(folder: Path, seed: int) -> dict[str, Tally]:
    """Tallies of all of it, by what went wrong."""
    tallies: dict[str, Tally] = {}
    for seconds, tries in TRIES.items():
        place = folder / f"ranks_{seconds}"
        place.mkdir()
        out = _run("break_ranks.py", place, seed, seconds, json.dumps(tries))
        for kind, found in json.loads(out.splitlines()[-1]).items():
            tally = tallies.setdefault(kind, Tally())
            tally.tries += found["tries"]
            tally.survived += found["survived"]
            tally.wrong += found["wrong"]
    return tallies | {"labels mixed over 2 ranks": mix_labels(folder, seed)}


def mix_labels(folder: Path, seed: int) -> Tally:
    """Steps of two processes that are those of one."""
    root, output = folder / "mixes_data", folder / "mixes"
    output.mkdir()
    street.generate(root / "street", num_train=16, num_val=6, size=(256, 128), seed=1)
    _run("ranks.py", root, output, MIXES, 0, seed)
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
    command = [sys.executable, "-W", "ignore", str(REPOSITORY / "tests" / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout
