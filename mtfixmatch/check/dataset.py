"""Check the datasets of a config before training, without building a network."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from detectron2.config import CfgNode

from ..data.datasets import get_records
from ..data.loader import eval_records, train_pools, train_records
from ..data.partial_labels import count_labels
from ..data.records import Record
from ..tasks import Task, build_tasks
from ..utils.errors import InputError
from .files import FileScan, decode, find_copies, find_namesakes
from .findings import Findings, Pool, Split, limit_lines
from .sheet import SHEET, draw_sheet

MAX_DECODED = 200  # images that are decoded, unless all are


def check_data(cfg: CfgNode, folder: str, *, decode_all: bool) -> Findings:
    """Check the datasets of a config and draw a contact sheet.

    Args:
        cfg: config of a training.
        folder: folder of the sheet and of a cache; it is made.
        decode_all: decode every image instead of MAX_DECODED.

    Raises:
        InputError: the folder cannot be made, or a dataset cannot be read.
    """
    _make_folder(folder)
    tasks = build_tasks(cfg)
    findings = Findings(tasks)
    scan = FileScan(os.path.join(folder, "cache"), cfg.DATALOADER.NUM_WORKERS)
    train = findings.attempt(train_records, cfg, tasks) or get_records(cfg.DATASETS.TRAIN)
    findings.attempt(eval_records, cfg, tasks)
    val = get_records(cfg.DATASETS.TEST)
    drawn = _find_pools(cfg, train, findings)
    findings.splits = [
        _describe("training", cfg.DATASETS.TRAIN, train, drawn, tasks, scan),
        _describe("validation", cfg.DATASETS.TEST, val, val, tasks, scan),
    ]
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        findings.ignored[name] = count_ignored(get_records([name]))
    findings.num_decoded = _decode_images([*train, *val], scan, decode_all)
    _compare_splits(train, val, scan, findings)
    draw_sheet(cfg, drawn, findings, os.path.join(folder, SHEET))
    broken = dict.fromkeys(scan.errors)  # several scans may fail for the same file
    findings.errors += limit_lines([error for error in broken if error not in findings.errors])
    return findings


def batch_pools(cfg: CfgNode, tasks: Sequence[Task], records: Sequence[Record]) -> list[Pool]:
    """Return the pools of the training batches.

    Raises:
        InputError: the config asks for batches that cannot be made.
    """
    pools, counts = train_pools(cfg, tasks, records)
    labeled = f"labeled images ({cfg.DATALOADER.LABELED})"
    implicit = cfg.DATALOADER.SAMPLING == "implicit"
    names = ["all images"] if implicit else [labeled, "the others"]
    return [Pool(*pool) for pool in zip(names, counts, pools, strict=False)]


def count_ignored(records: Sequence[Record]) -> Counter:
    """Return reason -> number of objects that a reader ignored or left out."""
    counts: Counter = Counter()
    for record in records:
        counts.update(record.get("ignored", {}))
    return counts


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be made ({error.strerror})") from error


def _find_pools(cfg: CfgNode, train: Sequence[Record], findings: Findings) -> list[Record]:
    """Add the pools and return the records in them, or all records if there are no pools."""
    pools: list[Pool] = findings.attempt(batch_pools, cfg, findings.tasks, train) or []
    keys = [task.label_key for task in findings.tasks]
    findings.pools = [(p, count_labels([train[i] for i in p.indices], keys)) for p in pools]
    drawn = sorted({i for pool in pools for i in pool.indices})
    return [train[i] for i in drawn] or list(train)


def _describe(
    name: str,
    datasets: Sequence[str],
    records: Sequence[Record],
    drawn: Sequence[Record],
    tasks: Sequence[Task],
    scan: FileScan,
) -> Split:
    """Count what a split holds; `drawn` are the records that its label statistics cover."""
    keys = [task.label_key for task in tasks]
    scan_split = partial(scan, name=name)
    return Split(
        name=name,
        datasets=list(datasets),
        images=len(records),
        labels=count_labels(records, keys),
        hidden={key: sum(key in r.get("hidden", {}) for r in records) for key in keys},
        sizes=Counter((record["width"], record["height"]) for record in records),
        statistics={
            task.name: task.statistics([r for r in drawn if task.label_key in r], scan_split)
            for task in tasks
        },
    )


def _decode_images(records: Sequence[Record], scan: FileScan, decode_all: bool) -> int:
    """Decode all images or an even sample, and return their number."""
    paths = list(dict.fromkeys(record["file_name"] for record in records))
    if not decode_all and len(paths) > MAX_DECODED:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, MAX_DECODED).round().astype(int)]
    scan(paths, decode, "all" if decode_all else "sample")
    return len(paths)


def _compare_splits(
    train: Sequence[Record], val: Sequence[Record], scan: FileScan, findings: Findings
) -> None:
    """Add validation images that are also in training, and training images that occur twice."""
    leaks, repeats = find_copies(train, val, scan)
    copies = {pair.val for pair in leaks}
    others = [record for record in val if record["file_name"] not in copies]
    same, different = find_namesakes(train, others, scan)
    findings.errors += limit_lines(
        [f"{p.val} (validation) is a copy of {p.train} (training)" for p in leaks]
    )
    findings.errors += limit_lines(
        [f"{p.val} (validation) has the name and the picture of {p.train} (training)" for p in same]
    )
    findings.warnings += limit_lines(
        [f"training has the same image {len(x)} times: {', '.join(x)}" for x in repeats]
    )
    if different:
        findings.warnings.append(
            f"{len(different)} validation images have the name of a training image, but show "
            f"something else: {different[0].val} and {different[0].train} for example"
        )
