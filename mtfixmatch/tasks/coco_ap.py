"""COCO's average precision from records in memory, by pycocotools (paper Sec. 4)."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class CocoApEvaluator(DatasetEvaluator):
    """Evaluate mAP (AP@[.5:.95]), AP50 and the AP of each class on the images with boxes."""

    def __init__(
        self,
        records: Sequence[dict],
        class_names: Sequence[str],
        *,
        label_key: str = "annotations",
        result_key: str = "instances",
    ):
        """Take the ground truth from the records.

        Args:
            records: records of the images; those without the label do not count.
            class_names: names of the K classes in the order of `category_id`.
            label_key: key of the annotations in a record.
            result_key: key of the instances in the model's result for an image.
        """
        self._class_names = list(class_names)
        self._result_key = result_key
        labeled = [record for record in records if label_key in record]
        self._image_ids = {record["image_id"]: i for i, record in enumerate(labeled, start=1)}
        annotations = [record[label_key] for record in labeled]
        self._ground_truth = _coco_dataset(annotations, self._class_names)
        self._detections: list[dict] = []

    def reset(self) -> None:
        """Forget all detections."""
        self._detections = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the detections of some images; those of unlabeled images do not count."""
        for image, output in zip(inputs, outputs, strict=True):
            if image["image_id"] in self._image_ids:
                image_id = self._image_ids[image["image_id"]]
                instances = output[self._result_key].to("cpu")
                self._detections += _coco_detections(image_id, instances)

    def evaluate(self) -> dict | None:
        """Return {"mAP", "AP50", "per_class": {name: AP}}, in [0, 1]; None on other ranks."""
        gathered = comm.gather(self._detections)
        if not comm.is_main_process():
            return None
        detections = [d for part in gathered for d in part]
        with contextlib.redirect_stdout(io.StringIO()):
            precision = self._precision(detections)
        per_class = [_mean(precision[:, :, k]) for k in range(len(self._class_names))]
        return {
            "mAP": _mean(precision),
            "AP50": _mean(precision[0]),
            "per_class": dict(zip(self._class_names, per_class, strict=True)),
        }

    def _precision(self, detections: list[dict]) -> np.ndarray:
        """Return the precision (10 IoUs, 101 recalls, K); -1 where a class never occurs."""
        truth = COCO()
        truth.dataset = self._ground_truth
        truth.createIndex()
        # pycocotools cannot load an empty list of detections.
        results = truth.loadRes(detections) if detections else COCO()
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation.eval["precision"][:, :, :, 0, -1]  # all areas, 100 detections


def _coco_dataset(images: Sequence[Sequence[dict]], class_names: Sequence[str]) -> dict:
    """Return the content of a COCO instances JSON for the annotations of each image."""
    annotations: list[dict] = []
    for image_id, image in enumerate(images, start=1):
        for a in image:
            x0, y0, x1, y1 = a["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": a["category_id"],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": a.get("iscrowd", 0),
                }
            )
    return {
        "images": [{"id": image_id} for image_id in range(1, len(images) + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }


def _coco_detections(image_id: int, instances) -> list[dict]:
    boxes = instances.pred_boxes.tensor.numpy().astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    return [
        {"image_id": image_id, "category_id": c, "bbox": box.tolist(), "score": score}
        for box, score, c in zip(boxes, scores, classes, strict=True)
    ]


def _mean(precision: np.ndarray) -> float:
    values = precision[precision > -1]
    return float(values.mean()) if values.size else float("nan")
