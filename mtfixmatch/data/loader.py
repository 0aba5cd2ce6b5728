"""The loaders: records, sampler and mapper make batches."""

import collections
import gc
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import util

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..runtime.signals import STOP_SIGNALS
from ..runtime.worker_watch import WatchedLoader, WatchedMapper
from ..tasks import Task
from ..utils.errors import InputError
from ..utils.images import RANGE_16BIT
from .broken import BrokenFiles
from .datasets import broken_files, get_records
from .decoded_store import DecodedStore
from .mapper import EvalMapper, TrainMapper
from .packed import PackedBatch
from .partial_labels import count_labels, hide_by_manifest, hide_labels
from .record_table import RecordTable, has_labels
from .samplers import Draw, MixedBatchSampler, build_pools

logger = logging.getLogger(__name__)

WORKER_NICENESS = 5


@dataclass
class DrawnDataset(Dataset):
    """The training images, indexed by draws of the sampler.

    An InputError is returned as an item, as `WatchedLoader` expects it.
    The replacement of a broken image depends on the records alone, not on workers or resumes.
    """

    records: Sequence[dict]  # a RecordTable, whose arrays the workers share
    mapper: Callable[[dict, Draw], dict]
    keys: Sequence[str]  # label keys
    skip: bool  # the next record with the same labels replaces one with broken files

    def __getitem__(self, draw: Draw) -> dict | InputError:
        """Return the item of a draw; "broken" is file -> message of the images it replaces."""
        labels = self._labels(self.records[draw.index])
        broken: dict[str, str] = {}
        count = len(self.records)
        for shift in range(count):
            record = self.records[(draw.index + shift) % count]
            if self._labels(record) != labels:
                continue
            try:
                return {**self.mapper(record, draw), "broken": broken}
            except InputError as error:
                if not self.skip:
                    return error
                broken[record["file_name"]] = str(error)
        first = next(iter(broken.values()))
        return InputError(f"no image with the labels {labels} can be read: {first}")

    def _labels(self, record: dict) -> list[str]:
        return [key for key in self.keys if key in record]


@dataclass
class TrainLoader:
    """Endless batches of this rank; a resumed run only sets `start_step`."""

    build: Callable[[int], Iterable[list]]  # from the first step to batches
    broken: BrokenFiles
    start_step: int = 0

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.build(self.start_step):
            for item in batch:
                self.broken.add(item["broken"])
            yield batch


def read_records(cfg: CfgNode, names: Sequence[str]) -> RecordTable:
    """Return the records of the named datasets, which say how 16-bit images are read."""
    records, range_16bit = RecordTable.of(get_records(names)), tuple(cfg.INPUT.RANGE_16BIT)
    if range_16bit == RANGE_16BIT:
        return records
    return records.with_defaults({"range_16bit": range_16bit})


def train_records(cfg: CfgNode, tasks: Sequence[Task]) -> RecordTable:
    """Return the training images, with labels hidden as TASKS.<NAME>.LABELS says.

    InputError if there are no images, too many are broken, a task has too few labels, or a record
    has a value that cannot be used.
    """
    records = read_records(cfg, cfg.DATASETS.TRAIN)
    check_partial_labels(records, tasks)
    _count_broken(cfg, records)
    records = hide_by_config(cfg, tasks, records)
    counts = count_labels(records, [task.label_key for task in tasks])
    for task in tasks:
        if not counts[task.label_key]:
            raise InputError(
                f"no image of {list(cfg.DATASETS.TRAIN)} is labeled for {task.name}: check the "
                f"dataset's files, TASKS.{task.name.upper()}.LABELS and MODEL.TASKS"
            )
    logger.info("Training labels: %s", counts)
    partial = {t.name: sum(t.label_key in r for r in _partial(records, t)) for t in tasks}
    if any(partial.values()):
        logger.info("Of these labels, partial: %s", partial)
    for task in tasks if cfg.DATALOADER.SAMPLING == "implicit" else ():
        batches = len(records) / (counts[task.label_key] * cfg.SOLVER.IMS_PER_BATCH)
        if batches > 1:
            logger.warning(
                "One batch of %.0f has an image labeled for %s (DATALOADER.SAMPLING is implicit): "
                "explicit puts DATALOADER.LABELED_PER_BATCH images with labels into each",
                *(batches, task.name),
            )
    return records


