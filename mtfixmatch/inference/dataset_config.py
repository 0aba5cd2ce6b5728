"""The config of a labeled dataset: the training that labeled it, with all labels, supervised."""

import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from ..tasks import Task
from ..tasks.auto_labels import WrittenLabels
from ..tasks.config import own_key
from ..utils.files import write_atomically
from .label_images import IMAGES

CONFIG = "config.yaml"
TRAIN_DATASET, VAL_DATASET = "coco_style_train", "coco_style_val"
HEADER = "# Written by projects/autolabel.py; paths are absolute.\n"


def write_dataset_config(
    cfg: CfgNode,
    tasks: Sequence[Task],
    training: Mapping[str, WrittenLabels],
    validation: Mapping[str, WrittenLabels] | None,
    *,
    folder: str,
    output: str,
) -> None:
    """Write a config that trains on a new dataset.

    Args:
        cfg: config of the training on the partially labeled data.
        tasks: its tasks.
        training: task name -> label files of the training images.
        validation: the same of the images of validation, in a folder `val`; None: DATASETS.TEST
            stays as it is.
        folder: folder to write into.
        output: folder of the dataset later on.
    """
    cfg = cfg.clone()
    cfg.defrost()
    output = os.path.abspath(output)
    data, node = cfg.DATASETS, cfg.DATASETS.COCO_STYLE
    data.TRAIN, data.LABEL_MANIFEST = (TRAIN_DATASET,), ""
    data.ROOT = os.path.abspath(data.ROOT or os.environ.get("DETECTRON2_DATASETS", "datasets"))
    node.TRAIN = _files(tasks, training, output)
    node.VAL = _files(tasks, validation, os.path.join(output, "val")) if validation else CfgNode()
    for task in tasks:
        labels, own = training[task.name], cfg.TASKS[task.name.upper()]
        for key, value in labels.options.items():
            node[own_key(type(task), key, task.name)] = value
        own.LABELS = -1
        own.update(labels.config)
    cfg.FIXMATCH.METHOD = "Supervised"
    cfg.DATALOADER.SAMPLING, cfg.DATALOADER.LABELED = "uniform", "any"
    if os.path.exists(cfg.MODEL.WEIGHTS):
        cfg.MODEL.WEIGHTS = os.path.abspath(cfg.MODEL.WEIGHTS)
    cfg.OUTPUT_DIR = os.path.join(output, "training")
    write_atomically(os.path.join(folder, CONFIG), HEADER + cfg.dump())


def _files(tasks: Sequence[Task], labels: Mapping[str, WrittenLabels], folder: str) -> CfgNode:
    """Return the node of a split in DATASETS.COCO_STYLE."""
    node = CfgNode({"IMAGES": os.path.join(folder, IMAGES)})
    for task in tasks:
        files = [os.path.join(folder, name) for name in labels[task.name].files]
        if files:
            node[own_key(type(task), task.own_key, task.name)] = files
    return node
