"""Register the datasets of this package in Detectron2's catalogs."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...tasks.base import palette
from ...tasks.config import task_kinds
from ...utils.labels import IGNORE_LABEL
from ...utils.notes import Notes
from ..records import Record
from . import catalog
from .bdd100k import bdd100k_metadata, load_bdd100k
from .cityscapes import cityscapes_metadata, load_cityscapes
from .coco import coco_data
from .own_data import TRAIN, VAL, OwnData
from .record_cache import RecordCache
from .scan import FileScanner, cache_path

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
DATASET_NAMES += [f"{name}_{split}" for name in ("coco_2017", "coco_style") for split in SPLITS]


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
    _register_own_data(cfg, "coco_style", own_data(cfg))
    _register_own_data(cfg, "coco_2017", coco_data(os.path.join(root, "coco"), task_kinds(cfg)))


def _register_own_data(cfg: CfgNode, prefix: str, own: OwnData) -> None:
    """Register both splits of data that are described by files of labels."""
    listed = {task: own.listed_classes(task) for task in own.kinds}
    classes = {task: names for task, names in listed.items() if names}
    for split in (TRAIN, VAL):
        name = f"{prefix}_{split.lower()}"
        load = partial(_load_own_data, own, split, name)
        metadata = {"ignore_label": IGNORE_LABEL} | _class_metadata(own, classes)
        _register(cfg, name, load, metadata, own)


def _register(
    cfg: CfgNode,
    name: str,
    read: Callable[..., list[Record]],
    metadata: dict[str, Any],
    own: OwnData | None = None,
) -> None:
    """Register a dataset whose reader takes a `FileScanner`; of `own` data, records are kept."""
    data = cfg.DATASETS
    broken: dict[str, str] = {}
    # Evaluation needs whole datasets, so broken files are left out of pure training sets alone.
    skip = cfg.DATALOADER.SKIP_BROKEN and name in data.TRAIN and name not in data.TEST
    cache_dir = os.path.expanduser(data.CACHE_DIR or "~/.cache/mtfixmatch")
    notes = Notes(data.MAX_FAULTS)
    scan = FileScanner(cache_dir, cfg.DATALOADER.NUM_WORKERS, broken if skip else None, notes)
    cache = _record_cache(own, name, scan) if own else None
    catalog.register(name, partial(read, scan=scan), metadata, broken, notes, cache)


def _record_cache(own: OwnData, name: str, scan: FileScanner) -> RecordCache:
    """Return the cache of the records of a split of the user's own data."""
    broken, notes = scan.broken, scan.notes
    split = name.rsplit("_", 1)[1].upper()

    def get_state() -> dict[str, Any]:
        said = {"lines": notes.lines, "texts": notes.texts}
        return {"own": own.get_state(split, scan), "broken": broken or {}, "notes": said}

    def set_state(state: dict[str, Any]) -> None:
        own.set_state(split, state["own"])
        MetadataCatalog.get(name).set(**_class_metadata(own, state["own"]["classes"]))
        notes.lines, notes.texts = state["notes"]["lines"], state["notes"]["texts"]
        if broken is not None:
            broken.update(state["broken"])

    sources = own.sources()
    settings = repr([own.settings(), broken is not None, notes.max_faults])
    # A file for each setting: one that is replaced ends the runs of other nodes that have mapped it
    # from a network disk.
    path = cache_path(scan.cache_dir or "", name, "\n".join([settings, *sources]))
    return RecordCache(
        path=path.replace(".json.gz", ".records"),
        settings=settings,
        sources=sources,
        workers=scan.workers,
        get_state=get_state,
        set_state=set_state,
    )


def own_data(cfg: CfgNode) -> OwnData:
    """Return the user's own data that a config describes, for the tasks of MODEL.TASKS."""
    kinds = task_kinds(cfg)
    classes = {name: list(cfg.TASKS[name.upper()].CLASSES) for name in kinds}
    range_16bit = tuple(cfg.INPUT.RANGE_16BIT)
    return OwnData(cfg.DATASETS.COCO_STYLE.clone(), kinds, classes, range_16bit)


def _load_own_data(own: OwnData, split: str, name: str, scan: FileScanner) -> list[Record]:
    """Read a split of the user's own data, and set the metadata of its classes."""
    records = own.load(split, scan)
    classes = {task: own.class_names(task, scan) for task in own.kinds}
    MetadataCatalog.get(name).set(**_class_metadata(own, classes))
    return records


def _class_metadata(own: OwnData, classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the classes of some tasks, and their colors, under Detectron2's keys."""
    metadata: dict[str, Any] = {}
    for task, names in classes.items():
        kind = own.kinds[task]
        if kind.metadata_field:
            key = kind.key_of(kind.metadata_field, task)
            metadata |= {key: list(names), key.replace("classes", "colors"): palette(len(names))}
    return metadata
