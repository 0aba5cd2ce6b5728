"""COCO's average precision from records in memory, by Detectron2's evaluator (paper Sec. 4)."""

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class CocoApEvaluator(COCOEvaluator):
    """Evaluate mAP (AP@[.5:.95]) and Detectron2's figures on the images with boxes.

    The figures are those of `COCOEvaluator` for a dataset of these images alone. It reads its boxes
    from a JSON file; here they stay in memory, and no side of a box is rounded. An image that is
    labeled for some of the classes counts for these alone, as in LVIS.
    """

    _predictions: list[dict]  # of this rank: {"image_id", "instances": detections of the image}
    _coco_eval: COCOeval | None  # of an evaluation; None: without detections

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
        self._coco_api = COCO()
        annotations = [record[label_key] for record in labeled]
        self._coco_api.dataset = _coco_dataset(annotations, class_names)
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
                # Widths and heights, which COCO's format has, would be rounded in float32.
                instances.pred_boxes.tensor = instances.pred_boxes.tensor.double()
                detections = instances_to_coco_json(instances, image_id)
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
        self._coco_eval = None
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()
            figures = super().evaluate().get("bbox", {})
            precision = self._precision()
        names = self._metadata.thing_classes
        per_class = [_mean(precision[:, :, k]) for k in range(len(names))]
        return {
            "mAP": _mean(precision),
            "AP50": _mean(precision[0]),
            "per_class": dict(zip(names, per_class, strict=True)),
            "detectron2": figures,
        }

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Keep COCO's evaluation, and return the base's figures."""
        self._coco_eval = coco_eval
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _precision(self) -> np.ndarray:
        """Return the precision (10 IoUs, 101 recalls, K); -1 where a class never occurs."""
        evaluation = self._coco_eval
        if evaluation is None:  # without a detection, the base has no figures: here they are 0
            nothing = COCO()
            nothing.dataset = {"annotations": []}
            evaluation = COCOeval(self._coco_api, nothing, "bbox")
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


def _mean(precision: np.ndarray) -> float:
    values = precision[precision > -1]
    return float(values.mean()) if values.size else float("nan")
