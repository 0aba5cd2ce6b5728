"""The user's own data of a config, for tests."""

from typing import Any

from detectron2.config import get_cfg

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.data.datasets.builtin import own_data as from_config
from mtfixmatch.data.datasets.own_data import OwnData
from mtfixmatch.tasks.config import complete_task_config


def own_data(tasks: tuple[str, ...] = ("detection", "segmentation"), **keys: Any) -> OwnData:
    """Return the data that these keys of DATASETS.COCO_STYLE describe, those left out as default.

    TRAIN and VAL are dicts of their keys.
    """
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.MODEL.TASKS = list(tasks)
    node = cfg.DATASETS.COCO_STYLE
    for key, value in keys.items():
        if isinstance(value, dict):
            node[key].update(value)
        else:
            node[key] = value
    complete_task_config(cfg)
    return from_config(cfg)
