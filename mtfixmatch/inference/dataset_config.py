"""The config of a labeled dataset: the same training with all labels.

A fixed part of each batch are images with human labels. The network's labels lack the classes
without a threshold, so images drawn from all alike would rarely show these.
"""

import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from ..tasks import Task
from ..tasks.auto_labels import LabeledImage, WrittenLabels
from ..tasks.config import own_key
from ..utils.checkout import spell_commands
from ..utils.files import write_atomically
from .label_images import IMAGES

CONFIG, HUMAN_IMAGES = "config.yaml", "human_images.txt"
TRAIN_DATASET, VAL_DATASET = "coco_style_train", "coco_style_val"


def write_dataset_config(
    cfg: CfgNode,
    tasks: Sequence[Task],
    images: Sequence[LabeledImage],
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
        images: the training images.
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
    _set_sampling(cfg, [x.path for x in images if is_human(x, tasks)], len(images), folder, output)
    if os.path.exists(cfg.MODEL.WEIGHTS):
        cfg.MODEL.WEIGHTS = os.path.abspath(cfg.MODEL.WEIGHTS)
    cfg.OUTPUT_DIR = os.path.join(output, "training")
    header = f"# Written by {spell_commands('projects/autolabel.py')}; paths are absolute.\n"
    write_atomically(os.path.join(folder, CONFIG), header + cfg.dump())


def is_human(image: LabeledImage, tasks: Sequence[Task]) -> bool:
    """Return whether a human has labeled an image for any task."""
    return any(task.label_key in image.record for task in tasks)


def _set_sampling(cfg: CfgNode, human: list[str], count: int, folder: str, output: str) -> None:
    """Draw images with human labels apart from the others, if there are both kinds of `count`."""
    loader, batch = cfg.DATALOADER, cfg.SOLVER.IMS_PER_BATCH
    if not 0 < len(human) < count or batch < 2:
        loader.SAMPLING, loader.LABELED = "uniform", "any"
        return
    if loader.SAMPLING != "explicit":
        loader.LABELED_PER_BATCH = batch // 2
    loader.SAMPLING, loader.LABELED = "explicit", os.path.join(output, HUMAN_IMAGES)
    paths = "".join(f"{path}\n" for path in human)
    write_atomically(os.path.join(folder, HUMAN_IMAGES), paths)


def _files(tasks: Sequence[Task], labels: Mapping[str, WrittenLabels], folder: str) -> CfgNode:
    """Return the node of a split in DATASETS.COCO_STYLE."""
    node = CfgNode({"IMAGES": os.path.join(folder, IMAGES)})
    for task in tasks:
        files = [os.path.join(folder, name) for name in labels[task.name].files]
        if files:
            node[own_key(type(task), task.own_key, task.name)] = files
    return node