def check_partial_labels(records: Sequence[dict], tasks: Sequence[Task]) -> None:
    """Raise InputError for a record that does not say clearly what its label is for."""
    for task in tasks:
        collections.deque(_partial(records, task), maxlen=0)


def _partial(records: Sequence[dict], task: Task) -> Iterator[dict]:
    """Yield the records that are partial for a task; only those that may be are looked at."""
    if not (field := task.partial_field):
        return filter(task.is_partial, records)
    table = RecordTable.of(records)
    places = np.flatnonzero(table.has(task.key_of(field, task.name)))
    return filter(task.is_partial, table.select(places))


def hide_by_config(cfg: CfgNode, tasks: Sequence[Task], records: Sequence[dict]) -> RecordTable:
    """Hide labels of records as TASKS.<NAME>.LABELS or DATASETS.LABEL_MANIFEST says."""
    if path := cfg.DATASETS.LABEL_MANIFEST:
        return hide_by_manifest(records, {task.name: task.label_key for task in tasks}, path)
    numbers = {task.label_key: task.num_labels for task in tasks}
    mode, seed = cfg.DATASETS.LABEL_SUBSETS, cfg.DATASETS.LABEL_SEED
    return hide_labels(records, numbers, mode=mode, seed=seed)


def _count_broken(cfg: CfgNode, records: Sequence[dict]) -> BrokenFiles:
    """Return the broken files that the readers left out, or raise InputError for too many."""
    messages = broken_files(cfg.DATASETS.TRAIN)
    return BrokenFiles(messages, len(records) + len(messages), cfg.DATALOADER.MAX_BROKEN)


def train_pools(
    cfg: CfgNode, tasks: Sequence[Task], records: Sequence[dict]
) -> tuple[list[np.ndarray], list[int]]:
    """Return the pools of DATALOADER.SAMPLING, see `build_pools`."""
    return build_pools(
        records,
        {task.name: task.label_key for task in tasks},
        sampling=cfg.DATALOADER.SAMPLING,
        labeled=cfg.DATALOADER.LABELED,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        labeled_per_batch=cfg.DATALOADER.LABELED_PER_BATCH,
    )


def build_train_loader(
    cfg: CfgNode, tasks: Sequence[Task], records: Sequence[dict], flip_prob: float | None = None
) -> TrainLoader:
    """Build the loader of this rank's share of each batch of `train_records`.

    The weak view is flipped with the probability `flip_prob`; None: INPUT.FLIP_PROB.
    """
    pools, counts = train_pools(cfg, tasks, records)
    keys = [task.label_key for task in tasks]
    mapper = WatchedMapper(TrainMapper(cfg, tasks, flip_prob), cfg.DATALOADER.NUM_WORKERS)
    dataset = DrawnDataset(RecordTable.of(records), mapper, keys, cfg.DATALOADER.SKIP_BROKEN)

    ranks = {"rank": comm.get_rank(), "world_size": comm.get_world_size()}
    sampler = partial(MixedBatchSampler, pools=pools, counts=counts, seed=cfg.SEED, **ranks)
    sampler()  # raise the error of a batch that the ranks cannot share here, not in a worker

    def build(start_step: int) -> WatchedLoader:
        _kill_workers_at_exit()
        workers = cfg.DATALOADER.NUM_WORKERS
        pack, unpack = (PackedBatch.of, PackedBatch.items) if workers else (list, list)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler(start_step=start_step),
            num_workers=workers,
            collate_fn=pack,
            pin_memory=bool(workers) and cfg.MODEL.DEVICE.startswith("cuda"),
            worker_init_fn=_start_worker,
        )
        return WatchedLoader(loader, mapper, cfg.DATALOADER.TIMEOUT, unpack)

    return TrainLoader(build, _count_broken(cfg, records))


