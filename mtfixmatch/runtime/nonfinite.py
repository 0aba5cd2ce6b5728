"""What is not finite reaches neither student nor teacher nor disk.

A step looks at its images, the teacher's outputs, its losses, gradients and buffers. What one rank
finds stops all ranks at the same place; the step is undone, a file that replays it is left, and the
run stops or goes on with the next step (SOLVER.NONFINITE).
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from detectron2.config import configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..engine.record import StepRecord
from ..tasks.base import Raw
from ..utils.distributed import sum_over_ranks
from ..utils.files import replacing

if TYPE_CHECKING:
    from ..engine.step import FixMatchTrainer

logger = logging.getLogger(__name__)

NamedTensors = Iterable[tuple[str, Tensor]]
SHOWN = 3  # of the values that are not finite


class NonFiniteError(Exception):
    """Raised by all ranks at the same place of a step.

    Attributes:
        found: what is not finite on this rank.
    """

    def __init__(self, found: Sequence[str]):
        super().__init__(", ".join(found))
        self.found = list(found)


def finite_sums(
    values: Mapping[str, Tensor], parts: Callable[[], NamedTensors]
) -> dict[str, float]:
    """Values summed over all ranks.

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


def check_inputs(record: StepRecord, outputs: Mapping[str, Raw]) -> None:
    """Look at the weak views and the teacher's outputs; see `finite_sums`."""
    raw = [
        (f"the teacher's output {i} for {name}", x)
        for name, output in outputs.items()
        for i, x in enumerate(output)
    ]
    images = [
        (f"the image {item['file_name']}", image)
        for item, image in zip(record.batch, record.weak, strict=True)
    ]
    total = sum((x.sum() for _, x in raw), record.weak.new_zeros(()))
    sums = {"the sum of the images": record.weak.sum(), "that of the teacher's outputs": total}
    finite_sums(sums, lambda: [*images, *raw])


def copy_buffers(network: nn.Module) -> list[Tensor]:
    """What the buffers hold now, in their order."""
    return [buffer.clone() for buffer in network.buffers()]


class StepGuard:
    """Undoes a step that is not finite, keeps it on file, then lets the run stop or go on.

    Attributes:
        skipped: steps that were undone.
    """

    @configurable
    def __init__(self, *, allowed: int, folder: str, config: str):
        """Set up for a run.

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
    def undoing(self, step: "FixMatchTrainer", record: StepRecord) -> Iterator[None]:
        """If what is done inside raises NonFiniteError, nothing has happened.

        Buffers are changed by the forward pass already; weights must not be before all is checked.

        Raises:
            FloatingPointError: on all ranks, with the same message, if no more may be skipped.
        """
        before = copy_buffers(step.student)
        try:
            yield
        except NonFiniteError as error:
            for buffer, old in zip(step.student.buffers(), before, strict=True):
                buffer.copy_(old)
            step.optimizer.zero_grad()
            self._judge(step, record, error.found)

    def check_update(self, step: "FixMatchTrainer") -> None:
        """Look at what optimiser and teacher are about to take in; see `finite_sums`.

        Where float16's loss scaler is looking for its scale, infinite gradients are no fault: it
        leaves the step out itself.
        """
        buffers = [(f"the buffer {name}", x) for name, x in step.student.named_buffers()]
        gradients = [
            (f"the gradient of {name}", parameter.grad)
            for name, parameter in step.student.named_parameters()
            if parameter.grad is not None
        ]
        sums = {"the norm of the buffers": _norm(buffers)}
        scaler = step.grad_scaler
        if not scaler.is_enabled() or scaler.get_scale() <= 1:
            sums["the norm of the gradients"] = _norm(gradients)
        finite_sums(sums, lambda: [*reversed(gradients), *buffers])

    def _judge(self, step: "FixMatchTrainer", record: StepRecord, found: list[str]) -> None:
        # Writing comes before the exchange: no rank ends, and takes others along, before all wrote.
        own = self._describe(step, record, found) if found else ""
        texts = {rank: text for rank, text in enumerate(comm.all_gather(own)) if text}
        first, *others = texts
        also = f" (and {', '.join(map(str, others))})" if others else ""
        message = f"step {step.iter}, rank {first}{also}: {texts[first]}"
        self.skipped += 1
        if self.skipped > self.allowed:
            raise FloatingPointError(f"{message}. Weights and the last checkpoint are unharmed")
        if comm.is_main_process():
            skipped = f"skipped, {self.skipped} of {self.allowed} (SOLVER.MAX_SKIPPED_STEPS)"
            logger.warning("%s. The step is %s", message, skipped)

    def _describe(self, step: "FixMatchTrainer", record: StepRecord, found: list[str]) -> str:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        names = ", ".join(item["file_name"] for item in record.batch)
        return f"{', '.join(found[:SHOWN])}{more}; its images: {names}; " + self._write(
            step, record, found
        )

    def _write(self, step: "FixMatchTrainer", record: StepRecord, found: list[str]) -> str:
        """Write the file that replays the step; returns what there is to say of it."""
        rank = f"_rank{comm.get_rank()}" if comm.get_world_size() > 1 else ""
        path = os.path.join(self.folder, f"bad_step_{step.iter:07d}{rank}.pth")
        data = {
            **{"step": step.iter, "rank": comm.get_rank(), "seed": step.seed, "found": found},
            **{"config": self.config, "record": vars(record)},
            **{"classes": {task.name: task.class_names for task in step.tasks}},
            **{"student": step.student.state_dict(), "teacher": step.teacher.state_dict()},
            **{"grad_scaler": step.grad_scaler.state_dict()},
        }
        try:
            os.makedirs(self.folder, exist_ok=True)
            with replacing(path) as file:
                torch.save(data, file)
        except (OSError, RuntimeError) as error:  # the other ranks wait: go on without
            return f"{path}, which would replay it, cannot be written: {error}"
        return f"to replay it: python projects/replay_step.py {path}"


def _norm(tensors: Sequence[tuple[str, Tensor]]) -> Tensor:
    # A norm is not finite where one of its values is not.
    return get_total_norm([tensor for _, tensor in tensors if tensor.is_floating_point()])


def not_finite(tensors: NamedTensors) -> list[str]:
    """Those that hold a value that is not finite, each with the first such value."""
    found = []
    for name, tensor in tensors:
        if not torch.isfinite(tensor.sum()):
            found += [f"{name} is {value}" for value in tensor[~tensor.isfinite()][:1].tolist()]
    return found
