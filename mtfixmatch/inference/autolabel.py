"""Label the unlabeled part of a dataset by a trained network (projects/autolabel.py).

Thresholds are measured first, on images that the network was not trained on. Then every training
image gets what it lacks. The result is a new dataset with a config to train on it.
"""

import os
from collections.abc import Sequence

from detectron2.config import CfgNode

from ..data.loader import check_partial_labels, hide_by_config, read_records
from ..data.records import Records
from ..tasks import Task, build_tasks
from ..tasks.auto_labels import WrittenLabels
from ..utils.errors import InputError
from ..utils.files import write_atomically
from .dataset_config import VAL_DATASET, write_dataset_config
from .label_formats import write_format
from .label_images import ImageLabeler, label_counts
from .measure import HIDDEN, Settings, measure_thresholds, measured_records, with_hidden_labels
from .output_folder import new_folder, writing
from .predictor import Predictor
from .review import write_review
from .thresholds import threshold_table

REPORT = "autolabel.md"


def autolabel(
    predictor: Predictor,
    cfg: CfgNode,
    output: str,
    settings: Settings,
    formats: Sequence[str] = (),
) -> str:
    """Label the training images of a config and write a new dataset.

    Args:
        predictor: the network.
        cfg: config of a training, with the classes of its data.
        output: folder to write, which is empty or does not exist. It appears when it is complete.
        settings: how thresholds are measured and chosen.
        formats: formats of other tools to write as well, names in `label_formats.FORMATS`.

    Returns:
        The report, which is also in the folder.

    Raises:
        InputError: network and data do not fit, there is nothing to measure on, no class reaches
            the precision, or the folder cannot be written.
    """
    tasks = build_tasks(cfg)
    check_network(predictor, cfg, tasks)
    with new_folder(output) as folder:
        records: Records = hide_by_config(cfg, tasks, read_records(cfg, cfg.DATASETS.TRAIN))
        check_partial_labels(records, tasks)
        measured = measured_records(cfg, tasks, records, settings.source)
        thresholds = measure_thresholds(predictor.model, cfg, tasks, measured, settings)
        lines = [threshold_table(t, thresholds[t.name], settings.precision) for t in tasks]
        if settings.source == HIDDEN:
            records = [with_hidden_labels(record) for record in records]
        with writing(output):
            labeler = ImageLabeler(tasks, thresholds, folder, predictor.identity)
            images, broken = labeler.label(predictor.model, cfg, records)
            lines += [label_counts(tasks, images), *broken]
            write_review(images, tasks, folder)
            written = labeler.write(images)
            validation = _copy_validation(cfg, tasks, os.path.join(folder, "val"))
            places = {"folder": folder, "output": output}
            write_dataset_config(cfg, tasks, images, written, validation, **places)
            classes = {task.name: task.class_names for task in tasks}
            for name in formats:
                lines += write_format(name, images, classes, os.path.join(folder, name))
            report = "\n\n".join(lines) + "\n"
            write_atomically(os.path.join(folder, REPORT), report)
    return report


def check_network(predictor: Predictor, cfg: CfgNode, tasks: Sequence[Task]) -> None:
    """Raise InputError unless the network has the tasks and classes of the data."""
    own = {task.name: task for task in predictor.tasks}
    for task in tasks:
        name = task.name
        if name not in own or type(own[name]) is not type(task):
            known = ", ".join(f"{x.name} ({type(x).__name__})" for x in own.values())
            wanted = f"{name} ({type(task).__name__}) in MODEL.TASKS"
            raise InputError(f"{predictor.name} has the tasks {known}, but the config {wanted}")
        if own[name].class_names != task.class_names:
            classes = f"the classes {own[name].class_names} for {name}"
            data = f"but the data of the config {task.class_names}"
            raise InputError(f"{predictor.name} has {classes}, {data}: the same are needed")
    if predictor.range_16bit != tuple(cfg.INPUT.RANGE_16BIT):
        values = f"INPUT.RANGE_16BIT is {tuple(cfg.INPUT.RANGE_16BIT)} in the config"
        raise InputError(f"{values}, but {predictor.name} was trained with {predictor.range_16bit}")


def _copy_validation(
    cfg: CfgNode, tasks: Sequence[Task], folder: str
) -> dict[str, WrittenLabels] | None:
    """Copy the labels of the user's own validation data, whose files share keys with the training.

    Returns what `ImageLabeler.write` returns; None: DATASETS.TEST does not have such data.
    """
    if VAL_DATASET not in cfg.DATASETS.TEST:
        return None
    os.makedirs(folder)
    labeler = ImageLabeler(tasks, {task.name: [] for task in tasks}, folder, "")
    return labeler.write(labeler.copy(read_records(cfg, [VAL_DATASET])))
