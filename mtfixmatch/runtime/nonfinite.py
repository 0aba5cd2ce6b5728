"""Detect non-finite values and roll the step back on all ranks.

A step checks images, the teacher's outputs, losses, gradients and buffers. A file that replays the
step is written, and the run stops or goes on with the next step (SOLVER.NONFINITE).
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

logger = logging.getLogger(__name__)

Tensors = Iterable[tuple[str, Tensor]]
# What repeats a step, a file of torch.save. The guard itself reads "step" and "files", the names of
# its images, and adds "rank", "nonfinite" (the names of such values) and "config" (YAML).
Dump = dict[str, Any]
SHOWN = 3  # non-finite values that a message names


class NonFiniteError(Exception):
    """Raised by all ranks at the same place; its arguments name this rank's non-finite values."""


def finite_sums(values: Mapping[str, Tensor], parts: Callable[[], Tensors]) -> dict[str, float]:
    """Sum scalars by name, the same names on all ranks, over all ranks.

    `parts` returns what they were made of; it is called only to name what is wrong.

    Raises:
        NonFiniteError: on every rank, if a value of any of them is not finite.
    """
    own = torch.stack([value.detach().float() for value in values.values()])
    bad = (~own.isfinite()).any()
    *sums, ranks = sum_over_ranks(torch.cat([own, bad[None]]), own.device)
    if ranks:
        raise NonFiniteError(*(not_finite(parts()) or not_finite(values.items()) if bad else []))
    return dict(zip(values, sums, strict=True))


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

    @contextmanager
    def rolling_back(
        self, modules: Sequence[nn.Module], optimizer: Optimizer, dump: Callable[[], Dump]
    ) -> Iterator[None]:
        """Restore the buffers and clear the gradients if the block raises NonFiniteError.

        The block must not change weights before everything is checked.

        Raises:
            FloatingPointError: on all ranks, with the same message, if no more may be skipped.
        """
        buffers = [buffer for module in modules for buffer in module.buffers()]
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        except NonFiniteError as error:
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
            optimizer.zero_grad()
            self._skip_or_stop(dump(), error.args)

    def check_update(self, model: nn.Module, grad_scaler: torch.amp.GradScaler) -> None:
        """Check gradients and buffers before optimizer and teacher use them; see `finite_sums`."""
        buffers = [(f"the buffer {name}", x) for name, x in model.named_buffers()]
        parameters = model.named_parameters()
        gradients = [(f"the gradient of {x}", p.grad) for x, p in parameters if p.grad is not None]
        sums = {"the norm of the buffers": _norm(buffers)}
        # While float16's loss scaler searches its scale, infinite gradients are no fault: it skips
        # the step itself.
        if not grad_scaler.is_enabled() or grad_scaler.get_scale() <= 1:
            sums["the norm of the gradients"] = _norm(gradients)
        finite_sums(sums, lambda: [*reversed(gradients), *buffers])

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


def _norm(tensors: Tensors) -> Tensor:
    """Norm of all floating-point values together, not finite where one of them is not."""
    return get_total_norm([tensor for _, tensor in tensors if tensor.is_floating_point()])
