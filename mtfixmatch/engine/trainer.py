"""The trainer: build all parts from a config and run the training loop with its hooks."""

import json
import logging
import os
import weakref
from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from torch import nn

from ..data.loader import build_train_loader, eval_records, train_records
from ..data.partial_labels import write_manifest
from ..methods import Supervised, build_method
from ..modeling import MultiTaskNet
from ..modeling.compiled import compile_networks
from ..modeling.sync_norm import replace_sync_norms
from ..runtime.checkpoint_files import remove_old, start_anew
from ..runtime.nonfinite import StepGuard
from ..runtime.rank_watch import RankWatch
from ..runtime.signals import STOPPED, StopRequest
from ..tasks import Task, build_tasks
from ..utils.errors import InputError
from .checkpoint import MultiTaskCheckpointer
from .ema import build_teacher
from .history import HistoryHook, MetricsWriter
from .hooks import (
    BrokenFilesHook,
    FullCheckpointer,
    PictureWriter,
    PseudoLabelDiagnostics,
    TeacherEvalHook,
)
from .optimizer import build_optimizer
from .report import write_report
from .setup import choose_precision
from .step import MultiTaskStep
from .teacher_watch import TeacherWatch
from .testing import test
from .visualize import choose_records

logger = logging.getLogger(__name__)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Log an InputError in one line, because its message names the cause."""
    if record.exc_info and isinstance(record.exc_info[1], InputError):
        record.msg, record.exc_info = f"The training stops: {record.exc_info[1]}", None
    return True


# The loop of Detectron2 logs the exception that ends it.
logging.getLogger(TrainerBase.__module__).addFilter(_without_traceback)


class MultiTaskTrainer(DefaultTrainer):
    """Detectron2's DefaultTrainer around MultiTaskStep."""

    def __init__(self, cfg: CfgNode):
        """Build data, method, networks, optimizer and hooks.

        Raises:
            InputError: the data or a value of the config cannot be used.
        """
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.tasks = build_tasks(cfg)
        self.records = train_records(cfg, self.tasks)
        self.eval_records = eval_records(cfg, self.tasks)
        names, count = cfg.TEST.PICTURE_FILES, cfg.TEST.PICTURES
        self._picture_records = choose_records(self.eval_records, names, count)
        self.method = build_method(cfg).to(cfg.MODEL.DEVICE)
        loader = build_train_loader(cfg, self.tasks, self.records, self.method.weak_flip_prob)
        self._broken = loader.broken
        student = build_model(cfg)
        model = wrap_for_ranks(student)  # gives all ranks the weights of rank 0
        self.teacher = build_teacher(student)
        compile_networks(cfg, student, self.teacher)
        self._trainer = build_step(cfg, self.tasks, self.method, model, self.teacher, loader)
        self.scheduler = build_lr_scheduler(cfg, self._trainer.optimizer)
        self.checkpointer = MultiTaskCheckpointer(
            self.teacher,
            cfg.OUTPUT_DIR,
            trust=cfg.MODEL.TRUST_PICKLE,
            student=student,
            trainer=weakref.proxy(self),
        )
        self._ranks = RankWatch(cfg.SOLVER.STALL_SECONDS, compiles=cfg.MODEL.COMPILE)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.results: dict = {}
        self._watch = TeacherWatch()
        self._stop_request = StopRequest()
        self.stop_signal = ""  # name of the signal that ends the training after this step
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See `engine.optimizer`."""
        return build_optimizer(cfg, model)

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint, or load student and teacher from MODEL.WEIGHTS."""
        super().resume_or_load(resume)
        if not (resume and self.checkpointer.has_checkpoint()):
            self._trainer.student.load_state_dict(self.teacher.state_dict())
        self._trainer.data_loader.start_step = self.start_iter
        if hasattr(self.scheduler, "max_iters"):
            # The checkpoint has the value of an earlier run, which may have been shorter.
            self.scheduler.max_iters = self.max_iter

    def build_hooks(self) -> list[hooks.HookBase]:
        """Return the hooks; checkpointing runs last, so it captures the whole step."""
        cfg = self.cfg
        result: list[hooks.HookBase] = [
            hooks.IterationTimer(warmup_iter=1),  # times the first steps after a resume too
            hooks.LRScheduler(),
            PseudoLabelDiagnostics(),
            self._watch,
            TeacherEvalHook(cfg.TEST.EVAL_PERIOD),
            BrokenFilesHook(self._broken),
            MetricsWriter(),
            HistoryHook(),
        ]
        if comm.is_main_process():
            result += [
                PictureWriter(cfg.TEST.PICTURES, cfg.TEST.PICTURE_THRESHOLD, self._picture_records),
                FullCheckpointer(cfg.SOLVER.CHECKPOINTS_TO_KEEP, self._watch),
            ]
        return result

    def evaluate(self) -> dict:
        """Evaluate the teacher, and with TEST.EVAL_STUDENT the student, on all ranks.

        Returns:
            {"teacher": results, "student": results} on the main process, {} on others.
        """
        models: dict[str, MultiTaskNet] = {"teacher": self.teacher}
        if self.cfg.TEST.EVAL_STUDENT:
            models["student"] = self._trainer.student
        self.results = {
            name: test(self.cfg, model, self.tasks, self.eval_records, name, self._ranks)
            for name, model in models.items()
        }
        return self.results if comm.is_main_process() else {}

    @property
    def step_record(self):
        """The record of the last step; None: it has no diagnostics."""
        return self._trainer.record

    def train(self) -> dict:
        """Train from the step that `resume_or_load` has set; return the last results.

        Raises:
            SystemExit: with status STOPPED, after a stop signal and the checkpoint.
        """
        if comm.is_main_process():
            self._prepare_folder()
        if self.start_iter < self.max_iter:
            with self._stop_request.listening(), self._ranks.running():
                TrainerBase.train(self, self.start_iter, self.max_iter)
        if not self.cfg.DATASETS.TEST:
            self.results = {}  # a resumed run may have some from before
        if comm.is_main_process() and (self.results or not self.cfg.DATASETS.TEST):
            broken = self._broken.messages
            write_report(self.cfg, self.tasks, self.records, self.results, broken)
        return self.results

    def run_step(self) -> None:
        """Run one step under the rank watch."""
        if self.cfg.MODEL.CUDA_GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()
        with self._ranks.stepping(f"step {self.iter}"):
            super().run_step()

    def after_step(self) -> None:
        """Run the hooks, and stop all ranks if one of them got a stop signal."""
        self.stop_signal = self._stop_request.agreed()
        super().after_step()
        if not self.stop_signal or self.iter == self.max_iter - 1:
            return
        if comm.is_main_process():
            logger.warning(
                "Stopped by %s after step %d; the checkpoint is written, and the same command with "
                "--resume continues (exit status %d)",
                *(self.stop_signal, self.iter, STOPPED),
            )
        comm.synchronize()  # a rank that ends early would end the others before the checkpoint
        raise SystemExit(STOPPED)

    def state_dict(self) -> dict:
        """Return the state of the training, with the results for the report of a resumed run."""
        results = json.loads(json.dumps(self.results, default=float))
        return {**super().state_dict(), "results": results}

    def load_state_dict(self, state_dict: dict) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state_dict)
        self.results = state_dict.get("results", {})

    def _prepare_folder(self) -> None:
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        if self.start_iter == 0:
            if self.checkpointer.has_checkpoint():
                logger.warning("%s: its checkpoints are replaced (no --resume)", folder)
            start_anew(folder)
            best = os.path.join(folder, "model_best.pth")
            if not self.cfg.DATASETS.TEST and os.path.exists(best):
                logger.warning("%s is of an earlier training (DATASETS.TEST is empty)", best)
        else:  # a killed run may have left one checkpoint too many
            remove_old(folder, self.cfg.SOLVER.CHECKPOINTS_TO_KEEP, self._watch.healthy)
        self._write_manifest()

    def _write_manifest(self) -> None:
        data = self.cfg.DATASETS
        source: dict = {"manifest": data.LABEL_MANIFEST}
        if not data.LABEL_MANIFEST:
            source = {"subsets": data.LABEL_SUBSETS, "seed": data.LABEL_SEED}
        keys = {task.name: task.label_key for task in self.tasks}
        path = os.path.join(self.cfg.OUTPUT_DIR, "label_subsets.json")
        write_manifest(self.records, keys, path, datasets=list(data.TRAIN), **source)


