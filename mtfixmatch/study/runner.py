"""Run the missing runs of a study: on this machine, several side by side, or through SLURM."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml
from tqdm import tqdm

from ..runtime.signals import STOPPED
from ..utils.errors import InputError
from .plan import Run
from .state import state_of, write_status

LOG_FILE = "run.log"
TRAIN = ("-m", "mtfixmatch", "train")  # in a checkout, and installed without one


@dataclass(frozen=True)
class Slot:
    """A part of this machine that one run has for itself."""

    gpus: tuple[int, ...] = ()  # numbers of its GPUs
    cores: tuple[int, ...] = ()  # numbers of its CPU cores; empty for all cores

    def enter(self) -> dict[str, str]:
        """Bind this thread and its subprocesses to the cores; return the variables they need."""
        if self.cores:
            os.sched_setaffinity(0, self.cores)
        threads = {"OMP_NUM_THREADS": str(len(self.cores))} if self.cores else {}
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.gpus))} if self.gpus else {}
        return threads | gpus


@dataclass(frozen=True)
class Launcher:
    """Call the training for a run; picklable, so that a SLURM job can carry it to its node."""

    config: Path  # the config file that the run starts from
    gpus: int = 0  # number of GPUs per run; 0 for the device of MODEL.DEVICE
    train: tuple[str, ...] = TRAIN  # arguments of Python that call the training

    def command(self, run: Run) -> list[str]:
        """Return the command of a run, which resumes from a checkpoint if there is one."""
        command = [sys.executable, "-W", "ignore", *self.train, "--resume"]
        if self.gpus:
            command += ["--num-gpus", str(self.gpus), "--dist-url", "auto"]
        command += ["--config-file", str(self.config), "OUTPUT_DIR", str(run.folder)]
        return command + run.overrides

    def __call__(self, run: Run, slot: Slot | None = None) -> str | None:
        """Train to the end, with the output in run.log; return the reason of a failure, or None."""
        run.folder.mkdir(parents=True, exist_ok=True)
        if not os.environ.get("SLURM_JOB_ID"):  # under SLURM, the status names the job
            write_status(run, None)
        command, environment = self.command(run), os.environ | (slot.enter() if slot else {})
        with (run.folder / LOG_FILE).open("a") as log:
            code = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        error = None if code == 0 else _reason(run.folder / LOG_FILE, code)
        # A run that was asked to stop is unfinished, not failed.
        write_status(run, None if code == STOPPED else error)
        return error

    def checkpoint(self, run: Run) -> Any:
        """Tell submitit to queue the same run again when SLURM preempts its node."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run)


def _reason(log: Path, code: int) -> str:
    """Return the exit status or the signal, and the last line of the log."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    end = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    return f"{end}: {lines[-1].strip()[:300]}" if lines else end


def pending(runs: Sequence[Run], *, again: bool = False) -> list[Run]:
    """Return the runs to do, with `again` also submitted ones; raise InputError if one changed."""
    states = [state_of(run) for run in runs]
    for state in states:
        if state.name == "changed":
            raise InputError(f"{state.message}: delete it or give another --output")
    skipped = ("done",) if again else ("done", "submitted")
    return [run for run, state in zip(runs, states, strict=True) if state.name not in skipped]


def run_here(
    runs: Sequence[Run], launch: Callable[[Run, Slot], str | None], slots: Sequence[Slot]
) -> dict[str, str]:
    """Run on this machine, one run per slot at a time, and return {failed run: reason}.

    A failure does not stop the other runs.
    """
    free: SimpleQueue[Slot] = SimpleQueue()
    for slot in slots:
        free.put(slot)
    bar = tqdm(total=len(runs), desc="runs", unit="run")

    def work(run: Run) -> tuple[str, str | None]:
        slot = free.get()
        try:
            tqdm.write(f"starts: {run.name}")
            error = launch(run, slot)
        finally:
            free.put(slot)
        tqdm.write(f"{'FAILED' if error else 'done'}: {run.name} {error or ''}")
        bar.update()
        return run.name, error

    with bar, ThreadPoolExecutor(len(slots)) as pool:
        try:
            return {name: error for name, error in pool.map(work, runs) if error}
        except KeyboardInterrupt:  # the trainings get it too; start no other run
            pool.shutdown(cancel_futures=True)
            raise


def gpu_slots(num_gpus: int, gpus_per_run: int) -> list[Slot]:
    """Share the GPUs of this machine between runs, so many for each."""
    if not 1 <= gpus_per_run <= num_gpus:
        raise InputError(f"--gpus-per-run is {gpus_per_run}, of --num-gpus {num_gpus}")
    starts = range(0, num_gpus - gpus_per_run + 1, gpus_per_run)
    return [Slot(gpus=tuple(range(start, start + gpus_per_run))) for start in starts]


def core_slots(jobs: int) -> list[Slot]:
    """Share this process's CPU cores equally between jobs; a single job gets the whole machine.

    Threads of runs on the same cores wait for each other, which costs far more than the sharing.
    Several small runs on cores of their own finish sooner than one after the other on all cores.
    """
    if jobs == 1:
        return [Slot()]
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise InputError(f"--jobs is {jobs}, expected 1 to {len(cores)}, the number of cores")
    each = len(cores) // jobs
    return [Slot(cores=tuple(cores[i * each : (i + 1) * each])) for i in range(jobs)]


def submit(
    runs: Sequence[Run], launch: Launcher, *,
    folder: Path, partition: str, parameters: Mapping[str, str], cluster: str = "slurm",
) -> list[Any]:  # fmt: skip
    """Submit the runs to SLURM through submitit, one job each with the launcher's GPUs.

    Every node must see `folder`, which gets submitit's logs. `parameters` are submitit's, as texts,
    such as {"timeout_min": "4320"}; its clusters "local" and "debug" are this machine. Raise
    InputError without submitit, or for wrong parameters.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise InputError("--slurm needs submitit: pip install 'mtfixmatch[slurm]'") from None
    # Written before a job can start, because the job overwrites it when it ends.
    for run in runs:
        write_status(run, None, job=partition)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(
            name="mtfixmatch", slurm_partition=partition, gpus_per_node=launch.gpus, nodes=1,
            **{name: yaml.safe_load(text) for name, text in parameters.items()},
        )  # fmt: skip
        with executor.batch():
            return [executor.submit(launch, run) for run in runs]
    except (RuntimeError, NameError, TypeError, AssertionError, FailedJobError) as error:
        for run in runs:
            write_status(run, None)
        raise InputError(f"--slurm {partition}: {error}") from None
