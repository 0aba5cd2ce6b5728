"""Mean intersection over union, from one confusion matrix (paper Sec. 4)."""

from collections.abc import Callable, Sequence

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..utils.labels import IGNORE_LABEL


class MeanIoUEvaluator(DatasetEvaluator):
    """Evaluate mIoU and the IoU of each class on the images with a label map."""

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
        self._class_names = list(class_names)
        self._load_map = load_map
        self._result_key = result_key
        self._records = {r["image_id"]: r for r in records if label_key in r}
        self.reset()

    def reset(self) -> None:
        """Set all counts to 0."""
        k = len(self._class_names)
        self._confusion = np.zeros((k, k), dtype=np.int64)  # rows: labels, columns: predictions

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of some images; those of unlabeled images do not count."""
        k = len(self._class_names)
        for image, output in zip(inputs, outputs, strict=True):
            if image["image_id"] in self._records:
                labels = self._load_map(self._records[image["image_id"]]).astype(np.int64)
                classes = output[self._result_key].argmax(dim=0).cpu().numpy()
                pairs = (labels * k + classes)[labels != IGNORE_LABEL]
                self._confusion += np.bincount(pairs, minlength=k * k).reshape(k, k)

    def evaluate(self) -> dict | None:
        """Return {"mIoU": value, "per_class": {name: IoU}}, in [0, 1]; None on other ranks."""
        gathered = comm.gather(self._confusion)
        if not comm.is_main_process():
            return None
        confusion = np.sum(gathered, axis=0)
        hits = np.diag(confusion).astype(float)
        union = confusion.sum(0) + confusion.sum(1) - hits
        # A class that neither occurs nor is predicted has no IoU.
        iou = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
        mean = float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")
        per_class = dict(zip(self._class_names, iou.tolist(), strict=True))
        return {"mIoU": mean, "per_class": per_class}
