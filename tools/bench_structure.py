"""Images per second of a step, relative to one with the structure of Unbiased-Teacher.

In units of one image's forward pass, of which a backward pass takes two, and with 8 labeled and 8
other images, a step here takes 8 of the teacher and 16 * 3 of the student: 56. Unbiased-Teacher
trains on the labeled images in strong views as well, which makes 8 + 24 * 3 = 80. Its passes are
built here on the same network, data, views, pseudo-labels and losses.
"""

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor

from mtfixmatch.engine import MultiTaskTrainer, load_config
from mtfixmatch.engine.samples import Sample, assign_targets, weak_samples
from mtfixmatch.engine.step import MultiTaskStep, StepRecord
from mtfixmatch.tasks.base import Target

BLOCK, BLOCKS = 2, 5


class UnbiasedTeacherStep(MultiTaskStep):
    """A step with three passes of the student: labeled weak, labeled strong, other strong views."""

    def compute_gradients(self, batch: Sequence[dict], images: Tensor) -> StepRecord:
        """See base class."""
        torch.manual_seed(hash((self.seed, self.iter, comm.get_rank())))
        weak = weak_samples(batch, images, self.seed)
        pseudo_labels = self.pseudo_label(batch, images, weak)
        strong = self.make_strong(batch, images, pseudo_labels)
        passes = [
            [sample for sample in weak if sample.targets],
            self._labeled_strong(batch, images, weak),
            [sample for sample in strong if sample is not None],
        ]
        with ExitStack() as stack:
            for samples in passes:
                samples = assign_targets(samples, self.tasks, self.student)
                self.forward_backward(samples, images)
                # The gradients of the next passes are added.
                stack.enter_context(patch.object(self.optimizer, "zero_grad"))
        losses = self.guard.check_update(self.student, self.grad_scaler)
        return StepRecord(batch, weak, pseudo_labels, strong, losses, {})

    def _labeled_strong(
        self, batch: Sequence[dict], images: Tensor, weak: Sequence[Sample]
    ) -> list[Sample]:
        labels: list[Mapping[str, Target]] = [
            {name: x.target for name, x in sample.targets.items()} for sample in weak
        ]
        return [
            replace(
                sample,
                targets={k: replace(x, is_pseudo=False) for k, x in sample.targets.items()},
            )
            for sample in self.make_strong(batch, images, labels)
            if sample is not None
        ]


def bench_structure(config: str, opts: Sequence[str]) -> dict[str, float]:
    """Alternate between the two steps in blocks, and return the median of the ratios."""
    steps = []
    with tempfile.TemporaryDirectory() as folder, EventStorage(0) as storage:
        for kind in (MultiTaskStep, UnbiasedTeacherStep):
            trainer = MultiTaskTrainer(load_config(config, [*opts, "OUTPUT_DIR", folder]))
            trainer.resume_or_load(resume=False)
            step = trainer._trainer
            step.__class__, step.storage, step.iter = kind, storage, 0
            steps.append(step)
        ratios = []
        for _ in range(BLOCKS + 1):
            ours, theirs = (_seconds(step) for step in steps)
            ratios.append(theirs / ours)
    return {"images per second over Unbiased-Teacher's structure": statistics.median(ratios[1:])}


def _seconds(step: MultiTaskStep) -> float:
    """CPU seconds of some steps, in this process."""
    start = time.process_time()
    for _ in range(BLOCK):
        step.run_step()
        step.iter += 1
    return time.process_time() - start


if __name__ == "__main__":
    from tools.bench import CONFIG, OPTS

    logging.disable(logging.INFO)
    print(bench_structure(CONFIG, [*sum(OPTS.items(), ()), *sys.argv[1:]]))
