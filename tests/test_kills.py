"""Trainings that are killed; `make faults` kills many more."""

import json
import subprocess
import sys

from helpers import REPOSITORY
from lives import PERIOD

KILLS = 20


def test_a_training_that_is_killed_anywhere_ends_as_if_it_had_not_been(tmp_path):
    script = REPOSITORY / "tests" / "kill_training.py"
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(KILLS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    tallies = json.loads(done.stdout.splitlines()[-1])
    assert sum(tally["tries"] for tally in tallies.values()) == KILLS
    assert {kind.split(", ")[1] for kind in tallies} == {f"{n} workers" for n in range(3)}
    for kind, tally in tallies.items():
        assert tally["survived"] == tally["tries"], (kind, tally["wrong"][:3])
        # Nobody repeats more steps than lie between two checkpoints.
        assert max(tally["lost"]) <= PERIOD, (kind, tally["lost"])
