"""Look before you train: all that can be known of the data without a network."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from ..augmentation.strong import StrongAugmentation
from ..data.datasets import get_records
from ..data.loader import eval_records, train_records
from ..data.mapper import TrainMapper
from ..data.partial_labels import count_labels
from ..data.samplers import Draw
from ..engine.samples import moved_target, stack_images
from ..engine.visualize import Snapshot, as_uint8, draw_samples
from ..methods import build_method
from ..tasks import Task, build_tasks
from ..tasks.base import Statistics
from ..utils.errors import InputError
from .files import (
    FileScan,
    Pool,
    Record,
    batch_pools,
    decode,
    find_copies,
    find_namesakes,
    ignored_counts,
    image_sizes,
    pick_samples,
)

DECODED = 200  # images of the sample that is decoded unless all are
SAMPLES = 8  # rows of the contact sheet, if there are not more combinations of labels
MOST_LINES = 20  # of errors or warnings of one kind
SHEET = "contact_sheet.png"


@dataclass
class Side:
    """What training or validation has.

    Attributes:
        name: "training" or "validation".
        datasets: their names.
        images: number of them.
        labels: label key -> labeled images; also those with "all" and with "none" of the labels.
        hidden: label key -> images whose label is hidden from training.
        sizes: (width, height) -> images.
        statistics: task name -> what the labels hold, of the images that take part.
    """

    name: str
    datasets: list[str]
    images: int
    labels: dict[str, int]
    hidden: dict[str, int]
    sizes: Counter
    statistics: dict[str, Statistics]


@dataclass
class Findings:
    """All that a check found.

    Attributes:
        tasks: of MODEL.TASKS.
        sides: training, validation.
        pools: what training batches are drawn from, each with its `count_labels`.
        ignored: data set -> reason -> how often its reader left something out.
        decoded: number of images that were decoded.
        warnings: what may be meant, a sentence each.
        errors: what must be mended, a sentence each.
    """

    tasks: list[Task]
    sides: list[Side] = field(default_factory=list)
    pools: list[tuple[Pool, dict[str, int]]] = field(default_factory=list)
    ignored: dict[str, Counter] = field(default_factory=dict)
    decoded: int = 0
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def attempt(self, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a function, or None and one more error."""
        try:
            return function(*args)
        except InputError as error:
            self.errors.append(str(error))
            return None


def check_data(cfg: CfgNode, folder: str, *, decode_all: bool) -> Findings:
    """Check the data of a config and draw the contact sheet into a folder.

    Args:
        cfg: of a training.
        folder: for the sheet and a cache; it is made.
        decode_all: decode every image, not a sample.

    Raises:
        InputError: if the folder cannot be made, or a reader stops at what it finds.
    """
    _make_folder(folder)
    tasks = build_tasks(cfg)
    found = Findings(tasks)
    scan = FileScan(os.path.join(folder, "cache"), cfg.DATALOADER.NUM_WORKERS)
    train = found.attempt(train_records, cfg, tasks) or get_records(cfg.DATASETS.TRAIN)
    found.attempt(eval_records, cfg, tasks)
    val = get_records(cfg.DATASETS.TEST)
    drawn = _find_pools(cfg, train, found)
    found.sides = [
        _describe("training", cfg.DATASETS.TRAIN, train, drawn, tasks, scan),
        _describe("validation", cfg.DATASETS.TEST, val, val, tasks, scan),
    ]
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        found.ignored[name] = ignored_counts(get_records([name]))
    found.decoded = _decode([*train, *val], scan, decode_all)
    _compare(train, val, scan, found)
    _draw_sheet(cfg, drawn, found, os.path.join(folder, SHEET))
    broken = dict.fromkeys(scan.errors)  # one file may be read for several reasons
    found.errors += first_lines([error for error in broken if error not in found.errors])
    return found


def first_lines(lines: Sequence[str]) -> list[str]:
    """Lines of one kind, of which there may be thousands."""
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"and {more} more like the last one"] if more > 0 else [])]


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be made ({error.strerror})") from error


