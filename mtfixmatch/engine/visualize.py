"""Pictures: ground truth beside predictions, labels before and after their warp."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..augmentation import geometry
from ..data.mapper import EvalMapper
from ..tasks import Task
from ..tasks.base import Target
from ..utils.errors import InputError
from .step import StepRecord

MIN_WIDTH = 256  # least width in pixels of a tile with labels, so that names do not cover it
GAP = 4  # width in pixels of the white gap between tiles
TITLE = 18  # height in pixels of a column's title and of a row's caption


@dataclass
class Snapshot:
    """A few images of a step with their labels or pseudo-labels by task, on the CPU."""

    weak: np.ndarray  # weak views, (N, H, W, 3) uint8 RGB
    strong: np.ndarray  # strong views of the same images; empty if the method has none
    labels: list[dict[str, Target]]  # of each image in the weak view; a target may be None
    warped: list[dict[str, Target]]  # the same in the strong view

    @classmethod
    def from_record(cls, record: StepRecord, count: int) -> "Snapshot":
        """Take the first `count` images of a step that have a strong view."""
        views = list(zip(record.weak, record.pseudo_labels, record.strong, strict=True))
        chosen = [(w, labels, s) for w, labels, s in views if s is not None][:count]
        return cls(
            weak=as_uint8(torch.stack([weak.image for weak, _, _ in chosen])),
            strong=as_uint8(torch.stack([strong.image for _, _, strong in chosen])),
            labels=[dict(labels) for _, labels, _ in chosen],
            warped=[{name: x.target for name, x in s.targets.items()} for _, _, s in chosen],
        )


def as_uint8(images: Tensor) -> np.ndarray:
    """Convert images (N, 3, H, W) in [0, 1] to (N, H, W, 3) uint8."""
    return (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()


def draw_targets(
    image: np.ndarray, tasks: Sequence[Task], targets: Mapping[str, Target]
) -> np.ndarray:
    """Return an RGB image (H, W, 3) uint8 with the targets of its tasks, by name, drawn over it."""
    # Label maps would cover boxes, so tasks that fill pixels are drawn first.
    for task in sorted(tasks, key=lambda t: not t.fills_pixels):
        if targets.get(task.name) is not None:
            image = task.draw(np.ascontiguousarray(image), targets[task.name])
    return image


def draw_pseudo_labels(snapshot: Snapshot, tasks: Sequence[Task], path: str) -> None:
    """Write a row per image: weak view, pseudo-labels, strong view, warped pseudo-labels."""
    titles = ["weak view", "teacher's pseudo-labels", "strong view", "warped pseudo-labels"]
    write_grid(_view_rows(snapshot, tasks), titles, path)


def draw_samples(
    snapshot: Snapshot, tasks: Sequence[Task], captions: Sequence[str], path: str
) -> None:
    """Write a row per image, under its caption: weak view, labels, strong view, warped labels."""
    rows = _view_rows(snapshot, tasks)
    titles = ["weak view", "its labels", "strong view", "warped labels"][: len(rows[0])]
    write_grid(rows, titles, path, captions)


def _view_rows(snapshot: Snapshot, tasks: Sequence[Task]) -> list[list[np.ndarray]]:
    views = zip(snapshot.weak, snapshot.labels, strict=True)
    rows = [_with_labels(weak, tasks, labels) for weak, labels in views]
    for row, strong, warped in zip(rows, snapshot.strong, snapshot.warped, strict=False):
        row += _with_labels(strong, tasks, warped)
    return rows


def _with_labels(
    image: np.ndarray, tasks: Sequence[Task], targets: dict[str, Target]
) -> list[np.ndarray]:
    """Return a view without and with its targets, enlarged so that names do not cover it."""
    factor = -(-MIN_WIDTH // image.shape[1])
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    matrix = geometry.scaling(factor, factor)
    size = (image.shape[0], image.shape[1])
    enlarged = {
        task.name: task.warp_target(targets[task.name], matrix, size)
        for task in tasks
        if targets.get(task.name) is not None
    }
    return [image, draw_targets(image, tasks, enlarged)]


def choose_records(
    records: Sequence[dict], files: Sequence[str], count: int, key: str = "TEST.PICTURE_FILES"
) -> list[dict]:
    """Return the test images to draw: those in `files`, in that order, or else the first `count`.

    A file is a path, a file name or an image id. Raise InputError, which begins with the `key` of
    the names, for one that not exactly one image has.
    """
    chosen = []
    for file in files:
        names = [(r["image_id"], r["file_name"], os.path.basename(r["file_name"])) for r in records]
        found = [r for r, own in zip(records, names, strict=True) if file in own]
        if len(found) != 1:
            what = f"{len(found)} test images have the path, file name or image id {file!r}"
            raise InputError(f"{key}: {what}, expected one")
        chosen += found
    return chosen if files else list(records[:count])


def draw_predictions(
    model: nn.Module, records: Sequence[dict], tasks: Sequence[Task], threshold: float, path: str
) -> None:
    """Write a row per image: ground truth, prediction as in `prediction_tiles`."""
    predictions = prediction_tiles(model, records, tasks, threshold)
    rows = [list(row) for row in zip(truth_tiles(records, tasks), predictions, strict=True)]
    write_grid(rows, ["ground truth", "prediction"], path)


def truth_tiles(records: Sequence[dict], tasks: Sequence[Task]) -> list[np.ndarray]:
    """Return each image with its labels, (H, W, 3) uint8 RGB."""
    tiles = []
    for record in records:
        image = EvalMapper()(record)["image"].permute(1, 2, 0).numpy()
        targets = {t.name: t.load_target(record) for t in tasks if t.label_key in record}
        tiles.append(draw_targets(image, tasks, targets))
    return tiles


def prediction_tiles(
    model: nn.Module, records: Sequence[dict], tasks: Sequence[Task], threshold: float
) -> list[np.ndarray]:
    """Return each image with the predictions of a MultiTaskNet in evaluation mode.

    A box has a score of at least `threshold`, in [0, 1]; the tiles are (H, W, 3) uint8 RGB.
    """
    tiles = []
    for record in records:
        inputs = EvalMapper()(record)
        result = model([inputs])[0]
        targets = {t.name: t.result_target(result, threshold) for t in tasks}
        image = inputs["image"].permute(1, 2, 0).numpy()
        tiles.append(draw_targets(image, tasks, targets))
    return tiles


def write_grid(
    rows: list[list[np.ndarray]], titles: list[str], path: str, captions: Sequence[str] = ()
) -> None:
    """Write rows of tiles (H, W, 3) uint8 RGB to a PNG; smaller tiles are padded with white."""
    widths = [max(row[i].shape[1] for row in rows) for i in range(len(titles))]
    header = [_title(text, width) for text, width in zip(titles, widths, strict=True)]
    lines = [_line(row, widths) for row in [header, *rows]]
    for i in reversed(range(len(captions))):
        lines.insert(i + 1, _title(captions[i], lines[0].shape[1]))
    Image.fromarray(np.concatenate(lines)).save(path)


def _line(row: list[np.ndarray], widths: list[int]) -> np.ndarray:
    line = np.full((max(map(len, row)) + GAP, sum(widths) + GAP * len(row), 3), 255, np.uint8)
    for index, tile in enumerate(row):
        left = sum(widths[:index]) + GAP * index
        line[: tile.shape[0], left : left + tile.shape[1]] = tile
    return line


def _title(text: str, width: int) -> np.ndarray:
    image = np.full((TITLE, width, 3), 255, dtype=np.uint8)
    return cv2.putText(image, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1)
