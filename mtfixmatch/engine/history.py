"""Scalars of the steps: histories and logs that are the same after any number of resumes."""

import json
import math
import os
from contextlib import suppress
from functools import partial

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from fvcore.common.history_buffer import HistoryBuffer

from ..utils.errors import InputError
from ..utils.files import write_atomically

WINDOW = 20  # number of steps whose median writers and TeacherWatch take
# Number of steps in memory: the printer estimates the end from the median time of 1,000 steps.
MAX_HISTORY = 1000


class HistoryHook(HookBase):
    """Store the newest scalars in checkpoints, so that medians continue after a resume.

    It limits each history in memory to MAX_HISTORY values; Detectron2's limit is a million.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, dict] = {}

    def before_train(self) -> None:
        """Limit the histories of the new storage, and fill in the scalars of the checkpoint."""
        self.trainer.storage.histories().default_factory = partial(HistoryBuffer, MAX_HISTORY)
        for name, history in self._loaded.items():
            for value, step in history["values"]:
                self.trainer.storage.put_scalar(name, value, history["smoothing"], step)

    def state_dict(self) -> dict:
        """Return the newest values of each scalar with their steps, and its smoothing hint."""
        hints = self.trainer.storage.smoothing_hints()
        return {
            name: {"smoothing": hints[name], "values": history.values()[-WINDOW:]}
            for name, history in self.trainer.storage.histories().items()
        }

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self._loaded = state


class MetricsWriter(hooks.PeriodicWriter):
    """Write scalars to the log, metrics.json and TensorBoard, on the main process only.

    An interrupted run ends with the same metrics.json as one without the interruption.
    """

    def __init__(self, period: int = 20):
        """Write after every `period` steps and after the last one."""
        super().__init__([], period)
        self._last: int | None = None

    def before_train(self) -> None:
        """Open the files and remove the entries of steps that will be repeated."""
        if not comm.is_main_process():
            return
        folder = self.trainer.cfg.OUTPUT_DIR
        path = os.path.join(folder, "metrics.json")
        last = self.trainer.start_iter - 1 if self._last is None else self._last
        cut_metrics(path, last)
        json_writer = JSONWriter(path, WINDOW)
        # TensorBoard then ignores the events of older files from this step on.
        tensorboard = TensorboardXWriter(folder, WINDOW, purge_step=self.trainer.start_iter)
        json_writer._last_write = tensorboard._last_write = last
        printer = CommonMetricPrinter(self.trainer.max_iter, WINDOW)
        self._writers = [printer, json_writer, tensorboard]

    def after_step(self) -> None:
        """Write at the end of a period and after the last step; raise InputError if that fails."""
        try:
            super().after_step()
        except OSError as error:
            folder = self.trainer.cfg.OUTPUT_DIR
            reason = error.strerror or error
            raise InputError(f"the metrics cannot be written into {folder}: {reason}") from None
        if self._writers:
            self._last = self._writers[1]._last_write

    def after_train(self) -> None:
        """Close the files."""
        for writer in self._writers:
            with suppress(OSError):  # after_step has raised the error already
                writer.close()

    def state_dict(self) -> dict:
        """Return the last step whose scalars were written."""
        return {"last": self._last}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self._last = state["last"]


def cut_metrics(path: str, last: int) -> None:
    """Remove the lines of steps after `last` from metrics.json, and an incomplete line."""
    if not os.path.isfile(path):
        return
    with open(path, errors="replace") as file:
        lines = file.readlines()
    valid = [line for line in lines if line.endswith("\n") and _step_of(line) <= last]
    if valid != lines:
        write_atomically(path, "".join(valid))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return math.inf
