"""Semantic segmentation: label maps, pseudo-maps, mIoU (paper Sec. 3, 4).

A target is a label map (H, W) uint8 with IGNORE_LABEL at ignored pixels; or soft labels (K, H, W)
float from a method that makes them: the weight of each class, all 0 at ignored pixels. A map with
`sem_seg_partial` in its record is partial: the teacher labels the pixels that it ignores.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from ..augmentation import geometry
from ..augmentation.geometry import Size
from ..formats.image_files import ImageFiles
from ..utils.devices import stack, to_device
from ..utils.errors import InputError, check_choice
from ..utils.images import read_label_map
from ..utils.labels import IGNORE_LABEL, INVALID_LABEL
from .auto_labels import Thresholds
from .base import TASK_REGISTRY, Scan, Statistics, Target, Task, Threshold
from .exported import Exports
from .map_auto_labels import MapLabeler, MapMeter
from .map_labels import MapKeys, OwnMapReader, map_classes
from .map_saving import SavedMaps
from .mean_iou import MeanIoUEvaluator
from .own_labels import OwnFiles, OwnLabels
from .segmentation_head import SegmentationHead, class_map, logits_of, most_likely

# Logits of a strip of rows, which a processor keeps in its cache: half the time of whole images.
STRIP_LOGITS = 2**19


class MapReader(Protocol):
    """Reads the label map of an image from a file, in a form that a record can hold."""

    def read(self, path: str, size: Size) -> np.ndarray:
        """Return the classes of an image of `size` (height, width), or IGNORE_LABEL, uint8.

        Raises:
            InputError: the map cannot be read; the message names the file at `path`.
        """


def load_map(
    record: dict,
    label_key: str = "sem_seg_file_name",
    lut_key: str = "sem_seg_lut",
    reader_key: str = "sem_seg_reader",
) -> np.ndarray:
    """Read the label map of a record.

    Args:
        record: record of an image with a label map.
        label_key: key of the map's file.
        lut_key: key of the look-up table, 256 bytes, from ids in the file to classes.
        reader_key: key of an object that reads the map, see `MapReader`; absent: the file is a PNG
            with the ids.

    Returns:
        (H, W) uint8, classes or IGNORE_LABEL.

    Raises:
        InputError: the file cannot be read, has another size than the image, or unknown ids.
    """
    name, size = record[label_key], (record["height"], record["width"])
    reader = record.get(reader_key)
    pixels = read_label_map(name) if reader is None else reader.read(name, size)
    if pixels.shape != size:
        raise InputError(
            f"{name} is {pixels.shape}, but its image {record['file_name']} is {size} "
            "(height, width)"
        )
    if reader is not None:
        return pixels
    classes = cv2.LUT(pixels, np.frombuffer(record[lut_key], dtype=np.uint8))
    if (classes == INVALID_LABEL).any():
        invalid = pixels[classes == INVALID_LABEL][0]
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


def count_classes(item: tuple[MapReader, str, Size]) -> list[int]:
    """Return the number of pixels of each class, (256,), in a map of this reader, file and size.

    Raises:
        InputError: the map cannot be read.
    """
    reader, path, size = item
    return np.bincount(reader.read(path, size).ravel(), minlength=256).tolist()


@TASK_REGISTRY.register()
class Segmentation(SavedMaps, Task):
    """Segmentation of an image into one class for each pixel."""

    default_name = "segmentation"
    label_field = "sem_seg_file_name"
    lut_field = "sem_seg_lut"  # key of a record's look-up table, see `load_map`
    reader_field = "sem_seg_reader"  # key of a record's reader of the map, see `load_map`
    partial_field = "sem_seg_partial"
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
            # Names of the classes of the maps, in the order of their ids. Empty: those in
            # MAP_VALUES, or else the categories or labels in the training files.
            "SEM_SEG_CLASSES": [],
            # What the pixels of PNG maps mean: [value, class name] of each value, or [[r, g, b],
            # class name] of each color; "" for a name: the pixels are ignored. Empty: value i is
            # name i of SEM_SEG_CLASSES.
            "MAP_VALUES": [],
            # Pixel value of ignored pixels in PNG maps, unless MAP_VALUES names it.
            "IGNORE_LABEL": 255,
            # Class of the pixels that no polygon, mask or other shape of a label file covers.
            # Empty: they are not labeled, which makes the map a partial one.
            "UNPAINTED": "",
            # Name of the map of an image, where {stem} is the image's name without its suffix.
            "MAP_NAMES": "{stem}.png",
        }

    @classmethod
    def own_classes(cls, files: OwnFiles) -> list[str]:
        """See base class."""
        return map_classes(files)

    @classmethod
    def read_own_labels(
        cls, files: OwnFiles, images: ImageFiles, classes: Sequence[str]
    ) -> OwnLabels:
        """See base class."""
        fields = (cls.label_field, cls.lut_field, cls.reader_field, cls.partial_field)
        keys = MapKeys(*(cls.key_of(field, files.task) for field in fields))
        return OwnMapReader(files, images, classes, keys).read()

    def load_target(self, record: dict) -> Tensor:
        """See base class."""
        return torch.from_numpy(self.load_map(record))

    def evaluation_label(self, record: dict) -> Tensor:
        """See base class."""
        return self.load_target(record)

    def load_map(self, record: dict) -> np.ndarray:
        """Read the label map of a record for this task; see the function `load_map`."""
        fields = (self.label_field, self.lut_field, self.reader_field)
        return load_map(record, *(self.key_of(field, self.name) for field in fields))

    def is_partial(self, record: dict) -> bool:
        """See base class."""
        key = self.key_of(self.partial_field, self.name)
        partial = record.get(key, False)
        check_choice(f"the record of {record['file_name']}: {key}", partial, (False, True))
        return bool(partial)

    def restrict_pseudo_label(self, pseudo: Tensor, label: Tensor) -> Tensor:
        """See base class: the pixels that the label ignores."""
        known = to_device(label, pseudo.device) != IGNORE_LABEL
        return pseudo.masked_fill(known, 0.0 if pseudo.is_floating_point() else IGNORE_LABEL)

    def _pixels(self, records: Sequence[dict], scan: Scan) -> Iterator[np.ndarray]:
        """Yield the number of pixels of each class, (256,), of each map that can be read."""
        fields = (self.label_field, self.lut_field, self.reader_field)
        label, lut, reader = (self.key_of(x, self.name) for x in fields)
        plain, read = ([r for r in records if (reader in r) is x] for x in (False, True))
        for record, found in zip(plain, scan([r[label] for r in plain], count_ids), strict=True):
            if found is not None:
                classes = np.frombuffer(record[lut], dtype=np.uint8)[found[0]]
                yield np.bincount(classes, weights=found[1], minlength=256).astype(np.int64)
        items = [(r[reader], r[label], (r["height"], r["width"])) for r in read]
        for found in scan(items, count_classes) if items else ():
            if found is not None:
                yield np.array(found, np.int64)

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

    def warp_targets(
        self, targets: Sequence[Tensor], matrices: Tensor, size: Size, erased: Tensor | None = None
    ) -> list[Tensor]:
        """See base class."""
        if not all(target.is_cuda and target.dtype is torch.uint8 for target in targets):
            return super().warp_targets(targets, matrices, size, erased)
        warped = geometry.warp_maps(stack(targets), matrices, size, ignore=IGNORE_LABEL)
        return list(warped if erased is None else warped.masked_fill(erased, IGNORE_LABEL))

    @torch.no_grad()
    def pseudo_labels(
        self, predictions: Tensor, threshold: Threshold, valid: Tensor
    ) -> list[Tensor]:
        """Return the most likely class of each pixel; uncertain pixels and padding are ignored."""
        if self.least_score(threshold) > 0:
            strips = [_confident_classes(x, threshold) for x in _strips(predictions)]
            maps = torch.cat(strips, dim=1)
        else:
            maps = most_likely(predictions)
        size = (maps.shape[1], maps.shape[2])
        inside = geometry.pixels_inside(to_device(valid, maps.device), size)
        return list(maps.masked_fill_(~inside, IGNORE_LABEL))

    def score_meter(self) -> MapMeter:
        """See base class."""
        return MapMeter(self)

    def auto_labeler(self, thresholds: Thresholds, folder: str, provenance: str) -> MapLabeler:
        """See base class."""
        return MapLabeler(self, thresholds, folder, provenance)

    def evaluator(self, records: Sequence[dict]) -> MeanIoUEvaluator:
        """See base class."""
        keys = {"label_key": self.label_key, "result_key": self.result_key}
        return MeanIoUEvaluator(records, self.class_names, self.load_map, **keys)

    def statistics(self, records: Sequence[dict], scan: Scan) -> Statistics:
        """See base class."""
        pixels = np.zeros(256, dtype=np.int64)
        present = []  # the number of classes in each map
        for counts in self._pixels(records, scan):
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
        return most_likely(result[self.result_key]).cpu()

    def exported_result(self, exports: Exports, image_size: Size) -> Tensor:
        """See base class."""
        return logits_of(exports["map"], exports["confidence"], len(self.class_names))

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


def _confident_classes(logits: Tensor, threshold: Threshold) -> Tensor:
    maps = most_likely(logits)
    least = threshold[maps.long()] if isinstance(threshold, Tensor) else threshold
    return maps.masked_fill_(logits.softmax(dim=1).amax(dim=1) <= least, IGNORE_LABEL)


def _strips(logits: Tensor) -> Sequence[Tensor]:
    """Split logits (N, K, H, W) into strips of rows on a CPU; a GPU takes them whole."""
    if logits.is_cuda:
        return [logits]
    rows = STRIP_LOGITS // max(logits[:, :, :1].numel(), 1)
    return logits.split(max(rows, 1), dim=2)
