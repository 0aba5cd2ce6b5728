"""Records + mapper + sampler -> batches."""

import gc
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import util

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from ..tasks import Task
from .datasets import get_records
from .mapper import EvalMapper, TrainMapper
from .partial_labels import count_labels, hide_by_manifest, hide_labels
from .samplers import Draw, MixedBatchSampler, build_pools

logger = logging.getLogger(__name__)

# What asks a training to save and to stop.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

WORKER_NICENESS = 5


class DrawnDataset(Dataset):
    """Records by draw. An InputError is handed on as an item: workers must not change it."""

    def __init__(self, records: Sequence[dict], mapper: Callable, keys: Sequence[str], skip: bool):
        """Keep the records in one serialized block that workers share.

        Args:
            records: of the training images.
            mapper: (record, draw) -> item.
            keys: of the labels; a replacement has the same ones as what it replaces.
            skip: replace what cannot be read by the next record with the same labels.
        """
        self._records = DatasetFromList(list(records), copy=False)
        self._mapper = mapper
        self._keys = list(keys)
        self._skip = skip

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, draw: Draw) -> dict | InputError:
        """The item of a draw, "skipped" naming the images passed over for it."""
        labels = self._labels(self._records[draw.index])
        skipped: list[str] = []
        for shift in range(len(self)):
            record = self._records[(draw.index + shift) % len(self)]
            if self._labels(record) != labels:
                continue
            try:
                return {**self._mapper(record, draw), "skipped": skipped}
            except InputError as error:
                if not self._skip:
                    return error
                skipped.append(str(error))
        return InputError(f"no image with the labels {labels} can be read: {skipped[0]}")

    def _labels(self, record: dict) -> list[str]:
        return [key for key in self._keys if key in record]


def _raise_errors(batch: list) -> list[dict]:
    for item in batch:
        if isinstance(item, InputError):
            raise item
    return batch


class TrainLoader:
    """Endless batches of this rank, from any step on: the start is all that a resumed run needs."""

    def __init__(self, build: Callable[[int], DataLoader]):
        """Take a function from the first step to a DataLoader."""
        self._build = build
        self.start_step = 0

    def __iter__(self) -> Iterator[list[dict]]:
        return map(_raise_errors, self._build(self.start_step))


def train_records(cfg: CfgNode, tasks: Sequence[Task]) -> list[dict]:
    """The training images with the labels that TASKS.<NAME>.LABELS leaves them.

    Raises:
        InputError: if there are no images, a task has no labeled one, or fewer than asked for.
    """
    records = get_records(cfg.DATASETS.TRAIN)
    if cfg.DATASETS.LABEL_MANIFEST:
        keys = {task.name: task.label_key for task in tasks}
        records = hide_by_manifest(records, keys, cfg.DATASETS.LABEL_MANIFEST)
    else:
        counts = {task.label_key: task.num_labels for task in tasks}
        records = hide_labels(
            records, counts, mode=cfg.DATASETS.LABEL_SUBSETS, seed=cfg.DATASETS.LABEL_SEED
        )
    for task in tasks:
        if not any(task.label_key in record for record in records):
            raise InputError(
                f"no image of {list(cfg.DATASETS.TRAIN)} is labeled for {task.name}: check the "
                f"dataset's files, TASKS.{task.name.upper()}.LABELS and MODEL.TASKS"
            )
    logger.info("Training labels: %s", count_labels(records, [t.label_key for t in tasks]))
    return records


def train_pools(
    cfg: CfgNode, tasks: Sequence[Task], records: Sequence[dict]
) -> tuple[list[list[int]], list[int]]:
    """What DATALOADER makes of the records, see `build_pools`."""
    return build_pools(
        records,
        {task.name: task.label_key for task in tasks},
        sampling=cfg.DATALOADER.SAMPLING,
        labeled=cfg.DATALOADER.LABELED,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        labeled_per_batch=cfg.DATALOADER.LABELED_PER_BATCH,
    )


def build_train_loader(cfg: CfgNode, tasks: Sequence[Task], records: Sequence[dict]) -> TrainLoader:
    """The loader of this rank's share of each batch."""
    pools, counts = train_pools(cfg, tasks, records)
    keys = [task.label_key for task in tasks]
    dataset = DrawnDataset(records, TrainMapper(cfg, tasks), keys, cfg.DATALOADER.SKIP_UNREADABLE)

    def sampler(start_step: int) -> MixedBatchSampler:
        return MixedBatchSampler(
            pools=pools,
            counts=counts,
            seed=max(cfg.SEED, 0),
            start_step=start_step,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )

    sampler(0)  # a batch that cannot be split over the ranks is an error now, not in a worker

    def build(start_step: int) -> DataLoader:
        _kill_workers_at_exit()
        return DataLoader(
            dataset,
            batch_sampler=sampler(start_step),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
            worker_init_fn=_start_worker,
            pin_memory=False,
        )

    return TrainLoader(build)


def _ignore_stop_signals(worker: int) -> None:
    # Clusters send them to all processes; until the run has saved, it needs its workers.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    # PyTorch's handler would take their end for a failure.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _kill_workers_at_exit() -> None:
    # Where a process ends with workers left, as after an error, Python sends them SIGTERM and
    # waits; they ignore it. In processes of torch.multiprocessing, atexit is never called.
    util.Finalize(None, _kill_workers, exitpriority=0)


def _start_worker(worker: int) -> None:
    _ignore_stop_signals(worker)
    torch.set_num_threads(1)
    # A worker that is ahead must not take a core from the network's threads, which wait for each
    # other; what they leave idle is enough.
    os.nice(WORKER_NICENESS)
    # Looking for garbage among the parent's records would copy the memory that workers share.
    gc.freeze()


def eval_records(cfg: CfgNode, tasks: Sequence[Task]) -> list[dict]:
    """The images of DATASETS.TEST with a label for at least one task.

    Raises:
        InputError: if a task has no labeled image there.
    """
    records = get_records(cfg.DATASETS.TEST)
    for task in tasks:
        if not any(task.label_key in record for record in records):
            raise InputError(f"no image of {list(cfg.DATASETS.TEST)} is labeled for {task.name}")
    return [r for r in records if any(task.label_key in r for task in tasks)]


def build_eval_loader(cfg: CfgNode, records: Sequence[dict]) -> DataLoader:
    """Whole images, one at a time, split over the ranks."""
    loader = build_detection_test_loader(
        list(records), mapper=EvalMapper(), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    loader.worker_init_fn = _ignore_stop_signals
    _kill_workers_at_exit()
    return loader
