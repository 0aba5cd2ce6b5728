"""Stop signals and the lock on a folder, with the real command."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from mtfixmatch.runtime.lock import locked
from mtfixmatch.runtime.signals import STOPPED, StopRequest
from tests.support.helpers import REPOSITORY
from tests.support.short_training import (
    TRAIN_NET,
    arguments,
    children_of,
    differences,
    make_data,
)

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
TWO = ("--num-gpus", "2", "--dist-url", "auto")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_data(root)
    return root


class Run:
    """The command, as a process that is watched by what it prints."""

    def __init__(self, root, output, *flags, **opts):
        pairs = [str(x) for pair in opts.items() for x in (pair[0].replace("__", "."), pair[1])]
        args = [*flags, *arguments(root, output, "explicit", 0), *pairs]
        self.process = subprocess.Popen(
            [sys.executable, str(TRAIN_NET), *args],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.text = ""

    def wait_for(self, pattern):
        for line in self.process.stdout:
            self.text += line
            if re.search(pattern, line):
                return
        raise AssertionError(self.text[-3000:])

    def end(self):
        self.text += self.process.communicate(timeout=300)[0]
        return self.process.returncode


def finish(root, output, *flags):
    run = Run(root, output, *flags)
    assert run.end() == 0, run.text[-3000:]


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    finish(data, output)
    return output


# Signals


# A cluster sends its signal to all processes, data workers too.
@pytest.mark.parametrize("number, workers", [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_a_signal_saves_and_stops_and_the_run_goes_on(
    data, uninterrupted, tmp_path, number, workers
):
    # Without any other checkpoint, so that the one of the signal is what it goes on from.
    opts = {"SOLVER__CHECKPOINT_PERIOD": 100, "DATALOADER__NUM_WORKERS": workers}
    run = Run(data, tmp_path / "out", **opts)
    run.wait_for("Evaluation of the teacher" if workers else "Starting training from iteration 0")
    os.killpg(run.process.pid, number)
    assert run.end() == STOPPED == 75, run.text[-3000:]
    told = re.search(rf"Stopped by {number.name} after step (\d+).*--resume", run.text)
    assert told and "Traceback" not in run.text
    name = f"model_{int(told[1]):07d}.pth"
    assert (tmp_path / "out" / "last_checkpoint").read_text() == name
    assert torch.load(tmp_path / "out" / name)["iteration"] == int(told[1])
    assert not (tmp_path / "out" / "report.md").exists()
    finish(data, tmp_path / "out")
    assert differences(uninterrupted, tmp_path / "out") == []


def ranks_of(run):
    """The two processes of a run, once both listen for signals."""
    run.wait_for("Starting training from iteration")
    pids = []
    for pid in children_of(run.process.pid):
        with open(f"/proc/{pid}/cmdline") as file:
            if "spawn_main" in file.read():
                pids.append(pid)
    while not all(catches(pid, signal.SIGUSR1) for pid in pids):
        time.sleep(0.01)
    return pids


def catches(pid, number):
    with open(f"/proc/{pid}/status") as file:
        mask = next(line.split()[1] for line in file if line.startswith("SigCgt"))
    return int(mask, 16) >> (number - 1) & 1


def test_a_signal_on_one_rank_stops_both_at_the_same_step(data, tmp_path):
    opts = {"DATALOADER__SAMPLING": "implicit", "SOLVER__CHECKPOINT_PERIOD": 100}
    opts |= {"SOLVER__IMS_PER_BATCH": 4, "INPUT__TRAIN_SIZE": "(64, 64)"}
    opts |= {"SOLVER__MAX_ITER": 100_000}  # it ends by the signal, however late that comes
    run = Run(data, tmp_path / "out", *TWO, **opts)
    ranks = ranks_of(run)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGUSR1)
    assert run.end() == STOPPED, run.text[-3000:]
    saved = list((tmp_path / "out").glob("model_0*.pth"))
    assert len(saved) == 1 and "Stopped by SIGUSR1" in run.text
    step = torch.load(saved[0])["iteration"]
    again = Run(data, tmp_path / "out", *TWO, **opts)
    ranks_of(again)
    # The process that has started the two hands the signal on.
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == STOPPED, again.text[-3000:]
    assert "Stopped by SIGTERM" in again.text
    assert f"Starting training from iteration {step + 1}" in again.text


def test_the_handlers_are_there_only_while_listening():
    request = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    with request.listening():
        assert signal.getsignal(signal.SIGTERM) != before
        assert request.agreed() == ""
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.agreed() == "SIGUSR1"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_trains_without_handlers():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopRequest().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


# The lock


def test_a_second_run_on_a_folder_is_refused(data, uninterrupted, tmp_path):
    first = Run(data, tmp_path / "out", SOLVER__MAX_ITER=100_000)  # until it is killed
    first.wait_for("Starting training from iteration 0")
    config = (tmp_path / "out" / "config.yaml").read_bytes()
    second = Run(data, tmp_path / "out", SOLVER__MAX_ITER=4)
    assert second.end() == 1
    errors = [line for line in second.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in second.text
    assert f"OUTPUT_DIR {tmp_path / 'out'} is in use by process {first.process.pid} " in errors[0]
    assert (tmp_path / "out" / "config.yaml").read_bytes() == config
    weights = uninterrupted / "model_final.pth"
    evaluation = Run(data, tmp_path / "out", "--eval-only", MODEL__WEIGHTS=weights)
    assert evaluation.end() == 0, evaluation.text[-3000:]  # it takes no lock
    assert first.process.poll() is None
    first.process.kill()
    first.end()
    with locked(str(tmp_path / "out")):  # the kernel has given it back
        pass


def test_tensorboard_leaves_out_the_steps_that_were_taken_again(data, uninterrupted, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copytree(uninterrupted, tmp_path / "out")
    last = tmp_path / "out" / "last_checkpoint"
    assert last.read_text() == "model_0000011.pth"
    last.write_text("model_0000009.pth")
    time.sleep(1.1)  # TensorBoard orders the files by their second
    finish(data, tmp_path / "out")
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()
    steps = [event.step for event in events.Scalars("total_loss")]
    assert steps == sorted(set(steps)) and steps[-1] == 11


FAILS_WITH_A_WORKER = """
import sys
from tests.support.helpers import tiny_config
from mtfixmatch.data.loader import build_train_loader, train_records
from mtfixmatch.tasks import build_tasks

cfg = tiny_config(sys.argv[1], "DATALOADER.NUM_WORKERS", 1, "DATALOADER.SAMPLING", "implicit")
tasks = build_tasks(cfg)
batches = iter(build_train_loader(cfg, tasks, train_records(cfg, tasks)))
next(batches)
raise RuntimeError("planned")
"""


def test_a_process_that_fails_does_not_wait_for_its_workers(data):
    """They ignore SIGTERM, by which Python ends what is left of them."""
    done = subprocess.run(
        [sys.executable, "-c", FAILS_WITH_A_WORKER, str(data)],
        env=ENVIRONMENT,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "RuntimeError: planned"
