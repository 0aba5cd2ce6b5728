"""COCO's evaluation of boxes, by hotcoco where it is installed, else by pycocotools.

Both count the same and compute the same bits, which the tests assert; hotcoco takes a fiftieth of
the time. The means of its counts are pycocotools' own, too.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

try:
    import hotcoco
except ImportError:  # there is no wheel for this machine
    hotcoco = None  # type: ignore[assignment]

# A forked child has none of the threads that hotcoco may have started, and would wait for them.
_PROCESS = os.getpid()


@dataclass
class Truth:
    """The boxes of some images, G in all.

    Attributes:
        num_images: number of images, whose ids are 1, 2, ...
        class_names: names of the K classes by id.
        image_ids: (G,) int64.
        classes: (G,) int64 in [0, K).
        boxes: (G, 4) float64, x, y, width and height in pixels.
        is_crowd: (G,) bool, regions whose detections do not count.
    """

    num_images: int
    class_names: Sequence[str]
    image_ids: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    is_crowd: np.ndarray

    @property
    def images(self) -> list[dict]:
        """The images in COCO's format."""
        return [{"id": image_id} for image_id in range(1, self.num_images + 1)]

    @property
    def categories(self) -> list[dict]:
        """The classes in COCO's format."""
        return [{"id": i, "name": name} for i, name in enumerate(self.class_names)]

    @property
    def areas(self) -> np.ndarray:
        """Areas (G,) of the boxes in pixels."""
        return self.boxes[:, 2] * self.boxes[:, 3]


def evaluate_boxes(truth: Truth, detections: np.ndarray) -> COCOeval:
    """Run COCO's evaluation of boxes, with its default parameters.

    Args:
        truth: the ground truth.
        detections: (D, 7) float64, maybe D = 0: image id, x, y, width, height, score, class; the
            order matters where scores are equal.

    Returns:
        The evaluation, with "precision" and "recall" in `eval` and the means in `stats`.
    """
    fast = hotcoco is not None and os.getpid() == _PROCESS
    evaluation = COCOeval(iouType="bbox")
    evaluation.eval = (_by_hotcoco if fast else _by_pycocotools)(truth, detections)
    evaluation.summarize()
    return evaluation


def _by_hotcoco(truth: Truth, detections: np.ndarray) -> dict:
    dataset = hotcoco.COCO.from_arrays(
        *(truth.images, truth.categories, truth.image_ids, truth.classes, truth.boxes),
        area=truth.areas,
        iscrowd=truth.is_crowd,
    )
    evaluation: Any = hotcoco.COCOeval(dataset, dataset.load_res(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def _by_pycocotools(truth: Truth, detections: np.ndarray) -> dict:
    dataset, found = COCO(), COCO()
    columns = (truth.image_ids, truth.classes, truth.boxes, truth.areas, truth.is_crowd)
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    dataset.dataset = {
        "images": truth.images,
        "annotations": [dict(zip(keys, x, strict=True), id=i) for i, x in enumerate(rows, 1)],
        "categories": truth.categories,
    }
    dataset.createIndex()
    if len(detections):  # it takes no empty array
        found = dataset.loadRes(detections)
    else:
        found.dataset = {"annotations": []}
    evaluation = COCOeval(dataset, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval
