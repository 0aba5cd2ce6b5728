"""A trained network, ready for images: `load` needs neither its data nor a config by hand."""

import os
from collections.abc import Iterable, Iterator
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image

from ..engine.setup import resolve_config
from ..engine.stored_classes import stored_classes
from ..model_zoo import load_weights, read_weights
from ..modeling import MultiTaskNet
from ..tasks import Task, build_tasks
from ..utils.errors import InputError
from ..utils.files import sha256_of
from .exported import SUFFIX, ExportedNet, read_exported
from .images import read_pixels
from .model_files import find_model_files
from .prediction import Prediction

OneImage = str | os.PathLike | Image.Image | np.ndarray


class Predictor:
    """A network with all that it needs for images.

    Attributes:
        model: the network, in evaluation mode; of an .onnx file, one with the same results.
        tasks: its tasks, with class names and colors.
        cfg: the config of its training.
        name: name for people.
        sha256: hash of the file with the weights, in hexadecimal digits.
        range_16bit: values of 16-bit images that become 0 and 255, as in the training.
        threshold: least score of a box that is drawn, in [0, 1].
    """

    def __init__(self, *, model: MultiTaskNet | ExportedNet, cfg: CfgNode, name: str, sha256: str):
        """Take a network, the config of its training, and what identifies its weights."""
        self.model = model.eval()
        self.tasks: list[Task] = build_tasks(cfg)
        self.cfg = cfg
        self.name = name
        self.sha256 = sha256
        self.range_16bit = tuple(cfg.INPUT.RANGE_16BIT)
        self.threshold: float = cfg.TEST.PICTURE_THRESHOLD

    @property
    def identity(self) -> str:
        """Name of the network and the start of the hash of its weights."""
        return f"{self.name}@{self.sha256[:12]}"

    @property
    def classes(self) -> dict[str, list[str]]:
        """Task name -> class names; empty for a kind without classes."""
        return {task.name: task.class_names for task in self.tasks}

    @overload
    def __call__(self, images: OneImage, *, color: str | None = None) -> Prediction: ...
    @overload
    def __call__(self, images: list, *, color: str | None = None) -> list[Prediction]: ...
    @overload
    def __call__(self, images: Iterator, *, color: str | None = None) -> Iterator[Prediction]: ...
    def __call__(self, images: Any, *, color: str | None = None) -> Any:
        """Return the results for an image, a list or tuple of images, or a stream of them.

        Each image passes alone, so its results are those of the evaluation, bit by bit.

        Args:
            images: path of an image file, PIL image, or array (H, W, 3) uint8; a list or tuple of
                these; or an iterator, whose images are read when their results are asked for.
            color: "RGB" or "BGR", the order of the channels of arrays, which must be named.

        Raises:
            InputError: an image cannot be read or has another form.
        """
        if isinstance(images, OneImage):
            return self._predict(images, color)
        if isinstance(images, list | tuple):
            return [self._predict(image, color) for image in images]
        if isinstance(images, Iterable):
            return (self._predict(image, color) for image in images)
        return self._predict(images, color)  # which says what is expected

    def _predict(self, image: Any, color: str | None) -> Prediction:
        pixels = read_pixels(image, color, self.range_16bit)
        path = os.fspath(image) if isinstance(image, str | os.PathLike) else ""
        return self.predict_pixels(pixels, path)

    def predict_pixels(self, pixels: np.ndarray, file_name: str = "") -> Prediction:
        """Return the results for an image (H, W, 3) uint8 RGB."""
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        (results,) = self.model([{"image": image}])
        return Prediction(pixels, results, self.tasks, file_name, self.threshold)


def load(source: str | os.PathLike, *, device: str | None = None) -> Predictor:
    """Load a trained network.

    Args:
        source: folder of a run, whose best weights are taken, else its last; path of a checkpoint
            with the config.yaml of its run beside it; path or name of a published model; or an
            .onnx file of projects/export.py, which ONNX Runtime runs.
        device: such as "cpu" or "cuda:1"; None: a GPU if there is one.

    Raises:
        InputError: there is no such network, or its files do not belong together.
    """
    if os.fspath(source).lower().endswith(SUFFIX):
        exported, cfg, name = read_exported(source)
        return Predictor(model=exported, cfg=cfg, name=name, sha256=sha256_of(source))
    files = find_model_files(source)
    cfg = resolve_config(files.config, [])
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _complete_classes(cfg, files.weights)
    model = build_model(cfg)
    load_weights(model, read_weights(files.weights), files.weights)
    return Predictor(model=model, cfg=cfg, name=files.name, sha256=sha256_of(files.weights))


def _complete_classes(cfg: CfgNode, weights: str) -> None:
    """Take class names that the config lacks from the weights, or raise InputError."""
    stored = stored_classes(weights)
    for task in build_tasks(cfg):
        if task.metadata_field and not task.class_names:
            if task.name not in stored:
                key = f"TASKS.{task.name.upper()}.CLASSES"
                raise InputError(f"{weights}: neither it nor its config has the classes ({key})")
            cfg.TASKS[task.name.upper()].CLASSES = stored[task.name]