def _ignore_stop_signals(worker: int) -> None:
    # Clusters send them to all processes, but the run needs its workers until it has saved.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _kill_workers_at_exit() -> None:
    # When a process ends after an error, Python sends its workers SIGTERM, which they ignore, and
    # waits. Processes of torch.multiprocessing never call atexit.
    util.Finalize(None, _kill_workers, exitpriority=0)


def _start_eval_worker(worker: int) -> None:
    _ignore_stop_signals(worker)
    cv2.setNumThreads(0)  # the threads of OpenCV do not survive a fork


def _start_worker(worker: int) -> None:
    _start_eval_worker(worker)
    torch.set_num_threads(1)
    # A worker must not take a core from the threads of the network, which wait for each other.
    os.nice(WORKER_NICENESS)
    # Garbage collection would touch, and so copy, the memory that workers share with the parent.
    gc.freeze()


def eval_records(cfg: CfgNode, tasks: Sequence[Task]) -> RecordTable:
    """Return the images of DATASETS.TEST with a label, and warn of the tasks that have none.

    Raises:
        InputError: DATASETS.TEST is not empty, but has no label of any task, or a record has a
            value that cannot be used.
    """
    names = list(cfg.DATASETS.TEST)
    if not names:
        _warn("DATASETS.TEST is empty: nothing is evaluated, and there is no model_best.pth")
        return RecordTable([])
    records = read_records(cfg, names)
    check_partial_labels(records, tasks)
    evaluated = labeled_tasks(tasks, records)
    if not evaluated:
        expected = ", ".join(task.name for task in tasks)
        raise InputError(
            f"no image of {names} is labeled for {expected}: check the dataset's files and "
            "MODEL.TASKS, or let DATASETS.TEST be empty"
        )
    if missing := [task.name for task in tasks if task not in evaluated]:
        _warn(f"no image of {names} is labeled for {', '.join(missing)}, which is not evaluated")
    present = has_labels(records, [task.label_key for task in evaluated])
    return records.select(np.flatnonzero(present.any(axis=1)))


def labeled_tasks(tasks: Sequence[Task], records: Sequence[dict]) -> list[Task]:
    """Return the tasks that one of the records or more is labeled for."""
    present = has_labels(records, [task.label_key for task in tasks])
    return [task for task, column in zip(tasks, present.T, strict=True) if column.any()]


def _warn(text: str) -> None:
    if comm.is_main_process():
        logger.warning(text)


def _read(map_record: Callable[[dict], dict], record: dict) -> dict | InputError:
    """Return an error, which `WatchedLoader` raises: PyTorch would rewrite one of a worker."""
    try:
        return map_record(record)
    except InputError as error:
        return error


def build_eval_loader(
    cfg: CfgNode,
    records: Sequence[dict],
    tasks: Sequence[Task] = (),
    map_record: Callable[[dict], dict] | None = None,
) -> WatchedLoader:
    """Build the loader of whole images, one at a time, split over the ranks.

    The workers call `map_record`; None: an `EvalMapper` of the `tasks`, which uses
    DATALOADER.DECODED_STORE.
    """
    workers = cfg.DATALOADER.NUM_WORKERS
    map_record = map_record or EvalMapper(tasks, DecodedStore.from_config(cfg))
    mapper = WatchedMapper(partial(_read, map_record), workers)
    table = RecordTable.of(records)
    loader = build_detection_test_loader(table, mapper=mapper, num_workers=workers)
    loader.worker_init_fn = _start_eval_worker
    _kill_workers_at_exit()
    return WatchedLoader(loader, mapper, cfg.DATALOADER.TIMEOUT)
