"""Detect non-finite values and roll the step back on all ranks.

A step looks at its images, the teacher's outputs, its losses, gradients and buffers. A value that
is not finite on one rank stops all ranks at the same place. The step is rolled back, a file that
replays it is written, and the run stops or goes on with the next step (SOLVER.NONFINITE).
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..utils.distributed import sum_over_ranks
from ..utils.files import replacing

logger = logging.getLogger(__name__)

NamedTensors = Iterable[tuple[str, Tensor]]
# What repeats a step, a file of torch.save. The guard itself reads "step" and "files", the names of
# its images, and adds "rank", "nonfinite" (the names of such values) and "config" (YAML).
Dump = dict[str, Any]

SHOWN = 3  # non-finite values that a message names


class NonFiniteError(Exception):
    """Raised by all ranks at the same place of a step.

    Attributes:
        names: of the values that are not finite on this rank.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__(", ".join(names))
        self.names = list(names)


def finite_sums(
    values: Mapping[str, Tensor], parts: Callable[[], NamedTensors]
) -> dict[str, float]:
    """Sum values over all ranks.

    Args:
        values: scalars by name, the same names on all ranks.
        parts: what they were made of, looked at only to name what is wrong.

    Raises:
        NonFiniteError: on every rank, if a value of any of them is not finite.
    """
    own = torch.stack([value.detach().float() for value in values.values()])
    bad = (~own.isfinite()).any()
    *sums, ranks = sum_over_ranks(torch.cat([own, bad[None]]), own.device)
    if ranks:
        raise NonFiniteError((not_finite(parts()) or not_finite(values.items())) if bad else [])
    return dict(zip(values, sums, strict=True))


def not_finite(tensors: NamedTensors) -> list[str]:
    """Name the tensors with a value that is not finite, each with the first such value."""
    texts = []
    for name, tensor in tensors:
        if not torch.isfinite(tensor.sum()):
            texts += [f"{name} is {value}" for value in tensor[~tensor.isfinite()][:1].tolist()]
    return texts


class StepGuard:
    """Rolls back a step with non-finite values, writes its file, and lets the run stop or go on.

    Attributes:
        skipped: number of steps that were rolled back.
    """

    @configurable
    def __init__(self, *, allowed: int, folder: str, config: str):
        """Set up the guard of a run.

        Args:
            allowed: steps that may be skipped in the whole run; the next one stops it.
            folder: of the files that replay a step.
            config: of the run, YAML, for those files.
        """
        self.allowed = allowed
        self.folder = folder
        self.config = config
        self.skipped = 0

    @classmethod
    def from_config(cls, cfg):
        """Read SOLVER.NONFINITE and MAX_SKIPPED_STEPS."""
        skip = cfg.SOLVER.NONFINITE == "skip"
        return {
            "allowed": cfg.SOLVER.MAX_SKIPPED_STEPS if skip else 0,
            "folder": cfg.OUTPUT_DIR,
            "config": cfg.dump(),
        }

    @contextmanager
    def rolling_back(
        self,
        modules: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        dump: Callable[[], Dump],
    ) -> Iterator[None]:
        """Restore all state if the block raises NonFiniteError.

        Forward passes change buffers, so these are restored. Weights must not change before
        everything is checked.

        Args:
            modules: whose buffers the block changes.
            optimizer: whose gradients it computes.
            dump: what the file of the step shall hold.

        Raises:
            FloatingPointError: on all ranks, with the same message, if no more may be skipped.
        """
        buffers = [buffer for module in modules for buffer in module.buffers()]
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        except NonFiniteError as error:
            with torch.no_grad():
                for buffer, old in zip(buffers, before, strict=True):
                    buffer.copy_(old)
            optimizer.zero_grad()
            self._skip_or_stop(dump(), error.names)

    def check_update(self, model: nn.Module, grad_scaler: torch.amp.GradScaler) -> None:
        """Check what optimizer and teacher are about to take in; see `finite_sums`.

        While float16's loss scaler looks for its scale, infinite gradients are no fault: it skips
        the step itself.
        """
        buffers = [(f"the buffer {name}", x) for name, x in model.named_buffers()]
        gradients = [
            (f"the gradient of {name}", parameter.grad)
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        ]
        sums = {"the norm of the buffers": _norm(buffers)}
        if not grad_scaler.is_enabled() or grad_scaler.get_scale() <= 1:
            sums["the norm of the gradients"] = _norm(gradients)
        finite_sums(sums, lambda: [*reversed(gradients), *buffers])

    def _skip_or_stop(self, dump: Dump, names: list[str]) -> None:
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
            skipped = f"skipped, {self.skipped} of {self.allowed} (SOLVER.MAX_SKIPPED_STEPS)"
            logger.warning("%s. The step is %s", message, skipped)

    def _describe(self, dump: Dump, names: list[str]) -> str:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return (
            f"{', '.join(names[:SHOWN])}{more}; its images: {', '.join(dump['files'])}; "
            f"{self._write(dump, names)}"
        )

    def _write(self, dump: Dump, names: list[str]) -> str:
        """Write the file that replays the step; return how to use it, or why there is none."""
        rank = f"_rank{comm.get_rank()}" if comm.get_world_size() > 1 else ""
        path = os.path.join(self.folder, f"bad_step_{dump['step']:07d}{rank}.pth")
        more = {"rank": comm.get_rank(), "nonfinite": names, "config": self.config}
        try:
            os.makedirs(self.folder, exist_ok=True)
            with replacing(path) as file:
                torch.save(dump | more, file)
        except (OSError, RuntimeError) as error:  # the other ranks wait, so go on without it
            return f"{path}, which would replay it, cannot be written: {error}"
        return f"to replay it: python projects/replay_step.py {path}"


def _norm(tensors: Sequence[tuple[str, Tensor]]) -> Tensor:
    # A norm is not finite where one of its values is not.
    return get_total_norm([tensor for _, tensor in tensors if tensor.is_floating_point()])
