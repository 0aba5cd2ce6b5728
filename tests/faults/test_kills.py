"""Trainings that are killed at random moments; `make faults` kills many more."""

import json
import subprocess
import sys

from tests.support.helpers import REPOSITORY
from tests.support.short_training import PERIOD

KILLS = 20


def test_a_training_that_is_killed_anywhere_ends_as_if_it_had_not_been(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.kill_training"]
    command += [str(tmp_path), str(KILLS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    tallies = json.loads(done.stdout.splitlines()[-1])
    assert sum(tally["tries"] for tally in tallies.values()) == KILLS
    assert {kind.split(", ")[1] for kind in tallies} == {f"{n} workers" for n in range(3)}
    for kind, tally in tallies.items():
        assert tally["survived"] == tally["tries"], (kind, tally["problems"][:3])
        # At most the steps between two checkpoints are repeated.
        assert max(tally["repeated"]) <= PERIOD, (kind, tally["repeated"])
