"""Runs what is missing of a study: on this machine, several side by side on GPUs, or by SLURM."""

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


@dataclass(frozen=True)
class Place:
    """A part of this machine that one run has for itself.

    Attributes:
        gpus: their numbers.
        cores: likewise; none: all of them.
    """

    gpus: tuple[int, ...] = ()
    cores: tuple[int, ...] = ()

    def enter(self) -> dict[str, str]:
        """Bind this thread, and so its processes, to the cores; return their environment."""
        environment = {}
        if self.cores:
            os.sched_setaffinity(0, self.cores)
            environment["OMP_NUM_THREADS"] = str(len(self.cores))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.gpus))
        return environment


@dataclass(frozen=True)
class Launcher:
    """How train_net.py is called; a SLURM job carries it to its node.

    Attributes:
        train_net: the script.
        config: file that the run starts from.
        gpus: of each run; 0: as MODEL.DEVICE says.
    """

    train_net: Path
    config: Path
    gpus: int = 0

    def command(self, run: Run) -> list[str]:
        """The command of a run; it goes on from a checkpoint if there is one."""
        command = [sys.executable, "-W", "ignore", str(self.train_net), "--resume"]
        if self.gpus:
            command += ["--num-gpus", str(self.gpus), "--dist-url", "auto"]
        command += ["--config-file", str(self.config), "OUTPUT_DIR", str(run.folder)]
        return command + run.overrides

    def __call__(self, run: Run, place: Place | None = None) -> str | None:
        """Run it to its end, its output in run.log.

        Args:
            run: which.
            place: of this machine; None: whatever is visible.

        Returns:
            Why it failed, or None.
        """
        run.folder.mkdir(parents=True, exist_ok=True)
        if not os.environ.get("SLURM_JOB_ID"):  # else it says that there is a job
            write_status(run, None)
        environment = dict(os.environ) | (place.enter() if place else {})
        with (run.folder / LOG_FILE).open("a") as log:
            code = subprocess.run(
                self.command(run), stdout=log, stderr=subprocess.STDOUT, env=environment
            ).returncode
        error = None if code == 0 else _reason(run.folder / LOG_FILE, code)
        # A run that was asked to stop has not failed: it is interrupted.
        write_status(run, None if code == STOPPED else error)
        return error

    def checkpoint(self, run: Run) -> Any:
        """What submitit calls when SLURM takes the node away: the same run once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run)


def _reason(log: Path, code: int) -> str:
    """The last line that says something, or the signal."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    end = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    return f"{end}: {lines[-1].strip()[:300]}" if lines else end


def pending(runs: Sequence[Run], *, again: bool = False) -> list[Run]:
    """The runs that are not done, nor waiting or running under SLURM unless `again`.

    Raises:
        InputError: if one was made with other settings than the study says now.
    """
    states = [state_of(run) for run in runs]
    for state in states:
        if state.name == "changed":
            raise InputError(f"{state.message}: delete it, or give another --output")
    kept = ("done",) if again else ("done", "submitted")
    return [run for run, state in zip(runs, states, strict=True) if state.name not in kept]


def run_here(
    runs: Sequence[Run],
    launch: Callable[[Run, Place], str | None],
    places: Sequence[Place],
) -> dict[str, str]:
    """Run them on this machine, as many side by side as there are places.

    Args:
        runs: to run.
        launch: runs one and returns why it failed, see Launcher.
        places: see `gpu_places`, `core_places`.

    Returns:
        name of a run -> why it failed; the others have been run all the same.
    """
    free: SimpleQueue[Place] = SimpleQueue()
    for place in places:
        free.put(place)
    bar = tqdm(total=len(runs), desc="runs", unit="run")

    def work(run: Run) -> tuple[str, str | None]:
        place = free.get()
        try:
            tqdm.write(f"starts: {run.name}")
            error = launch(run, place)
        finally:
            free.put(place)
        tqdm.write(f"{'FAILED' if error else 'done'}: {run.name} {error or ''}")
        bar.update()
        return run.name, error

    with bar, ThreadPoolExecutor(len(places)) as pool:
        try:
            return {name: error for name, error in pool.map(work, runs) if error}
        except KeyboardInterrupt:  # the runs under way have got it too; start no other
            pool.shutdown(cancel_futures=True)
            raise


def gpu_places(num_gpus: int, gpus_per_run: int) -> list[Place]:
    """The first GPUs of this machine, so many for each run that goes on at a time."""
    if not 1 <= gpus_per_run <= num_gpus:
        raise InputError(f"--gpus-per-run is {gpus_per_run}, of --num-gpus {num_gpus}")
    starts = range(0, num_gpus - gpus_per_run + 1, gpus_per_run)
    return [Place(gpus=tuple(range(start, start + gpus_per_run))) for start in starts]


def core_places(jobs: int) -> list[Place]:
    """Equal shares of this process's CPU cores; with one job it has the whole machine.

    Runs that share cores slow each other down out of all proportion: their threads wait for each
    other. On cores of their own, several small ones get through more than one on all cores.
    """
    if jobs == 1:
        return [Place()]
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise InputError(f"--jobs is {jobs}, expected 1 to {len(cores)}, the number of cores")
    each = len(cores) // jobs
    return [Place(cores=tuple(cores[i * each : (i + 1) * each])) for i in range(jobs)]


def submit(
    runs: Sequence[Run],
    launch: Launcher,
    *,
    folder: Path,
    partition: str,
    parameters: Mapping[str, str],
    cluster: str = "slurm",
) -> list[Any]:
    """Hand the runs to SLURM, one job each, through submitit.

    Args:
        runs: to run.
        launch: see Launcher; its GPUs are those of a job.
        folder: of submitit's logs, seen by all nodes.
        partition: of SLURM.
        parameters: further ones of submitit as texts, such as {"timeout_min": "4320"}.
        cluster: of submitit: "slurm", or "local" and "debug" for this machine.

    Returns:
        submitit's jobs.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise InputError("--slurm needs submitit: pip install 'mtfixmatch[slurm]'") from None
    # Before they can start: a job that has ended says so itself, in the same file.
    for run in runs:
        write_status(run, None, job=partition)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(
            name="mtfixmatch",
            slurm_partition=partition,
            gpus_per_node=launch.gpus,
            nodes=1,
            **{name: yaml.safe_load(text) for name, text in parameters.items()},
        )
        with executor.batch():
            return [executor.submit(launch, run) for run in runs]
    except (RuntimeError, NameError, TypeError, AssertionError, FailedJobError) as error:
        for run in runs:
            write_status(run, None)
        raise InputError(f"--slurm {partition}: {error}") from None
