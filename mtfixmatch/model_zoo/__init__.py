"""Configs of this package and published models by name, as in detectron2.model_zoo.

A name is that of a config in configs/ ("street/quickstart.yaml") or of a published model
("street/quickstart"). Published models are in `root`: a folder, or an address that Detectron2's
PathManager knows, such as https://. Without `root` it is $MTFIXMATCH_MODEL_ZOO, else the folder
output/model_zoo, where projects/publish.py writes. Downloads are kept in Detectron2's cache
($FVCORE_CACHE, else ~/.torch/iopath_cache).

The trained weights of a config are those of the model that was published under its name:
`publish.py RUN --name street/quickstart`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ..data.datasets import register_datasets
from ..engine.checkpoint import MultiTaskCheckpointer
from ..engine.setup import resolve_config, take_classes
from ..modeling import MultiTaskNet
from ..runtime.zoo_files import Root, find_model
from ..utils.checkout import CONFIGS
from ..utils.errors import InputError, first_line


def config_names() -> list[str]:
    """Return the names of the configs in configs/ that can be trained."""
    paths = [path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-")]
    return sorted(path.relative_to(CONFIGS).as_posix() for path in paths)


def get_config_file(name: str, *, root: Root = None) -> str:
    """Return the path of a config file, for train_net.py and others.

    Raises:
        InputError: there is no config or model of that name; so for the functions below.
    """
    if not name.endswith(".yaml"):
        return find_model(name, root).config_file()
    if not (CONFIGS / name).is_file():
        known = ", ".join(config_names())
        raise InputError(f"there is no config {name} in {CONFIGS}, only {known}")
    return str(CONFIGS / name)


def get_config(name: str, trained: bool = False, *, root: Root = None) -> CfgNode:
    """Return a config; if `trained`, that of the published training.

    MODEL.WEIGHTS is the path of its weights then, downloaded if necessary, and checked.
    """
    if not trained:
        return resolve_config(get_config_file(name, root=root), [])
    model = find_model(name, root)
    cfg = resolve_config(model.config_file(), [])
    cfg.MODEL.WEIGHTS = model.fetch_weights()
    return cfg


def get_checkpoint_url(name: str, *, root: Root = None) -> str:
    """Return the path or address of the published weights."""
    return find_model(name, root).url


def get_facts(name: str, *, root: Root = None) -> dict[str, Any]:
    """Return the facts about a published model, such as "classes": see `publish.publish`."""
    return find_model(name, root).facts


def get(
    name: str, trained: bool = False, device: str | None = None, *, root: Root = None
) -> MultiTaskNet:
    """Build a model without reading a dataset.

    If `trained`, it has the published weights and is in evaluation mode; else it has the weights
    that training starts from (MODEL.WEIGHTS) and is in training mode. It is on `device`; default:
    the config's, or the CPU if there is no GPU.
    """
    cfg = get_config(name, trained, root=root)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    if name.endswith(".yaml") and not trained:
        register_datasets(cfg)
        try:
            take_classes(cfg, cfg.DATASETS.TRAIN[0])  # no file of the dataset is read
        except InputError as error:
            problem = f"its classes are not known without the data ({error})"
            raise InputError(f"{name}: {problem}") from None
    model = build_model(cfg)
    if trained:
        load_weights(model, read_weights(cfg.MODEL.WEIGHTS), cfg.MODEL.WEIGHTS)
        return model.eval()
    MultiTaskCheckpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    return model


def read_weights(path: str) -> dict[str, Tensor]:
    """Read the weights in a checkpoint or a published file to the CPU, or raise an InputError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content.get("model", content))
    except Exception as error:  # a damaged file can raise errors of any type
        raise InputError(f"{path}: its weights cannot be read ({first_line(error)})") from None


def load_weights(model: MultiTaskNet, weights: Mapping[str, Tensor], path: str) -> None:
    """Load the weights of the file `path`, or raise an InputError if they are of another model."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:30])
        raise InputError(f"{path}: its weights do not fit the config ({reason} ...)") from None
