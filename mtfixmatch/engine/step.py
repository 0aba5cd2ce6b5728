"""One training step of FixMatch* and Dense FixMatch on several tasks (paper Sec. 3).

`learn` reads like the method: weak views, the teacher's pseudo-labels, strong views to which the
pseudo-labels are moved, ONE forward pass of the student, losses, optimiser, teacher.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import cast

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..augmentation.strong import StrongAugmentation
from ..modeling import MultiTaskNet
from ..modeling.sync_norm import share_statistics
from ..runtime.nonfinite import StepGuard, check_inputs, finite_sums
from ..tasks import Task
from ..tasks.base import Raw, Target
from ..utils.distributed import sum_over_ranks
from .ema import update_teacher
from .record import (
    StepRecord,
    Term,
    dropout_seeds,
    images_of,
    move_target,
    num_parts,
    ramp_up,
    set_normalizers,
    split_rows,
    stack_images,
    union,
)


class FixMatchTrainer(SimpleTrainer):
    """The training step; with no strong augmentation it is the supervised baseline."""

    def __init__(
        self,
        *,
        model: nn.Module,
        teacher: MultiTaskNet,
        tasks: Sequence[Task],
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        strong_augmentation: StrongAugmentation | None,
        unsupervised_on: str,
        burn_in_steps: int,
        ramp_up_steps: float,
        ema_decay: float,
        precision: torch.dtype,
        accumulation_steps: int,
        diagnostics_period: int,
        seed: int,
        guard: StepGuard,
    ):
        """Join the parts.

        Args:
            model: the student, a MultiTaskNet or its DistributedDataParallel wrapper.
            teacher: its moving average.
            tasks: in the order of their losses.
            data_loader: endless batches of this rank.
            optimizer: of the student.
            strong_augmentation: None: no unsupervised loss.
            unsupervised_on: "unlabeled" or "all" images of a task.
            burn_in_steps: steps without unsupervised losses at the start.
            ramp_up_steps: length of the ramp-up of the unsupervised weights after them.
            ema_decay: of the teacher.
            precision: of the forward passes; torch.float32 turns autocast off.
            accumulation_steps: parts in which a batch passes through the student.
            diagnostics_period: steps between records for the hooks; 0 for none.
            seed: of dropout.
            guard: undoes steps that are not finite.
        """
        super().__init__(model, data_loader, optimizer)
        self.student = cast(MultiTaskNet, getattr(model, "module", model))
        self.teacher = teacher
        self.tasks = list(tasks)
        self.strong_augmentation = strong_augmentation
        self.unsupervised_on = unsupervised_on
        self.burn_in_steps = burn_in_steps
        self.ramp_up_steps = ramp_up_steps
        self.ema_decay = ema_decay
        self.precision = precision
        self.accumulation_steps = accumulation_steps
        self.diagnostics_period = diagnostics_period
        self.seed = seed
        self.guard = guard
        # float16 loses small gradients; its scaler does nothing for other types.
        self.grad_scaler = torch.amp.GradScaler("cuda", enabled=precision is torch.float16)
        self.record: StepRecord | None = None

    def run_step(self) -> None:
        """One step: what `learn` says, then optimiser and teacher, or nothing at all."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        weak = stack_images(batch, self.student.device)
        labeled = {t.name: images_of(batch, t, labeled=True) for t in self.tasks}
        record = StepRecord(batch, weak, labeled, self._unlabeled(batch))
        losses: dict[str, float] = {}
        with self.guard.undoing(self, record):
            losses = self.learn(record)
            self.update()
            share_statistics(self.student)
            update_teacher(self.teacher, self.student, self.ema_decay)
        storage = get_event_storage()
        storage.put_scalars(data_time=data_time, **losses)
        storage.put_scalar("skipped_steps", self.guard.skipped, smoothing_hint=False)
        self.record = record if losses and self._measures() else None

    def learn(self, record: StepRecord) -> dict[str, float]:
        """The method, from a batch to gradients; returns the losses, see `forward_backward`."""
        # What does not draw by image, as a backbone of one's own may, does so after a resume too.
        torch.manual_seed(hash((self.seed, self.iter, comm.get_rank())))
        record.pseudo = self.pseudo_labels(record)
        self.make_strong_views(record)
        images, terms = self.student_inputs(record)
        losses = self.forward_backward(images, terms, record)
        self.guard.check_update(self)
        return losses

    def _unlabeled(self, batch: list[dict]) -> dict[str, list[int]]:
        """By task, the images whose unsupervised loss is taken (method: `unlabeled` / `all`)."""
        if self.strong_augmentation is None or self.iter < self.burn_in_steps:
            return {task.name: [] for task in self.tasks}
        if self.unsupervised_on == "all":
            return {task.name: list(range(len(batch))) for task in self.tasks}
        return {task.name: images_of(batch, task, labeled=False) for task in self.tasks}

    @torch.no_grad()
    def pseudo_labels(self, record: StepRecord) -> dict[str, list[Target]]:
        """The teacher's pass, on the weak views that need a pseudo-label."""
        needed = union(record.unlabeled)
        size = (record.weak.shape[2], record.weak.shape[3])
        valid = torch.stack([item["valid"] for item in record.batch])
        unlabeled = {name: images for name, images in record.unlabeled.items() if images}
        rows = {name: [needed.index(i) for i in images] for name, images in unlabeled.items()}
        outputs: dict[str, Raw] = {}
        if needed:
            with self.autocast():
                outputs, _ = self.teacher(record.weak[needed], rows)
        check_inputs(record, outputs)
        return {
            name: self.teacher.head(name).pseudo_labels(outputs[name], size, valid[images])
            if images
            else []
            for name, images in record.unlabeled.items()
        }

    @torch.no_grad()
    def make_strong_views(self, record: StepRecord) -> None:
        """Strong views of what has a pseudo-label, and the pseudo-labels moved into them."""
        record.strong_images = union(record.unlabeled)
        record.moved = {task.name: [] for task in self.tasks}
        if self.strong_augmentation is None or not record.strong_images:
            return
        view = self.strong_augmentation(
            record.weak[record.strong_images],
            step=self.iter,
            positions=[record.batch[i]["draw"].position for i in record.strong_images],
        )
        record.strong = view.images
        for task in self.tasks:
            rows = [record.strong_images.index(i) for i in record.unlabeled[task.name]]
            record.moved[task.name] = [
                move_target(task, target, view, row)
                for row, target in zip(rows, record.pseudo[task.name], strict=True)
            ]

    def student_inputs(self, record: StepRecord) -> tuple[Tensor, list[Term]]:
        """The student's one batch: labeled weak views, then strong views; and all loss terms."""
        batch, strong_images = record.batch, record.strong_images
        weak_images = union(record.labeled)
        images = record.weak[weak_images]
        record.seeds = dropout_seeds(batch, weak_images, self.seed, strong=False)
        if record.strong is not None:
            images = torch.cat([images, record.strong])
            record.seeds += dropout_seeds(batch, strong_images, self.seed, strong=True)
        size = (images.shape[2], images.shape[3])
        terms = []
        for task in self.tasks:
            head = self.student.head(task.name)
            targets = [batch[i]["targets"][task.name] for i in record.labeled[task.name]]
            rows = [weak_images.index(i) for i in record.labeled[task.name]]
            assigned = head.assign(targets, size, unsupervised=False)
            terms.append(Term(task, False, rows, assigned))
            if self.strong_augmentation is not None:
                first, unlabeled = len(weak_images), record.unlabeled[task.name]
                rows = [first + strong_images.index(i) for i in unlabeled]
                assigned = head.assign(record.moved[task.name], size, unsupervised=True)
                terms.append(Term(task, True, rows, assigned))
        set_normalizers(terms, self.student)
        return images, terms

    def forward_backward(
        self, images: Tensor, terms: list[Term], record: StepRecord
    ) -> dict[str, float]:
        """The student's pass and its gradient, part by part with accumulation.

        Returns:
            Every loss before its weights, over the whole global batch, and "total_loss".
        """
        self.optimizer.zero_grad()
        logged: dict[str, float] = {}
        parts = split_rows(len(images), num_parts(self.accumulation_steps, len(images)))
        for part in parts:
            # Gradients are exchanged between the ranks once, with the last part.
            no_sync = getattr(self.model, "no_sync", nullcontext)
            with nullcontext() if part is parts[-1] else no_sync():
                losses = self._part_losses(images, terms, part, record)
                for key, value in finite_sums(losses, losses.items).items():
                    logged[key] = logged.get(key, 0.0) + value
                # DistributedDataParallel averages what should be summed.
                total = losses["total_loss"] * comm.get_world_size()
                self.grad_scaler.scale(total).backward()
        return logged

    def _part_losses(
        self, images: Tensor, terms: list[Term], part: list[int], record: StepRecord
    ) -> dict[str, Tensor]:
        """Losses of some of the student's images, each with its share of the normaliser."""
        picks = [[i for i, row in enumerate(term.rows) if row in part] for term in terms]
        rows: dict[str, list[int]] = {task.name: [] for task in self.tasks}
        for term, pick in zip(terms, picks, strict=True):
            rows[term.task.name] += [part.index(term.rows[i]) for i in pick]
        with self.autocast():
            outputs, zero = self._forward_part(images, part, rows, record)
        losses: dict[str, Tensor] = {}
        offsets = dict.fromkeys(rows, 0)
        for term, pick in zip(terms, picks, strict=True):
            name = term.task.name
            raw = outputs.get(name, ())
            raw = tuple(x[offsets[name] : offsets[name] + len(pick)] for x in raw)
            offsets[name] += len(pick)
            losses |= term.losses(self.student.head(name), raw, term.assigned.rows(pick), zero)
            self._note_agreement(term, raw, pick, record)
        weighted = [self._weight(term) * losses[key] for term in terms for key in term.part_keys()]
        return losses | {"total_loss": torch.stack(weighted).sum() + zero}

    def _forward_part(
        self, images: Tensor, part: list[int], rows: dict[str, list[int]], record: StepRecord
    ) -> tuple[dict[str, Raw], Tensor]:
        """Run backbone and heads where any rank has images for them, for SyncBN talks there."""
        mine = [len(part), *map(len, rows.values())]
        total, *counts = sum_over_ranks(mine, self.student.device)
        if not total:  # no rank has anything to learn, but they expect gradients of each other
            return self.model(record.weak[: int(comm.is_main_process())], {})
        run = {name: found for (name, found), n in zip(rows.items(), counts, strict=True) if n}
        whole = len(part) == len(images)
        seeds = [record.seeds[i] for i in part]
        return self.model(images if whole else images[part], run, seeds)

    def _weight(self, term: Term) -> float:
        """gamma_t, times lambda_t(step) for an unsupervised loss (Eq. 5)."""
        ramped = self.unsupervised_weight(term.task) if term.unsupervised else 1.0
        return term.task.loss_weight * ramped

    def unsupervised_weight(self, task: Task) -> float:
        """lambda_t at this step; 0 in the burn-in."""
        step = self.iter - self.burn_in_steps
        return task.unsupervised_weight * ramp_up(step, self.ramp_up_steps) if step >= 0 else 0.0

    def _note_agreement(self, term: Term, raw: Raw, pick: list[int], record: StepRecord) -> None:
        if term.unsupervised and pick and self._measures():
            head = self.student.head(term.task.name)
            record.agreement[term.task.name] = head.agreement(raw, term.assigned.rows(pick))

    def _measures(self) -> bool:
        return bool(self.diagnostics_period) and self.iter % self.diagnostics_period == 0

    def update(self) -> None:
        """Optimiser step, on true gradients where they were scaled (clipping needs them)."""
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def autocast(self) -> torch.autocast:
        """Mixed precision for the forward passes."""
        mixed = self.precision is not torch.float32
        return torch.autocast(self.student.device.type, dtype=self.precision, enabled=mixed)

    def state_dict(self) -> dict:
        """The optimiser's state, the loss scaler's and the count of skipped steps."""
        state = {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}
        return state | {"skipped_steps": self.guard.skipped}

    def load_state_dict(self, state_dict: dict) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.guard.skipped = state_dict.get("skipped_steps", 0)
