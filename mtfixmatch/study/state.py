"""What is there of a run: the files that train_net.py and the runner leave in its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import InputError
from ..utils.files import write_atomically
from .plan import Run

STATUS_FILE = "status.json"  # by the runner, see write_status
DONE_FILE = "report.md"  # by train_net.py, last of all
BEST_FILE = "results_best.json"  # by train_net.py, beside model_best.pth
CHECKPOINT_FILE = "last_checkpoint"


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        name: "done", "failed", "submitted" (to SLURM), "interrupted", "missing", or "changed" (made
            with other overrides).
        message: why it failed, where it was submitted to.
    """

    name: str
    message: str = ""


def state_of(run: Run) -> State:
    """Look into a run's folder."""
    status = _read(run.folder / STATUS_FILE)
    if status is None:
        return State("missing")
    if status["overrides"] != run.overrides:
        return State("changed", f"{run.folder} was made with other settings than the study's")
    if (run.folder / DONE_FILE).is_file() and (run.folder / BEST_FILE).is_file():
        return State("done")
    if status["error"]:
        return State("failed", status["error"])
    if status["job"]:
        return State("submitted", f"to {status['job']}")
    resumable = (run.folder / CHECKPOINT_FILE).is_file()
    return State("interrupted" if resumable else "missing")


def results_of(run: Run, who: str = "teacher") -> dict[str, Any]:
    """Results of the best teacher, or of the student then, as evaluation.evaluate gives them.

    Empty if the run is not done, or has not evaluated its student (TEST.EVAL_STUDENT).
    """
    return _read(run.folder / BEST_FILE).get(who, {}) if state_of(run).name == "done" else {}


def write_status(run: Run, error: str | None, job: str | None = None) -> None:
    """Keep what a run was started with, how it failed, who has it.

    Args:
        run: whose folder it is written to.
        error: why it failed.
        job: the SLURM partition that has it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    status = {"overrides": run.overrides, "error": error, "job": job}
    write_atomically(run.folder / STATUS_FILE, json.dumps(status, indent=2) + "\n")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
