"""Configs and trained models by name, with the functions of `detectron2.model_zoo`."""

from .model_zoo import (
    build_network,
    config_names,
    get,
    get_checkpoint_url,
    get_config,
    get_config_file,
    get_facts,
    load_weights,
    read_weights,
)

__all__ = [
    "build_network",
    "config_names",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "get_facts",
    "load_weights",
    "read_weights",
]
