"""Trainings of two processes that are interrupted and restarted by torchrun or by SLURM."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.helpers import REPOSITORY
from tests.support.short_training import COMMAND, arguments, make_data

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
BATCH = ("SOLVER.IMS_PER_BATCH", "4", "DATALOADER.LABELED_PER_BATCH", "2")
TIMEOUT = 300  # seconds, for a training

JOB = {
    **{"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node[1-2]"},
    **{"SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "1"},
}
# Stand-ins for the SLURM commands that train.sbatch calls; both nodes are this machine.
SLURM = {
    "srun": """#!/bin/bash
[ "$1" != --cpus-per-task=1 ] || shift
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit $status
""",
    "scontrol": """#!/bin/bash
[ "$1 $2" != "show hostnames" ] || echo 127.0.0.1
[ "$1" != requeue ] || echo "$2" >> "$QUEUE"
""",
}


@dataclass
class Cluster:
    """Runs trainings on the same data in a folder, each with its log beside it."""

    folder: Path

    def __post_init__(self) -> None:
        make_data(self.folder / "data")
        for name, script in SLURM.items():
            path = self.folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(script)
            path.chmod(0o755)

    def start(self, output: Path, *command: str, **variables: str) -> subprocess.Popen:
        """Start a command that ends in the arguments of train_net.py."""
        given = [*command, *arguments(self.folder / "data", output, "explicit", 0), *BATCH]
        environment = {**os.environ, **variables}
        with open(f"{output}.log", "a") as log:
            return subprocess.Popen(given, stdout=log, stderr=log, env=environment, cwd=REPOSITORY)

    def train(self, name: str) -> Path:
        """Run a training that nobody interrupts."""
        output = self.folder / name
        status = self.start(output, *COMMAND, "--num-gpus", "2").wait(TIMEOUT)
        assert status == 0, log_of(output)[-3000:]
        return output

    def kill_under_torchrun(self, name: str, rank: int, delay: float) -> Path:
        """Kill a rank `delay` seconds after the first checkpoint, and let torchrun restart it."""
        output = self.folder / name
        torchrun = (*COMMAND[:-1], *TORCHRUN, "--max-restarts", "1", COMMAND[-1])
        agent = self.start(output, *torchrun)
        wait_for_checkpoint(agent, output, delay)
        for process in psutil.Process(agent.pid).children():
            with suppress(psutil.NoSuchProcess):
                if process.environ().get("LOCAL_RANK") == str(rank):
                    process.kill()
        assert agent.wait(TIMEOUT) == 0, log_of(output)[-3000:]
        return output

    def requeue(self, name: str, number: int, delay: float) -> Path:
        """Signal a job on two nodes `delay` seconds after the first checkpoint, then requeue it."""
        output, queue = self.folder / name, self.folder / f"{name}.queue"
        places = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "QUEUE": str(queue),
        }
        job = ("bash", str(REPOSITORY / "projects" / "train.sbatch"))
        script = self.start(output, *job, **places, **JOB)
        wait_for_checkpoint(script, output, delay)
        for process in psutil.Process(script.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name() != "bash" and process.name() != "srun":
                    process.send_signal(number)
        assert script.wait(TIMEOUT) == 75, log_of(output)[-3000:]
        assert queue.read_text() == "17\n"
        assert self.start(output, *job, **places, **JOB).wait(TIMEOUT) == 0, log_of(output)[-3000:]
        return output


def log_of(output: Path) -> str:
    return Path(f"{output}.log").read_text()


def wait_for_checkpoint(process: subprocess.Popen, output: Path, delay: float) -> None:
    while process.poll() is None and not list(output.glob("model_0*.pth")):
        time.sleep(0.01)
    time.sleep(delay)
