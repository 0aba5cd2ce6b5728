"""Label images with a network's maps: unsure pixels are ignored."""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import write_atomically
from ..utils.labels import IGNORE_LABEL
from .auto_labels import (
    HUMAN,
    AutoLabel,
    AutoLabeler,
    ClassScores,
    LabeledImage,
    Review,
    ScoreMeter,
    Thresholds,
    WrittenLabels,
)

BINS = 1000  # of the confidence of pixels, which are too many to keep
NEVER = BINS + 1  # bin that no pixel reaches


class MapTask(Protocol):
    """What is read of a task with maps."""

    name: str
    class_names: list[str]
    colors: list[list[int]]
    lut_field: str

    @property
    def label_key(self) -> str: ...  # noqa: D102
    @property
    def result_key(self) -> str: ...  # noqa: D102
    def is_partial(self, record: dict) -> bool: ...  # noqa: D102
    def load_map(self, record: dict) -> np.ndarray: ...  # noqa: D102
    @classmethod
    def key_of(cls, field: str, name: str) -> str: ...  # noqa: D102


def predicted_pixels(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return class and bin of the confidence of each pixel, (H, W), for logits (K, H, W)."""
    confidence, classes = logits.float().softmax(dim=0).max(dim=0)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    return classes.cpu().numpy(), bins.cpu().numpy()


class MapMeter(ScoreMeter):
    """Counts right and wrong pixels by class and confidence."""

    share_name, support_name = "pixels kept", "images"

    def __init__(self, task: MapTask):
        """Measure the maps of a task."""
        self.task = task
        count = len(task.class_names)
        self._total, self._right = (np.zeros((count, BINS), np.int64) for _ in range(2))
        self._labeled, self._predicted = (np.zeros(count, np.int64) for _ in range(2))

    def add(self, record: dict, result: dict) -> None:
        """See base class; ignored pixels do not count."""
        labels = self.task.load_map(record)
        classes, bins = predicted_pixels(result[self.task.result_key])
        valid = labels != IGNORE_LABEL
        cells = classes[valid] * BINS + bins[valid]
        right = classes[valid] == labels[valid]
        size, shape = self._total.size, self._total.shape
        total = np.bincount(cells, minlength=size).reshape(shape)
        self._total += total
        self._right += np.bincount(cells[right], minlength=size).reshape(shape)
        self._predicted += total.any(axis=1)
        self._labeled[np.unique(labels[valid])] += 1

    def scores(self) -> list[ClassScores]:
        """See base class; the pixels of an image count as one trial, as they depend on each other.

        The share is that of the predicted pixels of a class.
        """
        return [
            ClassScores(
                scores=np.arange(BINS) / BINS,
                total=total,
                right=right,
                reached=total,
                whole=int(total.sum()),
                support=int(self._labeled[i]),
                trials=int(self._predicted[i]),
            )
            for i, (total, right) in enumerate(zip(self._total, self._right, strict=True))
        ]


@dataclass(frozen=True)
class _Filled:
    """A map (H, W) with what a network adds, and the mean confidence of these pixels."""

    pixels: np.ndarray
    review: Sequence[Review] = ()
    confidence: float | None = None


def _shares(human: np.ndarray, filled: _Filled) -> list[str]:
    """Return the shares of pixels by a human, by the network and ignored, and its confidence."""
    by_human, known = ((x != IGNORE_LABEL).mean() for x in (human, filled.pixels))
    shares = [f"{x:.4f}" for x in (by_human, known - by_human, 1 - known)]
    return [*shares, "" if filled.confidence is None else f"{filled.confidence:.4f}"]


class MapLabeler(AutoLabeler):
    """Labels images with maps."""

    def __init__(self, task: MapTask, thresholds: Thresholds, folder: str, provenance: str):
        """See `AutoLabeled.auto_labeler`."""
        self.task, self.folder, self.provenance = task, folder, provenance
        limits = [round(x.upper * BINS) if x else NEVER for x in thresholds]
        self.limits = np.array(limits, np.int64)
        self._rows: list[list[Any]] = []

    def label(self, record: dict, result: dict | None, name: str) -> AutoLabel:
        """See base class; pixels without a human label get the network's class where it is sure."""
        task = self.task
        human = task.load_map(record) if task.label_key in record else None
        is_whole = human is not None and not task.is_partial(record)
        if human is None:
            human = np.full((record["height"], record["width"]), IGNORE_LABEL, np.uint8)
        filled = _Filled(human)
        if result is not None and not is_whole:
            filled = self._fill(human, result[task.result_key])
        if task.label_key not in record and (filled.pixels == IGNORE_LABEL).all():
            return AutoLabel(review=filled.review)
        path = self._write_map(filled.pixels, name, record["file_name"])
        sources = [HUMAN] if task.label_key in record else []
        provenance = "+".join(sources + [self.provenance] * (filled.confidence is not None))
        image, shown = os.path.abspath(record["file_name"]), os.path.relpath(path, self.folder)
        self._rows.append([image, shown, provenance, *_shares(human, filled)])
        lut = bytes(range(256))
        keys = {task.label_key: path, task.key_of(task.lut_field, task.name): lut}
        return AutoLabel(keys=keys, review=filled.review, map_file=path, provenance=provenance)

    def _fill(self, human: np.ndarray, logits: Tensor) -> "_Filled":
        """Return the map with the network's classes where it is sure."""
        classes, bins = predicted_pixels(logits)
        unknown = human == IGNORE_LABEL
        unsure = unknown & (bins < self.limits[classes])
        sure = unknown & ~unsure
        count = len(self.task.class_names)
        found, doubtful = (np.bincount(classes[x], minlength=count) for x in (unknown, unsure))
        confidence = np.bincount(classes[unknown], bins[unknown], minlength=count)
        review = [
            Review(
                class_name=self.task.class_names[i],
                unsure=float(doubtful[i] / human.size),
                score=float(confidence[i] / found[i] / BINS),
            )
            for i in np.flatnonzero(found)
        ]
        pixels = np.where(sure, classes, human).astype(np.uint8)
        return _Filled(pixels, review, float(bins[sure].mean() / BINS) if sure.any() else None)

    def _write_map(self, pixels: np.ndarray, name: str, image: str) -> str:
        # With the name of the folder, because readers compare the ends of paths: else x.png would
        # also be the map of sub/x.jpg.
        place = os.path.basename(os.path.abspath(image).removesuffix(name).rstrip(os.sep))
        stem = os.path.splitext(os.path.join(place, name))[0]
        path = os.path.join(self.folder, self.task.name, f"{stem}.png")
        if os.path.exists(path):
            raise InputError(f"{image}: another image has its name and another suffix; rename one")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        picture = Image.fromarray(pixels)
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(self.task.colors)] = self.task.colors
        picture.putpalette(colors.ravel().tolist())
        content = io.BytesIO()
        picture.save(content, "PNG")
        write_atomically(path, content.getvalue())
        return path

    def write(self, images: Sequence[LabeledImage]) -> WrittenLabels:
        """See base class: the maps are there, a list of their provenances is added."""
        text = io.StringIO()
        header = ["image", "map", "provenance", "human_share", "network_share", "ignored_share"]
        header.append("network_confidence")
        csv.writer(text, lineterminator="\n").writerows([header, *self._rows])
        path = os.path.join(self.folder, f"{self.task.name}_provenance.csv")
        write_atomically(path, text.getvalue())
        options = {
            "SEM_SEG_CLASSES": list(self.task.class_names),
            "MAP_VALUES": [],
            "IGNORE_LABEL": IGNORE_LABEL,
            "UNPAINTED": "",
            "MAP_NAMES": "{stem}.png",
        }
        return WrittenLabels(files=[self.task.name] if self._rows else [], options=options)