def build_step(
    cfg: CfgNode,
    tasks: Sequence[Task],
    method: Supervised,
    model: nn.Module,
    teacher: MultiTaskNet,
    loader: Iterable[list[dict]],
) -> MultiTaskStep:
    """Build the training step of a config, see MultiTaskStep."""
    return MultiTaskStep(
        model=model,
        teacher=teacher,
        method=method,
        tasks=tasks,
        data_loader=loader,
        optimizer=MultiTaskTrainer.build_optimizer(cfg, model),
        ema_decay=cfg.FIXMATCH.EMA_DECAY,
        precision=choose_precision(cfg),
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        unlabeled_weak=cfg.FIXMATCH.UNLABELED_WEAK,
        diagnostics_period=cfg.FIXMATCH.DIAGNOSTICS_PERIOD,
        seed=cfg.SEED,
        guard=StepGuard(cfg),
    )


def wrap_for_ranks(student: nn.Module) -> nn.Module:
    """Wrap the student for several processes, all with the weights of rank 0."""
    on_cpu = next(student.parameters()).device.type == "cpu"
    if comm.get_world_size() > 1:
        replace_sync_norms(student)
    kwargs = {"device_ids": None} if on_cpu else {}
    return create_ddp_model(student, broadcast_buffers=False, **kwargs)
