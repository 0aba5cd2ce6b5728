"""Semantic segmentation: label maps, pseudo-maps, mIoU.

A target is a label map (H, W) uint8 on the frame of its image, IGNORE_LABEL where a pixel takes no
part; or, if a method makes them, soft labels (K, H, W) float: the weight of each class, all 0 where
a pixel takes no part.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from ..augmentation import geometry
from ..augmentation.geometry import Size
from ..utils.errors import InputError
from ..utils.images import read_label_map
from ..utils.labels import IGNORE_LABEL, INVALID_LABEL
from .base import TASK_REGISTRY, Scan, Statistics, Target, Task, Threshold
from .mean_iou import MeanIoUEvaluator
from .segmentation_head import SegmentationHead, class_map


def load_map(
    record: dict, label_key: str = "sem_seg_file_name", lut_key: str = "sem_seg_lut"
) -> np.ndarray:
    """Read a record's map, (H, W) uint8, its raw ids turned into classes or IGNORE_LABEL.

    Args:
        record: of an image with a map.
        label_key: of the map's file.
        lut_key: of 256 bytes, from raw ids to classes.

    Raises:
        InputError: if the file cannot be read, has another size than the image or unknown ids.
    """
    name = record[label_key]
    ids = read_label_map(name)
    if ids.shape != (record["height"], record["width"]):
        raise InputError(
            f"{name} is {ids.shape}, but its image {record['file_name']} asks for "
            f"{(record['height'], record['width'])} (height, width)"
        )
    classes = np.frombuffer(record[lut_key], dtype=np.uint8)[ids]
    if (classes == INVALID_LABEL).any():
        invalid = ids[classes == INVALID_LABEL][0]
        raise InputError(f"{name} holds the id {invalid}, which is no class")
    return classes


def count_ids(path: str) -> list[list[int]]:
    """Count the raw ids in the file of a map: [[ids], [pixels of each]].

    Raises:
        InputError: if the file cannot be read.
    """
    pixels = np.bincount(read_label_map(path).ravel(), minlength=256)
    ids = np.flatnonzero(pixels)
    return [ids.tolist(), pixels[ids].tolist()]


@TASK_REGISTRY.register()
class Segmentation(Task):
    """A class for every pixel."""

    default_name = "segmentation"
    label_field = "sem_seg_file_name"
    lut_field = "sem_seg_lut"  # of a record: 256 bytes, from raw ids to classes
    metadata_field = "stuff_classes"
    result_field = "sem_seg"
    metric = "mIoU"
    unit = "pixels"
    fills_pixels = True
    loss_parts = ("ce",)

    @configurable
    def __init__(self, *, ignore_erased: bool, **kwargs: Any):
        """Set up the task.

        Args:
            ignore_erased: what Cutout has erased is ignored in a moved target.
            kwargs: see the base class.
        """
        super().__init__(**kwargs)
        self.ignore_erased = ignore_erased

    @classmethod
    def from_config(cls, cfg: CfgNode, name: str) -> dict[str, Any]:
        """Read cfg.TASKS.<NAME>."""
        ignore_erased = cfg.TASKS[name.upper()].IGNORE_ERASED
        return {**super().from_config(cfg, name), "ignore_erased": ignore_erased}

    @classmethod
    def default_config(cls) -> CfgNode:
        """Keys of segmentation; the head itself is configured by MODEL.SEM_SEG_HEAD."""
        node = super().default_config()
        # Whether what Cutout has erased is ignored in a pseudo-map.
        node.IGNORE_ERASED = True
        return node

    @classmethod
    def head_node(cls, cfg: CfgNode, name: str) -> str:
        """See base class."""
        return "SEM_SEG_HEAD"

    def build_head(self, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> SegmentationHead:
        """See base class."""
        return SegmentationHead(cfg, self.class_names, shapes)

    def load_target(self, record: dict) -> Tensor:
        """See base class."""
        return torch.from_numpy(self.load_map(record))

    def load_map(self, record: dict) -> np.ndarray:
        """Read a record's map; see the function `load_map`."""
        return load_map(record, self.label_key, self.key_of(self.lut_field, self.name))

    def _lut(self, record: dict) -> np.ndarray:
        return np.frombuffer(record[self.key_of(self.lut_field, self.name)], dtype=np.uint8)

    def warp_target(
        self, target: Tensor, matrix: Tensor, size: Size, erased: Tensor | None = None
    ) -> Tensor:
        """See base class; pixels from outside are ignored, by default erased ones too."""
        if target.is_floating_point():
            fill = target.new_zeros(())
            moved = geometry.warp(target[None], matrix[None], size, mode="bilinear", fill=fill)[0]
            nothing = 0.0
        else:
            moved = geometry.warp_map(target, matrix, size, ignore=IGNORE_LABEL)
            nothing = IGNORE_LABEL
        if erased is None or not self.ignore_erased:
            return moved
        return moved.masked_fill(erased.to(moved.device), nothing)

    @torch.no_grad()
    def pseudo_labels(
        self, predictions: Tensor, threshold: Threshold, valid: Tensor
    ) -> list[Tensor]:
        """The class of each pixel (argmax); padding and uncertain pixels are ignored."""
        classes = predictions.argmax(dim=1)
        maps = classes.to(torch.uint8)
        if self.least_score(threshold) > 0:
            least = threshold[classes] if isinstance(threshold, Tensor) else threshold
            maps[predictions.softmax(dim=1).amax(dim=1) <= least] = IGNORE_LABEL
        size = (maps.shape[1], maps.shape[2])
        maps[~pixels_inside(valid.to(maps.device), size)] = IGNORE_LABEL
        return list(maps)

    def evaluator(self, records: Sequence[dict]) -> MeanIoUEvaluator:
        """See base class."""
        keys = {"label_key": self.label_key, "result_key": self.result_key}
        return MeanIoUEvaluator(records, self.class_names, self.load_map, **keys)

    def statistics(self, records: Sequence[dict], scan: Scan) -> Statistics:
        """See base class."""
        pixels = np.zeros(256, dtype=np.int64)
        present = []  # the number of classes in each map
        for record, ids in zip(
            records, scan([r[self.label_key] for r in records], count_ids), strict=True
        ):
            if ids is not None:
                classes = self._lut(record)[ids[0]]
                counts = np.bincount(classes, weights=ids[1], minlength=256).astype(np.int64)
                pixels += counts
                present.append(int(np.count_nonzero(counts[: len(self.class_names)])))
        figures: dict[str, int | str] = {"maps without a class": present.count(0)}
        if present:
            figures["classes per map: mean, most"] = f"{np.mean(present):.1f}, {max(present)}"
            figures["ignored pixels, %"] = f"{100 * pixels[IGNORE_LABEL] / pixels.sum():.1f}"
        per_class = pixels[: len(self.class_names)].tolist()
        return Statistics(dict(zip(self.class_names, per_class, strict=True)), figures)

    def result_target(self, result: dict, threshold: float) -> Tensor:
        """See base class."""
        return result[self.result_key].argmax(dim=0).to("cpu", torch.uint8)

    def draw(self, image: np.ndarray, target: Tensor) -> np.ndarray:
        """See base class."""
        colors = np.zeros((256, 3), dtype=np.float32)
        colors[: len(self.class_names)] = self.colors
        labels = class_map(target).cpu().numpy()
        mixed = 0.45 * image + 0.55 * colors[labels]
        return np.where((labels == IGNORE_LABEL)[..., None], image, mixed).astype(np.uint8)

    def count_classes(self, targets: Sequence[Tensor]) -> list[int]:
        """See base class."""
        pixels = torch.zeros(256, dtype=torch.long)
        for target in map(class_map, targets):
            pixels += target.flatten().bincount(minlength=256).cpu()
        return pixels[: len(self.class_names)].tolist()

    def diagnose(
        self, pseudo: Sequence[Tensor], labels: Sequence[Target | None]
    ) -> dict[str, float]:
        """Share of valid pixels; accuracy where the map is known."""
        maps = [class_map(target).cpu() for target in pseudo]
        valid = torch.stack(maps) != IGNORE_LABEL
        measured = {"valid_pixels": float(valid.float().mean())}
        right = labeled = 0
        for p, k in zip(maps, labels, strict=True):
            if k is not None:
                both = (p != IGNORE_LABEL) & (k != IGNORE_LABEL)
                right += int((p == k)[both].sum())
                labeled += int(both.sum())
        if labeled:
            measured["accuracy"] = right / labeled
        return measured


def pixels_inside(boxes: Tensor, size: Size) -> Tensor:
    """Return the pixels with their center in the box, (N, H, W) bool, for boxes (N, 4)."""
    x = torch.arange(size[1], device=boxes.device) + 0.5
    y = torch.arange(size[0], device=boxes.device) + 0.5
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)
    across, down = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return down[:, :, None] & across[:, None, :]
