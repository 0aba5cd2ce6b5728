"""COCO's average precision from records in memory, by Detectron2's evaluator (paper Sec. 4)."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools.cocoeval import COCOeval

from .average_precision import Truth, evaluate_boxes


class CocoApEvaluator(COCOEvaluator):
    """Evaluate mAP (AP@[.5:.95]) and Detectron2's figures on the images with boxes.

    The figures are those of `COCOEvaluator` for a dataset of these images alone. It reads its boxes
    from a JSON file; here they stay in memory, and no side of a box is rounded. An image that is
    labeled for some of the classes counts for these alone, as in LVIS.
    """

    _predictions: list[dict]  # {"image_id", "instances": array of the image's detections}
    _coco_eval: COCOeval  # of the last call of `evaluate`

    def __init__(
        self,
        records: Sequence[dict],
        class_names: Sequence[str],
        *,
        label_key: str = "annotations",
        result_key: str = "instances",
        labeled_classes: Mapping[str, Sequence[int]] | None = None,
    ):
        """Take the ground truth from the records.

        Args:
            records: records of the images; those without the label do not count.
            class_names: names of the K classes in the order of `category_id`.
            label_key: key of the annotations in a record.
            result_key: key of the instances in the model's result for an image.
            labeled_classes: image id -> classes that it is labeled for; all if it is missing here.
        """
        # The base's constructor needs a registered dataset and a file; it sets these fields.
        self._logger = logging.getLogger(__name__)
        self._metadata = Metadata(thing_classes=list(class_names))
        self._tasks = ("bbox",)
        self._distributed = False  # `evaluate` gathers the detections itself
        self._output_dir = None
        self._max_dets_per_image = [1, 10, 100]
        self._use_fast_impl = False  # the official implementation, for the same results everywhere
        self._do_evaluation = True
        self._kpt_oks_sigmas = ()
        labeled = [record for record in records if label_key in record]
        self._truth = _truth([record[label_key] for record in labeled], class_names)
        self._image_ids = {record["image_id"]: i for i, record in enumerate(labeled, start=1)}
        self._result_key = result_key
        self._labeled_classes = dict(labeled_classes or {})
        self.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the detections of some images; those of unlabeled images do not count."""
        for image, output in zip(inputs, outputs, strict=True):
            if image["image_id"] in self._image_ids:
                image_id = self._image_ids[image["image_id"]]
                instances = output[self._result_key].to("cpu")
                if (classes := self._labeled_classes.get(image["image_id"])) is not None:
                    labeled = torch.isin(instances.pred_classes, torch.tensor(classes))
                    instances = instances[labeled]
                detections = _detections(instances, image_id)
                self._predictions.append({"image_id": image_id, "instances": detections})

    def evaluate(self) -> dict | None:
        """Compute the metrics of the images of all ranks.

        Returns:
            {"mAP", "AP50", "per_class": {name: AP}, "detectron2": {name: value}} on the main
            process, None on others. Values are in [0, 1], those of "detectron2" in [0, 100].
        """
        gathered = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        self._predictions = [prediction for part in gathered for prediction in part]
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_eval = evaluate_boxes(self._truth, self._detections())
            figures = super().evaluate().get("bbox", {})
        precision = self._coco_eval.eval["precision"][:, :, :, 0, -1]  # all areas, 100 detections
        names = self._metadata.thing_classes
        per_class = [_mean(precision[:, :, k]) for k in range(len(names))]
        return {
            "mAP": _mean(precision),
            "AP50": _mean(precision[0]),
            "per_class": dict(zip(names, per_class, strict=True)),
            "detectron2": figures,
        }

    def _eval_predictions(
        self, predictions: list[dict], img_ids: Sequence[int] | None = None
    ) -> None:
        """Derive the base's figures from the evaluation; it has none without a detection."""
        evaluation = self._coco_eval if len(self._detections()) else None
        names = self._metadata.thing_classes
        self._results["bbox"] = self._derive_coco_results(evaluation, "bbox", names)

    def _detections(self) -> np.ndarray:
        """Return the detections of all images, see `evaluate_boxes`."""
        return np.concatenate([np.zeros((0, 7)), *(x["instances"] for x in self._predictions)])


def _truth(images: Sequence[Sequence[dict]], class_names: Sequence[str]) -> Truth:
    """Return the ground truth of images from the annotations of each."""
    flat = [(image_id, a) for image_id, image in enumerate(images, start=1) for a in image]
    corners = np.array([a["bbox"] for _, a in flat], dtype=np.float64).reshape(-1, 4)
    return Truth(
        num_images=len(images),
        class_names=class_names,
        image_ids=np.array([image_id for image_id, _ in flat], dtype=np.int64),
        classes=np.array([a["category_id"] for _, a in flat], dtype=np.int64),
        boxes=_with_sides(corners),
        is_crowd=np.array([a.get("iscrowd", 0) for _, a in flat], dtype=bool),
    )


def _detections(instances: Instances, image_id: int) -> np.ndarray:
    """Return the detections of an image, see `evaluate_boxes`."""
    # Widths and heights, which COCO's format has, would be rounded in float32.
    boxes = _with_sides(instances.pred_boxes.tensor.double().numpy())
    scores, classes = instances.scores.double().numpy(), instances.pred_classes.numpy()
    return np.column_stack([np.full(len(boxes), image_id), boxes, scores, classes])


def _with_sides(corners: np.ndarray) -> np.ndarray:
    """Return boxes (N, 4) as x, y, width and height."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _mean(precision: np.ndarray) -> float:
    values = precision[precision > -1]
    return float(values.mean()) if values.size else float("nan")
