"""Mean intersection over union, by Detectron2's evaluator (paper Sec. 4)."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm

from ..utils.labels import IGNORE_LABEL


class MeanIoUEvaluator(SemSegEvaluator):
    """Evaluate mIoU and Detectron2's figures on the images with a label map.

    The figures are those of `SemSegEvaluator` for a dataset of these images alone, without its
    Boundary IoU. The mIoU differs where a class is predicted that never occurs: its IoU is 0 here,
    while Detectron2 leaves the class out.
    """

    _conf_matrix: np.ndarray  # (K + 1, K + 1), rows: predictions, columns: labels; K: ignored

    def __init__(
        self,
        records: Sequence[dict],
        class_names: Sequence[str],
        load_map: Callable[[dict], np.ndarray],
        *,
        label_key: str = "sem_seg_file_name",
        result_key: str = "sem_seg",
    ):
        """Set the labels.

        Args:
            records: records of the images; those without the label do not count.
            class_names: names of the K classes in the order of their ids.
            load_map: function from a record to its classes (H, W) uint8.
            label_key: key of the label in a record.
            result_key: key of the logits (K, H, W) in the model's result for an image.
        """
        # The base's constructor needs a registered dataset whose images all have label maps; it
        # sets these fields.
        self._logger = logging.Logger(__name__, logging.WARNING)  # not all figures in one line
        self._distributed = False  # `evaluate` gathers the counts itself
        self._output_dir = None
        self._cpu_device = torch.device("cpu")
        self._class_names = list(class_names)
        self._num_classes = len(self._class_names)
        self._ignore_label = IGNORE_LABEL
        self._compute_boundary_iou = False  # in a map it subtracts class ids from each other
        # The base looks an image up by its file name, and loads the label that it finds.
        self.input_file_to_gt_file = {r["image_id"]: r for r in records if label_key in r}
        self.sem_seg_loading_fn = lambda record, dtype: load_map(record).astype(dtype)
        self._result_key = result_key
        self.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of some images; those of unlabeled images do not count."""
        for image, output in zip(inputs, outputs, strict=True):
            if image["image_id"] in self.input_file_to_gt_file:
                named = {"file_name": image["image_id"]}
                super().process([named], [{"sem_seg": output[self._result_key]}])

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """Return nothing: predictions in COCO's format are for a file that is not written."""
        return []

    def evaluate(self) -> dict | None:
        """Compute the metrics of the images of all ranks.

        Returns:
            {"mIoU": value, "per_class": {name: IoU}, "detectron2": {name: value}} on the main
            process, None on others. Values are in [0, 1], those of "detectron2" in [0, 100].
        """
        gathered = comm.gather(self._conf_matrix)
        if not comm.is_main_process():
            return None
        self._conf_matrix = np.sum(gathered, axis=0)
        with np.errstate(invalid="ignore"):  # without a labeled pixel, all figures are nan
            figures = super().evaluate()["sem_seg"]
        confusion = self._conf_matrix[:-1, :-1]
        hits = np.diag(confusion).astype(float)
        union = confusion.sum(0) + confusion.sum(1) - hits
        # A class that neither occurs nor is predicted has no IoU.
        iou = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
        mean = float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")
        return {
            "mIoU": mean,
            "per_class": dict(zip(self._class_names, iou.tolist(), strict=True)),
            "detectron2": {name: float(value) for name, value in figures.items()},
        }
