"""Trainers, batches and single steps for the tests of the engine and of the command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from mtfixmatch.data.mapper import TrainMapper
from mtfixmatch.data.samplers import Draw
from mtfixmatch.engine import MultiTaskTrainer
from tests.support.helpers import tiny_config

# The networks are so small that two threads only wait for each other.
torch.set_num_threads(1)

# No norm that mixes images and no dropout: a gradient is the sum over the images.
# Without momentum, the optimizer does not change the gradients.
NO_MIXING: tuple[Any, ...] = (
    *("MODEL.RESNETS.NORM", "GN", "MODEL.SEM_SEG_HEAD.NORM", "GN"),
    *("MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [32]),
    *("SOLVER.MOMENTUM", 0.0, "SOLVER.NESTEROV", False),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", False),
)
# Tests that compare losses need the rounding errors of float32, not those of bfloat16.
FLOAT32 = ("SOLVER.AMP.ENABLED", False)
# Kinds of images by letter: the tasks that they are labeled for.
KINDS = {
    "n": (),
    "d": ("detection",),
    "s": ("segmentation",),
    "b": ("detection", "segmentation"),
}


def run_config(root: Path, output: Path, *opts: Any) -> CfgNode:
    """A tiny Dense FixMatch on all images, with pseudo-boxes from the first step on."""
    return tiny_config(
        root,
        *("OUTPUT_DIR", str(output), "FIXMATCH.METHOD", "DenseFixMatch"),
        *("DATALOADER.SAMPLING", "implicit", "TASKS.DETECTION.THRESHOLD", 0.005),
        *("TEST.PICTURES", 0, "SOLVER.WARMUP_ITERS", 0, "MODEL.FPN.OUT_CHANNELS", 64),
        *FLOAT32,
        *opts,
    )


def build_trainer(cfg: CfgNode, *, resume: bool = False) -> MultiTaskTrainer:
    """A trainer with its weights, as the command makes it."""
    seed_all_rng(cfg.SEED + comm.get_rank())
    trainer = MultiTaskTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def trained_run(root: Path, output: Path) -> MultiTaskTrainer:
    """A finished training that keeps boxes of any score, with the files of the command."""
    opts = ("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 2)
    cfg = run_config(root, output, *opts, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    (output / "config.yaml").write_text(cfg.dump())
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


def make_batch(trainer: MultiTaskTrainer, kinds: str, *, step: int = 0) -> list[dict]:
    """One image for each letter of `kinds`, labeled as KINDS says."""
    mapper = TrainMapper(trainer.cfg, trainer.tasks)
    records = [r for r in trainer.records if r["annotations"]]
    batch = []
    for position, kind in enumerate(kinds):
        item = mapper(records[position], Draw(position, step, position))
        targets = {t: x if t in KINDS[kind] else None for t, x in item["targets"].items()}
        batch.append({**item, "targets": targets})
    return batch


def run_step(trainer: MultiTaskTrainer, batch: list[dict], *, step: int = 0) -> dict[str, float]:
    """Run one step on a batch and return the logged scalars."""
    inner = trainer._trainer
    inner._data_loader_iter_obj = iter([batch])
    inner.iter = step
    with EventStorage(step) as storage:
        inner.run_step()
    return {key: value for key, (value, _) in storage.latest().items()}


def losses_of(logged: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in logged.items() if "loss" in key}


def gradients(trainer: MultiTaskTrainer) -> dict[str, torch.Tensor]:
    named = trainer._trainer.student.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.requires_grad}


def relative_difference(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Greatest difference of two lists of tensors, on the scale of each tensor.

    What is tiny beside the others, such as a gradient that would be 0 but for rounding, is seen on
    theirs.
    """
    floor = 1e-4 * max(float(x.norm()) for x in b)
    pairs = zip(a, b, strict=True)
    return max(float((x - y).norm()) / (max(float(y.norm()), floor) or 1) for x, y in pairs)


def copy_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class LossRecorder(HookBase):
    """Hook that records all losses of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.steps.append(losses_of({key: value for key, (value, _) in latest.items()}))


def train_and_record(cfg: CfgNode, *, resume: bool = False) -> list[dict[str, float]]:
    trainer = build_trainer(cfg, resume=resume)
    recorder = LossRecorder()
    trainer.register_hooks([recorder])
    trainer.train()
    return recorder.steps
