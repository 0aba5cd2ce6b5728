"""The state and the results of a run, from the files that train_net.py and the runner write."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.errors import InputError
from ..utils.files import write_atomically
from .plan import Run

STATUS_FILE = "status.json"  # written by write_status
DONE_FILE = "report.md"  # the last file that train_net.py writes
BEST_FILE = "results_best.json"  # written by train_net.py beside model_best.pth
CHECKPOINT_FILE = "last_checkpoint"


class State(NamedTuple):
    """The progress of a run."""

    # "done", "failed", "submitted" (to SLURM), "unfinished" (it can be resumed), "missing", or
    # "changed" (trained with other overrides than the study's)
    name: str
    message: str = ""  # the reason of a failure, or the SLURM partition


def state_of(run: Run) -> State:
    """Determine the state of a run from its folder or its archived files."""
    if (status := _read_json(run, STATUS_FILE)) is None:
        return State("missing")
    if status["overrides"] != run.overrides:
        return State("changed", f"{run.source} was made with other settings than the study's")
    if run.read(DONE_FILE) is not None and run.read(BEST_FILE) is not None:
        return State("done")
    if status["error"]:
        return State("failed", status["error"])
    if run.read(DONE_FILE) is not None:
        return State("failed", f"it ended without {BEST_FILE}: no evaluation has a geometric mean")
    if status["job"]:
        return State("submitted", f"to {status['job']}")
    return State("missing" if run.read(CHECKPOINT_FILE) is None else "unfinished")


def results_of(run: Run, network: str = "teacher") -> dict[str, Any]:
    """Return what `engine.evaluation.evaluate` gave for the best checkpoint; {} if it has not."""
    return _read_json(run, BEST_FILE).get(network, {}) if state_of(run).name == "done" else {}


def finished_folders(runs: Iterable[Run]) -> list[Path]:
    """Return the folders of the runs that are done and still on disk."""
    return [run.folder for run in runs if run.folder.is_dir() and state_of(run).name == "done"]


def write_status(run: Run, error: str | None, job: str | None = None) -> None:
    """Record in a run's folder how it ended: the reason of a failure, or the partition it is in."""
    run.folder.mkdir(parents=True, exist_ok=True)
    status = {"overrides": run.overrides, "error": error, "job": job}
    write_atomically(run.folder / STATUS_FILE, json.dumps(status, indent=2) + "\n")


def _read_json(run: Run, name: str) -> Any:
    text = run.read(name)
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise InputError(f"{run.source}/{name}: cannot be read as JSON ({error})") from None
