"""Pictures to look at: ground truth beside predictions, pseudo-labels before and after the move."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .data.mapper import EvalMapper
from .tasks import Task
from .tasks.task import Target

if TYPE_CHECKING:
    from .engine.step import StepRecord

GAP = 4  # white pixels between tiles
TITLE = 18  # height of a column's title


@dataclass
class Snapshot:
    """A few images of a step with their pseudo-labels, on the CPU.

    Attributes:
        weak: (n, H, W, 3) uint8 RGB.
        strong: the same images after the strong augmentation.
        pseudo: for each image, task name -> pseudo-label in the weak view.
        moved: likewise in the strong view.
    """

    weak: np.ndarray
    strong: np.ndarray
    pseudo: list[dict[str, Target]]
    moved: list[dict[str, Target]]

    @classmethod
    def of(cls, record: "StepRecord", count: int) -> "Snapshot":
        """The first `count` images of a step that have a strong view."""
        assert record.strong is not None
        images = record.strong_images[:count]
        return cls(
            weak=_as_uint8(record.weak[images]),
            strong=_as_uint8(record.strong[: len(images)]),
            pseudo=[_targets_of(i, record.unlabeled, record.pseudo) for i in images],
            moved=[_targets_of(i, record.unlabeled, record.moved) for i in images],
        )


def _targets_of(
    image: int, rows: dict[str, list[int]], targets: dict[str, list[Target]]
) -> dict[str, Target]:
    return {t: targets[t][rows[t].index(image)] for t in rows if image in rows[t]}


def _as_uint8(images: Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()


def _draw_all(image: np.ndarray, tasks: Sequence[Task], targets: dict[str, Target]) -> np.ndarray:
    # Maps cover the picture and boxes stand out of it: tasks that fill pixels are drawn first.
    for task in sorted(tasks, key=lambda t: not t.fills_pixels):
        if targets.get(task.name) is not None:
            image = task.draw(np.ascontiguousarray(image), targets[task.name])
    return image


def draw_pseudo_labels(snapshot: Snapshot, tasks: Sequence[Task], path: str) -> None:
    """Write a row per image: weak view, pseudo-labels, strong view, moved pseudo-labels."""
    rows = [
        [weak, _draw_all(weak, tasks, pseudo), strong, _draw_all(strong, tasks, moved)]
        for weak, strong, pseudo, moved in zip(
            snapshot.weak, snapshot.strong, snapshot.pseudo, snapshot.moved, strict=True
        )
    ]
    titles = ["weak view", "teacher's pseudo-labels", "strong view", "pseudo-labels moved"]
    _write_grid(rows, titles, path)


def draw_predictions(
    model: nn.Module, records: Sequence[dict], tasks: Sequence[Task], threshold: float, path: str
) -> None:
    """Write a row per image: ground truth, prediction.

    Args:
        model: a MultiTaskNet in evaluation mode.
        records: of the images.
        tasks: to draw.
        threshold: least score of a box.
        path: of the PNG.
    """
    rows = []
    for record in records:
        inputs = EvalMapper()(record)
        result = model([inputs])[0]
        image = inputs["image"].permute(1, 2, 0).numpy()
        known = {t.name: t.load_target(record) for t in tasks if t.label_key in record}
        found = {t.name: t.result_target(result, threshold) for t in tasks}
        rows.append([_draw_all(image, tasks, known), _draw_all(image, tasks, found)])
    _write_grid(rows, ["ground truth", "prediction"], path)


def _write_grid(rows: list[list[np.ndarray]], titles: list[str], path: str) -> None:
    """Tiles in rows and columns; a tile smaller than its column is padded with white."""
    widths = [max(row[i].shape[1] for row in rows) for i in range(len(titles))]
    header = [_title(text, width) for text, width in zip(titles, widths, strict=True)]
    lines = []
    for row in [header, *rows]:
        height = max(tile.shape[0] for tile in row)
        padded = [_pad(tile, height + GAP, w + GAP) for tile, w in zip(row, widths, strict=True)]
        lines.append(np.concatenate(padded, axis=1))
    Image.fromarray(np.concatenate(lines)).save(path)


def _title(text: str, width: int) -> np.ndarray:
    image = np.full((TITLE, width, 3), 255, dtype=np.uint8)
    return cv2.putText(image, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1)


def _pad(tile: np.ndarray, height: int, width: int) -> np.ndarray:
    missing = ((0, height - tile.shape[0]), (0, width - tile.shape[1]), (0, 0))
    return np.pad(tile, missing, constant_values=255)
