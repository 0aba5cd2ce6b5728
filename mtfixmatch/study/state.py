"""The state and the results of a run, from the files that train_net.py and the runner write."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from ..utils.files import write_atomically
from .plan import Run

STATUS_FILE = "status.json"  # written by write_status
DONE_FILE = "report.md"  # the last file that train_net.py writes
BEST_FILE = "results_best.json"  # written by train_net.py beside model_best.pth
HISTORY_FILE = "metrics.json"  # one JSON object per line, written during training
CHECKPOINT_FILE = "last_checkpoint"


@dataclass(frozen=True)
class State:
    """The progress of a run.

    Attributes:
        name: "done", "failed", "submitted" (to SLURM), "unfinished" (it can be resumed), "missing",
            or "changed" (trained with other overrides than the study's).
        message: the reason of a failure, or the SLURM partition.
    """

    name: str
    message: str = ""


def state_of(run: Run) -> State:
    """Determine the state of a run from its folder or its archived files."""
    status = _read_json(run, STATUS_FILE)
    if status is None:
        return State("missing")
    if status["overrides"] != run.overrides:
        return State("changed", f"{run.source} was made with other settings than the study's")
    if run.read(DONE_FILE) is not None and run.read(BEST_FILE) is not None:
        return State("done")
    if status["error"]:
        return State("failed", status["error"])
    if status["job"]:
        return State("submitted", f"to {status['job']}")
    return State("missing" if run.read(CHECKPOINT_FILE) is None else "unfinished")


def results_of(run: Run, network: str = "teacher") -> dict[str, Any]:
    """Return the results of the best checkpoint, as `engine.evaluation.evaluate` gives them.

    Args:
        run: which.
        network: "teacher" or "student".

    Returns:
        Empty if the run is not done or did not evaluate that network (TEST.EVAL_STUDENT).
    """
    return _read_json(run, BEST_FILE).get(network, {}) if state_of(run).name == "done" else {}


def history_of(run: Run) -> list[dict[str, Any]]:
    """Return the lines of metrics.json, each a dict of scalars; empty without the file."""
    lines = (run.read(HISTORY_FILE) or "").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def finished_folders(runs: Iterable[Run]) -> list[Path]:
    """Return the folders of the runs that are done and still on disk."""
    return [run.folder for run in runs if run.folder.is_dir() and state_of(run).name == "done"]


def write_status(run: Run, error: str | None, job: str | None = None) -> None:
    """Record how a run was started and how it ended.

    Args:
        run: the status goes into its folder.
        error: the reason of a failure.
        job: the SLURM partition that runs it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    status = {"overrides": run.overrides, "error": error, "job": job}
    write_atomically(run.folder / STATUS_FILE, json.dumps(status, indent=2) + "\n")


def _read_json(run: Run, name: str) -> Any:
    text = run.read(name)
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise InputError(f"{run.source}/{name}: cannot be read as JSON ({error})") from None
