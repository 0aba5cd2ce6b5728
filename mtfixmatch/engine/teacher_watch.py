"""Warn if the teacher degenerates, and name the last checkpoint from before."""

import logging
import os

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..tasks import Task
from ..utils.distributed import sum_on_host
from .history import WINDOW
from .samples import targets_of
from .step import StepRecord, loss_name

logger = logging.getLogger(__name__)


class TeacherWatch(HookBase):
    """Watch the unsupervised losses, and compare the classes of pseudo-labels with the labels'.

    A symptom that lasts for a number of steps or measurements causes one warning; its count
    restarts when the symptom ends. A task with an unsupervised weight of 0 is not watched.
    `healthy` is the file name of the newest full checkpoint without a symptom; "": none.
    """

    ZERO_STEPS = 100  # number of consecutive steps with a loss of 0
    RATIO = 10  # ratio of the unsupervised to the supervised loss, medians of WINDOW steps
    # Number of measurements (FIXMATCH.DIAGNOSTICS_PERIOD) whose counts are summed, and number of
    # consecutive sums with a symptom.
    MEASUREMENTS = 10
    MIN_COUNT = 20  # least number of pseudo-boxes or pixels to judge the classes
    ONE_CLASS = 0.98  # share of one class in the pseudo-labels, if it is lower in the labels
    RUNAWAY = 3  # ratio of pseudo-boxes per image to boxes per labeled image

    def __init__(self) -> None:
        self.healthy = ""
        self._streaks: dict[str, int] = {}
        self._counts: dict[str, list[list[float]]] = {}

    def state_dict(self) -> dict:
        """Return the duration of each symptom, the last counts and the healthy checkpoint."""
        return {"streaks": self._streaks, "counts": self._counts, "healthy": self.healthy}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self._streaks, self._counts = dict(state["streaks"]), dict(state["counts"])
        self.healthy = state["healthy"]

    def note_checkpoint(self, name: str) -> None:
        """Note the name of a new full checkpoint, which is healthy if there is no symptom."""
        if not any(self._streaks.values()):
            self.healthy = name

    def after_step(self) -> None:
        """Check each task with an unsupervised loss at this step; a skipped step has none."""
        latest = self.trainer.storage.latest()
        for task in self.trainer.tasks:
            name = loss_name(task, task.loss_parts[0], True)
            is_new = latest.get(name, (0.0, -1))[1] == self.trainer.storage.iter
            if is_new and self.trainer.method.unsupervised_weight(task, self.trainer.iter):
                self._watch_losses(task)
                if self.trainer.step_record is not None:
                    self._watch_labels(task, self.trainer.step_record)

    def _watch_losses(self, task: Task) -> None:
        latest, histories = self.trainer.storage.latest(), self.trainer.storage.histories()
        names = [[loss_name(task, part, x) for part in task.loss_parts] for x in (False, True)]
        zero = all(latest[name][0] == 0 for name in names[1])
        text = (
            f"its unsupervised loss has been 0 for {self.ZERO_STEPS} steps: no prediction is over "
            "the threshold, or all images are labeled"
        )
        self._note(task, "zero", zero, self.ZERO_STEPS, text)
        if len(histories[names[0][0]].values()) < WINDOW:
            return
        supervised, unsupervised = (sum(histories[x].median(WINDOW) for x in xs) for xs in names)
        text = (
            f"its unsupervised loss ({unsupervised:.3g}) is over {self.RATIO} times the supervised "
            f"one ({supervised:.3g})"
        )
        self._note(task, "ratio", 0 < self.RATIO * supervised < unsupervised, WINDOW, text)

    def _watch_labels(self, task: Task, record: StepRecord) -> None:
        labels = [x.target for x in targets_of(record.weak, task)]
        pseudo = [x[task.name] for x in record.pseudo_labels if task.name in x]
        counts = [x for ts in (pseudo, labels) for x in task.count_classes(ts)]
        counts += [x for ts in (pseudo, labels) for x in task.count_images(ts)]
        # Drop rows of another length, which are those of older checkpoints.
        old = [row for row in self._counts.get(task.name, []) if len(row) == len(counts)]
        new = sum_on_host(counts)
        window = self._counts[task.name] = [*old, new][-self.MEASUREMENTS :]
        totals, images = np.split(np.sum(window, axis=0).reshape(4, -1), 2)
        # Compare the classes that both are for. Images without labels say nothing about them.
        pseudo_rates, label_rates = totals / np.maximum(images, 1) * images.all(axis=0)
        if len(window) == self.MEASUREMENTS and totals[1].sum():
            enough = totals[0].sum() >= self.MIN_COUNT
            self._watch_classes(task, pseudo_rates, label_rates, enough=enough)
            if not task.fills_pixels:
                boxes, true = pseudo_rates.sum(), label_rates.sum()
                text = f"it has {boxes:.3g} {task.unit} per image, a labeled image has {true:.3g}"
                self._note(task, "number", boxes > self.RUNAWAY * true, self.MEASUREMENTS, text)

    def _watch_classes(
        self, task: Task, pseudo: np.ndarray, labels: np.ndarray, *, enough: bool
    ) -> None:
        top = int(pseudo.argmax())
        shares = pseudo[top] / (pseudo.sum() or 1), labels[top] / (labels.sum() or 1)
        text = "{:.1%} of its {} are {}, in the labels {:.1%}"
        text = text.format(shares[0], task.unit, task.class_names[top], shares[1])
        one_class = enough and shares[0] > self.ONE_CLASS >= shares[1]
        self._note(task, "one class", one_class, self.MEASUREMENTS, text)

    def _note(self, task: Task, symptom: str, present: bool, patience: int, text: str) -> None:
        name = f"{task.name} {symptom}"
        self._streaks[name] = self._streaks.get(name, 0) + 1 if present else 0
        if self._streaks[name] != patience or not comm.is_main_process():
            return
        keys = ", ".join(f"TASKS.{task.name.upper()}.{key}" for key in task.tuning_keys)
        checkpoint = "there is no checkpoint from before it"
        if self.healthy:
            path = os.path.join(self.trainer.cfg.OUTPUT_DIR, self.healthy)
            checkpoint = f"{path} is from before it and is kept"
        warning = "The teacher of %s may have gone wrong: %s. Look at %s; %s"
        logger.warning(warning, task.name, text, keys, checkpoint)
