"""A network in an .onnx file as a predictor's network, with the results of one in PyTorch."""

import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..engine.setup import resolve_config
from ..modeling.image_inputs import check_image, wrong_input
from ..tasks import Task, build_tasks
from ..tasks.exported import Exports
from ..utils.errors import InputError

if TYPE_CHECKING:
    from mtfixmatch_runtime import Network

EXTRA = "pip install 'mtfixmatch[onnx]'"
SUFFIX = ".onnx"


class ExportedNet(nn.Module):
    """A network that ONNX Runtime runs, with the inputs and results of a MultiTaskNet."""

    def __init__(self, network: "Network", tasks: Sequence[Task]):
        super().__init__()
        self.network = network
        self.tasks = list(tasks)

    def forward(self, inputs: list[dict]) -> list[dict]:
        """Return Detectron2's results for its inputs, at the size of each image.

        Raises:
            InputError: an image is not (3, H, W) uint8 RGB, or its results shall have another size.
        """
        return [self._infer(x) for x in inputs]

    def _infer(self, inputs: dict) -> dict[str, Any]:
        image = check_image(inputs)
        size = (int(image.shape[1]), int(image.shape[2]))
        if image.dtype != torch.uint8 or (inputs.get("height"), inputs.get("width")) not in (
            (None, None),
            size,
        ):
            expected = "an exported network takes (3, H, W) uint8, and its results have that size"
            raise wrong_input(image, expected)
        exports = self.run(image[None])
        return {
            task.result_key: task.exported_result(_first(exports[task.name]), size)
            for task in self.tasks
        }

    def run(self, images: Tensor) -> dict[str, Exports]:
        """Return task -> exports for images (N, 3, H, W) uint8 RGB."""
        results = self.network.run(images.cpu().numpy())
        return {
            task: {name: torch.from_numpy(np.array(x)) for name, x in exports.items()}
            for task, exports in results.items()
        }


def _first(exports: Exports) -> Exports:
    return {name: tensor[0] for name, tensor in exports.items()}


def open_network(path: str | os.PathLike) -> "Network":
    """Open an .onnx file, or raise an InputError."""
    try:
        import mtfixmatch_runtime
    except ImportError as error:
        raise InputError(f"{path}: an .onnx file needs ONNX Runtime: {EXTRA} ({error})") from None
    try:
        return mtfixmatch_runtime.Network(path, threads=torch.get_num_threads())
    except mtfixmatch_runtime.ExportedModelError as error:
        raise InputError(str(error)) from None


def read_exported(path: str | os.PathLike) -> tuple[ExportedNet, CfgNode, str]:
    """Return the network in an .onnx file, its config and its name, or raise an InputError."""
    network = open_network(path)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "config.yaml")
        with open(file, "w", encoding="utf-8") as stream:
            yaml.safe_dump(network.metadata["config"], stream)
        cfg = resolve_config(file, [])
    cfg.MODEL.DEVICE = "cpu"
    return ExportedNet(network, build_tasks(cfg)), cfg, network.name
