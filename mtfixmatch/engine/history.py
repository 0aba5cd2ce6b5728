"""Logs of the steps that do not show how often a run was interrupted."""

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

WINDOW = 20  # steps over which writers and TeacherWatch take their medians
# Steps that stay in memory: the printer takes the median time of 1,000 steps for its estimate.
KEPT = 1000


class HistoryHook(HookBase):
    """Keep the newest scalars in the checkpoint, so that medians do not restart with a resume.

    In memory it keeps KEPT values of each; Detectron2 lets them grow for a million steps.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, dict] = {}

    def before_train(self) -> None:
        """Bound the new storage, and fill in the scalars of the checkpoint."""
        self.trainer.storage.histories().default_factory = partial(HistoryBuffer, KEPT)
        for name, history in self._loaded.items():
            for value, step in history["values"]:
                hint = history["smoothing"]
                self.trainer.storage.put_scalar(name, value, smoothing_hint=hint, cur_iter=step)

    def state_dict(self) -> dict:
        """Return by name the newest values with their steps, and whether writers smooth them."""
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
        lines = JSONWriter(path, WINDOW)
        # TensorBoard ignores events from this step on in the older files.
        events = TensorboardXWriter(folder, WINDOW, purge_step=self.trainer.start_iter)
        lines._last_write = events._last_write = last
        self._writers = [CommonMetricPrinter(self.trainer.max_iter, WINDOW), lines, events]

    def after_step(self) -> None:
        """Write if it is due.

        Raises:
            InputError: if the files cannot be written.
        """
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
            with suppress(OSError):  # a write failed before and stopped the run
                writer.close()

    def state_dict(self) -> dict:
        """Return the last step whose scalars are written."""
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
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= last]
    if kept != lines:
        write_atomically(path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return math.inf
