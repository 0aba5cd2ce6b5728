"""The datasets by name, in detectron2's catalogs."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.colormap import colormap

from ...utils.errors import InputError, InputErrors
from .bdd100k import bdd100k_metadata, load_bdd100k
from .cityscapes import cityscapes_metadata, load_cityscapes
from .coco_style import load_coco_style, load_instances
from .scan import IGNORE_LABEL

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
SHOWN = 3  # broken files that the log names
# Splits without labels: the images of the coarse set, the frames around those of "train".
CITYSCAPES_SPLITS = (*SPLITS, "train_extra", "sequence")

Record = dict[str, Any]
# What was read since it was registered: a million boxes take seconds even from the cache.
_loaded: dict[str, list[Record]] = {}
# By dataset, file -> message for what was left out of it as DATALOADER.SKIP_BROKEN asks.
_broken: dict[str, dict[str, str]] = {}
# A folder below DATASETS.ROOT: its splits, what reads one of them, its classes and colours.
LAYOUTS: dict[str, tuple[Sequence[str], Callable[..., list[Record]], Callable[[], dict]]] = {
    "cityscapes": (CITYSCAPES_SPLITS, load_cityscapes, cityscapes_metadata),
    "street": (SPLITS, load_cityscapes, cityscapes_metadata),
    "bdd100k": (SPLITS, load_bdd100k, bdd100k_metadata),
    "street_bdd100k": (SPLITS, load_bdd100k, bdd100k_metadata),
}
DATASET_NAMES = [f"{name}_{split}" for name, (splits, *_) in LAYOUTS.items() for split in splits]
DATASET_NAMES += [f"coco_style_{split}" for split in SPLITS]


def register_datasets(cfg: CfgNode) -> None:
    """Register all datasets with the folders of a config; nothing is read before it is asked for.

    A dataset of the same name is replaced, so that a process can go through several configs.
    """
    root = cfg.DATASETS.ROOT or os.environ.get("DETECTRON2_DATASETS", "datasets")
    reading = {"cache_dir": _cache_dir(cfg), "workers": cfg.DATALOADER.NUM_WORKERS}
    for folder, (splits, read, metadata) in LAYOUTS.items():
        for split in splits:
            name = f"{folder}_{split}"
            broken = _collects_broken(cfg, name)
            load = partial(read, os.path.join(root, folder), split, broken=broken, **reading)
            _register(name, load, metadata())
    for split in SPLITS:
        name = f"coco_style_{split}"
        load = partial(_load_coco_style, cfg.clone(), split, name, _collects_broken(cfg, name))
        _register(name, load, _coco_style_metadata(cfg))


def _collects_broken(cfg: CfgNode, name: str) -> dict[str, str] | None:
    """Where a reader puts what it leaves out. What figures are measured on must be whole."""
    _broken[name] = {}
    skips = cfg.DATALOADER.SKIP_BROKEN and name in cfg.DATASETS.TRAIN
    return _broken[name] if skips and name not in cfg.DATASETS.TEST else None


def broken_files(names: Sequence[str]) -> dict[str, str]:
    """File -> message for what `get_records` has left out of the named datasets."""
    return {file: message for name in names for file, message in _broken[name].items()}


def get_records(names: Sequence[str]) -> list[Record]:
    """Return the records of the named datasets together, which are shared: change none of them.

    All processes have to call it at once: the main process goes first, so that it
    alone reads what is not in the cache yet.
    """
    for name in names:
        if name not in DatasetCatalog:
            known = ", ".join(DATASET_NAMES)
            raise InputError(f"DATASETS: there is no dataset {name!r}, expected one of {known}")
    messages: list[str] = []
    records: list[Record] = []
    if comm.is_main_process():
        try:
            records = _load(names)
        except InputError as error:
            messages = error.messages if isinstance(error, InputErrors) else [str(error)]
    # What is wrong is wrong for all processes: none is left waiting for another.
    messages = comm.all_gather(messages)[0]
    if messages:
        raise InputErrors(messages)
    return records if comm.is_main_process() else _load(names)


def check_class_lists(names: Sequence[str]) -> None:
    """Raise InputError unless the datasets, once they are loaded, have the same classes."""
    for key in ("thing_classes", "stuff_classes"):
        first = MetadataCatalog.get(names[0]).get(key) if names else None
        for name in names:
            classes = MetadataCatalog.get(name).get(key)
            if classes != first:
                raise InputError(
                    f"DATASETS: {names[0]} and {name} cannot be used together, "
                    f"their {key} are {first} and {classes}"
                )


def _load(names: Sequence[str]) -> list[Record]:
    records = []
    for name in names:
        if name not in _loaded:
            _loaded[name] = DatasetCatalog.get(name)
            logger.info("%s: %d images", name, len(_loaded[name]))
            for message in list(_broken[name].values())[:SHOWN]:
                count = len(_broken[name])
                logger.warning("%s: one of %d files left out: %s", name, count, message)
        records += _loaded[name]
    check_class_lists(names)
    return records


def _register(name: str, load: Callable[[], list[Record]], metadata: dict[str, Any]) -> None:
    # Both catalogs refuse to change an entry.
    _loaded.pop(name, None)
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def _cache_dir(cfg: CfgNode) -> str:
    default = os.path.join("~", ".cache", "mtfixmatch")
    return os.path.expanduser(cfg.DATASETS.CACHE_DIR or default)


def _coco_style_metadata(cfg: CfgNode) -> dict[str, Any]:
    own = cfg.DATASETS.COCO_STYLE
    metadata = {
        "stuff_classes": list(own.SEM_SEG_CLASSES),
        "stuff_colors": _colors(len(own.SEM_SEG_CLASSES)),
        "ignore_label": IGNORE_LABEL,
    }
    # Without a list in the config the classes are in the JSON, and known after it was read.
    if own.THING_CLASSES:
        metadata |= _thing_metadata(own.THING_CLASSES)
    return metadata


def _thing_metadata(classes: Sequence[str]) -> dict[str, Any]:
    return {"thing_classes": list(classes), "thing_colors": _colors(len(classes))}


def _load_coco_style(
    cfg: CfgNode, split: str, name: str, broken: dict[str, str] | None
) -> list[Record]:
    own = cfg.DATASETS.COCO_STYLE
    files = own[split.upper()]
    cache_dir = _cache_dir(cfg)
    classes = list(own.THING_CLASSES)
    if not classes and own.TRAIN.BOXES:
        # One order for both splits, whatever ids the file of the other one uses.
        classes = [x for _, x in load_instances(own.TRAIN.BOXES, cache_dir)["categories"]]
    records, classes = load_coco_style(
        images=files.IMAGES,
        boxes=files.BOXES,
        maps=files.MAPS,
        thing_classes=classes,
        sem_seg_classes=own.SEM_SEG_CLASSES,
        ignore_label=own.IGNORE_LABEL,
        key=f"DATASETS.COCO_STYLE.{split.upper()}",
        cache_dir=cache_dir,
        workers=cfg.DATALOADER.NUM_WORKERS,
        broken=broken,
    )
    MetadataCatalog.get(name).set(**_thing_metadata(classes))
    return records


def _colors(count: int) -> list[list[int]]:
    palette = colormap(rgb=True, maximum=255).astype(int).tolist()
    return [palette[i % len(palette)] for i in range(count)]
