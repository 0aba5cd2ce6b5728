"""Register the datasets of this package in Detectron2's catalogs."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...tasks.base import palette
from ...tasks.config import task_kinds
from ...utils.labels import IGNORE_LABEL
from ..records import Record
from . import catalog
from .bdd100k import bdd100k_metadata, load_bdd100k
from .cityscapes import cityscapes_metadata, load_cityscapes
from .coco_style import class_names, load_coco_style, load_instances
from .scan import FileScanner

SPLITS = ("train", "val")
# The last two have no labels: images of the coarse set, and frames around the images of "train".
CITYSCAPES_SPLITS = (*SPLITS, "train_extra", "sequence")
# Folder below DATASETS.ROOT -> its splits, its reader, its classes and colors.
LAYOUTS: dict[str, tuple[Sequence[str], Callable[..., list[Record]], Callable[[], dict]]] = {
    "cityscapes": (CITYSCAPES_SPLITS, load_cityscapes, cityscapes_metadata),
    "street": (SPLITS, load_cityscapes, cityscapes_metadata),
    "bdd100k": (SPLITS, load_bdd100k, bdd100k_metadata),
    "street_bdd100k": (SPLITS, load_bdd100k, bdd100k_metadata),
}
DATASET_NAMES = [f"{name}_{split}" for name, (splits, *_) in LAYOUTS.items() for split in splits]
DATASET_NAMES += [f"coco_style_{split}" for split in SPLITS]


def register_datasets(cfg: CfgNode) -> None:
    """Register all datasets with the folders of a config; their files are read on demand.

    Of the datasets in LAYOUTS, only the labels of the tasks in MODEL.TASKS are read. Datasets of
    the same names are replaced, so that a process can use several configs in turn.
    """
    root = cfg.DATASETS.ROOT or os.environ.get("DETECTRON2_DATASETS", "datasets")
    kinds = task_kinds(cfg).items()
    labels = frozenset(kind.key_of(kind.label_field, name) for name, kind in kinds)
    for folder, (splits, read, metadata) in LAYOUTS.items():
        for split in splits:
            load = partial(read, root=os.path.join(root, folder), split=split, labels=labels)
            _register(cfg, f"{folder}_{split}", load, metadata())
    coco_style = _own_data(cfg)
    coco_metadata = {"ignore_label": IGNORE_LABEL} | _classes("stuff", coco_style.SEM_SEG_CLASSES)
    # Without a list in the config, the classes are known when the JSON has been read.
    if coco_style.THING_CLASSES:
        coco_metadata |= _classes("thing", coco_style.THING_CLASSES)
    for split in SPLITS:
        name = f"coco_style_{split}"
        _register(cfg, name, partial(_load_coco_style, coco_style, split, name), coco_metadata)


def _own_data(cfg: CfgNode) -> CfgNode:
    """Return a copy of DATASETS.COCO_STYLE, with the box classes of the config or of a run."""
    node = cfg.DATASETS.COCO_STYLE.clone()
    node.THING_CLASSES = node.THING_CLASSES or cfg.TASKS.DETECTION.CLASSES
    return node


def _register(
    cfg: CfgNode, name: str, read: Callable[..., list[Record]], metadata: dict[str, Any]
) -> None:
    """Register a dataset whose reader takes a `FileScanner`."""
    data = cfg.DATASETS
    broken: dict[str, str] = {}
    # Evaluation needs whole datasets, so broken files are left out of pure training sets alone.
    skip = cfg.DATALOADER.SKIP_BROKEN and name in data.TRAIN and name not in data.TEST
    cache_dir = os.path.expanduser(data.CACHE_DIR or "~/.cache/mtfixmatch")
    scan = FileScanner(cache_dir, cfg.DATALOADER.NUM_WORKERS, broken if skip else None)
    catalog.register(name, partial(read, scan=scan), metadata, broken)


def _load_coco_style(coco_style: CfgNode, split: str, name: str, scan: FileScanner) -> list[Record]:
    """Read a split of the user's own data; `coco_style` is the node DATASETS.COCO_STYLE."""
    files = coco_style[split.upper()]
    classes = list(coco_style.THING_CLASSES)
    if not classes and coco_style.TRAIN.BOXES:
        # Both splits take the order of the training file, whatever ids the other file uses.
        classes = class_names(load_instances(coco_style.TRAIN.BOXES, scan))
    records, classes = load_coco_style(
        images=files.IMAGES,
        boxes=files.BOXES,
        maps=files.MAPS,
        thing_classes=classes,
        sem_seg_classes=coco_style.SEM_SEG_CLASSES,
        ignore_label=coco_style.IGNORE_LABEL,
        key=f"DATASETS.COCO_STYLE.{split.upper()}",
        scan=scan,
    )
    MetadataCatalog.get(name).set(**_classes("thing", classes))
    return records


def _classes(kind: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the classes and colors of a kind, "thing" or "stuff", under Detectron2's keys."""
    return {f"{kind}_classes": list(names), f"{kind}_colors": palette(len(names))}
