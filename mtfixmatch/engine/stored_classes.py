"""The class names that a training stores with its weights, for an evaluation without its data."""

import os
from collections.abc import Mapping
from typing import Any

import torch
import yaml

from ..utils.errors import InputError
from .weights import find_weights, local_path


def stored_classes(weights: str) -> dict[str, list[str]]:
    """Return task name -> class names, as the file that MODEL.WEIGHTS names says.

    A file without them may have the config.yaml of its run beside it. Weights that cannot be read
    have none here, because loading them tells why.
    """
    try:
        path = local_path(find_weights(weights))
    except InputError:
        return {}
    config = os.path.join(os.path.dirname(path), "config.yaml")
    return _config_classes(config) | _checkpoint_classes(path)


def _checkpoint_classes(path: str) -> dict[str, list[str]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return _class_lists(content["classes"])
    except Exception:  # unpickling unknown bytes can raise anything
        return {}


def _config_classes(path: str) -> dict[str, list[str]]:
    try:
        with open(path, encoding="utf-8") as file:
            tasks = yaml.safe_load(file)["TASKS"]
        return _class_lists({name.lower(): node["CLASSES"] for name, node in tasks.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}  # no file, or not that of a run


def _class_lists(classes: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the tasks that have class names."""
    lists = {name: list(names) for name, names in classes.items()}
    return {name: x for name, x in lists.items() if x and all(isinstance(y, str) for y in x)}
