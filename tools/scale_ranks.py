"""Count the collectives of a training step, and their bytes, with 1, 2 and 4 gloo processes.

    python -m tools.scale_ranks

The network is that of configs/cityscapes on small images: the counts depend on neither their size
nor their number, and each process of a larger run makes the same ones.
"""

import json
import logging
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from mtfixmatch.engine import MultiTaskTrainer, load_config
from tests.support.ranks import fork_ranks
from tests.support.short_training import make_data

CONFIG = "configs/cityscapes/dense_fixmatch.yaml"
WORLD_SIZES = (1, 2, 4)
STEPS = 3  # the last one is counted
GRADIENTS = "gradients"
# Methods of a process group, and the argument whose tensors each process receives.
METHODS = {
    "allreduce": 0,
    "allgather": 0,
    "_allgather_base": 0,
    "all_gather_into_tensor_coalesced": 0,
    "broadcast": 0,
    "gather": 0,
    "barrier": None,
}


class Counts:
    """Counts the collectives of this process, and the bytes of their results."""

    def __init__(self):
        self.calls: Counter = Counter()
        self.bytes: Counter = Counter()
        for name, place in METHODS.items():
            if hasattr(ProcessGroup, name):
                self._wrap(name, place)

    def _wrap(self, name: str, place: int | None) -> None:
        method = getattr(ProcessGroup, name)

        def counted(group: ProcessGroup, *args: Any, **kwargs: Any) -> Any:
            self.add(name, size_of(args[place]) if place is not None else 0)
            return method(group, *args, **kwargs)

        setattr(ProcessGroup, name, counted)

    def add(self, name: str, size: int) -> None:
        """Count a collective of some bytes."""
        self.calls[name] += 1
        self.bytes[name] += size

    def watch_gradients(self, model: torch.nn.Module) -> None:
        """Count the gradients, which DistributedDataParallel sums without Python."""

        def hook(state: Any, bucket: dist.GradBucket) -> Future[torch.Tensor]:
            self.add(GRADIENTS, bucket.buffer().nbytes)
            self.calls["allreduce"] -= 1  # which this is
            self.bytes["allreduce"] -= bucket.buffer().nbytes
            return default_hooks.allreduce_hook(state, bucket)

        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, hook)

    def clear(self) -> None:
        """Forget what was counted."""
        self.calls.clear()
        self.bytes.clear()


def size_of(tensors: Any) -> int:
    """Return the bytes of a tensor, or of those in lists of lists."""
    if isinstance(tensors, torch.Tensor):
        return tensors.nbytes
    return sum(map(size_of, tensors))


def count_step(root: str, output: str) -> None:
    """Take steps on this rank, and write what the last one sent."""
    torch.set_num_threads(1)
    counts, world_size = Counts(), comm.get_world_size()
    cfg = load_config(CONFIG, [str(x) for pair in _keys(root, world_size).items() for x in pair])
    trainer = MultiTaskTrainer(cfg)
    trainer.resume_or_load(resume=False)
    counts.watch_gradients(trainer._trainer.model)
    with EventStorage(0) as trainer._trainer.storage:
        for step in range(STEPS):
            counts.clear()
            trainer._trainer.iter = step
            trainer._trainer.run_step()
    if comm.is_main_process():
        found = {
            "processes": world_size,
            "parameters": sum(x.numel() for x in trainer._trainer.student.parameters()),
            "collectives": dict(counts.calls),
            "bytes": dict(counts.bytes),
        }
        Path(output, f"{world_size}.json").write_text(json.dumps(found))
    comm.synchronize()
    os._exit(0)  # workers of an endless loader


def _keys(root: str, world_size: int) -> dict[str, Any]:
    return {
        "DATASETS.ROOT": root,
        "DATASETS.CACHE_DIR": f"{root}/cache",
        "OUTPUT_DIR": f"{root}/output",
        "DATASETS.TRAIN": "('street_train',)",
        "DATASETS.TEST": "('street_val',)",
        "MODEL.WEIGHTS": '""',
        "MODEL.DEVICE": "cpu",
        "INPUT.TRAIN_SIZE": "[64, 64]",
        "SOLVER.IMS_PER_BATCH": 2 * world_size,
        "DATALOADER.LABELED_PER_BATCH": world_size,
        "DATALOADER.NUM_WORKERS": 0,
        "TASKS.DETECTION.LABELS": 6,
        "TASKS.SEGMENTATION.LABELS": 6,
        "FIXMATCH.DIAGNOSTICS_PERIOD": 0,
    }


def measure() -> list[dict]:
    """Return the counts of each number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        for world_size in WORLD_SIZES:
            fork_ranks(count_step, world_size, folder, folder)
        texts = [Path(folder, f"{world_size}.json").read_text() for world_size in WORLD_SIZES]
    return [json.loads(text) for text in texts]


def main() -> None:
    """Print the counts as JSON."""
    logging.disable(logging.INFO)
    json.dump(measure(), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
