"""Trainings that torchrun or SLURM restart resume, and end as one that nobody interrupted."""

import signal

import pytest

from tests.support.clusters import Cluster, log_of
from tests.support.short_training import differences

STARTED = "Rank of current process: 0. World size: 2"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return Cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def whole(cluster):
    return cluster.train("whole")


def test_torchrun_starts_a_run_again_whose_process_has_died(cluster, whole):
    output = cluster.kill_under_torchrun("killed", rank=1, delay=0)
    assert log_of(output).count(STARTED) == 2
    assert differences(whole, output) == []


def test_a_job_that_slurm_stops_is_queued_again(cluster, whole):
    output = cluster.requeue("stopped", signal.SIGUSR1, delay=0)
    assert log_of(output).count(STARTED) == 2
    assert log_of(output).count("Stopped by SIGUSR1") == 1
    assert differences(whole, output) == []