def _find_pools(cfg: CfgNode, train: Sequence[Record], found: Findings) -> list[Record]:
    """Note the pools and return the records that a training draws; all if it cannot be started."""
    pools: list[Pool] = found.attempt(batch_pools, cfg, found.tasks, train) or []
    keys = [task.label_key for task in found.tasks]
    found.pools = [(p, count_labels([train[i] for i in p.indices], keys)) for p in pools]
    drawn = sorted({i for pool in pools for i in pool.indices})
    return [train[i] for i in drawn] or list(train)


def _describe(
    name: str,
    datasets: Sequence[str],
    records: Sequence[Record],
    taking_part: Sequence[Record],
    tasks: Sequence[Task],
    scan: FileScan,
) -> Side:
    keys = [task.label_key for task in tasks]
    return Side(
        name=name,
        datasets=list(datasets),
        images=len(records),
        labels=count_labels(records, keys),
        hidden={key: sum(key in r.get("hidden", {}) for r in records) for key in keys},
        sizes=image_sizes(records),
        statistics={
            task.name: task.statistics(
                [r for r in taking_part if task.label_key in r], partial(scan, name=name)
            )
            for task in tasks
        },
    )


def _decode(records: Sequence[Record], scan: FileScan, decode_all: bool) -> int:
    paths = list(dict.fromkeys(record["file_name"] for record in records))
    if not decode_all and len(paths) > DECODED:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, DECODED).round().astype(int)]
    scan(paths, decode, "all" if decode_all else "sample")
    return len(paths)


def _compare(
    train: Sequence[Record], val: Sequence[Record], scan: FileScan, found: Findings
) -> None:
    """Note what validation shares with training, and what training has twice."""
    leaks, repeats = find_copies(train, val, scan)
    copies = {pair.val for pair in leaks}
    others = [record for record in val if record["file_name"] not in copies]
    same, different = find_namesakes(train, others, scan)
    found.errors += first_lines(
        [f"{p.val} (validation) is a copy of {p.train} (training)" for p in leaks]
    )
    found.errors += first_lines(
        [f"{p.val} (validation) has the name and the picture of {p.train} (training)" for p in same]
    )
    found.warnings += first_lines(
        [f"training has one image {len(x)} times: {', '.join(x)}" for x in repeats]
    )
    if different:
        found.warnings.append(
            f"{len(different)} validation images have the name of a training image, but show "
            f"something else: {different[0].val} and {different[0].train} for example"
        )


def _draw_sheet(cfg: CfgNode, records: Sequence[Record], found: Findings, path: str) -> None:
    """Draw samples as the training will see them; one that cannot be read is an error."""
    keys = [task.label_key for task in found.tasks]
    method = build_method(cfg)
    mapper = TrainMapper(cfg, found.tasks, method.weak_flip_prob)
    items, captions = [], []
    picked = pick_samples(records, keys, SAMPLES, max(cfg.SEED, 0))
    for step, record in enumerate(picked):
        # Each is the first image of a step of its own, for the images of one step have their
        # strong operations in common.
        item = found.attempt(mapper, record, Draw(index=0, step=step, position=0))
        if item is not None:
            items.append(item)
            names = [task.name for task in found.tasks if task.label_key in record]
            captions.append(f"{record['image_id']}: {', '.join(names) or 'no label'}")
    if items:
        snapshot = take_snapshot(items, found.tasks, method.strong_augmentation)
        draw_samples(snapshot, found.tasks, captions, path)


def take_snapshot(
    items: Sequence[dict], tasks: Sequence[Task], augmentation: StrongAugmentation | None
) -> Snapshot:
    """Views and labels of items of the mapper, with strong views where there is an augmentation."""
    weak = stack_images(items, torch.device("cpu"))
    draws = [item["draw"] for item in items]
    views = [
        augmentation(image[None], step=draw.step, positions=[draw.position])
        for image, draw in zip(weak, draws, strict=True)
        if augmentation is not None
    ]
    strong = torch.cat([view.images for view in views]) if views else weak[:0]
    moved = [
        {
            t.name: moved_target(t, x, view, 0)
            for t in tasks
            if (x := item["targets"][t.name]) is not None
        }
        for item, view in zip(items, views, strict=False)
    ]
    labels = [item["targets"] for item in items]
    return Snapshot(weak=as_uint8(weak), strong=as_uint8(strong), labels=labels, moved=moved)
