"""Check the datasets of a config before training, without building a network."""

import os
from collections import Counter
from functools import partial

import numpy as np
from detectron2.config import CfgNode

from ..data.datasets import get_records, reader_notes
from ..data.loader import eval_records, read_records, train_pools, train_records
from ..data.partial_labels import count_labels
from ..data.record_table import RecordTable
from ..data.records import Records
from ..engine.label_sets import LABEL_SETS, draw_label_sets, label_sets
from ..engine.visualize import choose_records
from ..tasks import Task, build_tasks
from ..tasks.base import Scan
from ..utils.errors import InputError
from .files import FileScan, decode, find_copies, find_namesakes
from .findings import NOTES, Findings, Pool, Split, limit_lines, write_notes
from .sheet import SHEET, draw_sheet

MAX_DECODED = 200  # images that are decoded, unless all are


def check_data(cfg: CfgNode, folder: str, *, decode_all: bool) -> Findings:
    """Check the datasets of a config, all images or MAX_DECODED, and draw labels and samples.

    Both pictures and a cache are written to the folder, which is made. InputError if that fails,
    or a dataset cannot be read.
    """
    make_folder(folder)
    tasks = build_tasks(cfg)
    findings = Findings(tasks)
    scan = FileScan(os.path.join(folder, "cache"), cfg.DATALOADER.NUM_WORKERS)
    train = findings.attempt(train_records, cfg, tasks) or read_records(cfg, cfg.DATASETS.TRAIN)
    val = read_records(cfg, cfg.DATASETS.TEST)
    labeled = findings.attempt(eval_records, cfg, tasks) or val
    findings.attempt(choose_records, labeled, cfg.TEST.PICTURE_FILES, cfg.TEST.PICTURES)
    drawn = _find_pools(cfg, train, findings)
    splits = [("training", cfg.DATASETS.TRAIN, train, drawn)]
    if cfg.DATASETS.TEST:
        splits.append(("validation", cfg.DATASETS.TEST, val, val))
    for name, datasets, records, counted in splits:
        split_scan = partial(scan, name=name)
        findings.splits.append(_describe(name, list(datasets), records, counted, tasks, split_scan))
        for dataset in datasets:
            findings.ignored[dataset] = count_ignored(get_records([dataset]))
    notes = reader_notes([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    findings.noted = write_notes(notes, os.path.join(folder, NOTES))
    findings.num_decoded = _decode_images([*train, *val], scan, decode_all)
    _compare_splits(train, val, scan, findings)
    keys = {task.name: task.label_key for task in tasks}
    panels = [label_sets(name, records, keys) for name, _, records, _ in splits]
    draw_label_sets(panels, os.path.join(folder, LABEL_SETS))
    draw_sheet(cfg, drawn, findings, os.path.join(folder, SHEET))
    broken = dict.fromkeys(scan.errors)  # several scans may fail for the same file
    findings.errors += limit_lines([error for error in broken if error not in findings.errors])
    return findings


def make_folder(folder: str) -> None:
    """Make the folder of a check, if it is not there."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be made ({error.strerror})") from error


def count_ignored(records: Records) -> Counter:
    """Return reason -> number of objects that a reader ignored or left out."""
    counts: Counter = Counter()
    for record in records:
        counts.update(record.get("ignored", {}))
    return counts


def _find_pools(cfg: CfgNode, train: Records, findings: Findings) -> Records:
    """Add the pools and return the records in them, or all records if there are no pools."""
    pools, counts = findings.attempt(train_pools, cfg, findings.tasks, train) or ([], [])
    names = [f"labeled images ({cfg.DATALOADER.LABELED})", "the others"]
    if cfg.DATALOADER.SAMPLING == "implicit":
        names = ["all images"]
    keys = [task.label_key for task in findings.tasks]
    table = RecordTable.of(train)
    for pool in map(Pool, names, counts, pools):
        findings.pools.append((pool, count_labels(table.select(pool.indices), keys)))
    return table.select(np.unique(np.concatenate(pools))) if pools else train


def _describe(
    name: str, datasets: list[str], records: Records, drawn: Records, tasks: list[Task], scan: Scan
) -> Split:
    """Count what a split holds; `drawn` are the records that its label statistics cover."""
    keys = [task.label_key for task in tasks]
    labels = count_labels(records, keys)
    hidden = {key: sum(key in r.get("hidden", {}) for r in records) for key in keys}
    sizes = Counter((record["width"], record["height"]) for record in records)
    labeled = {task.name: [r for r in drawn if task.label_key in r] for task in tasks}
    statistics = {task.name: task.statistics(labeled[task.name], scan) for task in tasks}
    return Split(name, datasets, len(records), labels, hidden, sizes, statistics)


def _decode_images(records: Records, scan: FileScan, decode_all: bool) -> int:
    """Decode all images or an even sample, and return their number."""
    paths = list(dict.fromkeys(record["file_name"] for record in records))
    if not decode_all and len(paths) > MAX_DECODED:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, MAX_DECODED).round().astype(int)]
    scan(paths, decode, "all" if decode_all else "sample")
    return len(paths)


def _compare_splits(train: Records, val: Records, scan: FileScan, findings: Findings) -> None:
    """Add validation images that are also in training, and training images that occur twice."""
    leaks, repeats = find_copies(train, val, scan)
    copies = {file for _, file in leaks}
    others = [record for record in val if record["file_name"] not in copies]
    same, different = find_namesakes(train, others, scan)
    for pairs, what in ((leaks, "is a copy"), (same, "has the name and the picture")):
        lines = [f"{b} (validation) {what} of {a} (training)" for a, b in pairs]
        findings.errors += limit_lines(lines)
    findings.warnings += limit_lines(
        [f"training has the same image {len(x)} times: {', '.join(x)}" for x in repeats]
    )
    if different:
        findings.warnings.append(
            f"{len(different)} validation images have the name of a training image, but show "
            f"something else: {different[0][1]} and {different[0][0]} for example"
        )
