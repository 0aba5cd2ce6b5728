"""MultiTaskTrainer: builds the parts from a config and runs the loop with its hooks."""

import logging
import os
import weakref
from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from torch import nn

from ..augmentation.strong import StrongAugmentation
from ..data.loader import build_eval_loader, build_train_loader, eval_records, train_records
from ..data.partial_labels import write_manifest
from ..errors import InputError
from ..evaluation import evaluate, evaluate_losses, log_results
from ..modeling import MultiTaskNet
from ..report import write_json
from ..tasks import Task, build_tasks
from .checkpoint import MultiTaskCheckpointer
from .ema import build_teacher
from .fixmatch import FixMatchTrainer
from .hooks import Diagnostics, EvaluateTeacher, LossWatch, Pictures, SaveCheckpoints, WriteReport
from .setup import choose_precision

logger = logging.getLogger(__name__)


class MultiTaskTrainer(DefaultTrainer):
    """Detectron2's trainer around FixMatchTrainer's step."""

    def __init__(self, cfg: CfgNode):
        """Build model, teacher, optimiser, data and hooks, in this order.

        Raises:
            InputError: for data or values that cannot be trained on.
        """
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.tasks = build_tasks(cfg)
        self.records = train_records(cfg, self.tasks)
        self.eval_records = eval_records(cfg, self.tasks)
        loader = build_train_loader(cfg, self.tasks, self.records)
        student = build_model(cfg)
        self.teacher = build_teacher(student)
        optimizer = self.build_optimizer(cfg, student)
        self._trainer = FixMatchTrainer(
            model=_distributed(student),
            teacher=self.teacher,
            tasks=self.tasks,
            data_loader=loader,
            optimizer=optimizer,
            strong_augmentation=(
                None if cfg.FIXMATCH.METHOD == "supervised" else StrongAugmentation(cfg)
            ),
            unsupervised_on=cfg.FIXMATCH.UNSUPERVISED_ON,
            ramp_up_steps=cfg.FIXMATCH.RAMP_UP * cfg.SOLVER.MAX_ITER,
            ema_decay=cfg.FIXMATCH.EMA_DECAY,
            precision=choose_precision(cfg),
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            diagnostics_period=cfg.FIXMATCH.DIAGNOSTICS_PERIOD,
            seed=cfg.SEED,
        )
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        self.checkpointer = MultiTaskCheckpointer(
            student, cfg.OUTPUT_DIR, trainer=weakref.proxy(self), teacher=self.teacher
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.results: dict = {}
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint, or start from MODEL.WEIGHTS, the teacher as a copy."""
        super().resume_or_load(resume)
        if not (resume and self.checkpointer.has_checkpoint()):
            self.teacher.load_state_dict(self._trainer.student.state_dict())
        self._trainer.data_loader.start_step = self.start_iter
        if hasattr(self.scheduler, "max_iters"):
            # The checkpoint brought its own; this run may be longer.
            self.scheduler.max_iters = self.max_iter

    def build_hooks(self) -> list[hooks.HookBase]:
        """Evaluation comes before the checkpoint, which holds the best value so far."""
        cfg = self.cfg
        found = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            Diagnostics(),
            LossWatch(),
            EvaluateTeacher(cfg.TEST.EVAL_PERIOD),
        ]
        if comm.is_main_process():
            found += [
                SaveCheckpoints(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINTS_TO_KEEP),
                hooks.PeriodicWriter(self.build_writers(), period=20),
                Pictures(cfg.TEST.PICTURES, cfg.TEST.PICTURE_THRESHOLD),
                WriteReport(),
            ]
        return found

    def evaluate(self) -> dict:
        """Evaluate the teacher, and the student if TEST.EVAL_STUDENT; on all ranks.

        Returns:
            {"teacher": results, "student": results} on the main process, {} on others.
        """
        models: dict[str, MultiTaskNet] = {"teacher": self.teacher}
        if self.cfg.TEST.EVAL_STUDENT:
            models["student"] = self._trainer.student
        self.results = {
            who: test(self.cfg, model, self.tasks, self.eval_records, who)
            for who, model in models.items()
        }
        return self.results if comm.is_main_process() else {}

    @property
    def step_record(self):
        """What the last step kept for the hooks, if it was one that measures."""
        return self._trainer.record

    def unsupervised_weight(self, task: Task) -> float:
        """Lambda of a task at this step."""
        return self._trainer.unsupervised_weight(task)

    def train(self) -> dict:
        """Train from where `resume_or_load` left off and return the last results."""
        if comm.is_main_process():
            self._write_manifest()
        TrainerBase.train(self, self.start_iter, self.max_iter)
        return self.results

    def _write_manifest(self) -> None:
        data = self.cfg.DATASETS
        made: dict = {"manifest": data.LABEL_MANIFEST}
        if not data.LABEL_MANIFEST:
            made = {"subsets": data.LABEL_SUBSETS, "seed": data.LABEL_SEED}
        keys = {task.name: task.label_key for task in self.tasks}
        path = os.path.join(self.cfg.OUTPUT_DIR, "label_subsets.json")
        write_manifest(self.records, keys, path, datasets=list(data.TRAIN), **made)


def test(cfg: CfgNode, model: MultiTaskNet, tasks, records, who: str) -> dict:
    """Evaluate a model on DATASETS.TEST and print the figures under a name."""
    results = evaluate(model, build_eval_loader(cfg, records), records, tasks)
    losses = (
        evaluate_losses(model, build_eval_loader(cfg, records), records, tasks)
        if cfg.TEST.EVAL_LOSSES
        else {}
    )
    if results:
        for name, found in losses.items():
            results[name]["losses"] = found
        log_results(results, tasks, who)
    return results


def evaluate_checkpoint(cfg: CfgNode) -> dict:
    """`--eval-only`: evaluate MODEL.WEIGHTS, write results.json into OUTPUT_DIR.

    A full checkpoint of a training is evaluated by its teacher.

    Raises:
        InputError: without MODEL.WEIGHTS: figures of random weights help nobody.
    """
    if not cfg.MODEL.WEIGHTS:
        raise InputError("MODEL.WEIGHTS is empty: --eval-only needs a checkpoint")
    tasks = build_tasks(cfg)
    records = eval_records(cfg, tasks)
    model = build_model(cfg)
    teacher = _TeacherWeights()
    MultiTaskCheckpointer(model, teacher=teacher).load(cfg.MODEL.WEIGHTS)
    if teacher.weights:
        model.load_state_dict(teacher.weights)
    results = test(cfg, model, tasks, records, "teacher")
    if comm.is_main_process():
        write_json({"teacher": results}, os.path.join(cfg.OUTPUT_DIR, "results.json"))
    return results


class _TeacherWeights:
    """Takes the teacher out of a full checkpoint; a plain one leaves it empty."""

    def __init__(self):
        self.weights: Mapping[str, torch.Tensor] = {}

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        return self.weights

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.weights = state


def _distributed(student: nn.Module) -> nn.Module:
    on_cpu = next(student.parameters()).device.type == "cpu"
    kwargs = {"device_ids": None} if on_cpu else {}
    return create_ddp_model(student, broadcast_buffers=False, **kwargs)
