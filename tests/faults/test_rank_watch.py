"""A rank that dies or stalls is named, and all ranks end; `make faults` tries it more."""

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from mtfixmatch.runtime.rank_watch import RankWatch, _num_collectives, failure_of
from tests.support.break_ranks import KINDS
from tests.support.helpers import REPOSITORY


def test_a_failing_rank_is_named_and_ends_all_but_a_busy_one_does_not(tmp_path):
    tries = json.dumps(dict.fromkeys(KINDS, 1))
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.break_ranks"]
    command += [str(tmp_path), "0", "7", tries]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    tallies = json.loads(done.stdout.splitlines()[-1])
    assert list(tallies) == list(KINDS)
    for tally in tallies.values():
        assert tally["survived"] == tally["tries"] == 1, tally["problems"][0]


def test_a_single_process_is_not_watched():
    watch = RankWatch(1e-9)
    with watch.running(), watch.stepping("step 0"):
        pass
    with pytest.raises(ValueError, match="^planned$"), watch.running():
        raise ValueError("planned")


def test_collectives_of_every_group_count():
    """With GPUs, a rank may wait for its peers in the group of the host, too."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        host = dist.new_group(backend="gloo")
        before = _num_collectives()
        for group in (None, host, host):
            dist.all_reduce(torch.ones(1), group=group)
        assert _num_collectives() == before + 3
    finally:
        dist.destroy_process_group()


def test_a_failure_has_the_message_of_the_process_that_failed():
    killed = ProcessExitedException("", 1, 70, -9, "SIGKILL")
    assert failure_of(killed, 4).startswith("rank 5 (process 70 on ")
    assert failure_of(killed, 4).endswith(") ended with SIGKILL")
    assert failure_of(ProcessExitedException("", 0, 70, 3), 0).endswith("ended with exit status 3")
    head = "\n\n-- Process 0 terminated with the following error:\nTraceback:\n  File\n"
    raised = ProcessRaisedException(f"{head}ValueError: planned", 0, 70)
    assert failure_of(raised, 2).startswith("rank 2 (process 70 on ")
    assert failure_of(raised, 2).endswith(") failed:\nTraceback:\n  File\nValueError: planned")
    told = ProcessRaisedException(f"{head}mtfixmatch.utils.errors.InputError: no file: x", 0, 70)
    assert failure_of(told, 2) == "no file: x"
