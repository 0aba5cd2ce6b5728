"""Detect non-finite values and roll the step back on all ranks.

A step checks images, the teacher's outputs, losses, gradients and buffers. A file that replays the
step is written, and the run stops or goes on with the next step (SOLVER.NONFINITE).
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ..utils.checkout import spell_commands
from ..utils.distributed import sum_over_ranks
from ..utils.files import replacing
from ..utils.tensor_lists import TensorLists

logger = logging.getLogger(__name__)

Tensors = Iterable[tuple[str, Tensor]]
# What repeats a step, a file of torch.save. The guard itself reads "step" and "files", the names of
# its images, and adds "rank", "nonfinite" (the names of such values) and "config" (YAML).
Dump = dict[str, Any]
SHOWN = 3  # non-finite values that a message names


class NonFiniteError(Exception):
    """Raised by all ranks at the same place; its arguments name this rank's non-finite values."""


@dataclass
class _Watched:
    """Scalars by name, the same names on all ranks, and what they were made of."""

    values: dict[str, Tensor]
    parts: Callable[[], Tensors]
    are_losses: bool

    def describe(self) -> list[str]:
        """Name what is not finite on this rank."""
        if all(value.isfinite() for value in self.values.values()):
            return []
        return not_finite(self.parts()) or not_finite(self.values.items())


def not_finite(tensors: Tensors) -> list[str]:
    """Name the tensors with a value that is not finite, each with the first such value."""
    suspects = [(name, x) for name, x in tensors if not x.sum().isfinite()]
    return [f"{name} is {y}" for name, x in suspects for y in x[~x.isfinite()][:1].tolist()]


