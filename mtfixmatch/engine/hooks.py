"""Hooks around the step: evaluation, checkpoints, diagnostics, pictures."""

import logging
import math
import os
from collections.abc import Mapping, Sequence

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.broken import BrokenFiles
from ..runtime.checkpoint_files import remove_old
from ..tasks import Task
from .checkpoint import export_model
from .evaluation import flat_results
from .report import write_json
from .step import StepRecord
from .teacher_watch import TeacherWatch
from .visualize import Snapshot, draw_predictions, draw_pseudo_labels

logger = logging.getLogger(__name__)


def _is_last(trainer) -> bool:
    return trainer.iter == trainer.max_iter - 1


def _is_due(trainer, period: int) -> bool:
    """Whether it is after a multiple of `period` steps or after the last step."""
    return _is_last(trainer) or (period > 0 and (trainer.iter + 1) % period == 0)


def _saves(trainer) -> bool:
    """Whether a full checkpoint is written after this step."""
    return _is_due(trainer, trainer.cfg.SOLVER.CHECKPOINT_PERIOD) or bool(trainer.stop_signal)


def class_names(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Return the classes of each task, to be stored with the weights."""
    return {task.name: task.class_names for task in tasks}


class TeacherEvalHook(HookBase):
    """Evaluate; write the best teacher as model_best.pth and the last one as model_final.pth.

    The best teacher has the highest geometric mean of the tasks' metrics (paper Sec. 4). Its
    results are in results_best.json, and its value is part of the checkpoint.
    """

    def __init__(self, period: int):
        """Evaluate after every `period` steps and at the end; 0: only at the end."""
        self.period = period
        self.best = -math.inf
        self.best_iteration = -1

    def after_step(self) -> None:
        """Evaluate if it is due."""
        trainer = self.trainer
        if not _is_due(trainer, self.period):
            return
        results = trainer.evaluate()
        comm.synchronize()
        if not comm.is_main_process():
            return
        for network, figures in results.items():
            trainer.storage.put_scalars(**flat_results(figures, network), smoothing_hint=False)
        self._keep_best(results)
        if _is_last(trainer):
            self._export("model_final.pth")

    def _keep_best(self, results: Mapping[str, Mapping]) -> None:
        value = float(results["teacher"]["geometric_mean"])
        if value > self.best:
            self.best, self.best_iteration = value, self.trainer.iter
            self._export("model_best.pth")
            path = os.path.join(self.trainer.cfg.OUTPUT_DIR, "results_best.json")
            write_json({**results, "iteration": self.trainer.iter}, path)
        logger.info("Best geometric mean: %.4f at step %d", self.best, self.best_iteration + 1)
        self.trainer.storage.put_scalar("best_geometric_mean", self.best, smoothing_hint=False)

    def _export(self, name: str) -> None:
        trainer = self.trainer
        facts = {"iteration": trainer.iter, "classes": class_names(trainer.tasks)}
        export_model(trainer.teacher, os.path.join(trainer.cfg.OUTPUT_DIR, name), **facts)

    def state_dict(self) -> dict:
        """Return the best value and its step."""
        return {"best": self.best, "best_iteration": self.best_iteration}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self.best, self.best_iteration = state["best"], state["best_iteration"]


class BrokenFilesHook(HookBase):
    """Collect the broken files of all ranks, for the checkpoint and the report."""

    def __init__(self, broken: BrokenFiles):
        """Use the list that this rank's loader adds to."""
        self._broken = broken

    def after_step(self) -> None:
        """Exchange the lists of all ranks with each checkpoint."""
        if _saves(self.trainer):
            for messages in comm.all_gather(self._broken.messages):
                self._broken.add(messages)

    def state_dict(self) -> dict:
        """Return {"messages": {file: message}}."""
        return {"messages": self._broken.messages}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self._broken.messages |= state["messages"]


class FullCheckpointer(HookBase):
    """Write full checkpoints model_<step>.pth; keep the newest few and the last healthy one."""

    def __init__(self, keep: int, watch: TeacherWatch):
        """Save every SOLVER.CHECKPOINT_PERIOD steps, at a stop signal, and after the last step."""
        self.keep = keep
        self.watch = watch

    def after_step(self) -> None:
        """Save if it is due, then delete older checkpoints."""
        if not _saves(self.trainer):
            return
        iteration = self.trainer.iter
        name = f"model_{iteration:07d}"
        self.watch.note_checkpoint(f"{name}.pth")
        facts = {"iteration": iteration, "classes": class_names(self.trainer.tasks)}
        self.trainer.checkpointer.save(name, **facts)
        remove_old(self.trainer.checkpointer.save_dir, self.keep, self.watch.healthy)


class PseudoLabelDiagnostics(HookBase):
    """Measure pseudo-labels: their number, their accuracy against hidden labels, agreement."""

    def after_step(self) -> None:
        """Log lambda/<task> at every step and [metric]<task>/<figure> at measured steps."""
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
            measured = task.diagnose(*map(list, zip(*pairs, strict=True)))
            if task.name in record.agreement:
                measured["agreement"] = record.agreement[task.name]
            for name, value in measured.items():
                if math.isfinite(value):
                    # Detectron2's printer shows what has [metric] in its name.
                    self.trainer.storage.put_scalar(f"[metric]{task.name}/{name}", value)


def _true_target(item: dict, task: str):
    """Return the label of an image, hidden from training or not; None if there is none."""
    hidden = item["hidden_targets"][task]
    return item["targets"][task] if hidden is None else hidden


class PictureWriter(HookBase):
    """Draw predictions.png at the end and pseudo_labels.png with each checkpoint.

    The last measured pseudo-labels are kept, because the step of a checkpoint may have none.
    """

    def __init__(self, count: int, threshold: float):
        """Draw `count` images; boxes with a score over `threshold`."""
        self.count = count
        self.threshold = threshold
        self._snapshot: Snapshot | None = None

    def after_step(self) -> None:
        """Keep the last measured pseudo-labels, and draw if it is due."""
        trainer, record = self.trainer, self.trainer.step_record
        if self.count and record is not None and any(record.strong):
            self._snapshot = Snapshot.of(record, self.count)
        folder = trainer.cfg.OUTPUT_DIR
        if self._snapshot is not None and _saves(trainer):
            path = os.path.join(folder, "pseudo_labels.png")
            draw_pseudo_labels(self._snapshot, trainer.tasks, path)
            self._snapshot = None
        if _is_last(trainer) and self.count:
            records = trainer.eval_records[: self.count]
            with torch.no_grad():
                draw_predictions(
                    trainer.teacher,
                    records,
                    trainer.tasks,
                    self.threshold,
                    os.path.join(folder, "predictions.png"),
                )
