"""Semantic segmentation: label maps, pseudo-maps, mIoU (paper Sec. 3, 4).

A target is a label map (H, W) uint8 with IGNORE_LABEL at ignored pixels; or soft labels (K, H, W)
float from a method that makes them: the weight of each class, all 0 at ignored pixels. A map with
`sem_seg_partial` in its record is partial: the teacher labels the pixels that it ignores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from ..augmentation import geometry
from ..augmentation.geometry import Size
from ..formats.image_files import ImageFiles
from ..utils.errors import InputError, check_choice
from ..utils.images import read_label_map
from ..utils.labels import IGNORE_LABEL, INVALID_LABEL
from .base import TASK_REGISTRY, Scan, Statistics, Target, Task, Threshold
from .map_labels import make_lut, match_maps, note_ignored, read_maps
from .mean_iou import MeanIoUEvaluator
from .own_labels import OwnFiles, OwnLabels
from .segmentation_head import SegmentationHead, class_map


def load_map(
    record: dict, label_key: str = "sem_seg_file_name", lut_key: str = "sem_seg_lut"
) -> np.ndarray:
    """Read the label map of a record.

    Args:
        record: record of an image with a label map.
        label_key: key of the map's file.
        lut_key: key of the look-up table, 256 bytes, from ids in the file to classes.

    Returns:
        (H, W) uint8, classes or IGNORE_LABEL.

    Raises:
        InputError: the file cannot be read, has another size than the image, or unknown ids.
    """
    name = record[label_key]
    ids = read_label_map(name)
    if ids.shape != (record["height"], record["width"]):
        raise InputError(
            f"{name} is {ids.shape}, but its image {record['file_name']} is "
            f"{(record['height'], record['width'])} (height, width)"
        )
    classes = np.frombuffer(record[lut_key], dtype=np.uint8)[ids]
    if (classes == INVALID_LABEL).any():
        invalid = ids[classes == INVALID_LABEL][0]
        raise InputError(f"{name} has the id {invalid}, which is no class")
    return classes


def count_ids(path: str) -> list[list[int]]:
    """Return the ids in the file of a label map and their numbers of pixels.

    Raises:
        InputError: the file cannot be read.
    """
    pixels = np.bincount(read_label_map(path).ravel(), minlength=256)
    ids = np.flatnonzero(pixels)
    return [ids.tolist(), pixels[ids].tolist()]


@TASK_REGISTRY.register()
class Segmentation(Task):
    """Segmentation of an image into one class for each pixel."""

    default_name = "segmentation"
    label_field = "sem_seg_file_name"
    lut_field = "sem_seg_lut"  # key of a record's look-up table, see `load_map`
    partial_field = "sem_seg_partial"  # key of a record with a partial map
    metadata_field = "stuff_classes"
    result_field = "sem_seg"
    metric = "mIoU"
    unit = "pixels"
    fills_pixels = True
    normalizers = ("batch", "image")
    own_key = "MAPS"
    loss_parts = ("ce",)

    @classmethod
    def head_node(cls, cfg: CfgNode, name: str) -> str:
        """See base class."""
        return "SEM_SEG_HEAD"

    def build_head(self, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> SegmentationHead:
        """See base class."""
        return SegmentationHead(cfg, self.class_names, shapes)

    @classmethod
    def own_config(cls) -> dict[str, Any]:
        """See base class."""
        return {
            # Names of the classes in label maps; name i is that of pixel value i.
            "SEM_SEG_CLASSES": [],
            # Pixel value of ignored pixels in label maps.
            "IGNORE_LABEL": 255,
            # Name of the map of an image, where {stem} is the image's name without its suffix.
            "MAP_NAMES": "{stem}.png",
        }

    @classmethod
    def own_classes(cls, files: OwnFiles) -> list[str]:
        """See base class."""
        return list(files.options["SEM_SEG_CLASSES"])

    @classmethod
    def read_own_labels(
        cls, files: OwnFiles, images: ImageFiles, classes: Sequence[str]
    ) -> OwnLabels:
        """See base class."""
        lut = make_lut(classes, files)
        maps, pixels, broken = read_maps(files, images, match_maps(files, images), lut)
        note_ignored(files, pixels, classes)
        keys = [cls.key_of(x, files.task) for x in (cls.label_field, cls.lut_field)]
        labels = {x: dict(zip(keys, (path, lut), strict=True)) for x, path in maps.items()}
        absent = [name for i, name in enumerate(classes) if not pixels[i]]
        return OwnLabels(labels=labels, absent=absent, broken=broken)

    def load_target(self, record: dict) -> Tensor:
        """See base class."""
        return torch.from_numpy(self.load_map(record))

    def load_map(self, record: dict) -> np.ndarray:
        """Read the label map of a record for this task; see the function `load_map`."""
        return load_map(record, self.label_key, self.key_of(self.lut_field, self.name))

    def is_partial(self, record: dict) -> bool:
        """See base class."""
        key = self.key_of(self.partial_field, self.name)
        partial = record.get(key, False)
        check_choice(f"the record of {record['file_name']}: {key}", partial, (False, True))
        return bool(partial)

    def restrict_pseudo_label(self, pseudo: Tensor, label: Tensor) -> Tensor:
        """See base class: the pixels that the label ignores."""
        known = (label != IGNORE_LABEL).to(pseudo.device)
        return pseudo.masked_fill(known, 0.0 if pseudo.is_floating_point() else IGNORE_LABEL)

    def _lut(self, record: dict) -> np.ndarray:
        return np.frombuffer(record[self.key_of(self.lut_field, self.name)], dtype=np.uint8)

    def warp_target(
        self, target: Tensor, matrix: Tensor, size: Size, erased: Tensor | None = None
    ) -> Tensor:
        """See base class; pixels from outside the image are ignored, as erased ones are."""
        if target.is_floating_point():
            fill = target.new_zeros(())
            warped = geometry.warp(target[None], matrix[None], size, mode="bilinear", fill=fill)[0]
            ignore = 0.0
        else:
            warped = geometry.warp_map(target, matrix, size, ignore=IGNORE_LABEL)
            ignore = IGNORE_LABEL
        return warped if erased is None else warped.masked_fill(erased.to(warped.device), ignore)

    @torch.no_grad()
    def pseudo_labels(
        self, predictions: Tensor, threshold: Threshold, valid: Tensor
    ) -> list[Tensor]:
        """Return the most likely class of each pixel; uncertain pixels and padding are ignored."""
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
        if partial := sum(self.is_partial(record) for record in records):
            figures["partial maps"] = partial
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
        """Measure the share of valid pixels; on labeled images, the accuracy."""
        maps = [class_map(target).cpu() for target in pseudo]
        valid = torch.stack(maps) != IGNORE_LABEL
        figures = {"valid_pixels": float(valid.float().mean())}
        correct = labeled = 0
        for p, y in zip(maps, labels, strict=True):
            if y is not None:
                both = (p != IGNORE_LABEL) & (y != IGNORE_LABEL)
                correct += int((p == y)[both].sum())
                labeled += int(both.sum())
        if labeled:
            figures["accuracy"] = correct / labeled
        return figures


def pixels_inside(boxes: Tensor, size: Size) -> Tensor:
    """Return the pixels whose center is inside the box, (N, H, W) bool, for boxes (N, 4)."""
    x = torch.arange(size[1], device=boxes.device) + 0.5
    y = torch.arange(size[0], device=boxes.device) + 0.5
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)
    across, down = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return down[:, :, None] & across[:, None, :]
