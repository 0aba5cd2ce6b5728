"""The mappers: from a record to the weak view with its targets (paper Sec. 3, Table 10).

They run in worker processes. Each task reads and moves its own target.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.config import configurable
from torch import Tensor

from ..augmentation import geometry
from ..augmentation.geometry import Size
from ..tasks import Task
from ..utils.images import RANGE_16BIT, read_rgb_pixels
from .decoded_store import DecodedStore
from .samplers import Draw

# Stream of random numbers under one (seed, step, position): the common and the weak view.
_VIEW = 100


def read_rgb(record: dict, store: DecodedStore | None = None) -> Tensor:
    """Read the image of a record, (3, H, W) uint8 RGB; a bad file or size is an InputError."""
    return _channels_first(_read_pixels(record, store))


def _read_pixels(record: dict, store: DecodedStore | None) -> np.ndarray:
    size, range_16bit = [record["height"], record["width"]], record.get("range_16bit", RANGE_16BIT)
    read = store.read if store else read_rgb_pixels
    return read(record["file_name"], size, range_16bit)


def _channels_first(pixels: np.ndarray) -> Tensor:
    """Return (H, W, 3) bytes as (3, H, W), with OpenCV in a tenth of NumPy's time."""
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(planes))
    return torch.from_numpy(planes)


class TrainMapper:
    """Map a record to the weak view: random scale, random crop, flip, warped targets."""

    @configurable
    def __init__(
        self,
        *,
        tasks: Sequence[Task],
        scale_range: tuple[float, float],
        scale_mode: str = "image",
        size: Size,
        flip_prob: float,
        fill: Sequence[float],
        diagnostics_period: int,
        seed: int,
        store: DecodedStore | None = None,
    ):
        """Set the ranges of the weak view.

        Args:
            tasks: tasks whose targets are loaded.
            scale_range: least and greatest scale of the image, or size of the crop.
            scale_mode: "image" or "crop", see INPUT.SCALE_MODE.
            size: (height, width) of the view in pixels.
            flip_prob: probability of a horizontal flip.
            fill: color of the pixels outside the image, RGB in 0-255.
            diagnostics_period: period in steps at which hidden labels are loaded too; 0: never.
            seed: seed of all draws.
            store: store of decoded images; None: each is decoded anew.
        """
        self.tasks = list(tasks)
        self.scale_range, self.scale_mode = scale_range, scale_mode
        self.size, self.flip_prob = size, flip_prob
        self.fill = tuple(fill)
        self.diagnostics_period, self.seed = diagnostics_period, seed
        self.store = store

    @classmethod
    def from_config(cls, cfg, tasks: Sequence[Task], flip_prob: float | None = None):
        """Read INPUT; a method may have another probability of a flip."""
        return {
            "tasks": tasks,
            "scale_range": tuple(cfg.INPUT.SCALE_RANGE),
            "scale_mode": cfg.INPUT.SCALE_MODE,
            "size": tuple(cfg.INPUT.TRAIN_SIZE),
            "flip_prob": cfg.INPUT.FLIP_PROB if flip_prob is None else flip_prob,
            "fill": cfg.MODEL.PIXEL_MEAN,
            "diagnostics_period": cfg.FIXMATCH.DIAGNOSTICS_PERIOD,
            "seed": cfg.SEED,
            "store": DecodedStore.from_config(cfg),
        }

    def __call__(self, record: dict, draw: Draw) -> dict:
        """Map one image of a batch; seed, step and position fix every random choice.

        Returns:
            "image": (3, H, W) uint8 RGB; "valid": (4,) box of the view that shows the image;
            "targets": task name -> target, None if the image is not labeled; "hidden_targets": the
            same of labels hidden from training, at steps with diagnostics; "partial": names of the
            tasks with a partial label; "draw"; "file_name".
        """
        pixels = _read_pixels(record, self.store)
        height, width, _ = pixels.shape
        matrix = self._view_matrix((height, width), draw)
        view = geometry.warp_pixels(pixels, matrix, self.size, self.fill)
        image_box = geometry.warp_boxes(torch.tensor([[0.0, 0.0, width, height]]), matrix)
        labeled = [task for task in self.tasks if task.label_key in record]
        has_diagnostics = self.diagnostics_period and draw.step % self.diagnostics_period == 0
        hidden = record.get("hidden", {}) if has_diagnostics else {}
        return {
            "image": _channels_first(view),
            "valid": geometry.clip_boxes(image_box, self.size)[0],
            "targets": self._targets(record, record, matrix),
            "hidden_targets": self._targets(hidden, record, matrix),
            "partial": [t.name for t in labeled if t.is_partial(record)],
            "draw": draw,
            "file_name": record["file_name"],
        }

    def _view_matrix(self, size: Size, draw: Draw) -> Tensor:
        rng = np.random.default_rng([self.seed, draw.step, draw.position, _VIEW])
        scale = rng.uniform(*self.scale_range)
        if self.scale_mode == "crop":  # a crop of twice the size shows the image at half the scale
            scale = 1 / scale
        offsets = []
        for side, crop in zip(size, self.size, strict=True):
            # The position of the crop in a larger image, or of a smaller image in the view.
            spare = round(side * scale) - crop
            offsets.append(int(rng.integers(min(spare, 0), max(spare, 0) + 1)))
        matrix = geometry.translation(-offsets[1], -offsets[0]) @ geometry.scaling(scale, scale)
        if rng.random() < self.flip_prob:
            matrix = geometry.horizontal_flip(self.size[1]) @ matrix
        return matrix

    def _targets(self, labels: dict, record: dict, matrix: Tensor) -> dict:
        """Load and warp the targets of `labels`; other keys that they need are in `record`."""
        targets: dict = dict.fromkeys(task.name for task in self.tasks)
        for task in self.tasks:
            if task.label_key in labels:
                target = task.load_target({**record, **labels})
                targets[task.name] = task.warp_target(target, matrix, self.size)
        return targets


class EvalMapper:
    """Map a record to Detectron2's input for one whole image."""

    def __init__(self, tasks: Sequence[Task] = (), store: DecodedStore | None = None):
        """Set the tasks whose evaluators get the labels that they need, and a store of images.

        Without a store of decoded images, each is decoded anew.
        """
        self.tasks, self.store = list(tasks), store

    def __call__(self, record: dict) -> dict:
        """Return the image, its id and size, and "labels": {label key: label} of the tasks."""
        keys = ("image_id", "file_name", "height", "width")
        labeled = {x.label_key: x for x in self.tasks if x.label_key in record}
        labels = {key: task.evaluation_label(record) for key, task in labeled.items()}
        image = read_rgb(record, self.store)
        return {"image": image, "labels": labels} | {key: record[key] for key in keys}
