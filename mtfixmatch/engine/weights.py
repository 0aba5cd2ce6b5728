"""What MODEL.WEIGHTS may name: a file, an address, the folder of a run, a published model."""

import logging
import os
from typing import Any
from urllib.parse import urlparse

import torchvision
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from ..runtime.checkpoint_files import full_checkpoints
from ..runtime.zoo_files import find_model
from ..utils.errors import InputError

logger = logging.getLogger(__name__)

# The weights of a run that is started from its folder: the first of these, else the newest full
# checkpoint.
EXPORTS = ("model_best.pth", "model_final.pth")


class TorchvisionHandler(PathHandler):
    """Finds weights by torchvision's name, such as torchvision://ResNet50_Weights.IMAGENET1K_V2."""

    PREFIX = "torchvision://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        try:
            url = torchvision.models.get_weight(path.removeprefix(self.PREFIX)).url
        except (ValueError, KeyError):
            expected = "weights of torchvision, such as ResNet50_Weights.IMAGENET1K_V2"
            raise InputError(f"MODEL.WEIGHTS {path} does not name {expected}") from None
        return PathManager.get_local_path(url, **kwargs)


PathManager.register_handler(TorchvisionHandler(), allow_override=True)


def find_weights(name: str) -> str:
    """Return the file or address that a value of MODEL.WEIGHTS stands for.

    Args:
        name: path of a file, address such as detectron2://, folder of a run, or name of a published
            model, looked for in this order.

    Raises:
        InputError: there is nothing of this name, the folder has no checkpoint, or the published
            weights cannot be fetched.
    """
    if "://" in name or os.path.isfile(_without_query(name)):
        return name
    path = _weights_of_run(name) if os.path.isdir(name) else _published(name)
    if comm.is_main_process():
        logger.info("MODEL.WEIGHTS %s: taking %s", name, path)
    return path


def local_path(path: str) -> str:
    """Return the local path of a file, downloaded if it is an address (detectron2://, https://).

    Raises:
        InputError: it cannot be fetched or does not exist.
    """
    try:
        local = PathManager.get_local_path(_without_query(path))
    except OSError as error:
        raise InputError(
            f"the checkpoint {path} cannot be fetched: {error} (MODEL.WEIGHTS)"
        ) from None
    if not os.path.isfile(local):
        raise InputError(f"the checkpoint {path} does not exist (MODEL.WEIGHTS)")
    return local


def _without_query(path: str) -> str:
    """Return a path without Detectron2's options, such as ?matching_heuristics=True."""
    return urlparse(path)._replace(query="").geturl()


def _weights_of_run(folder: str) -> str:
    for name in (*EXPORTS, *full_checkpoints(folder)):
        if os.path.isfile(path := os.path.join(folder, name)):
            return path
    expected = f"{', '.join(EXPORTS)} or a full checkpoint of its checkpoints.json"
    raise InputError(f"MODEL.WEIGHTS {folder}: the folder has no {expected}")


def _published(name: str) -> str:
    try:
        model = find_model(name, None)
    except InputError as error:
        raise InputError(
            f"MODEL.WEIGHTS {name} does not exist: it is no file, no folder of a run and no "
            f"published model ({error})"
        ) from None
    return model.fetch_weights()
