"""A training step on the pretended device, counted by part."""

from contextlib import ExitStack

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from mtfixmatch.engine import MultiTaskTrainer
from mtfixmatch.engine import step as step_module
from tests.support.engine_helpers import build_trainer
from tests.support.pretend_cuda import Counts, PretendCuda, pretended_cuda

PASSES = "forward and backward passes"


def count_step(cfg: CfgNode, first_step: int = 0) -> tuple[Counts, dict[str, float]]:
    """Count the launches and waits of one training step; the step before it fills caches.

    Args:
        cfg: config of a training; its device and precision are not used.
        first_step: number of the first of the two steps, which fixes their strong augmentations.

    Returns:
        The counts, and the logged scalars of the step.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda:0"
    cfg.SOLVER.AMP.ENABLED = False  # autocast does nothing on the pretended device
    with pretended_cuda() as device:
        trainer = build_trainer(cfg)
        step = trainer._trainer
        step.data_loader.start_step = first_step
        loader = iter(step.data_loader)
        step._data_loader_iter_obj = iter([next(loader), next(loader)])
        with _named_parts(trainer, device), EventStorage(first_step) as storage:
            for i in range(2):
                device.counts = Counts()
                step.iter = first_step + i
                step.run_step()
        return device.counts, {name: value for name, (value, _) in storage.latest().items()}


def _named_parts(trainer: MultiTaskTrainer, device: PretendCuda) -> ExitStack:
    step, stack = trainer._trainer, ExitStack()
    parts = [
        (step.model, "forward", PASSES),
        (step.teacher, "forward", PASSES),
        (torch.Tensor, "backward", PASSES),
        (step_module, "stack_images", "images"),
        (step, "pseudo_label", "pseudo-labels"),
        (step, "make_strong", "strong views"),
        (step_module, "assign_targets", "targets"),
        (step, "forward_backward", "losses"),
        (step, "_check_inputs", "guard"),
        (step.guard, "check_update", "guard"),
        (step.guard, "_copy_buffers", "guard"),
        (step, "update_student", "optimizer"),
        (step_module, "update_teacher", "teacher's average"),
    ]
    for owner, name, part in parts:
        stack.enter_context(device.naming(owner, name, part))
    return stack