class StepGuard:
    """Rolls back a step with non-finite values, writes its file, and lets the run stop or go on."""

    def __init__(self, cfg: CfgNode):
        """Read SOLVER.NONFINITE and MAX_SKIPPED_STEPS; OUTPUT_DIR is for the steps' files."""
        # Steps that may be skipped in the whole run; the next one stops it.
        self.allowed = cfg.SOLVER.MAX_SKIPPED_STEPS if cfg.SOLVER.NONFINITE == "skip" else 0
        self.skipped = 0  # steps that were rolled back
        self.folder, self.config = cfg.OUTPUT_DIR, cfg.dump()
        self._watched: list[_Watched] = []  # of this step, in order
        self._buffers: TensorLists | None = None
        self._before: list[list[Tensor]] = []  # copies of the lists in `_copied`
        self._copied: list[list[Tensor]] = []

    @contextmanager
    def rolling_back(
        self, modules: Sequence[nn.Module], optimizer: Optimizer, dump: Callable[[], Dump]
    ) -> Iterator[None]:
        """Restore the buffers and clear the gradients if the block raises NonFiniteError.

        The block must not change weights before everything is checked.

        Raises:
            FloatingPointError: on all ranks, with the same message, if no more may be skipped.
        """
        self._watched = []
        buffers, before = self._copy_buffers(modules)
        try:
            yield
        except NonFiniteError as error:
            buffers.put_back()
            for tensors, old in zip(buffers.get(), before, strict=True):
                torch._foreach_copy_(tensors, old)
            optimizer.zero_grad()
            self._skip_or_stop(dump(), error.args)

    @torch.no_grad()
    def _copy_buffers(self, modules: Sequence[nn.Module]) -> tuple[TensorLists, list[list[Tensor]]]:
        if self._buffers is None or self._buffers.modules != tuple(modules):
            self._buffers = TensorLists(*modules, parameters=False)
        lists = self._buffers.get()
        if self._copied is not lists:
            self._copied = lists
            self._before = [[torch.empty_like(x) for x in tensors] for tensors in lists]
        for old, tensors in zip(self._before, lists, strict=True):
            torch._foreach_copy_(old, tensors)
        return self._buffers, self._before

    def watch(self, values: Mapping[str, Tensor], parts: Callable[[], Tensors]) -> None:
        """Have `check_update` look at values, without waiting for them now.

        Args:
            values: scalars by name, the same names on all ranks.
            parts: function that returns what they were made of; it is called only to name what is
                wrong.
        """
        self._watched.append(_Watched(dict(values), parts, are_losses=False))

    def watch_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Have `check_update` look at the losses of a part of the batch, by name, and add them."""
        detached = {name: loss.detach() for name, loss in losses.items()}
        self._watched.append(_Watched(detached, tuple, are_losses=True))

    def check_update(self, model: nn.Module, grad_scaler: torch.amp.GradScaler) -> dict[str, float]:
        """Check all that this step watches, and gradients and buffers, before weights change.

        It is the only place where a step waits for its values: the ranks add them up in one
        exchange, and all of them come to the host in one copy.

        Returns:
            Name -> sum of each loss over all ranks and parts of the batch.

        Raises:
            NonFiniteError: on every rank, if a value of any of them is not finite. Of the calls of
                `watch` and `watch_losses`, it names the values of the first one with such a value.
        """
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        values = {"the norm of the buffers": _norm(model.buffers())}
        # While float16's loss scaler searches its scale, infinite gradients are no fault: it skips
        # the step itself.
        if not grad_scaler.is_enabled() or grad_scaler.get_scale() <= 1:
            values["the norm of the gradients"] = _norm(gradients)
        self.watch(values, lambda: _update_tensors(model))
        return self._add_up()

    def _add_up(self) -> dict[str, float]:
        watched, self._watched = self._watched, []
        own = torch.stack([x.float() for one in watched for x in one.values.values()])
        both = sum_over_ranks(torch.stack([own, (~own.isfinite()).float()]).flatten(), own.device)
        sums, bad = both[: len(own)], both[len(own) :]
        losses: dict[str, float] = {}
        for one in watched:
            count = len(one.values)
            if any(bad[:count]):
                raise NonFiniteError(*one.describe())
            if one.are_losses:
                for name, value in zip(one.values, sums[:count], strict=True):
                    losses[name] = losses.get(name, 0.0) + value
            sums, bad = sums[count:], bad[count:]
        return losses

    def _skip_or_stop(self, dump: Dump, names: Sequence[str]) -> None:
        # Files come before the exchange: no rank ends, and takes others along, before all wrote.
        own = self._describe(dump, names) if names else ""
        texts = {rank: text for rank, text in enumerate(comm.all_gather(own)) if text}
        first, *others = texts
        also = f" (and {', '.join(map(str, others))})" if others else ""
        message = f"step {dump['step']}, rank {first}{also}: {texts[first]}"
        self.skipped += 1
        if self.skipped > self.allowed:
            raise FloatingPointError(f"{message}. Weights and the last checkpoint are unharmed")
        if comm.is_main_process():
            skipped = f"{self.skipped} of {self.allowed} (SOLVER.MAX_SKIPPED_STEPS)"
            logger.warning("%s. The step is skipped, %s", message, skipped)

    def _describe(self, dump: Dump, names: Sequence[str]) -> str:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        shown, files = ", ".join(names[:SHOWN]) + more, ", ".join(dump["files"])
        return f"{shown}; its images: {files}; {self._write(dump, names)}"

    def _write(self, dump: Dump, names: Sequence[str]) -> str:
        """Write the file that replays the step; return how to use it, or why there is none."""
        rank = f"_rank{comm.get_rank()}" if comm.get_world_size() > 1 else ""
        path = os.path.join(self.folder, f"bad_step_{dump['step']:07d}{rank}.pth")
        more = {"rank": comm.get_rank(), "nonfinite": list(names), "config": self.config}
        try:
            os.makedirs(self.folder, exist_ok=True)
            with replacing(path) as file:
                torch.save(dump | more, file)
        except (OSError, RuntimeError) as error:  # the other ranks wait, so go on without it
            return f"{path}, which would replay it, cannot be written: {error}"
        return f"to replay it: {spell_commands('python projects/replay_step.py')} {path}"


def _update_tensors(model: nn.Module) -> Tensors:
    """Return the gradients of a model, the last layers first, and its buffers, with names."""
    named = [(f"the gradient of {x}", p.grad) for x, p in model.named_parameters()]
    gradients = [(name, grad) for name, grad in named if grad is not None]
    return [*reversed(gradients), *((f"the buffer {x}", y) for x, y in model.named_buffers())]


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Norm of all floating-point values together, not finite where one of them is not."""
    return get_total_norm([tensor for tensor in tensors if tensor.is_floating_point()])
