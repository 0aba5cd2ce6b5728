"""The contact sheet: samples as a training sees them."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch
from detectron2.config import CfgNode

from ..augmentation.strong import StrongAugmentation
from ..data.mapper import TrainMapper
from ..data.records import Record, Records
from ..data.samplers import Draw
from ..engine.samples import stack_images, warped_targets
from ..engine.visualize import Snapshot, as_uint8, draw_samples
from ..methods import build_method
from ..tasks import Task
from .findings import Findings

SAMPLES = 8  # rows of the sheet, or more if there are more combinations of labels
SHEET = "contact_sheet.png"
MAX_NAMES = 4  # of classes in a caption


def draw_sheet(cfg: CfgNode, records: Records, findings: Findings, path: str) -> None:
    """Draw samples as the training will see them; one that cannot be read is an error."""
    keys = [task.label_key for task in findings.tasks]
    method = build_method(cfg)
    mapper = TrainMapper(cfg, findings.tasks, method.weak_flip_prob)
    items, captions = [], []
    for step, record in enumerate(pick_samples(records, keys, SAMPLES, cfg.SEED)):
        # Each is the first image of a step of its own, because all images of a step share their
        # strong operations.
        item = findings.attempt(mapper, record, Draw(index=0, step=step, position=0))
        if item is not None:
            items.append(item)
            names = [label_name(t, record) for t in findings.tasks if t.label_key in record]
            captions.append(f"{record['image_id']}: {', '.join(names) or 'no label'}")
    if items:
        snapshot = take_snapshot(items, findings.tasks, method.strong_augmentation)
        draw_samples(snapshot, findings.tasks, captions, path)


def label_name(task: Task, record: Record) -> str:
    """Return the name of a task, with the classes that the image is labeled for if not for all."""
    classes = task.labeled_classes(record)
    if classes is None:
        return task.name
    names = [task.class_names[i] for i in classes]
    if len(names) > MAX_NAMES:
        names = [f"{len(names)} of {len(task.class_names)} classes"]
    return f"{task.name} ({', '.join(names)})"


def take_snapshot(
    items: Sequence[dict], tasks: Sequence[Task], augmentation: StrongAugmentation | None
) -> Snapshot:
    """Views and labels of items of the mapper, with strong views where there is an augmentation."""
    weak = stack_images(items, torch.device("cpu"))
    labels = [item["targets"] for item in items]
    views, warped = [], []
    if augmentation is not None:
        for image, item in zip(weak, items, strict=True):
            draw, targets = item["draw"], item["targets"]
            view = augmentation(image[None], step=draw.step, positions=[draw.position])
            views.append(view.images)
            labeled = [task for task in tasks if targets[task.name] is not None]
            warped.append(
                {t.name: warped_targets(t, [targets[t.name]], view, [0])[0] for t in labeled}
            )
    strong = torch.cat(views) if views else weak[:0]
    return Snapshot(weak=as_uint8(weak), strong=as_uint8(strong), labels=labels, warped=warped)


def pick_samples(records: Records, keys: Sequence[str], count: int, seed: int) -> list[Record]:
    """Pick `count` random images, or more, so that each combination of labels occurs in turn."""
    kinds: dict[tuple[bool, ...], list[Record]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(records)):
        kinds[tuple(key in records[i] for key in keys)].append(records[i])
    # Images with most labels first, then in the order of the tasks.
    order = sorted(kinds, key=lambda kind: (sum(kind), kind), reverse=True)
    turns = zip_longest(*(kinds[kind] for kind in order))
    return [x for turn in turns for x in turn if x is not None][: max(count, len(kinds))]
