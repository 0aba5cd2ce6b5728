"""What happens around the step: evaluation, checkpoints, measurements, pictures, the report."""

import logging
import math
import os
from collections.abc import Mapping

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.broken import BrokenFiles
from ..runtime.checkpoint_files import remove_old
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
    """After every `period` steps and after the last one."""
    return _is_last(trainer) or (period > 0 and (trainer.iter + 1) % period == 0)


def _saves(trainer) -> bool:
    """At steps that leave a full checkpoint."""
    return _is_due(trainer, trainer.cfg.SOLVER.CHECKPOINT_PERIOD) or bool(trainer.stop_signal)


class EvaluateTeacher(HookBase):
    """Evaluates, keeps the best teacher as model_best.pth and the last as model_final.pth.

    The best has the highest geometric mean of the tasks' metrics (paper Sec. 4). Its figures are in
    results_best.json, its value is part of the checkpoint.
    """

    def __init__(self, period: int):
        """Evaluate after every `period` steps and at the end; 0: only at the end."""
        self.period = period
        self.best = -math.inf
        self.best_iteration = -1

    def after_step(self) -> None:
        """Evaluate if it is time."""
        trainer = self.trainer
        if not _is_due(trainer, self.period):
            return
        results = trainer.evaluate()
        comm.synchronize()
        if not comm.is_main_process():
            return
        for who, found in results.items():
            trainer.storage.put_scalars(**flat_results(found, who), smoothing_hint=False)
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
        path = os.path.join(self.trainer.cfg.OUTPUT_DIR, name)
        export_model(self.trainer.teacher, path, iteration=self.trainer.iter)

    def state_dict(self) -> dict:
        """The best value and its step."""
        return {"best": self.best, "best_iteration": self.best_iteration}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self.best, self.best_iteration = state["best"], state["best_iteration"]


class KeepBrokenFiles(HookBase):
    """Puts together what all ranks found broken, for the checkpoint and the report."""

    def __init__(self, broken: BrokenFiles):
        """Take what this rank's loader adds to."""
        self._broken = broken

    def after_step(self) -> None:
        """With each checkpoint, tell each other."""
        if _saves(self.trainer):
            for messages in comm.all_gather(self._broken.messages):
                self._broken.add(messages)

    def state_dict(self) -> dict:
        """File -> message."""
        return {"messages": self._broken.messages}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`."""
        self._broken.messages |= state["messages"]


class SaveCheckpoints(HookBase):
    """Full checkpoints, model_<step>.pth: the newest few are kept, and the last healthy one."""

    def __init__(self, keep: int, watch: TeacherWatch):
        """Save every SOLVER.CHECKPOINT_PERIOD steps, at a stop signal, and after the last step."""
        self.keep = keep
        self.watch = watch

    def after_step(self) -> None:
        """Save if it is time, then delete older ones."""
        if not _saves(self.trainer):
            return
        iteration = self.trainer.iter
        name = f"model_{iteration:07d}"
        self.watch.note_checkpoint(f"{name}.pth")
        self.trainer.checkpointer.save(name, iteration=iteration)
        remove_old(self.trainer.checkpointer.save_dir, self.keep, self.watch.healthy)


class Diagnostics(HookBase):
    """Measures pseudo-labels: how many, how right where labels are hidden but known, agreement."""

    def after_step(self) -> None:
        """Write lambda/<task> at every step, [metric]<task>/<figure> at those that measure."""
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


class Pictures(HookBase):
    """Draws predictions.png at the end, pseudo_labels.png with each checkpoint.

    So the last pseudo-labels that were measured are drawn even if none are after the checkpoint.
    """

    def __init__(self, count: int, threshold: float):
        """Draw `count` images; boxes with a score over `threshold`."""
        self.count = count
        self.threshold = threshold
        self._snapshot: Snapshot | None = None

    def after_step(self) -> None:
        """Keep the last pseudo-labels that were measured; draw if it is time."""
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
