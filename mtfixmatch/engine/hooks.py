"""Hooks of the trainer: evaluation, checkpoints, diagnostics, pictures."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.broken import BrokenFiles
from ..runtime.checkpoint_files import remove_old
from .checkpoint import export_model
from .evaluation import flat_results, mean_name
from .report import write_json
from .step import StepRecord
from .teacher_watch import TeacherWatch
from .visualize import Snapshot, draw_predictions, draw_pseudo_labels

logger = logging.getLogger(__name__)


def _is_last(trainer) -> bool:
    return trainer.iter == trainer.max_iter - 1


def _is_due(trainer, period: int) -> bool:
    """Whether this is the last step or the end of a period; 0: no period."""
    return _is_last(trainer) or (period > 0 and (trainer.iter + 1) % period == 0)


def _saves_checkpoint(trainer) -> bool:
    """Whether a full checkpoint is written after this step."""
    return _is_due(trainer, trainer.cfg.SOLVER.CHECKPOINT_PERIOD) or bool(trainer.stop_signal)


def _checkpoint_info(trainer) -> dict[str, Any]:
    """Return the step and the class names of each task, which are stored with the weights."""
    classes = {task.name: task.class_names for task in trainer.tasks}
    return {"iteration": trainer.iter, "classes": classes}


class TeacherEvalHook(HookBase):
    """Evaluate, and write the best teacher as model_best.pth and the last one as model_final.pth.

    The best teacher has the highest geometric mean of the metrics (paper Sec. 4) of the tasks that
    are evaluated; its results are in results_best.json. Full checkpoints store its value, for a
    resumed run. With an empty DATASETS.TEST, the last teacher is all that is written.
    """

    def __init__(self, period: int):
        """Evaluate after every `period` steps and after the last step; 0: only after the last."""
        self.period = period
        self.best = -math.inf
        self.best_iteration = -1

    def after_step(self) -> None:
        """Evaluate at the end of a period and after the last step."""
        trainer = self.trainer
        if not _is_due(trainer, self.period):
            return
        if trainer.cfg.DATASETS.TEST:
            results = trainer.evaluate()
            comm.synchronize()
            if comm.is_main_process():
                self._keep_best(results)
        if _is_last(trainer) and comm.is_main_process():
            self._export("model_final.pth")

    def _keep_best(self, results: Mapping[str, Mapping]) -> None:
        for network, values in results.items():
            self.trainer.storage.put_scalars(**flat_results(values, network), smoothing_hint=False)
        value = float(results["teacher"]["geometric_mean"])
        if value > self.best:
            self.best, self.best_iteration = value, self.trainer.iter
            self._export("model_best.pth")
            path = os.path.join(self.trainer.cfg.OUTPUT_DIR, "results_best.json")
            write_json({**results, "iteration": self.trainer.iter}, path)
        name = mean_name(results["teacher"], self.trainer.tasks)
        logger.info("Best %s: %.4f at step %d", name, self.best, self.best_iteration + 1)
        self.trainer.storage.put_scalar("best_geometric_mean", self.best, smoothing_hint=False)

    def _export(self, name: str) -> None:
        path = os.path.join(self.trainer.cfg.OUTPUT_DIR, name)
        export_model(self.trainer.teacher, path, **_checkpoint_info(self.trainer))

    def state_dict(self) -> dict:
        """Return the best geometric mean and its step."""
        return {"best": self.best, "best_iteration": self.best_iteration}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self.best, self.best_iteration = state["best"], state["best_iteration"]


class BrokenFilesHook(HookBase):
    """Gather the broken files of all ranks for checkpoints and the report."""

    def __init__(self, broken: BrokenFiles):
        """Set the broken files of this rank, to which its loader adds."""
        self._broken = broken

    def after_step(self) -> None:
        """Gather the files of all ranks with each checkpoint."""
        if _saves_checkpoint(self.trainer):
            for messages in comm.all_gather(self._broken.messages):
                self._broken.add(messages)

    def state_dict(self) -> dict:
        """Return the broken files, each with what is wrong with it."""
        return {"messages": self._broken.messages}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self._broken.messages |= state["messages"]


class FullCheckpointer(HookBase):
    """Write full checkpoints model_<step>.pth; keep the newest and the last healthy one."""

    def __init__(self, keep: int, watch: TeacherWatch):
        """Save every SOLVER.CHECKPOINT_PERIOD steps, after a stop signal and after the last step.

        Args:
            keep: number of newest checkpoints to keep.
            watch: hook that knows the last healthy checkpoint.
        """
        self.keep = keep
        self.watch = watch

    def after_step(self) -> None:
        """Write a checkpoint, then delete older ones."""
        if not _saves_checkpoint(self.trainer):
            return
        name = f"model_{self.trainer.iter:07d}"
        self.watch.note_checkpoint(f"{name}.pth")
        self.trainer.checkpointer.save(name, **_checkpoint_info(self.trainer))
        remove_old(self.trainer.checkpointer.save_dir, self.keep, self.watch.healthy)


class PseudoLabelDiagnostics(HookBase):
    """Measure pseudo-labels: number, quality against hidden labels, agreement of the student."""

    def after_step(self) -> None:
        """Log lambda/<task> at every step, and [metric]<task>/<figure> at steps with a record."""
        trainer = self.trainer
        if trainer.method.is_semi_supervised:
            for task in trainer.tasks:
                weight = trainer.method.unsupervised_weight(task, trainer.iter)
                trainer.storage.put_scalar(f"lambda/{task.name}", weight, smoothing_hint=False)
        if trainer.step_record is not None:
            self._measure(trainer.step_record)

    def _measure(self, record: StepRecord) -> None:
        for task in self.trainer.tasks:
            pairs = [
                (labels[task.name], _true_target(item, task.name))
                for item, labels in zip(record.batch, record.pseudo_labels, strict=True)
                if task.name in labels
            ]
            if not pairs:
                continue
            figures = task.diagnose(*map(list, zip(*pairs, strict=True)))
            if task.name in record.agreement:
                figures["agreement"] = record.agreement[task.name]
            for name, value in figures.items():
                if math.isfinite(value):
                    # Detectron2's printer shows scalars with [metric] in their name.
                    self.trainer.storage.put_scalar(f"[metric]{task.name}/{name}", value)


def _true_target(item: dict, task: str):
    """Return the label of an image, hidden from training or not; None if it has none."""
    hidden = item["hidden_targets"][task]
    return item["targets"][task] if hidden is None else hidden


class PictureWriter(HookBase):
    """Draw pseudo_labels.png with each checkpoint and predictions.png after the last step.

    It keeps the last recorded pseudo-labels, because the step of a checkpoint may have no record.
    """

    def __init__(self, count: int, threshold: float, records: Sequence[dict]):
        """Set what the pictures show.

        Args:
            count: number of images in pseudo_labels.png.
            threshold: least score of a box.
            records: test images in predictions.png; if empty, it is not drawn.
        """
        self.count = count
        self.threshold = threshold
        self.records = records
        self._snapshot: Snapshot | None = None

    def after_step(self) -> None:
        """Keep the last recorded pseudo-labels, and draw."""
        trainer, record = self.trainer, self.trainer.step_record
        if self.count and record is not None and any(record.strong):
            self._snapshot = Snapshot.from_record(record, self.count)
        if self._snapshot is not None and _saves_checkpoint(trainer):
            path = os.path.join(trainer.cfg.OUTPUT_DIR, "pseudo_labels.png")
            draw_pseudo_labels(self._snapshot, trainer.tasks, path)
            self._snapshot = None
        if _is_last(trainer) and self.records:
            self._draw_predictions()

    @torch.no_grad()
    def _draw_predictions(self) -> None:
        trainer = self.trainer
        path = os.path.join(trainer.cfg.OUTPUT_DIR, "predictions.png")
        draw_predictions(trainer.teacher, self.records, trainer.tasks, self.threshold, path)
