"""One training step of FixMatch* and Dense FixMatch on several tasks (paper Sec. 3).

`compute_gradients` follows the method: weak views, pseudo-labels of the teacher, strong views with
warped pseudo-labels, ONE forward pass of the student, losses, gradients.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..methods import Supervised
from ..modeling import MultiTaskNet
from ..modeling.cast_weights import CastWeights
from ..modeling.sync_norm import share_statistics
from ..runtime.nonfinite import StepGuard
from ..tasks import Task
from ..tasks.base import Outputs, Target
from ..utils.devices import take_rows
from ..utils.distributed import sum_on_host
from .ema import averaged_tensors, update_teacher
from .loss_scaler import LossScaler
from .normalizer import Normalizers
from .samples import (
    Sample,
    assign_targets,
    assigned_of,
    image_size,
    indices,
    loss_rows,
    select_rows,
    stack_images,
    strong_samples,
    weak_samples,
)


@dataclass
class StepRecord:
    """The data of a step for hooks that measure and draw; all lists have one entry per image.

    Attributes:
        batch: items of the mapper.
        weak: weak views with their labels.
        pseudo_labels: task name -> pseudo-label in the weak view; empty: the image has none.
        strong: strong views with the warped pseudo-labels; None: the image has none.
        losses: name -> loss over the global batch, before its weight, and "total_loss" with them.
        agreement: task name -> share of elements on which student and pseudo-labels agree.
    """

    batch: Sequence[dict]
    weak: Sequence[Sample]
    pseudo_labels: Sequence[Mapping[str, Target]]
    strong: Sequence[Sample | None]
    losses: dict[str, float]
    agreement: dict[str, float]


class MultiTaskStep(SimpleTrainer):
    """Detectron2's SimpleTrainer with the training step of a method."""

    def __init__(
        self,
        *,
        model: nn.Module,
        teacher: MultiTaskNet,
        method: Supervised,
        tasks: Sequence[Task],
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        ema_decay: float,
        precision: torch.dtype,
        accumulation_steps: int,
        unlabeled_weak: str,
        diagnostics_period: int,
        seed: int,
        guard: StepGuard,
    ):
        """Set the parts of the step.

        Args:
            model: the student, a MultiTaskNet or its DistributedDataParallel wrapper.
            teacher: exponential moving average of the student.
            method: semi-supervised method, or `Supervised`.
            tasks: tasks in the order of their losses.
            data_loader: iterable of endless batches of this rank, lists of the mapper's items.
            optimizer: optimizer of the student.
            ema_decay: decay of the teacher, in [0, 1].
            precision: data type of the forward passes; torch.float32 turns autocast off.
            accumulation_steps: number of parts in which a batch passes through the student.
            unlabeled_weak: what the student does with weak views without a label, see
                FIXMATCH.UNLABELED_WEAK.
            diagnostics_period: period in steps of the records for hooks; 0: none.
            seed: seed of dropout.
            guard: guard that rolls back steps with non-finite values.
        """
        super().__init__(model, data_loader, optimizer)
        self.student = cast(MultiTaskNet, getattr(model, "module", model))
        self.teacher = teacher
        self._teacher_weights = CastWeights(teacher, precision)
        self._averaged = averaged_tensors(teacher), averaged_tensors(self.student)
        self.method = method
        self.tasks = list(tasks)
        self.ema_decay = ema_decay
        self.precision = precision
        self.accumulation_steps = accumulation_steps
        self.unlabeled_weak = unlabeled_weak
        self.diagnostics_period = diagnostics_period
        self.seed = seed
        self.guard = guard
        self.normalizers = Normalizers(self.tasks).to(self.student.device)
        self.grad_scaler = LossScaler("cuda", enabled=precision is torch.float16)
        self.record: StepRecord | None = None

    def run_step(self) -> None:
        """Update student and teacher, or neither of them if a value is not finite."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        images = stack_images(batch, self.student.device)
        record: StepRecord | None = None
        with self.guard.rolling_back(
            (self.student, self.method, self.normalizers),
            self.optimizer,
            lambda: self.dump(batch, images),
        ):
            record = self.compute_gradients(batch, images)
            self.update_student()
            share_statistics(self.student)
            update_teacher(*self._averaged, self.ema_decay)
        storage = get_event_storage()
        storage.put_scalars(data_time=data_time, **(record.losses if record else {}))
        counts = {"skipped_steps": self.guard.skipped, **self.grad_scaler.scalars()}
        storage.put_scalars(**counts, smoothing_hint=False)
        self.record = record if self._has_diagnostics else None

    def compute_gradients(self, batch: Sequence[dict], images: Tensor) -> StepRecord:
        """Compute the student's gradients on a batch (paper Sec. 3, Eq. 3-5).

        Args:
            batch: N items of the mapper.
            images: weak views of the batch, (N, 3, H, W) RGB in [0, 1].

        Raises:
            NonFiniteError: a value is not finite on any rank.
        """
        # A backbone may use the global generator, which must draw the same after a resume.
        torch.manual_seed(hash((self.seed, self.iter, comm.get_rank())))
        weak = weak_samples(batch, images, self.seed)
        pseudo_labels = self.pseudo_label(batch, images, weak)
        strong = self.make_strong(batch, images, pseudo_labels)
        samples = self.student_views(weak, images) + [s for s in strong if s is not None]
        samples = assign_targets(samples, self.tasks, self.student)
        agreement = self.forward_backward(samples, images)
        losses = self.guard.check_update(self.student, self.grad_scaler)
        return StepRecord(batch, weak, pseudo_labels, strong, losses, agreement)

    @torch.no_grad()
    def pseudo_label(
        self, batch: Sequence[dict], images: Tensor, weak: Sequence[Sample]
    ) -> list[dict[str, Target]]:
        """Run the teacher, in ONE pass, on the weak views that need a pseudo-label.

        Returns:
            For each image of the batch, task name -> pseudo-label.
        """
        tasks_of = [self._tasks_to_pseudo_label(sample) for sample in weak]
        masks = {t.name: [t in tasks for tasks in tasks_of if tasks] for t in self.tasks}
        masks = {name: mask for name, mask in masks.items() if any(mask)}
        outputs: dict[str, Outputs] = {}
        if masks:
            with self.autocast(), self._teacher_weights.applied():
                outputs, _ = self.teacher(take_rows(images, indices(tasks_of)), masks)
        self._check_inputs(batch, images, outputs)
        labels: list[dict[str, Target]] = [{} for _ in batch]
        for task in (t for t in self.tasks if t.name in outputs):
            rows = indices(task in tasks for tasks in tasks_of)
            targets = self.method.pseudo_labels(
                task,
                self.teacher.head(task.name),
                outputs[task.name],
                size=(images.shape[2], images.shape[3]),
                valid=torch.stack([batch[i]["valid"] for i in rows]),
            )
            # A method that pseudo-labels labeled images too does so with partially labeled ones.
            on_labeled = self.method.needs_pseudo_label(task, labeled=True, step=self.iter)
            for i, target in zip(rows, targets, strict=True):
                labels[i][task.name] = target if on_labeled else weak[i].restrict(task, target)
        return labels

    def _tasks_to_pseudo_label(self, sample: Sample) -> list[Task]:
        needs = self.method.needs_pseudo_label
        return [
            task
            for task in self.tasks
            if needs(task, labeled=sample.is_labeled(task), step=self.iter)
        ]

    def make_strong(
        self, batch: Sequence[dict], images: Tensor, pseudo_labels: Sequence[Mapping[str, Target]]
    ) -> list[Sample | None]:
        """Make strong views of the images with pseudo-labels; None for the others."""
        rows = indices(pseudo_labels)
        if not rows:
            return [None] * len(batch)
        assert self.method.strong_augmentation is not None
        samples = strong_samples(
            take_rows(images, rows),
            [batch[i]["draw"] for i in rows],
            [pseudo_labels[i] for i in rows],
            self.tasks,
            self.method.strong_augmentation,
            self.seed,
        )
        by_row = dict(zip(rows, samples, strict=True))
        return [by_row.get(i) for i in range(len(batch))]

    def student_views(self, weak: Sequence[Sample], images: Tensor) -> list[Sample]:
        """Return the weak views for the student's pass, see FIXMATCH.UNLABELED_WEAK."""
        labeled = [sample for sample in weak if sample.targets]
        if self.unlabeled_weak == "none":
            return labeled
        everywhere = [replace(sample, in_all_heads=True) for sample in weak]
        if self.unlabeled_weak == "forward":
            return everywhere
        self.update_statistics([s for s in everywhere if not s.targets], images)
        return labeled

    def forward_backward(self, samples: Sequence[Sample], images: Tensor) -> dict[str, float]:
        """Run the student forward and backward, in parts if gradients are accumulated.

        Args:
            samples: samples of this rank with assigned targets, maybe none.
            images: weak views, (N, 3, H, W), of which a pass without samples takes a slice.

        Returns:
            The agreement, see StepRecord.
        """
        counts = {
            (task.name, pseudo): [x.count for x in assigned_of(samples, task, is_pseudo=pseudo)]
            for task, pseudo in self.loss_terms
        }
        divisors = self.normalizers.divisors(counts, self.student.device)
        self.optimizer.zero_grad()
        agreement: dict[str, float] = {}
        # Parts are interleaved, so that each has weak and strong views.
        count = self._num_parts(len(samples))
        for part in range(count):
            # DDP reduces the gradients once, in the last part.
            no_sync = getattr(self.model, "no_sync", nullcontext)
            with nullcontext() if part == count - 1 else no_sync():
                losses, part_agreement = self.losses(samples[part::count], divisors, images)
                agreement |= part_agreement
                self.guard.watch_losses(losses)
                # DDP averages over the ranks, but this loss is a sum over them.
                total = losses["total_loss"] * comm.get_world_size()
                self.grad_scaler.scale(total).backward()
        return agreement

    @property
    def loss_terms(self) -> list[tuple[Task, bool]]:
        """Each task with False for its supervised and True for its unsupervised loss."""
        kinds = (False, True) if self.method.is_semi_supervised else (False,)
        return [(task, pseudo) for task in self.tasks for pseudo in kinds]

    def losses(
        self,
        samples: Sequence[Sample],
        divisors: Mapping[tuple[str, bool], Tensor],
        images: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Compute the losses of a part of the samples, and the agreement, see StepRecord."""
        with self.autocast():
            outputs, zero = self._forward(samples, images)
        losses: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        agreement: dict[str, float] = {}
        for task, pseudo in self.loss_terms:
            head = self.student.head(task.name)
            assigned = assigned_of(samples, task, is_pseudo=pseudo)
            terms = dict.fromkeys(task.loss_parts, zero)  # exactly 0, and not nan, without images
            if assigned:
                rows = loss_rows(samples, task, is_pseudo=pseudo)
                selected = select_rows(outputs[task.name], rows)
                divisor, counts = divisors[task.name, pseudo], [x.count for x in assigned]
                weights = self.normalizers[task.name].image_weights(counts, divisor)
                terms = head.losses(selected, assigned, image_size(samples), weights)
                if pseudo and self._has_diagnostics:
                    agreement[task.name] = head.agreement(selected, assigned)
            losses |= {loss_name(task, part, pseudo): value for part, value in terms.items()}
            weighted += [self.weight(task, pseudo) * value for value in terms.values()]
        return losses | {"total_loss": torch.stack(weighted).sum() + zero}, agreement

    def _forward(
        self, samples: Sequence[Sample], images: Tensor
    ) -> tuple[dict[str, Outputs], Tensor]:
        """Run the heads that any rank has samples for, because SyncBN waits for all ranks."""
        masks = {t.name: [sample.runs(t) for sample in samples] for t in self.tasks}
        numbers = [len(samples), *(sum(mask) for mask in masks.values())]
        total, *counts = sum_on_host(numbers)
        if not total:  # no rank has a sample; DDP still needs a backward pass
            return self.model(images[: int(comm.is_main_process())], {})
        images = torch.stack([s.image for s in samples]) if samples else images[:0]
        seeds = [sample.dropout_seed for sample in samples]
        run = {name: mask for (name, mask), n in zip(masks.items(), counts, strict=True) if n}
        return self.model(images, run, seeds)

    @torch.no_grad()
    def update_statistics(self, samples: Sequence[Sample], images: Tensor) -> None:
        """Let the BatchNorm layers of the student see samples in a pass without gradient."""
        if any(sum_on_host([len(samples)])):
            with self.autocast():
                self._forward(samples, images)

    def weight(self, task: Task, pseudo: bool) -> float:
        """Return gamma_t of a task, times lambda_t(step) for its unsupervised loss (Eq. 5)."""
        ramped = self.method.unsupervised_weight(task, self.iter) if pseudo else 1.0
        return task.loss_weight * ramped

    def _num_parts(self, num_samples: int) -> int:
        """Return the number of parts, the same on all ranks, because they exchange losses."""
        limit = self.accumulation_steps
        return limit if limit == 1 else min(limit, max(1, *comm.all_gather(num_samples)))

    def _check_inputs(
        self, batch: Sequence[dict], images: Tensor, outputs: Mapping[str, Outputs]
    ) -> None:
        """Have the guard look at the images and the outputs of the teacher."""
        named_outputs = [
            (f"the teacher's output {i} for {name}", x)
            for name, output in outputs.items()
            for i, x in enumerate(output)
        ]
        total = sum((x.sum() for _, x in named_outputs), images.new_zeros(()))
        sums = {"the sum of the images": images.sum(), "that of the teacher's outputs": total}
        files = [f"the image {item['file_name']}" for item in batch]
        self.guard.watch(sums, lambda: [*zip(files, images, strict=True), *named_outputs])

    @property
    def _has_diagnostics(self) -> bool:
        return bool(self.diagnostics_period) and self.iter % self.diagnostics_period == 0

    def update_student(self) -> None:
        """Take an optimizer step, on unscaled gradients because clipping needs them."""
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def autocast(self) -> torch.autocast:
        """Return the context of mixed precision for a forward pass."""
        return self.student.autocast(self.precision)

    def dump(self, batch: Sequence[dict], images: Tensor) -> dict[str, Any]:
        """Return all that repeats this step, see runtime.nonfinite."""
        return {
            "step": self.iter,
            "seed": self.seed,
            "files": [item["file_name"] for item in batch],
            "batch": list(batch),
            "images": images,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "method": self.method.state_dict(),
            "normalizers": self.normalizers.state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
        }

    def state_dict(self) -> dict:
        """Return the state of optimizer, loss scaler, method, normalizers and skipped steps."""
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "method": self.method.state_dict(),
            "normalizers": self.normalizers.state_dict(),
            "skipped_steps": self.guard.skipped,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.method.load_state_dict(state_dict["method"])
        self.normalizers.load_state_dict(state_dict["normalizers"])
        self.guard.skipped = state_dict["skipped_steps"]


def loss_name(task: Task, part: str, is_pseudo: bool) -> str:
    """Return the name of a loss in logs, which ends in _unsup for an unsupervised loss."""
    return f"loss_{task.name}_{part}" + ("_unsup" if is_pseudo else "")
