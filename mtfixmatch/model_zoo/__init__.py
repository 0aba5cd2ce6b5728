"""Configs and trained models by name, with the functions of `detectron2.model_zoo`."""

from .model_zoo import (
    config_names,
    get,
    get_checkpoint_url,
    get_config,
    get_config_file,
    get_facts,
)

__all__ = [
    "config_names",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "get_facts",
]
