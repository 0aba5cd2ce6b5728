"""Semantic segmentation: DeepLabv3+'s head, cross-entropy, pseudo-maps, mIoU.

A target is a label map (H, W) uint8 on the frame of its image; IGNORE marks what takes no part.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.projects.deeplab import DeepLabV3PlusHead
from detectron2.utils import comm
from torch import Tensor

from ..augmentation import geometry
from ..augmentation.geometry import Size
from ..utils.errors import InputError
from ..utils.images import read_label_map
from .base import TASK_REGISTRY, Assigned, Raw, Scan, Statistics, Target, Task, TaskHead
from .dropout import drop_by_image

IGNORE = 255  # in every map of this package, whatever the files use
INVALID = 254  # in a record's table of classes: an id that must not occur


def load_map(record: dict) -> np.ndarray:
    """Read a record's map, (H, W) uint8, its raw ids turned into classes or IGNORE.

    Raises:
        InputError: if the file cannot be read, has another size than the image, or unknown ids.
    """
    name = record["sem_seg_file_name"]
    raw = read_label_map(name)
    if raw.shape != (record["height"], record["width"]):
        raise InputError(
            f"{name} is {raw.shape}, but its image {record['file_name']} asks for "
            f"{(record['height'], record['width'])} (height, width)"
        )
    classes = np.frombuffer(record["sem_seg_lut"], dtype=np.uint8)[raw]
    if (classes == INVALID).any():
        raise InputError(f"{name} holds the id {raw[classes == INVALID][0]}, which is no class")
    return classes


def count_ids(path: str) -> list[list[int]]:
    """The raw ids that occur in a map's file, and the number of pixels of each.

    Raises:
        InputError: if the file cannot be read.
    """
    pixels = np.bincount(read_label_map(path).ravel(), minlength=256)
    ids = np.flatnonzero(pixels)
    return [ids.tolist(), pixels[ids].tolist()]


@TASK_REGISTRY.register
class Segmentation(Task):
    """A class for every pixel."""

    name = "segmentation"
    label_key = "sem_seg_file_name"
    metadata_key = "stuff_classes"
    metric = "mIoU"
    head_config = "SEM_SEG_HEAD"
    loss_parts = ("ce",)
    counted = "pixels"
    fills_pixels = True

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        self.ignore_erased = cfg.TASKS.SEGMENTATION.IGNORE_ERASED

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Keys of segmentation; the head itself is configured by MODEL.SEM_SEG_HEAD."""
        super().add_config(cfg)
        # Whether what Cutout has erased is ignored in a pseudo-map.
        cfg.TASKS.SEGMENTATION.IGNORE_ERASED = True

    def build_head(self, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> "SegmentationHead":
        """See base class."""
        return SegmentationHead(cfg, shapes)

    def load_target(self, record: dict) -> Tensor:
        """See base class."""
        return torch.from_numpy(load_map(record))

    def move_target(
        self, target: Tensor, matrix: Tensor, size: Size, erased: Tensor | None = None
    ) -> Tensor:
        """See base class; pixels from outside are ignored, by default erased ones too."""
        moved = geometry.warp_map(target, matrix, size, ignore=IGNORE)
        if erased is None or not self.ignore_erased:
            return moved
        return moved.masked_fill(erased.to(moved.device), IGNORE)

    def evaluator(self, records: Sequence[dict]) -> "MeanIoUEvaluator":
        """See base class."""
        return MeanIoUEvaluator(records, self.class_names)

    def statistics(self, records: Sequence[dict], scan: Scan) -> Statistics:
        """See base class."""
        found = scan([r["sem_seg_file_name"] for r in records], count_ids)
        pixels = np.zeros(256, dtype=np.int64)
        present = []  # by map, the number of classes
        for record, counted in zip(records, found, strict=True):
            if counted is not None:
                classes = np.frombuffer(record["sem_seg_lut"], dtype=np.uint8)[counted[0]]
                row = np.bincount(classes, weights=counted[1], minlength=256).astype(np.int64)
                pixels += row
                present.append(int(np.count_nonzero(row[: len(self.class_names)])))
        figures: dict[str, int | str] = {"maps without a class": present.count(0)}
        if present:
            figures["classes per map: mean, most"] = f"{np.mean(present):.1f}, {max(present)}"
            figures["ignored pixels, %"] = f"{100 * pixels[IGNORE] / pixels.sum():.1f}"
        counts = pixels[: len(self.class_names)].tolist()
        return Statistics(dict(zip(self.class_names, counts, strict=True)), figures)

    def result_target(self, result: dict, threshold: float) -> Tensor:
        """See base class."""
        return result["sem_seg"].argmax(dim=0).to("cpu", torch.uint8)

    def draw(self, image: np.ndarray, target: Tensor) -> np.ndarray:
        """See base class."""
        colors = np.zeros((256, 3), dtype=np.float32)
        colors[: len(self.class_names)] = self.metadata.stuff_colors
        labels = target.cpu().numpy()
        mixed = 0.45 * image + 0.55 * colors[labels]
        return np.where((labels == IGNORE)[..., None], image, mixed).astype(np.uint8)

    def count_classes(self, targets: Sequence[Tensor]) -> list[int]:
        """See base class."""
        pixels = torch.zeros(256, dtype=torch.long)
        for target in targets:
            pixels += target.flatten().bincount(minlength=256).cpu()
        return pixels[: len(self.class_names)].tolist()

    def diagnose(
        self, pseudo: Sequence[Tensor], known: Sequence[Target | None]
    ) -> dict[str, float]:
        """Share of valid pixels; accuracy where the map is known."""
        valid = torch.stack(list(pseudo)).cpu() != IGNORE
        measured = {"valid_pixels": float(valid.float().mean())}
        right = labeled = 0
        for p, k in zip(pseudo, known, strict=True):
            if k is not None:
                both = (p.cpu() != IGNORE) & (k != IGNORE)
                right += int((p.cpu() == k)[both].sum())
                labeled += int(both.sum())
        if labeled:
            measured["accuracy"] = right / labeled
        return measured


class SegmentationHead(TaskHead):
    """DeepLabv3+'s head; raw output: logits (N, K, H / 4, W / 4)."""

    @configurable
    def __init__(self, *, head: DeepLabV3PlusHead, stride: int, threshold: float):
        """Wrap the head.

        Args:
            head: Detectron2's DeepLabV3PlusHead.
            stride: of its output.
            threshold: least probability of a pseudo-label's pixel; 0 keeps all.
        """
        super().__init__()
        self.head = head
        drop_by_image(head)
        self.in_features = list(head.in_features)
        self.stride = stride
        self.threshold = threshold

    @classmethod
    def from_config(cls, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> dict:
        """Read MODEL.SEM_SEG_HEAD as DeepLab does."""
        return {
            "head": build_sem_seg_head(cfg, shapes),
            "stride": cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
            "threshold": cfg.TASKS.SEGMENTATION.THRESHOLD,
        }

    def forward(self, features: dict[str, Tensor]) -> Raw:
        """See base class."""
        return (self.head.layers(features),)

    def _full_size(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)

    def assign(self, targets: Sequence[Tensor], size: Size, *, unsupervised: bool) -> Assigned:
        """The maps, (N, H, W); the count is that of valid pixels."""
        device = next(self.parameters()).device
        maps = torch.zeros(len(targets), *size, dtype=torch.long, device=device)
        for i, target in enumerate(targets):
            maps[i] = target.to(device)
        return Assigned((maps,), float((maps != IGNORE).sum()))

    def normalizer(self, count: float, *, unsupervised: bool) -> float:
        """The number of valid pixels: the loss is their mean."""
        return max(count, 1.0)

    def losses(self, raw: Raw, assigned: Assigned) -> dict[str, Tensor]:
        """Cross-entropy summed over valid pixels, at the resolution of the image."""
        logits = self._full_size(raw[0])
        loss = F.cross_entropy(logits, assigned.tensors[0], ignore_index=IGNORE, reduction="sum")
        return {"ce": loss}

    @torch.no_grad()
    def pseudo_labels(self, raw: Raw, size: Size, valid: Tensor) -> list[Tensor]:
        """The class of each pixel (argmax); padding and unsure pixels are ignored."""
        logits = self._full_size(raw[0])
        maps = logits.argmax(dim=1).to(torch.uint8)
        if self.threshold > 0:
            maps[logits.softmax(dim=1).amax(dim=1) <= self.threshold] = IGNORE
        maps[~_inside(valid.to(maps.device), size)] = IGNORE
        return list(maps)

    @torch.no_grad()
    def inference(
        self, raw: Raw, size: Size, image_sizes: Sequence[Size], output_sizes: Sequence[Size]
    ) -> list[dict]:
        """See base class."""
        logits = self._full_size(raw[0])
        return [
            {"sem_seg": sem_seg_postprocess(x, image_size, *output)}
            for x, image_size, output in zip(logits, image_sizes, output_sizes, strict=True)
        ]

    @torch.no_grad()
    def agreement(self, raw: Raw, assigned: Assigned) -> float:
        """Share of valid pixels whose top class is the assigned one."""
        maps = assigned.tensors[0]
        valid = maps != IGNORE
        same = (self._full_size(raw[0]).argmax(dim=1) == maps)[valid]
        return float(same.float().mean()) if len(same) else float("nan")


def _inside(boxes: Tensor, size: Size) -> Tensor:
    """Pixels with their centre in the box, (N, H, W) bool, for boxes (N, 4)."""
    x = torch.arange(size[1], device=boxes.device) + 0.5
    y = torch.arange(size[0], device=boxes.device) + 0.5
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)
    across, down = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return down[:, :, None] & across[:, None, :]


class MeanIoUEvaluator(DatasetEvaluator):
    """mIoU and IoU of each class, over the images labeled with a map, one confusion matrix."""

    def __init__(self, records: Sequence[dict], class_names: Sequence[str]):
        """Take the records.

        Args:
            records: those with "sem_seg_file_name"; others do not take part.
            class_names: in the order of the classes.
        """
        self._class_names = list(class_names)
        self._records = {r["image_id"]: r for r in records if "sem_seg_file_name" in r}
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        k = len(self._class_names)
        self._confusion = np.zeros((k, k), dtype=np.int64)  # rows: labels, columns: predictions

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of some images."""
        k = len(self._class_names)
        for image, output in zip(inputs, outputs, strict=True):
            if image["image_id"] in self._records:
                label = load_map(self._records[image["image_id"]]).astype(np.int64)
                found = output["sem_seg"].argmax(dim=0).cpu().numpy()
                pairs = (label * k + found)[label != IGNORE]
                self._confusion += np.bincount(pairs, minlength=k * k).reshape(k, k)

    def evaluate(self) -> dict | None:
        """The figures on the main process, None on others."""
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
