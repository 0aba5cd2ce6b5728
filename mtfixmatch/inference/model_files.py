"""The files of a trained network: the folder of a run, a published model, or a checkpoint."""

import os
from dataclasses import dataclass

from ..engine.weights import find_weights
from ..runtime.zoo_files import PublishedModel, find_model, read_object
from ..utils.errors import InputError

CONFIG = "config.yaml"


@dataclass(frozen=True)
class ModelFiles:
    """The files of a trained network.

    Attributes:
        name: name for people: that of the folder, of the published model or of the file.
        config: path of the config with the class names.
        weights: path of a checkpoint, or of weights alone.
    """

    name: str
    config: str
    weights: str


def find_model_files(source: str | os.PathLike) -> ModelFiles:
    """Return the files of a network.

    Args:
        source: folder of a run; path of a checkpoint, with the config of its run or the facts of
            its publication beside it; or name of a published model.

    Raises:
        InputError: there is no network of this name, or one of its files is missing.
    """
    path = os.fspath(source)
    if os.path.isdir(path):
        weights = find_weights(path)
        return ModelFiles(os.path.basename(os.path.abspath(path)), _beside(weights), weights)
    if os.path.isfile(path):
        stem = os.path.splitext(path)[0]
        if os.path.isfile(f"{stem}.json"):
            return _of_published(_in_zoo(path, f"{stem}.json"))
        return ModelFiles(os.path.basename(stem), _beside(path), path)
    try:
        return _of_published(find_model(path, None))
    except InputError as error:
        expected = "no folder of a run, no checkpoint and no published model"
        raise InputError(f"{path} is {expected} ({error})") from None


def _of_published(model: PublishedModel) -> ModelFiles:
    return ModelFiles(model.facts["name"], model.config_file(), model.fetch_weights())


def _in_zoo(weights: str, facts_file: str) -> PublishedModel:
    """Return the published model with these weights and facts, which are in one folder."""
    facts = read_object(facts_file)
    try:
        return PublishedModel(
            root=os.path.dirname(weights) or ".",
            weights=os.path.basename(weights),
            facts_file=os.path.basename(facts_file),
            size=facts["size"],
            sha256=facts["sha256"],
        )
    except KeyError as error:
        raise InputError(
            f"{facts_file}: expected the facts of {weights}, {error} is missing"
        ) from None


def _beside(weights: str) -> str:
    config = os.path.join(os.path.dirname(weights), CONFIG)
    if not os.path.isfile(config):
        raise InputError(f"{weights}: {config} is missing, which has the config of the network")
    return config
