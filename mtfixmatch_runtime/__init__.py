"""Run an exported network with ONNX Runtime and NumPy, without PyTorch and Detectron2.

    network = Network("model.onnx")
    result = network("photo.jpg")
    boxes = result["detection"]["boxes"]  # the outputs of each task by name

Pillow is needed for the paths of images, not for arrays.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

__all__ = ["FORMAT", "KEY", "ExportedModelError", "Network"]

FORMAT = 1  # of the metadata; a reader refuses others
KEY = "mtfixmatch"  # of the metadata in the file

INPUT = "images"


class ExportedModelError(ValueError):
    """A file is no network that this module can run, or an image is none that it takes."""


class Network:
    """An exported network.

    Attributes:
        name: name of the network.
        weights_sha256: hash of the file with its weights, in hexadecimal digits.
        tasks: name of a task -> "kind"; "classes", names by id; "colors", RGB in 0-255; "outputs",
            name of an output in a result -> in the file; and facts such as thresholds.
        range_16bit: values of 16-bit images that become 0 and 255.
        metadata: all that the file says about the network.
    """

    def __init__(
        self, path: str | os.PathLike, *, threads: int = 0, providers: list[str] | None = None
    ):
        """Load a network.

        Args:
            path: path of the .onnx file.
            threads: threads of an operator; 0: one for each core.
            providers: ONNX Runtime's execution providers; None: all that are there.

        Raises:
            ExportedModelError: the file is missing, damaged, of another program or version.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = _open(os.fspath(path), options, providers)
        self.metadata = _metadata(os.fspath(path), self.session)
        self.name: str = self.metadata["name"]
        self.weights_sha256: str = self.metadata["weights_sha256"]
        self.tasks: dict[str, dict[str, Any]] = self.metadata["tasks"]
        self.range_16bit: tuple[int, int] = tuple(self.metadata["range_16bit"])

    def __call__(self, image: str | os.PathLike | np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return task -> output -> array for one image.

        Args:
            image: path of an image, or its pixels, (H, W, 3) uint8 RGB.

        Raises:
            ExportedModelError: the image cannot be read or has another form.
        """
        pixels = self.read(image) if isinstance(image, str | os.PathLike) else image
        if getattr(pixels, "ndim", 0) != 3 or pixels.shape[2] != 3:
            raise ExportedModelError(f"an image is (H, W, 3) uint8 RGB, not {_form(image)}")
        outputs = self.run(np.ascontiguousarray(pixels.transpose(2, 0, 1))[None])
        return {task: {k: x[0] for k, x in own.items()} for task, own in outputs.items()}

    def run(self, images: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return task -> output -> array (N, ...) for images (N, 3, H, W) uint8 RGB."""
        form = getattr(images, "ndim", 0) == 4 and images.shape[1] == 3 and images.size
        if not form or images.dtype != np.uint8:
            raise ExportedModelError(f"images are (N, 3, H, W) uint8 RGB, not {_form(images)}")
        names = [name for task in self.tasks.values() for name in task["outputs"].values()]
        arrays = dict(zip(names, self.session.run(names, {INPUT: images}), strict=True))
        return {
            task: {name: arrays[key] for name, key in facts["outputs"].items()}
            for task, facts in self.tasks.items()
        }

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """Return the pixels of an image file as its EXIF turns them, (H, W, 3) uint8 RGB."""
        from PIL import Image, ImageOps

        try:
            with Image.open(path) as image:
                turned = ImageOps.exif_transpose(image)
            if not turned.mode.startswith("I;16"):
                return np.asarray(turned.convert("RGB"))
            values = np.asarray(turned).astype(np.int64)
        except Exception as error:  # Pillow's decoders raise errors of many types
            raise ExportedModelError(f"cannot read the image {path}: {_line(error)}") from None
        low, high = self.range_16bit
        grey = ((values - low) * 256 // (high - low + 1)).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)


def _open(path: str, options: Any, providers: list[str] | None) -> onnxruntime.InferenceSession:
    if not Path(path).is_file():
        raise ExportedModelError(f"{path}: there is no such file")
    providers = onnxruntime.get_available_providers() if providers is None else providers
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        raise ExportedModelError(f"{path}: ONNX Runtime cannot load it ({_line(error)})") from None


def _metadata(path: str, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Return what the file says about the network, or raise ExportedModelError."""
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise ExportedModelError(f"{path}: it is of another program: export it with mtfixmatch")
    try:
        metadata = json.loads(text)
        version = metadata["format"]
    except (ValueError, TypeError, KeyError):
        raise ExportedModelError(f"{path}: its metadata {KEY!r} is damaged") from None
    if version != FORMAT:
        remedy = "export the network again, or use the version of mtfixmatch that made it"
        raise ExportedModelError(f"{path}: it has format {version}, expected {FORMAT}: {remedy}")
    return metadata


def _form(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
