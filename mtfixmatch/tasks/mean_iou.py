"""Mean intersection over union, by Detectron2's evaluator (paper Sec. 4)."""

import logging
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..utils.labels import IGNORE_LABEL
from .segmentation_head import most_likely

# Pixels that OpenCV counts at once, in float32: numbers up to this one are exact.
MOST_COUNTED = 2**24


class MeanIoUEvaluator(SemSegEvaluator):
    """Evaluate mIoU and Detectron2's figures on the images with a label map.

    The figures are those of `SemSegEvaluator` for a dataset of these images alone, without its
    Boundary IoU. The mIoU differs where a class is predicted that never occurs: its IoU is 0 here,
    while Detectron2 leaves the class out.
    """

    _conf_matrix: np.ndarray  # of all ranks, see `count_pairs`
    _counts: Tensor | None  # of this rank, likewise; None: no image yet

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
            result_key: key of the logits or classes in the model's result for an image.
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
        self._label_key, self._result_key = label_key, result_key
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._counts = None

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of some images; those of unlabeled images do not count.

        Args:
            inputs: items of `EvalMapper`; a label map that is not there is read here.
            outputs: classes (H, W) uint8, or logits (K, H, W), under the result key. They are
                counted on their device.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if (record := self.input_file_to_gt_file.get(image["image_id"])) is not None:
                labels = image.get("labels", {}).get(self._label_key)
                if labels is None:
                    labels = torch.from_numpy(self.sem_seg_loading_fn(record, np.uint8))
                found = output[self._result_key]
                classes = most_likely(found) if found.dim() == 3 else found
                counts = count_pairs(classes, labels.to(classes.device), self._num_classes)
                self._counts = counts if self._counts is None else self._counts + counts

    def evaluate(self) -> dict | None:
        """Compute the metrics of the images of all ranks.

        Returns:
            {"mIoU": value, "per_class": {name: IoU}, "detectron2": {name: value}} on the main
            process, None on others. Values are in [0, 1], those of "detectron2" in [0, 100].
        """
        if self._counts is not None:
            self._conf_matrix = self._counts.cpu().numpy()
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


def count_pairs(classes: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each predicted class and label, on the device of both maps.

    Args:
        classes: predicted classes (H, W) uint8 in [0, K).
        labels: classes (H, W) uint8, or IGNORE_LABEL.
        num_classes: K.

    Returns:
        (K + 1, K + 1) int64, rows: predictions, columns: labels; column K: ignored pixels.
    """
    side = num_classes + 1
    if not classes.is_cuda:
        return _count_on_cpu(classes, labels, side)
    columns = labels.masked_fill(labels == IGNORE_LABEL, num_classes)
    pairs = classes.int() * side + columns
    return pairs.flatten().bincount(minlength=side**2).view(side, side)


def _count_on_cpu(classes: Tensor, labels: Tensor, side: int) -> Tensor:
    """See `count_pairs`; a quarter of its time."""
    counts = np.zeros((side, side), np.int64)
    pairs = (x.flatten().split(MOST_COUNTED) for x in (classes, labels))
    for both in zip(*pairs, strict=True):
        images = [x.numpy()[None] for x in both]
        found = cv2.calcHist(images, [0, 1], None, [side, 256], [0, side, 0, 256])
        counts[:, :-1] += found[:, : side - 1].astype(np.int64)
        counts[:, -1] += found[:, IGNORE_LABEL].astype(np.int64)
    return torch.from_numpy(counts)
