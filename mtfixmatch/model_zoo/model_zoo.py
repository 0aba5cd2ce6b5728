"""Configs of this package and published models, by name, as detectron2.model_zoo has them.

A name is that of a config below configs/ ("street/quickstart.yaml") or of a published model, which
`root` has: a folder, or an address that Detectron2's PathManager knows, such as https://. Without
`root` it is $MTFIXMATCH_MODEL_ZOO, else the folder output/model_zoo, where projects/publish.py
writes. Downloads are kept in Detectron2's cache ($FVCORE_CACHE, else ~/.torch/iopath_cache).

Trained weights of a config are those of the model that was published under its name:
`publish.py RUN --name street/quickstart`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ..data.datasets import register_datasets
from ..engine.checkpoint import MultiTaskCheckpointer
from ..engine.setup import resolve_config, take_classes
from ..modeling import MultiTaskNet
from ..tasks.base import set_classes, task_kinds
from ..utils.errors import InputError
from .files import PublishedModel, find_model, zoo_root

Root = str | os.PathLike | None
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
if not CONFIGS.is_dir():  # they are inside an installed package, beside it in a checkout
    CONFIGS = CONFIGS.parent.parent / "configs"


def config_names() -> list[str]:
    """The configs below configs/ that can be trained."""
    paths = [path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-")]
    return sorted(path.relative_to(CONFIGS).as_posix() for path in paths)


def get_config_file(name: str, *, root: Root = None) -> str:
    """The path of a config file, for train_net.py and others.

    Args:
        name: of a config (with ".yaml") or of a published model.
        root: see above.

    Raises:
        InputError: if there is none of that name; likewise the functions below.
    """
    return _config_file(name, _find(name, False, root))


def get_config(name: str, trained: bool = False, *, root: Root = None) -> CfgNode:
    """The config of that name.

    Args:
        name: see `get_config_file`.
        trained: the one that the published weights were trained with, MODEL.WEIGHTS being the path
            of these, which are downloaded where that is needed, and checked.
        root: see above.
    """
    return _load_config(name, trained, _find(name, trained, root))


def get_checkpoint_url(name: str, *, root: Root = None) -> str:
    """Path or address of the published weights."""
    return find_model(name.removesuffix(".yaml"), zoo_root(root)).url


def get_facts(name: str, *, root: Root = None) -> dict[str, Any]:
    """What is known of a published model.

    Returns:
        "classes" and "labels" of each task, "metrics", "config", and more: see `publish.publish`.
    """
    return find_model(name.removesuffix(".yaml"), zoo_root(root)).facts


def get(
    name: str, trained: bool = False, device: str | None = None, *, root: Root = None
) -> MultiTaskNet:
    """Build a model; no data set is read.

    Args:
        name: see `get_config_file`.
        trained: with its published weights, in evaluation mode; else with those that training
            starts from (MODEL.WEIGHTS of the config), in training mode.
        device: default: the config's, or the CPU where there is no GPU.
        root: see above.
    """
    published = _find(name, trained, root)
    cfg = _load_config(name, trained, published)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    classes = published.facts["classes"] if published else _dataset_classes(cfg)
    model = build_network(cfg, classes)
    if trained:
        load_weights(model, read_weights(cfg.MODEL.WEIGHTS), cfg.MODEL.WEIGHTS)
        return model.eval()
    MultiTaskCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def build_network(cfg: CfgNode, classes: Mapping[str, Sequence[str]]) -> MultiTaskNet:
    """Build the network of a config for named classes, by task; no dataset is needed."""
    cfg = cfg.clone()
    for name, class_names in classes.items():
        set_classes(cfg, name, class_names)
    return build_model(cfg)


def read_weights(path: str) -> dict[str, Tensor]:
    """The weights in a plain checkpoint or a published file, on the CPU; nothing is unpickled.

    Raises:
        InputError: if there are none.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return dict(loaded.get("model", loaded))
    except Exception as error:  # there is no end to what foreign bytes raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: its weights cannot be read ({reason})") from None


def load_weights(model: MultiTaskNet, weights: Mapping[str, Tensor], path: str) -> None:
    """Put weights into a model, all of them, into all of it.

    Raises:
        InputError: if they are of another model; the message names `path`.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:30])
        raise InputError(f"{path}: its weights do not fit the config ({reason} ...)") from None


def _find(name: str, trained: bool, root: Root) -> PublishedModel | None:
    """The published model, unless the name asks for a config of this package and nothing else."""
    if name.endswith(".yaml") and not trained:
        return None
    return find_model(name.removesuffix(".yaml"), zoo_root(root))


def _config_file(name: str, published: PublishedModel | None) -> str:
    if published:
        return published.config_file()
    if not (CONFIGS / name).is_file():
        known = ", ".join(config_names())
        raise InputError(f"there is no config {name} below {CONFIGS}, only {known}")
    return str(CONFIGS / name)


def _load_config(name: str, trained: bool, published: PublishedModel | None) -> CfgNode:
    cfg = resolve_config(_config_file(name, published), [])
    if trained and published:
        cfg.MODEL.WEIGHTS = published.fetch_weights()
    return cfg


def _dataset_classes(cfg: CfgNode) -> dict[str, list[str]]:
    """Return the classes of DATASETS.TRAIN by task, as far as they are known without its files."""
    register_datasets(cfg)
    take_classes(cfg, cfg.DATASETS.TRAIN[0])
    return {name: list(cfg.TASKS[name.upper()].CLASSES) for name in task_kinds(cfg)}
